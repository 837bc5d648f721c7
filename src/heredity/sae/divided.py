"""What ranks do of a sparse step, each for a share of its tokens.

The gradients of both matrices are sums of products over the active entries, fᵀ G and Hᵀ x̄ (see `sae.step`). Not these
sums are exchanged but what they are made of: the entries f and H, and the errors G of each token, from which every rank
sums the gradients as one process does, so that its weights are the same to the bit. That is also less to send than the
rows of the features that fired, as long as more features fire in a batch than it has tokens.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from heredity.engine.ranks import Ranks
from heredity.kernels import step as kernels
from heredity.kernels.encode import sparse_encode
from heredity.kernels.sparse import Sparse, starts_of


def encode(
    ranks: Ranks, x: Tensor, weight: Tensor, bias: Tensor, k: int | None = None, threshold: Tensor | None = None
) -> Sparse:
    """`sparse_encode` of x [n, d_in], in which each token's entries depend on no other token."""
    if ranks.count == 1:
        return sparse_encode(x, weight, bias, k, threshold)
    edges, (first, stop) = ranks.edges(len(x)), ranks.own(len(x))
    own = sparse_encode(x[first:stop], weight, bias, k, threshold)
    counts = np.empty(len(x), np.int64)
    counts[first:stop] = np.diff(own.indptr)
    ranks.fill(counts, edges)
    indptr = starts_of(counts)
    indices, values = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], np.float32)
    for whole, part in ((indices, own.indices), (values, own.values)):
        whole[indptr[first] : indptr[stop]] = part
        ranks.fill(whole, indptr[edges].tolist())
    return Sparse(indptr, indices, values, own.width)


def errors(ranks: Ranks, acts: Sparse, x: np.ndarray, w_dec: np.ndarray, l1_per_entry: float) -> kernels.Errors:
    """`kernels.errors` of all tokens."""
    made, edges = kernels.errors(acts, x, w_dec, l1_per_entry, ranks.own(len(x))), ranks.edges(len(x))
    ranks.fill(made.output_grad, edges)
    ranks.fill(made.act_grad, acts.indptr[edges].tolist())
    ranks.fill(made.squared, edges)
    return made
