"""The simulator: overhead of one local round beyond the training arithmetic, and memory.

    python -m benchmarks.federated.simulator [--clients 1000]

Overhead: a FedAvg run and a GSFS run over synthetic traffic are timed as a whole; the time inside
forward, backward, optimiser step and validation passes is taken out, and so is the evaluation of
each global model, which belongs to the measurement and not to the engine. What remains, divided
by local rounds, is events, sensing, copies, encoding, decoding, checks and aggregation.

Memory: the same with many clients. Peak resident set of the process (what the kernel counted),
with what it had before the first local round (imports, data, model) as the floor.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from gradsense.config import settings
from gradsense.experiments.bench import Bench, set_up
from gradsense.experiments.corpus import load_corpus
from gradsense.experiments.run import FederatedRun


def peak_mb() -> float:
    """Peak resident set of this process, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


class Stopwatch:
    """Adds up the time spent inside the methods that it wraps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wrap(self, owner: object, name: str) -> None:
        """Replace ``owner.name`` by itself, timed."""
        inner: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - began

        setattr(owner, name, timed)


def run(bench: Bench) -> tuple[FederatedRun, float, float]:
    """A whole run: it, its seconds, and the seconds of arithmetic in it."""
    arithmetic = Stopwatch()
    federated = FederatedRun(bench)
    federated.start()
    # Arithmetic is the steps themselves: loading and reading back tensors is overhead.
    arithmetic.wrap(bench.trainer, "step")
    arithmetic.wrap(bench.trainer, "evaluate")
    began = time.perf_counter()
    while federated.step():
        pass
    spent = time.perf_counter() - began
    return federated, spent, arithmetic.seconds


def overhead(algorithm: str) -> None:
    """Print the overhead of a local round in a small fleet."""
    chosen = settings(algorithm=algorithm, rounds=10, partition="iid", clients=20)
    bench = set_up(chosen, load_corpus(chosen))
    federated, spent, arithmetic = run(bench)
    rounds = federated.simulator.meter.local_rounds
    print(
        f"{algorithm:8} {rounds} local rounds, {1000 * arithmetic / rounds:7.2f} ms of arithmetic "
        "each, "
        f"{1000 * (spent - arithmetic) / rounds:5.2f} ms of overhead each (target at most 5 ms)"
    )


def memory(algorithm: str, clients: int) -> None:
    """Print the peak memory of a large fleet."""
    chosen = settings(algorithm=algorithm, rounds=2, partition="iid", clients=clients)
    bench = set_up(chosen, load_corpus(chosen))
    floor = peak_mb()
    federated, spent, _ = run(bench)
    meter = federated.simulator.meter
    print(
        f"{algorithm:8} {clients} clients, {meter.local_rounds} rounds, "
        f"{meter.aggregations} aggregations "
        f"in {spent:.0f} s: peak {peak_mb():,.0f} MB, of which {floor:,.0f} MB before the first "
        "local round (target at most 3,000 MB)"
    )


def main() -> None:
    """Both figures for both kinds of algorithm."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--memory", metavar="STRATEGY", help="only the memory of this algorithm")
    arguments = parser.parse_args()
    if arguments.memory:
        memory(arguments.memory, arguments.clients)
        return
    for algorithm in ("fedavg", "gsfs-tune"):
        overhead(algorithm)
    for algorithm in ("fedavg", "gsfs-tune"):
        # The kernel's peak is a process's whole life, so each run has a process of its own.
        command = [sys.executable, "-m", "benchmarks.federated.simulator", "--memory", algorithm]
        subprocess.run([*command, "--clients", str(arguments.clients)], check=True)


if __name__ == "__main__":
    main()
