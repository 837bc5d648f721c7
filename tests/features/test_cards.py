"""Cards show of a feature exactly what stands in its activations, and what is drawn is drawn from the right places."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from heredity.features.acts import FeatureActs
from heredity.features.cards import (
    Card,
    Columns,
    LogitTokens,
    Sizes,
    cards,
    contexts,
    leading_tokens,
    levels_of,
    logit_tokens,
)
from heredity.lm.logit_attribution import logit_weights
from tiny import HOOK, tiny_model

BLOCKS, CONTEXT, VOCAB, DEAD = 60, 16, 40, 3
SIZES = Sizes(top=5, levels=4, each=3, drawn=6, silent=7, tokens=5, bins=8)


@pytest.fixture(scope="module")
def dense() -> np.ndarray:
    """Activations [tokens, features]; feature 0 fires everywhere, 1 in a third of the blocks, 3 never."""
    rng = np.random.default_rng(0)
    acts = rng.lognormal(0, 1, (BLOCKS * CONTEXT, 5)) * (rng.random((BLOCKS * CONTEXT, 5)) < 0.1)
    acts[:, 0] = rng.random(len(acts)) + 0.1
    acts[:, 1] *= np.repeat(rng.random(BLOCKS) < 0.3, CONTEXT)
    acts[:, DEAD] = 0
    return acts.astype(np.float32)


@pytest.fixture(scope="module")
def acts(dense: np.ndarray) -> FeatureActs:
    return FeatureActs.from_dense(dense)


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return np.random.default_rng(1).integers(0, VOCAB, (BLOCKS, CONTEXT))


@pytest.fixture(scope="module")
def made(acts: FeatureActs, ids: np.ndarray) -> list[Card]:
    return cards(acts, ids, np.arange(5), SIZES, seed=3)


def test_figures_are_those_of_the_dense_activations(dense, acts, made):
    columns = Columns(*acts.to_columns())
    for card in made:
        column = dense[:, card.feature]
        rows, values = columns.of(card.feature)
        assert rows.tolist() == np.flatnonzero(column).tolist() and values.tolist() == column[rows].tolist()
        assert card.firings == len(rows) and card.density == pytest.approx(len(rows) / len(column))
        assert card.highest == column.max()
        expected, _ = np.histogram(values, SIZES.bins, (0, float(column.max()) or 1))
        assert card.histogram.tolist() == expected.tolist()


def test_every_place_comes_with_the_activations_of_its_block(dense, made):
    for card in made:
        for places in (card.top, card.drawn, *card.levels):
            for row, values in zip(places.rows, places.values, strict=True):
                block = row // CONTEXT
                assert values.tolist() == dense[block * CONTEXT : (block + 1) * CONTEXT, card.feature].tolist()
                assert values[row % CONTEXT] > 0


def test_top_places_are_the_best_of_each_block_strongest_first(dense, acts, made):
    for card in made:
        best = dense[:, card.feature].reshape(BLOCKS, CONTEXT).max(1)
        expected = [block for block in np.argsort(-best, kind="stable") if best[block] > 0][: SIZES.top]
        assert (card.top.rows // CONTEXT).tolist() == expected
        assert dense[card.top.rows, card.feature].tolist() == best[expected].tolist()
        places = contexts(card.top.rows.tolist(), {"m": acts.of(card.feature)}, CONTEXT)
        for place, values in zip(places, card.top.values, strict=True):
            assert place.values["m"] == pytest.approx(values.tolist(), abs=1e-4)


def test_intervals_hold_firings_of_their_range_one_a_block_and_as_many_as_there_are(dense, made):
    for card in made:
        assert len(card.levels) == SIZES.levels
        column = dense[:, card.feature].astype(np.float64)
        for level, places in zip(reversed(range(SIZES.levels)), card.levels, strict=True):
            low, high = card.highest * level / SIZES.levels, card.highest * (level + 1) / SIZES.levels
            inside = (column > 0) & (column >= low) & ((column < high) | (level == SIZES.levels - 1))
            assert inside[places.rows].all()
            blocks = places.rows // CONTEXT
            assert len(set(blocks.tolist())) == len(blocks)
            assert len(blocks) == min(SIZES.each, len(set((np.flatnonzero(inside) // CONTEXT).tolist())))
    # The highest is in the last level, what is negative in the first.
    assert levels_of(np.array([-1.0, 0.1, 4.99, 5.0, 10.0]), 10.0, 2).tolist() == [0, 0, 0, 1, 1]
    assert levels_of(np.array([-1.0]), 0.0, 2).tolist() == [0]


def test_silent_blocks_are_silent_and_as_many_as_there_are(dense, made):
    for card in made:
        silent = ~(dense[:, card.feature].reshape(BLOCKS, CONTEXT) > 0).any(1)
        assert silent[card.silent].all() and len(set(card.silent.tolist())) == len(card.silent)
        assert len(card.silent) == min(SIZES.silent, silent.sum())
    assert len(made[0].silent) == 0 and len(made[1].silent) == SIZES.silent


def test_random_firings_are_drawn_evenly(dense, acts, ids):
    counts = np.zeros(len(dense))
    for seed in range(100):
        (card,) = cards(acts, ids, np.array([1]), SIZES, seed)
        assert len(set(card.drawn.rows.tolist())) == SIZES.drawn
        counts[card.drawn.rows] += 1
    fired = dense[:, 1] > 0
    expected = 100 * SIZES.drawn / fired.sum()
    assert counts[~fired].sum() == 0
    assert np.square(counts[fired] - expected).mean() == pytest.approx(expected, rel=0.5)


def test_top_tokens_are_those_of_a_plain_count_and_a_dead_feature_has_an_empty_card(dense, ids, made):
    flat = ids.ravel()
    for card in made:
        column = dense[:, card.feature].astype(np.float64)
        total = np.array([column[flat == token].sum() for token in range(VOCAB)])
        best = [token for token in np.argsort(-total, kind="stable") if total[token] > 0][: SIZES.tokens]
        assert card.tokens.ids.tolist() == best
        for place, token in enumerate(best):
            fired = (flat == token) & (column > 0)
            assert card.tokens.total[place] == pytest.approx(total[token])
            assert card.tokens.firings[place] == fired.sum()
            assert card.tokens.mean[place] == pytest.approx(column[fired].mean())
            assert card.tokens.share[place] == pytest.approx(fired.sum() / (flat == token).sum())
    card = made[DEAD]
    assert (card.firings, card.density, card.highest) == (0, 0.0, 0.0)
    assert all(len(part.rows) == 0 for part in (card.top, card.drawn, *card.levels))
    assert len(card.tokens.ids) == 0 and len(card.silent) == SIZES.silent


def test_leading_tokens_of_all_features_are_those_of_their_cards(acts, ids, made):
    columns = Columns(*acts.to_columns())
    features, tokens, shares = leading_tokens(columns, ids, SIZES.tokens)
    for card, again in zip(made, cards(acts, ids, np.arange(5), SIZES, seed=3, columns=columns), strict=True):
        own, whole = features == card.feature, columns.of(card.feature)[1].sum(dtype=np.float64)
        assert tokens[own].tolist() == card.tokens.ids.tolist() == again.tokens.ids.tolist()
        np.testing.assert_allclose(shares[own] * whole, card.tokens.total)
    assert DEAD not in features


def test_what_is_drawn_depends_on_the_seed_and_the_feature_alone(acts, ids, made):
    (alone,) = cards(acts, ids, np.array([2]), SIZES, seed=3)
    (other,) = cards(acts, ids, np.array([2]), SIZES, seed=4)
    assert alone.drawn.rows.tolist() == made[2].drawn.rows.tolist() != other.drawn.rows.tolist()
    assert alone.silent.tolist() == made[2].silent.tolist()
    with pytest.raises(ValueError, match=r"ids of shape \[59, 16\] do not fit 960"):
        cards(acts, ids[1:], np.array([0]))


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return tiny_model(0, VOCAB, 16, 24)


def test_logits_are_both_ends_of_the_logit_weights(model, acts, ids):
    directions = torch.randn(70, 24, generator=torch.Generator().manual_seed(0))
    found = logit_tokens(model, HOOK, directions, count=4)
    assert isinstance(found, LogitTokens)
    weights = logit_weights(model, HOOK, directions).numpy()
    order = np.argsort(weights, axis=1)
    for end, places in (("bottom", order), ("top", order[:, ::-1])):
        assert getattr(found, end).tolist() == places[:, :4].tolist()
        expected = np.take_along_axis(weights, places[:, :4], 1)
        np.testing.assert_allclose(getattr(found, f"{end}_weights"), expected, atol=1e-6)
    five = LogitTokens(*(part[60:65] for part in found))
    card = cards(acts, ids, np.arange(5), logits=five)[4]
    assert card.logits is not None and card.no_logits == ""
    assert card.logits.top.tolist() == found.top[64].tolist()


def test_a_place_without_a_way_to_the_logits_has_a_reason_instead(model, acts, ids):
    reason = logit_tokens(model, "blocks.0.mlp.hook_pre", torch.ones(1, 24))
    assert isinstance(reason, str) and "blocks.0.mlp.hook_pre" in reason
    (card,) = cards(acts, ids, np.array([0]), logits=reason)
    assert card.logits is None and card.no_logits == reason
    with pytest.raises(ValueError, match="5 wide"):
        logit_tokens(model, HOOK, torch.ones(1, 5))


def test_a_context_shows_every_members_activation_at_every_position():
    parent, child = np.zeros((8, 3)), np.zeros((8, 3))
    parent[5, 1], child[5, 2], child[6, 2] = 2, 4, 1
    members = {"base": FeatureActs.from_dense(parent).of(1), "left": FeatureActs.from_dense(child).of(2)}
    (found,) = contexts([5], members, context_size=4)
    assert (found.block, found.position) == (1, 1)
    assert found.values == {"base": [0.0, 2.0, 0.0, 0.0], "left": [0.0, 4.0, 1.0, 0.0]}
