"""A gateway's detector: throughput, latency, memory and quality, beside its peers in one run.

    python -m benchmarks.gateway.speed --data IOT23 [--repeat 20] [--model RUN/model]

Throughput is from a Zeek log file to verdicts, grouped alerts and a committed journal for
``gradsense watch --once``; for the peers from the same file to class names. The log is IoT-23's
34-1, repeated. Latency is of one flow at a time, from the bytes of its line to its verdict. Each
row runs in a process of its own, whose highest resident memory is printed. ``eager`` is the same
model in Hugging Face form under torch, with gradsense's own reader; ``forest`` is scikit-learn's
random forest of 200 trees behind pandas, on the raw fields of a flow. Quality is on the test flows
of the seed that the model was trained with.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gradsense.data.flows import ContextWindow
from gradsense.data.sources.lines import Tally
from gradsense.data.sources.stream import LogStream
from gradsense.detection.detector import Detector
from gradsense.gateway.wiring import WatchPlan, open_watch

LOG = Path("CTU-IoT-Malware-Capture-34-1", "bro", "conn.log.labeled")
#: So many flows are timed one by one, after the first few.
SINGLE, WARM_UP = 4000, 200
THREADS = 2

Row = dict[str, Any]


# Rows: each in its own process ------------------------------------------------------------------


def watching(log: Path, bundle: Path, cache: int) -> Row:
    """``gradsense watch --once``, in this process."""
    with tempfile.TemporaryDirectory() as state:
        plan = WatchPlan([log], bundle, Path(state), once=True, threads=THREADS, cache=cache)
        watch = open_watch(plan)
        began = time.perf_counter()
        watch.run(once=True)
        seconds = time.perf_counter() - began
        summary = watch.summary()
    return {"flows_s": summary["flows"] / seconds, "inferred": summary["inferred"]}


def living(log: Path, bundle: Path) -> Row:
    """A log that grows line by line: from the line's being there to its committed verdict."""
    with tempfile.TemporaryDirectory() as folder:
        growing = Path(folder, "conn.log")
        head, rows = _lines(log)
        growing.write_bytes(head)
        watch = open_watch(WatchPlan([growing], bundle, Path(folder, "state"), threads=THREADS))
        source = watch.sources[0]
        watch.step(source)
        with growing.open("ab", buffering=0) as file:

            def judge(line: bytes) -> None:
                file.write(line)
                watch.step(source)

            return _timed(judge, rows)


def watching_singly(log: Path, bundle: Path, cache: int) -> Row:
    """One line at a time, from bytes to verdict."""
    detector = Detector.load(bundle, threads=THREADS, cache=cache)
    stream, context, tally = LogStream(log), ContextWindow(), Tally()
    head, rows = _lines(log)
    stream.parse(head, tally)

    def judge(line: bytes) -> None:
        detector.judge(
            detector.phrase_ids([context.add_row(f) for f in _rows(stream, line, tally)])
        )

    return _timed(judge, rows)


def eager(log: Path, model: Path) -> Row:
    """The Hugging Face model itself, every flow through it in batches of 256."""
    import torch  # noqa: PLC0415

    from gradsense.data.sources.stream import read_log  # noqa: PLC0415
    from gradsense.models import folder  # noqa: PLC0415

    torch.set_num_threads(THREADS)
    classifier = folder.load(model)
    classifier.model.eval()
    context, template, flows = ContextWindow(), classifier.template, 0

    @torch.inference_mode()
    def judge(texts: list[str]) -> list[str]:
        logits = classifier.forward(classifier.encode(texts))
        return [classifier.labels[place] for place in logits.argmax(dim=1).tolist()]

    began = time.perf_counter()
    for block in read_log(log, tally=Tally()):
        texts = template.render(context.add(block)).to_list()
        for start in range(0, len(texts), 256):
            flows += len(judge(texts[start : start + 256]))
    rate = flows / (time.perf_counter() - began)
    stream, context, tally = LogStream(log), ContextWindow(), Tally()
    head, rows = _lines(log)
    stream.parse(head, tally)

    def judge_one(line: bytes) -> None:
        picked = [template.pick(context.add_row(row)) for row in _rows(stream, line, tally)]
        judge(template.texts(np.concatenate(picked)))

    return {"flows_s": rate, **_timed(judge_one, rows[: SINGLE // 4])}


def forest(log: Path, train: Path) -> Row:
    """pandas and scikit-learn, as one would write it in an afternoon."""
    import io  # noqa: PLC0415

    import pandas as pd  # noqa: PLC0415
    from sklearn.ensemble import RandomForestClassifier  # noqa: PLC0415

    names = ("proto", "service", "conn_state", "history")
    numbers = ["id.orig_p", "id.resp_p", "duration", "orig_bytes", "resp_bytes", "missed_bytes"]
    numbers += ["orig_pkts", "orig_ip_bytes", "resp_pkts", "resp_ip_bytes"]
    known = pd.read_csv(train)
    codes = {name: {v: i for i, v in enumerate(sorted(known[name].dropna()))} for name in names}

    def features(frame: Any) -> Any:
        columns = [frame[name].map(codes[name]).fillna(-1) for name in names]
        columns += [pd.to_numeric(frame[name], errors="coerce").fillna(-1) for name in numbers]
        return np.column_stack(columns).astype(np.float32)

    model = RandomForestClassifier(n_estimators=200, random_state=0, n_jobs=THREADS)
    model.fit(features(known), known["class"])
    header = next(line for line in log.open() if line.startswith("#fields"))
    columns = header.rstrip("\n").split("\t")[1:]

    def read(source: Any, **more: Any) -> Any:
        return pd.read_csv(source, sep="\t", comment="#", names=columns, na_values="-", **more)

    began, flows = time.perf_counter(), 0
    for chunk in read(log, chunksize=50_000):
        flows += len(model.predict(features(chunk)))
    rate = flows / (time.perf_counter() - began)
    model.n_jobs = 1  # threads only cost time for a single flow
    _, rows = _lines(log)
    singly = _timed(lambda line: model.predict(features(read(io.BytesIO(line)))), rows[:500])
    return {"flows_s": rate, **singly}


def _rows(stream: LogStream, line: bytes, tally: Tally) -> list[Row]:
    rows = stream.parse(line, tally)
    assert isinstance(rows, list), "a few clean lines are parsed without a frame"
    return rows


def _lines(log: Path) -> tuple[bytes, list[bytes]]:
    """The header, with the first row, and the rows after it."""
    lines = log.read_bytes().splitlines(keepends=True)
    head = [line for line in lines[:50] if line.startswith(b"#")]
    rows = [line for line in lines if not line.startswith(b"#")]
    return b"".join([*head, rows[0]]), rows[1 : 1 + WARM_UP + SINGLE]


def _timed(judge: Callable[[bytes], Any], rows: Sequence[bytes]) -> Row:
    times = []
    for line in rows:
        began = time.perf_counter()
        judge(line)
        times.append(1000 * (time.perf_counter() - began))
    p50, p99 = np.percentile(times[min(WARM_UP, len(times) // 10) :], [50, 99])
    return {"p50_ms": float(p50), "p99_ms": float(p99)}


# The run ------------------------------------------------------------------------------------------


def prepare(data: Path, model: Path | None, folder: Path) -> tuple[Path, list[Row]]:
    """Trains where no model is given; writes both bundles, the forest's flows; scores bundles."""
    import polars as pl  # noqa: PLC0415

    from benchmarks.shared import Progress, bench_of  # noqa: PLC0415
    from gradsense.data.flows import class_numbers  # noqa: PLC0415
    from gradsense.data.sources.zeek_tsv import zeek_name  # noqa: PLC0415
    from gradsense.detection.export import export  # noqa: PLC0415
    from gradsense.experiments.run import train  # noqa: PLC0415
    from gradsense.learning.metrics import score  # noqa: PLC0415

    say = Progress()
    bench = bench_of(data, 0)
    if model is None:
        say("training gsfs")
        train(bench, folder / "run")
        model = folder / "run" / "model"
    corpus = bench.corpus
    known = corpus.parts.train
    known.drop("text").rename({name: zeek_name(name) for name in ("orig_p", "resp_p")}).write_csv(
        folder / "train.csv"
    )
    test, scored = corpus.parts.test, []
    truth = class_numbers(test, corpus.classes)
    for name, int8 in (("float32", False), ("int8", True)):
        say(f"exporting {name}")
        made = export(model, folder / name, int8=int8, force=True)
        labels = made.manifest.labels
        detector = Detector.load(folder / name, threads=THREADS)
        phrase_ids = detector.phrase_ids(test)
        argmax = detector.answers(phrase_ids)[0].argmax(axis=1)
        found = score(
            truth, np.array([corpus.classes.index(labels[i]) for i in argmax]), corpus.classes
        )
        alerts = np.array([verdict.alarm for verdict in detector.judge(phrase_ids)])
        benign = (test["class"] == "Benign").to_numpy()
        size = sum(file.stat().st_size for file in (folder / name).iterdir())
        scored.append(
            {
                "bundle": name,
                "size_kb": size / 1000,
                "accuracy": found.accuracy,
                "f1_macro": found.f1_macro,
                "false": alerts[benign].mean(),
                "found": alerts[~benign].mean(),
            }
        )
    assert isinstance(test, pl.DataFrame)
    return model, scored


def repeated(source: Path, times: int, to: Path) -> Path:
    """The log with its rows so many times over, under one header."""
    lines = source.read_bytes().splitlines(keepends=True)
    rows = b"".join(line for line in lines if not line.startswith(b"#"))
    with to.open("wb") as out:
        out.write(b"".join(line for line in lines[:50] if line.startswith(b"#")))
        for _ in range(times):
            out.write(rows)
    return to


def worker(*arguments: object) -> Row:
    """A row from a process of its own, with its highest resident memory."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.gateway.speed",
        "--worker",
        json.dumps(list(map(str, arguments))),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


def work(kind: str, *paths: str) -> Row:
    """What a worker does."""
    first = Path(paths[0])
    row: Row
    if kind == "watch":
        row = watching(first, Path(paths[1]), int(paths[2]))
    elif kind == "single":
        row = watching_singly(first, Path(paths[1]), int(paths[2]))
    elif kind == "live":
        row = living(first, Path(paths[1]))
    elif kind == "eager":
        row = eager(first, Path(paths[1]))
    else:
        row = forest(first, Path(paths[1]))
    return {**row, **memory()}


def memory() -> Row:
    """Highest resident memory of this process, and what of the present one no other shares."""
    # getrusage would also count what the parent held when it forked.
    lines = Path("/proc/self/status").read_text().splitlines()
    kb = {
        name: int(rest.split()[0])
        for name, rest in (line.split(":") for line in lines)
        if name in {"VmHWM", "RssAnon"}
    }
    return {"memory_mb": kb["VmHWM"] / 1024, "private_mb": kb["RssAnon"] / 1024}


def rows_of(folder: Path, model: Path, log: Path, data: Path, repeat: int) -> Iterator[list[str]]:
    """The lines of the table."""

    def line(name: str, row: Row) -> list[str]:
        return [
            name,
            "" if row["flows_s"] is None else f"{row['flows_s']:,.0f}",
            f"{row['p50_ms']:.3f}",
            f"{row['p99_ms']:.3f}",
            f"{row['memory_mb']:.0f}",
            f"{row['private_mb']:.0f}",
        ]

    everything = folder / "all.log"
    with everything.open("wb") as out:
        for one in sorted(data.glob("*/bro/conn.log.labeled")):
            out.write(one.read_bytes())
    for name, bundle, cache in (
        ("watch, float32", "float32", 32_768),
        ("watch, float32, cache off", "float32", 0),
        ("watch, int8", "int8", 32_768),
        ("watch, int8, cache off", "int8", 0),
    ):
        times = repeat if cache else 2
        part = repeated(log, times, folder / "part.log")
        row = worker("watch", part, folder / bundle, cache)
        single = worker("single", log, folder / bundle, cache)
        yield line(name, {**single, **row})
    live = worker("live", log, folder / "float32")
    yield line("watch, float32, live, with its commit", {"flows_s": None, **live})
    row = worker("watch", everything, folder / "float32", 32_768)
    yield [
        "watch, float32, all 19 captures once",
        f"{row['flows_s']:,.0f}",
        "",
        "",
        f"{row['memory_mb']:.0f}",
        f"{row['private_mb']:.0f}",
    ]
    yield line("Hugging Face, eager", worker("eager", log, model))
    part = repeated(log, 4, folder / "part.log")
    yield line("pandas, random forest", worker("forest", part, folder / "train.csv"))


def main() -> None:
    """Print both tables."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--data", type=Path, help="folder of IoT-23 captures")
    arguments.add_argument("--repeat", type=int, default=20)
    arguments.add_argument("--model", type=Path, help="a model folder; trained where none is given")
    arguments.add_argument("--worker", help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.worker:
        print(json.dumps(work(*json.loads(given.worker))))
        return
    if given.data is None:
        arguments.error("--data is needed")
    # It brings torch, which a worker that measures memory must not have.
    from benchmarks.shared import table  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model, scored = prepare(given.data, given.model, folder)
        lines = []
        for line in rows_of(folder, model, given.data / LOG, given.data, given.repeat):
            print(" | ".join(line), file=sys.stderr, flush=True)
            lines.append(line)
    print(table(["", "flows a second", "p50, ms", "p99, ms", "memory, MB", "private, MB"], lines))
    print()
    print(
        table(
            [
                "bundle",
                "kB",
                "accuracy",
                "macro-F1",
                "benign alerts, %",
                "attacks found, %",
            ],
            [
                [
                    one["bundle"],
                    f"{one['size_kb']:,.0f}",
                    f"{one['accuracy']:.4f}",
                    f"{one['f1_macro']:.4f}",
                    f"{100 * one['false']:.2f}",
                    f"{100 * one['found']:.2f}",
                ]
                for one in scored
            ],
        )
    )


if __name__ == "__main__":
    main()
