"""Flows a second of gradsense's reader against zat and pandas, on one log in one run.

    python -m benchmarks.data.parser [--flows N]

The log is a real IoT-23 capture where GRADSENSE_DATA (or ``../shared/data``) has one, and
synthetic lines otherwise, repeated to the wanted length. Readers take turns; the best of five
counts. zat and pandas are called as their documents show: they read the whole file into one frame
on one thread, and leave IoT-23's last column in one piece. gradsense does the same with its
threads, splits the labels and checks every value; ``streamed`` drops each block as it comes.
Flows a second of processor time, over all threads, say how much work a reader does; other jobs
on the machine change them little. For one core:
``POLARS_MAX_THREADS=1 taskset -c 0 python -m benchmarks.data.parser``.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import polars as pl
from zat.log_to_dataframe import LogToDataFrame

from gradsense.data.sources.lines import Tally
from gradsense.data.sources.stream import WORKERS, read_log
from gradsense.data.synthetic.traffic import write_sample

ROUNDS = 5
DATA = Path(os.environ.get("GRADSENSE_DATA", Path(__file__).parents[3] / "shared" / "data"))
REAL = DATA / "iot23" / "CTU-IoT-Malware-Capture-34-1" / "bro" / "conn.log.labeled"


def source(folder: Path) -> tuple[str, list[str], str]:
    """Header, lines and the name of what the benchmark log is made of."""
    path, name = REAL, "IoT-23 capture 34-1"
    if not path.is_file():
        path, name = folder / "synthetic.log", "synthetic lines"
        write_sample(path, flows=5000, seed=0)
    lines = path.read_text().splitlines()
    header = [line for line in lines if line.startswith("#") and not line.startswith("#close")]
    return "\n".join(header), [line for line in lines if not line.startswith("#")], name


def write_log(path: Path, header: str, rows: list[str], flows: int) -> None:
    with path.open("w") as log:
        log.write(header + "\n")
        for begin in range(0, flows, len(rows)):
            log.write("\n".join(rows[: flows - begin]) + "\n")


def gradsense_frame(path: Path) -> int:
    return pl.concat(list(read_log(path, tally=Tally()))).height


def gradsense_stream(path: Path) -> int:
    return sum(frame.height for frame in read_log(path, tally=Tally()))


def zat_frame(path: Path) -> int:
    return len(LogToDataFrame().create_dataframe(str(path)))


def pandas_frame(path: Path) -> int:
    with path.open() as log:
        names = next(line for line in log if line.startswith("#fields")).split("\t")[1:]
    return len(pd.read_csv(path, sep="\t", comment="#", names=names, na_values="-"))


READERS: dict[str, Callable[[Path], int]] = {
    "gradsense": gradsense_frame,
    "gradsense, streamed": gradsense_stream,
    "zat LogToDataFrame": zat_frame,
    "pandas.read_csv": pandas_frame,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flows", type=int, default=500_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    best = dict.fromkeys(READERS, float("inf"))
    work = best.copy()
    with tempfile.TemporaryDirectory() as folder:
        header, rows, name = source(Path(folder))
        path = Path(folder) / "conn.log.labeled"
        write_log(path, header, rows, options.flows)
        megabytes = path.stat().st_size / 1e6
        for _ in range(ROUNDS):
            for reader, read in READERS.items():
                start, used = time.perf_counter(), time.process_time()
                count = read(path)
                best[reader] = min(best[reader], time.perf_counter() - start)
                work[reader] = min(work[reader], time.process_time() - used)
                if count != options.flows:
                    raise SystemExit(f"{reader} read {count} flows, not {options.flows}")
    rates = {reader: options.flows / seconds for reader, seconds in best.items()}
    thrift = {reader: options.flows / seconds for reader, seconds in work.items()}
    threads = {"parse": WORKERS, "polars": pl.thread_pool_size()}
    if options.json:
        result = {"flows": options.flows, "source": name, "threads": threads}
        print(json.dumps({**result, "flows_per_s": rates, "flows_per_cpu_s": thrift}))
        return
    print(f"{options.flows:,} flows ({megabytes:.0f} MB) of {name}, best of {ROUNDS}")
    print(f"cores {len(os.sched_getaffinity(0))}, gradsense's threads {threads}")
    print(f"{'':22} {'flows/s':>12} {'ratio':>6} {'flows/CPU s':>12} {'ratio':>6}")
    for reader in READERS:
        wall, cpu = rates["gradsense"] / rates[reader], thrift["gradsense"] / thrift[reader]
        print(f"{reader:22} {rates[reader]:12,.0f} {wall:6.2f} {thrift[reader]:12,.0f} {cpu:6.2f}")


if __name__ == "__main__":
    main()
