"""What can be told of settings before minutes are spent on them."""

from __future__ import annotations

from gradsense.config import RunSettings
from gradsense.engines.devices import assign
from gradsense.federation.strategies import get_strategy
from gradsense.prompts.templates import get_template
from gradsense.telemetry.dataset import discover


def check(settings: RunSettings, *, reference: bool = False) -> None:
    """Complain about names that do not exist and about data that is not there.

    Args:
        settings: of one run.
        reference: the strategy is the name of a reference row, and known to be one.

    Raises:
        InputError: an unknown strategy, template or device mix, or no capture at ``data``.
    """
    if not reference:
        get_strategy(settings.strategy)
    get_template(settings.template)
    assign([], settings.devices, seed=settings.seed)
    if settings.data is not None:
        discover(settings.data)
