"""Tasks: what every one of them must hold, and that a new one is one new folder."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import gradsense.tasks
from gradsense.data.flows import class_numbers
from gradsense.data.networks import Networks
from gradsense.errors import InputError
from gradsense.learning.answers import answers, measure
from gradsense.learning.metrics import score
from gradsense.learning.trainer import Examples, LocalLearner, Trainer
from gradsense.models import folder
from gradsense.models.build import build
from gradsense.prompts.templates import get_template, templates
from gradsense.tasks.task import Task, get_task, tasks

WINDOWS = """
    from collections.abc import Sequence

    import polars as pl

    from gradsense.data.flows import column
    from gradsense.tasks.task import ClassAdvice, Task, wordings

    CLASSES = ("Normal", "Stuck", "Spike")


    def classed(windows: pl.DataFrame, classes: Sequence[str] = CLASSES) -> pl.DataFrame:
        return windows.with_columns(pl.col("label").alias("class"))


    TASK = Task(
        name="windows",
        schema={"sensor": pl.String, "mean": pl.Float64, "spread": pl.Float64, "label": pl.String},
        classes=CLASSES,
        normal="Normal",
        classed=classed,
        devices=lambda windows, networks: column(windows, "sensor"),
        advice={
            "Stuck": ClassAdvice("low", "A sensor is stuck", "it does not change", "Look at it."),
            "Spike": ClassAdvice("high", "A sensor jumps", "it jumps", "Check its wiring."),
        },
        novel=ClassAdvice("low", "Unknown", "nothing like it was seen", "Ask what changed."),
        other=ClassAdvice("medium", "{label}", "it behaves like {label}", "Look at it."),
        wordings=wordings(f"{__name__}.templates"),
    )
"""
WORDS = """
    from gradsense.tasks import fields
    from gradsense.tasks.task import Wording

    EDGES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
    WORDING = Wording(
        "windows-short",
        version=1,
        budget=2,
        fields=tuple(
            fields.number(n, n, EDGES, lambda e, n=n: f"{n}:{e}", zero=f"{n}:0", missing=f"{n}:-")
            for n in ("mean", "spread")
        ),
    )
"""


@pytest.fixture
def windows(tmp_path: Path) -> Iterator[Task]:
    """A task of sensor windows, which nothing knows but its own folder."""
    for name, text in (("__init__", WINDOWS), ("templates/__init__", ""), ("templates/a", WORDS)):
        file = tmp_path / "windows" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))
    gradsense.tasks.__path__.append(str(tmp_path))
    tasks.cache_clear()
    yield get_task("windows")
    gradsense.tasks.__path__.remove(str(tmp_path))
    tasks.cache_clear()


def sampled(count: int, seed: int) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 3, count)
    return pl.DataFrame(
        {
            "sensor": [f"s{number % 4}" for number in range(count)],
            "mean": 2 + 20.0 * (kind == 2) + rng.normal(0, 0.2, count),
            "spread": np.where(kind == 1, 0.0, rng.uniform(0.4, 2, count)),
            "label": np.array(["Normal", "Stuck", "Spike"])[kind],
        }
    )


def test_a_new_task_is_a_new_folder_from_prompt_to_score(windows: Task, tmp_path: Path) -> None:
    template = get_template("windows-short")
    assert template.task is windows
    assert not template.needs_context
    classifier = build("nano", template=template, labels=windows.classes, seed=0, readout="tokens")

    def encoded(frame: pl.DataFrame) -> Examples:
        numbers = torch.from_numpy(class_numbers(frame, windows.classes))
        prompts = classifier.encode(template.render(frame).to_list())
        return Examples(prompts, torch.arange(len(frame)), numbers)

    frame = windows.classed(sampled(300, 1), windows.classes)
    train, test = encoded(frame[:200]), encoded(frame[200:])
    trainer = Trainer(classifier, lr=3e-3)
    learner = LocalLearner(trainer, train, test, stream=0)
    trained = learner.train(classifier.tensors(), first_step=0, steps=60)
    _, predicted = trainer.evaluate(test, trained.tensors)
    truth = test.labels.numpy()
    found = score(truth, predicted, windows.classes, normal=windows.normal)
    assert found.accuracy > 0.9
    assert found.false_alarm_rate is not None
    phrase_ids = template.indices(frame)
    said = answers(classifier, template.texts(phrase_ids))
    measured = measure(said, phrase_ids, class_numbers(frame, windows.classes), classifier)
    assert measured.calibration is not None
    assert measured.calibration.alarm is not None, "its normal class is known"
    folder.save(classifier, tmp_path / "model", measured=measured)
    assert folder.load(tmp_path / "model").template.task is windows
    assert windows.devices(frame[:2], Networks()) == ["s0", "s1"]


def test_a_folder_that_is_gone_is_no_task() -> None:
    with pytest.raises(InputError, match="flows"):
        get_task("windows")
    assert "windows-short" not in templates()


@pytest.mark.parametrize("task", tasks().values(), ids=tasks())
def test_task_is_whole(task: Task) -> None:
    assert task.normal in task.classes
    assert task.normal in task.binary or not task.binary
    assert len(set(task.classes)) == len(task.classes) >= 2
    assert task.advice.keys() >= set(task.classes) - {task.normal}
    assert not task.schema.keys() & task.history.keys()
    assert task.wordings
    for wording in task.wordings.values():
        columns = {name for field in wording.fields for name in field.index.meta.root_names()}
        assert columns <= task.schema.keys() | task.history.keys()
    empty = pl.DataFrame(schema={**task.schema, **task.history})
    assert task.classed(empty, task.classes).schema["class"] == pl.String
    assert task.devices(empty, Networks()) == []


def test_template_names_are_unique() -> None:
    names = [name for task in tasks().values() for name in task.wordings]
    assert sorted(names) == sorted(templates())
