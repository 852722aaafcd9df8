"""Detection on a gateway: follow logs, judge flows, raise alerts, deliver them to sinks, adapt."""
