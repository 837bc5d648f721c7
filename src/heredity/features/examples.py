"""Places of the sample that show what a feature responds to, and blocks of it with its family's activations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from heredity.features.acts import FeatureActs


class Columns(NamedTuple):
    """Firings of all features of one SAE on a token sample, by feature: looking at one costs its own firings only."""

    indptr: np.ndarray
    """int64 [d_sae + 1]: the firings of feature i are `indptr[i]:indptr[i + 1]`."""
    rows: np.ndarray
    """int32 [n]: the token position of each, rising within a feature."""
    values: np.ndarray
    """float32 [n]: its activation."""

    def of(self, feature: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and values of one feature, as views."""
        own = slice(self.indptr[feature], self.indptr[feature + 1])
        return self.rows[own], self.values[own]


class Context(NamedTuple):
    """One block of the sample around a strong activation."""

    block: int
    """Number of the block in the sample."""
    position: int
    """Place of the strongest activation in the block."""
    values: dict[str, list[float]]
    """Activation at every position of the block, by model."""


class Places(NamedTuple):
    """Positions of the sample, and what the feature does in the whole block around each."""

    rows: np.ndarray
    """int64 [n]: token positions; row r is position r mod context of block r // context."""
    values: np.ndarray
    """float32 [n, context]: activations in the block of each."""


def strongest(rows: np.ndarray, values: np.ndarray, count: int, context_size: int) -> np.ndarray:
    """Rows of a feature's strongest activations, int64 [<= count], one a block at the most, strongest first.

    rows, values: of its firings, rows rising. Ties go to the earlier row.
    """
    candidates = rows[np.argsort(-values, kind="stable")].astype(np.int64)
    _, first = np.unique(candidates // context_size, return_index=True)
    return candidates[np.sort(first)[:count]]


def levels_of(values: np.ndarray, highest: float, levels: int) -> np.ndarray:
    """Equal interval of the range 0 to `highest` that each activation lies in, int64: 0 the lowest, the highest
    activation in the last; one below 0 counts to the lowest."""
    if not highest > 0:
        return np.zeros(len(values), np.int64)
    return np.clip((np.asarray(values, np.float64) * levels / highest).astype(np.int64), 0, levels - 1)


def in_intervals(
    rows: np.ndarray, values: np.ndarray, levels: int, count: int, context_size: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Firings drawn from each interval of a feature's activation range, the strongest interval first.

    The range from 0 to its highest activation is divided evenly (as for the human ratings of Bricken et al. 2023). Of
    each interval up to `count` rows, int64, at random, one a block at the most; none where it has no firing.
    """
    level = levels_of(values, float(values.max(initial=0)), levels)
    order = rng.permutation(len(rows))
    rows, level = rows[order].astype(np.int64), level[order]
    place = rows // context_size * levels + level
    _, first = np.unique(place, return_index=True)
    first.sort()
    rows, level = rows[first], level[first]
    return [rows[level == wanted][:count] for wanted in reversed(range(levels))]


def silent_blocks(rows: np.ndarray, blocks: int, count: int, context_size: int, rng: np.random.Generator) -> np.ndarray:
    """Blocks in which a feature never fires, int64 [<= count], at random without repeats."""
    silent = np.ones(blocks, bool)
    silent[rows // context_size] = False
    found = np.flatnonzero(silent)
    return rng.choice(found, min(count, len(found)), replace=False)


def around(chosen: np.ndarray, rows: np.ndarray, values: np.ndarray, context_size: int) -> Places:
    """The blocks around chosen rows with a feature's activations in them.

    chosen: int [n]. rows, values: of all its firings, rows rising.
    """
    chosen = np.asarray(chosen, np.int64)
    starts = chosen // context_size * context_size
    first, last = np.searchsorted(rows, [starts, starts + context_size])
    length = last - first
    place = np.repeat(np.arange(len(chosen)), length)
    entry = np.arange(len(place)) + np.repeat(first - (np.cumsum(length) - length), length)
    found = np.zeros((len(chosen), context_size), np.float32)
    found[place, rows[entry] - starts[place]] = values[entry]
    return Places(chosen, found)


def contexts(rows: list[int], members: Mapping[str, tuple[FeatureActs, int]], context_size: int) -> list[Context]:
    """The blocks around rows of the sample, with the activation of each member (model -> acts, feature) in them."""
    found = []
    for row in rows:
        block, position = divmod(row, context_size)
        span = (block * context_size, (block + 1) * context_size)
        values = {model: _column(acts.rows(*span), feature) for model, (acts, feature) in members.items()}
        found.append(Context(block, position, values))
    return found


def _column(acts: FeatureActs, feature: int) -> list[float]:
    values = np.zeros(acts.tokens)
    mine = acts.indices == feature
    values[np.repeat(np.arange(acts.tokens), np.diff(acts.indptr))[mine]] = acts.values[mine]
    return [round(float(value), 4) for value in values]
