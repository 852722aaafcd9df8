"""Which client holds which flow: by capture, skewed by class, or at random."""

from __future__ import annotations

from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from gradsense.data.datasets.split import Split, dealt
from gradsense.errors import InputError

How = Literal["natural", "dirichlet", "iid"]
_Ints = NDArray[np.int64]


def partition(
    parts: Split, *, how: How = "natural", clients: int | None = None, alpha: float = 0.5, seed: int
) -> Split:
    """Add a ``client`` column to all three parts, so that a client's mix is the same in each.

    - ``natural``: one client per capture, under the capture's name.
    - ``dirichlet``: for every class the share of each client is drawn once from Dirichlet(alpha)
      and holds for all three parts: the label skew of Hsu, Qi, Brown 2019 (arXiv 1909.06335),
      drawn per class as in Yurochkin et al. 2019 (arXiv 1905.12022), so that no flow is used
      twice or left over. Small alpha: few classes a client.
    - ``iid``: flows are dealt out at random, in equal numbers.

    The drawn clients are called ``client-0001`` and so on. Each has a training flow; test and
    validation may leave a client without any.

    Raises:
        InputError: clients are missing, or more than training flows; or their number is not that
            of the captures for ``natural``.
    """
    frames = (parts.train, parts.test, parts.validation)
    if how == "natural":
        captures = parts.train["capture"].n_unique()
        if clients not in {None, captures}:
            raise InputError(
                f"{clients} clients asked for, but the data has {captures} captures",
                hint="leave the number out, or partition by dirichlet or iid",
                field="clients",
            )
        return Split(*(part.with_columns(client=pl.col("capture")) for part in frames))
    number = _checked(clients, parts.train.height)
    rng = np.random.default_rng(seed)
    if how == "dirichlet":
        classes = sorted(pl.concat([part["class"] for part in frames]).unique())
        shares = {name: rng.dirichlet(np.full(number, alpha)) for name in classes}
        held = [_by_class(part["class"], shares, rng) for part in frames]
    else:
        held = [rng.permutation(part.height).astype(np.int64) % number for part in frames]
    held[0] = _nobody_empty(held[0], number)
    clients_of = ([f"client-{k + 1:04d}" for k in owner] for owner in held)
    return Split(
        *(
            part.with_columns(pl.Series("client", names, pl.String))
            for part, names in zip(frames, clients_of, strict=True)
        )
    )


def _checked(clients: int | None, flows: int) -> int:
    if clients is None:
        raise InputError("the number of clients is missing", hint="give 1 or more", field="clients")
    if clients > flows:
        raise InputError(
            f"{clients} clients, but only {flows} training flows",
            hint="ask for fewer clients or give more data",
            field="clients",
        )
    return clients


def _by_class(
    classes: pl.Series, shares: dict[str, NDArray[np.float64]], rng: np.random.Generator
) -> _Ints:
    owner = np.zeros(len(classes), np.int64)
    for name, share in shares.items():
        rows = rng.permutation((classes == name).arg_true().to_numpy())
        owner[rows] = dealt(share, len(rows))
    return owner


def _nobody_empty(owner: _Ints, clients: int) -> _Ints:
    """Give each client without a flow one flow of the client that holds most."""
    owner = owner.copy()
    counts = np.bincount(owner, minlength=clients)
    for client in np.flatnonzero(counts == 0).tolist():
        giver = int(counts.argmax())
        owner[np.flatnonzero(owner == giver)[-1]] = client
        counts[giver] -= 1
        counts[client] += 1
    return owner
