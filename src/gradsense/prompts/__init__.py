"""Records to text within a token budget: templates over the words of a task."""

from gradsense.exports import TYPE_CHECKING, export

__all__ = ["Template", "get_template"]
export(__name__)
if TYPE_CHECKING:
    from gradsense.prompts.templates import Template, get_template
