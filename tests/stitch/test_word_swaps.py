"""Rewrites keep the structure and none of the meaning; structural and semantic features are told apart by them."""

from __future__ import annotations

import re

import numpy as np
import pytest

from heredity.stitch.word_swaps import FUNCTION_WORDS, Lexicon, read_lexicon, rewrites, snippets, split_features

DOCUMENTS = [
    "The old sailor slowly mended the net. She saw the harbor and will repair an engine.",
    "The green garden is very quiet. He saw the flower and they want to water the roses gladly.",
    "A young doctor wanted to examine the patient. The doctor quickly opened the case. It hurts the patients.",
    "The tall teacher asked Martha to read the story. Martha smiled. She likes an apple and the books.",
    "My small brother was sleeping. A hungry cat chased the mouse in the kitchen. Then Peter opened the window.",
    "The king ruled a happy land. We asked Peter to carry the sword. He was running to the castle.",
]


@pytest.fixture(scope="module")
def lexicon() -> Lexicon:
    return read_lexicon(DOCUMENTS, least=1)


def test_kinds_are_guessed_by_ending_and_place(lexicon: Lexicon):
    kinds = {"sailor": "noun", "roses": "nouns", "hungry": "adjective", "slowly": "adverb", "repair": "verb"}
    kinds |= {"saw": "past", "likes": "verbs", "mended": "ed", "running": "ing", "peter": "name"}
    assert {word: lexicon.kind[word] for word in kinds} == kinds


def test_function_words_and_rare_words_are_no_part_of_a_lexicon(lexicon: Lexicon):
    assert not FUNCTION_WORDS & set(lexicon.kind)
    assert {"saw", "doctor"} <= set(read_lexicon(DOCUMENTS, least=2).kind) < set(lexicon.kind)
    assert "sailor" not in read_lexicon(DOCUMENTS, least=2).kind
    with pytest.raises(ValueError, match="no content word occurs 9 times"):
        read_lexicon(DOCUMENTS, least=9)


TEXT = "The OLD sailor's net, in 1905, was 7 feet; an engine hurt the sailor. Then Martha smiled\n\tslowly!"


def test_a_rewrite_swaps_content_words_and_keeps_all_else(lexicon: Lexicon):
    versions = rewrites(TEXT, lexicon, k=5, seed=3)
    assert len(set(versions)) == 5
    shape = re.compile(
        r"The [A-Z]+ (\w+)'s [a-z]+, in [1-9]\d{3}, was [1-9] [a-z]+; an [aeiou]\w+ [a-z]+ the (\w+)\. "
        r"Then [A-Z][a-z]+ [a-z]+ed\n\t[a-z]+ly!"
    )
    gone = {"OLD", "sailor", "net", "1905", "engine", "Martha", "smiled", "slowly"}
    for version in versions:
        found = shape.fullmatch(version)
        assert found and found[1] == found[2], version  # one stand-in for one word
        assert not gone & set(re.findall(r"\w+", version))


def test_stand_ins_come_from_documents_that_the_word_is_not_in_and_follow_from_the_seed(lexicon: Lexicon):
    (version,) = rewrites("the doctor", lexicon, k=1, seed=0)
    other = version.split()[1]
    assert lexicon.kind[other] == "noun" and not lexicon.documents[other] & lexicon.documents["doctor"]
    assert rewrites(TEXT, lexicon, 2, 1) == rewrites(TEXT, lexicon, 4, 1)[:2] != rewrites(TEXT, lexicon, 2, 2)


def test_signs_and_words_of_a_kind_without_others_stay(lexicon: Lexicon):
    assert rewrites("'' … _“’\r\n 007", lexicon, 1, 0)[0].startswith("'' … _“’\r\n 0")
    assert rewrites("", lexicon, 1) == [""]
    alone = read_lexicon(["the king"], least=1)
    assert rewrites("the king, the queen", alone, 1) == ["the king, the queen"]


def test_features_on_punctuation_are_structural_and_one_on_a_word_is_semantic(lexicon: Lexicon):
    """Features that fire on the comma, the word `the`, the word `doctor`, any noun of the medical documents, nothing,
    and everywhere."""
    prompts = [
        "The doctor smiled, and the king saw the sword.",
        "A patient, not the teacher, opened the case.",
        "The doctor asked Peter to carry an apple.",
        "In the garden, the cat was sleeping.",
    ]
    medical = {"doctor", "patient", "case", "patients"}

    def features(text: str) -> list[bool]:
        words = set(re.findall(r"\w+", text.lower()))
        return ["," in text, "the" in words, "doctor" in words, bool(words & medical), False, True]

    fired = np.array([[features(v) for v in (text, *rewrites(text, lexicon, 5, 0))] for text in prompts])
    split = split_features(fired)
    assert split.structural.tolist() == [True, True, False, False, False, True]
    assert split.semantic.tolist() == [False, False, True, True, False, False]
    assert split.prompts.tolist()[:2] == [3, 4] and split.prompts[4] == 0
    assert split.share[0] == split.share[5] == 1 and split.share[2] == 0 and np.isnan(split.share[4])
    # Firing everywhere explains itself; firing on the comma of three prompts of four does not.
    assert split.by_chance[5] == 1 and 0.1 < split.by_chance[0] < 0.2


def test_shares_are_intersections_over_unions():
    rng = np.random.default_rng(0)
    fired = rng.random((30, 3, 8)) < np.linspace(0.1, 0.95, 8)
    split = split_features(fired, threshold=0.3)
    for i in range(8):
        either = [prompt for prompt in fired[:, :, i] if prompt.any()]
        assert split.prompts[i] == len(either)
        assert split.share[i] == pytest.approx(np.mean([prompt.all() for prompt in either]))
        assert split.structural[i] == (split.share[i] >= 0.3) != split.semantic[i]
    # These features fire by chance.
    np.testing.assert_allclose(split.share, split.by_chance, atol=0.2)


def test_snippets_are_different_sentences():
    texts = ["One two three four five. Too short. " + "word " * 80, "One two three four five."]
    texts.append("six\nseven eight nine ten")
    some = snippets(texts, 10, seed=0)
    assert sorted(map(len, map(str.split, some))) == [5, 5, 60] and len(set(some)) == 3
    assert "six\nseven eight nine ten" in some, "white space stays as it is"
    assert snippets(texts, 2, seed=0) == some[:2] != snippets(texts, 2, seed=1)
    with pytest.raises(ValueError, match="no held-out text has a sentence of 5 words"):
        snippets(["two words"], 3, seed=0)
