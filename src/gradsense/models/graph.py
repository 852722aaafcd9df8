"""A trained classifier as one ONNX graph, so that a gateway runs it without torch.

Inputs: ``input_ids`` int64 [n, length], and ``attention_mask`` of the same shape where prompts are
padded. Outputs: ``logits`` float32 [n, classes] and, with a novelty score, ``novelty`` float32 [n].
A head of our own (``models.heads.readout``) adds ``features`` float32 [n, d], what that head reads,
so that a device computes a site's sufficient statistics without torch; a run that asks for no
features does not compute them. The head's initialisers are ``model.score.weight`` [classes, d] and
``model.score.bias`` [classes], so that onnxruntime can take another head in their place.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from onnx.numpy_helper import from_array
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import nn

from gradsense.errors import GradsenseError, first_line
from gradsense.models.classifier import TextClassifier
from gradsense.models.heads.influence import SketchedInfluence
from gradsense.models.heads.last_token import applies_to, last_token_logits
from gradsense.models.heads.readout import Readout

#: The name of the head's bias, as of every parameter: its place in ``Graph``.
_HEAD_BIAS = "model.score.bias"
#: The first that every operator of the exporter is written for, and the first with an operator for
#: attention, which is a third faster than its parts. Not every family's attention fits it.
_OPSET, _OPSET_ATTENTION = 18, 23


class Graph(nn.Module):
    """What is exported: the classifier's own forward pass, and the score beside it."""

    def __init__(self, classifier: TextClassifier, score: SketchedInfluence | None) -> None:
        super().__init__()
        self.model, self.score = classifier.model, score
        self.eval()

    @property
    def outputs(self) -> list[str]:
        """What ``forward`` gives, in its order."""
        novelty = [] if self.score is None else ["novelty"]
        return ["logits", *novelty, *(["features"] if isinstance(self.model, Readout) else [])]

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> Any:
        """The values that ``outputs`` names; logits alone where that is all."""
        model = self.model
        if isinstance(model, Readout):
            features = model.features(input_ids, attention_mask)
            logits = model.score(features)
            if self.score is None:
                return logits, features
            return logits, self.score(features, logits), features
        if applies_to(model):
            lengths = None if attention_mask is None else attention_mask.sum(dim=1)
            return last_token_logits(model, input_ids, lengths)
        return model(input_ids=input_ids, attention_mask=attention_mask).logits


def reads_words(classifier: TextClassifier) -> bool:
    """Whether every phrase of the template is one token, so that ids can be looked up by phrase.

    So it is with the embedded models: all prompts have one length and none is padded.
    """
    template, backend = classifier.template, classifier.tokenizer.backend_tokenizer
    return (
        template.length is not None
        and template.length == len(template.fields) <= classifier.max_tokens
        and isinstance(backend.model, WordLevel)
        and isinstance(backend.pre_tokenizer, WhitespaceSplit)
        and backend.normalizer is None
        and backend.num_special_tokens_to_add(False) == 0
    )


def opset_of(classifier: TextClassifier) -> int:
    """The version of ONNX's operators that its graph is written with."""
    return _OPSET_ATTENTION if reads_words(classifier) else _OPSET


def write_graph(
    classifier: TextClassifier, path: Path, *, score: SketchedInfluence | None = None
) -> None:
    """Write the ONNX file, weights inside, for any number of prompts at once.

    Args:
        classifier: without adapters, as ``folder.load`` gives it.
        path: the file.
        score: novelty; only where the head is of our own (``models.heads.readout``).

    Raises:
        GradsenseError: torch cannot export this model.
    """
    length = classifier.template.length if reads_words(classifier) else None
    rows: Any = torch.export.Dim.DYNAMIC
    if length is not None:
        inputs = {"input_ids": torch.zeros((2, length), dtype=torch.int64)}
        shapes: dict[str, Any] = {"input_ids": {0: rows}}
    else:
        ids = torch.full((2, min(7, classifier.max_tokens)), _harmless_id(classifier))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        shapes = {name: {0: rows, 1: rows} for name in inputs}
    graph = Graph(classifier, score)
    try:
        with quiet(), torch.inference_mode():
            program = torch.onnx.export(
                graph,
                kwargs=inputs,
                dynamo=True,
                opset_version=opset_of(classifier),
                dynamic_shapes=shapes,
                input_names=list(inputs),
                output_names=graph.outputs,
                verbose=False,
            )
            assert program is not None
            model = _anonymous(program.model_proto)
            if isinstance(classifier.model, Readout):
                _name_bias(model, classifier.model)
            path.write_bytes(model.SerializeToString())
    except Exception as error:  # the exporter lets through whatever any layer of it raises
        config: Any = classifier.model.config
        cause = error.__cause__ or error  # the exporter's own text is advice to its developers
        raise GradsenseError(
            f"torch cannot export a model of kind '{config.model_type}': {first_line(cause)}"
        ) from error


def _harmless_id(classifier: TextClassifier) -> int:
    """A token that is no padding: some heads look for the first pad."""
    return int(classifier.tokenizer.pad_token_id == 0)


def _name_bias(model: Any, readout: Readout) -> None:
    """Give the head its bias back: the exporter leaves out one of zeros, as untrained heads have,
    and then no other can take its place."""
    head = next(node for node in model.graph.node if "logits" in node.output)
    if head.op_type == "Gemm" and len(head.input) == 2:
        head.input.append(_HEAD_BIAS)
        bias = readout.score.bias.detach().numpy()
        model.graph.initializer.append(from_array(bias, _HEAD_BIAS))


def _anonymous(model: Any) -> Any:
    """Without the exporter's notes: they name this machine's files and outweigh small layers."""
    for part in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    model.ClearField("metadata_props")
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporter's news about its own insides."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
