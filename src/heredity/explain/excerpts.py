"""Features to explain, and excerpts of a token sample to explain and to score them from.

Half of the sample's blocks explain, the other half scores; no block gives excerpts to both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from heredity.explain.protocol import LEVELS, Excerpt, Kind, quantized
from heredity.features.correlate import Matches
from heredity.text.letters import letters

LEAST_FIRINGS = 20  # firings on the sample below which a feature is neither explained nor scored (Bricken et al. 2023)
_LEADING = 5  # most activating tokens whose other occurrences make up "elsewhere"
_TRIES = 8  # positions tried per silent excerpt
Edge = tuple[str, str]  # parent and child


class Recipe(NamedTuple):
    """Excerpts of each kind from either half (Bricken et al. 2023, automated interpretability)."""

    top: int = 10  # strongest activations, one per block
    interval: int = 2  # from each of the nine lower intervals of activation
    random: int = 5
    elsewhere: int = 10
    silent: int = 20
    radius: int = 8  # tokens on either side, within the block


class Text(NamedTuple):
    """A token sample in two halves; see `split`."""

    ids: np.ndarray  # int64 [blocks, context]
    vocabulary: tuple[str, ...]  # text of each token within a text
    explains: np.ndarray  # bool [blocks]: whether the block explains; the others score
    rows: list[np.ndarray]  # int64: positions of the scoring and the explaining half, sorted by token
    starts: list[np.ndarray]  # int64 [vocab + 1], likewise: token t is at `rows[starts[t]:starts[t + 1]]`
    pieces: Callable[[int], tuple[str, ...]]  # texts of the tokens of a block, which joined are its text


class Drawn(NamedTuple):
    """The excerpts of one feature."""

    explaining: tuple[Excerpt, ...]  # top, interval, random, elsewhere
    scoring: tuple[Excerpt, ...]  # the same kinds, from the other half
    silent: tuple[Excerpt, ...]  # from the scoring half, without a firing; fewer where the feature fires often
    highest: float  # highest activation in the explaining half; levels are relative to it


def split(ids: np.ndarray, vocabulary: Sequence[str], seed: int) -> Text:
    """Deal the blocks of a sample, int [blocks, context], into a half that explains and one that scores.

    Raises `ValueError` for fewer than two blocks, and for ids beyond the vocabulary.
    """
    ids = np.asarray(ids, np.int64)
    if ids.ndim != 2 or len(ids) < 2:
        raise ValueError(f"ids have shape {ids.shape}; two blocks or more are needed, one to explain and one to score")
    if ids.min() < 0 or ids.max() >= len(vocabulary):
        raise ValueError(f"ids run from {ids.min()} to {ids.max()}, the vocabulary to {len(vocabulary) - 1}")
    explains = np.zeros(len(ids), bool)
    explains[np.random.default_rng(seed).permutation(len(ids))[: len(ids) // 2]] = True
    flat, halves = ids.ravel(), np.repeat(explains, ids.shape[1])
    rows, starts = [], []
    for half in (False, True):
        tokens = np.flatnonzero(halves == half)
        rows.append(tokens[np.argsort(flat[tokens], kind="stable")])
        starts.append(np.concatenate([[0], np.cumsum(np.bincount(flat[tokens], minlength=len(vocabulary)))]))

    @cache  # since every feature is shown on some of the same blocks; 8 bytes per token keep them all
    def pieces(block: int) -> tuple[str, ...]:
        return tuple(letters([vocabulary[int(token)] for token in ids[block]]))

    return Text(ids, tuple(vocabulary), explains, rows, starts, pieces)


def draw(
    text: Text, rows: np.ndarray, values: np.ndarray, recipe: Recipe | None = None, seed: int | Sequence[int] = 0
) -> Drawn | None:
    """Draw the excerpts of one feature from its firings; rows: int64 [n], rising, values: float64 [n].

    None for a feature with fewer than `LEAST_FIRINGS`, or with none in one half: too rare to be judged.
    """
    recipe, context = recipe or Recipe(), text.ids.shape[1]
    explains = text.explains[rows // context]
    if len(rows) < LEAST_FIRINGS or explains.all() or not explains.any():
        return None
    rng = np.random.default_rng(seed)
    scoring, explaining = (
        _cut(text, rows, values, _chosen(text, half, rows[firing], values[firing], recipe, rng), recipe.radius)
        for half, firing in ((0, ~explains), (1, explains))
    )
    # Silent: positions of the scoring half, one per block, without a firing in their windows.
    some = rng.choice(text.rows[0], _TRIES * recipe.silent)
    start, stop = _windows(some, context, recipe.radius)
    quiet = some[np.searchsorted(rows, start) == np.searchsorted(rows, stop)]
    _, first = np.unique(quiet // context, return_index=True)
    chosen: list[tuple[int, Kind]] = [(row, "silent") for row in quiet[np.sort(first)[: recipe.silent]].tolist()]
    silent = _cut(text, rows, values, chosen, recipe.radius)
    return Drawn(explaining, scoring, silent, float(values[explains].max()))


def _chosen(
    text: Text, half: int, rows: np.ndarray, values: np.ndarray, recipe: Recipe, rng: np.random.Generator
) -> list[tuple[int, Kind]]:
    """Positions of one half with their kind; firings among them come from different blocks."""
    order = np.argsort(-values, kind="stable")
    blocks = rows // text.ids.shape[1]
    _, first = np.unique(blocks[order], return_index=True)
    top = order[np.sort(first)[: recipe.top]]
    used_blocks = set(blocks[top].tolist())
    chosen: list[tuple[int, Kind]] = [(int(rows[at]), "top") for at in top]
    levels = quantized(values, float(values[order[0]]))
    shuffled = rng.permutation(len(rows))
    room = [recipe.interval] * (LEVELS - 1) + [0]  # the highest level is that of the top ones
    wanted = sum(min(recipe.interval, count) for count in np.bincount(levels, minlength=LEVELS)[: LEVELS - 1].tolist())
    for at, level, block in zip(shuffled, levels[shuffled].tolist(), blocks[shuffled].tolist(), strict=True):
        if not wanted:
            break
        if room[level] and block not in used_blocks:
            room[level] -= 1
            wanted -= 1
            used_blocks.add(block)
            chosen.append((int(rows[at]), "interval"))
    chosen.extend((int(row), "random") for row in rng.choice(text.rows[half], recipe.random))
    # Elsewhere: unused positions of the most activating tokens, dealt in turns.
    used, count = {row for row, _ in chosen}, recipe.elsewhere
    tokens, of = np.unique(text.ids.ravel()[rows], return_inverse=True)
    queues = []
    for token in tokens[np.argsort(-np.bincount(of, values), kind="stable")[:_LEADING]]:
        places = text.rows[half][text.starts[half][token] : text.starts[half][token + 1]]
        some = rng.choice(places, min(len(places), 2 * count), replace=False).tolist()
        queues.append([row for row in some if row not in used][:count])
    turns = [queue[turn] for turn in range(count) for queue in queues if turn < len(queue)]
    return chosen + [(row, "elsewhere") for row in turns[:count]]


def _windows(rows: np.ndarray, context: int, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """Start and stop of the windows around positions, within their blocks."""
    block = rows // context * context
    return np.maximum(rows - radius, block), np.minimum(rows + radius + 1, block + context)


def _cut(
    text: Text, rows: np.ndarray, values: np.ndarray, chosen: Sequence[tuple[int, Kind]], radius: int
) -> tuple[Excerpt, ...]:
    context, flat = text.ids.shape[1], text.ids.ravel()
    windows = _windows(np.array([row for row, _ in chosen], np.int64), context, radius)
    firings = [np.searchsorted(rows, ends).tolist() for ends in windows]
    excerpts = []
    for (row, kind), start, stop, low, high in zip(chosen, *[ends.tolist() for ends in windows], *firings, strict=True):
        ids, acts = flat[start:stop], np.zeros(stop - start)
        acts[rows[low:high] - start] = values[low:high]
        tokens = text.pieces(row // context)[start % context : start % context + len(ids)]
        excerpts.append(Excerpt(tokens, ids, acts, kind, row // context, row - start))
    return tuple(excerpts)


class Chosen(NamedTuple):
    """Features of one end of an edge, to be explained and compared."""

    persisting: np.ndarray  # int64 [n], rising: with a match above the threshold
    others: np.ndarray  # int64 [m], rising: live ones without; as many, or all there are
    rare: tuple[int, int]  # features of either group that fire too seldom on the sample to be chosen


def selection(
    edges: Sequence[Edge], matches: Mapping[Edge, Matches], firings: Mapping[str, np.ndarray], seed: int, limit: int
) -> tuple[dict[str, list[int]], dict[Edge, Chosen]]:
    """Choose features along every edge: persisting ones, and as many others.

    Returns features to explain, rising, by model: those of the parent, and of a child without children; and the groups
    of the parent's features to compare, by edge. matches: only those above the threshold (`Matches.above`). firings:
    int64 [d_sae] on the sample by model, parents before children. limit: features per model, shared by its edges.
    """
    ranks = priorities(edges, matches, {name: len(own) for name, own in firings.items()}, seed)

    def chosen(edge: Edge, end: int) -> Chosen:
        model, pair = edge[end], matches[edge]
        match, density = ((pair.parent_match, pair.parent_density), (pair.child_match, pair.child_density))[end]
        shared = sum(other[end] == model for other in edges)
        return choose(match[:, 0], density, firings[model], ranks[model], limit // shared)

    by_edge = {edge: chosen(edge, 0) for edge in edges}
    parents = {parent for parent, _ in edges}
    groups = [(edge[0], group) for edge, group in by_edge.items()]
    groups += [(edge[1], chosen(edge, 1)) for edge in edges if edge[1] not in parents]
    features: dict[str, set[int]] = {name: set() for name in firings}
    for model, group in groups:
        features[model].update(group.persisting.tolist(), group.others.tolist())
    return {name: sorted(indices) for name, indices in features.items()}, by_edge


def priorities(
    edges: Sequence[Edge], matches: Mapping[Edge, Matches], sizes: Mapping[str, int], seed: int
) -> dict[str, np.ndarray]:
    """A random number per feature, float64 [d_sae] by model; the lowest are chosen first.

    A feature takes the number of its best match in a parent, so that the features chosen in two models include each
    other's matches and labels can be handed down. Arguments as in `selection`.
    """
    rng = np.random.default_rng(seed)
    numbers: dict[str, np.ndarray] = {}
    for model, size in sizes.items():
        number, best = rng.random(size), np.full(size, -np.inf)
        for edge in edges:
            if edge[1] == model:
                match, r = matches[edge].child_match[:, 0], matches[edge].child_r[:, 0]
                better = (match >= 0) & (np.nan_to_num(r, nan=-np.inf) > best)
                number[better], best[better] = numbers[edge[0]][match[better]], r[better]
        numbers[model] = number
    return numbers


def choose(match: np.ndarray, density: np.ndarray, firings: np.ndarray, priority: np.ndarray, most: int) -> Chosen:
    """Choose persisting features of one end of an edge, and an equal number of others.

    match: int [d_sae], the best match above the threshold, -1 without. density: float64 [d_sae], 0 for a feature that
    is not live on the edge's text. firings: int64 [d_sae]. priority: float64 [d_sae]. most: of both groups together.
    """
    often, room = firings >= LEAST_FIRINGS, most // 2
    picked, rare = [], []
    for group in ((match >= 0) & (density > 0), (match < 0) & (density > 0)):
        able = np.flatnonzero(group & often)
        picked.append(np.sort(able[np.argsort(priority[able], kind="stable")[:room]]))
        rare.append(int((group & ~often).sum()))
        room = len(picked[0])
    return Chosen(picked[0], picked[1], (rare[0], rare[1]))
