"""Small language models with a classification head: build, tokenize, save and load."""

from gradsense.exports import TYPE_CHECKING, export

__all__ = ["Card", "TextClassifier"]
export(__name__)
if TYPE_CHECKING:
    from gradsense.models.card import Card
    from gradsense.models.classifier import TextClassifier
