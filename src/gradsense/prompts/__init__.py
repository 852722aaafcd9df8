"""Records to text within a token budget: templates over the words of a task."""

from typing import TYPE_CHECKING

from gradsense.exports import export

if TYPE_CHECKING:
    from gradsense.prompts.templates import Template, get_template
else:
    export(__name__)

__all__ = ["Template", "get_template"]
