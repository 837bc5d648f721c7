"""Aligned activations of two models that read the same texts through tokenizers of their own.

Two causal models that have read a text up to the same character know the same of it, whatever the tokens were. Rows are
therefore aligned where a token of both ends at the same character.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from heredity.lm.activations import activations, blocks_at_once
from heredity.stitch.aligned import Points
from heredity.study import Precision

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LEAST = 0.01
"""Share of the positions of the coarser tokenizer, below which texts are not aligned enough to compare."""


def textual(
    a: Points,
    tokenizer_a: PreTrainedTokenizerBase,
    b: Points,
    tokenizer_b: PreTrainedTokenizerBase,
    texts: Sequence[str],
    context_size: int,
    precision: Precision = "float32",
) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Activations of both models at the characters where a token of each ends, as chunks of float32 [rows, d] a point.

    To be used in place of `aligned`, by which maps are fitted between models of one tokenizer (Chen et al. 2025,
    arXiv 2506.06609, leave other pairs to later work). Each text is read from its beginning, at most `context_size`
    tokens of either tokenizer; what a tokenizer adds at the ends is read and left out. Models run on devices of their
    own, one pass a point; rows come back on that of A, in the order of the texts.

    Raises ValueError for a tokenizer without offsets or one that its model does not know, and as soon as less than
    1 % of the positions have a counterpart; HookPointError for an unknown point.
    """
    if isinstance(texts, str):
        raise ValueError("texts is one str, whose characters would be read as texts; give a list of texts")
    encoders = [_encoder(tokenizer, end) for tokenizer, end in ((tokenizer_a, "A"), (tokenizer_b, "B"))]
    device, step = next(a.model.parameters()).device, blocks_at_once(context_size)
    met, seen = 0, np.zeros(2, np.int64)
    for start in range(0, len(texts), step):
        rows_a, rows_b = (_rows(encoder, texts[start : start + step], context_size) for encoder in encoders)
        pairs = [common_ends(x.ends, y.ends) for x, y in zip(rows_a, rows_b, strict=True)]
        # Cut only now: a character whose last token is beyond the context ends at none within.
        pairs = [(i[kept], j[kept]) for i, j in pairs for kept in [(i < context_size) & (j < context_size)]]
        here = sum(len(i) for i, _ in pairs)
        met += here
        seen += [sum(int((row.ends[:context_size] >= 0).sum()) for row in rows) for rows in (rows_a, rows_b)]
        if met < LEAST * seen.min():
            raise ValueError(
                f"{met} of {seen.min()} positions end where one of the other tokenizer does, less than {LEAST:.0%}; "
                "check that both tokenizers give offsets into the text itself"
            )
        if here:
            of_a = _read(a, rows_a, [i for i, _ in pairs], precision)
            of_b = _read(b, rows_b, [j for _, j in pairs], precision)
            yield [x.to(device) for x in of_a], [x.to(device) for x in of_b]


def common_ends(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions in two rows of tokens, int64 [n] each, at which a token of both ends at the same character, in order.

    a, b: int64 [tokens], the character after each token, -1 for tokens that are none of the text. Where several tokens
    share an end, as the bytes of one character do, the last of them has read all of it, and is meant.
    """
    sides = []
    for ends in (a, b):
        known, place = np.unique(ends[::-1], return_index=True)
        sides.append((known[known >= 0], (len(ends) - 1 - place)[known >= 0]))
    _, i, j = np.intersect1d(sides[0][0], sides[1][0], assume_unique=True, return_indices=True)
    return sides[0][1][i], sides[1][1][j]


class _Row(NamedTuple):
    """One text as tokens."""

    ids: np.ndarray
    """int64 [tokens], no more than the context."""
    ends: np.ndarray
    """int64 [all tokens of the text]: the character after each, -1 for special tokens and empty ones."""


def _encoder(tokenizer: PreTrainedTokenizerBase, end: str) -> Tokenizer:
    """The fast tokenizer, whose offsets tell of every character that a token holds."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise ValueError(
            f"tokenizer {end} is a {type(tokenizer).__name__}, which gives no offsets into the text; save it as a fast "
            "tokenizer (tokenizer.json) first"
        )
    # Byte-level tokenizers may leave white space out of the offsets, and would then seem to end where they do not.
    content = json.loads(backend.to_str())
    encoder = Tokenizer.from_str(json.dumps(content | {"post_processor": _untrimmed(content["post_processor"])}))
    encoder.encode_special_tokens = True
    encoder.no_truncation()
    encoder.no_padding()
    return encoder


def _untrimmed(part: Any) -> Any:
    """A description of a tokenizer, or of any part of one, that trims no offsets."""
    if isinstance(part, list):
        return [_untrimmed(each) for each in part]
    if isinstance(part, dict):
        return {name: name != "trim_offsets" and _untrimmed(value) for name, value in part.items()}
    return part


def _rows(encoder: Tokenizer, texts: Sequence[str], context_size: int) -> list[_Row]:
    rows = []
    for found in encoder.encode_batch(list(texts)):
        spans = np.array(found.offsets, np.int64).reshape(-1, 2)
        own = (np.array(found.special_tokens_mask, bool) == 0) & (spans[:, 1] > spans[:, 0])
        rows.append(_Row(np.array(found.ids[:context_size], np.int64), np.where(own, spans[:, 1], -1)))
    return rows


def _read(points: Points, rows: Sequence[_Row], places: Sequence[np.ndarray], precision: Precision) -> list[Tensor]:
    """Activations [places of all rows, d] at each point. Rows are padded at the end, which causal models do not see."""
    blocks = np.zeros((len(rows), max(len(row.ids) for row in rows)), np.int64)
    for block, row in zip(blocks, rows, strict=True):
        block[: len(row.ids)] = row.ids
    known = points.model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    if int(blocks.max()) >= known:
        raise ValueError(
            f"the tokenizer gives token {int(blocks.max())}, its {type(points.model).__name__} knows {known}; "
            "give each model its own tokenizer"
        )
    at = np.concatenate([number * blocks.shape[1] + place for number, place in enumerate(places)])
    read = []
    for hook_point in points.hook_points:
        x = torch.cat(list(activations(points.model, hook_point, blocks, precision)))
        read.append(x[torch.from_numpy(at).to(x.device)])
    return read
