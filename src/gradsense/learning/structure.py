"""Whether a factor can be that of sufficient statistics: S = RᵀR over rows [x, 1, one-hot y].

A label may be a lie and a flow invented; nothing here can see that. What this ensures is that a
site's part weighs no more than the flows that it says it has read. Every flow counts once in the
constant and once in its label. And a base that ends in a normalisation, as they all do, gives no
token a state much longer than another's, so one flow cannot be as long as a thousand.

A factor travels rounded and without its faintest directions, and is honest for all that. With e
the most that a column of R is off by, and t the largest eigenvalue that was left out, an entry
S_ij is off by at most e (√S_ii + √S_jj) + e² + t. numpy only: a coordinator needs no torch.
"""

from __future__ import annotations

import math

import numpy as np

from gradsense.errors import InconsistentStatistics
from gradsense.learning.learner import Array

#: No honest factor of a state's largest square goes so far beyond it, however it was rounded.
_ROUNDED = 16.0
#: float32's own rounding, as a share of the largest value.
_FLOAT32 = 2.0**-21


def check_structure(
    factor: Array,
    samples: int,
    classes: int,
    *,
    off: float,
    tolerance: float,
    state_width: int = 0,
    state_length: float = math.inf,
) -> None:
    """Check that a factor can be that of so many flows, or of fewer.

    Args:
        factor: R, [rows, d + 1 + classes].
        samples: flows that it is said to be of.
        classes: how many of its last columns are labels.
        off: no value is further from the site's own, as the codec rounds.
        tolerance: of ``statistics.factorise``.
        state_width: features are so many values of one token's state after another; 0: not known.
        state_length: the largest squared length of a state of the base.

    Raises:
        InconsistentStatistics: it cannot.
    """
    rows = factor.astype(np.float64)
    off += _FLOAT32 * float(np.abs(rows).max())
    column = off * math.sqrt(len(rows))  # e
    # Rounding moves the largest direction, too.
    loudest = math.sqrt(np.square(rows).sum(axis=1).max()) + off * math.sqrt(rows.shape[1])
    left_out = (tolerance * loudest) ** 2  # t
    counts = rows[:, -classes - 1 :]  # of the constant, then of each label
    products = counts.T @ counts
    roots = np.sqrt(np.diag(products))
    slack = column * (roots[:, None] + roots) + column**2 + left_out
    flows, flows_slack = float(products[0, 0]), float(slack[0, 0])
    if max(len(rows), flows) > samples + flows_slack:
        raise InconsistentStatistics(f"statistics of {flows:.4g} flows, where it read {samples}")
    # A flow has one label: Σ_c y_c - 1 is zero in every row, whatever directions were left out.
    if np.linalg.norm(counts[:, 1:].sum(axis=1) - counts[:, 0]) > (classes + 1) * column:
        raise InconsistentStatistics("the labels do not add up to the flows")
    expected = np.diag(np.diag(products))
    expected[0] = expected[:, 0] = np.diag(products)
    # What is expected is off, too.
    if (np.abs(products - expected) > slack + np.diag(slack)).any():
        raise InconsistentStatistics("flows with several labels, or with less than none")
    if not state_width:
        return
    squares = np.square(rows[:, : -classes - 1]).sum(axis=0)
    states = np.add.reduceat(squares, np.arange(0, len(squares), state_width))
    block = off * math.sqrt(len(rows) * state_width)
    most = state_length * (flows + flows_slack) + 2 * block * np.sqrt(states) + block**2
    # Rounding is measured by what was sent: of features without flows it would allow anything.
    most = np.minimum(most, _ROUNDED * state_length * flows)
    if (states > most).any():
        which = int(np.argmax(states / most))
        raise InconsistentStatistics(
            f"state {which + 1} has a square of {states[which]:.4g} over {flows:.4g} flows; "
            f"one of the base has {state_length:.4g} at most"
        )
