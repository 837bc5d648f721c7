"""A tiny random model of transformers behind the same prompts, ledger and readers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from explain.server import excerpt
from heredity.explain.endpoint import Local
from heredity.explain.language import LanguageJudge, echo_prompt
from heredity.explain.ledger import Ledger
from heredity.explain.parse import read_explanation
from heredity.explain.protocol import Answer, Failure, Request
from heredity.lm.load import load_model
from tiny import save_tiny_model

TEXTS = [excerpt(" the", " =", active={1: 3.0}), excerpt(" cat\n", "é")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("local") / "tiny", seed=3)


@pytest.fixture
def local(folder):
    found = Local(folder)
    found._model.config.max_position_embeddings = 4096
    return found


def test_greedy_answers_are_bounded_and_the_same_twice(local):
    request = Request("f", "explain", "the cat", 7)
    answer, attempts = local.complete(request)
    assert isinstance(answer, Answer) and (answer, attempts) == local.complete(request) and attempts == 1
    assert answer.finish == "length" and answer.tokens_out == 7 and answer.text


def test_expected_levels_are_those_of_the_model_s_own_logits(local, folder, tmp_path):
    with Ledger(tmp_path / "l.sqlite") as ledger:
        found = LanguageJudge(local, ledger, mode="echo").simulate("f", "x", TEXTS)
    model, tokenizer = load_model(folder), AutoTokenizer.from_pretrained(str(folder))
    prompt = echo_prompt("x", TEXTS)
    for place, level in zip(prompt.unknown, np.concatenate(found), strict=True):
        before = tokenizer(prompt.text[:place], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = model(before).logits[0, -1].double()
        digits = torch.tensor([tokenizer(str(digit), add_special_tokens=False)["input_ids"][-1] for digit in range(10)])
        expected = (logits[digits].softmax(0) * torch.arange(10)).sum()
        assert level == pytest.approx(float(expected), abs=1e-4)


def test_a_digit_that_is_no_token_of_its_own_has_no_log_probability(local):
    local._digits[4:] = [None] * 6
    prompt = echo_prompt("x", TEXTS)
    answer, _ = local.complete(Request("f", "simulate", prompt.text, 1, echo=True))
    assert "".join(answer.tokens) == prompt.text
    assert all(set(top) <= set("0123") for top in answer.top)


def test_nonsense_is_a_failure_and_is_kept(local, tmp_path):
    with Ledger(tmp_path / "l.sqlite") as ledger:
        judge = LanguageJudge(local, ledger)
        for found in (judge.explain("f", TEXTS), judge.detect("f", "x", TEXTS), judge.intruder("f", [TEXTS])):
            assert isinstance(found, Failure) and found.kind in ("unparsed", "truncated", "empty")
        assert ledger.summary().requests == 3 and ledger.summary().cost == 0


def test_a_chat_template_frames_the_prompt(local):
    request = Request("f", "explain", "the cat", 1)
    plain, _ = local.complete(request)
    local._tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}answer:"
    assert local.complete(request)[0].tokens_in > plain.tokens_in
    assert local._framed(request) == "<user>the cat" + "answer:"
    assert local._framed(request._replace(echo=True)) == "the cat"


def test_a_prompt_longer_than_the_context_is_refused(folder):
    failure, _ = Local(folder).complete(Request("f", "explain", "the cat " * 60, 20))
    assert isinstance(failure, Failure) and failure.kind == "refused" and "context of 64" in failure.detail


def test_an_explanation_is_begun_for_the_model_and_ends_with_its_first_sentence(local, monkeypatch):
    """Whatever a model goes on with, what is read is one sentence in the asked form, unless it never ends."""
    said = {"text": ""}
    monkeypatch.setattr(local._tokenizer, "decode", lambda ids, **options: said["text"])
    for goes_on, sentence, finish in (
        ('fires on "=" signs', "fires on ", "stop"),
        ("fires on digits. It reads tokens", "fires on digits", "stop"),
        ("fires on\ndigits", "fires on", "stop"),
        ("fires on digits and on", None, "length"),
    ):
        said["text"] = goes_on
        answer, _ = local.complete(Request("f", "explain", "the cat", 3))
        assert isinstance(answer, Answer) and answer.finish == finish
        read = read_explanation(answer)
        assert read == sentence.strip() if sentence else isinstance(read, Failure) and read.kind == "truncated"
