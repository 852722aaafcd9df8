"""The hybrid: what asking a larger model about the least sure flows brings, and what it costs.

    python benchmarks/hybrid.py --data IOT23 [--seed 0] [--local EDGE --cloud EDGE] [--site NAME]

The local model judges all test flows, one at a time and without a cache. Those of which it is least
sure (lowest probability of its verdict) are asked of the cloud's model instead, for several shares.
The cloud is ``gradsense serve`` in a process of its own, asked over TLS on this machine by the
gateway's own ``Escalator``, one prompt a request and none remembered: the worst case, as a gateway
asks in batches and never twice. ``mended`` and ``spoiled`` count verdicts that became right and
wrong. ``+ 30 ms`` assumes a round trip of that length to every question; no network was measured.

Without ``--local``, a ``gsfs`` nano model is trained, with ``--site NAME`` by this site alone: a
gateway that is in no fleet. Without ``--cloud``, a micro model is trained on all data in one place
(``centralised``). Bundles that are given must have been trained with ``--seed``, or the test flows
are not unseen.
"""

from __future__ import annotations

import argparse
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from gradsense.config import RunSettings, settings
from gradsense.data.flows import class_numbers
from gradsense.detection.detector import Detector, Verdict
from gradsense.experiments.bench import set_up
from gradsense.experiments.corpus import Corpus, load_corpus
from gradsense.experiments.references import run_reference
from gradsense.experiments.run import train
from gradsense.experiments.rundir import MODEL
from gradsense.gateway.escalation.escalate import EscalateSettings, Escalator
from gradsense.learning import metrics
from shared import Progress, table

SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
ROUND_TRIP_MS = 30.0
_START_S = 60.0
_COLOURS = ("#c2410c", "#334155", "#8a8a8a")
_COMMAND = (sys.executable, "-c", "from gradsense.cli import main; main()")


@dataclass(frozen=True)
class Judged:
    """One model's verdicts on the test flows: class numbers, probabilities and ms, [n] each."""

    classes: NDArray[np.int64]
    probability: NDArray[np.float64]
    ms: NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    """The hybrid at one share of escalated flows."""

    share: float
    accuracy: float
    f1_macro: float
    mended: int
    spoiled: int
    ms_mean: float
    ms_p95: float
    far_ms_mean: float
    far_ms_p95: float


def local_bundle(run: RunSettings, corpus: Corpus, out: Path, site: str | None) -> Path:
    """The gateway's model, by the whole fleet or by one site."""
    bench = set_up(run, corpus)
    bench.own_tests.clear()  # the sites' own scores are of no interest here
    if site is not None:
        bench.learners = {site: bench.learners[site]}
    train(bench, out)
    return export(out)


def cloud_bundle(run: RunSettings, corpus: Corpus, out: Path) -> Path:
    """The cloud's model, by all data in one place."""
    larger = run.model_copy(update={"model": "micro", "algorithm": "centralised"})
    bench = set_up(larger, corpus)
    run_reference(bench, "centralised", out, resume=False, on_progress=lambda now: None)
    return export(out)


def export(out: Path) -> Path:
    """The bundle of a run's model."""
    edge = out / "edge"
    subprocess.run(
        [*_COMMAND, "export", "--model", out / MODEL, "--out", edge],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return edge


@contextmanager
def served(edge: Path, folder: Path) -> Iterator[EscalateSettings]:
    """``gradsense serve`` with a throwaway certificate; how to ask it."""
    cert, key, token = (folder / name for name in ("cert.pem", "key.pem", "token"))
    request = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 "
        "-subj /CN=cloud -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run(
        [*request.split(), "-keyout", key, "-out", cert], check=True, capture_output=True
    )
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--model", edge, "--port", port, "--cert", cert, "--key", key, "--token-file", token]
    url = f"https://127.0.0.1:{port}"
    process = subprocess.Popen(
        [*_COMMAND, "serve", *map(str, options), "--threads", "1"], stderr=subprocess.DEVNULL
    )
    try:
        _await(f"{url}/v1/health", process)
        yield EscalateSettings(
            url=url,
            token_file=token,
            ca=cert,
            time_ms=10_000,
            bytes_per_minute=1 << 40,
            memory=0,
        )
    finally:
        process.terminate()
        process.wait(10)


def _await(url: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until the service answers."""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx.get(url, verify=False)  # only whether it is there
            return
        except httpx.TransportError:
            time.sleep(0.1)
    raise SystemExit("gradsense serve did not start; run it by hand to see why")


def judged(
    ask: Callable[[list[str]], Sequence[Verdict | None]], texts: Sequence[str], names: Sequence[str]
) -> Judged:
    """Every flow alone before a model, and how long each takes."""
    said, ms = [], []
    ask([*texts[:10]])  # connected and warm
    for text in texts:
        began = time.perf_counter()
        (verdict,) = ask([text])
        ms.append(1000 * (time.perf_counter() - began))
        if verdict is None:
            raise SystemExit("the service gave no answer")
        said.append(verdict)
    return Judged(
        np.array([names.index(one.label) for one in said]),
        np.array([one.probability for one in said]),
        np.array(ms),
    )


def hybrid(
    local: Judged, cloud: Judged, truth: NDArray[np.int64], names: tuple[str, ...], share: float
) -> Point:
    """The least sure ``share`` of the flows judged by the cloud, the others here."""
    asked = np.zeros(len(truth), dtype=bool)
    asked[np.argsort(local.probability, kind="stable")[: round(share * len(truth))]] = True
    said = np.where(asked, cloud.classes, local.classes)
    ms = local.ms + np.where(asked, cloud.ms, 0.0)
    far = ms + np.where(asked, ROUND_TRIP_MS, 0.0)
    scores = metrics.score(truth, said, names)
    before, after = local.classes == truth, said == truth
    return Point(
        share,
        scores.accuracy,
        scores.f1_macro,
        int((after & ~before).sum()),
        int((before & ~after).sum()),
        float(ms.mean()),
        float(np.quantile(ms, 0.95)),
        float(far.mean()),
        float(np.quantile(far, 0.95)),
    )


def rows_of(points: Sequence[Point]) -> list[list[str]]:
    """The table's lines."""
    return [
        [f"{one.share:.0%}", f"{one.accuracy:.4f}", f"{one.f1_macro:.3f}"]
        + [str(one.mended), str(one.spoiled)]
        + [f"{ms:.2f}" for ms in (one.ms_mean, one.ms_p95, one.far_ms_mean, one.far_ms_p95)]
        for one in points
    ]


def plot(points: Sequence[Point], path: Path) -> None:
    """Quality and latency against the share escalated."""
    shares = [100 * one.share for one in points]
    figure, (quality, latency) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for axes, lines in (
        (
            quality,
            {
                "accuracy": [one.accuracy for one in points],
                "macro-F1": [one.f1_macro for one in points],
            },
        ),
        (
            latency,
            {
                "mean": [one.ms_mean for one in points],
                "95 % within": [one.ms_p95 for one in points],
                "mean, + 30 ms assumed": [one.far_ms_mean for one in points],
            },
        ),
    ):
        for (name, values), colour in zip(lines.items(), _COLOURS, strict=False):
            axes.plot(shares, values, "o-", color=colour, label=name, markersize=4)
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xticks(shares, [f"{share:g}" for share in shares])
        axes.minorticks_off()
        axes.set_xlabel("% of flows escalated, the least sure first")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    latency.set_yscale("log")
    latency.set_ylabel("ms a flow")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Print the table; draw it where a path is given."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--data", type=Path, required=True, help="folder of IoT-23 captures")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--local", type=Path, help="bundle of the gateway; else trained")
    arguments.add_argument("--site", help="the gateway learns from this capture alone")
    arguments.add_argument("--cloud", type=Path, help="bundle of the cloud; else trained")
    arguments.add_argument("--plot", type=Path, help="SVG or PNG to write")
    given = arguments.parse_args()
    say = Progress()
    run = settings(data=given.data, seed=given.seed)
    corpus = load_corpus(run)
    texts, names = corpus.parts.test["text"].to_list(), corpus.classes
    truth = class_numbers(corpus.parts.test, names)
    with tempfile.TemporaryDirectory(prefix="gradsense-") as name:
        folder = Path(name)
        local = given.local or local_bundle(run, corpus, folder / "local", given.site)
        say("local model ready")
        cloud = given.cloud or cloud_bundle(run, corpus, folder / "cloud")
        say("the cloud's model ready")
        detector = Detector.load(local, threads=1, cache=0)
        here = judged(detector.judge_texts, texts, names)
        say("judged here")
        with served(cloud, folder) as how:
            escalator = Escalator(how, detector.template)
            there = judged(escalator.ask, texts, names)
            escalator.close()
        say("judged there")
    points = [hybrid(here, there, truth, names, share) for share in SHARES]
    head = ["escalated", "accuracy", "macro-F1", "mended", "spoiled", "ms, mean", "ms, p95"]
    print(table([*head, "+ 30 ms: mean", "p95"], rows_of(points)))
    print(f"\n{len(truth):,} test flows, seed {given.seed}; bytes a question, with an allowance")
    print(f"for headers: {escalator.sent_bytes / escalator.counts['asked']:.0f}")
    if given.plot is not None:
        plot(points, given.plot)
    say("done")


if __name__ == "__main__":
    main()
