"""The centre in Flower: asks every device for uploads and notes when it had them."""

from __future__ import annotations

import json
import random
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

EAGER_S = 0.05
# Before and after each window, so that a device's finished processes are counted within it.
SETTLE_S = 4.0
# A question must not always fall into the same moment of a node's wait between two looks.
POLL_S = 3.0
WARM_UP = {"eager": True, "bytes": 100, "repeats": 1}

app = ServerApp()


@app.main()  # type: ignore[untyped-decorator]
def main(grid: Grid, context: Context) -> None:
    """Write the figures of all windows, or the error, to the file ``output`` as JSON."""
    config = context.run_config
    output = Path(str(config["output"]))
    try:
        found: Any = _measure(grid, int(config["devices"]), json.loads(str(config["windows"])))
    except Exception:
        found = {"error": traceback.format_exc()}
    part = output.with_suffix(".part")
    part.write_text(json.dumps(found))
    part.rename(output)


def _measure(grid: Grid, devices: int, windows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    while len(nodes := list(grid.get_node_ids())) < devices:
        time.sleep(0.2)
    # The first question makes every device fetch and install the app.
    _window(grid, nodes, WARM_UP)
    return [_window(grid, nodes, window) for window in windows]


def _window(grid: Grid, nodes: list[int], window: dict[str, Any]) -> dict[str, Any]:
    time.sleep(SETTLE_S)
    start = time.time()
    uploads: list[dict[str, float]] = []
    pauses = random.Random(window["bytes"])
    for _ in range(window["repeats"]):
        time.sleep(pauses.uniform(0, POLL_S))
        uploads.extend(_round(grid, nodes, window["bytes"], window["eager"]))
    time.sleep(SETTLE_S)
    return {**window, "start": start, "end": time.time(), "uploads": uploads}


def _round(grid: Grid, nodes: list[int], size: int, eager: bool) -> Iterator[dict[str, float]]:
    """Ask all nodes once; ``eager`` looks for replies every 50 ms and not as Flower's own loop."""
    ask = RecordDict({"ask": ConfigRecord({"bytes": size})})
    questions = [Message(ask, dst_node_id=node, message_type="query") for node in nodes]
    asked = time.time_ns()
    for reply in _eagerly(grid, questions) if eager else grid.send_and_receive(questions):
        had = time.time_ns()
        if reply.has_error():
            raise RuntimeError(f"a device answered with an error: {reply.error}")
        payload = reply.content["payload"]["bytes"].numpy()
        if payload.nbytes != size:
            raise RuntimeError(f"asked for {size} bytes, got {payload.nbytes}")
        decided = int(reply.content["decided"]["ns"])
        yield {"upload_ms": (had - decided) / 1e6, "roundtrip_ms": (had - asked) / 1e6}


def _eagerly(grid: Grid, questions: list[Message]) -> Iterator[Message]:
    missing = set(grid.push_messages(questions))
    while missing:
        for reply in grid.pull_messages(missing):
            missing.discard(reply.metadata.reply_to_message_id)
            yield reply
        time.sleep(EAGER_S)
