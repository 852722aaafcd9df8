"""Model folders: the Hugging Face layout plus ``gradsense.json``.

``AutoModelForSequenceClassification`` and ``AutoTokenizer`` open such a folder as it is;
``gradsense.json`` adds what gradsense needs to feed it flows: labels and prompt template. A model
with a head of our own (``models.heads.readout``) has its base in that layout, for ``AutoModel``,
and the head beside it, and where sufficient statistics were gathered also the novelty score
(``models.heads.influence``).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import gradsense
from gradsense.errors import GradsenseError, InputError, first_line
from gradsense.models.build import base_of, quiet_transformers
from gradsense.models.card import Card, Measured, ReadoutCard, TemplateName
from gradsense.models.classifier import TextClassifier
from gradsense.models.heads.influence import SketchedInfluence
from gradsense.models.heads.readout import Readout
from gradsense.prompts.templates import Template, get_template
from gradsense.storage.files import replacing

CARD_FILE = "gradsense.json"
HEAD_FILE = "head.safetensors"
NOVELTY_FILE = "novelty.safetensors"
_FILES = (CARD_FILE, "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")

#: A JSON file of a model folder is small; a larger one is damaged or hostile.
_MAX_JSON_BYTES = 4 << 20
_MAX_TOKENIZER_BYTES = 128 << 20
_MAX_HEAD_BYTES = 64 << 20


def save(
    classifier: TextClassifier,
    path: Path | str,
    *,
    measured: Measured | None = None,
    score: SketchedInfluence | None = None,
    extra: dict[str, Any] | None = None,
) -> None:
    """Write a model folder, all of it or nothing.

    LoRA adapters are merged into a copy of the base, so that the folder needs no PEFT and the
    classifier goes on training unchanged. A model folder already at ``path`` is replaced.

    Args:
        measured: calibration, thresholds and the reference of drift, for the card.
        score: the novelty score, if the model has one.
        extra: more JSON values for the card: scores, the training command.

    Raises:
        InputError: ``path`` holds something that is no model folder.
        GradsenseError: it cannot be written.
    """
    path, model = Path(path), classifier.model
    empty = path.is_dir() and not any(path.iterdir())
    if path.exists() and not (path / CARD_FILE).is_file() and not empty:
        raise InputError(
            f"it exists and is no model folder (no {CARD_FILE})",
            hint="give a new path; nothing was overwritten",
            file=path,
        )
    card = Card(
        labels=classifier.labels,
        template=TemplateName(name=classifier.template.name, version=classifier.template.version),
        base=classifier.base,
        lora_rank=classifier.lora_rank,
        readout=ReadoutCard(kind=model.kind, length=model.length)
        if isinstance(model, Readout)
        else None,
        gradsense=gradsense.__version__,
        **dict(measured or Measured()),
        extra=extra or {},
    )
    try:
        with replacing(path) as fresh:
            with quiet_transformers():
                _plain_model(classifier).save_pretrained(fresh)
                if isinstance(model, Readout):
                    save_file(model.score.state_dict(), fresh / HEAD_FILE)
                if score is not None:
                    save_file(score.state_dict(), fresh / NOVELTY_FILE)
                classifier.tokenizer.save_pretrained(fresh)
            _open_to_others(fresh)
            text = json.dumps(card.model_dump(), indent=2, ensure_ascii=False, allow_nan=False)
            (fresh / CARD_FILE).write_text(text + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:  # a full disk is either
        reason = getattr(error, "strerror", None) or first_line(error)
        raise GradsenseError(f"{path}: cannot write the model: {reason}") from error


def read_card(path: Path | str) -> Card:
    """The card of a model folder. Raises InputError for a missing or damaged one."""
    path = Path(path)
    if not path.is_dir():
        raise InputError(
            "no such model folder", hint="give the folder that training wrote", file=path
        )
    for name in _FILES:
        file = path / name
        if not file.is_file():
            raise InputError(
                f"the model folder lacks {name}",
                hint="give a folder that gradsense wrote, or write it again",
                file=path,
            )
        limit = _MAX_TOKENIZER_BYTES if name == "tokenizer.json" else _MAX_JSON_BYTES
        if file.suffix == ".json" and file.stat().st_size > limit:
            raise InputError(
                f"the file is larger than {limit >> 20} MiB",
                hint="write the folder again",
                file=file,
            )
    try:
        return Card.model_validate_json((path / CARD_FILE).read_bytes())
    except ValidationError as error:
        fault = error.errors()[0]
        raise InputError(
            fault["msg"],
            hint="write the folder again with this version of gradsense",
            file=path / CARD_FILE,
            field=".".join(str(part) for part in fault["loc"]) or None,
        ) from error


def load(path: Path | str) -> TextClassifier:
    """Open a model folder that ``save`` wrote. All of its weights train if it is trained on.

    Raises:
        InputError: the folder or a file is missing or damaged, labels and weights disagree, or
            the prompt template is not the one that the model was trained with.
    """
    path = Path(path)
    card = read_card(path)
    template = _template(card, path)
    try:
        with quiet_transformers():
            # Under a head of our own the library's stays unused, but its base is the right one:
            # AutoModel would add a pooler to some families.
            network, info = AutoModelForSequenceClassification.from_pretrained(
                str(path),
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        tokenizer = AutoTokenizer.from_pretrained(
            str(path), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the libraries below raise anything on a damaged file
        raise InputError(
            f"cannot open the model: {first_line(error)}", hint="write the folder again", file=path
        ) from error
    if tokenizer.pad_token is None:
        raise InputError(
            "the tokenizer has no padding token",
            hint="write the folder again",
            file=path / "tokenizer_config.json",
        )
    below = "" if card.readout is None else f"{network.base_model_prefix}."
    missing = [key for key in info["missing_keys"] if key.startswith(below)]
    if missing:
        raise InputError(
            f"the weights lack {len(missing)} tensors of config.json, {min(missing)} first",
            hint="write the folder again",
            file=path / "model.safetensors",
        )
    if network.config.num_labels != len(card.labels):
        raise InputError(
            f"{len(card.labels)} labels, but the model answers {network.config.num_labels}",
            hint="write the folder again",
            file=path / CARD_FILE,
            field="labels",
        )
    if card.readout is not None:
        network = _with_head(base_of(network), card.readout, len(card.labels), path)
    return TextClassifier(network, tokenizer, labels=card.labels, template=template, base=str(path))


def load_score(path: Path | str, classifier: TextClassifier) -> SketchedInfluence | None:
    """The novelty score that lies beside a model, None where there is none.

    Raises:
        InputError: it is damaged, or of another model.
    """
    file = Path(path) / NOVELTY_FILE
    if not file.is_file():
        return None
    with _readable(file, "novelty score"):
        if not isinstance(classifier.model, Readout):
            raise ValueError("the model has no head of our own, whose features it would read")
        found = _bounded(file)
        rows = len(found.get("projection.bias", ()))
        score = SketchedInfluence(classifier.model.features_per_prompt, rows)
        _fill(score, found)
        if score.sharpness.item() <= 0:
            raise ValueError("its sharpness is not positive")
        return score


def _with_head(base: nn.Module, card: ReadoutCard, classes: int, path: Path) -> Readout:
    """The base with the head that lies beside it."""
    file = path / HEAD_FILE
    with _readable(file, "head"):
        model = Readout(base, kind=card.kind, length=card.length, classes=classes, frozen=False)
        _fill(model.score, _bounded(file))
    return model


def _fill(module: nn.Module, found: dict[str, torch.Tensor]) -> None:
    """Give a module these tensors. Raises ValueError where they are not its own."""
    wanted = {name: tensor.shape for name, tensor in module.state_dict().items()}
    shapes = {name: tensor.shape for name, tensor in found.items()}
    if shapes != wanted:
        raise ValueError(f"it holds {_shapes(shapes)}, not {_shapes(wanted)}")
    module.load_state_dict(found)


def _bounded(file: Path) -> dict[str, torch.Tensor]:
    """The finite tensors of a small file. Raises ValueError, OSError, SafetensorError."""
    if file.stat().st_size > _MAX_HEAD_BYTES:
        raise ValueError(f"larger than {_MAX_HEAD_BYTES >> 20} MiB")
    tensors = load_file(file)
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise ValueError("it holds NaN or infinity")
    return tensors


@contextmanager
def _readable(file: Path, what: str) -> Iterator[None]:
    """Whatever is wrong with a file of tensors as one line for people."""
    try:
        yield
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise InputError(
            f"the {what} cannot be read: {first_line(error)}",
            hint="write the folder again",
            file=file,
        ) from error


def _shapes(tensors: dict[str, torch.Size]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in sorted(tensors.items()))


def _plain_model(classifier: TextClassifier) -> Any:
    """The Hugging Face model itself, adapters merged."""
    model: Any = classifier.model
    if isinstance(model, Readout):
        return model.base
    if classifier.lora_rank is None:
        return model
    # On a copy: taking a merge back leaves rounding errors in the base weights.
    return copy.deepcopy(model).merge_and_unload()


def _open_to_others(folder: Path) -> None:
    """Undo what two libraries do that keeps others from opening the folder."""
    # safetensors makes its file private, though a service may run as another user.
    for weights in folder.glob("*.safetensors"):
        weights.chmod((folder / "config.json").stat().st_mode)
    # Releases of transformers before 5 know the same class by its older name only.
    file = folder / "tokenizer_config.json"
    text = file.read_text(encoding="utf-8")
    file.write_text(
        text.replace('"TokenizersBackend"', '"PreTrainedTokenizerFast"'), encoding="utf-8"
    )


def _template(card: Card, path: Path) -> Template:
    try:
        template = get_template(card.template.name)
    except InputError as error:
        raise InputError(
            error.what,
            hint=f"use gradsense {card.gradsense} or train the model again",
            file=path / CARD_FILE,
            field="template",
        ) from None
    if template.version != card.template.version:
        raise InputError(
            f"the model was trained with version {card.template.version} of template "
            f"'{template.name}', this gradsense has version {template.version}",
            hint=f"use gradsense {card.gradsense} or train the model again",
            file=path / CARD_FILE,
        )
    return template
