"""The choice of features to explain, and the excerpts of a token sample to explain and to score each from.

No block of the sample gives excerpts to both sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from heredity.explain.protocol import LEVELS, Excerpt, Kind, quantized
from heredity.features.correlate import Matches

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
    """The excerpts of one feature, from its firings (see `features.examples.Columns`); costs no more than both.

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


class Chosen(NamedTuple):
    """Features of one end of an edge."""

    persisting: np.ndarray
    """int64 [n], rising: with a match above the threshold."""
    others: np.ndarray
    """int64 [m], rising: live ones without. As many, or all there are."""
    rare: tuple[int, int]
    """Features of either sort that fire too seldom on the sample to be chosen."""


def priorities(
    edges: Sequence[tuple[str, str]], matches: Mapping[tuple[str, str], Matches], sizes: Mapping[str, int], seed: int
) -> dict[str, np.ndarray]:
    """A random number for every feature, float64 [d_sae] by model; the lowest are chosen first.

    A feature has the number of its best match in a parent, so that samples of two models hold each other's matches and
    labels can be handed down. matches: only those that count. sizes: features by model, parents before children.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, np.ndarray] = {}
    for model, size in sizes.items():
        number, best = rng.random(size), np.full(size, -np.inf)
        for edge in edges:
            if edge[1] == model:
                match, r = matches[edge].child_match[:, 0], matches[edge].child_r[:, 0]
                better = (match >= 0) & (np.nan_to_num(r, nan=-np.inf) > best)
                number[better], best[better] = found[edge[0]][match[better]], r[better]
        found[model] = number
    return found


def choose(match: np.ndarray, density: np.ndarray, firings: np.ndarray, priority: np.ndarray, most: int) -> Chosen:
    """Features of one end of an edge: those that persist, and an equal number of others.

    match: int [d_sae], the best match above the threshold, -1 without. density: float64 [d_sae], 0 for a feature that
    is not live on the edge's text. firings: int64 [d_sae], on the sample. priority: float64 [d_sae]. most: of both
    sorts together.
    """
    often = firings >= LEAST_FIRINGS
    picked, rare = [], []
    room = most // 2
    for own in ((match >= 0) & (density > 0), (match < 0) & (density > 0)):
        able = np.flatnonzero(own & often)
        picked.append(np.sort(able[np.argsort(priority[able], kind="stable")[:room]]))
        rare.append(int((own & ~often).sum()))
        room = len(picked[0])
    return Chosen(picked[0], picked[1], (rare[0], rare[1]))


class Selection(NamedTuple):
    """Features to explain."""

    features: dict[str, list[int]]
    """Indices, rising, by model."""
    edges: dict[tuple[str, str], Chosen]
    """By edge, of the parent's features: the groups to compare."""


def selection(
    edges: Sequence[tuple[str, str]],
    matches: Mapping[tuple[str, str], Matches],
    sizes: Mapping[str, int],
    firings: Mapping[str, np.ndarray],
    seed: int,
    limit: int,
) -> Selection:
    """Choose features along every edge: persisting ones, and as many others.

    Features are those of the parent; those of the child as well where the child has no children. matches: only those
    that count (`Matches.above`). sizes: features by model, parents before children. firings: int64 [d_sae] by model, on
    the sample. limit: features per model, shared evenly by its edges.
    """
    ranks = priorities(edges, matches, sizes, seed)

    def chosen(edge: tuple[str, str], end: int) -> Chosen:
        model, found = edge[end], matches[edge]
        match, density = ((found.parent_match, found.parent_density), (found.child_match, found.child_density))[end]
        shared = sum(other[end] == model for other in edges)
        return choose(match[:, 0], density, firings[model], ranks[model], limit // shared)

    by_edge = {edge: chosen(edge, 0) for edge in edges}
    last = [edge for edge in edges if all(parent != edge[1] for parent, _ in edges)]
    features: dict[str, set[int]] = {name: set() for name in sizes}
    for model, own in [(edge[0], by_edge[edge]) for edge in edges] + [(edge[1], chosen(edge, 1)) for edge in last]:
        features[model].update(own.persisting.tolist(), own.others.tolist())
    return Selection({name: sorted(own) for name, own in features.items()}, by_edge)
