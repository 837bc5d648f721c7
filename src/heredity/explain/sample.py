"""Which features are explained: along every edge those that persist and as many others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from heredity.explain.excerpts import LEAST_FIRINGS
from heredity.features.correlate import Matches


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
