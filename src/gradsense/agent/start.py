"""Which bundle detection begins with."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from gradsense.agent.agent import DETECTOR
from gradsense.detection import bundle as bundles
from gradsense.errors import InputError
from gradsense.fleet import jobs
from gradsense.storage.files import replacing


def first_detector(bundle: Path, state: Path) -> Path | None:
    """The folder that detection reads: the last model that was handed over, or the run's start.

    A run that starts from nothing has nobody to ask until its first aggregation.

    Raises:
        InputError: the run's start is damaged.
    """
    place, start = state / DETECTOR, bundle / jobs.RUN / jobs.EDGE
    if (place / bundles.MANIFEST_FILE).is_file():
        with suppress(InputError):  # damaged by a loss of power: the agent will replace it
            bundles.read(place)
            return place
    manifest, _ = bundles.read(start)
    if not manifest.alarm.flows:
        return None
    with replacing(place) as fresh:
        shutil.copytree(start, fresh, dirs_exist_ok=True)
    return place
