"""The bar for every other detector: one alert a device-hour for any failed TCP connection."""

from __future__ import annotations

import polars as pl

from gradsense.data.flows import FAILED_STATES
from gradsense.data.networks import Networks
from gradsense.experiments.device_hours import HOUR_S, RaisedAlert
from gradsense.experiments.rules.published import PublishedRule, in_order


def raised(flows: pl.DataFrame, networks: Networks) -> list[RaisedAlert]:
    """One alert for each (device, hour) with a TCP flow whose state is in ``FAILED_STATES``.

    It is raised as the first of them ends, and has all of them.
    """
    failed = in_order(flows).filter(
        (pl.col("proto") == "tcp") & pl.col("conn_state").is_in(FAILED_STATES)
    )
    found: dict[tuple[str, int], tuple[float, list[int]]] = {}
    for row, end, ts, *ends in failed.select("row", "end", "ts", "orig_h", "resp_h").iter_rows():
        device = networks.device(*ends)
        found.setdefault((device, int(ts // HOUR_S)), (end, []))[1].append(row)
    return [RaisedAlert(end, device, tuple(rows)) for (device, _), (end, rows) in found.items()]


RULE = PublishedRule(
    "failed-tcp",
    "any failed TCP connection",
    "the bar: no detector, one line of a query",
    raised,
    bar=True,
)
