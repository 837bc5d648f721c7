"""How well a language model predicts the next token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from heredity.lm.hooks import evaluating
from heredity.lm.loss import arithmetic, chunk_rows, trunk_and_head
from heredity.study import Precision


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
