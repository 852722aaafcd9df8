"""The table, and changing values in it."""

from __future__ import annotations

import pytest

from gradsense.errors import InputError
from gradsense.federation.algorithm import algorithms, get_algorithm
from gradsense.federation.algorithms.gsfs_paper import FrequencyMean
from gradsense.federation.pools import Quorum
from gradsense.federation.rules.median import CoordinateMedian
from gradsense.federation.transforms.clip import Clip
from gradsense.federation.transforms.noise import Noise
from gradsense.federation.triggers import AnyOf, Gradient, Performance


def test_the_papers_preset_is_the_paper() -> None:
    paper = algorithms()["gsfs-paper"]
    assert isinstance(paper.trigger, AnyOf)
    assert [type(t) for t in paper.trigger.triggers] == [Performance, Gradient]
    assert paper.pool == Quorum(0.6, "all", deadline_s=None)
    assert paper.rule == FrequencyMean()  # every tempering off
    assert not paper.keep_local
    assert not paper.partial


def test_a_spec_changes_named_values_anywhere() -> None:
    spec = "gsfs-tune:keep_local=false:beta=1.5:share=0.3:deadline_s=5"
    algorithm = get_algorithm(spec)
    assert not algorithm.keep_local
    assert algorithm.pool == Quorum(0.3, deadline_s=5)
    assert isinstance(algorithm.trigger, AnyOf)
    assert [t.beta for t in algorithm.trigger.triggers if isinstance(t, Gradient)] == [1.5]
    assert algorithms()["gsfs-tune"].keep_local  # the row itself is untouched


def test_values_are_checked_together() -> None:
    """α = 0.5 rules out the present β = 2, and is fine beside β = 1.5, in either order."""
    made = [
        get_algorithm(f"gsfs-paper:{pair}") for pair in ("alpha=0.5:beta=1.5", "beta=1.5:alpha=0.5")
    ]
    assert made[0] == made[1]


def test_the_two_readings_of_the_paper_differ_in_what_a_look_is() -> None:
    ours, literal = algorithms()["gsfs-paper"], algorithms()["gsfs-literal"]
    assert get_algorithm("gsfs-paper:per=step").trigger == literal.trigger
    assert (ours.pool, ours.rule, ours.looks) == (literal.pool, literal.rule, literal.looks)


def test_a_deadline_may_be_taken_away() -> None:
    assert get_algorithm("gsfs-tune:deadline_s=null").pool.deadline_s is None


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("fedsgd", "unknown algorithm 'fedsgd'; choose from fed"),
        ("gsfs-tune:speed=3", "no setting 'speed'; write gsfs-tune:key=value with one of"),
        ("gsfs-tune:trigger=3", "no setting 'trigger'"),
        ("gsfs-tune:beta=high", "'high' does not fit 'beta'; give a value like the present 2.0"),
        ("gsfs-tune:keep_local=1", "'1' does not fit 'keep_local'"),
        ("gsfs-tune:beta", "'' does not fit 'beta'"),
        ("gsfs-paper:beta=10", r"beta must be below 1/\(1-alpha\) = 10,"),
        ("gsfs-paper:alpha=0.5", r"'0.5' does not fit 'alpha'; .* 1/\(1-alpha\) = 2,"),
        ("gsfs-paper:beta=4:alpha=0.8:delta=-1", "'-1' does not fit 'delta'"),
        ("gsfs-tune:name=x", "no setting 'name'"),
        ("gsfs-tune:share=5", "'5' does not fit 'share'; .* less than or equal to 1"),
        ("gsfs-tune:deadline_s=-3", "'-3' does not fit 'deadline_s'"),
        (
            "gsfs:rule=median",
            "'median' does not fit 'rule'; input should be an instance of RidgeSum",
        ),
        ("fedavg:rule=mode", "'mode' does not fit 'rule'; one of .*mean, median"),
        ("fedavg:codec=zip", "'zip' does not fit 'codec'; one of fp16, int4, int8, none"),
        ("gsfs:frozen=false", "'false' does not fit 'frozen'"),
        ("fedopt:lr=NaN", "'NaN' does not fit 'lr'"),
        ("fedopt:kind=foo", "'foo' does not fit 'kind'; .* 'adam', 'yogi' or 'adagrad'"),
    ],
)
def test_bad_specs_say_what_would_do(spec: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        get_algorithm(spec)


def test_rules_transforms_and_codecs_are_taken_by_name() -> None:
    algorithm = get_algorithm("fedavg:rule=median:transforms=clip+noise:norm=2:codec=int8")
    assert isinstance(algorithm.rule, CoordinateMedian)
    assert algorithm.transforms == (Clip(2.0), Noise())
    assert algorithm.codec.name == "int8"


@pytest.mark.parametrize(
    "spec",
    [
        "fedavg:momentum=" + "[" * 100_000,
        "gsfs:sharpness=1e300",
        "gsfs:codec=topk:kept=0",
        "fedavg:transforms=noise:deviation=1e300",
        "fedavg:transforms=clip:norm=1e300",
        "scaffold:rule=median",
    ],
)
def test_values_out_of_bounds_are_refused_in_one_line(spec: str) -> None:
    with pytest.raises(InputError, match="does not fit"):
        get_algorithm(spec)
