"""The settings that fix the result of a run: one value, checked once, stored beside the result.

The command line makes its options from these fields.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from gradsense.errors import InputError


class RunSettings(BaseModel):
    """The settings of one run. Same settings, same data, same machine: the same result."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    data: Path | None = Field(
        None, description="Folder of captures, or one log. Without it: synthetic traffic."
    )
    cap: int | None = Field(
        None,
        ge=0,
        description="Flows kept of each (capture, class); 0 keeps all. Default: 1000, and 2000 "
        "where networks are left out.",
    )
    view: Literal["classes", "binary"] = Field(
        "classes", description="IoT-23's classes, or benign against malicious."
    )
    labels: tuple[str, ...] = Field(
        (), description="Classes in order, Benign first. Without: those of the view that are found."
    )
    unknown_labels: Literal["error", "drop"] = Field(
        "error", description="What to do about a label that is none of the classes."
    )
    strict: bool = Field(False, description="Stop at the first malformed line.")
    contradictions: Literal["keep", "majority", "drop"] = Field(
        "keep", description="Training flows that read the same but carry different labels."
    )
    split: Literal["time", "grouped", "random", "network"] = Field(
        "grouped",
        description="time trains on each capture's first 70 %; grouped keeps flows of one "
        "compact text in one part; random is the paper's. network (of compare): every group of "
        "networks is left out in turn.",
    )
    partition: Literal["natural", "dirichlet", "iid"] = Field(
        "natural", description="Flows to clients: one client a capture, Dirichlet by class, IID."
    )
    clients: int | None = Field(None, ge=1, description="How many clients, unless natural.")
    alpha: float = Field(0.5, gt=0, description="Dirichlet concentration; small is more skewed.")

    template: str = Field("context", description="Prompt template; docs/data.md has them.")
    model: str = Field(
        "nano",
        description="nano, micro, mini, a Hugging Face folder, or a hub name such as "
        "facebook/opt-350m.",
    )
    lora_rank: int | None = Field(
        None, ge=0, description="Train adapters of this rank and the head only; 0 trains all."
    )

    pretrained: bool = Field(
        True, description="Start an embedded model from the base that comes with the package."
    )

    algorithm: str = Field(
        "gsfs", description="An algorithm, or one with changed values: gsfs:floor=0.3."
    )
    rounds: int = Field(10, ge=1, description="Aggregations at most.")
    local_rounds: int | None = Field(
        None,
        ge=1,
        description="Local rounds of each client at most, its budget of compute in units of "
        "--epochs; without: as many as --rounds.",
    )
    epochs: float = Field(1.0, gt=0, description="E, local epochs of one local round.")
    batch_size: int = Field(32, ge=1, description="Flows a training step.")
    lr: float = Field(1e-3, gt=0, description="Local learning rate.")
    optimizer: Literal["adamw", "sgd"] = Field(
        "adamw", description="Local optimiser; sgd is eq 1 to the letter."
    )
    participation: float = Field(
        1.0, gt=0, le=1, description="Share of clients invited to each synchronous round."
    )

    devices: str = Field(
        "mixed", description="Device profiles: mixed, pi4, jetson-nano, gateway, lte-node."
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Probability that a device vanishes during a local round."
    )
    offline_s: float = Field(60.0, ge=0, description="Mean virtual seconds until it is back.")
    late: float = Field(0.0, ge=0, lt=1, description="Share of clients that join late.")
    late_s: float = Field(60.0, ge=0, description="They join within these virtual seconds.")

    threads: int = Field(1, ge=1, description="Torch threads; part of the result's last bits.")
    # Torch and scikit-learn take seeds of 32 bits; a comparison counts up from here.
    seed: int = Field(
        0, ge=0, lt=1 << 31, description="Draws, splits, weights, faults: all follow from it."
    )

    @property
    def local_budget(self) -> int:
        """Local rounds that each client may spend at most."""
        return self.local_rounds or self.rounds

    @property
    def kept(self) -> int:
        """Flows kept of each capture and class; 0 for all."""
        if self.cap is not None:
            return self.cap
        return 2000 if self.split == "network" else 1000

    @field_validator("labels", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """Also as one text with commas, as the command line has it."""
        if not isinstance(value, str):
            return value
        return [part.strip() for part in value.split(",") if part.strip()]

    @field_validator("labels")
    @classmethod
    def _several(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if value and len(set(value)) < max(2, len(value)):
            raise ValueError("give two classes or more, each once")
        return value


def settings(**values: object) -> RunSettings:
    """``RunSettings`` from unchecked values.

    Raises:
        InputError: names the first value that does not fit, and what would.

    >>> settings(algorithm="fedavg", rounds=3).rounds
    3
    """
    try:
        return RunSettings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"{first['input']!r} does not fit: {first['msg'].lower()}",
            field="--" + "-".join(str(part) for part in first["loc"]).replace("_", "-"),
            hint="see --help for what it takes",
        ) from None
