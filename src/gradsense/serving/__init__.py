"""A larger model behind HTTP, which gateways ask about their unsure verdicts."""

from gradsense.exports import TYPE_CHECKING, export

__all__ = ["LargerModel", "create_app"]
export(__name__)
if TYPE_CHECKING:
    from gradsense.serving.server import LargerModel, create_app
