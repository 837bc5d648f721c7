"""Planted features are classed as what they are, shares are those of plain loops, and intervals cover."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from scipy.stats import binom

from heredity.features.acts import FeatureActs
from heredity.features.classes import (
    CATEGORIES,
    CLASSES,
    FeatureClasses,
    Text,
    class_gaps,
    class_shares,
    classify,
    language_of,
    memberships,
    spellings,
    token_categories,
)

BLOCKS, CONTEXT = 200, 12
WORDS = ["cat", " cat", " dog", " for", "the", " The", " Anna", " Bob", " in", " b", " fooBar", " not", " def", "name"]
VOCABULARY = [*WORDS, ",", ".", " (", "+", " =", "    ", "\t", "\n", "\n\n", "1", " 23", "é", "\ufffd", "<end>"]
AT = {text: number for number, text in enumerate(VOCABULARY)}
PROSE, PYTHON = 0, 1


@pytest.fixture(scope="module")
def text() -> Text:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, len(VOCABULARY), (BLOCKS, CONTEXT))
    categories = np.stack([token_categories(VOCABULARY, language, [AT["<end>"]]) for language in ("prose", "python")])
    return Text(ids, np.arange(BLOCKS) % 2, categories, spellings(VOCABULARY))


def planted(text: Text) -> dict[str, tuple[np.ndarray, str]]:
    """Where each feature fires, bool [tokens], and the class it is to get."""
    ids, rng = text.ids, np.random.default_rng(1)
    code = np.repeat(text.corpus == PYTHON, CONTEXT).reshape(ids.shape)
    after, before = np.roll(ids, 1, 1), np.roll(ids, -1, 1)
    after[:, 0] = before[:, -1] = -1
    first = np.zeros(ids.shape, bool)
    first[:, 0] = True
    some = rng.random(ids.shape) < 0.1

    def on(*texts: str) -> np.ndarray:
        return np.isin(ids, [AT[one] for one in texts])

    few = on(",") & (on(",").cumsum().reshape(ids.shape) <= 19)
    found = {
        "commas": (on(","), "punctuation"),
        "marks": (on(",", ".", " ("), "punctuation"),
        "indentation": (on("    ", "\t"), "whitespace"),
        "lines": (on("\n", "\n\n"), "line break"),
        "numbers": (on("1", " 23"), "number"),
        "equals": (on(" =", "+"), "operator"),
        "for in code": (on(" for") & code, "keyword"),
        "for in prose": (on(" for") & ~code, "single-token"),
        "keywords": (on(" for", " in", " not", " def") & code, "keyword"),
        "cats": (on("cat", " cat"), "single-token"),
        "after def": (after == AT[" def"], "previous-token"),
        "before equals": (before == AT[" ="], "next-token"),
        "commas after def": ((after == AT[" def"]) & on(","), "punctuation"),
        "names": (on(" Anna", " Bob", " The"), "capitalized"),
        "bytes": (on("é", "\ufffd"), "non-ascii"),
        "ends": (on("<end>"), "special"),
        "first": (first, "position"),
        "code": (some & code, "domain"),
        "anywhere": (some, "mixed"),
        "few commas": (few, "rare"),
        "nowhere": (few & False, "silent"),
    }
    return {name: (where.ravel(), class_) for name, (where, class_) in found.items()}


@pytest.fixture(scope="module")
def acts(text: Text) -> FeatureActs:
    """The planted features, with a tenth of their activation as noise anywhere but for the rare and the silent."""
    rng, columns = np.random.default_rng(2), []
    for where, class_ in planted(text).values():
        column = where * rng.uniform(0.5, 1.5, len(where))
        if class_ not in ("rare", "silent", "domain"):
            noise = np.flatnonzero(rng.random(len(where)) < 0.05)
            column[noise] += 0.05 * column.sum() / len(noise)
        columns.append(column)
    return FeatureActs.from_dense(np.stack(columns, 1))


@pytest.fixture(scope="module")
def found(acts: FeatureActs, text: Text) -> FeatureClasses:
    return classify(acts, text)


def test_planted_features_get_their_class(found, text):
    got = {name: CLASSES[class_] for name, class_ in zip(planted(text), found.primary, strict=True)}
    assert got == {name: class_ for name, (_, class_) in planted(text).items()}
    assert found.judged.tolist() == [class_ not in ("rare", "silent") for class_ in got.values()]


def test_flags_are_beside_the_class(found, text):
    names = list(planted(text))
    single = {name for name, flag in zip(names, found.single_token, strict=True) if flag}
    assert single == {"commas", "for in code", "for in prose", "cats", "commas after def", "ends", "few commas"}
    domain = dict(zip(names, found.domain.tolist(), strict=True))
    assert domain["code"] == domain["for in code"] == PYTHON and domain["for in prose"] == PROSE
    assert domain["commas"] == domain["anywhere"] == domain["nowhere"] == -1
    assert VOCABULARY[found.token.key[names.index("cats")]] == "cat", "both spellings are one"
    assert VOCABULARY[found.previous.key[names.index("after def")]] == " def"


def test_shares_are_those_of_plain_loops(found, acts, text):
    dense, ids, one = acts.dense().astype(np.float64), text.ids, text.spelling

    def keys(block: int, place: int) -> dict[str, int]:
        token = ids[block, place]
        made = {"token": one[token], "category": text.categories[text.corpus[block], token]}
        made |= {"position": place, "corpus": text.corpus[block]}
        made |= {"previous": one[ids[block, place - 1]]} if place else {}
        return made | ({"following": one[ids[block, place + 1]]} if place + 1 < CONTEXT else {})

    rows: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row in range(len(dense)):
        for kind, key in keys(*divmod(row, CONTEXT)).items():
            rows[kind][int(key)].append(row)
    live = dense.sum(0) > 0
    for kind, by_key in rows.items():
        most, order = getattr(found, kind), np.array(sorted(by_key))
        table = np.stack([dense[by_key[key]].sum(0) for key in order])
        best = order[table.argmax(0)]
        np.testing.assert_array_equal(most.key, np.where(live, best, -1))
        np.testing.assert_allclose(most.share[live], (table.max(0) / dense.sum(0).clip(1e-300))[live])
        np.testing.assert_allclose(most.base[live], [len(by_key[key]) / len(dense) for key in best[live]])
        assert (most.share[~live] == 0).all() and (most.base[~live] == 0).all()


def test_a_category_that_most_tokens_have_says_nothing(text):
    """All tokens but a few are lower-case words: a feature of them is mixed, though all of its activation is there."""
    ids = np.where(np.arange(BLOCKS * CONTEXT) % 10 == 0, AT[","], AT[" dog"]).reshape(BLOCKS, CONTEXT)
    ids[::2][ids[::2] == AT[" dog"]] = AT["the"]
    rng = np.random.default_rng(0)
    acts = FeatureActs.from_dense(((ids.ravel() != AT[","]) & (rng.random(ids.size) < 0.3))[:, None])
    common = classify(acts, text._replace(ids=ids, corpus=np.arange(BLOCKS) // 2 % 2))
    assert common.category.share[0] == 1 and CLASSES[common.primary[0]] == "mixed"


def test_one_corpus_is_no_domain_and_another_sample_is_refused(acts, text):
    alone = classify(acts, text._replace(corpus=np.zeros(BLOCKS, int), categories=text.categories[:1]))
    assert (alone.domain == -1).all() and (alone.corpus.share[alone.firings > 0] == 1).all()
    with pytest.raises(ValueError, match=r"ids \[199, 12\] of 200 blocks do not fit 2400"):
        classify(acts, text._replace(ids=text.ids[1:]))


@pytest.mark.parametrize(
    ("category", "texts"),
    [
        ("punctuation", [",", " .", "...", ' "', "')", "(", " {"]),
        ("operator", ["=", " +=", "->", "_", "#", "=(", "@"]),
        ("whitespace", [" ", "        ", "\t"]),
        ("line break", ["\n", "\r\n", "\n    "]),
        ("number", ["7", " 42", "3.14", "1_000", "0xff"]),
        ("non-ascii", ["é", "\ufffd", " naïve", "…"]),
        ("single letter", ["a", " B"]),
        ("identifier", ["snake_case", " camelCase", "x2", "__init__", "HTTPError"]),
        ("capitalized", ["Anna", " The"]),
        ("upper-case", ["OK", " HTTP"]),
        ("lower-case", ["cat", " dog", "'ll", "for"]),
        ("special", ["", "<end>"]),
        ("other", [".get", "(self"]),
    ],
)
def test_tokens_have_the_category_of_their_text(category, texts):
    special = [number for number, text in enumerate(texts) if text == "<end>"]
    assert {CATEGORIES[number] for number in token_categories(texts, "prose", special)} == {category}


def test_keywords_and_dashes_depend_on_the_language():
    keywords = {"python": " elif", "lua": "nil", "cpp": "typename", "javascript": "typeof", "prose": ""}
    texts = [*list(keywords.values())[:4], "-"]
    for language, keyword in keywords.items():
        expected = ["keyword" if text == keyword else "lower-case" for text in texts[:4]]
        expected += ["punctuation" if language == "prose" else "operator"]
        assert [CATEGORIES[number] for number in token_categories(texts, language)] == expected


PROSE_TEXT = "She went for a walk in the woods and then, if it did not rain, she would sleep. " * 9


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("python", "def f(self):\n    import os\n    return None if self.x else os.name"),
        ("lua", "local t = {}\nfor k, v in pairs(t) do\n  if v == nil then print(k) end\nend"),
        ("cpp", "template <typename T> const int f(T x) { static bool done; }"),
        ("javascript", "const a = require('fs'); let b = function () { return typeof a; };"),
        ("prose", PROSE_TEXT + "They import salt."),
        ("prose", ""),
    ],
)
def test_languages_are_told_from_their_words(language, text):
    assert language_of(text) == language


def test_blanks_of_different_width_are_spelled_differently():
    assert spellings(["the", " the", " ", "  ", "The", "\n", " \n"]).tolist() == [0, 0, 2, 3, 4, 5, 5]


def wilson(hits: list[int], n: int) -> np.ndarray:
    """(low, high) of each count, [2, hits]."""
    rows = class_shares({str(count): np.arange(n) < count for count in hits}, np.ones(n, bool))
    assert [row[:2] for row in rows] == [(str(count), count) for count in hits]
    return np.array([row[3:] for row in rows], float).T


def test_wilson_intervals_cover():
    for n in (20, 60):
        low, high = wilson(list(range(n + 1)), n)
        assert low[0] == 0 and high[-1] == 1 and (low <= np.arange(n + 1) / n).all()
        shares = np.linspace(0.02, 0.98, 49)
        covered = [((low <= p) & (p <= high)) @ binom.pmf(np.arange(n + 1), n, p) for p in shares]
        assert np.mean(covered) == pytest.approx(0.95, abs=0.012) and min(covered) > 0.85
    assert wilson([7], 20).ravel() == pytest.approx((0.1812, 0.5671), abs=1e-4), "a textbook value"
    assert np.isnan(wilson([0], 0)).all()


def gaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(value, low, high) of each column, [3, k], between two groups of features."""
    both, of_first = np.concatenate([first, second]), np.arange(len(first) + len(second)) < len(first)
    members = {str(k): column for k, column in enumerate(both.T)}
    return np.array([row[1:] for row in class_gaps(members, of_first, ~of_first)]).T


def test_gaps_between_groups_are_covered():
    rng, true = np.random.default_rng(0), np.array([0.4 - 0.2, 0.1 - 0.3, 0.0, 0.0])
    inside = np.zeros(4)
    for _ in range(300):
        first, second = rng.random((90, 4)) < [0.4, 0.1, 0.2, 0.01], rng.random((120, 4)) < [0.2, 0.3, 0.2, 0.01]
        value, low, high = gaps(first, second)
        assert value == pytest.approx(first.mean(0) - second.mean(0))
        inside += (low <= true) & (true <= high)
    assert (inside / 300 > 0.92).all() and (inside[:3] / 300 < 0.985).all(), "of a rare group it is wider"


def test_a_group_that_has_none_is_not_called_different_without_reason():
    def held(count: int, of: int) -> np.ndarray:
        return (np.arange(of) < count)[:, None]

    assert gaps(held(56, 70), held(48, 80)).ravel() == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4), "his example"
    _, low, high = gaps(held(0, 51), held(2, 60)).ravel()
    assert low < -0.1 and high > 0.03
    _, low, high = gaps(held(0, 51), held(12, 60)).ravel()
    assert high < 0
    assert gaps(held(0, 8), held(0, 2))[0] == 0 and gaps(held(0, 8), held(0, 2))[1] < 0
    assert np.isnan(gaps(held(1, 2), held(0, 0))).all()


def test_members_of_classes_and_groups_are_counted_among_the_judged(found, text):
    classes, groups, domains = memberships(found, {"first": "prose", "second": "python"})
    assert np.sum(list(classes.values()), axis=0).tolist() == found.judged.tolist(), "one class each"
    np.testing.assert_array_equal(groups["formatting"], classes["whitespace"] | classes["line break"])
    code = classes["operator"] | classes["keyword"] | classes["identifier"] | (found.judged & (found.domain == 1))
    np.testing.assert_array_equal(groups["code"], code)
    np.testing.assert_array_equal(groups["single-token"], found.single_token & found.judged)
    assert domains["second"].sum() == (found.judged & (found.domain == 1)).sum()
    assert memberships(found, {"first": "prose"})[2] == {}
    rows = {name: row for name, *row in class_shares(classes, found.judged)}
    assert sum(row[0] for row in rows.values()) == found.judged.sum()
    for count, share, low, high in rows.values():
        assert share == count / found.judged.sum() and low <= share <= high
    assert np.isnan([row[2:] for row in class_shares(classes, np.zeros_like(found.judged))]).all()
