"""``gradsense edge``: one device of a fleet, detecting and learning."""

from __future__ import annotations

import logging
import os
import random
import sys
import threading
import time
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gradsense.cli.lazy import command
from gradsense.cli.watch import log_to_stderr, state_folder, stop_on_signals, watch_settings
from gradsense.errors import GradsenseError, InputError


@command(example="gradsense edge --bundle porch-cam/ --logs /opt/zeek/logs/current/conn.log")
def edge(
    bundle: Annotated[
        Path, typer.Option(help="What gradsense fleet enroll wrote, unpacked: device/ and run/.")
    ],
    logs: Annotated[
        list[Path],
        typer.Option(help="A Zeek or Suricata log, or a folder of them; may be given repeatedly."),
    ],
    state: Annotated[
        Path | None,
        typer.Option(
            help="Folder for what must survive. Default: ~/.local/state/gradsense.",
            show_default=False,
        ),
    ] = None,
    rules: Annotated[
        Path | None, typer.Option(help="TOML file that labels flows; see docs/rules.md.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file of the watch: sinks, networks; docs/sinks.md.")
    ] = None,
    detect: Annotated[
        bool, typer.Option(help="Detect too. Without: only learn, beside a gradsense watch.")
    ] = True,
    cpu: Annotated[
        float, typer.Option(min=0.01, max=64, help="CPU cores that training may take on average.")
    ] = 0.25,
    memory: Annotated[
        int, typer.Option(min=64, help="MiB that the training process may take.")
    ] = 1024,
    temperature: Annotated[
        float, typer.Option(min=0, help="Degrees Celsius above which training rests; 0: never.")
    ] = 80.0,
    uplink: Annotated[
        float | None, typer.Option(min=1, help="Cap in KiB a second upwards.")
    ] = None,
    downlink: Annotated[
        float | None, typer.Option(min=1, help="Cap in KiB a second downwards.")
    ] = None,
    keepalive: Annotated[
        int,
        typer.Option(
            min=2,
            max=3600,
            help="Seconds of silence after which the broker is asked whether it is there. More "
            "costs less on a metered link, and finds a dead one later.",
        ),
    ] = 15,
    settle: Annotated[
        float, typer.Option(min=0, help="Seconds that labelled flows wait for more of them.")
    ] = 60.0,
    agent_of: Annotated[int, typer.Option(hidden=True)] = 0,
) -> None:
    """Run a device: detect in its logs, learn from what is labelled, upload when there is news.

    Labels come from the operator's feedback (gradsense feedback), a rules file, or the logs
    themselves. Without a network it goes on; what it has to send waits on disk.
    """
    place = state or state_folder()
    if agent_of or not detect:
        from gradsense.agent.agent import Agent
        from gradsense.agent.label_rules import read as read_rules
        from gradsense.agent.limits import ResourceLimits, lower_priority
        from gradsense.agent.plan import AgentPlan
        from gradsense.agent.supervisor import die_with_parent
        from gradsense.data.networks import Networks

        log_to_stderr(logging.INFO)
        if agent_of:
            die_with_parent(agent_of)
        limits = ResourceLimits(cpu_share=cpu, memory_mb=memory, temperature_c=temperature or None)
        plan = AgentPlan(
            bundle=bundle,
            logs=logs,
            state=place,
            rules=None if rules is None else read_rules(rules),
            journal=place,
            networks=Networks(watch_settings(config).networks),
            limits=limits,
            settle_s=settle,
            uplink=None if uplink is None else uplink * 1024,
            downlink=None if downlink is None else downlink * 1024,
            keepalive_s=keepalive,
        )
        lower_priority(limits)
        agent = Agent(plan, rng=random.Random())
        with ExitStack() as stack:
            stop_on_signals(agent.stop, stack)
            agent.run()
        return
    _detect(bundle, logs, place, config)


def _detect(bundle: Path, logs: list[Path], state: Path, config: Path | None) -> None:
    """Watch in this process, and keep the agent going in another."""
    from gradsense.agent.handover import first_detector
    from gradsense.agent.labelling import find_logs
    from gradsense.agent.supervisor import Supervisor
    from gradsense.gateway.wiring import WatchPlan, open_watch

    log_to_stderr()
    settings = watch_settings(config)
    command = ["-m", "gradsense", *sys.argv[1:], "--agent-of", str(os.getpid())]
    agent = Supervisor(command, timer=time.monotonic, on_refusal=partial(_count_refusal, state))
    stop = threading.Event()
    keeper = threading.Thread(target=agent.keep, args=(stop,))
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with ExitStack() as stack:
        stop_on_signals(stop, stack)
        keeper.start()
        stack.callback(keeper.join)
        stack.callback(stop.set)
        if first_detector(bundle, state) is None:
            console.print("detection begins with the first model that this run makes")
        while (model := first_detector(bundle, state)) is None and not stop.wait(0.5):
            if agent.refusals:
                raise InputError("the training agent cannot work", hint="see its message above")
        if model is not None:
            watch = open_watch(
                WatchPlan(logs=find_logs(logs), model=model, state=state, settings=settings)
            )
            stack.callback(watch.journal.close)
            watch.stop = stop
            names = ", ".join(map(str, logs))
            console.print(f"detecting in {names}; state in {state}", markup=False)
            watch.run(once=False)


def _count_refusal(state: Path) -> None:
    """Count an agent that refuses its input where the watch counts."""
    from gradsense.gateway.store import GatewayStore, StoreBatch

    with suppress(GradsenseError):
        store = GatewayStore(state, exclusive=False)
        store.commit(StoreBatch(counts={"agent_refused": 1}))
        store.close()
