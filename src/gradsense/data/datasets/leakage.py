"""How much of a test set training has seen: printed beside every result."""

from __future__ import annotations

from dataclasses import dataclass, fields

import polars as pl


@dataclass(frozen=True)
class Leakage:
    """Shares of the test flows, 0..1, of which training has seen the same.

    Attributes:
        text: prompt, word for word.
        compact: text of the template ``compact``, which has nothing of the flows before.
        host: originating address in the same capture. One address in two captures is two hosts:
            private ranges are the same everywhere.
        capture: capture.
    """

    text: float
    compact: float
    host: float
    capture: float


_KEYS = {
    "text": ("text",),
    "compact": ("compact",),
    "host": ("capture", "orig_h"),
    "capture": ("capture",),
}


def leakage(train: pl.DataFrame, test: pl.DataFrame) -> Leakage:
    """Compare the parts of a split, with columns ``text, compact, capture, orig_h``.

    An empty test set has seen nothing: all shares are 0.
    """
    seen = {}
    for field in fields(Leakage):
        keys = list(_KEYS[field.name])
        known = test.join(train.select(keys).unique(), on=keys, how="semi", nulls_equal=True)
        seen[field.name] = known.height / test.height if test.height else 0.0
    return Leakage(**seen)


def sentence(found: Leakage) -> str:
    """The same for people.

    >>> sentence(Leakage(0.5, 0.925, 1, 1))
    'Of the test flows, training saw the text of 50.0 %, the compact text of 92.5 %, the host of \
100.0 %, the capture of 100.0 %.'
    """
    return (
        f"Of the test flows, training saw the text of {100 * found.text:.1f} %, the compact text "
        f"of {100 * found.compact:.1f} %, the host of {100 * found.host:.1f} %, the capture of "
        f"{100 * found.capture:.1f} %."
    )
