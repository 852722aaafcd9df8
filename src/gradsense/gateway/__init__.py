"""Detection on a gateway: follow logs, judge flows, raise alerts, deliver them to sinks, adapt."""

from gradsense.exports import TYPE_CHECKING, export

__all__ = [
    "Alert", "GatewayStore", "Settings", "Sink", "SinkContext", "SinkError", "SinkSettings",
    "Watch", "WatchPlan", "open_watch",
]  # fmt: skip
export(__name__)
if TYPE_CHECKING:
    from gradsense.gateway.alerting.alert import Alert
    from gradsense.gateway.alerting.sink import Sink, SinkContext, SinkError, SinkSettings
    from gradsense.gateway.settings import Settings
    from gradsense.gateway.store import GatewayStore
    from gradsense.gateway.watch import Watch
    from gradsense.gateway.wiring import WatchPlan, open_watch
