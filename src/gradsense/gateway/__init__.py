"""The device process: follow logs, judge flows, group alerts, tell sinks, adapt."""
