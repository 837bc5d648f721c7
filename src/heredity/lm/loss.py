"""Next-token loss from hidden states in bounded memory, and the arithmetic of the matrix products: bf16 or float32.

With a small model nearly all the memory of a training step is logits and their gradient. Walking over the rows in
chunks gives the same numbers without ever holding a batch's logits, in the same time or less.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from heredity.kernels.torch_forms import linear, native_bfloat16
from heredity.lm.hooks import evaluating
from heredity.study import Precision

_CPU_LOGITS, _GPU_LOGITS = 2**22, 2**27  # logits per chunk: 16 and 512 MiB in float32
_MIN_ROWS = 1024  # fewer rows make the matrix products inefficient


def dtype_of(precision: Precision, device: torch.device) -> torch.dtype:
    """Type of the matrix products: bf16 where requested and multiplied natively by the device, otherwise float32.

    A processor without the instructions would take five times as long as for float32, to a coarser result.
    """
    native = torch.cuda.is_bf16_supported(False) if device.type == "cuda" else native_bfloat16()
    return torch.bfloat16 if precision == "bf16" and native else torch.float32


def arithmetic(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """While open, models on `device` multiply matrices in the type of `dtype_of` (autocast: weights stay as they are).

    Not for gradients: on a CPU, float32 products go to oneDNN, which is faster and cannot be differentiated.
    """
    if dtype_of(precision, device) is torch.bfloat16:
        return torch.autocast(device.type, torch.bfloat16)
    return _FastLinear() if device.type == "cpu" else nullcontext()


class _FastLinear(TorchFunctionMode):
    """Sends every `nn.Linear` through `kernels.torch_forms.linear`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        return (linear if func is torch.nn.functional.linear else func)(*args, **(kwargs or {}))


def chunk_rows(vocab_size: int, device: torch.device) -> int:
    """Rows of hidden states whose logits are held at once."""
    return max(_MIN_ROWS, (_CPU_LOGITS if device.type == "cpu" else _GPU_LOGITS) // vocab_size)


def trunk_and_head(model: nn.Module) -> tuple[nn.Module, nn.Linear] | None:
    """The part of a decoder that computes hidden states, and the linear map from them to logits.

    None when the logits are anything else than that product: soft-capped or scaled logits, a bias, an adapter on the
    output layer. Decided by comparing both ways on a few tokens, not by a list of families.
    """
    trunk, head = getattr(model, "base_model", None), getattr(model, "get_output_embeddings", lambda: None)()
    if not isinstance(trunk, nn.Module) or trunk is model or type(head) is not nn.Linear or head.bias is not None:
        return None
    ids = torch.arange(8, device=head.weight.device).remainder(head.out_features)[None]
    with evaluating(model), torch.no_grad(), torch.autocast(head.weight.device.type, enabled=False):
        direct = model(input_ids=ids, use_cache=False).logits
        through = head(trunk(input_ids=ids, use_cache=False).last_hidden_state)
    same = direct.shape == through.shape and torch.allclose(direct.float(), through.float(), rtol=1e-4, atol=1e-5)
    return (trunk, head) if same else None


def next_token_loss(trunk: nn.Module, head: nn.Linear, input_ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Mean cross-entropy in nats of predicting each token of [batch, context] from those before it."""
    hidden = trunk(input_ids=input_ids, use_cache=False).last_hidden_state
    # The last position predicts nothing, and slicing before the head saves its logits.
    return linear_cross_entropy(hidden[:, :-1].flatten(0, 1), head.weight, input_ids[:, 1:].flatten(), dtype)


def linear_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Mean cross-entropy in nats of logits = hidden @ weight.T against labels; differentiable.

    hidden [rows, d_model], weight [vocab, d_model], labels int64 [rows]. The matrix products run in `dtype`, as they
    do under autocast; the softmax and the sums over chunks in float32.
    """
    return _LinearCrossEntropy.apply(hidden, weight, labels, dtype)  # type: ignore[return-value]


class _LinearCrossEntropy(torch.autograd.Function):
    """loss = mean(logsumexp(z) - z[label]),   dz = (softmax(z) - onehot(label)) / rows,   z = hidden @ weight.T.

    The gradients are computed in the forward pass, chunk by chunk, while the logits are at hand; 1 / rows comes last.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        rows, step = len(hidden), chunk_rows(len(weight), hidden.device)
        # Autocast would cast the accumulators as well; here every cast is explicit.
        with torch.autocast(hidden.device.type, enabled=False):
            x, w = hidden.to(dtype), weight.to(dtype)
            need_hidden, need_weight = ctx.needs_input_grad[:2]
            d_hidden = torch.empty_like(x) if need_hidden else None
            d_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if need_weight else None
            total = torch.zeros((), dtype=torch.float64, device=hidden.device)
            for start in range(0, rows, step):
                part, target = x[start : start + step], labels[start : start + step, None]
                log_probs = torch.log_softmax(part @ w.T, dim=-1, dtype=torch.float32)
                total -= log_probs.gather(1, target).sum(dtype=torch.float64)
                if not (need_hidden or need_weight):
                    continue
                d_logits = log_probs.exp_()
                d_logits.scatter_add_(1, target, torch.full_like(target, -1, dtype=torch.float32))
                d_logits = d_logits.to(dtype)
                if d_hidden is not None:
                    torch.mm(d_logits, w, out=d_hidden[start : start + step])
                if d_weight is not None:
                    d_weight += d_logits.T @ part
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.rows, ctx.types = rows, (hidden.dtype, weight.dtype)
        return (total / rows).float()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        scale, saved = grads[0] / ctx.rows, zip(ctx.saved_tensors, ctx.types, strict=True)
        return *(None if gradient is None else gradient.to(dtype) * scale for gradient, dtype in saved), None, None
