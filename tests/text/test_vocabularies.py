"""Two tokenizers of one edge: the same by what ids mean, or refused by the first difference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from heredity.text.tokens import END_OF_TEXT, train_tokenizer
from heredity.text.vocabularies import check_rows, difference, notes

TEXTS = ["the cat sat on the mat"] * 50


@pytest.fixture(scope="module")
def parent() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, 300)


def child(parent: Any, change: Callable[[Any], object] = lambda _: None, end: str = END_OF_TEXT) -> Any:
    backend = Tokenizer.from_str(parent.backend_tokenizer.to_str())
    change(backend)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=end, bos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    )


def unigram(scores: dict[str, float]) -> Any:
    made = Tokenizer(models.Unigram([("<unk>", 0.0), *scores.items()], 0))
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<unk>")


def test_roles_and_tokens_of_its_own_are_told_and_allowed(parent):
    assert difference(parent, child(parent)) is None and notes(parent, child(parent)) == []
    more = child(parent, lambda backend: backend.add_special_tokens(["<|user|>", "<|bot|>"]), "<|user|>")
    assert difference(parent, more) is difference(more, parent) is None
    role, tokens = notes(parent, more)
    assert "its end token is '<|user|>', the parent's '<|endoftext|>'; the parent's end token closes" in role
    assert "it has 2 tokens that the other lacks ('<|user|>', '<|bot|>')" in tokens
    assert "the parent has 2 tokens" in notes(more, parent)[-1]


def test_the_first_difference_is_named_with_the_way_out(parent):
    other = train_tokenizer(["zwei andere Worte, viel laenger"] * 50, 300)
    cases: list[tuple[Any, Any, str]] = [
        (parent, other, r"id 257 is 'at' in the one and '.+' in the other \(\d+ of \d+ shared ids differ\)"),
        (parent, child(parent, _lower), "the normalizer is null in the one and .*Lowercase"),
        (parent, child(parent, _spaces), "the pre_tokenizer is .* and .*ByteLevel"),
        (unigram({"a": -1.0, "b": -2.0}), unigram({"a": -1.0, "b": -2.5}), r"number 2 of its scores is \['b', -2.0\]"),
        (unigram({"a": -1.0}), unigram({"a": -1.0, "ab": -0.5}), "'ab' is in the vocabulary of the other alone"),
    ]
    for one, two, words in cases:
        found = difference(one, two)
        assert found is not None and "heredity.stitch.aligned" in found
        with pytest.raises(ValueError, match=words):
            raise ValueError(found)


def _lower(backend: Any) -> None:
    backend.normalizer = normalizers.Lowercase()


def _spaces(backend: Any) -> None:
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()


def test_rows_of_the_embedding_hold_every_id_of_text(parent):
    rows = len(parent)
    check_rows(parent, rows, "model")
    check_rows(child(parent, lambda backend: backend.add_special_tokens(["<image>"])), rows, "text without images")
    with pytest.raises(
        ValueError, match=f"model: its embedding has {rows - 1} rows, and the tokenizer gives id {rows - 1}"
    ):
        check_rows(parent, rows - 1, "model")
