"""Contexts in which a feature is active, with its family's activations on the same tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from heredity.features.acts import FeatureActs


class Context(NamedTuple):
    """One block of the sample around a strong activation."""

    block: int
    """Number of the block in the sample."""
    position: int
    """Place of the strongest activation in the block."""
    values: dict[str, list[float]]
    """Activation at every position of the block, by model."""


def top_rows(acts: FeatureActs, features: np.ndarray, count: int, context_size: int) -> dict[int, list[int]]:
    """For each feature the rows of its strongest activations, one a block at the most, strongest first.

    features: int [n] distinct. One pass over the activations; ties go to the earlier row.
    """
    wanted = np.isin(acts.indices, features)
    rows = np.repeat(np.arange(acts.tokens), np.diff(acts.indptr))[wanted]
    which, values = acts.indices[wanted], acts.values[wanted]
    found: dict[int, list[int]] = {}
    for feature in features.tolist():
        mine = which == feature
        order = np.argsort(-values[mine], kind="stable")
        candidates = rows[mine][order]
        _, first = np.unique(candidates // context_size, return_index=True)
        found[feature] = candidates[np.sort(first)[:count]].tolist()
    return found


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
