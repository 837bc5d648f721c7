"""The arithmetic of a language model's matrix products: bf16, or the fastest float32 there is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from heredity.kernels.torch_forms import linear, native_bfloat16
from heredity.study import Precision


class _FastLinear(TorchFunctionMode):
    """Sends every `nn.Linear` through `kernels.torch_forms.linear`."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.nn.functional.linear:
            return linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def dtype_of(precision: Precision, device: torch.device) -> torch.dtype:
    """Type that matrices are multiplied in: bf16 where it is asked for and the device multiplies it natively.

    A processor without the instructions would take five times as long as for float32, to a coarser result.
    """
    native = torch.cuda.is_bf16_supported(False) if device.type == "cuda" else native_bfloat16()
    return torch.bfloat16 if precision == "bf16" and native else torch.float32


@contextmanager
def arithmetic(device: torch.device, precision: Precision) -> Iterator[None]:
    """While this is open, models on `device` multiply matrices in bf16 (autocast: weights stay as they are) or as they
    come. See `dtype_of`. No gradients: on a CPU, float32 products go to oneDNN, which is faster and cannot be
    differentiated."""
    if dtype_of(precision, device) is torch.bfloat16:
        with torch.autocast(device.type, torch.bfloat16):
            yield
    elif device.type == "cpu":
        with _FastLinear():
            yield
    else:
        yield
