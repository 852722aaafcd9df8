"""The table, and changing values in it."""

from __future__ import annotations

import pytest

from gradsense.errors import InputError
from gradsense.federation.aggregate import FrequencyMean
from gradsense.federation.pool import Quorum
from gradsense.federation.strategies import STRATEGIES, get_strategy
from gradsense.federation.trigger import AnyOf, Gradient, Performance


def test_the_papers_preset_is_the_paper() -> None:
    paper = STRATEGIES["gsfs-paper"]
    assert isinstance(paper.trigger, AnyOf)
    assert [type(t) for t in paper.trigger.triggers] == [Performance, Gradient]
    assert paper.pool == Quorum(0.6, deadline_s=None)
    assert paper.aggregator == FrequencyMean()  # every tempering off
    assert not paper.keep_local
    assert not paper.partial


def test_a_spec_changes_named_values_anywhere() -> None:
    spec = "gsfs-tune:keep_local=false:beta=1.5:share=0.3:deadline_s=5"
    strategy = get_strategy(spec)
    assert strategy.name == spec
    assert not strategy.keep_local
    assert strategy.pool == Quorum(0.3, deadline_s=5)
    assert isinstance(strategy.trigger, AnyOf)
    assert [t.beta for t in strategy.trigger.triggers if isinstance(t, Gradient)] == [1.5]
    assert STRATEGIES["gsfs-tune"].keep_local  # the row itself is untouched


def test_a_deadline_may_be_taken_away() -> None:
    assert get_strategy("gsfs-tune:deadline_s=null").pool.deadline_s is None


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("fedsgd", "unknown strategy 'fedsgd'; choose from fed"),
        ("gsfs-tune:speed=3", "no value 'speed'; write gsfs-tune:key=value with one of"),
        ("gsfs-tune:trigger=3", "no value 'trigger'"),
        ("gsfs-tune:beta=high", "'high' does not fit 'beta'; give a value like the present 2.0"),
        ("gsfs-tune:keep_local=1", "'1' does not fit 'keep_local'"),
        ("gsfs-tune:beta", "'' does not fit 'beta'"),
        ("gsfs-tune:name=x", "no value 'name'"),
        ("gsfs-tune:share=5", "'5' does not fit 'share'; .* at least 0, at most 1"),
        ("gsfs-tune:deadline_s=-3", "'-3' does not fit 'deadline_s'"),
        ("fedopt:lr=NaN", "'NaN' does not fit 'lr'"),
        ("fedopt:kind=foo", "'foo' does not fit 'kind'; .* one of adam, yogi, adagrad"),
    ],
)
def test_bad_specs_say_what_would_do(spec: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        get_strategy(spec)
