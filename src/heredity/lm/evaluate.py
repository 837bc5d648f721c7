"""How well a language model predicts the next token: its quality, its loss in bounded memory, and bf16 or float32.

With a small model nearly all the memory of a training step is logits and their gradient. Walking over the rows in
chunks gives the same numbers without ever holding a batch's logits, in the same time or less.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.overrides import TorchFunctionMode

from heredity.errors import one_of
from heredity.kernels.torch_forms import linear, native_bfloat16
from heredity.lm.hooks import evaluating
from heredity.study import Precision

_CPU_LOGITS, _GPU_LOGITS = 2**22, 2**27  # logits per chunk: 16 and 512 MiB in float32
_STREAMS, _INNER = 64, 16  # bytes per token of a forward pass: for each of the stream's, and of the MLP's dimensions
_MIN_ROWS = 1024  # fewer rows make the matrix products inefficient


class Quality(NamedTuple):
    """Next-token prediction over blocks of tokens; the first token of a block is never predicted."""

    ce_loss: float  # mean cross-entropy in nats per token
    accuracy: float  # share of tokens that are the most likely one under the model
    tokens: int  # predicted tokens: blocks x (context - 1)
    hits: np.ndarray  # correct predictions of each block, int64 [blocks], to bootstrap over blocks


def evaluate(model: nn.Module, blocks: np.ndarray, batch_size: int = 32, precision: Precision = "bf16") -> Quality:
    """Cross-entropy and accuracy on token blocks [blocks, context], micro-averaged over all predicted tokens.

    The model runs where its weights are, in evaluation mode, in float32 or under bf16 autocast where the device has it;
    sums are float64. Logits exist for a few rows at a time only. Raises ValueError for blocks that hold nothing to
    predict or tokens that the model does not know.
    """
    if blocks.ndim != 2 or len(blocks) < 1 or blocks.shape[1] < 2:
        raise ValueError(f"blocks of shape {list(blocks.shape)} hold nothing to predict; give at least 1 x 2 tokens")
    device = next(model.parameters()).device
    known = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    if int(blocks.max()) >= known or int(blocks.min()) < 0:
        raise ValueError(f"blocks hold token {int(blocks.max())}, the model knows {known}; use the model's tokenizer")
    hits, total = np.zeros(len(blocks), dtype=np.int64), 0.0
    with evaluating(model), torch.inference_mode():
        parts = trunk_and_head(model)
        batch_size = min(batch_size, blocks_that_fit(model, blocks.shape[1]) or batch_size)
        for start in range(0, len(blocks), batch_size):
            ids = torch.from_numpy(np.ascontiguousarray(blocks[start : start + batch_size], dtype=np.int64)).to(device)
            correct, ce = [], torch.zeros((), dtype=torch.float64, device=device)
            for logits, labels in _logits(model, parts, ids, precision):
                correct.append(logits.argmax(-1) == labels)
                ce += cross_entropy(logits, labels, reduction="none").sum(dtype=torch.float64)
            hits[start : start + batch_size] = torch.cat(correct).view(len(ids), -1).sum(1).cpu().numpy()
            total += float(ce)
    tokens = len(blocks) * (blocks.shape[1] - 1)
    return Quality(total / tokens, int(hits.sum()) / tokens, tokens, hits)


def unigram_accuracy(train_counts: np.ndarray, blocks: np.ndarray) -> float:
    """Accuracy of always predicting the most frequent training token, on the positions that `evaluate` counts.

    `train_counts` [vocab] are token counts of the training text. Raises ValueError when they are empty.
    """
    if not len(train_counts) or int(np.max(train_counts)) < 1:
        raise ValueError("train_counts are all zero; count the tokens of the training text first")
    return float(np.mean(blocks[:, 1:] == int(np.argmax(train_counts))))


def _logits(
    model: nn.Module, parts: tuple[nn.Module, nn.Linear] | None, ids: torch.Tensor, precision: Precision
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Float32 logits [rows, vocab] with their labels [rows], a bounded number of rows at a time, in order."""
    if parts is None:
        config = getattr(model.config, "text_config", None) or model.config  # type: ignore[union-attr]
        step = max(1, chunk_rows(config.vocab_size, ids.device) // ids.shape[1])  # type: ignore[union-attr]
        for some in ids.split(step):
            with arithmetic(ids.device, precision):
                logits = model(input_ids=some, use_cache=False).logits[:, :-1]
            yield logits.flatten(0, 1).float(), some[:, 1:].flatten()
        return
    trunk, head = parts
    with arithmetic(ids.device, precision):
        hidden = trunk(input_ids=ids, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
    step = chunk_rows(head.out_features, ids.device)
    for rows, labels in zip(hidden.split(step), ids[:, 1:].flatten().split(step), strict=True):
        with arithmetic(ids.device, precision):
            logits = head(rows)
        yield logits.float(), labels


def dtype_of(precision: Precision, device: torch.device) -> torch.dtype:
    """Type of the matrix products: bf16 where requested and multiplied natively by the device, otherwise float32.

    A processor without the instructions would take five times as long as for float32, to a coarser result.
    Raises ValueError for another precision.
    """
    one_of("precision", precision, get_args(Precision))
    native = torch.cuda.is_bf16_supported(False) if device.type == "cuda" else native_bfloat16()
    return torch.bfloat16 if precision == "bf16" and native else torch.float32


def arithmetic(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """While open, models on `device` multiply matrices in the type of `dtype_of` (autocast: weights stay as they are).

    float32 on a GPU is TF32: factors of ten binary digits, eight times as fine as bf16, and sums in float32. Not for
    gradients: on a CPU, float32 products go to oneDNN, which is faster and cannot be differentiated.
    """
    if dtype_of(precision, device) is torch.bfloat16:
        return torch.autocast(device.type, torch.bfloat16)
    return _FastLinear() if device.type == "cpu" else _tf32()


@contextmanager
def _tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def blocks_that_fit(model: nn.Module, context_size: int) -> int | None:
    """Blocks of tokens that a forward pass has memory for on the model's GPU, at least one; None on a CPU.

    Half of the memory that is free counts; the other half is for what is made of the activations.
    """
    device = next(model.parameters()).device
    if device.type != "cuda":
        return None
    config: Any = model.config
    config = config.get_text_config()
    width = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or 4 * width
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + held
    return max(1, free // 2 // (context_size * (_STREAMS * width + _INNER * inner)))


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
    labels = input_ids[:, 1:].flatten()
    return LinearCrossEntropy.apply(hidden[:, :-1].flatten(0, 1), head.weight, labels, dtype)  # type: ignore[return-value]


class LinearCrossEntropy(torch.autograd.Function):
    """loss = mean(logsumexp(z) - z[label]),   dz = (softmax(z) - onehot(label)) / rows,   z = hidden @ weight.T.

    hidden [rows, d_model], weight [vocab, d_model], labels int64 [rows]. The matrix products run in `dtype`, as they
    do under autocast; the softmax and the sums over chunks in float32. The gradients are computed in the forward pass,
    chunk by chunk, while the logits are at hand; 1 / rows comes last.
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
