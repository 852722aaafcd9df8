"""``gradsense coordinator``: the cloud's process."""

from __future__ import annotations

import logging
import random
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from gradsense.cli.lazy import command
from gradsense.cli.watch import log_to_stderr, stop_on_signals
from gradsense.errors import InputError


@command(example="gradsense coordinator --fleet fleet/ --metrics 127.0.0.1:9109")
def coordinator(
    fleet: Annotated[Path, typer.Option(help="The fleet's folder.")] = Path("fleet"),
    metrics: Annotated[
        str | None, typer.Option(help="HOST:PORT to answer Prometheus on, say 127.0.0.1:9109.")
    ] = None,
) -> None:
    """Pool what devices send, aggregate, and give every device the same new model.

    Serves all runs of the fleet, also those that are opened while it works. Kill it at any
    instant: it goes on from its journal. gradsense fleet status shows how it stands.
    """
    from prometheus_client import CollectorRegistry

    from gradsense.coordinator.exporter import StatusCollector
    from gradsense.coordinator.service import CoordinatorService
    from gradsense.gateway.instruments import serve

    log_to_stderr(logging.INFO)
    with ExitStack() as stack:
        process = CoordinatorService(fleet, rng=random.Random())
        if metrics is not None:
            registry = CollectorRegistry()
            registry.register(StatusCollector(lambda: process.latest))
            stack.callback(serve(registry, _address(metrics)))
        stop_on_signals(process.stop, stack)
        process.run()


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise InputError("is no address", hint="give HOST:PORT", field=f"--metrics {text}")
    return text
