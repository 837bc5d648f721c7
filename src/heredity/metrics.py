"""How good a model or a dictionary is: pure functions of tensors, every sum in float64.

Figures over many tokens are pooled, never averaged over batches: the accumulators take a stream of batches and give
what the functions give on all of it at once.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_CHUNK = 1 << 22  # elements turned into float64 at a time


class Reconstruction(NamedTuple):
    """How well x_hat reproduces x."""

    fvu: float
    """Fraction of variance unexplained; nan if x is constant."""
    explained_variance: float
    """1 - fvu."""
    mse: float
    """Mean squared error over all elements."""
    tokens: int
    """Vectors seen."""


class Variance:
    """Reconstruction of a stream of vectors: `update` many times, `result` once; memory of one vector.

    Means and squared deviations of the batches are merged exactly (Chan et al. 1983), so the mean is that of all
    tokens and a large mean costs no precision.
    """

    def __init__(self) -> None:
        """Start with no vectors."""
        self._tokens = 0
        self._error = 0.0
        self._mean: Tensor | None = None
        self._deviation: Tensor | None = None

    def update(self, x: Tensor, x_hat: Tensor) -> Variance:
        """Take in vectors x and their reconstructions, both [..., d_in]; returns itself.

        Raises `ValueError` for tensors of different shapes or another width than before.
        """
        if x.shape != x_hat.shape or x.ndim < 1:
            raise ValueError(f"x is {list(x.shape)} and x_hat {list(x_hat.shape)}; both must be [..., d_in]")
        width = x.shape[-1]
        if self._mean is not None and len(self._mean) != width:
            raise ValueError(f"x is {width} wide after batches of {len(self._mean)}; use one accumulator a hook point")
        rows = max(1, _CHUNK // max(1, width))
        pieces = zip(x.reshape(-1, width).split(rows), x_hat.reshape(-1, width).split(rows), strict=True)
        for part, part_hat in pieces:
            self._add(part.double(), part_hat.double())
        return self

    def result(self) -> Reconstruction:
        """The figures of all vectors so far; `ValueError` if there were none."""
        if self._mean is None or self._deviation is None:
            raise ValueError("no vectors were given; call update at least once")
        variance = float(self._deviation.sum())
        fvu = self._error / variance if variance > 0 else math.nan
        return Reconstruction(fvu, 1 - fvu, self._error / (self._tokens * len(self._mean)), self._tokens)

    def _add(self, x: Tensor, x_hat: Tensor) -> None:
        n = len(x)
        if not n:
            return
        mean = x.mean(0)
        deviation = (x - mean).square().sum(0)
        if self._mean is None or self._deviation is None:
            self._mean, self._deviation = torch.zeros_like(mean), torch.zeros_like(mean)
        shift, total = mean - self._mean, self._tokens + n
        self._deviation = self._deviation + deviation + shift.square() * (self._tokens * n / total)
        self._mean = self._mean + shift * (n / total)
        self._tokens = total
        # torch splits the sum of a whole tensor among its threads; a column's sum has the same bits for any number.
        self._error += float((x - x_hat).square().sum(0).sum())


class Firing:
    """Activity of features over a stream of activations: `update` many times, then read `l0` and `density`."""

    def __init__(self) -> None:
        """Start with no tokens."""
        self._tokens = 0
        self._fired: Tensor | None = None

    def update(self, acts: Tensor) -> Firing:
        """Take in feature activations [..., d_sae]; returns itself. Active means not 0."""
        flat = acts.reshape(-1, acts.shape[-1])
        fired = (flat != 0).sum(0)
        self._fired = fired if self._fired is None else self._fired + fired
        self._tokens += len(flat)
        return self

    def l0(self) -> float:
        """Mean number of active features a token."""
        return float(self.density().sum())

    def density(self) -> Tensor:
        """Share of tokens on which each feature is active, float64 [d_sae]; `ValueError` if there were no tokens."""
        if self._fired is None or not self._tokens:
            raise ValueError("no activations were given; call update with at least one token")
        return self._fired.double() / self._tokens


def l0(acts: Tensor) -> float:
    """Mean number of active (non-zero) features a token; acts are [..., d_sae]."""
    return Firing().update(acts).l0()


def density(acts: Tensor) -> Tensor:
    """Share of tokens on which each feature is active, float64 [d_sae]; acts are [..., d_sae]."""
    return Firing().update(acts).density()


def dead_share(fired: Tensor) -> float:
    """Share of features that never fire; `fired` is the density (or count of firings) of each feature, [d_sae]."""
    return float((fired == 0).double().mean())


def fvu(x: Tensor, x_hat: Tensor) -> float:
    """Fraction of variance unexplained, ‖x − x̂‖² / ‖x − mean x‖², pooled over tokens; both are [..., d_in].

    The mean is that of each dimension over all tokens. nan if x is constant. Raises as `Variance.update` does.
    """
    return Variance().update(x, x_hat).result().fvu


def explained_variance(x: Tensor, x_hat: Tensor) -> float:
    """1 − `fvu`."""
    return Variance().update(x, x_hat).result().explained_variance


def mse(x: Tensor, x_hat: Tensor) -> float:
    """Mean over all elements of (x − x̂)²; both are [..., d_in]."""
    return Variance().update(x, x_hat).result().mse


def ce_loss_recovered(ce_clean: float, ce_sae: float, ce_zero: float) -> float:
    """(CE_zero − CE_sae) / (CE_zero − CE_clean): 1 if splicing in the SAE costs nothing, 0 if as much as zeros do.

    Cross-entropies (nats a token) of the model as it is, with the SAE's reconstruction at the hook point, and with
    zeros there. nan if zero ablation makes no difference.
    """
    return (ce_zero - ce_sae) / (ce_zero - ce_clean) if ce_zero != ce_clean else math.nan


def next_token_accuracy(logits: Tensor, input_ids: Tensor) -> float:
    """Share of positions whose most probable next token is the one that follows, pooled over all blocks.

    logits are [batch, ctx, vocab] and input_ids [batch, ctx]; the last position of a block has no next token. Raises
    `ValueError` if the shapes do not belong together or blocks are shorter than two tokens.
    """
    if logits.shape[:-1] != input_ids.shape or input_ids.ndim != 2 or not input_ids[:, 1:].numel():
        shapes = f"logits are {list(logits.shape)} and input_ids {list(input_ids.shape)}"
        raise ValueError(f"{shapes}; give [batch, ctx, vocab] and [batch, ctx] with at least two tokens a block")
    return float((logits[:, :-1].argmax(-1) == input_ids[:, 1:]).double().mean())
