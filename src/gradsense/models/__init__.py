"""Small language models with a classification head: build, tokenize, save and load."""

from typing import TYPE_CHECKING

from gradsense.exports import export

if TYPE_CHECKING:
    from gradsense.models.card import Card
    from gradsense.models.classifier import TextClassifier
else:
    export(__name__)

__all__ = ["Card", "TextClassifier"]
