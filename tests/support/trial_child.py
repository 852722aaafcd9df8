"""A coordinator's process whose codec dies of one value; its broker sends all again at each start.

    python trial_child.py FOLDER ACKED deadly|harmless

``ACKED`` is a file of lines ``device sequence refusal`` that it appends to.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np

from gradsense.coordinator.run import Run
from gradsense.federation.transforms.transform import Parts, Plain
from tests.support.toy_fleet import acks, job, open_run, sent, status
from tests.support.toys import tensor, update

START = {"w": tensor(0.0, 0.0)}
#: Devices in the order in which they send.
SENT = {"b": tensor(1.0, 1.0), "a": tensor(3.0, 3.0), "c": tensor(2.0, 2.0)}


def make(folder: Path) -> None:
    Run.create(folder, job(), START)


def arm() -> None:
    """A codec that ends the process at the value 3."""
    plain = Plain.values

    def values(self: Plain, parts: Parts, size: int) -> np.ndarray:
        if parts[""].ravel()[0] == 3.0:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(self, parts, size)

    Plain.values = values  # type: ignore[method-assign]


def main(folder: Path, acked: Path, how: str) -> None:
    if how == "deadly":
        arm()
    run = open_run(folder)
    devices = [*SENT, "silent"]  # all must send, so nothing is aggregated
    run.take([status(device) for device in devices], now=run.now, wall=0.0)
    base = run.status().hash
    with acked.open("a", buffering=1) as file:
        for device, value in SENT.items():
            heard = run.take(sent(update(device, delta={"w": value}), base), now=1.0, wall=0.0)
            for (name, sequence), refusal in acks(heard).items():
                file.write(f"{name} {sequence} {refusal}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
