"""Positions that a hypothesis is about, by text, pattern, script and function."""

from __future__ import annotations

import numpy as np
import pytest

from heredity.features.predicates import Hypothesis, hits, of_script

TEXTS = ["=", " =", "==", "7", " 42", "άβ", " Ω1", "Ωx", "x", "\ufffd", "数字", "\u0301"]
IDS = np.arange(len(TEXTS)).reshape(2, 6)


def chosen(**hypothesis) -> list[str]:
    """The texts that fit, found at the positions they stand at."""
    found = hits(Hypothesis(**hypothesis), IDS, TEXTS)
    assert found.mask.tolist() == found.vocabulary.tolist()
    return [text for text, fits in zip(TEXTS, found.mask, strict=True) if fits]


def test_tokens_patterns_and_scripts_choose_whole_tokens():
    assert chosen(tokens=["=", " =", "absent"]) == ["=", " ="]
    assert chosen(regex=r" ?\d+") == ["7", " 42"]
    assert chosen(script="Greek") == ["άβ", " Ω1"]
    assert chosen(script="latin") == ["x"]
    assert chosen(script="CJK") == ["数字"]


def test_a_script_is_the_whole_first_word_of_a_name_and_needs_a_letter():
    assert not of_script("12 +", "Digit") and not of_script("α", "Gre")


def test_a_predicate_sees_place_and_context():
    def after_equals(ids: np.ndarray, texts: list[str]) -> np.ndarray:
        found = np.zeros(ids.shape, bool)
        found[:, 1:] = ids[:, :-1] == texts.index("=")
        return found

    ids = np.array([[0, 3, 0], [4, 0, 5]])
    found = hits(Hypothesis(predicate=after_equals), ids, TEXTS)
    assert found.vocabulary is None
    assert found.mask.tolist() == [False, True, False, False, False, True]


def test_a_predicate_cannot_change_the_sample():
    def greedy(ids: np.ndarray, texts: list[str]) -> np.ndarray:
        ids[:] = 0
        texts.clear()
        return ids == 0

    before = IDS.copy()
    hits(Hypothesis(predicate=greedy), IDS, TEXTS)
    assert (before == IDS).all() and len(TEXTS) == 12


@pytest.mark.parametrize(
    ("answer", "said"),
    [(IDS, r"int64 \[2, 6\]"), (np.ones(12, bool), r"bool \[12\]"), ([True], "list")],
)
def test_a_predicate_with_another_answer_is_refused(answer, said):
    with pytest.raises(ValueError, match=rf"returned {said}; return a numpy array of bool \[2, 6\]"):
        hits(Hypothesis(predicate=lambda ids, texts: answer), IDS, TEXTS)


@pytest.mark.parametrize(
    ("hypothesis", "said"), [(Hypothesis(), "gives nothing"), (Hypothesis(["="], "="), "gives tokens and regex")]
)
def test_none_or_several_are_refused(hypothesis, said):
    with pytest.raises(ValueError, match=f"{said}; give one of tokens, regex, script, predicate"):
        hits(hypothesis, IDS, TEXTS)
