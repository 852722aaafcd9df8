"""The device process: follow logs, judge flows, group alerts, tell sinks, adapt."""

from typing import TYPE_CHECKING

from gradsense.exports import export

if TYPE_CHECKING:
    from gradsense.gateway.alerting.alert import Alert
    from gradsense.gateway.assembly import WatchPlan, open_watch
    from gradsense.gateway.settings import Settings
    from gradsense.gateway.store import GatewayStore
    from gradsense.gateway.watch import Watch
else:
    export(__name__)

__all__ = ["Alert", "GatewayStore", "Settings", "Watch", "WatchPlan", "open_watch"]
