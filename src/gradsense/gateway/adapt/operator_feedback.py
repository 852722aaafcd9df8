"""What operators say of alerts: it silences at once, and it is training data for later."""

from __future__ import annotations

import numpy as np
import polars as pl

from gradsense.gateway.store import GatewayStore
from gradsense.prompts.templates import Template
from gradsense.tasks.task import get_task


def silenced(journal: GatewayStore) -> frozenset[tuple[str, bytes]]:
    """(device, prompt) pairs of alerts called benign. Exactly these flows ring no more."""
    normal = get_task().normal
    return frozenset(
        (word.device, prompt) for word, prompt, _ in journal.examples() if word.label == normal
    )


def training_data(journal: GatewayStore, template: Template) -> pl.DataFrame:
    """Labelled prompts: columns ``text``, ``class`` and ``flows``, how many read so.

    A prompt whose shape is not the template's, from an earlier model, is left out. What is in
    here is closed-vocabulary text; it stays at the site all the same.
    """
    width = len(template.fields)
    sizes = np.array([len(field.phrases) for field in template.fields])
    rows = []
    for word, prompt, flows in journal.examples():
        phrase_ids = np.frombuffer(prompt, np.uint16)
        if len(phrase_ids) == width and (phrase_ids < sizes).all():
            rows.append((template.texts(phrase_ids.reshape(1, -1))[0], word.label, flows))
    schema = {"text": pl.String, "class": pl.String, "flows": pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row")
