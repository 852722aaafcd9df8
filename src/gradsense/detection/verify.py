"""Compares an edge bundle with the torch model that it was exported from, on the same flows.

The flows are a bounded sample of logs, or synthetic traffic.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from gradsense.data.datasets.captures import Reservoir, discover, in_context
from gradsense.data.flows import class_numbers
from gradsense.data.sources.lines import Tally
from gradsense.data.sources.stream import is_synthetic
from gradsense.data.synthetic.traffic import write_fleet
from gradsense.detection.detector import Detector
from gradsense.detection.session import PhraseIds
from gradsense.errors import GradsenseError, InputError
from gradsense.learning.answers import Answers, answers
from gradsense.learning.metrics import score
from gradsense.models.classifier import TextClassifier
from gradsense.models.heads.influence import SketchedInfluence
from gradsense.tasks.task import get_task

#: Macro-F1 that an int8 graph may lose, 0..1.
MAY_LOSE = 0.005
#: Flows of each class of each capture, as many as training takes; unlabelled is a class here.
MOST = 1000

_SITES, _FLOWS, _SEED = 6, 500, 20_240


@dataclass(frozen=True)
class Sample:
    """Flows with context and ``class``, which is null where a flow has no label.

    ``source`` is their name in messages, ``dropped`` counts malformed lines.
    """

    flows: pl.DataFrame
    source: str
    synthetic: bool
    dropped: int = 0

    def known(self, labels: Sequence[str]) -> pl.DataFrame:
        """The flows of these classes."""
        return self.flows.filter(pl.col("class").is_in(list(labels)))


def draw(data: Path, labels: Sequence[str], most: int = MOST) -> Sample:
    """At most ``most`` flows of each class of each capture, drawn uniformly, the same each time.

    Args:
        data: a Zeek or Suricata log, or a folder of captures, labelled or not.
        labels: of the model; a binary model reads labels as Benign and Malicious.

    Raises:
        InputError: no captures, an unreadable log, or no flows.
    """
    tally, captures = Tally(), discover(data)
    parts = []
    for capture in captures:
        reservoir = Reservoir(most, capture.name)
        for flows in in_context(capture, tally=tally):
            reservoir.add(get_task().classed(flows, labels))
        parts += [reservoir.frame()] if reservoir.seen else []
    if not parts:
        raise InputError("the logs hold no flows", hint="give logs with flows", file=data)
    return Sample(
        pl.concat(parts),
        source=data.resolve().name,
        synthetic=any(is_synthetic(capture.path) for capture in captures),
        dropped=tally.total_dropped,
    )


def synthetic_sample(*, labelled: bool) -> Sample:
    """Built-in synthetic traffic, where no logs are given.

    Args:
        labelled: keep the labels, which only a model trained on such traffic knows.
    """
    with tempfile.TemporaryDirectory(prefix="gradsense-") as folder:
        write_fleet(Path(folder), sites=_SITES, flows=_FLOWS, seed=_SEED)
        flows = draw(Path(folder), ()).flows
    if not labelled:
        flows = flows.with_columns(pl.lit(None, dtype=pl.String).alias("class"))
    return Sample(flows, "built-in synthetic traffic", synthetic=True)


def graph_answers(detector: Detector, phrase_ids: PhraseIds) -> Answers:
    """The outputs of the bundle's graph for flows of these phrase ids, uint16 [n, fields]."""
    distinct, rows = np.unique(phrase_ids, axis=0, return_inverse=True)
    logits, novelty = detector.answers(distinct)
    return Answers(logits[rows], None if novelty is None else novelty[rows])


def verify(
    classifier: TextClassifier,
    novelty: SketchedInfluence | None,
    detector: Detector,
    sample: Sample,
) -> dict[str, Any]:
    """Run both on the same flows and measure how far apart their outputs are.

    Where no flow of the sample has a label that the model knows, macro-F1 takes torch's verdicts
    as the truth, and ``truth`` says so.

    Args:
        classifier, novelty: of the model folder.
        detector: over the bundle.
        sample: flows.

    Returns:
        JSON values for ``Manifest.verified``: ``source, synthetic, flows, logits, novelty`` (the
        largest differences), ``agreement`` (share of equal verdicts), ``truth, labelled, f1_macro,
        f1_macro_torch, f1_macro_lost``.
    """
    labels, template = classifier.labels, classifier.template
    phrase_ids = template.indices(sample.flows)
    by_torch = answers(classifier, template.texts(phrase_ids), novelty)
    by_graph = graph_answers(detector, phrase_ids)
    theirs, ours = by_torch.logits.argmax(axis=1), by_graph.logits.argmax(axis=1)
    rows = sample.flows["class"].is_in(list(labels)).fill_null(value=False).arg_true().to_numpy()
    labelled = len(rows)
    if labelled:
        truth = class_numbers(sample.flows[rows], labels)
    else:
        truth, rows = theirs, np.arange(len(theirs))
    f1_torch = score(truth, theirs[rows], labels).f1_macro
    f1_graph = score(truth, ours[rows], labels).f1_macro
    return {
        "source": sample.source,
        "synthetic": sample.synthetic,
        "flows": len(phrase_ids),
        "logits": _apart(by_torch.logits, by_graph.logits),
        "novelty": _apart(by_torch.novelty, by_graph.novelty),
        "agreement": float((theirs == ours).mean()),
        "truth": "labels" if labelled else "the torch model's verdicts",
        "labelled": labelled,
        "f1_macro": f1_graph,
        "f1_macro_torch": f1_torch,
        "f1_macro_lost": f1_torch - f1_graph,
    }


def require(found: dict[str, Any], precision: str) -> None:
    """Check that a result of ``verify`` is good enough for the bundle to be written.

    Raises:
        GradsenseError: a float32 graph gives another verdict than torch, or an int8 graph loses
            more than ``MAY_LOSE`` of macro-F1.
    """
    if precision == "float32" and found["agreement"] < 1:
        other = round((1 - found["agreement"]) * found["flows"])
        raise GradsenseError(
            f"the graph disagrees with torch on {other:,} of {found['flows']:,} flows of "
            f"{found['source']} (logits up to {found['logits']:.2g} apart), and "
            "nothing was written; please report this with the model's config.json"
        )
    if precision == "int8" and found["f1_macro_lost"] > MAY_LOSE:
        better = "" if found["labelled"] else "give labelled logs with --data for a better answer, "
        raise GradsenseError(
            f"int8 loses {100 * found['f1_macro_lost']:.2f} points of macro-F1 on "
            f"{found['source']} (truth: {found['truth']}), more than {100 * MAY_LOSE:.1f}, and "
            f"nothing was written; {better}leave --int8 out, or write it anyway with --force"
        )


def _apart(one: NDArray[np.float32] | None, other: NDArray[np.float32] | None) -> float | None:
    if one is None or other is None:
        return None
    return float(np.abs(one.astype(np.float64) - other).max())
