"""A gateway in ten lines: open a bundle, follow a log, print alerts.

    gradsense export --model run/model --out edge/
    python examples/gateway.py edge/ /opt/zeek/logs/current/conn.log

Killed and started again, it continues where it was: its place is in gateway-state/. With --once it
reads the log to its end and stops.
"""

import sys
from pathlib import Path

from gradsense.gateway import WatchPlan, open_watch


class Printer:
    name, close = "printer", lambda self: None  # a sink: this, and what takes the alerts

    def send(self, alerts):
        for alert in alerts:
            print(alert.severity, alert.sentence, alert.advice, flush=True)


plan = WatchPlan([Path(sys.argv[2])], model=Path(sys.argv[1]), state=Path("gateway-state"))
open_watch(plan, extra={"printer": Printer()}).run(once="--once" in sys.argv)
