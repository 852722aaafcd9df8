"""Training throughput: gradsense's trainer against the same model in a bare torch loop.

    python -m benchmarks.federated.training [--model nano] [--seconds 5]

Both take the same batches of the same synthetic prompts with the same optimiser on one thread,
in turns, so that other load on the machine falls on both. Two bare loops: one through the
classifier's own forward pass (the floor of the trainer's overhead), one through the plain Hugging
Face model, which is what a user would write.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

from gradsense.config import settings
from gradsense.experiments.bench import Bench, set_up
from gradsense.experiments.corpus import load_corpus


def bare(bench: Bench, steps: int, *, library: bool) -> None:
    """The loop that everybody writes, without sensing, seeding or copies of tensors."""
    classifier, examples = bench.trainer.classifier, bench.train
    model, size = classifier.model, bench.settings.batch_size
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=bench.settings.lr, weight_decay=0.01, fused=True)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(examples)))
    model.train()
    for step in range(steps):
        start = step * size % (len(order) - size)
        batch = order[start : start + size]
        rows = examples.index[batch]
        if library:
            logits = model(input_ids=examples.encoded.input_ids[rows]).logits
        else:
            logits = classifier.forward(examples.encoded, rows)
        loss = functional.cross_entropy(logits, examples.labels[batch])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def trained(bench: Bench, steps: int) -> None:
    """The same steps as a client takes them."""
    bench.trainer.train(bench.train, bench.initial, stream=0, first_step=0, steps=steps)


def main() -> None:
    """Print samples a second of all three, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="nano")
    parser.add_argument("--steps", type=int, default=200, help="steps of one measurement")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    run = settings(model=arguments.model)
    bench = set_up(run, load_corpus(run))
    contenders: dict[str, Callable[[int], None]] = {
        "gradsense trainer": lambda steps: trained(bench, steps),
        "bare loop, same forward": lambda steps: bare(bench, steps, library=False),
        "bare loop, Hugging Face": lambda steps: bare(bench, steps, library=True),
    }
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for contender in contenders.values():
        contender(20)
    for _ in range(arguments.repeats):
        for name, contender in contenders.items():
            began = time.perf_counter()
            contender(arguments.steps)
            spent = time.perf_counter() - began
            rates[name].append(arguments.steps * run.batch_size / spent)
    parameters = sum(p.numel() for p in bench.trainer.classifier.model.parameters())
    length = bench.train.encoded.input_ids.shape[1]
    print(f"{arguments.model}: {parameters:,} parameters, {length} tokens, batch {run.batch_size}")
    for name, values in rates.items():
        print(f"{name:26} {statistics.median(values):8,.0f} samples/s (median of {len(values)})")
    for name in list(rates)[1:]:
        pairs = [a / b for a, b in zip(rates["gradsense trainer"], rates[name], strict=True)]
        print(f"trainer / {name:24} {statistics.median(pairs):.1%} (target at least 90%)")


if __name__ == "__main__":
    main()
