"""What is wrong with settings, found before minutes are spent on them."""

from __future__ import annotations

from gradsense.config import RunSettings
from gradsense.data.datasets.captures import discover
from gradsense.errors import InputError
from gradsense.federation.algorithm import get_algorithm
from gradsense.prompts.templates import get_template
from gradsense.simulation.devices import assign


def check(settings: RunSettings, *, reference: bool = False) -> None:
    """Raise an error for names that do not exist and for data that is not there.

    Args:
        settings: of one run.
        reference: the algorithm is the name of a reference row, and known to be one.

    Raises:
        InputError: an unknown algorithm, template or device mix, adapters that the
            algorithm would not train, or no capture at ``data``.
    """
    if not reference:
        algorithm = get_algorithm(settings.algorithm)
        if settings.lora_rank and (algorithm.frozen or algorithm.readout != "last"):
            raise InputError(
                f"'{settings.algorithm}' trains no adapters",
                hint="leave it out, or use an algorithm that trains the base, such as gsfs-tune",
                field="--lora-rank",
            )
    get_template(settings.template)
    assign([], settings.devices, seed=settings.seed)
    if settings.data is not None:
        discover(settings.data)
