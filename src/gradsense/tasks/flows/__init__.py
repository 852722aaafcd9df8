"""IoT traffic: a record is one network connection, as Zeek or Suricata logs it."""

from __future__ import annotations

from gradsense.data.datasets.iot23 import BENIGN, BINARY_CLASSES, CLASSES, classed
from gradsense.data.flows import CONTEXT_SCHEMA, FLOW_SCHEMA
from gradsense.data.networks import devices
from gradsense.tasks.flows.classes import ADVICE, NOVEL_TRAFFIC, OTHER_TRAFFIC
from gradsense.tasks.task import Task, wordings

TASK = Task(
    name="flows",
    schema=FLOW_SCHEMA,
    history=CONTEXT_SCHEMA,
    classes=CLASSES,
    binary=BINARY_CLASSES,
    normal=BENIGN,
    classed=classed,
    devices=devices,
    advice=ADVICE,
    novel=NOVEL_TRAFFIC,
    other=OTHER_TRAFFIC,
    wordings=wordings(f"{__name__}.templates"),
)
