"""Exports a model folder as an edge bundle: one ONNX graph, its tokenizer, and its thresholds."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic

import gradsense
from gradsense.data.flows import class_numbers
from gradsense.detection import bundle
from gradsense.detection.bundle import GRAPH_FILE, TOKENIZER_FILE, BundleThreshold, Manifest
from gradsense.detection.detector import Detector
from gradsense.detection.verify import Sample, draw, graph_answers, require, synthetic_sample
from gradsense.detection.verify import verify as compare
from gradsense.learning.alarms import LEAST_THRESHOLD
from gradsense.learning.answers import measure
from gradsense.models import card as cards
from gradsense.models import folder
from gradsense.models.classifier import TextClassifier
from gradsense.models.graph import opset_of, quiet, reads_words, write_graph
from gradsense.prompts.templates import get_template

#: Where the thresholds of a model folder come from, in words.
_FROM_TRAINING = "validation flows of training"
_FROM_NOTHING = "a default: nothing was calibrated"
#: Keys of the card's ``extra`` that go into the manifest's provenance.
_FROM_CARD = ("algorithm", "seed", "synthetic", "accuracy", "f1_macro", "data_sha256")


@dataclass(frozen=True)
class Exported:
    """The bundle that was written, and warnings for the user, one sentence each."""

    path: Path
    manifest: Manifest
    warnings: tuple[str, ...]


def export(
    model_dir: Path,
    out: Path,
    *,
    int8: bool = False,
    data: Path | None = None,
    verify: bool = False,
    force: bool = False,
    threads: int = 1,
    on_step: Callable[[str], None] = lambda step: None,
) -> Exported:
    """Write the edge bundle of a model folder, all of it or nothing.

    Args:
        model_dir: a folder that ``models.folder.save`` wrote.
        out: a new folder, or one that holds a bundle, which is replaced.
        int8: weights and activations of the matrix products in 8 bits: less than half the size,
            about 1.6 times as fast. Always verified.
        data: logs to verify on, and where they are labelled to calibrate on afresh.
        verify: compare the graph with torch, on ``data`` or else on synthetic traffic.
        force: write an int8 graph however much macro-F1 it loses.
        threads: of torch and of onnxruntime.
        on_step: called with a description of each step as it begins.

    Raises:
        InputError: a broken model folder, unreadable logs, or ``out`` holds something else.
        GradsenseError: the model cannot be exported, the bundle cannot be written, or what was
            verified is not good enough.
    """
    bundle.claimable(out)
    torch.set_num_threads(threads)
    on_step("loading the model")
    card, classifier = folder.read_card(model_dir), folder.load(model_dir)
    novelty = folder.load_score(model_dir, classifier)
    sample = None if data is None else draw(data, classifier.labels)
    with tempfile.TemporaryDirectory(prefix="gradsense-") as scratch:
        graph, tokenizer = Path(scratch, GRAPH_FILE), model_dir / TOKENIZER_FILE
        files = {GRAPH_FILE: graph, TOKENIZER_FILE: tokenizer}
        on_step("writing the graph")
        write_graph(classifier, graph, score=novelty)
        if int8:
            on_step("making it int8")
            _quantise(graph)
        manifest = _manifest(card, classifier, model_dir, int8=int8)
        draft = Path(scratch, "bundle")
        bundle.write(draft, manifest, files)
        detector = Detector.load(draft, threads=threads, cache=0)
        known = 0 if sample is None else len(sample.known(classifier.labels))
        if sample is not None and known:
            on_step("calibrating")
            labelled = sample.known(classifier.labels)
            phrase_ids = classifier.template.indices(labelled)
            answers = graph_answers(detector, phrase_ids)
            truth = class_numbers(labelled, classifier.labels)
            measured = measure(answers, phrase_ids, truth, classifier)
            manifest = _calibrated(manifest, measured, sample.source)
        if verify or int8:
            on_step("verifying")
            flows = sample or synthetic_sample(labelled=card.extra.get("synthetic") is True)
            found = compare(classifier, novelty, detector, flows)
            if not force:
                require(found, manifest.precision)
            manifest = manifest.model_copy(update={"verified": found})
        written = bundle.write(out, manifest, files)
    return Exported(out, written, tuple(_warnings(card, sample, known)))


def _manifest(
    card: cards.Card, classifier: TextClassifier, model_dir: Path, *, int8: bool
) -> Manifest:
    """The manifest from the model folder alone."""
    template, pad = classifier.template, classifier.tokenizer.pad_token_id
    words = reads_words(classifier)
    manifest = Manifest(
        labels=card.labels,
        template=cards.TemplateName(name=template.name, version=template.version),
        tokens=bundle.Tokens(
            kind="words" if words else "subwords",
            max_tokens=len(template.fields) if words else classifier.max_tokens,
            pad_id=int(pad or 0),
        ),
        precision="int8" if int8 else "float32",
        temperature=1.0,
        alarm=BundleThreshold(value=LEAST_THRESHOLD, share=0.0, flows=0, source=_FROM_NOTHING),
        provenance=_provenance(card, classifier, model_dir),
        files={},
    )
    return _calibrated(manifest, card, _FROM_TRAINING)


def _calibrated(manifest: Manifest, measured: cards.Measured, source: str) -> Manifest:
    """The manifest with these thresholds, temperature and reference, where they were measured."""
    update: dict[str, Any] = {}
    thresholds = {"novelty": measured.novelty}
    if measured.calibration is not None:
        update["temperature"] = measured.calibration.temperature
        thresholds["alarm"] = measured.calibration.alarm
    for name, found in thresholds.items():
        if found is not None:
            update[name] = BundleThreshold(
                value=found.threshold, share=found.share, flows=found.flows, source=source
            )
    if measured.reference is not None:
        update["reference"] = measured.reference
    return manifest.model_copy(update=update)


def _quantise(graph: Path) -> None:
    """Dynamic quantisation in place: int8 weights, and activations scaled as they come.

    The last layer stays float32: it is small, and its rounding errors would go undiminished into
    the logits. So do the features before it, as they are an output.
    """
    plain = graph.with_suffix(".float32")
    graph.rename(plain)
    model = onnx.load(plain)
    last = [node for node in model.graph.node if "logits" in node.output]
    with quiet():  # it recommends a preparation that the exporter has done
        quantize_dynamic(
            plain,
            graph,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            # It splits a Gemm into this and an addition before it looks at the names.
            nodes_to_exclude=[
                f"{node.name}_MatMul" if node.op_type == "Gemm" else node.name for node in last
            ],
        )
    for node in last:
        if node.op_type == "Gemm":
            _put_back(node, model, graph)


def _put_back(gemm: onnx.NodeProto, plain: onnx.ModelProto, file: Path) -> None:
    """Undo the split: the head keeps its name and shape, so that another head can replace it."""
    model = onnx.load(file)
    nodes, values = model.graph.node, model.graph.initializer
    parts = {f"{gemm.name}_MatMul", f"{gemm.name}_Add"}
    places = [place for place, node in enumerate(nodes) if node.name in parts]
    kept = [node for node in nodes if node.name not in parts]
    after = max(places) - len(places) + 1
    del nodes[:]
    nodes.extend([*kept[:after], gemm, *kept[after:]])
    weight = gemm.input[1]
    others = [value for value in values if value.name != f"{weight}_Transposed"]
    del values[:]
    values.extend([*others, *(v for v in plain.graph.initializer if v.name == weight)])
    onnx.checker.check_model(model)
    onnx.save(model, file)


def _provenance(card: cards.Card, classifier: TextClassifier, model_dir: Path) -> dict[str, Any]:
    """Where the bundle comes from, without a path of this machine."""
    weights = hashlib.sha256()
    for name in ("model.safetensors", folder.HEAD_FILE, folder.NOVELTY_FILE):
        if (model_dir / name).is_file():
            weights.update((model_dir / name).read_bytes())
    return {
        "gradsense": gradsense.__version__,
        "trained_with": card.gradsense,
        "base": Path(card.base).name if Path(card.base).is_absolute() else card.base,
        **{name: card.extra.get(name) for name in _FROM_CARD},
        "model_sha256": weights.hexdigest(),
        **{name: version(name) for name in ("torch", "onnx", "onnxruntime")},
        "opset": opset_of(classifier),
    }


def _warnings(card: cards.Card, sample: Sample | None, known: int) -> list[str]:
    warnings = []
    if sample is not None and sample.dropped:
        warnings.append(f"{sample.dropped:,} malformed lines of {sample.source} left out")
    if sample is not None and not known:
        warnings.append(
            f"no flow of {sample.source} has a label that the model knows: not calibrated on it"
        )
    if card.calibration is None and not known:
        warnings.append(
            "the model folder has no calibration: temperature 1, alarm above "
            f"{LEAST_THRESHOLD}; give labelled logs with --data to calibrate it"
        )
    normal = get_template(card.template.name).task.normal
    if normal not in card.labels:
        warnings.append(f"the model has no class '{normal}': every flow raises an alert")
    return warnings
