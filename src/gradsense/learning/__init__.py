"""One device's own training, and how well a model does."""

from typing import TYPE_CHECKING

from gradsense.exports import export

if TYPE_CHECKING:
    from gradsense.learning.learner import FlowCost, Learner, Observed, Trained
    from gradsense.learning.metrics import Scores
    from gradsense.learning.statistics import FleetStatistics, observed
    from gradsense.learning.trainer import Examples, LocalLearner, Trainer
else:
    export(__name__)

__all__ = [
    "Examples",
    "FleetStatistics",
    "FlowCost",
    "Learner",
    "LocalLearner",
    "Observed",
    "Scores",
    "Trained",
    "Trainer",
    "observed",
]
