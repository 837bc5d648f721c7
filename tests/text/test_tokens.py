from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from heredity.demo.stories import stories
from heredity.text.tokens import (
    BlockSampler,
    PackedTokens,
    corpus_shares,
    distinct_blocks,
    fingerprint_tokenizer,
    load_tokenizer,
    pack,
    permuted,
    train_tokenizer,
)

SIZE = 800
CODE = "def f(x):\n        return x == 12345\n    except ValueError as e:\n\tx = 'text' + \"it's\"  # naïve\n"


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [*stories(200, 0), *[CODE + str(number) for number in range(50)]]


@pytest.fixture(scope="module")
def tokenizer(texts):
    return train_tokenizer(texts, SIZE)


def packed(length: int, first: int = 0, documents: tuple[int, ...] = ()) -> PackedTokens:
    return PackedTokens(np.arange(first, first + length, dtype=np.uint32), np.array([0, *documents, length]))


# -- tokenizer ---------------------------------------------------------------------------------------------------


@given(st.text())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_survives_encoding_and_decoding(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_are_single_signs_indents_and_words_apart_and_the_special_token_the_only_one(tokenizer):
    assert tokenizer.encode("") == []
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == tokenizer.pad_token_id == 0
    assert set(tokenizer.special_tokens_map.values()) == {"<|endoftext|>"}
    assert tokenizer.decode(tokenizer.encode("a<|endoftext|> b .")) == "a<|endoftext|> b ."
    pieces = [tokenizer.decode([token]) for token in tokenizer.encode("x=1; y = 234\n        return 'text'")]
    assert "".join(pieces) == "x=1; y = 234\n        return 'text'"
    assert {"=", " =", "1", "2", "3", "4", "\n", " " * 7} <= set(pieces) and "'t" not in pieces
    assert not any(piece.strip() and "\n" in piece for piece in pieces)


def test_training_twice_and_saving_give_the_same_tokenizer(texts, tokenizer, tmp_path):
    again = train_tokenizer(iter(texts), SIZE)
    again.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert len(again) == SIZE and loaded.encode(CODE) == tokenizer.encode(CODE)
    for one in (again, loaded):
        assert fingerprint_tokenizer(one) == fingerprint_tokenizer(tokenizer)
    assert fingerprint_tokenizer(train_tokenizer(texts, 500)) != fingerprint_tokenizer(tokenizer)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda _: train_tokenizer([], 600), "no text to train a tokenizer on"),
        (lambda _: train_tokenizer(["x"], 256), "vocab_size=256 is less than"),
        (lambda folder: load_tokenizer(str(folder)), "cannot be loaded"),
    ],
)
def test_what_cannot_become_a_tokenizer_is_refused(tmp_path, call, message):
    with pytest.raises(ValueError, match=message):
        call(tmp_path)


def test_code_that_a_tokenizer_ships_runs_only_when_trusted(tokenizer, tmp_path, monkeypatch):
    folder = tmp_path / "shipped"
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer"] * 2}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text('{"model_type": "own"}')
    code = f"open({str(tmp_path / 'ran')!r}, 'w').close()"
    own = "from transformers import PreTrainedTokenizerFast\nclass OwnTokenizer(PreTrainedTokenizerFast):\n    pass\n"
    (folder / "own.py").write_text(f"{code}\n{own}")  # a class of its own: transformers marks it as one to be copied
    monkeypatch.setattr("builtins.input", lambda _: "y")
    with pytest.raises(ValueError, match=r"tokenizer .*shipped: it ships code.*trust_remote_code = true"):
        load_tokenizer(str(folder))
    assert not (tmp_path / "ran").exists()
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    loaded = load_tokenizer(str(folder), trust_remote_code=True)
    assert (tmp_path / "ran").exists()
    assert fingerprint_tokenizer(loaded) == fingerprint_tokenizer(tokenizer)


# -- packing -----------------------------------------------------------------------------------------------------


def test_packed_documents_decode_to_the_texts_and_end_in_end_of_text(tokenizer, texts, tmp_path):
    texts = [*texts, "a<|endoftext|>b"]  # inside a text it is no document boundary
    found = pack(iter(texts), tokenizer, tmp_path / "new")
    assert found.tokens.dtype == np.uint16 and isinstance(found.tokens, np.memmap)
    assert len(found.documents) == len(texts) + 1
    for text, start, stop in zip(texts, found.documents[:-1], found.documents[1:], strict=True):
        assert tokenizer.decode(found.tokens[start : stop - 1]) == text
    assert np.flatnonzero(found.tokens == tokenizer.eos_token_id).tolist() == (found.documents[1:] - 1).tolist()
    assert tokenizer.encode("<|endoftext|>") == [0]  # the caller's tokenizer is left as it was


def test_tokens_do_not_depend_on_the_batches_and_take_four_bytes_in_a_large_vocabulary(
    tokenizer, texts, tmp_path, monkeypatch
):
    whole = pack(texts, tokenizer, tmp_path / "whole")
    monkeypatch.setattr("heredity.text.tokens._BATCH_CHARACTERS", 1)
    single = pack(texts, tokenizer, tmp_path / "single")
    assert np.array_equal(whole.tokens, single.tokens) and np.array_equal(whole.documents, single.documents)
    monkeypatch.setattr(type(tokenizer), "get_vocab", lambda _: {"beyond": 2**16})
    assert pack(["hello"], tokenizer, tmp_path).tokens.dtype == np.uint32


def test_counts_and_blocks_are_those_of_the_tokens(tokenizer, texts, tmp_path):
    found = pack(texts, tokenizer, tmp_path)
    counts = found.counts(900)
    assert counts.shape == (900,) and counts[0] == len(texts) and counts.sum() == len(found.tokens)
    assert found.n_blocks(24) == len(found.tokens) // 24
    assert np.array_equal(found.block(3, 24), found.tokens[72:96])
    with pytest.raises(IndexError, match="block -1 of"):
        found.block(-1, 24)
    with pytest.raises(ValueError, match="is not below vocab_size=10; tokenizers differ"):
        found.counts(10)


def test_packs_that_are_missing_or_do_not_fit_are_refused(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="packed tokens cannot be read"):
        PackedTokens.open(tmp_path)
    empty = pack([], tokenizer, tmp_path)
    assert len(empty.tokens) == 0 and empty.documents.tolist() == [0]
    np.save(tmp_path / "documents.npy", np.array([0, 99]))
    with pytest.raises(ValueError, match=r"documents\.npy does not end at the"):
        PackedTokens.open(tmp_path)


# -- order -------------------------------------------------------------------------------------------------------


@given(st.integers(1, 3000), st.integers(0, 2**40))
@settings(deadline=None, max_examples=60)
def test_an_order_is_a_permutation(size, key):
    assert np.array_equal(np.sort(permuted(np.arange(size), size, (key,))), np.arange(size))


def test_an_order_depends_on_its_key_and_not_on_the_places_evaluated():
    assert permuted(np.arange(10), 10, (0,)).tolist() == [6, 0, 2, 4, 9, 8, 7, 5, 3, 1], "the same on every machine"
    whole = permuted(np.arange(1000), 1000, (1, 2))
    assert [int(permuted(np.array([place]), 1000, (1, 2))[0]) for place in range(0, 1000, 97)] == whole[::97].tolist()
    assert not np.array_equal(whole, permuted(np.arange(1000), 1000, (1, 3)))
    assert abs(np.corrcoef(whole, np.arange(1000))[0, 1]) < 0.1
    with pytest.raises(ValueError, match="places 0 to 5 are outside a permutation of 5"):
        permuted(np.array([0, 5]), 5, (0,))


def test_orders_of_few_are_uniform():
    drawn = np.stack([permuted(np.arange(4), 4, (key,)) for key in range(6000)])
    _, counts = np.unique(drawn @ [64, 16, 4, 1], return_counts=True)
    assert len(counts) == 24
    assert ((counts - 250) ** 2 / 250).sum() < 60  # chi-squared with 23 degrees of freedom: beyond 60 is 1 in 30,000


# -- sampler -----------------------------------------------------------------------------------------------------

PACKS = {"long": packed(10 * 730 + 3), "short": packed(10 * 41, first=100_000)}


@pytest.mark.parametrize("shares", [None, {"long": 0.3, "short": 0.7}])
def test_any_split_of_a_range_gives_the_same_blocks_and_origin_says_where_each_lies(shares):
    sampler = BlockSampler(PACKS, 10, 5, shares)
    whole = sampler.take(0, 25_000)
    assert whole.dtype == np.int64
    assert whole.shape == (25_000, 10)
    for start, stop in [(0, 0), (0, 1), (700, 900), (9_990, 10_010), (24_999, 25_000), (3, 21_000)]:
        assert np.array_equal(BlockSampler(PACKS, 10, 5, shares).take(start, stop), whole[start:stop])
        assert np.array_equal(sampler.take(start, stop), whole[start:stop])
    assert not np.array_equal(BlockSampler(PACKS, 10, 6, shares).take(0, 100), whole[:100])
    corpora, offsets = sampler.origin(50, 950)
    for block, corpus, offset in zip(whole[50:950], corpora, offsets, strict=True):
        assert np.array_equal(block, PACKS[sampler.names[corpus]].tokens[offset : offset + 10])
    assert not (offsets % 10).any()


def test_blocks_know_the_document_they_begin_in():
    two = {"a": packed(40, documents=(3, 11)), "b": packed(20, 100, (10,))}
    sampler = BlockSampler(two, 5, seed=0)
    found = dict(zip(sampler.take(0, 12)[:, 0].tolist(), sampler.documents(0, 12).tolist(), strict=True))
    assert found == {0: 0, 5: 1, 10: 1, **dict.fromkeys(range(15, 40, 5), 2), 100: 3, 105: 3, 110: 4, 115: 4}


def test_without_shares_a_pass_is_every_block_of_the_union_once():
    sampler = BlockSampler(PACKS, 10, 5)
    assert sampler.names == ("long", "short")
    assert (size := sampler.blocks_per_pass) == 730 + 41
    first, second = sampler.take(0, 2 * size)[:, 0].reshape(2, size)
    every = np.concatenate([np.arange(0, 7300, 10), np.arange(100_000, 100_410, 10)])
    assert np.array_equal(np.sort(first), every) and np.array_equal(np.sort(second), every)
    assert not np.array_equal(first, second)


def test_with_shares_each_corpus_goes_through_its_own_passes():
    sampler = BlockSampler(PACKS, 10, 5, {"long": 0.3, "short": 0.7})
    corpora, offsets = sampler.origin(0, 12_000)
    for corpus, size in enumerate((730, 41)):
        mine = offsets[corpora == corpus] // 10
        passes = mine[: len(mine) // size * size].reshape(-1, size)
        assert len(passes) > 3
        assert np.array_equal(np.sort(passes, axis=1), np.tile(np.arange(size), (len(passes), 1)))
        assert len({tuple(row) for row in passes.tolist()}) == len(passes)


def test_shares_are_those_of_the_tokens_and_hold_early_on():
    packs = {**PACKS, "third": packed(1000)}
    sampler = BlockSampler(packs, 10, 5, {"third": 1, "long": 1, "short": 2})
    corpora, _ = sampler.origin(0, 40_000)
    assert np.bincount(corpora).tolist() == [10_000, 20_000, 10_000]
    assert np.allclose(np.bincount(corpora[:1000]) / 1000, [0.25, 0.5, 0.25], atol=0.06)


@pytest.mark.parametrize(
    ("packs", "shares", "message"),
    [
        ({}, None, "no corpus"),
        ({"tiny": packed(9)}, None, "corpus tiny: 9 tokens do not fill one block of context_size=10"),
        (PACKS, {"long": 1.0}, "must be positive and name the corpora long, short"),
        (PACKS, {"long": 1.0, "short": 0.0}, "must be positive"),
        (PACKS, {"long": 1.0, "short": 1e-6}, "share of short is below 1/10000"),
        (PACKS, None, "blocks 5 to 3 are no range"),
    ],
)
def test_samplers_that_cannot_be_are_refused(packs, shares, message):
    with pytest.raises(ValueError, match=message):
        BlockSampler(packs, 10, 0, shares).take(5, 3)


def test_blocks_of_a_short_corpus_do_not_count_twice():
    packs = {"short": packed(40), "long": packed(4000, 1000)}
    sampler = BlockSampler(packs, 8, 1, {"short": 0.5, "long": 0.5})
    blocks = distinct_blocks(sampler, 800)
    assert len(np.unique(blocks[:, 0])) == len(blocks) and (blocks[:, 0] < 1000).sum() == 5
    assert 30 < len(blocks) < 70 and len(distinct_blocks(sampler, 10**6)) <= sampler.blocks_per_pass
    shares = corpus_shares(sampler, 800)
    assert list(shares) == list(sampler.names) and sum(shares.values()) == pytest.approx(1)
    assert sorted(shares.values())[0] == pytest.approx(5 / len(blocks)), "the corpus that is short"
