"""The envelope of an update."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gradsense.simulation.simulator import encode
from tests.support.toys import decoded, update

TENSORS = st.dictionaries(
    st.text("abc.", min_size=1, max_size=8),
    arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 3))),
    min_size=1,
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(TENSORS, st.text(max_size=20), st.integers(0, 1 << 40))
def test_plain_is_exact(delta: dict[str, np.ndarray], client: str, sequence: int) -> None:
    sent = update(client, sequence=sequence, delta=delta, score=0.25)
    got = decoded(encode(sent), sent.delta)
    assert (got.client, got.sequence, got.score) == (client, sequence, 0.25)
    assert got.delta.keys() == delta.keys()
    for name, value in delta.items():
        assert got.delta[name].dtype == np.float32
        assert got.delta[name].tobytes() == value.tobytes()  # NaN bits too
