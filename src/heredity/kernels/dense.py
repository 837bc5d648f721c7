"""Dense encoding in plain torch: the product every encoder begins with, and the definition of which features fire."""

from __future__ import annotations

import torch
from torch import Tensor


def native_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices natively (AVX512-BF16 or AMX)."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return torch.backends.mkldnn.is_available() and any(getattr(torch.cpu, name, lambda: False)() for name in names)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [n, i] @ weight [o, i].T + bias [o] -> [n, o].

    Float32 on a CPU goes to oneDNN, whose product is up to twice as fast as torch's default; otherwise torch's own.
    """
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
