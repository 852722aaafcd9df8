"""The device in Flower: answers a question with an upload of the size that was asked for."""

from __future__ import annotations

import os
import time

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query()  # type: ignore[untyped-decorator]
def upload(message: Message, _context: Context) -> Message:
    """Random bytes as an ``ArrayRecord``, and when their upload was decided (Unix time, ns).

    Fresh bytes every time: Flower addresses objects by their hash and would send no second copy.
    """
    payload = np.frombuffer(os.urandom(int(message.content["ask"]["bytes"])), dtype=np.uint8)
    decided = time.time_ns()
    content = RecordDict(
        {
            "payload": ArrayRecord({"bytes": Array(payload)}),
            "decided": MetricRecord({"ns": decided}),
        }
    )
    return Message(content, reply_to=message)
