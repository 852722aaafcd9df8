"""IoT traffic: a record is one network connection, as Zeek or Suricata logs it."""

from __future__ import annotations

from gradsense.data.datasets.iot23 import BENIGN, BINARY_CLASSES, CLASSES, classed
from gradsense.data.flows import CONTEXT_SCHEMA, FLOW_SCHEMA, Flows, column
from gradsense.data.networks import Networks
from gradsense.tasks.flows.classes import ADVICE, NOVEL_TRAFFIC, OTHER_TRAFFIC
from gradsense.tasks.task import Task, wordings


def _devices(flows: Flows, networks: Networks) -> list[str]:
    return list(map(networks.device, column(flows, "orig_h"), column(flows, "resp_h")))


TASK = Task(
    name="flows",
    schema=FLOW_SCHEMA,
    history=CONTEXT_SCHEMA,
    classes=CLASSES,
    binary=BINARY_CLASSES,
    normal=BENIGN,
    classed=classed,
    devices=_devices,
    advice=ADVICE,
    novel=NOVEL_TRAFFIC,
    other=OTHER_TRAFFIC,
    wordings=wordings(f"{__name__}.templates"),
)
