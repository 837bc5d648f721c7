"""Excerpts of a token sample that a feature is explained from, and others, of other blocks, that it is scored on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from heredity.explain.protocol import LEVELS, Excerpt, Kind, quantized

LEAST_FIRINGS = 20
"""Firings on the sample below which a feature is neither explained nor scored (Bricken et al. 2023)."""
_LEADING = 5  # tokens that activate a feature most, which "elsewhere" looks for
_TRIES = 8  # places looked at for each silent excerpt


class Recipe(NamedTuple):
    """How many excerpts of each kind are drawn from either half (Bricken et al. 2023, automated interpretability)."""

    top: int = 10
    """Strongest activations, one a block."""
    interval: int = 2
    """Of each of the nine lower intervals of activation."""
    random: int = 5
    """Any places."""
    elsewhere: int = 10
    """Other places of the tokens that activate the feature most."""
    silent: int = 20
    """Places around which the feature is silent."""
    radius: int = 8
    """Tokens on either side, as far as the block goes."""


STANDARD = Recipe()
"""What is drawn unless said otherwise."""


class Places(NamedTuple):
    """Where each token stands in one half of a sample."""

    rows: np.ndarray
    """int64 [tokens of the half]: places in the sample, ordered by token."""
    starts: np.ndarray
    """int64 [vocab + 1]: the places of token t are `rows[starts[t]:starts[t + 1]]`."""


class Text(NamedTuple):
    """A token sample in two halves; see `split`."""

    ids: np.ndarray
    """int64 [blocks, context]."""
    vocabulary: tuple[str, ...]
    """Text of each token, decoded alone."""
    explains: np.ndarray
    """bool [blocks]: whether the block explains; the others score."""
    places: tuple[Places, Places]
    """Of the half that scores and of the half that explains."""


class Drawn(NamedTuple):
    """The excerpts of one feature. No block gives excerpts to both sides."""

    explaining: tuple[Excerpt, ...]
    """For the explainer: top, interval, random, elsewhere."""
    scoring: tuple[Excerpt, ...]
    """For simulations: the same kinds, from the other blocks."""
    silent: tuple[Excerpt, ...]
    """From the blocks that score: nothing in them activates the feature. Fewer than asked for where it fires often."""
    highest: float
    """Highest activation in the blocks that explain; levels are told relative to it."""


def split(ids: np.ndarray, vocabulary: Sequence[str], seed: int) -> Text:
    """Deal the blocks of a sample into a half that explains and one that scores.

    ids: int [blocks, context]. vocabulary: text of each token. Raises `ValueError` for fewer than two blocks, and for
    ids beyond the vocabulary.
    """
    ids = np.asarray(ids, np.int64)
    if ids.ndim != 2 or len(ids) < 2:
        raise ValueError(f"ids have shape {ids.shape}; two blocks or more are needed, one to explain and one to score")
    if ids.min() < 0 or ids.max() >= len(vocabulary):
        raise ValueError(f"ids run from {ids.min()} to {ids.max()}, the vocabulary to {len(vocabulary) - 1}")
    explains = np.zeros(len(ids), bool)
    explains[np.random.default_rng(seed).permutation(len(ids))[: len(ids) // 2]] = True
    flat, halves = ids.ravel(), np.repeat(explains, ids.shape[1])
    places = []
    for half in (False, True):
        rows = np.flatnonzero(halves == half)
        rows = rows[np.argsort(flat[rows], kind="stable")]
        counts = np.bincount(flat[rows], minlength=len(vocabulary))
        places.append(Places(rows, np.concatenate([[0], np.cumsum(counts)])))
    return Text(ids, tuple(vocabulary), explains, (places[0], places[1]))


def draw(
    text: Text, rows: np.ndarray, values: np.ndarray, recipe: Recipe = STANDARD, seed: int | Sequence[int] = 0
) -> Drawn | None:
    """The excerpts of one feature, from its firings (see `features.cards.Columns`); costs no more than both.

    None for a feature with fewer than `LEAST_FIRINGS`, or with none in one half: too rare to be judged.
    rows: int64 [n] rising. values: float64 [n].
    """
    explains = text.explains[rows // text.ids.shape[1]]
    if len(rows) < LEAST_FIRINGS or explains.all() or not explains.any():
        return None
    rng = np.random.default_rng(seed)
    sides = []
    for half in (False, True):
        own = explains == half
        chosen = _chosen(text, text.places[half], rows[own], values[own], recipe, rng)
        sides.append(_cut(text, rows, values, chosen, recipe.radius))
    silent = _silent(text, rows, recipe, rng)
    quiet = _cut(text, rows, values, [(row, "silent") for row in silent], recipe.radius)
    return Drawn(sides[1], sides[0], quiet, float(values[explains].max()))


def _chosen(
    text: Text, places: Places, rows: np.ndarray, values: np.ndarray, recipe: Recipe, rng: np.random.Generator
) -> list[tuple[int, Kind]]:
    """Places of one half and why they were chosen; those the feature fires at are of one block each."""
    order = np.argsort(-values, kind="stable")
    blocks = rows // text.ids.shape[1]
    _, first = np.unique(blocks[order], return_index=True)
    top = order[np.sort(first)[: recipe.top]]
    used = set(blocks[top].tolist())
    chosen: list[tuple[int, Kind]] = [(int(rows[at]), "top") for at in top]
    levels = quantized(values, float(values[order[0]]))
    shuffled = rng.permutation(len(rows))
    taken = [0] * (LEVELS - 1)
    for at, level, block in zip(shuffled, levels[shuffled].tolist(), blocks[shuffled].tolist(), strict=True):
        if level < LEVELS - 1 and taken[level] < recipe.interval and block not in used:
            taken[level] += 1
            used.add(block)
            chosen.append((int(rows[at]), "interval"))
    chosen.extend((int(row), "random") for row in rng.choice(places.rows, recipe.random))
    elsewhere = _elsewhere(text, places, rows, values, {row for row, _ in chosen}, recipe.elsewhere, rng)
    chosen.extend((row, "elsewhere") for row in elsewhere)
    return chosen


def _elsewhere(
    text: Text,
    places: Places,
    rows: np.ndarray,
    values: np.ndarray,
    used: set[int],
    count: int,
    rng: np.random.Generator,
) -> list[int]:
    """Unused places of the tokens that activate the feature most, dealt in turns."""
    tokens, of = np.unique(text.ids.ravel()[rows], return_inverse=True)
    leading = tokens[np.argsort(-np.bincount(of, values), kind="stable")[:_LEADING]]
    queues = []
    for token in leading:
        found = places.rows[places.starts[token] : places.starts[token + 1]]
        some = rng.choice(found, min(len(found), 2 * count), replace=False).tolist()
        queues.append([row for row in some if row not in used][:count])
    turns = [queue[turn] for turn in range(count) for queue in queues if turn < len(queue)]
    return turns[:count]


def _silent(text: Text, rows: np.ndarray, recipe: Recipe, rng: np.random.Generator) -> list[int]:
    """Places of the half that scores, one a block, without a firing in their windows."""
    some = rng.choice(text.places[0].rows, _TRIES * recipe.silent)
    start, stop = _windows(some, text.ids.shape[1], recipe.radius)
    quiet = some[np.searchsorted(rows, start) == np.searchsorted(rows, stop)]
    _, first = np.unique(quiet // text.ids.shape[1], return_index=True)
    return quiet[np.sort(first)[: recipe.silent]].tolist()


def _windows(rows: np.ndarray, context: int, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the windows around places start and stop: within their blocks."""
    block = rows // context * context
    return np.maximum(rows - radius, block), np.minimum(rows + radius + 1, block + context)


def _cut(
    text: Text, rows: np.ndarray, values: np.ndarray, chosen: Sequence[tuple[int, Kind]], radius: int
) -> tuple[Excerpt, ...]:
    context, flat = text.ids.shape[1], text.ids.ravel()
    places = np.array([row for row, _ in chosen], np.int64)
    starts, stops = _windows(places, context, radius)
    lows, highs = np.searchsorted(rows, starts), np.searchsorted(rows, stops)
    found = []
    for (row, kind), start, stop, low, high in zip(
        chosen, starts.tolist(), stops.tolist(), lows.tolist(), highs.tolist(), strict=True
    ):
        ids, own = flat[start:stop], np.zeros(stop - start)
        own[rows[low:high] - start] = values[low:high]
        tokens = tuple([text.vocabulary[token] for token in ids.tolist()])
        found.append(Excerpt(tokens, ids, own, kind, row // context, row - start))
    return tuple(found)
