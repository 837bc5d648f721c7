"""A text in which it is known what every feature fires on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from heredity.explain.excerpts import Drawn, Text, draw, split
from heredity.explain.statistical import Offline, Statistics
from heredity.features.acts import FeatureActs
from heredity.features.cards import Columns

WORDS = [f" w{number}" for number in range(40)]
DIGITS = [f" {number}" for number in range(16)]
VOCABULARY = ["=", " =", ",", "\n", "self", ".x", *DIGITS, *WORDS]
KINDS = np.array([0, 0, 1, 2, 3, 3, *[4] * len(DIGITS), *[3] * len(WORDS)])
CATEGORIES, CORPORA = ("operator", "punctuation", "line break", "word", "number"), ("python", "lua")
ASSIGN, AFTER_SELF, NUMBER, FIRST, AFTER, LUA, NOISE, RARE, TOKEN, FEATURES = range(10)
"""Features: assignments; `.x` after `self`; numbers; the first place; anything after `self`; words of lua; nothing in
particular; five firings; the comma."""


class World(NamedTuple):
    """The text, the features, and who judges them."""

    text: Text
    columns: Columns
    acts: FeatureActs
    corpora: list[int]
    judge: Offline


def world(blocks: int = 500, context: int = 24, seed: int = 0) -> World:
    """Made anew from a seed."""
    rng = np.random.default_rng(seed)
    weights = np.array([3, 2, 4, 1, 3, 3, *[0.4] * len(DIGITS), *[1.0] * len(WORDS)])
    ids = rng.choice(len(VOCABULARY), (blocks, context), p=weights / weights.sum())
    corpora = np.arange(blocks) % 2
    flat, before = ids.ravel(), np.concatenate([np.full((blocks, 1), -1), ids[:, :-1]], axis=1).ravel()
    where = {
        ASSIGN: 3.0 * (flat == 0) + 2.0 * (flat == 1),
        AFTER_SELF: 2.0 * ((flat == 5) & (before == 4)),
        NUMBER: 1.5 * (KINDS[flat] == 4),
        FIRST: 2.0 * (np.arange(len(flat)) % context == 0),
        AFTER: 1.0 * (before == 4),
        LUA: 1.0 * (np.repeat(corpora, context) == 1) * (KINDS[flat] == 3),
        NOISE: 1.0 * (rng.random(len(flat)) < 0.02),
        RARE: 1.0 * np.isin(np.arange(len(flat)), rng.permutation(len(flat))[:5]),
        TOKEN: 1.0 * (flat == 2),
    }
    dense = np.stack([where[feature] for feature in range(FEATURES)], axis=1)
    dense *= rng.uniform(0.9, 1.1, dense.shape)
    acts = FeatureActs.from_dense(dense)
    text, columns = split(ids, VOCABULARY, seed), Columns(*acts.to_columns())
    statistics = Statistics(text, KINDS, corpora.tolist())
    judge = Offline(statistics, CATEGORIES, CORPORA, lambda name: columns.of(int(name)))
    return World(text, columns, acts, corpora.tolist(), judge)


def drawn_of(found: World, feature: int, seed: int | Sequence[int] = 0) -> Drawn:
    """The excerpts of a feature that is not rare."""
    drawn = draw(found.text, *found.columns.of(feature), seed=seed)
    assert drawn is not None
    return drawn
