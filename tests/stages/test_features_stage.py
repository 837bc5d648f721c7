"""What the features stage tells of a feature beside its strongest contexts."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from heredity.features.acts import FeatureActs
from heredity.features.cards import Card, LogitTokens, Sizes, cards
from heredity.stages.features import _card

VOCABULARY = ["a", " =", "=", "b", "1"]
SIZE, LEVELS = 32, 5


def sample() -> SimpleNamespace:
    """50 blocks of two corpora; feature 0 fires on every `=`, twice as strongly on ` =`, and feature 1 never."""
    rng = np.random.default_rng(2)
    ids = rng.integers(0, 5, (50, SIZE))
    strength = rng.uniform(0.1, 1, ids.size) * np.select([ids.ravel() == 1, ids.ravel() == 2], [2.0, 1.0], 0.0)
    dense = np.stack([strength, np.zeros(ids.size)], 1)
    acts = FeatureActs.from_dense(dense)
    origin = np.arange(50) % 2
    return SimpleNamespace(
        ids=ids, vocabulary=VOCABULARY, acts=acts, origin=origin, names=["prose", "code"], dense=dense
    )


def card_of(found: SimpleNamespace, feature: int, logits: LogitTokens | str = "no way") -> Card:
    sizes = Sizes(top=3, levels=LEVELS, each=2, drawn=0, silent=0, tokens=len(VOCABULARY), bins=10)
    return cards(found.acts, found.ids, np.array([feature]), sizes, 0, logits)[0]


def test_tokens_are_told_by_their_share_of_all_activation():
    found = sample()
    row = _card(found, card_of(found, 0))
    values, ids = found.dense[:, 0], found.ids.ravel()
    assert [token["token"] for token in row["tokens"]] == [" =", "="]
    for token, number in zip(row["tokens"], (1, 2), strict=True):
        own = values[ids == number]
        assert token["share"] == pytest.approx(own.sum() / values.sum())
        assert token["firings"] == len(own) and token["fired"] == 1
        assert token["mean"] == pytest.approx(own.mean())
    assert sum(row["histogram"]) == row["firings"] == (values > 0).sum()


def test_weaker_firings_lie_in_their_interval_and_carry_the_text_around():
    found = sample()
    row = _card(found, card_of(found, 0))
    values = found.dense[:, 0].reshape(found.ids.shape)
    assert [round(level["high"] / values.max(), 6) for level in row["weaker"]] == [0.8, 0.6, 0.4, 0.2]
    windows = {
        (found.names[block % 2], tuple(VOCABULARY[token] for token in found.ids[block, max(0, at - 9) : at + 10]))
        for block, at in np.argwhere(values > 0)
    }
    for level in row["weaker"]:
        for context in level["contexts"]:
            assert level["low"] <= context["values"][context["position"]] + 1e-4 <= level["high"] + 2e-4
            assert (context["corpus"], tuple(context["tokens"])) in windows
            assert context["tokens"][context["position"]] in (" =", "=")


def test_predictions_are_text_even_beyond_the_vocabulary_and_else_a_reason_stands():
    found = sample()
    ends = np.array([[3, 7]]), np.array([[1.5, 0.5]], np.float32), np.array([[0, 4]]), np.array([[-2, -1]], np.float32)
    row = _card(found, card_of(found, 0, LogitTokens(*ends)))
    assert row["promoted"] == [{"token": "b", "weight": 1.5}, {"token": "#7", "weight": 0.5}]
    assert [one["token"] for one in row["suppressed"]] == ["a", "1"] and row["no_logits"] == ""
    assert _card(found, card_of(found, 0))["no_logits"] == "no way"


def test_a_feature_that_never_fires_has_an_empty_card():
    found = sample()
    row = _card(found, card_of(found, 1))
    assert row["firings"] == 0 and not list(row["tokens"]) and sum(row["histogram"]) == 0
    assert not any(level["contexts"] for level in row["weaker"])
