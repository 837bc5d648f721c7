"""Texts of tokens as they stand within a text, and letters that are several tokens."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from heredity.features.hypothesis import Hypothesis, hits
from heredity.text.letters import letters
from heredity.text.tokens import token_texts, train_tokenizer

TEXT = "猫坐在垫子上。γάτα ☕ cat"


@pytest.fixture(scope="module")
def pieces() -> PreTrainedTokenizerFast:
    """As SentencePiece makes them: a space is part of the word behind it, bytes stand in for unknown letters; the id
    299 is a gap before the last token."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    words = ["▁", "=", "▁=", "a", "▁a", "x", "▁x", "1"]
    vocabulary |= {word: 259 + place for place, word in enumerate(words)} | {"▁far": 300}
    core = Tokenizer(
        models.BPE(vocabulary, [("▁", "="), ("▁", "a"), ("▁", "x")], unk_token="<unk>", byte_fallback=True)
    )
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    decoder = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    core.decoder = decoders.Sequence(decoder)
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def test_letters_of_several_tokens_are_whole_and_the_text_is_joined_from_them():
    tokenizer = train_tokenizer(["the cat sat " * 99], 300)
    texts = token_texts(tokenizer)
    ids = tokenizer(TEXT)["input_ids"]
    found = letters([texts[number] for number in ids])
    assert "".join(found) == TEXT and len(found) == len(ids) > len(TEXT)
    assert found[:3] == ["", "", "猫"]
    assert letters([texts[number] for number in ids[:2]]) == ["", "<0xE7><0x8C>"]  # cut short: bytes by their value
    assert letters([texts[number] for number in ids[2:6]])[0] == "<0xAB>"
    assert not any("\ufffd" in text for text in texts)


def test_spaces_bytes_and_gaps_of_sentencepiece(pieces):
    texts = token_texts(pieces)
    of = {token: texts[number] for token, number in pieces.get_vocab().items()}
    assert (of["="], of["▁="], of["a"], of["▁a"], of["</s>"]) == ("=", " =", "a", " a", "</s>")
    assert len(texts) == 301 and texts[299] == "#299" and of["▁far"] == " far"
    ids = pieces("a =猫", add_special_tokens=False)["input_ids"]
    assert "".join(letters([texts[number] for number in ids])) == " a =猫"


def test_hypotheses_mark_the_tokens_of_a_sign_and_of_a_script(pieces):
    texts = token_texts(pieces)
    ids = np.array([pieces("x =1 猫", add_special_tokens=False)["input_ids"]])
    tokens = [pieces.convert_ids_to_tokens(int(one)) for one in ids[0]]

    def marked(**hypothesis) -> list[str]:
        return [
            token for token, one in zip(tokens, hits(Hypothesis(**hypothesis), ids, texts).mask, strict=True) if one
        ]

    assert marked(tokens=[" ="]) == ["▁="] and marked(tokens=["="]) == []
    assert marked(script="CJK") == ["<0xE7>", "<0x8C>", "<0xAB>"]
    assert marked(strings=["猫"]) == ["<0xAB>"] and marked(script="latin") == ["▁x"]
    found = hits(Hypothesis(strings=["猫"]), ids, texts)
    assert found.unigram == pytest.approx((1 / len(tokens)) ** 3)
