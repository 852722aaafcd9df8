"""Checks of a run's settings that need no training."""

from __future__ import annotations

from gradsense.config import RunSettings
from gradsense.data.datasets.captures import discover
from gradsense.errors import InputError
from gradsense.federation.strategies import get_strategy
from gradsense.prompts.templates import get_template
from gradsense.simulation.devices import assign


def check(settings: RunSettings, *, reference: bool = False) -> None:
    """Raise an error for names that do not exist and for data that is not there.

    Args:
        settings: of one run.
        reference: the strategy is the name of a reference row, and known to be one.

    Raises:
        InputError: an unknown strategy, template or device mix, adapters that the
            strategy would not train, or no capture at ``data``.
    """
    if not reference:
        strategy = get_strategy(settings.strategy)
        if settings.lora_rank and (strategy.frozen or strategy.readout != "last"):
            raise InputError(
                f"'{settings.strategy}' trains no adapters",
                hint="leave it out, or use a strategy that trains the base, such as gsfs-tune",
                field="--lora-rank",
            )
    get_template(settings.template)
    assign([], settings.devices, seed=settings.seed)
    if settings.data is not None:
        discover(settings.data)
