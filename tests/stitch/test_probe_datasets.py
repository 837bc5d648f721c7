"""LabeledTexts sets are balanced, without repeats, and split by document."""

from __future__ import annotations

import numpy as np
import pytest

from heredity.stitch.probe_datasets import (
    LabelError,
    balanced,
    binary_tasks,
    labeled,
    looks_like_a_test,
    looks_like_code,
    mostly_code,
)

PROSE = [f"The cat number {i} sat on the mat.\nIt slept there for {i} days, and nobody minded it." for i in range(30)]
PYTHON = [f"import os\n\ndef f{i}(x):\n    y = x + {i}\n    return y\n" for i in range(40)]
TESTS = [f"import pytest\n\ndef test_f{i}():\n    y = f({i})\n    assert y == {i}\n" for i in range(20)]
LUA = [f"local x = {i}\nfunction M.go(a)\n  x = a + 1\n  return x\nend\n" for i in range(25)]
CORPORA = {"stories": PROSE, "python": PYTHON + TESTS, "lua": LUA}


def test_texts_come_with_the_corpus_they_are_from_as_many_of_each():
    found = labeled(CORPORA, "origin", seed=1)
    assert found.names == ("stories", "python", "lua")
    assert np.bincount(found.y).tolist() == [25, 25, 25]
    assert all(text in CORPORA[found.names[label]] for text, label in zip(found.texts, found.y, strict=True))
    assert np.bincount(found.y[found.test]).tolist() == [6, 6, 6]
    assert len(set(found.texts)) == len(found.texts)
    assert len(set(found.y[:12].tolist())) > 1  # in random order
    again, other = labeled(CORPORA, "origin", seed=1), labeled(CORPORA, "origin", seed=2)
    assert again.texts == found.texts != other.texts and np.array_equal(again.y, found.y)


@pytest.mark.parametrize(
    ("task", "names", "inside"), [("kind", ("code", "prose"), PROSE), ("test", ("other", "test"), TESTS)]
)
def test_texts_of_two_kinds_are_told_apart(task, names, inside):
    found = labeled(CORPORA, task)
    of = found.names.index(names[1])
    assert set(found.names) == set(names) and np.bincount(found.y).tolist() == [len(inside)] * 2
    assert all((text in inside) == (label == of) for text, label in zip(found.texts, found.y, strict=True))


def test_languages_are_the_corpora_of_code():
    assert labeled(CORPORA, "language").names == ("python", "lua")
    with pytest.raises(LabelError, match="only lua look like code; give two"):
        labeled({"stories": PROSE, "lua": LUA}, "language")


def test_code_is_known_by_its_lines_and_tests_by_their_marks():
    assert [looks_like_code(text) for text in (PROSE[0], PYTHON[0], LUA[0], "")] == [False, True, True, False]
    assert mostly_code(PYTHON + PROSE) and not mostly_code(PYTHON[:30] + PROSE) and not mostly_code([])
    assert not looks_like_a_test("-- the latest test results\nlocal it = describe")
    assert looks_like_a_test("describe('a stack', function()\nend)")


def test_repeats_count_once_and_what_two_classes_share_counts_for_none():
    shared, a = ["in both"], [f"a {i}" for i in range(12)]
    twice = a + [text.upper() + "  " for text in a]
    found = balanced({"a": twice + shared, "b": [f"b {i}" for i in range(12)] + shared})
    assert len(found.texts) == 24 and "in both" not in found.texts
    # What is equal in the part that is used is a repeat.
    with pytest.raises(LabelError, match="class 'a' has 1 different texts of its own, 10 are needed"):
        balanced({"a": ["same start " * 200 + str(i) for i in range(20)], "b": a})


@pytest.mark.parametrize(
    ("groups", "options", "says"),
    [
        ({"a": map(str, range(20))}, {}, "only a was given"),
        ({}, {}, "no class was given"),
        ({"a": map(str, range(20)), "b": map(str, range(30, 35))}, {}, "class 'b' has 5 different"),
        ({"a": map(str, range(20)), "b": map(str, range(30, 50))}, {"held_out": 0.01}, "leaves nothing"),
    ],
)
def test_a_set_that_cannot_be_made_says_why(groups, options, says: str):
    with pytest.raises(LabelError, match=says):
        balanced(groups, **options)


def test_one_class_against_the_rest_is_balanced_too():
    every = labeled(CORPORA, "origin")
    tasks = binary_tasks(every, seed=0)
    assert list(tasks) == ["stories", "python", "lua"]
    for name, (texts, y, test) in tasks.items():
        assert np.bincount(y).tolist() == [25, 25] and np.bincount(y[test]).tolist() == [6, 6]
        assert np.array_equal(y, every.y[texts] == every.names.index(name))
        assert np.array_equal(test, every.test[texts]) and len(set(texts.tolist())) == 50
    two = labeled(CORPORA, "kind")
    ((texts, y, _),) = binary_tasks(two, seed=0).values()
    assert np.array_equal(y, two.y == 1) and np.array_equal(texts, np.arange(len(two.texts)))
