"""Made-up rows for the tests of results, table and report. Not results of anything."""

from __future__ import annotations

from typing import Any

from gradsense.experiments.results import (
    Alarms,
    ClassScores,
    Point,
    Row,
    ScoreSummary,
    SiteScores,
    UploadMark,
)


def scores(value: float) -> ScoreSummary:
    return ScoreSummary(
        accuracy=value, precision=value, recall=value, f1_weighted=value, f1_macro=value
    )


def federated(
    algorithm: str = "fedavg",
    seed: int = 0,
    *,
    f1: float = 0.6,
    upload: int = 1_000_000,
    sites: tuple[str, ...] = ("site-1", "site-2"),
    **changes: Any,
) -> Row:
    """A run of five aggregations that climbs to a macro-F1 of ``f1`` in equal steps."""
    row = Row(
        algorithm=algorithm,
        kind="federated",
        seed=seed,
        rounds=5,
        synthetic=False,
        central=scores(f1),
        clients=scores(f1 - 0.1),
        clients_own=scores(f1 + 0.1),
        alarms=Alarms(threshold=0.5, false_alarms=0.0025, detected=0.875, recall={"Torii": 0.875}),
        central_latency_s=40.0,
        client_latency_s=60.0,
        requests_per_min=1.5,
        client_requests_per_min=1.0,
        inference_ms=2.5,
        epochs_allowed=5.0,
        epochs=5.0,
        validation=scores(f1),
        energy_j=1500.0,
        uplink_bytes=5 * upload,
        downlink_bytes=6 * upload,
        uploads=5,
        aggregations=5,
        samples_trained=1000,
        virtual_s=200.0,
        wall_s=3.0,
        refused={"replay": 1},
        triggers={"epochs": 5},
        curve=[
            Point(
                aggregation=step,
                virtual_s=40.0 * step,
                uplink_bytes=step * upload,
                accuracy=f1 * step / 5,
                f1_macro=f1 * step / 5,
                loss=2.0 - 0.3 * step,
                epochs=float(step),
            )
            for step in range(6)
        ],
        uploads_log=[
            UploadMark(virtual_s=40.0 * step, client=site, reason="epochs", bytes=9, aggregation=1)
            for step in range(1, 6)
            for site in sites
        ],
        per_class={
            "Benign": ClassScores(precision=f1, recall=f1, f1=f1, support=90),
            "Torii": ClassScores(precision=0.0, recall=0.0, f1=0.0, support=3),
        },
        per_site={site: SiteScores(accuracy=f1, f1_macro=f1, flows=50) for site in sites},
        confusion=[[90, 0], [3, 0]],
        classes=["Benign", "Torii"],
    )
    return row.model_copy(update=changes)


def reference(algorithm: str, seed: int = 0, *, f1: float = 0.9) -> Row:
    return Row(
        algorithm=algorithm,
        kind="reference",
        seed=seed,
        rounds=5,
        synthetic=False,
        central=scores(f1),
    )
