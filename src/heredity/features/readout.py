"""How much of a feature's activation a linear readout finds in another model, over what it finds in its own.

What a model's activations do not say of a feature at all is not in it, wherever else they move when the feature fires:
features of several tokens that a model has come to confuse all move it the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from heredity.features.acts import FeatureActs
from heredity.features.bootstrap import document_groups
from heredity.kernels.grouped import add_products
from heredity.kernels.sparse import in_ranges

_FOLDS = 8
_RIDGE = 1e-3  # of the mean variance of the activations
_LEAST_READ = 0.02  # R² in its own model below which nothing can be said of a feature
_TOGETHER = 2048  # tokens that are made float64 at a time
_TILE = 1 << 17  # numbers of one fold's products of some features, so that they stay in the cache
_LEAST_TILE = 256  # features, so that wide products are not made of narrow ones


class Readout:
    """Readouts of an SAE's features from its own model's activations, to be compared with those from another's."""

    def __init__(self, acts: FeatureActs, own: np.ndarray, documents: np.ndarray, seed: int = 0) -> None:
        """acts: [tokens, d_sae]; own [tokens, d_own], documents int [tokens]; seed: of the folds."""
        self._fold, self._d_sae = document_groups(documents, _FOLDS, seed), acts.d_sae
        self.folds = int(self._fold.max()) + 1
        starts, *self._entries = acts.to_columns()
        self._live = np.flatnonzero(np.diff(starts))
        self._starts = starts[np.append(self._live, -1)]
        place = np.repeat(self._fold.astype(np.int64) * acts.d_sae, np.diff(acts.indptr)) + acts.indices
        values, size = acts.values.astype(np.float64), self.folds * acts.d_sae
        sums, self._squares = (
            np.bincount(place, each, size).reshape(self.folds, -1)[:, self._live] for each in (values, values**2)
        )
        self._sums = torch.from_numpy(sums)
        self._own: np.ndarray | None = self._explained(own) if self.folds > 1 else None

    def readable(self, other: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """R² of ridge readouts from another model's activations [tokens, d_other] over R² from its own, on documents
        that they were not fitted on, and its standard error (jackknife over folds), float64 [d_sae] each, and the
        number of folds; nan where not even its own model says enough of a feature."""
        if self._own is None:
            unknown = np.full(self._d_sae, np.nan)
            return unknown, unknown, self.folds
        read = np.stack([self._own, self._explained(other)])  # [model, fold, of which, feature]
        folds = self.folds

        def ratio(held: np.ndarray) -> np.ndarray:
            left, whole = held.sum(1).transpose(1, 0, 2)
            at_own, at_other = 1 - left / np.where(whole > 0, whole, np.nan)
            return np.maximum(at_other, 0) / np.where(at_own > _LEAST_READ, at_own, np.nan)

        without = np.stack([ratio(np.delete(read, number, axis=1)) for number in range(folds)])
        error = np.sqrt((folds - 1) / folds * np.square(without - without.mean(0)).sum(0))
        of_all = np.full((2, self._d_sae), np.nan)
        of_all[:, self._live] = ratio(read), error
        return of_all[0], of_all[1], folds

    def _explained(self, x: np.ndarray) -> np.ndarray:
        """Of every feature that fires, the sums of squares that a readout from x [tokens, d] fitted on the other folds
        leaves, and that there are, on each fold: float64 [folds, 2, live]."""
        x, mean = np.ascontiguousarray(x), x.mean(0, dtype=np.float64)
        folds = [_Fold.of(x[self._fold == number], mean) for number in range(self.folds)]
        fitted = _Fold.of_others(folds)
        inverses = [fit.inverse() for fit in fitted]
        starts, live = self._starts, len(self._live)
        left = torch.empty(self.folds, live, dtype=torch.float64)
        step = max(_LEAST_TILE, _TILE // x.shape[1])
        for first in range(0, live, step):
            some = slice(first, min(first + step, live))
            tile, cross = starts[first : some.stop + 1], np.zeros((self.folds, some.stop - first, x.shape[1]))
            work = partial(add_products, tile, *self._entries, self._fold, x, mean, cross)
            in_ranges(work, cross.shape[1], int(tile[-1] - tile[0]) * x.shape[1], 4, tile)
            products, sums = torch.from_numpy(cross), self._sums[:, some]
            all_of = products.sum(0), sums.sum(0)
            for fold, (held, fit, inverse) in enumerate(zip(folds, fitted, inverses, strict=True)):
                f, its = all_of[1] - sums[fold], products[fold]
                weight = (all_of[0] - its - torch.outer(f, fit.sums) / fit.tokens) @ inverse  # [features, d]
                bias = (f - weight @ fit.sums) / fit.tokens
                square = (weight @ held.gram * weight).sum(1) + 2 * bias * (weight @ held.sums) + held.tokens * bias**2
                left[fold, some] = square - 2 * ((weight * its).sum(1) + bias * sums[fold])
        squares, sums = self._squares, self._sums.numpy()
        whole = [square - f**2 / held.tokens for square, f, held in zip(squares, sums, folds, strict=True)]
        return np.stack([squares + left.numpy(), np.array(whole)], axis=1)


class _Fold(NamedTuple):
    """Sums over the centered vectors y [tokens, d] of a part of the tokens."""

    gram: torch.Tensor  # float64 [d, d]
    sums: torch.Tensor  # float64 [d]
    tokens: int

    @classmethod
    def of(cls, x: np.ndarray, mean: np.ndarray) -> _Fold:
        """x [tokens, d], from which `mean` is taken."""
        gram, sums = np.zeros((len(mean), len(mean))), np.zeros(len(mean))
        for start in range(0, len(x), _TOGETHER):
            y = x[start : start + _TOGETHER] - mean
            gram += y.T @ y  # NumPy makes half of it and mirrors that
            sums += y.sum(0)
        return cls(torch.from_numpy(gram), torch.from_numpy(sums), len(x))

    @classmethod
    def of_others(cls, folds: Sequence[_Fold]) -> list[_Fold]:
        """For each fold, the sums of all others."""
        tokens = sum(fold.tokens for fold in folds)
        gram, sums = (torch.stack([getattr(fold, name) for fold in folds]).sum(0) for name in ("gram", "sums"))
        return [cls(gram - fold.gram, sums - fold.sums, tokens - fold.tokens) for fold in folds]

    def inverse(self) -> torch.Tensor:
        """What turns products with features into the weights of their ridge regressions on the vectors."""
        ridge = _RIDGE * max(float(self.gram.trace()) / len(self.gram), 1e-30)
        centered = self.gram - torch.outer(self.sums, self.sums) / self.tokens
        centered.diagonal().add_(ridge)
        return torch.cholesky_inverse(torch.linalg.cholesky(centered))
