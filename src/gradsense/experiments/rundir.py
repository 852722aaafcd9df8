"""The folder of a run: what lies in it, and whose it is."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradsense.config import RunSettings
from gradsense.errors import InputError
from gradsense.experiments import results

if TYPE_CHECKING:
    from gradsense.experiments.corpus import Corpus

CHECKPOINT, SETTINGS, RESULTS, MODEL = "checkpoint.zst", "settings.json", "results.json", "model"
REPORT = "report.html"


def fingerprint(settings: RunSettings, corpus: Corpus) -> dict[str, Any]:
    """What must be equal for a run to be continued: the settings, and the texts."""
    digest = hashlib.sha256()
    for frame in (corpus.parts.train, corpus.parts.test, corpus.parts.validation):
        for column in ("client", "class", "text"):
            digest.update("\n".join(frame[column]).encode())
    return {
        "settings": settings.model_dump(mode="json"),
        "data_sha256": digest.hexdigest(),
    }


def claimable(out: Path, *, resume: bool) -> None:
    """Complain about a folder before minutes are spent on a run that could not use it.

    Makes nothing: an input error found later must not leave a folder behind.

    Raises:
        InputError: ``out`` cannot be written, holds a run and no ``resume``, or something else.
    """
    writable(out)
    if (out / SETTINGS).exists():
        if not resume:
            raise InputError(
                "the folder holds a run already",
                hint="add --resume to continue it, or choose another --out",
                file=out,
            )
        return
    for name in (RESULTS, REPORT, MODEL, CHECKPOINT):
        if (out / name).exists():  # without settings it is not of a run: a comparison, say
            raise InputError(
                f"the folder holds a {name} that no run of this kind wrote",
                hint="choose another --out",
                file=out,
            )


def writable(out: Path) -> None:
    """Complain about a folder that cannot be made or written to.

    Raises:
        InputError: it is one.
    """
    try:
        nearest = next(folder for folder in (out, *out.parents) if folder.exists())
        if not nearest.is_dir():
            raise NotADirectoryError(0, f"{nearest} is no folder")
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise InputError(
            f"cannot write here: {error.strerror}", hint="choose another --out", file=out
        ) from None


def load_row(out: Path) -> results.Row:
    """The one row of a finished run.

    Raises:
        InputError: the file is missing or damaged.
    """
    rows = results.load(out / RESULTS)
    if len(rows) != 1:
        raise InputError(
            f"{len(rows)} rows, not one",
            hint="delete the run's folder to start it again",
            file=out / RESULTS,
        )
    return rows[0]


def claim(out: Path, settings: RunSettings, corpus: Corpus, *, resume: bool) -> results.Row | None:
    """Make ``out`` this run's folder; its row if the run is already finished.

    Raises:
        InputError: as ``claimed``.
    """
    return load_row(out) if claimed(out, settings, corpus, resume=resume) else None


def claimed(out: Path, settings: RunSettings, corpus: Corpus, *, resume: bool) -> bool:
    """Make ``out`` this run's folder; whether the run is already finished.

    Raises:
        InputError: ``out`` cannot be written, holds another run, or a run and no ``resume``.
    """
    claimable(out, resume=resume)
    out.mkdir(parents=True, exist_ok=True)
    own, path = fingerprint(settings, corpus), out / SETTINGS
    if not path.exists():
        results.write_text(path, json.dumps(own, indent=1) + "\n")
        return False
    try:
        saved = json.loads(path.read_text())
        damaged = not isinstance(saved["settings"], dict)
    except (OSError, ValueError, TypeError, KeyError):
        damaged = True
    if damaged:
        raise InputError("damaged or unreadable", hint="choose another --out", file=path)
    _compare(saved, own, path)
    return (out / RESULTS).exists()


def _compare(saved: dict[str, Any], own: dict[str, Any], path: Path) -> None:
    before, now = saved["settings"], own["settings"]
    if before.keys() != now.keys():
        raise InputError(
            "another version of gradsense wrote that run",
            hint="resume it with that version, or choose another --out",
            file=path,
        )
    for key in sorted(now):
        if before.get(key) != now.get(key):
            raise InputError(
                f"that run had {key} {before.get(key)}, this one has {now.get(key)}",
                hint="give the same options, or choose another --out",
                file=path,
                field=key,
            )
    if saved.get("data_sha256") != own["data_sha256"]:
        raise InputError(
            "the data changed since that run", hint="choose another --out", file=path, field="data"
        )
