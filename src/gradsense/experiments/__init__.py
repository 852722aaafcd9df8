"""Compare algorithms (Table III), evaluate models, write reports."""

from gradsense.exports import TYPE_CHECKING, export

__all__ = ["Row"]
export(__name__)
if TYPE_CHECKING:
    from gradsense.experiments.results import Row
