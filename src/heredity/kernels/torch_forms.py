"""Kernels in plain torch: the definition of encoding, and the sparse kernels in a form that suits GPUs.

The same mathematics as `encode`, `step` and `pearson` in few large operations, without a loop over tokens or features.
Everything runs on any device, so a CPU tests it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from heredity.kernels import pearson
from heredity.kernels.pearson import Best, TopPearson, empty_best, listed
from heredity.kernels.sparse import Sparse, moments

CHUNK_ELEMENTS = 1 << 26  # pre-activations made at a time, and elements gathered at a time for dot products of entries
CAPACITY = 0.0625  # share of the features that the candidates of a screen may reach before float32 is cheaper
OUTPUT_ROUNDING = 0.004  # bound of the relative error of rounding to bfloat16, 2^-8, and a little more
DEVICE_MEMORY = 1 << 33  # bytes that matching may take on the device
_BYTES_PER_PAIR = 80  # of a listed pair: positions of both entries, target and product, and what they are made with
_BYTES_PER_R = 48  # of an element of the rows that become r together: r, masks, bins, a sort where there are ties


def native_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices natively (AVX512-BF16 or AMX)."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return torch.backends.mkldnn.is_available() and any(getattr(torch.cpu, name, lambda: False)() for name in names)


@cache
def has_triton(device: torch.device) -> bool:
    """Whether the kernels in Triton serve a device: one with CUDA and bfloat16 products, where Triton compiles."""
    if device.type != "cuda" or find_spec("triton") is None or torch.cuda.get_device_capability(device)[0] < 8:
        return False
    from heredity.kernels.triton_forms import rounded  # optional

    try:  # Triton needs a C compiler and headers that not every machine has
        rounded(torch.zeros(1, 1, device=device))
    except Exception:
        return False
    return True


def moved(x: Tensor, device: torch.device) -> Tensor:
    """x on a device: to a GPU by way of pinned memory, so that the copy goes on while the device works."""
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [n, i] @ weight [o, i].T + bias [o] -> [n, o]: float32 on a CPU by oneDNN, up to twice as fast as torch's."""
    if x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return torch.nn.functional.linear(x, weight, bias)


def dense_encode(pre_acts: Tensor, k: int | None, threshold: Tensor | None) -> Tensor:
    """Activations [n, d_sae] of pre-activations [n, d_sae]: the plain definition, on any device.

    With k, the k largest positive pre-activations of each token; otherwise those above the threshold (scalar or
    [d_sae]; none means 0), which is never taken below 0.
    """
    if k is not None:
        top = pre_acts.topk(k, dim=-1)
        return torch.zeros_like(pre_acts).scatter_(-1, top.indices, top.values.relu())
    if threshold is None:
        return pre_acts.relu()
    return torch.where(pre_acts > threshold.clamp(min=0), pre_acts, torch.zeros_like(pre_acts))


class Entries(NamedTuple):
    """Active features of n tokens, in the order of tokens, then features."""

    tokens: Tensor  # int64 [nnz]
    features: Tensor  # int64 [nnz]
    values: Tensor  # float32 [nnz], all above 0


def active_entries(x: Tensor, weight: Tensor, bias: Tensor, k: int | None, threshold: Tensor | None) -> Entries:
    """Active features of centered rows x [n, d_in]; arguments as in `encode.sparse_encode`."""
    floor = bias.new_zeros(()) if threshold is None else threshold.to(bias).clamp(min=0)
    screening = _screening(x, weight)
    parts, at = [], 0
    for chunk in x.split(max(1, CHUNK_ELEMENTS // len(weight))):
        entries = screening(chunk, weight, bias, k=k, floor=floor) if screening else None
        if entries is None:
            acts = dense_encode(torch.nn.functional.linear(chunk, weight, bias), k, floor)
            tokens, features = acts.nonzero(as_tuple=True)
            entries = Entries(tokens, features, acts[tokens, features])
        parts.append(entries._replace(tokens=entries.tokens + at))
        at += len(chunk)
    return Entries(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _screening(x: Tensor, weight: Tensor) -> Callable[..., Entries | None] | None:
    """How the device screens, if it does: bfloat16 products are so much faster than float32 ones on GPUs of this kind.

    Rows of another type than float32 are not screened.
    """
    if x.device.type != "cuda" or torch.cuda.get_device_capability(x.device)[0] < 8 or x.dtype != torch.float32:
        return None
    if not has_triton(x.device):
        return screened_entries
    from heredity.kernels.triton_forms import chosen_entries, weight_screen  # optional

    return partial(chosen_entries, screen=weight_screen(weight.contiguous()))


def screened_entries(x: Tensor, weight: Tensor, bias: Tensor, k: int | None, floor: Tensor) -> Entries | None:
    """Entries by a bfloat16 product and float32 dots of its candidates (see `encode`); None for too many candidates."""
    d_sae, d_in = weight.shape
    x_low, weight_low = x.bfloat16(), weight.bfloat16()
    rounding, weight_rounding = ((a - b.float()).norm(dim=1) for a, b in ((x, x_low), (weight, weight_low)))
    norm, weight_norm = x.norm(dim=1), weight.norm(dim=1)
    rounding = rounding + d_in * 2.0**-22 * norm
    settings = torch.backends.cuda.matmul
    before, settings.allow_bf16_reduced_precision_reduction = settings.allow_bf16_reduced_precision_reduction, False
    try:  # sums in float32
        products = (x_low @ weight_low.T).float()
    finally:
        settings.allow_bf16_reduced_precision_reduction = before
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


def _largest_of_tokens(entries: Entries, n: int, k: int) -> Entries:
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
    pairs = max(1, CHUNK_ELEMENTS // x.shape[1])
    parts = zip(tokens.split(pairs), features.split(pairs), strict=True)
    return torch.cat([(x[t] * weight[f]).sum(1) for t, f in parts]) if len(tokens) else x.new_zeros(0)


def sums(starts: Tensor, rows: Tensor, table: Tensor, weights: Tensor) -> Tensor:
    """[n, d]: Σ weights[e] · table[rows[e]] over the entries starts[i] to starts[i + 1] of each i; starts [n + 1]."""
    return embedding_bag(rows, table, starts, mode="sum", per_sample_weights=weights, include_last_offset=True)


def key_starts(keys: Tensor, n: int) -> Tensor:
    """int64 [n + 1]: where the entries of each key start, for sorted keys in [0, n)."""
    return torch.nn.functional.pad(torch.bincount(keys, minlength=n).cumsum(0), (1, 0))


class Scales(NamedTuple):
    """What turns products into r, of a range of features."""

    mean: Tensor  # float64 [features]
    scale: Tensor  # float64 [features]: see `pearson.Stats`


class Counts(NamedTuple):
    """Counts over all pairs of features, on the device."""

    thresholds: Tensor  # float64 [thresholds]
    over: Tensor  # int64 [thresholds]: pairs with r above each
    histogram: Tensor  # int64 [bins]


class PairForm(NamedTuple):
    """How products of both ends' activations are made on a device."""

    memory: Callable[[np.ndarray, np.ndarray], np.ndarray]  # entries of each token at both ends -> bytes in a block
    block: Callable[[Sparse, Sparse, tuple[int, int], torch.device], Any]  # both ends on a range of tokens
    add: Callable[[Tensor, Any, int, int], None]  # adds products of a block for a range of parent features
    to_r: Callable[[Tensor, int, Scales, Scales, Counts], Tensor]  # products as r, in place, and counted


def top_pearson_torch(
    parent: Sparse,
    child: Sparse,
    top: int,
    device: str | torch.device,
    progress: Callable[[int, int], None] | None = None,
    *,
    memory: int = DEVICE_MEMORY,
    parent_range: tuple[int, int] | None = None,
    thresholds: Sequence[float] = pearson.THRESHOLDS,
    bins: int = pearson.BINS,
    form: PairForm | None = None,
) -> TopPearson:
    """What `top_pearson` gives, on any torch device, for the same arguments.

    The matrix of products exists for a tile of parent features at a time; only the best partners are kept of it. Work
    is one multiplication per pair of entries of a token, in float64: at L0 = 30 and 16,384 features one where a product
    of dense matrices has 300,000. A GPU adds in no fixed order: r agrees with `top_pearson` to 1e-12, and two partners
    whose r differ by less may change places. memory: bytes to take on the device, half for the products of a tile, half
    for a block of tokens or of rows of r. form: how products are made, by default the fastest that the device has.
    """
    start, stop = pearson.checked_range(parent, top, parent_range)
    device, tokens = torch.device(device), len(child.indptr) - 1
    stats = [array for end in (parent, child) for array in pearson.stats_of(moments(end), end)]
    mean, scale, child_mean, child_scale = (torch.from_numpy(array).to(device) for array in stats)
    form = form or _pair_form(device)
    parts = list(pearson.tiles(form.memory(np.diff(parent.indptr), np.diff(child.indptr)), memory // 2))
    held = [form.block(parent, child, part, device) for part in parts] if len(parts) == 1 else None
    best, child_best = empty_best(stop - start, top), empty_best(child.width, top)
    counts = Counts(
        torch.tensor(thresholds, dtype=torch.float64, device=device),
        torch.zeros(len(thresholds), dtype=torch.int64, device=device),
        torch.zeros(bins, dtype=torch.int64, device=device),
    )
    in_tile = max(1, memory // 2 // (8 * max(child.width, 1)))
    in_rows = max(1, memory // 2 // (_BYTES_PER_R * max(child.width, 1)))
    for a in range(start, stop, in_tile):
        b = min(a + in_tile, stop)
        products = torch.zeros(b - a, child.width, dtype=torch.float64, device=device)
        for entries in held or (form.block(parent, child, part, device) for part in parts):
            form.add(products, entries, a, b)
        for first in range(a, b, in_rows):
            last = min(first + in_rows, b)
            ends = Scales(mean[first:last], scale[first:last]), Scales(child_mean, child_scale)
            r = form.to_r(products[first - a : last - a], tokens, *ends, counts)
            best.r[first - start : last - start], best.match[first - start : last - start] = _best(r, top)
            child_best = pearson.merged([child_best, _best(r.T.contiguous(), top, first)])
        if progress is not None:
            progress(b - start, stop - start)
    over, histogram = counts.over.cpu().numpy(), counts.histogram.cpu().numpy()
    return TopPearson(*listed(best), *listed(child_best), (start, stop), tuple(thresholds), over, histogram)


def device_rows(matrix: Sparse, tokens: tuple[int, int], device: torch.device) -> list[Tensor]:
    """[starts, columns, values] of the rows of a range of tokens, on the device."""
    start, stop = tokens
    entries = slice(matrix.indptr[start], matrix.indptr[stop])
    arrays = (matrix.indptr[start : stop + 1] - entries.start, matrix.indices[entries], matrix.values[entries])
    # Copies: the arrays are read-only, which torch has no notion of.
    return [torch.tensor(array, device=device) for array in arrays]


def _block(parent: Sparse, child: Sparse, tokens: tuple[int, int], device: torch.device) -> list[list[Tensor]]:
    return [device_rows(end, tokens, device) for end in (parent, child)]


def _add_products(products: Tensor, entries: list[list[Tensor]], start: int, stop: int) -> None:
    """products[p - start, c] += parent * child over all pairs of entries of one token with p from start to stop.

    The pairs of each token are listed and their products scattered.
    """
    (starts, features, values), (child_starts, child_features, child_values) = entries
    inside = ((features >= start) & (features < stop)).nonzero()[:, 0]
    rows = torch.arange(len(starts) - 1, device=starts.device)
    row = torch.repeat_interleave(rows, starts.diff(), output_size=len(features))[inside]
    partners = child_starts.diff()[row]
    ends = partners.cumsum(0)
    pairs = int(ends[-1]) if len(ends) else 0
    entry = torch.repeat_interleave(torch.arange(len(row), device=row.device), partners, output_size=pairs)
    # The pairs of a parent entry are numbered through; the child's entries of its row are, too.
    other = torch.arange(pairs, device=row.device) + (child_starts[row] - ends + partners)[entry]
    entry = inside[entry]
    target = (features[entry] - start).long() * products.shape[1] + child_features[other]
    products.view(-1).index_add_(0, target, values[entry].double() * child_values[other])


def _to_r(products: Tensor, tokens: int, parent: Scales, child: Scales, counts: Counts) -> Tensor:
    """Products [features, d_child] as r, in place, -inf for constant features; r of all pairs are counted."""
    mean, scale = parent.mean[:, None], parent.scale[:, None]
    r = products.sub_(tokens * (mean * child.mean)).mul_(scale * child.scale)
    r.clamp_(-1.0, 1.0).masked_fill_((scale == 0) | (child.scale == 0), -torch.inf)
    for place, threshold in enumerate(counts.thresholds):
        counts.over[place] += (r > threshold).sum()
    if bins := len(counts.histogram):
        bin_of = ((r[r > -torch.inf] + 1.0) * (bins / 2)).long().clamp_(max=bins - 1)
        counts.histogram.add_(torch.bincount(bin_of, minlength=bins))
    return r


def _pair_form(device: torch.device) -> PairForm:
    if not has_triton(device):
        return LISTED
    from heredity.kernels.triton_pearson import FORM  # optional

    return FORM


LISTED = PairForm(
    lambda parent, child: _BYTES_PER_PAIR * (parent * child + parent + child), _block, _add_products, _to_r
)


def _best(r: Tensor, top: int, first: int = 0) -> Best:
    """The best of each row of r [features, partners], -inf for none; ties, whose order topk leaves open, sorted."""
    kept = min(top, r.shape[1])
    value, index = torch.topk(r, kept, dim=1)
    listed = value > -torch.inf
    tied = ((value[:, 1:] == value[:, :-1]) & listed[:, 1:]).any(1)
    tied |= listed[:, -1] & ((r >= value[:, -1:]).sum(1) > kept)
    if tied.any():
        ordered = torch.sort(r[tied], dim=1, descending=True, stable=True)
        value[tied], index[tied] = ordered.values[:, :kept], ordered.indices[:, :kept]
    best = empty_best(len(r), top)
    best.r[:, :kept] = value.cpu().numpy()
    best.match[:, :kept] = torch.where(listed, index + first, -1).cpu().numpy()
    return best
