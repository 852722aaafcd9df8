"""What a run is: the same small file on the coordinator's side and on every device's.

It names the algorithm and the start, so that both sides drive the same state machines. It is no
secret and is not sent: a device gets it with its bundle.

    FLEET/runs/NAME/start/      job.json, edge/ (a bundle of ``detection``), model/ if weights train
    BUNDLE/run/                 the same on the device
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from gradsense.errors import InputError
from gradsense.federation.algorithm import Algorithm, get_algorithm
from gradsense.federation.bounds import Bounds
from gradsense.storage import files

JOB_FILE = "job.json"
#: Folders: of all runs in a fleet, of the start in a run, of the start in a device's bundle.
RUNS, START, RUN = "runs", "start", "run"
#: Folders of a start: the graph that reads and judges, and the model whose weights are trained.
EDGE, MODEL = "edge", "model"
_MAX_BYTES = 1 << 20
#: Of ``Bounds``: an honest device's largest movement is no four times the usual one; what it has
#: saved up while it was away comes in a burst.
_NORM_RATIO, _BURST, _POOLED, _POOL_BYTES = 4.0, 50, 8, 128 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


class Job(BaseModel):
    """``job.json``. Fields that an algorithm does not use are ignored by it.

    >>> Job(run="porch", labels=("Benign", "DDoS")).algorithm
    'gsfs'
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: Literal[2] = 2
    run: str = Field(description="Name of the run, in every topic.")
    algorithm: str = Field("gsfs", description="Its name, settings changed or not.")
    labels: tuple[str, ...] = Field(min_length=2, max_length=1000, description="Classes, in order.")
    seed: int = Field(0, ge=0, lt=1 << 31, description="Draws the invited and orders batches.")
    epochs: float = Field(1.0, gt=0, description="Local epochs of a local round.")
    batch_size: int = Field(32, ge=1, description="Flows a step, where weights are trained.")
    lr: float = Field(1e-3, gt=0, description="Learning rate, where weights are trained.")
    optimizer: Literal["adamw", "sgd"] = "adamw"
    participation: float = Field(1.0, gt=0, le=1, description="Share invited to each round.")
    max_staleness: int = Field(20, ge=0, description="Versions back that an update may start from.")
    max_norm: float = Field(
        1e3, gt=0, description="Largest L2 norm of an update; of statistics: of one record's."
    )
    max_samples: int = Field(
        500, ge=1, description="Records that a device counts for, at most, as a rule by samples."
    )
    interval_s: float = Field(5.0, ge=0, description="Least seconds between two models.")
    upload_gap_s: float = Field(5.0, ge=0, description="Seconds between a device's uploads.")
    min_devices: int = Field(1, ge=1, description="The first model waits for so many devices.")
    rounds: int | None = Field(None, ge=1, description="Aggregations until the run is over.")
    sealed: bool = Field(False, description="Bodies are encrypted end to end.")
    keep_updates: bool = Field(False, description="Bodies stay in the journal, to replay the run.")

    @field_validator("run")
    @classmethod
    def _is_name(cls, value: str) -> str:
        if _NAME.fullmatch(value) is None:
            raise ValueError(
                "a run is named by 1 to 64 of A-Z a-z 0-9 . _ - (letter or digit first)"
            )
        return value

    @field_validator("algorithm")
    @classmethod
    def _is_algorithm(cls, value: str) -> str:
        try:
            get_algorithm(value)
        except InputError as error:
            raise ValueError(str(error)) from None
        return value

    @property
    def bounds(self) -> Bounds:
        """What one device may do to the run."""
        return Bounds(
            max_norm=self.max_norm,
            norm_ratio=_NORM_RATIO,
            max_samples=self.max_samples,
            interval_s=self.interval_s,
            upload_gap_s=self.upload_gap_s,
            burst=_BURST,
            pooled=_POOLED,
            pool_bytes=_POOL_BYTES,
        )

    @property
    def rules(self) -> Algorithm[Any]:
        """The algorithm that ``algorithm`` names."""
        return get_algorithm(self.algorithm)

    def text(self) -> str:
        """The file's content."""
        return self.model_dump_json(indent=2) + "\n"


def read(folder: Path) -> Job:
    """The job in a folder.

    Raises:
        InputError: there is none, or it is damaged.
    """
    file = folder / JOB_FILE
    hint = "gradsense fleet run NAME makes one; fleet enroll puts it into a device's bundle"
    return files.parsed(files.read(file, limit=_MAX_BYTES, hint=hint), Job, file)
