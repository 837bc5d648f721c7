"""The sparse kernels in plain torch, for GPUs: active entries of a batch, and the gradients that follow from them.

The same mathematics as `encode`, `screen` and `sparse_step` in a form a GPU likes: few large operations, no loop over
tokens or features. Everything runs on any device, so a CPU tests it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from heredity.kernels.dense import dense_encode
from heredity.kernels.screen import CAPACITY, OUTPUT_ROUNDING

CHUNK_ELEMENTS = 1 << 26
"""Pre-activations made at a time."""

DOT_ELEMENTS = 1 << 26
"""Elements gathered at a time for dot products of entries."""


class Entries(NamedTuple):
    """Active features of n tokens, in the order of tokens, then features."""

    tokens: Tensor
    """int64 [nnz]."""
    features: Tensor
    """int64 [nnz]."""
    values: Tensor
    """float32 [nnz], all above 0."""


class EntryGradients(NamedTuple):
    """Derivatives of the loss and what the batch was like."""

    w_enc: Tensor
    """[d_sae, d_in]."""
    b_enc: Tensor
    """[d_sae]."""
    w_dec: Tensor
    """[d_sae, d_in]."""
    act_grad: Tensor
    """[nnz]: derivative of the loss by each entry."""
    output_grad_sum: Tensor
    """float64 [d_in]: sum over tokens of the derivative by the reconstruction."""
    squared: Tensor
    """float64 scalar: Σ ‖x − x̂‖²."""


def screens(device: torch.device) -> bool:
    """Whether bfloat16 products are so much faster than float32 ones on this device that screening pays."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8


def active_entries(x: Tensor, weight: Tensor, bias: Tensor, k: int | None, threshold: Tensor | None) -> Entries:
    """Active features of centered rows x [n, d_in]; arguments as in `encode.sparse_encode`."""
    floor = bias.new_zeros(()) if threshold is None else threshold.to(bias).clamp(min=0)
    parts, at = [], 0
    for chunk in x.split(max(1, CHUNK_ELEMENTS // len(weight))):
        found = screened_entries(chunk, weight, bias, k, floor) if screens(x.device) else None
        if found is None:
            found = _dense_entries(torch.nn.functional.linear(chunk, weight, bias), k, floor)
        parts.append(found._replace(tokens=found.tokens + at))
        at += len(chunk)
    return Entries(*(torch.cat(part) for part in zip(*parts, strict=True)))


def screened_entries(x: Tensor, weight: Tensor, bias: Tensor, k: int | None, floor: Tensor) -> Entries | None:
    """Entries by a bfloat16 product and float32 dot products of its candidates (see `screen` for the bounds).

    None when there are too many candidates for that to pay.
    """
    d_sae, d_in = weight.shape
    x_low, weight_low = x.bfloat16(), weight.bfloat16()
    rounding, weight_rounding = ((a - b.float()).norm(dim=1) for a, b in ((x, x_low), (weight, weight_low)))
    norm, weight_norm = x.norm(dim=1), weight.norm(dim=1)
    rounding = rounding + d_in * 2.0**-22 * norm
    products = _product(x_low, weight_low)
    error = torch.outer(rounding, weight_norm).addr_(norm + rounding, weight_rounding)
    error += OUTPUT_ROUNDING * (products.abs() + bias.abs())
    middle = products.add_(bias)
    # k pre-activations are certainly above the k-th lower bound: what cannot reach it is not among the k largest.
    cut = floor if k is None else (middle - error).topk(k, dim=1).values[:, -1:].clamp(min=0)
    tokens, features = (middle.add_(error) > cut).nonzero(as_tuple=True)
    if len(tokens) > CAPACITY * products.numel():
        return None
    values = dots(x, weight, tokens, features) + bias[features]
    keep = values > floor.expand(d_sae)[features]
    entries = Entries(tokens[keep], features[keep], values[keep])
    return entries if k is None else _largest_of_tokens(entries, len(x), k)


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """bfloat16 x @ weight.T with float32 sums."""
    if x.device.type != "cuda":
        return (x @ weight.T).float()
    before = torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    try:
        return (x @ weight.T).float()
    finally:
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = before


def _dense_entries(pre_acts: Tensor, k: int | None, floor: Tensor) -> Entries:
    acts = dense_encode(pre_acts, k, floor)
    tokens, features = acts.nonzero(as_tuple=True)
    return Entries(tokens, features, acts[tokens, features])


def _largest_of_tokens(entries: Entries, n: int, k: int) -> Entries:
    """The k largest entries of each token."""
    counts = torch.bincount(entries.tokens, minlength=n)
    places = torch.arange(len(entries.tokens), device=counts.device) - (counts.cumsum(0) - counts)[entries.tokens]
    width = max(int(counts.max()), k) if len(places) else k
    padded = entries.values.new_full((n, width), -torch.inf)
    padded[entries.tokens, places] = entries.values
    chosen = torch.zeros_like(padded, dtype=torch.bool).scatter_(1, padded.topk(k, dim=1).indices, True)
    keep = chosen[entries.tokens, places]
    return Entries(*(part[keep] for part in entries))


def largest_entries(entries: Entries, count: int) -> Entries:
    """The `count` largest entries over all tokens together (BatchTopK)."""
    if len(entries.values) <= count:
        return entries
    keep = entries.values.topk(count, sorted=False).indices.sort().values
    return Entries(*(part[keep] for part in entries))


def dots(x: Tensor, weight: Tensor, tokens: Tensor, features: Tensor) -> Tensor:
    """x[t] · weight[f] of each pair (t, f)."""
    pairs = max(1, DOT_ELEMENTS // x.shape[1])
    parts = zip(tokens.split(pairs), features.split(pairs), strict=True)
    return torch.cat([(x[t] * weight[f]).sum(1) for t, f in parts]) if len(tokens) else x.new_zeros(0)


def entry_gradients(
    entries: Entries, x: Tensor, w_dec: Tensor, l1_per_entry: float, active: Tensor | None = None
) -> EntryGradients:
    """Gradients of the loss in `heredity.sae.gradients` from its active entries.

    x: [n, d_in], centered; w_dec: [d_sae, d_in]; l1_per_entry: derivative of the L1 term by one entry, λ / n;
    active: bool [nnz], entries through which the encoder learns, by default all.
    """
    tokens, features, values = entries
    n, d_in = x.shape
    error = _sums(features, w_dec, _starts(tokens, n), values) - x
    squared = error.square().sum(dtype=torch.float64)
    output_grad = error.mul_(2 / (n * d_in))
    act_grad = dots(output_grad, w_dec, tokens, features) + l1_per_entry
    back = act_grad if active is None else act_grad * active
    order = features.argsort(stable=True)
    by_feature, starts = tokens[order], _starts(features[order], len(w_dec))
    return EntryGradients(
        w_enc=_sums(by_feature, x, starts, back[order]),
        b_enc=torch.zeros_like(w_dec[:, 0]).index_add_(0, features, back),
        w_dec=_sums(by_feature, output_grad, starts, values[order]),
        act_grad=act_grad,
        output_grad_sum=output_grad.sum(0, dtype=torch.float64),
        squared=squared,
    )


def _starts(sorted_keys: Tensor, n: int) -> Tensor:
    counts = torch.bincount(sorted_keys, minlength=n)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _sums(rows: Tensor, table: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """Σ weights[e] · table[rows[e]] over the entries e of each stretch from starts[i] to starts[i + 1]."""
    return embedding_bag(rows, table, starts, mode="sum", per_sample_weights=weights, include_last_offset=True)
