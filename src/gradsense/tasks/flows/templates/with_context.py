"""``compact``, and five words on the recent flows of the originating host."""

from __future__ import annotations

from gradsense.tasks import fields
from gradsense.tasks.fields import Field
from gradsense.tasks.flows.templates import compact
from gradsense.tasks.flows.templates.compact import short
from gradsense.tasks.task import Wording

_RATES = tuple(2.0**step for step in range(-12, 11))


def _eighths(prefix: str, column: str) -> Field:
    return fields.share(prefix, column, [f"{prefix}:{step}/8" for step in range(9)], f"{prefix}:-")


_HOST = (
    short("cn", "ctx_flows", (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)),
    short("cr", "ctx_rate", _RATES),
    _eighths("cf", "ctx_failed"),
    _eighths("cw", "ctx_fresh"),
    _eighths("cp", "ctx_same_port"),
)

WORDING = Wording("context", version=1, budget=19, fields=compact.FIELDS + _HOST)
