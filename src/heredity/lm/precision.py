"""The arithmetic of a language model's matrix products: bf16, or the fastest float32 there is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from heredity.config import Precision
from heredity.kernels.dense import linear


class _FastLinear(TorchFunctionMode):
    """Sends every `nn.Linear` through `kernels.encode.linear`."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.nn.functional.linear:
            return linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


@contextmanager
def arithmetic(device: torch.device, precision: Precision) -> Iterator[None]:
    """While this is open, models on `device` multiply matrices in bf16 (autocast: weights stay as they are) or as they
    come. No gradients: on a CPU, float32 products go to oneDNN, which is faster and cannot be differentiated."""
    if precision == "bf16":
        with torch.autocast(device.type, torch.bfloat16):
            yield
    elif device.type == "cpu":
        with _FastLinear():
            yield
    else:
        yield
