"""One federated run: simulate, evaluate each global model, checkpoint, and write what came out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gradsense.data.flows import class_numbers
from gradsense.experiments import results
from gradsense.experiments.bench import Bench, average
from gradsense.experiments.references.reference import ReferenceMethod
from gradsense.experiments.rundir import CHECKPOINT, MODEL, RESULTS, claim, fingerprint
from gradsense.federation.algorithm import get_algorithm
from gradsense.federation.client import Client
from gradsense.federation.coordinator import Coordinator
from gradsense.federation.update import GlobalModel
from gradsense.learning.answers import answers, fleet_score, measure
from gradsense.learning.learner import FlowCost, Tensors
from gradsense.models import folder
from gradsense.models.heads.influence import SketchedInfluence
from gradsense.models.heads.readout import Readout
from gradsense.simulation.devices import assign
from gradsense.simulation.simulator import Faults, Simulator
from gradsense.storage import checkpoint

#: The clients' average is taken over all of them up to this many, else over a seeded sample.
CLIENT_SAMPLE = 50


@dataclass(frozen=True)
class RunProgress:
    """How far a run is. ``share`` is 0..1 of its local compute or of its aggregations."""

    share: float
    aggregation: int
    accuracy: float
    f1_macro: float
    uplink_bytes: int = 0
    virtual_s: float = 0.0


OnProgress = Callable[[RunProgress], None]


class FederatedRun:
    """A simulator together with what is measured on the way.

    Args:
        bench: model and data for one seed.
        on_progress: called after each local round.
    """

    def __init__(self, bench: Bench, on_progress: OnProgress = lambda progress: None) -> None:
        self.bench = bench
        self.on_progress = on_progress
        settings = bench.settings
        self.algorithm = algorithm = get_algorithm(settings.algorithm)
        clients = [
            Client(name, learner, algorithm, local_epochs=settings.epochs, seed=settings.seed)
            for name, learner in bench.learners.items()
        ]
        names = [client.name for client in clients]
        budget = settings.local_budget
        self.budgets = {client.name: budget * client.round_steps for client in clients}
        self.simulator = Simulator(
            Coordinator(
                bench.initial,
                algorithm,
                seed=settings.seed,
                participation=settings.participation,
                rounds=settings.rounds,
            ),
            clients,
            devices=assign(names, settings.devices, seed=settings.seed),
            cost=flow_cost(bench),
            budgets=self.budgets,
            seed=settings.seed,
            faults=Faults(settings.dropout, settings.offline_s, settings.late, settings.late_s),
            on_model=self._on_model,
            on_last_work=self._on_last_work,
        )
        rng = np.random.default_rng([settings.seed, 21])
        chosen = rng.permutation(len(names))[:CLIENT_SAMPLE]
        self.sample = {names[i] for i in chosen}
        self.curve: list[results.Point] = []
        self.clients: dict[str, results.ScoreSummary] = {}
        self.clients_own: dict[str, results.ScoreSummary] = {}
        self.wall_s = 0.0  # of earlier processes, where the run was resumed

    # While it runs --------------------------------------------------------------------------

    def start(self) -> None:
        """Measure version 0 and send it out."""
        self._on_model(self.simulator.coordinator.model)
        self.simulator.start()

    def step(self) -> bool:
        """Handle one event; False when the run is over."""
        before = self.simulator.meter.local_rounds
        more = self.simulator.step()
        if self.simulator.meter.local_rounds != before:
            self.on_progress(self.progress())
        return more

    def progress(self) -> RunProgress:
        """How far the run is."""
        meter, last = self.simulator.meter, self.curve[-1]
        clients = list(self.simulator.clients.values())
        spent = sum(client.steps for client in clients) / sum(self.budgets.values())
        # Who only reads has reported everything long before the budget is spent.
        epoch = sum(client.learner.steps_per_epoch for client in clients)
        reported = sum(client.reported_steps for client in clients) / epoch
        share = max(spent, reported, meter.aggregations / self.bench.settings.rounds)
        return RunProgress(
            min(share, 1.0),
            meter.aggregations,
            last.accuracy,
            last.f1_macro,
            meter.uplink_bytes,
            self.simulator.now,
        )

    def _on_model(self, model: GlobalModel) -> None:
        now, uplink_bytes = self.simulator.now, self.simulator.meter.uplink_bytes
        weights = self.algorithm.weights(model.tensors)
        point = self.bench.point(model.version, weights, now, uplink_bytes)
        self.curve.append(point.model_copy(update={"epochs": self.epochs()}))

    def _on_last_work(self, client: Client) -> None:
        """Score a client's own model before a broadcast changes it.

        A client that only reads changes no weights: its model is the global one that it holds,
        and the one that counts is the last.
        """
        if self.algorithm.trains:
            self._score(client)

    def _score(self, client: Client) -> None:
        if client.name not in self.sample:
            return
        self.clients[client.name] = self.bench.evaluate(client.weights)[1]
        own = self.bench.own_score(client.name, client.weights)
        if own is not None:
            self.clients_own[client.name] = own

    def epochs(self) -> float:
        """Local epochs worked so far: passes over all training flows of the fleet together."""
        return self.simulator.meter.samples_trained / len(self.bench.train)

    def inference_ms(self) -> float:
        """Milliseconds of one inference, the paper's latency: the mean over the fleet's devices."""
        flop, devices = self.simulator.cost.inference, self.simulator.devices.values()
        return float(np.mean([1e3 * device.compute_s(flop) for device in devices]))

    # At rest --------------------------------------------------------------------------------

    def save(self, path: Path, wall_s: float) -> None:
        """Write a checkpoint from which ``restore`` continues exactly."""
        values, groups = self.simulator.snapshot()
        own = {
            "curve": [point.model_dump() for point in self.curve],
            "clients": {name: one.model_dump() for name, one in self.clients.items()},
            "clients_own": {name: one.model_dump() for name, one in self.clients_own.items()},
            "wall_s": wall_s,
        }
        checkpoint.save(path, {"simulator": values, "run": own}, groups)

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint of a run with the same settings and data.

        Raises:
            GradsenseError: it is damaged, or another version of gradsense wrote it.
        """
        values, groups = checkpoint.load(path)
        try:
            self.simulator.restore(values["simulator"], groups)
            own = values["run"]
            self.curve = [results.Point(**point) for point in own["curve"]]
            self.clients = {k: results.ScoreSummary(**one) for k, one in own["clients"].items()}
            self.clients_own = {
                k: results.ScoreSummary(**one) for k, one in own["clients_own"].items()
            }
            self.wall_s = own["wall_s"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise checkpoint.damaged(path, f"lacks or misstates {error}") from error

    # Afterwards -----------------------------------------------------------------------------

    def final(self) -> Tensors:
        """The last global model's weights."""
        return self.algorithm.weights(self.simulator.coordinator.model.tensors)

    def novelty(self) -> SketchedInfluence | None:
        """The score of what the fleet has not seen; None where it has no statistics."""
        statistics = self.algorithm.statistics(self.simulator.coordinator.server_state)
        classes = len(self.bench.corpus.classes)
        return fleet_score(statistics, classes, seed=self.bench.settings.seed)

    def row(self, wall_s: float) -> results.Row:
        """What came out, as a row of ``results.json``."""
        simulator, meter = self.simulator, self.simulator.meter
        for client in simulator.clients.values():
            if client.name not in self.clients and client.steps:
                self._score(client)
        central_s, client_s = simulator.central_latency_s(), simulator.client_latency_s()
        settings = self.bench.settings
        return results.Row(
            algorithm=settings.algorithm,
            kind="federated",
            seed=settings.seed,
            rounds=settings.rounds,
            epochs_allowed=settings.local_budget * settings.epochs,
            epochs=self.epochs(),
            inference_ms=self.inference_ms(),
            validation=self.bench.evaluate(self.final(), self.bench.validation)[1],
            synthetic=self.bench.corpus.synthetic,
            leakage=self.bench.corpus.leakage,
            clients=average(self.clients),
            clients_own=average(self.clients_own),
            central_latency_s=central_s,
            client_latency_s=client_s,
            requests_per_min=60 / central_s if central_s else None,
            client_requests_per_min=60 / client_s if client_s else None,
            energy_j=meter.energy_j,
            uplink_bytes=meter.uplink_bytes,
            downlink_bytes=meter.downlink_bytes,
            uploads=meter.uploads,
            aggregations=meter.aggregations,
            samples_trained=meter.samples_trained,
            virtual_s=simulator.now,
            wall_s=wall_s,
            refused=dict(simulator.coordinator.refused),
            triggers=dict(simulator.triggers),
            dropped_out=meter.dropped_out,
            curve=self.curve,
            uploads_log=[results.UploadMark.model_validate(mark) for mark in simulator.uploads],
            **self.bench.central(self.final()),
        )


def flow_cost(bench: Bench) -> FlowCost:
    """FLOP of one flow: 2 N a token forwards, 2 N back to the activations, 2 N to the weights.

    N leaves out the embedding tables, which are looked up, not multiplied (Kaplan et al. 2020,
    §2.1). The last part is due only for the parameters that train, the way back only where
    anything below the head trains. A head over all tokens is applied once a flow.
    """
    classifier, length = bench.trainer.classifier, bench.train.encoded.input_ids.shape[1]
    model = classifier.model
    used = [(name, p) for name, p in model.named_parameters() if "embed" not in name]
    head = sum(p.numel() for name, p in used if isinstance(model, Readout) and "score" in name)
    total = sum(p.numel() for _, p in used) - head
    trained = sum(p.numel() for name, p in used if p.requires_grad) - head
    back = 2 * total + 2 * trained if trained else 0
    rows = head // len(classifier.labels) + len(classifier.labels)
    return FlowCost(
        training=length * (2 * total + back) + 4 * head,
        inference=length * 2 * total + 2 * head,
        width=rows if head else 0,
    )


def train(
    bench: Bench,
    out: Path,
    *,
    resume: bool = False,
    checkpoint_s: float = 10.0,
    on_progress: OnProgress = lambda progress: None,
) -> results.Row:
    """One federated run into ``out``: model, results, settings, and a checkpoint while it runs.

    Args:
        bench: model and data.
        out: a new folder, or with ``resume`` that of a run with the same settings.
        resume: continue from the last checkpoint; a finished run is only read.
        checkpoint_s: seconds between checkpoints.
        on_progress: called after each local round.

    Raises:
        InputError: ``out`` cannot be written, holds another run, or a run and no ``resume``.
    """
    finished, saved = claim(out, bench.settings, bench.corpus, resume=resume), out / CHECKPOINT
    if finished is not None:
        checkpoint.remove(saved)  # the run was stopped between its result and its end
        return finished
    run = FederatedRun(bench, on_progress)
    if resume and saved.exists():
        run.restore(saved)
    else:
        run.start()
    began = last = time.monotonic()
    while run.step():
        now = time.monotonic()
        if now - last >= checkpoint_s:
            run.save(saved, run.wall_s + now - began)
            last = time.monotonic()
    row = run.row(run.wall_s + time.monotonic() - began)
    write_model(bench, run.final(), out, row, run.novelty())
    results.save([row], out / RESULTS)
    checkpoint.remove(saved)
    return row


def run_reference(
    bench: Bench, reference: ReferenceMethod, out: Path, *, resume: bool, on_progress: OnProgress
) -> results.Row:
    """One reference into ``out``; a finished one is only read.

    Raises:
        InputError: as ``train``.
    """
    finished = claim(out, bench.settings, bench.corpus, resume=resume)
    if finished is not None:
        return finished
    row, tensors = reference.run(bench, on_progress)
    if tensors is not None:
        write_model(bench, tensors, out, row)
    results.save([row], out / RESULTS)
    return row


def write_model(
    bench: Bench,
    tensors: Tensors,
    out: Path,
    row: results.Row,
    score: SketchedInfluence | None = None,
) -> None:
    """Write the model folder of these tensors, which gave this row, calibrated on validation."""
    bench.trainer.classifier.load(tensors)
    extra = {
        "algorithm": row.algorithm,
        "alarm_threshold": None if row.alarms is None else row.alarms.threshold,
        "accuracy": None if row.central is None else row.central.accuracy,
        "f1_macro": None if row.central is None else row.central.f1_macro,
        "seed": bench.settings.seed,
        "synthetic": bench.corpus.synthetic,
        "data_sha256": fingerprint(bench.settings, bench.corpus)["data_sha256"],
    }
    parts, classifier = bench.corpus.parts, bench.trainer.classifier
    flows = parts.train if parts.validation.is_empty() else parts.validation
    phrase_ids = classifier.template.indices(flows)
    answered = answers(classifier, classifier.template.texts(phrase_ids), score)
    folder.save(
        classifier,
        out / MODEL,
        measured=measure(answered, phrase_ids, class_numbers(flows, classifier.labels), classifier),
        score=score,
        extra=extra,
    )
