"""SAEs made ready to be trained in another model: turned at random, dead features revived, rows of unit norm.

Not in Chen et al. 2025 (arXiv 2506.06609), who start from the folded SAE as it is. An SAE that is only turned says what
the shape of a trained dictionary is worth without any map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from heredity.sae.checkpoint import Step
from heredity.sae.model import SAE
from heredity.sae.step import Rule
from heredity.sae.train import POOL_BATCHES, resample, start, write_back
from heredity.stitch.affine import Affine, Stitch
from heredity.stitch.moments import Moments
from heredity.stitch.transfer import transfer_sae
from heredity.study import RANKED, SAEConfig

_CUT_ROWS = 1024  # vectors that a batchtopk threshold is set on; before it is, half of all features are active


def turned(sae: SAE, moments: Moments, seed: int) -> SAE:
    """The SAE seen through a random map R [d_a, d_b] with orthonormal rows, or columns where d_a > d_b.

        W_dec' = W_dec R, rows of unit norm        W_enc' = c Rᵀ W_enc        b_dec' = mean_b
        b_enc' = s (b_enc + (mean_a − b_dec) W_enc)        thresholds' = s thresholds

    s² = tr bb / tr aa takes pre-activations from the scale of a to that of b, and c makes their variance, summed over
    features, s² times what it is in the source. So their means and, all together, their variances relate to the
    activations as in the source, and nothing else is known of the target.

    sae: of model A. moments: of both models' activations. The result has the width of b. Raises ValueError when the
    SAE is not as wide as a.
    """
    d_a, d_b = moments.ab.shape
    if sae.d_in != d_a:
        raise ValueError(f"the SAE reads width {sae.d_in}, the moments are of {d_a}; give those of its own hook point")
    normal = torch.randn(max(d_a, d_b), min(d_a, d_b), generator=torch.Generator().manual_seed(seed)).double()
    q, r = torch.linalg.qr(normal)
    q = q * r.diagonal().sign()  # uniform among such maps, whatever the sign that the factorization prefers
    turn = (q if d_a > d_b else q.T).numpy()
    w_enc, b_enc, w_dec, b_dec = (
        getattr(sae, name).double().cpu().numpy() for name in ("W_enc", "b_enc", "W_dec", "b_dec")
    )
    scale = float(np.sqrt(np.trace(moments.bb) / np.trace(moments.aa)))
    moved, rows = turn.T @ w_enc, w_dec @ turn
    spread = np.sum(w_enc * (moments.aa @ w_enc)), np.sum(moved * (moments.bb @ moved))
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    made = SAE(d_b, sae.d_sae, sae.activation, sae.k)
    made.W_enc.copy_(torch.from_numpy(moved * scale * np.sqrt(spread[0] / spread[1])))
    made.b_enc.copy_(torch.from_numpy(scale * (b_enc + (moments.mean_a - b_dec) @ w_enc)))
    made.W_dec.copy_(torch.from_numpy(rows / np.where(norms > 0, norms, 1)))
    made.b_dec.copy_(torch.from_numpy(moments.mean_b))
    if made.threshold is not None and sae.threshold is not None:
        made.threshold.copy_(scale * sae.threshold)
    return made.to(sae.W_dec.device)


def unit_rows(sae: SAE) -> SAE:
    """A copy whose decoder rows have unit norm, as `transfer_sae` normalizes, which says what happens to thresholds."""
    same = Affine(torch.eye(sae.d_in), torch.zeros(sae.d_in))
    return transfer_sae(sae, same, same, normalize=True)


def revived(sae: SAE, dead: np.ndarray, batches: Sequence[Tensor], seed: int) -> tuple[SAE, int]:
    """A copy whose dead features point at badly reconstructed vectors, as the training resamples them; and how many.

    dead: bool [d_sae]. batches: x [n, d_in] each; vectors are picked from the last `POOL_BATCHES` of them. The SAE's
    decoder rows must be of unit norm. See `sae.train.resample`. Raises ValueError as `sae.train.start` does.
    """
    state = start(sae, lambda number: batches[number], {"steps": len(batches)}, continued=True)
    # To the resampling, the batches are steps of a training that has changed nothing so far.
    unknown = float("nan")
    state.rows = [
        Step(number + 1, unknown, unknown, unknown, unknown, 0, None, None, 0) for number in range(len(batches))
    ]
    rule = Rule(sae.activation, sae.k or 0)
    mask = torch.from_numpy(dead).to(sae.W_dec.device)
    count = resample(state, mask, lambda number: batches[number], rule, 20 * POOL_BATCHES, seed)
    made = SAE(sae.d_in, sae.d_sae, sae.activation, sae.k).to(sae.W_dec.device)
    write_back(state, made)
    return made, count


def trainable(sae: SAE, config: SAEConfig, x: Tensor) -> SAE:
    """The SAE with the activation function that the settings train.

    Only batchtopk needs it, which normalizing turns into a jumprelu: its one threshold is set to what keeps k features
    a vector on some of x [n, d_in].
    """
    k = config.k if config.activation in RANKED else None
    if (sae.activation, sae.k) == (config.activation, k):
        return sae
    made = SAE(sae.d_in, sae.d_sae, config.activation, k).to(sae.W_dec.device)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        getattr(made, name).copy_(getattr(sae, name))
    if config.activation == "batchtopk" and made.threshold is not None:
        some = x[:_CUT_ROWS].to(made.W_dec.device)
        values = made.encode_sparse(some)[2]
        kept = min(len(values), config.k * len(some))
        if 0 < kept < len(values):
            made.threshold.fill_(float(np.partition(values, len(values) - kept - 1)[len(values) - kept - 1]))
    return made


class Folding(NamedTuple):
    """How exactly a folded SAE does what it was folded from."""

    error: float
    """Largest element of folded(x) − up(SAE(down(x))) over the root mean square of x, on vectors that both encode by
    the same features; nan without any."""
    other_features: float
    """Share of vectors where rounding made another feature active."""


def folding(sae: SAE, folded: SAE, stitch: Stitch, x: Tensor) -> Folding:
    """Compare the two sides of eq. 6 on vectors x [n, d_b] of the target; all on one device."""
    inner = stitch.down(x)
    codes, given = folded.encode_sparse(x), sae.encode_sparse(inner)
    chosen = [np.split(of[1], of[0][1:-1]) for of in (codes, given)]
    same = np.array([np.array_equal(*pair) for pair in zip(*chosen, strict=True)])
    kept = torch.from_numpy(same).to(x.device)
    off = (folded.decode_sparse(*codes) - stitch.up(sae.decode_sparse(*given)))[kept]
    rms = float(x.double().square().mean().sqrt())
    return Folding(float(off.abs().max()) / rms if same.any() else float("nan"), float(1 - same.mean()))
