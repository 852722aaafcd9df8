"""Compare algorithms (Table III), evaluate models, write reports."""

from typing import TYPE_CHECKING

from gradsense.exports import export

if TYPE_CHECKING:
    from gradsense.experiments.results import Row
else:
    export(__name__)

__all__ = ["Row"]
