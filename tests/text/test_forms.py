"""Dialogues through the chat template, token ids through their tokenizer, and how many tokens are unknown."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from heredity.study import CorpusConfig
from heredity.text.corpora import documents, form_of
from heredity.text.readers import CorpusError
from heredity.text.sources import Account
from heredity.text.tokens import BlockSampler, PackedTokens, pack, train_tokenizer, unknown_tokens

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] | trim }}{{ '<|end|>' }}{% endfor %}"
)
PARTS = "{% for m in messages %}<|{{ m['role'] }}|>{% for p in m['content'] %}{{ p['text'] }}{% endfor %}{% endfor %}"
DEAF = "{% for m in messages %}<|{{ m['role'] }}|>{% endfor %}"


@pytest.fixture
def tokenizer():
    made = train_tokenizer(["the cat sat on the mat; a dog ran " * 50], 300)
    made.add_tokens([AddedToken(one, special=True) for one in ("<|user|>", "<|assistant|>", "<|end|>")])
    made.chat_template = TEMPLATE
    return made


def talks(count: int) -> list[dict]:
    said = [("user", "the cat {} sat"), ("assistant", "on the mat {}"), ("user", "and {}?"), ("assistant", "a dog {}")]
    return [{"messages": [{"role": who, "content": what.format(n)} for who, what in said]} for n in range(count)]


def read(folder, name, rows, tokenizer=None, **settings):
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), folder / name)
    else:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    account = Account()
    config = CorpusConfig(source=f"local:{name}", **settings)
    return list(documents(config, 0, folder, lambda: tokenizer, account)), account, form_of(config, folder)


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_dialogues_are_rendered_and_know_what_the_assistant_says(tmp_path, tokenizer, name):
    found, account, form = read(tmp_path, name, talks(20), tokenizer)
    first = (
        "<|user|>the cat 0 sat<|end|><|assistant|>on the mat 0<|end|><|user|>and 0?<|end|><|assistant|>a dog 0<|end|>"
    )
    assert found[0].text == first  # without the beginning-of-text token that the template wrote
    spans = found[0].spans
    assert [first[a:b] for a, b in zip(spans[::2], spans[1::2], strict=True)] == ["on the mat 0", "a dog 0"]
    assert account.form == form == "chat" and len(found) == 20
    packed = pack((one.text for one in found), tokenizer, tmp_path / "tokens", dialogues=True)
    counts = packed.counts(len(tokenizer))
    markers = [tokenizer.convert_tokens_to_ids(one) for one in ("<|user|>", "<|assistant|>", "<|end|>")]
    assert counts[markers].tolist() == [40, 40, 80]
    assert len(packed.documents) == 21 and packed.dialogues


def test_a_message_without_content_is_named(tmp_path, tokenizer):
    rows = [*talks(1), {"messages": [{"role": "user"}]}]
    for given in ({}, {"format": "chat"}):
        with pytest.raises(CorpusError, match="line 2: message 1 has role, and lacks role or content"):
            read(tmp_path, "a.jsonl", rows, tokenizer, **given)


def test_only_what_the_assistant_says_is_sampled(tmp_path, tokenizer):
    found, _, _ = read(tmp_path, "a.jsonl", talks(20), tokenizer)
    packed = pack(found, tokenizer, tmp_path / "tokens", dialogues=True, roles="assistant")
    assert packed.spoken is not None
    said = [packed.tokens[start:stop][packed.spoken[start:stop]] for start, stop in pairwise(packed.documents)]
    assert [tokenizer.decode(ids) for ids in said] == [f"on the mat {n}a dog {n}" for n in range(20)]
    blocks = BlockSampler({"talks": packed}, 16, 0).take(0, 4)
    assert np.ma.is_masked(blocks) and tokenizer.convert_tokens_to_ids("<|user|>") not in blocks.compressed()
    every = pack(found, tokenizer, tmp_path / "all", dialogues=True)
    assert np.array_equal(np.ma.getdata(blocks), BlockSampler({"talks": every}, 16, 0).take(0, 4))
    with pytest.raises(ValueError, match='roles = "assistant", but the texts hold no word of the assistant'):
        pack(["no dialogue"], tokenizer, tmp_path / "none", roles="assistant")


def test_a_dialogue_that_fits_is_whole_in_a_block(tmp_path, tokenizer):
    lengths = np.random.default_rng(0).integers(3, 30, 200)
    lengths[50] = 100  # longer than a block
    tokens = np.repeat(np.arange(200, dtype=np.uint16), lengths)
    packed = PackedTokens(tokens, np.concatenate([[0], np.cumsum(lengths)]), dialogues=True)
    sampler = BlockSampler({"talks": packed}, 32, 1)
    blocks = sampler.take(0, sampler.blocks_per_pass)
    whole = {number for block in blocks for number in block if (block == number).sum() == lengths[number]}
    assert whole >= set(range(199)) - {50} and (blocks == 50).sum() >= 96
    assert sampler.blocks_per_pass == packed.n_blocks(32) < 1.5 * len(tokens) / 32
    first = sampler.origin(0, sampler.blocks_per_pass)[1]
    assert np.array_equal(tokens[first], blocks[:, 0]) and sorted(sampler.documents(0, len(blocks))) == sorted(
        blocks[:, 0]
    )
    assert np.array_equal(np.sort(first), [packed.offsets(np.array(at), 32) for at in range(packed.n_blocks(32))])


def test_dialogues_come_under_other_names_and_as_parts(tmp_path, tokenizer):
    shares = [{"conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "the cat"}]}]
    plain = "<|user|>hello<|end|><|assistant|>the cat<|end|>"
    assert read(tmp_path, "a.jsonl", shares, tokenizer)[0][0].text == plain
    parts = [{"messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]}]
    assert read(tmp_path, "a.jsonl", parts, tokenizer)[0][0].text == "<|user|>hello<|end|>"
    tokenizer.chat_template = PARTS  # writes nothing of a content that is a string
    assert read(tmp_path, "a.jsonl", shares, tokenizer)[0][0].text == "<|user|>hello<|assistant|>the cat"


def test_dialogues_without_a_template_or_lost_in_it_are_refused(tmp_path, tokenizer):
    tokenizer.chat_template = DEAF
    with pytest.raises(CorpusError, match="line 1: the chat template leaves out what a message says"):
        read(tmp_path, "a.jsonl", talks(1), tokenizer)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(CorpusError, match=r"line 1: the chat template refuses the dialogue \(roles must alternate\)"):
        read(tmp_path, "a.jsonl", talks(1), tokenizer)
    tokenizer.chat_template = None
    for given in (tokenizer, None):
        with pytest.raises(CorpusError, match="needs a tokenizer with a chat template; load one"):
            read(tmp_path, "a.jsonl", talks(1), given)
    with pytest.raises(CorpusError, match='column "messages" is a list of messages, not text; set format = "chat"'):
        read(tmp_path, "a.jsonl", talks(1), tokenizer, column="messages", format="text")


def test_a_limit_of_bytes_never_cuts_a_dialogue(tmp_path, tokenizer):
    found, *_ = read(tmp_path, "a.jsonl", talks(20), tokenizer, max_bytes=500)
    assert found and all(one.text.endswith("<|end|>") for one in found) and sum(len(one.text) for one in found) <= 500


def test_turn_markers_in_plain_text_stay_tokens_and_ends_of_text_do_not(tmp_path, tokenizer):
    text = "<|user|>the cat<|end|><|endoftext|>"
    plain = pack([text], tokenizer, tmp_path / "plain").tokens
    assert {tokenizer.convert_tokens_to_ids("<|user|>"), tokenizer.convert_tokens_to_ids("<|end|>")} < set(plain)
    assert (np.asarray(plain) == tokenizer.eos_token_id).sum() == 1  # the one that ends the document
    assert tokenizer.decode(plain[:-1]) == text


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_token_ids_are_read_by_their_tokenizer_and_no_other(tmp_path, tokenizer, name):
    texts = [f"the cat {number} sat on the mat" for number in range(20)]
    ids = [tokenizer(text)["input_ids"] for text in texts]
    joined = [{"input_ids": [*ids[0], tokenizer.eos_token_id, *ids[1]]}, *({"input_ids": one} for one in ids[2:])]
    found, account, form = read(tmp_path, name, joined, tokenizer, format="ids")
    assert [one.text for one in found] == texts and account.form == form == "ids"
    single = [{"input_ids": tokenizer.convert_tokens_to_ids(list("thecatsatonthemat"))}]  # as one of letters writes it
    with pytest.raises(CorpusError, match=r"token ids of another tokenizer: .* come out of their own text again; load"):
        read(tmp_path, name, single, tokenizer, format="ids")
    with pytest.raises(CorpusError, match="token ids of another tokenizer: 5000 is beyond this one's 278"):
        read(tmp_path, name, [{"input_ids": [*ids[0], 5000]}], tokenizer, column="input_ids", format="ids")
    for settings in ({}, {"column": "input_ids"}):  # whose ids they are is for the user to say
        with pytest.raises(CorpusError, match='(row|line) 1: holds token ids, not text; set format = "ids"'):
            read(tmp_path, name, joined, tokenizer, **settings)


def test_unknown_tokens_are_counted_and_a_text_of_them_is_refused(tmp_path):
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"[UNK]": 0, "<end>": 1, "cat": 2}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", eos_token="<end>")
    packed = pack(["cat cat cat γάτα"], tokenizer, tmp_path / "few")
    assert unknown_tokens(packed, tokenizer) == 1 and len(packed.tokens) == 5
    with pytest.raises(ValueError, match=r"75% of the tokens are \[UNK\], the unknown token"):
        pack(["γάτα η γάτα"], tokenizer, tmp_path / "most")
