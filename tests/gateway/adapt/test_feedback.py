"""Feedback becomes training data that a client can learn from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from gradsense.config import settings
from gradsense.data.datasets.iot23 import BENIGN
from gradsense.data.synthetic.traffic import write_fleet
from gradsense.detection.export import export
from gradsense.experiments.bench import set_up
from gradsense.experiments.corpus import examples, load_corpus
from gradsense.experiments.run import FederatedRun, write_model
from gradsense.federation.algorithms.gsfs import UNIT
from gradsense.gateway.wiring import WatchPlan, open_watch
from gradsense.learning.statistics import STATISTICS, solve


@pytest.mark.slow
def test_feedback_teaches_a_client_what_was_no_attack(edge_log: Path, tmp_path: Path) -> None:
    write_fleet(tmp_path / "captures", sites=3, flows=200, seed=0)
    run = settings(data=tmp_path / "captures", cap=100, rounds=3, seed=0)
    bench = set_up(run, load_corpus(run))
    federated = FederatedRun(bench)
    federated.start()
    while federated.step():
        pass
    (tmp_path / "run").mkdir()
    write_model(bench, federated.final(), tmp_path / "run", federated.row(0.0), federated.novelty())
    export(tmp_path / "run" / "model", tmp_path / "edge")
    plan = WatchPlan([edge_log], tmp_path / "edge", tmp_path / "state", once=True, threads=1)
    watch = open_watch(plan)
    watch.run(once=True)

    journal = watch.journal
    alert = max(journal.alerts(100), key=lambda one: one.flows)
    journal.record_feedback(alert, BENIGN, 1.0)
    template, texts = watch.judge.detector.template, list[str]()
    for word, prompt, count in journal.examples():
        assert word.label == BENIGN
        texts += template.texts(np.frombuffer(prompt, np.uint16)[None]) * count
    assert 0 < len(texts) <= alert.flows
    flows = pl.DataFrame({"text": texts, "class": BENIGN})

    # The client's own way: the moments of these flows, added to what the cloud holds.
    trainer, classes = bench.trainer, bench.corpus.classes
    seen = examples(flows, bench.corpus, trainer.classifier)
    factor = trainer.observe(
        seen, federated.final(), torch.arange(len(seen)), tolerance=0.005
    ).factor.astype(np.float64)
    moments = federated.simulator.coordinator.server_state[STATISTICS] * UNIT
    features = trainer.classifier.features(seen.encoded, torch.arange(len(seen.encoded)))
    x = features.detach().double().numpy()

    def verdicts(s: np.ndarray) -> list[str]:
        weight, bias = solve(s, len(classes), 1e-4)
        return [classes[place] for place in (x @ weight.T + bias).argmax(axis=1)]

    before, after = verdicts(moments), verdicts(moments + factor.T @ factor)
    assert before.count(BENIGN) < len(before) / 2
    assert after.count(BENIGN) == len(after)
