"""Whether feature i does in the target what feature i does in the source: Pearson's r over tokens, of all features.

Feature i of both is one feature: an SAE and its transfer, or one SAE that reads two models. Compared are activations,
and attributions (Chen et al. 2025, eq. 10): activation times the feature's logit weight for the token that follows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import nn

from heredity.lm.activations import activations
from heredity.lm.logit_attribution import norm_and_head, through_norm, to_stream, unembedding
from heredity.sae.model import SAE, new_sae
from heredity.stitch.affine import Affine
from heredity.stitch.transfer import sparse_codes, transfer_sae
from heredity.study import Precision

_CHUNK = 1 << 22  # numbers computed at a time


class Side(NamedTuple):
    """A model in evaluation mode and the SAE that reads it, on one device."""

    model: nn.Module
    hook_point: str
    sae: SAE
    precision: Precision = "float32"  # of the model's matrix products


class Paired(NamedTuple):
    """Activations, or attributions, of each feature in two models, on the same tokens; arrays [d_sae]."""

    r: np.ndarray  # float64: Pearson over tokens, zeros included; nan where either is constant
    source_firings: np.ndarray  # int64: tokens on which the feature fires
    target_firings: np.ndarray
    source_peak: np.ndarray  # float64: largest value, 0 at least
    target_peak: np.ndarray
    tokens: int


def paired_pearson(parts: Iterable[tuple[csr_array, csr_array]], d_sae: int) -> Paired:
    """Pearson's r of column i of one sparse matrix with column i of another, streamed; sums are float64.

    parts: rows of both matrices for the same tokens, [n, d_sae], with a value stored wherever a feature fires. Raises
    ValueError when shapes differ.
    """
    tokens, sums, firings, peaks = 0, np.zeros((5, d_sae)), np.zeros((2, d_sae), np.int64), np.zeros((2, d_sae))
    for pair in parts:
        sides: list[Any] = [part.astype(np.float64) for part in pair]
        x, y = sides
        if x.shape != y.shape or x.shape[1] != d_sae:
            sizes = f"{list(x.shape)} and {list(y.shape)} for {d_sae} features"
            raise ValueError(f"activations are {sizes}; give the same tokens and SAEs of the same size")
        tokens += x.shape[0]
        sums += [m.sum(0) for m in (x, y, x.multiply(x), y.multiply(y), x.multiply(y))]
        firings += [np.bincount(m.indices, minlength=d_sae) for m in sides]
        for peak, m in zip(peaks, sides, strict=True):
            np.maximum.at(peak, m.indices, m.data)
    a, b, aa, bb, ab = sums
    spread = [square - np.square(total) / tokens for square, total in ((aa, a), (bb, b))]
    varies = (spread[0] > 1e-12 * aa) & (spread[1] > 1e-12 * bb)  # rounding leaves a constant some spread
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.clip((ab - a * b / tokens) / np.sqrt(spread[0] * spread[1]), -1, 1)
    return Paired(np.where(varies, r, np.nan), firings[0], firings[1], peaks[0], peaks[1], tokens)


def activation_correlation(source: Side, target: Side, blocks: np.ndarray) -> Paired:
    """r between the activations of feature i of the source's SAE on the source and of the target's on the target.

    blocks: tokens [n, context] of a tokenizer both models use; all positions count. Raises ValueError when the SAEs
    differ in size, and as `activations` and `SAE.encode_sparse` do.
    """
    streams = (activations(side.model, side.hook_point, blocks, side.precision) for side in (source, target))
    pairs = zip(*streams, strict=True)
    codes = ((sparse_codes(source.sae, x), sparse_codes(target.sae, y)) for x, y in pairs)
    return paired_pearson(codes, source.sae.d_sae)


def attribution_correlation(source: Side, target: Side, blocks: np.ndarray) -> Paired:
    """Pearson r over tokens t of f_i(t) v_{i, next(t)} in the source and in the target, for every feature i (eq. 10).

    v are the logit weights of the decoder's rows by the direct path: through the gain of the final norm, but not its
    scale, and centered over the vocabulary, which the paper leaves open (see `lm.logit_attribution.logit_weights`).
    blocks: tokens [n, context] of a tokenizer both models use; the last of each block has no next token and is left
    out. Raises ValueError when the SAEs differ in size, and as `logit_weights` does.
    """
    pairs = zip(_attributions(source, blocks), _attributions(target, blocks), strict=True)
    return paired_pearson(pairs, source.sae.d_sae)


def random_baseline(
    source: Side, target: tuple[nn.Module, str], up: Affine, down: Affine, blocks: np.ndarray, k: int, seed: int
) -> Paired:
    """`attribution_correlation` of a topk SAE of random directions and its transfer: the effect of the maps alone.

    k: the L0 of the source's SAE, so that both are equally sparse. The center is that of the source's SAE.
    """
    sae = new_sae(source.sae.d_in, source.sae.d_sae, "topk", k, torch.Generator().manual_seed(seed))
    sae.b_dec.copy_(source.sae.b_dec)
    sae.to(source.sae.W_dec.device)
    moved = transfer_sae(sae, up, down).to(next(target[0].parameters()).device)
    return attribution_correlation(source._replace(sae=sae), Side(*target, moved, source.precision), blocks)


def _attributions(side: Side, blocks: np.ndarray) -> Iterator[csr_array]:
    """f_i(t) v_{i, next(t)}, float64 [tokens, d_sae] in chunks; logit weights are computed for firing features only."""
    norm, _ = norm_and_head(side.model)
    with torch.no_grad():
        # Rows [d_sae, d_model] and [vocab, d_model], whose products are logit weights.
        pushed = through_norm(norm, to_stream(side.model, side.hook_point, side.sae.W_dec.detach())).float()
        rows = unembedding(side.model)
    done, step = 0, max(1, _CHUNK // pushed.shape[1])
    for x in activations(side.model, side.hook_point, blocks, side.precision):
        some = blocks[done : done + len(x) // blocks.shape[1]]
        done += len(some)
        x = x.view(*some.shape, -1)[:, :-1].flatten(0, 1)
        indptr, indices, values = side.sae.encode_sparse(x)
        after = np.repeat(some[:, 1:].ravel(), np.diff(indptr)).astype(np.int64)
        feature, token = (torch.from_numpy(ids).to(pushed.device) for ids in (indices.astype(np.int64), after))
        effect = np.empty(len(values))
        for start in range(0, len(values), step):
            part = slice(start, start + step)
            products = pushed[feature[part]] * rows[token[part]]
            effect[part] = products.sum(1, dtype=torch.float64).cpu().numpy()
        yield csr_array((effect * values, indices, indptr), shape=(len(x), side.sae.d_sae))
