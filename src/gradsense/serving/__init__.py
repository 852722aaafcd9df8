"""A larger model behind HTTP, which gateways ask about their unsure verdicts."""

from typing import TYPE_CHECKING

from gradsense.exports import export

if TYPE_CHECKING:
    from gradsense.serving.server import LargerModel, create_app
else:
    export(__name__)

__all__ = ["LargerModel", "create_app"]
