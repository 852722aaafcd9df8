"""What a reference is: a name, the library it needs, and a way to one row of a comparison.

A ``Tabular`` reference is a classifier of single flows: it also takes its place where networks are
left out, with nothing added to its file. Libraries are imported where they are used, so that a
reference whose library is missing can still be named.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from gradsense.experiments import results

if TYPE_CHECKING:
    from gradsense.experiments.bench import Bench
    from gradsense.experiments.references.table_of_flows import FlowTable
    from gradsense.experiments.run import OnProgress
    from gradsense.learning.learner import Tensors

Mask = NDArray[np.bool_]
Probabilities = NDArray[np.floating]


@dataclass(frozen=True)
class Fitted:
    """A classifier that some sites' training flows made.

    Attributes:
        probabilities: from a mask over the table's flows [n] to class probabilities [m, classes] of
            the m flows that it marks, in their order.
        uplink_bytes: what the sites sent for it; None where flows were pooled.
    """

    probabilities: Callable[[Mask], Probabilities]
    uplink_bytes: int | None = None


#: From the sites that take part, a mask over ``FlowTable.sites``, to what their flows make.
Fit = Callable[[Mask], Fitted]


class ReferenceMethod(ABC):
    """A row that sets the scale.

    Attributes:
        name: of the row.
        rank: its place among the references; equal ranks go by name.
        library: an import that it needs beyond what every comparison has.
    """

    name: ClassVar[str]
    rank: ClassVar[int] = 1
    library: ClassVar[str | None] = None

    @abstractmethod
    def run(self, bench: Bench, on_progress: OnProgress) -> tuple[results.Row, Tensors | None]:
        """The row of one seed, and the weights of its model if it is one of ours."""

    def absent(self) -> str | None:
        """Why it cannot run here, with what to do about it; None where it can."""
        if self.library is None or find_spec(self.library) is not None:
            return None
        return (
            f"reference '{self.name}' is absent, because {self.library} is not installed: "
            "pip install 'gradsense[train]'"
        )

    def row(self, bench: Bench, **fields: object) -> results.Row:
        """A row of this name."""
        return results.Row.model_validate(
            {
                "algorithm": self.name,
                "kind": "reference",
                "seed": bench.settings.seed,
                "rounds": bench.settings.rounds,
                "synthetic": bench.corpus.synthetic,
                "leakage": bench.corpus.leakage,
                **fields,
            }
        )


class Tabular(ReferenceMethod):
    """A classifier of single flows, of the pooled flows or of what sites send of theirs."""

    @abstractmethod
    def prepare(self, table: FlowTable) -> Fit:
        """What fits the classifier. What does not depend on the sites is computed here, once."""

    def run(self, bench: Bench, on_progress: OnProgress) -> tuple[results.Row, Tensors | None]:
        from gradsense.experiments.references.table_of_flows import FlowTable
        from gradsense.experiments.run import RunProgress

        began, table = time.monotonic(), FlowTable.of(bench.corpus, bench.settings)
        fitted = self.prepare(table)(np.ones(len(table.sites), bool))
        test = fitted.probabilities(table.part("test"))
        watched = table.part("validation")
        validation = fitted.probabilities(watched if watched.any() else table.part("train"))
        row = self.row(
            bench,
            wall_s=time.monotonic() - began,
            uplink_bytes=fitted.uplink_bytes,
            alarms=bench.alarms_of(validation, test),
            **bench.verdicts(test.argmax(axis=1)),
        )
        assert row.central is not None
        on_progress(RunProgress(1.0, 0, row.central.accuracy, row.central.f1_macro))
        return row, None
