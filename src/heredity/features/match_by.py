"""Matching shared among workers: each matches a range of parent features, and neighbors are joined in a tree."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np

from heredity.engine.workers import Shards
from heredity.features.acts import FeatureActs
from heredity.features.correlate import Matches, correlate, join_matches
from heredity.kernels.pearson import tiles

_LEAST = 2**30  # multiply-adds of a range: a few seconds, below which the way there and back costs more
_PARTS = 4  # ranges per worker, so that all end at about the same time


class _Ends(NamedTuple):
    parent: FeatureActs
    child: FeatureActs
    top: int


def correlate_by(
    shards: Shards,
    parent: FeatureActs,
    child: FeatureActs,
    top: int = 5,
    *,
    device: str = "cpu",
    least: int = _LEAST,
) -> Matches:
    """As `correlate`, with its bits, whatever the number of workers. On a GPU, which one process uses, it is that.

    least: multiply-adds that a worker is sent for.
    """
    if device != "cpu" or shards.apart < 2 or parent.tokens != child.tokens:
        return correlate(parent, child, top, device=device)
    firings = np.bincount(parent.indices, minlength=parent.d_sae)
    cost = firings * (child.n / max(child.tokens, 1)) + child.d_sae
    parts = min(_PARTS * shards.apart, int(cost.sum() / least))
    if parts < 2:
        return correlate(parent, child, top, device=device)
    job = shards.job(partial(_Ends, parent, child, top))
    return job.reduce(_matched, list(tiles(cost, int(cost.sum() / parts))), join_matches)


def _matched(ends: _Ends, parent_range: tuple[int, int]) -> Matches:
    return correlate(ends.parent, ends.child, ends.top, parent_range=parent_range)
