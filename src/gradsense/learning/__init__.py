"""One device's own training, and how well a model does."""

from gradsense.exports import TYPE_CHECKING, export

__all__ = [
    "Examples", "FleetStatistics", "FlowCost", "Learner", "LocalLearner", "Observed", "Scores",
    "Trained", "Trainer", "observed",
]  # fmt: skip
export(__name__)
if TYPE_CHECKING:
    from gradsense.learning.learner import FlowCost, Learner, Observed, Trained
    from gradsense.learning.metrics import Scores
    from gradsense.learning.statistics import FleetStatistics, observed
    from gradsense.learning.trainer import Examples, LocalLearner, Trainer
