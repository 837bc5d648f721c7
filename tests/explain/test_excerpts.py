"""Excerpts are what they are said to be, and what explains a feature never scores it."""

from __future__ import annotations

import numpy as np
import pytest

from explain.planted import ASSIGN, FEATURES, NOISE, RARE, VOCABULARY, World, drawn_of, world
from heredity.explain.excerpts import Recipe, choose, draw, priorities, selection, split
from heredity.explain.protocol import quantized
from heredity.features.correlate import Matches


@pytest.fixture(scope="module")
def found() -> World:
    return world()


def test_every_excerpt_holds_the_activations_of_a_dense_reference(found: World):
    dense = found.acts.dense().reshape(*found.text.ids.shape, FEATURES)
    for feature in set(range(FEATURES)) - {RARE}:
        drawn = drawn_of(found, feature)
        for excerpt in (*drawn.explaining, *drawn.scoring, *drawn.silent):
            values, size = dense[excerpt.block, :, feature], len(excerpt.ids)
            windows = np.lib.stride_tricks.sliding_window_view(found.text.ids[excerpt.block], size)
            starts = np.flatnonzero((windows == excerpt.ids).all(1)).tolist()
            assert any(np.allclose(values[at : at + size], excerpt.values) for at in starts)
            assert excerpt.tokens == tuple(VOCABULARY[token] for token in excerpt.ids)
            assert 9 <= size <= 17 and 0 <= excerpt.center < size
        # No block gives excerpts to both sides.
        explaining = {excerpt.block for excerpt in drawn.explaining}
        scoring = {excerpt.block for excerpt in (*drawn.scoring, *drawn.silent)}
        assert explaining and scoring and not explaining & scoring
        assert found.text.explains[list(explaining)].all() and not found.text.explains[list(scoring)].any()


def test_each_kind_is_what_it_is_called_and_as_many_as_asked(found: World):
    recipe = Recipe(top=4, interval=2, random=3, elsewhere=6, silent=5)
    drawn = draw(found.text, *found.columns.of(NOISE), recipe)
    assert drawn is not None
    for side in (drawn.explaining, drawn.scoring):
        by_kind = {kind: [e for e in side if e.kind == kind] for kind in ("top", "interval", "random", "elsewhere")}
        top, lower = by_kind["top"], by_kind["interval"]
        assert (len(top), len(by_kind["random"]), len(by_kind["elsewhere"])) == (4, 3, 6)
        firing = [excerpt.block for excerpt in (*top, *lower)]
        assert len(set(firing)) == len(firing), "one a block"
        strongest, weaker = (np.array([e.values[e.center] for e in kind]) for kind in (top, lower))
        levels = quantized(weaker, strongest.max()).tolist()
        assert (weaker > 0).all() and weaker.max() <= strongest.min()
        assert all(levels.count(level) <= 2 and level < 9 for level in levels)
    assert len(drawn.silent) == 5 and not any(excerpt.values.any() for excerpt in drawn.silent)
    rows, values = found.columns.of(NOISE)
    assert drawn.highest == values[found.text.explains[rows // 24]].max()


def test_elsewhere_shows_the_tokens_that_activate_a_feature_most(found: World):
    excerpts = [excerpt for excerpt in drawn_of(found, ASSIGN).explaining if excerpt.kind == "elsewhere"]
    assert len(excerpts) == 10 and {excerpt.tokens[excerpt.center] for excerpt in excerpts} == {"=", " ="}


def test_the_same_seed_draws_the_same_and_another_one_does_not(found: World):
    places = [[(e.block, e.center) for e in drawn_of(found, NOISE, seed).scoring] for seed in (1, 1, 2)]
    assert places[0] == places[1] != places[2]


def test_features_too_rare_on_either_side_are_none(found: World):
    assert draw(found.text, *found.columns.of(RARE)) is None
    context = found.text.ids.shape[1]
    rows = np.flatnonzero(np.repeat(found.text.explains, context))[:50]
    assert draw(found.text, rows, np.ones(50)) is None


def test_a_text_that_cannot_be_dealt_is_refused():
    with pytest.raises(ValueError, match=r"shape \(1, 4\); two blocks"):
        split(np.zeros((1, 4), int), ["a"], 0)
    with pytest.raises(ValueError, match="from 0 to 3, the vocabulary to 1"):
        split(np.array([[0, 1], [3, 0]]), ["a", "b"], 0)


def matches(child: list[int], r: list[float]) -> Matches:
    """By the child's features."""
    match, value = np.array(child)[:, None], np.array(r)[:, None]
    return Matches(match, value, match, value, np.ones(len(child)), np.ones(len(child)), 10)


def test_features_share_the_number_of_the_match_that_they_descend_from():
    counting = {
        ("a", "b"): matches([2, -1, 0], [0.9, np.nan, 0.9]),
        ("a", "c"): matches([1, 1, -1], [0.8, 0.9, np.nan]),
        ("b", "c"): matches([0, -1, 1], [0.9, np.nan, 0.7]),
    }
    found = priorities([("a", "b"), ("a", "c"), ("b", "c")], counting, {"a": 3, "b": 3, "c": 3}, 0)
    assert found["b"][0] == found["a"][2] and found["b"][2] == found["a"][0]
    assert found["b"][1] not in found["a"]
    assert found["c"].tolist() == [found["b"][0], found["a"][1], found["b"][1]], "the highest r counts"


def test_as_many_others_as_persisting_ones_are_chosen_live_and_often_enough():
    match = np.array([1, 1, 1, 1, -1, -1, -1, -1, -1, 1])
    density = np.array([0.1] * 8 + [0.0, 0.1])
    firings = np.array([50, 50, 50, 19, 50, 50, 50, 50, 50, 50])
    priority = np.array([5, 4, 3, 0, 9, 8, 7, 6, 0, 1.0])
    found = choose(match, density, firings, priority, 100)
    assert found.persisting.tolist() == [0, 1, 2, 9] and found.others.tolist() == [4, 5, 6, 7]
    assert found.rare == (1, 0)
    few = choose(match, density, firings, priority, 5)
    assert few.persisting.tolist() == [2, 9] and few.others.tolist() == [6, 7]
    lonely = choose(np.where(np.arange(10) == 1, 1, -1), density, firings, priority, 100)
    assert lonely.persisting.tolist() == [1] and lonely.others.tolist() == [9]


def test_every_edge_has_its_share_and_last_models_are_selected_by_their_own_matches():
    counting = {edge: matches([0, 1, -1, -1], [0.9, 0.8, np.nan, np.nan]) for edge in (("a", "b"), ("a", "c"))}
    firings = {name: np.full(4, 50) for name in "abc"}
    features, edges = selection([*counting], counting, firings, 0, 4)
    for chosen in edges.values():
        assert len(chosen.persisting) == len(chosen.others) == 1, "half of four, by two edges"
    assert set(features["a"]) == {n for own in edges.values() for n in (*own.persisting, *own.others)}
    assert features["b"] == features["c"] == [0, 1, 2, 3], "one edge each"
