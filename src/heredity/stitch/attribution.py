"""Whether a feature pushes the same next tokens in the target as in the source (Chen et al. 2025, eq. 10).

The attribution of a feature at a token is its activation times its logit weight for the token that follows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor, nn

from heredity.lm.activations import activations
from heredity.lm.logit_attribution import norm_and_head, through_norm, to_stream, unembedding
from heredity.sae.model import SAE, new_sae
from heredity.stitch.affine import Affine
from heredity.stitch.paired_correlation import Paired, PairedPearson
from heredity.stitch.transfer import transfer_sae
from heredity.study import Precision

_CHUNK = 1 << 22  # numbers made at a time


class Side(NamedTuple):
    """A model and the SAE that reads it, on one device."""

    model: nn.Module
    """In evaluation mode."""
    hook_point: str
    """Where the SAE reads."""
    sae: SAE
    """Feature i of the source's is feature i of the target's."""
    precision: Precision = "float32"
    """Of the model's matrix products."""


class AttributionCorrelation(NamedTuple):
    """How alike the attributions of each feature are in the two models."""

    r: np.ndarray
    """float64 [d_sae]: Pearson over tokens, zeros included; nan where an attribution is constant."""
    source_firings: np.ndarray
    """int64 [d_sae]: tokens on which the feature fires in the source."""
    target_firings: np.ndarray
    """int64 [d_sae]: the same in the target."""
    tokens: int
    """Tokens compared: all but the last of each block, which no token follows."""


def attribution_correlation(source: Side, target: Side, blocks: np.ndarray) -> AttributionCorrelation:
    """Pearson r over tokens t of f_i(t) v_{i, next(t)} in the source and in the target, for every feature i (eq. 10).

    v are the logit weights of the decoder's rows by the direct path: through the gain of the final norm, but not its
    scale, and centered over the vocabulary, which the paper leaves open (see `lm.logits.logit_weights`). blocks: tokens
    [n, context], of a tokenizer both models use. Streamed, sums in float64.

    Raises ValueError when the SAEs differ in size or the blocks hold no next token, and as `logit_weights` does.
    """
    if source.sae.d_sae != target.sae.d_sae:
        raise ValueError(
            f"the SAEs have {source.sae.d_sae} and {target.sae.d_sae} features; give one that was transferred"
        )
    if blocks.ndim != 2 or len(blocks) < 1 or blocks.shape[1] < 2:
        raise ValueError(f"blocks of shape {list(blocks.shape)} hold no next token; give at least 1 x 2 tokens")
    found, done = PairedPearson(source.sae.d_sae), 0
    paths = [_direct_path(side) for side in (source, target)]
    streams = (activations(side.model, side.hook_point, blocks, side.precision) for side in (source, target))
    for xs in zip(*streams, strict=True):
        some = blocks[done : done + len(xs[0]) // blocks.shape[1]]
        done += len(some)
        a, b = (
            _attributions(side.sae, x.view(*some.shape, -1)[:, :-1].flatten(0, 1), path, some[:, 1:].ravel())
            for side, x, path in zip((source, target), xs, paths, strict=True)
        )
        found.add(a, b)
    own = found.result()
    return AttributionCorrelation(own.r, own.source_firings, own.target_firings, own.tokens)


def activation_correlation(source: Side, target: Side, blocks: np.ndarray) -> Paired:
    """r between the activations of feature i of the source's SAE on the source and of the target's on the target.

    blocks: tokens [n, context], of a tokenizer both models use; all positions count. Streamed. Raises ValueError when
    the SAEs differ in size, and as `activations` and `SAE.encode_sparse` do.
    """
    found = PairedPearson(source.sae.d_sae)
    streams = (activations(side.model, side.hook_point, blocks, side.precision) for side in (source, target))
    for x, y in zip(*streams, strict=True):
        found.add(_codes(source.sae, x), _codes(target.sae, y))
    return found.result()


def random_baseline(
    source: Side, target: tuple[nn.Module, str], up: Affine, down: Affine, blocks: np.ndarray, k: int, seed: int
) -> AttributionCorrelation:
    """The same for an SAE of random directions and what the maps make of it: what the maps alone bring about.

    k: features that fire at a token; the L0 of the source's SAE, so that both are equally sparse. The encoder is the
    decoder's transpose, the k largest fire, and the center is that of the source's SAE.
    """
    sae = new_sae(source.sae.d_in, source.sae.d_sae, "topk", k, torch.Generator().manual_seed(seed))
    sae.b_dec.copy_(source.sae.b_dec)
    sae.to(source.sae.W_dec.device)
    moved = transfer_sae(sae, up, down).to(next(target[0].parameters()).device)
    return attribution_correlation(source._replace(sae=sae), Side(*target, moved, source.precision), blocks)


def _direct_path(side: Side) -> tuple[Tensor, Tensor]:
    """Rows [d_sae, d_model] and [vocab, d_model], whose products are logit weights."""
    norm, _ = norm_and_head(side.model)
    with torch.no_grad():
        pushed = through_norm(norm, to_stream(side.model, side.hook_point, side.sae.W_dec.detach()))
        return pushed.float(), unembedding(side.model)


def _attributions(sae: SAE, x: Tensor, path: tuple[Tensor, Tensor], following: np.ndarray) -> csr_array:
    """f_i(t) v_{i, next(t)}, float64 [tokens, d_sae]; the logit weights of what fires, and of nothing else."""
    pushed, rows = path
    indptr, indices, values = sae.encode_sparse(x)
    after = np.repeat(following, np.diff(indptr)).astype(np.int64)
    feature, token = (torch.from_numpy(ids).to(pushed.device) for ids in (indices.astype(np.int64), after))
    effect, step = np.empty(len(values)), max(1, _CHUNK // pushed.shape[1])
    for start in range(0, len(values), step):
        part = slice(start, start + step)
        products = pushed[feature[part]] * rows[token[part]]
        effect[part] = products.sum(1, dtype=torch.float64).cpu().numpy()
    return csr_array((effect * values, indices, indptr), shape=(len(x), sae.d_sae))


def _codes(sae: SAE, x: Tensor) -> csr_array:
    indptr, indices, values = sae.encode_sparse(x)
    return csr_array((values, indices, indptr), shape=(len(x), sae.d_sae))
