"""Everything that fixes the result of a run: one value, checked once, stored beside the result."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gradsense.errors import InputError


class RunSettings(BaseModel):
    """The settings of one federated run. Same settings, same machine: same result, bit for bit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Path | None = Field(None, description="captures; None means synthetic traffic")
    cap: int = Field(1000, ge=0, description="flows kept of each (capture, class); 0 keeps all")
    view: Literal["classes", "binary"] = "classes"
    unknown: Literal["error", "drop"] = "error"
    strict: bool = False
    contradictions: Literal["keep", "majority", "drop"] = "keep"
    split: Literal["grouped", "random"] = "grouped"
    partition: Literal["natural", "dirichlet", "iid"] = "natural"
    clients: int | None = Field(None, ge=1, description="how many, unless natural")
    alpha: float = Field(0.5, gt=0, description="Dirichlet concentration")

    template: str = "compact"
    model: str = "nano"
    lora_rank: int | None = Field(None, ge=1)

    strategy: str = "gsfs"
    rounds: int = Field(10, ge=1, description="aggregations at most, and rounds of local work")
    epochs: float = Field(1.0, gt=0, description="E, local epochs of one visit")
    batch_size: int = Field(32, ge=1)
    lr: float = Field(3e-3, gt=0)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    participation: float = Field(1.0, gt=0, le=1)

    devices: str = "mixed"
    dropout: float = Field(0.0, ge=0, lt=1)
    offline_s: float = Field(60.0, ge=0)
    late: float = Field(0.0, ge=0, lt=1)
    late_s: float = Field(60.0, ge=0)

    threads: int = Field(1, ge=1, description="torch threads; sums depend on how they are split")
    seed: int = Field(0, ge=0)


def settings(**values: object) -> RunSettings:
    """``RunSettings`` from unchecked values.

    Raises:
        InputError: names the first value that does not fit, and what would.
    """
    try:
        return RunSettings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"{first['input']!r} does not fit: {first['msg'].lower()}",
            field="--" + "-".join(str(part) for part in first["loc"]).replace("_", "-"),
            mend="see --help for what it takes",
        ) from None
