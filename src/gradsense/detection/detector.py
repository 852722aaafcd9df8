"""The detector: flows in, verdicts out, with onnxruntime and without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl

from gradsense.data.flows import ContextWindow
from gradsense.detection.session import BATCH, Inputs, Opened, Outputs, PhraseIds, open_bundle

#: Verdicts that are cached by default; a full cache takes about 12 MB.
CACHE_SIZE = 32_768
#: Up to so many flows are encoded one by one; one polars query costs as much as about thirty.
_FEW = 32

#: Titles of the template's fields in explanations. A field without one is shown as its phrase.
_TITLES = {
    "proto": "protocol",
    "service": "service",
    "state": "connection state",
    "dp": "responder port",
    "sp": "originator port",
    "a": "kinds of address",
    "h": "packet history",
    "d": "duration in seconds, from",
    "ob": "bytes sent, from",
    "rb": "bytes received, from",
    "op": "packets sent, from",
    "rp": "packets received, from",
    "oi": "IP bytes sent, from",
    "ri": "IP bytes received, from",
    "cn": "recent flows of the host, from",
    "cr": "recent flows a second, from",
    "cf": "share of recent flows that failed",
    "cw": "share of recent flows to new hosts",
    "cp": "share of recent flows to this port",
}

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Verdict:
    """The model's verdict on one prompt.

    Args:
        label: if ``alarm``, the most probable class other than benign; else benign, else benign.
        probability: of that class, 0..1, after temperature scaling.
        suspicion: 1 - p(benign), 0..1.
        alarm: the suspicion is above the bundle's threshold: the flow raises an alert.
        novelty: how unlike the training flows, larger is more; None if the model has no score.
        novel: the novelty is above the bundle's threshold.
    """

    label: str
    probability: float
    suspicion: float
    alarm: bool
    novelty: float | None
    novel: bool


@dataclass(frozen=True, slots=True)
class Reason:
    """One field of a prompt, and how much the verdict depends on it.

    Args:
        field, phrase: as in the template.
        weight: by how many nats the verdict's log-probability falls if the field is unknown.
    """

    field: str
    phrase: str
    weight: float

    def in_words(self) -> str:
        """``service: irc`` for ``s:irc``; a phrase without a colon as it is."""
        _, colon, value = self.phrase.partition(":")
        title = _TITLES.get(self.field)
        if title is None or not colon:
            return self.phrase
        return f"{title.removesuffix(', from')}: unknown" if value == "-" else f"{title}: {value}"


class Cache(Generic[Value]):
    """A bounded cache: keeps at least the last ``size / 2`` distinct keys used, at most ``size``.

    It has two generations instead of a list in order of use: when the young one is full it
    becomes the old one, and the old one's unused entries go with the next change. A look-up is
    one or two of a dictionary, and a hit in the young generation moves nothing.

    Args:
        size: most entries; 0 keeps nothing.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._young: dict[bytes, Value] = {}
        self._old: dict[bytes, Value] = {}

    def get(self, key: bytes) -> Value | None:
        """The value stored under the key, or None."""
        value = self._young.get(key)
        if value is None:
            value = self._old.get(key)
            if value is not None:
                self.put(key, value)
        return value

    def put(self, key: bytes, value: Value) -> None:
        """Store ``value``, which is not None."""
        if not self.size:
            return
        if len(self._young) >= max(1, self.size // 2):
            self._old, self._young = self._young, {}
        self._young[key] = value

    def __len__(self) -> int:
        return len(self._young.keys() | self._old.keys())


class Detector:
    """Gives verdicts on flows with an edge bundle. Only one thread may use it at a time.

    Args:
        opened: the bundle.
        cache: most verdicts that are cached, by the phrase ids of a flow. A verdict depends on
            these alone, so the cache saves time and changes no verdict. 0 switches it off.

    Attributes:
        judged, inferred: prompts so far, and how many of them the graph was run on.
    """

    def __init__(self, opened: Opened, *, cache: int = CACHE_SIZE) -> None:
        self.manifest, self.template, self._opened = opened.manifest, opened.template, opened
        self.cache: Cache[Verdict] = Cache(cache)
        self.judged = self.inferred = 0
        self._outputs = [name for name in ("logits", "novelty") if name in opened.outputs]
        labels, normal = self.manifest.labels, self.template.task.normal
        self._benign = labels.index(normal) if normal in labels else None

    @classmethod
    def load(cls, path: Path | str, *, threads: int = 2, cache: int = CACHE_SIZE) -> Detector:
        """Open a bundle, every file checked against its hash first.

        Args:
            path: a folder that ``gradsense export`` wrote.
            threads: of the graph.
            cache: most verdicts that are cached.

        Raises:
            InputError: no bundle, or a damaged or altered one.
        """
        return cls(open_bundle(path, threads=threads), cache=cache)

    # Flows ----------------------------------------------------------------------------------

    def predict(self, flows: pl.DataFrame | Sequence[Mapping[str, Any]]) -> list[Verdict]:
        """One verdict a flow, in order.

        Args:
            flows: a frame with the FLOW_SCHEMA columns, or mappings with these keys. Where the
                template reads the host's recent flows (CONTEXT_SCHEMA) and they are not there
                yet, ``flows`` are taken for a log of their own from its first line.
        """
        return self.judge(self.phrase_ids(flows))

    def phrase_ids(self, flows: pl.DataFrame | Sequence[Mapping[str, Any]]) -> PhraseIds:
        """The phrase ids of flows, uint16 [flows, fields]; ``flows`` as for ``predict``."""
        few = len(flows) <= _FEW
        if isinstance(flows, pl.DataFrame):
            if self._lacks_context(flows.columns):
                flows = ContextWindow().add(flows)
            if not few:
                return self.template.indices(flows)
            flows = flows.to_dicts()
        elif flows and self._lacks_context(flows[0]):
            window = ContextWindow()
            flows = [window.add_row(flow) for flow in flows]
        if not flows:
            return np.zeros((0, len(self.template.fields)), np.uint16)
        return np.concatenate([self.template.pick(flow) for flow in flows])

    def _lacks_context(self, names: Sequence[str] | Mapping[str, Any]) -> bool:
        return self.template.needs_context and "ctx_flows" not in names

    # Prompts --------------------------------------------------------------------------------

    def judge(self, phrase_ids: PhraseIds) -> list[Verdict]:
        """One verdict for each row of phrase ids, uint16 [n, fields]."""
        self.judged += len(phrase_ids)
        if not self.cache.size:
            return self._infer(self._opened.encoder.phrase_ids(phrase_ids))
        raw, width = phrase_ids.tobytes(), phrase_ids.shape[1] * phrase_ids.itemsize
        keys = [raw[start : start + width] for start in range(0, len(raw), width)]
        get = self.cache.get
        found = [get(key) for key in keys]
        unknown = {key: row for row, key in enumerate(keys) if found[row] is None}
        if not unknown:
            return found  # type: ignore[return-value]
        inputs = self._opened.encoder.phrase_ids(phrase_ids[list(unknown.values())])
        fresh = dict(zip(unknown, self._infer(inputs), strict=True))
        for key, verdict in fresh.items():
            self.cache.put(key, verdict)
        return [verdict or fresh[key] for key, verdict in zip(keys, found, strict=True)]

    def judge_texts(self, texts: Sequence[str]) -> list[Verdict]:
        """One verdict for each prompt as text.

        Raises:
            ValueError: prompts of another length than the template writes.
        """
        self.judged += len(texts)
        return self._infer(self._opened.encoder.texts(texts))

    def answers(self, phrase_ids: PhraseIds) -> tuple[Outputs, Outputs | None]:
        """The graph's raw outputs for prompts, before temperature and thresholds.

        Returns:
            logits [n, classes], and novelty [n] if the graph has it.
        """
        blocks = self._opened.blocks(self._outputs, phrase_ids)
        logits, *novelty = map(np.concatenate, zip(*blocks, strict=True))
        return logits, novelty[0] if novelty else None

    def explain(self, phrase_ids: PhraseIds, most: int = 3) -> list[Reason]:
        """The fields of one prompt, uint16 [1, fields], that its verdict depends on, by occlusion.

        Each field in turn is made unknown. By how much that lowers the log-probability of the
        verdict is the field's weight (Zeiler and Fergus 2014, §4.2, applied to prompts).

        Returns:
            At most ``most`` reasons of positive weight, the weightiest first.
        """
        fields = self.template.fields
        table = np.repeat(phrase_ids, len(fields) + 1, axis=0)
        for place, field in enumerate(fields):
            table[place + 1, place] = len(field.phrases) - 1  # the phrase for "unknown"
        logits, _ = self.answers(table)
        log_p = _log_softmax(logits / self.manifest.temperature)
        log_p = log_p[:, log_p[0].argmax()]
        weights = log_p[0] - log_p[1:]
        order = np.argsort(-weights, kind="stable")[:most]
        return [
            Reason(
                fields[place].name,
                fields[place].phrases[phrase_ids[0, place]],
                float(weights[place]),
            )
            for place in order.tolist()
            if weights[place] > 0
        ]

    # The graph ------------------------------------------------------------------------------

    def _infer(self, inputs: Inputs) -> list[Verdict]:
        verdicts: list[Verdict] = []
        count = len(inputs["input_ids"])
        self.inferred += count
        for start in range(0, count, BATCH):
            part = {name: values[start : start + BATCH] for name, values in inputs.items()}
            verdicts += self._verdicts(*self._opened.graph.run(self._outputs, part))
        return verdicts

    def _verdicts(self, logits: Outputs, novelty: Outputs | None = None) -> list[Verdict]:
        manifest, benign = self.manifest, self._benign
        table = np.exp(_log_softmax(logits / manifest.temperature))
        # A model without a benign class suspects everything.
        suspicion = np.ones(len(table)) if benign is None else 1.0 - table[:, benign]
        alarm = suspicion > manifest.alarm.value
        choice = table.copy()
        if benign is not None:
            choice[:, benign] = np.where(alarm, -1.0, 2.0)
        best = choice.argmax(axis=1)
        probability = table[np.arange(len(table)), best]
        if novelty is None or manifest.novelty is None:
            scores, novel = [None] * len(table), np.zeros(len(table), bool)
        else:
            scores, novel = novelty.tolist(), novelty > manifest.novelty.value
        labels = [manifest.labels[place] for place in best.tolist()]
        columns = (labels, probability.tolist(), suspicion.tolist(), alarm.tolist())
        return [Verdict(*values) for values in zip(*columns, scores, novel.tolist(), strict=True)]


def _log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    # Not learning.calibration.softmax: that one divides by the temperature in float64, and the
    # last digits of recorded verdicts would change.
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result
