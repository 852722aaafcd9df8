from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradsense.models.embedded import SPECIALS, build_tokenizer

WORDS = st.lists(
    st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=8).filter(
        lambda word: word.split() == [word] and word not in SPECIALS
    ),
    min_size=1,
    max_size=30,
)


def test_ids_are_the_specials_then_the_words_in_order() -> None:
    tokenizer = build_tokenizer(["proto:tcp", "b<64", "proto:tcp", "-"], max_tokens=8)
    assert tokenizer.get_vocab() == {
        "[PAD]": 0,
        "[UNK]": 1,
        "[BOS]": 2,
        "[EOS]": 3,
        "proto:tcp": 4,
        "b<64": 5,
        "-": 6,
    }
    assert tokenizer("- proto:tcp never-seen")["input_ids"] == [6, 4, 1]


@given(WORDS)
@settings(max_examples=50, deadline=None)
def test_every_word_is_one_token_and_comes_back(words: list[str]) -> None:
    tokenizer = build_tokenizer(words, max_tokens=64)
    ids = tokenizer(" ".join(words))["input_ids"]
    assert len(ids) == len(words)
    assert tokenizer.convert_ids_to_tokens(ids) == words


@pytest.mark.parametrize("word", ["", "two words", "[PAD]", "tail "])
def test_a_word_must_be_one_word(word: str) -> None:
    with pytest.raises(ValueError, match=r"word|special"):
        build_tokenizer(["fine", word], max_tokens=8)
