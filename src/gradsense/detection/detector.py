"""The detector: flows in, verdicts out, with onnxruntime and without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from gradsense.data.context import ContextWindow
from gradsense.detection.bundle import Manifest
from gradsense.detection.cache import Cache
from gradsense.detection.encode import Encoder, Inputs
from gradsense.detection.reasons import Reason
from gradsense.detection.session import Session, open_bundle
from gradsense.prompts.templates import Template

#: Verdicts remembered unless told otherwise; a full cache of these takes about 12 MB.
CACHE_SIZE = 32_768
#: Prompts that go through the graph at once: more are hardly faster, and take memory.
BATCH = 32
#: Up to so many flows are read one by one; a polars query costs as much as some thirty of them.
_FEW = 32

PhraseIds = npt.NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the model says of one prompt.

    Args:
        label: of an alarm the likeliest class but benign, else benign.
        probability: of that class, after temperature scaling.
        suspicion: 1 - p(benign).
        alarm: the suspicion is above the bundle's threshold.
        novelty: how unlike the training flows, larger is more; None if the model cannot tell.
        novel: the novelty is above the bundle's threshold.
    """

    label: str
    probability: float
    suspicion: float
    alarm: bool
    novelty: float | None
    novel: bool


class Detector:
    """An edge bundle at work. One thread uses it at a time.

    Args:
        manifest, template: of the bundle.
        session: its graph.
        encoder: makes the graph's inputs.
        cache: verdicts remembered, by the phrase ids of a flow. A verdict is a function of
            these alone, so the cache changes nothing but the time. 0 switches it off.

    Attributes:
        judged, inferred: prompts so far, and how many of them went through the graph.
    """

    def __init__(
        self,
        manifest: Manifest,
        template: Template,
        session: Session,
        encoder: Encoder,
        *,
        cache: int = CACHE_SIZE,
    ) -> None:
        self.manifest, self.template = manifest, template
        self.cache: Cache[Verdict] = Cache(cache)
        self.judged = self.inferred = 0
        self._session, self._encoder = session, encoder
        self._outputs = [name for name in ("logits", "novelty") if name in session.outputs]
        normal = template.task.normal
        self._benign = manifest.labels.index(normal) if normal in manifest.labels else None

    @classmethod
    def load(cls, path: Path | str, *, threads: int = 2, cache: int = CACHE_SIZE) -> Detector:
        """Open a bundle, every file checked against its hash first.

        Args:
            path: a folder that ``gradsense export`` wrote.
            threads: of the graph.
            cache: verdicts remembered.

        Raises:
            InputError: no bundle, or a damaged or altered one.
        """
        opened = open_bundle(path, threads=threads)
        return cls(opened.manifest, opened.template, opened.session, opened.encoder, cache=cache)

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
        """The phrases that flows pick, [flows, fields]; ``flows`` as for ``predict``."""
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
        """One verdict for each row of phrase indices, uint16 [n, fields]."""
        self.judged += len(phrase_ids)
        if not self.cache.size:
            return self._infer(self._encoder.phrase_ids(phrase_ids))
        raw, width = phrase_ids.tobytes(), phrase_ids.shape[1] * phrase_ids.itemsize
        keys = [raw[start : start + width] for start in range(0, len(raw), width)]
        get = self.cache.get
        found = [get(key) for key in keys]
        unknown = {key: row for row, key in enumerate(keys) if found[row] is None}
        if not unknown:
            return found  # type: ignore[return-value]
        fresh = dict(
            zip(
                unknown,
                self._infer(self._encoder.phrase_ids(phrase_ids[list(unknown.values())])),
                strict=True,
            )
        )
        for key, verdict in fresh.items():
            self.cache.put(key, verdict)
        return [verdict or fresh[key] for key, verdict in zip(keys, found, strict=True)]

    def judge_texts(self, texts: Sequence[str]) -> list[Verdict]:
        """One verdict for each prompt as text.

        Raises:
            ValueError: prompts of another length than the template writes.
        """
        self.judged += len(texts)
        return self._infer(self._encoder.texts(texts))

    def answers(
        self, phrase_ids: PhraseIds
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None]:
        """What the graph itself says of prompts, before temperature and thresholds.

        Returns:
            logits [n, classes], and novelty [n] if the graph has it.
        """
        parts = [
            self._run(self._encoder.phrase_ids(phrase_ids[start : start + BATCH]))
            for start in range(0, len(phrase_ids), BATCH)
        ]
        novelty = [scores for _, scores in parts if scores is not None]
        logits = np.concatenate([logits for logits, _ in parts])
        return logits, np.concatenate(novelty) if novelty else None

    def explain(self, phrase_ids: PhraseIds, most: int = 3) -> list[Reason]:
        """The fields of one prompt, uint16 [1, fields], that its verdict rests on, by occlusion.

        Each field in turn is made unknown, and what that takes from the log-probability of the
        verdict is the field's weight (Zeiler and Fergus 2014, §4.2, on prompts).

        Returns:
            At most ``most`` reasons, the weightiest first, only those that speak for the verdict.
        """
        fields = self.template.fields
        table = np.repeat(phrase_ids, len(fields) + 1, axis=0)
        for place, field in enumerate(fields):
            table[place + 1, place] = len(field.phrases) - 1  # the phrase for what is not known
        logits, _ = self._run(self._encoder.phrase_ids(table))
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
            verdicts += self._verdicts(*self._run(part))
        return verdicts

    def _run(
        self, inputs: Inputs
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None]:
        """Logits [n, classes] and novelty [n]."""
        answers = dict(zip(self._outputs, self._session.run(self._outputs, inputs), strict=True))
        return answers["logits"], answers.get("novelty")

    def _verdicts(
        self, logits: npt.NDArray[np.float32], novelty: npt.NDArray[np.float32] | None
    ) -> list[Verdict]:
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
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result
