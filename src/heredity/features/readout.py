"""How much of a feature's activation a linear readout finds in another model, over what it finds in its own.

What a model's activations do not say of a feature at all is not in it, wherever else they move when the feature fires:
features of several tokens that a model has come to confuse all move it the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import linalg
from scipy.sparse import csc_array, csr_array

from heredity.features.acts import FeatureActs
from heredity.features.bootstrap import document_groups

_FOLDS = 8
_RIDGE = 1e-3  # of the mean variance of the activations
_LEAST_READ = 0.02  # R² in its own model below which nothing can be said of a feature


class Readout:
    """Readouts of an SAE's features from its own model's activations, to be compared with those from another's."""

    def __init__(self, acts: FeatureActs, own: np.ndarray, documents: np.ndarray, seed: int = 0) -> None:
        """acts: [tokens, d_sae]; own [tokens, d_own], documents int [tokens]; seed: of the folds."""
        fold = document_groups(documents, _FOLDS, seed)
        self.folds, self._d_sae, features = int(fold.max()) + 1, acts.d_sae, acts.matrix()
        order = [np.flatnonzero(fold == number) for number in range(self.folds)]
        self._parts = [_part(features[rows], rows) for rows in order]
        self._own: np.ndarray | None = _explained(self._parts, own) if self.folds > 1 else None

    def readable(self, other: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """R² of ridge readouts from another model's activations [tokens, d_other] over R² from its own, on documents
        that they were not fitted on, and its standard error (jackknife over folds), float64 [d_sae] each, and the
        number of folds; nan where not even its own model says enough of a feature."""
        if self._own is None:
            unknown = np.full(self._d_sae, np.nan)
            return unknown, unknown, self.folds
        read = np.stack([self._own, _explained(self._parts, other)])  # [model, fold, of which, feature]
        folds = self.folds

        def ratio(held: np.ndarray) -> np.ndarray:
            left, whole = held.sum(1).transpose(1, 0, 2)
            at_own, at_other = 1 - left / np.where(whole > 0, whole, np.nan)
            return np.maximum(at_other, 0) / np.where(at_own > _LEAST_READ, at_own, np.nan)

        without = np.stack([ratio(np.delete(read, number, axis=1)) for number in range(folds)])
        error = np.sqrt((folds - 1) / folds * np.square(without - without.mean(0)).sum(0))
        return ratio(read), error, folds


class _Part(NamedTuple):
    """The features on one fold of the tokens."""

    rows: np.ndarray  # int64, of the tokens
    features: csc_array  # [d_sae, rows]
    sums: np.ndarray  # float64 [d_sae]
    squares: np.ndarray


def _part(features: csr_array, rows: np.ndarray) -> _Part:
    sums, squares = (np.asarray(each.sum(0)).ravel() for each in (features, features.multiply(features)))
    return _Part(rows, features.T, sums, squares)


def _explained(folds: Sequence[_Part], x: np.ndarray) -> np.ndarray:
    """Sums of squares of every feature that a readout from x [tokens, d] fitted on the other folds leaves, and that
    there are, on each fold: float64 [folds, 2, d_sae]."""
    mean = x.mean(0, dtype=np.float64)
    parts = []
    for fold in folds:
        y = x[fold.rows].astype(np.float64) - mean
        cross = np.asarray((fold.features @ y).T)
        parts.append((y.T @ y, cross, y.sum(0), fold.sums, fold.squares, len(y)))
    whole = [sum(part[place] for part in parts) for place in range(6)]
    result = []
    for part in parts:
        gram, cross, y, f, squares, tokens = (all_of - of for all_of, of in zip(whole, part, strict=True))
        ridge = _RIDGE * max(float(np.trace(gram)) / len(gram), 1e-30)
        centered = gram - np.outer(y, y) / tokens + ridge * np.eye(len(gram))
        factor = linalg.cho_factor(centered, overwrite_a=True)  # several times as fast as `linalg.solve`, which batches
        weight = linalg.cho_solve(factor, cross - np.outer(y, f) / tokens)
        bias = f / tokens - (y / tokens) @ weight
        gram, cross, y, f, squares, tokens = part
        fitted = np.einsum("df,df->f", weight, gram @ weight) + 2 * bias * (y @ weight) + tokens * bias**2
        left = squares - 2 * ((weight * cross).sum(0) + bias * f) + fitted
        result.append([left, squares - f**2 / tokens])
    return np.array(result)
