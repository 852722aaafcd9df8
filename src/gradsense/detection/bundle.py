"""The edge bundle: an ONNX graph, a tokenizer and a manifest that describes them.

A fleet's later models bring a head of their own beside the graph (``detection.head``).
The manifest is read first and bounded in size; every other file is opened only after its SHA-256
is the manifest's. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gradsense.errors import GradsenseError, InputError, input_errors
from gradsense.models.card import Reference, TemplateName
from gradsense.prompts.templates import Template, get_template
from gradsense.storage import files

MANIFEST_FILE = "manifest.json"
GRAPH_FILE = "model.onnx"
TOKENIZER_FILE = "tokenizer.json"
HEAD_FILE: Final = "head.safetensors"

_MAX_MANIFEST_BYTES = 4 << 20
#: Of a graph or a tokenizer: what a gateway could ever hold in memory.
_MAX_FILE_BYTES = 2 << 30


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Tokens(_Value):
    """How prompts become the graph's ``input_ids``.

    ``words``: every phrase is one word of the vocabulary, all prompts have ``max_tokens`` tokens,
    and the graph takes no mask. ``subwords``: ``tokenizer.json`` encodes the text, cut at
    ``max_tokens`` and padded on the right with ``pad_id``, and the graph takes ``attention_mask``.
    """

    kind: Literal["words", "subwords"]
    max_tokens: int = Field(ge=1, le=512)
    pad_id: int = Field(0, ge=0)


class BundleThreshold(_Value):
    """A flow raises an alert above ``value``; ``share`` of ``flows`` benign flows of ``source``
    were above it."""

    value: float
    share: float = Field(ge=0, le=1)
    flows: int = Field(ge=0)
    source: str


class File(_Value):
    """Size and SHA-256 (hex) of a file of the bundle."""

    bytes: int = Field(ge=0, le=_MAX_FILE_BYTES)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Manifest(_Value):
    """``manifest.json``. ``format`` is the version of this layout.

    ``temperature`` divides the logits before softmax (Guo et al. 2017). ``alarm`` is the threshold
    on suspicion, 1 - p(benign) after temperature. ``novelty`` is the threshold on the graph's
    second output, and None where the graph has none. ``provenance`` and ``verified`` are for
    people to read.
    """

    format: Literal[1] = 1
    labels: tuple[str, ...] = Field(min_length=2, max_length=1000)
    template: TemplateName
    tokens: Tokens
    precision: Literal["float32", "int8"] = "float32"
    temperature: float = Field(1.0, gt=0)
    alarm: BundleThreshold
    novelty: BundleThreshold | None = None
    reference: Reference | None = None
    provenance: dict[str, Any] = {}
    verified: dict[str, Any] | None = None
    files: dict[Literal["model.onnx", "tokenizer.json", "head.safetensors"], File]

    @property
    def id(self) -> str:
        """Identifies model and thresholds in alerts: 16 hex digits of the manifest's SHA-256."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


def read(path: Path | str) -> tuple[Manifest, Template]:
    """The manifest and the template of a bundle, all files checked against their hashes.

    Raises:
        InputError: no bundle there, a file is missing, altered or too large, or the template is
            not the one that the model was trained with.
    """
    path = Path(path)
    file = path / MANIFEST_FILE
    if not file.is_file():
        raise InputError(
            "no edge bundle there (it has no manifest.json)",
            hint="make one: gradsense export --model RUN/model --out EDGE",
            file=path,
        )
    with input_errors("cannot be read", hint="check its permissions", file=file):
        if file.stat().st_size > _MAX_MANIFEST_BYTES:
            raise InputError("the manifest is too large", hint="export the bundle again", file=file)
        text = file.read_bytes()
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        fault = error.errors()[0]
        raise InputError(
            fault["msg"],
            hint="export the bundle again with this version of gradsense",
            file=file,
            field=".".join(str(part) for part in fault["loc"]) or None,
        ) from error
    for name in dict.fromkeys((GRAPH_FILE, TOKENIZER_FILE, *manifest.files)):
        _check(path / name, manifest.files.get(name))  # type: ignore[call-overload]
    return manifest, _template(manifest, file)


def write(
    path: Path | str, manifest: Manifest, parts: dict[str, Path], *, link: bool = False
) -> Manifest:
    """Write a bundle, all of it or nothing, and return the manifest with the files' hashes.

    Args:
        path: a new folder, or one that holds a bundle, which is replaced.
        manifest: its ``files`` are overwritten.
        parts: graph and tokenizer by their names in the bundle, where they lie now.
        link: make hard links to ``parts`` where the disk allows it; they must not change then.

    Raises:
        InputError: ``path`` holds something that is no bundle.
        GradsenseError: it cannot be written.
    """
    path = Path(path)
    claimable(path)
    try:
        with files.replacing(path) as fresh:
            for name, source in parts.items():
                _put(source, fresh / name, link=link)
            described = {name: describe(fresh / name) for name in parts}
            manifest = manifest.model_copy(update={"files": described})
            (fresh / MANIFEST_FILE).write_text(_text(manifest), encoding="utf-8")
    except OSError as error:
        raise GradsenseError(
            f"{path}: cannot write the bundle: {error.strerror or error}"
        ) from error
    return manifest


def _put(source: Path, file: Path, *, link: bool) -> None:
    if link:
        with suppress(OSError):  # another disk, or one without links
            os.link(source, file)
            return
    shutil.copyfile(source, file)


def claimable(path: Path) -> None:
    """Check that a bundle may be written to ``path``.

    Raises:
        InputError: it holds something that is no bundle.
    """
    empty = path.is_dir() and not any(path.iterdir())
    if path.exists() and not empty and not (path / MANIFEST_FILE).is_file():
        raise InputError(
            "it exists and is no edge bundle",
            hint="give a new path; nothing was touched",
            file=path,
        )


def rewrite_manifest(path: Path | str, manifest: Manifest) -> None:
    """Replace the manifest alone, atomically.

    Raises:
        GradsenseError: it cannot be written.
    """
    file = Path(path) / MANIFEST_FILE
    try:
        files.write(file, _text(manifest).encode(), sync=False, mode=0o644)
    except OSError as error:
        raise GradsenseError(f"{file}: cannot be written: {error.strerror or error}") from error


def _text(manifest: Manifest) -> str:
    return json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


def describe(file: Path) -> File:
    """Size and hash of a file."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return File(bytes=file.stat().st_size, sha256=digest)


def _check(file: Path, listed: File | None) -> None:
    hint = "copy the bundle again, all of its files"
    with input_errors("cannot be read", hint=hint, file=file):
        if listed is None or file.stat().st_size != listed.bytes or describe(file) != listed:
            raise InputError(
                "the file is not the one that was exported",
                hint="copy the bundle again, or export it again",
                file=file,
            )


def _template(manifest: Manifest, file: Path) -> Template:
    wanted = manifest.template
    made_by = manifest.provenance.get("gradsense", "the version that exported it")
    try:
        template = get_template(wanted.name)
    except InputError as error:
        raise InputError(
            error.what, hint=f"use gradsense {made_by}", file=file, field="template"
        ) from None
    if template.version != wanted.version:
        raise InputError(
            f"it was made for version {wanted.version} of template '{template.name}', "
            f"this gradsense has version {template.version}",
            hint=f"use gradsense {made_by} or export the model again",
            file=file,
            field="template",
        )
    return template
