"""The card of a model, ``gradsense.json`` beside its weights; nothing here imports torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

#: What a head reads; see ``models.heads.readout``.
Kind = Literal["last", "pooled", "tokens"]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class TemplateName(_Value):
    """Which prompt template a model was trained with."""

    name: str
    version: int


class ReadoutCard(_Value):
    """How a head beside the base reads it; see ``models.heads.readout``."""

    kind: Kind
    length: int = Field(ge=0, le=512)


class AlarmThreshold(_Value):
    """An alert is raised above ``threshold``, which ``share`` of the ``flows`` behind it exceed."""

    threshold: float
    share: float = Field(ge=0, le=1)
    flows: int = Field(ge=0)


class Calibration(_Value):
    """Makes a probability the share of verdicts that are right; see ``learning.calibration``.

    ``temperature`` divides the logits before softmax. ``alarm`` is about suspicion, 1 − p(benign)
    after temperature, chosen on benign flows; None without a benign class. ``ece_before`` and
    ``ece_after`` are expected calibration errors of the ``flows`` that the temperature was
    fitted to.
    """

    temperature: float = Field(gt=0)
    alarm: AlarmThreshold | None
    ece_before: float = Field(ge=0, le=1)
    ece_after: float = Field(ge=0, le=1)
    flows: int = Field(ge=1)


class Reference(_Value):
    """The distribution of the flows that the model was calibrated on: the base of drift.

    ``fields``: template field to the share of each of its phrases, in the template's order.
    ``confidence``: share of flows by the verdict's probability, ten bins of equal width from 0.
    """

    flows: int = Field(ge=1)
    fields: dict[str, tuple[float, ...]]
    confidence: tuple[float, ...] = Field(min_length=10, max_length=10)


class Measured(_Value):
    """What calibration found; all None in folders that older versions wrote.

    ``novelty`` is about the score of ``models.heads.influence``, over flows of all classes; None
    where no sufficient statistics were gathered.
    """

    calibration: Calibration | None = None
    novelty: AlarmThreshold | None = None
    reference: Reference | None = None


class Card(Measured):
    """``gradsense.json``. ``format`` is the version of this file's own layout."""

    format: Literal[1] = 1
    labels: tuple[str, ...] = Field(min_length=2)
    template: TemplateName
    base: str
    lora_rank: int | None
    readout: ReadoutCard | None = None
    gradsense: str
    extra: dict[str, Any] = {}
