"""What one device is given.

A bundle holds ``device/``, who the device is, and ``run/``, what it takes part in: the folder
``start`` of a run, ``FLEET/runs/NAME/start``. It is a folder or a .zip.
"""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from gradsense.errors import InputError
from gradsense.fleet import jobs
from gradsense.storage import files


def run_start(fleet: Path, name: str | None) -> Path | None:
    """The folder that devices get of a run.

    Args:
        name: of the run; None: the only one, if there is one.

    Returns:
        ``fleet/runs/NAME/start``, or None where no name is given and there is no run.

    Raises:
        InputError: there is no such run, or several and no name is given.
    """
    names = sorted(
        file.parent.parent.name
        for file in fleet.glob(f"{jobs.RUNS}/*/{jobs.START}/{jobs.JOB_FILE}")
    )
    if name is None:
        if len(names) > 1:
            raise InputError(
                f"this fleet has several runs: {', '.join(names)}",
                hint="give --run NAME",
                file=fleet,
            )
        name = names[0] if names else None
    elif name not in names:
        raise InputError(
            f"is no run of this fleet, which has {', '.join(names) or 'none'}",
            hint="gradsense fleet run NAME makes one",
            field=f"--run {name[:80]!r}",
        )
    return None if name is None else fleet / jobs.RUNS / name / jobs.START


def prepare(out: Path) -> None:
    """Make the folders above a bundle that ``write`` is to make.

    Raises:
        InputError: a bundle, or a part of one, is there.
        OSError: the folders cannot be made.
    """
    packed = out.suffix == ".zip"
    for place in (out,) if packed else (out / "device", out / "run"):
        if place.exists():
            raise InputError("is there already", hint="give another --out", file=place)
    (out.parent if packed else out).mkdir(parents=True, exist_ok=True)


def write(out: Path, device: Mapping[str, bytes], run: Path | None) -> None:
    """Write a bundle where ``prepare`` was. ``device/`` comes last: a folder without it is none.

    Args:
        out: a .zip, or a folder.
        device: files of ``device/`` by name.
        run: folder whose files go under ``run/``.

    Raises:
        OSError: it cannot be written, or ``run`` cannot be read.
    """
    if out.suffix == ".zip":
        _pack(out, device, run)
        return
    if run is not None:
        with files.replacing(out / "run") as new:
            new.chmod(0o700)
            for name, source in _files(run):
                _make_private(new, (new / name).parent)
                with source.open("rb") as stream, files.fresh(new / name) as target:
                    shutil.copyfileobj(stream, target)
    with files.replacing(out / "device") as new:
        write_files(new, device)


def write_files(folder: Path, bodies: Mapping[str, bytes]) -> None:
    """Write files by name into a folder, both for their owner only."""
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    for name, body in bodies.items():
        files.write(folder / name, body)


def _files(run: Path) -> list[tuple[str, Path]]:
    """All files of a run's start by their names below it, in order."""
    found = sorted(path for path in run.rglob("*") if path.is_file())
    return [(path.relative_to(run).as_posix(), path) for path in found]


def _make_private(top: Path, folder: Path) -> None:
    """``folder`` and what lies between it and ``top``, for their owner only."""
    if folder != top:
        _make_private(top, folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def _pack(out: Path, device: Mapping[str, bytes], run: Path | None) -> None:
    with files.fresh(out) as stream, zipfile.ZipFile(stream, "w") as archive:
        for name, body in device.items():
            _add(archive, f"device/{name}", io.BytesIO(body))
        for name, path in _files(run) if run is not None else ():
            with path.open("rb") as source:
                _add(archive, f"run/{name}", source)


def _add(archive: zipfile.ZipFile, name: str, source: BinaryIO) -> None:
    member = zipfile.ZipInfo(name)  # dated 1980: no hidden clock
    member.external_attr = 0o600 << 16
    with archive.open(member, "w", force_zip64=True) as target:
        shutil.copyfileobj(source, target)
