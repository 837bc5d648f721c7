"""Whether feature i of the target fires where feature i of the source does: Pearson's r over tokens, of all features.

Feature i of both is one feature: an SAE and what transfer made of it, or one SAE that reads two models.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array


class Paired(NamedTuple):
    """Activations, or attributions, of each feature in two models, on the same tokens."""

    r: np.ndarray
    """float64 [d_sae]: Pearson over tokens, zeros included; nan where either is constant."""
    source_firings: np.ndarray
    """int64 [d_sae]: tokens on which the feature fires in the source."""
    target_firings: np.ndarray
    """int64 [d_sae]: the same in the target."""
    source_peak: np.ndarray
    """float64 [d_sae]: its largest value in the source, 0 at least."""
    target_peak: np.ndarray
    """float64 [d_sae]: the same in the target."""
    tokens: int
    """Tokens compared."""


class PairedPearson:
    """Pearson's r of column i of one sparse matrix with column i of another, from rows given in parts; sums float64."""

    def __init__(self, d_sae: int) -> None:
        """Start with no tokens."""
        self.d_sae, self.tokens = d_sae, 0
        self._sums = np.zeros((5, d_sae))
        self._firings = np.zeros((2, d_sae), np.int64)
        self._peaks = np.zeros((2, d_sae))

    def add(self, a: csr_array, b: csr_array) -> PairedPearson:
        """Take in activations [n, d_sae] of the same tokens, a value stored wherever a feature fires; returns itself.

        Raises ValueError when their shapes differ, or are of another number of features.
        """
        sides: list[Any] = [a.astype(np.float64), b.astype(np.float64)]
        (rows, d_sae), other = (side.shape for side in sides)
        if (rows, d_sae) != other or d_sae != self.d_sae:
            raise ValueError(
                f"activations are {[rows, d_sae]} and {list(other)} for {self.d_sae} features; give the same tokens "
                "and SAEs of the same size"
            )
        self.tokens += rows
        x, y = sides
        self._sums += [m.sum(0) for m in (x, y, x.multiply(x), y.multiply(y), x.multiply(y))]
        self._firings += [np.bincount(m.indices, minlength=self.d_sae) for m in sides]
        for peak, m in zip(self._peaks, sides, strict=True):
            np.maximum.at(peak, m.indices, m.data)
        return self

    def result(self) -> Paired:
        """Figures over all tokens so far. Raises ValueError without any."""
        if not self.tokens:
            raise ValueError("no activations were given; call add at least once")
        a, b, aa, bb, ab = self._sums
        spread = [square - np.square(total) / self.tokens for square, total in ((aa, a), (bb, b))]
        told = (spread[0] > 1e-12 * aa) & (spread[1] > 1e-12 * bb)  # rounding leaves a constant some spread
        with np.errstate(invalid="ignore", divide="ignore"):
            r = np.clip((ab - a * b / self.tokens) / np.sqrt(spread[0] * spread[1]), -1, 1)
        firings, peaks = self._firings.copy(), self._peaks.copy()
        return Paired(np.where(told, r, np.nan), firings[0], firings[1], peaks[0], peaks[1], self.tokens)
