"""``gradsense export`` as a person meets it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gradsense.detection import bundle


@pytest.mark.slow
def test_export_writes_a_bundle_and_says_what_it_is(
    gradsense: Callable[..., Any], trained: Any, fleet: Path, tmp_path: Path
) -> None:
    out = tmp_path / "edge"
    said = gradsense("export", "--model", trained.model, "--out", out, "--verify", "--data", fleet)
    assert said.code == 0, said.err
    for text in ("100.000%", "temperature", "suspicion above", "score above", "gradsense watch"):
        assert text in said.out
    assert said.err == ""
    assert bundle.read(out)[0].verified is not None


@pytest.mark.slow
def test_json_is_the_manifest(gradsense: Callable[..., Any], trained: Any, tmp_path: Path) -> None:
    said = gradsense("export", "--model", trained.model, "--out", tmp_path / "edge", "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out) == json.loads((tmp_path / "edge" / "manifest.json").read_text())


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--model", "nowhere"], ("nowhere", "no such model folder")),
        (["--data", "nowhere"], ("nowhere", "no such file or folder")),
    ],
)
def test_bad_input_is_one_line(
    options: list[str],
    parts: tuple[str, ...],
    gradsense: Callable[..., Any],
    trained: Any,
    tmp_path: Path,
) -> None:
    given = {"--model": trained.model, "--out": tmp_path / "edge"} | dict(
        zip(options[::2], options[1::2], strict=True)
    )
    gradsense("export", *(part for pair in given.items() for part in pair)).complaint(*parts)
    assert not (tmp_path / "edge").exists()


def test_a_missing_extra_is_one_line(
    gradsense: Callable[..., Any], trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(*args: object, **options: object) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch.nn")

    monkeypatch.setattr("gradsense.detection.export.export", absent)
    said = gradsense("export", "--model", trained.model, "--out", tmp_path / "edge")
    said.complaint("needs torch", "pip install 'gradsense[train]'")


def test_a_module_of_no_extra_is_a_defect(
    gradsense: Callable[..., Any], trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(*args: object, **options: object) -> None:
        raise ModuleNotFoundError("No module named 'gradsens'", name="gradsens")

    monkeypatch.setattr("gradsense.detection.export.export", absent)
    with pytest.raises(ModuleNotFoundError):
        gradsense("export", "--model", trained.model, "--out", tmp_path / "edge")
