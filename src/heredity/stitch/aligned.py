"""Two models on the same text: aligned activations, and each model going on from the other's front through a map.

Models of one tokenizer are aligned by token (`aligned`). Those of different tokenizers are aligned at the characters
where a token of both ends (`aligned_texts`): causal models that have read up to one character know the same of a text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from heredity.lm.activations import blocks_at_once
from heredity.lm.evaluate import Quality, arithmetic, chunk_rows
from heredity.lm.hooks import capture, capture_all, replaced
from heredity.lm.reading import reading_of, samples
from heredity.stitch.affine import Affine
from heredity.study import Precision

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LEAST = 0.01  # least share of aligned positions among those of the coarser tokenizer, for texts to be compared

Place = tuple[nn.Module, str]
"""A model, which runs on its own device in evaluation mode, and a hook point."""


class Points(NamedTuple):
    """A Hugging Face decoder and the hook points to read, each once, in any order."""

    model: nn.Module
    hook_points: Sequence[str]


def aligned(
    a: Points, b: Points, blocks: np.ndarray, masked: Sequence[int] = (), precision: Precision = "float32"
) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Activations of both models on the same token blocks [n, context], in chunks of one float32 [tokens, d] per point.

    masked: ids of tokens left out of both, as is what is no sample at some point of either (see `lm.reading`). Each
    model runs no further than its last point; activations come on A's device. Raises HookPointError for an unknown
    point or one that the forward pass never reaches.
    """
    device, step = next(a.model.parameters()).device, blocks_at_once(blocks.shape[1])
    for start in range(0, len(blocks), step):
        some = np.ascontiguousarray(blocks[start : start + step], np.int64)
        of_a, of_b = ([x.flatten(0, 1).to(device) for x in _captured(side, some, precision)] for side in (a, b))
        kept = torch.from_numpy(~np.isin(some.ravel(), masked)).to(device)
        for side, vectors in ((a, of_a), (b, of_b)):
            kept &= _samples(side, vectors, blocks[start : start + step])
        yield [x[kept] for x in of_a], [x[kept] for x in of_b]


def _samples(points: Points, vectors: Sequence[Tensor], rows: np.ndarray | Tensor) -> Tensor:
    """Which positions are samples at all points of a model, bool [n]. vectors: [n, d] of each point; rows: as of
    `lm.reading.samples`."""
    kept = torch.ones(len(vectors[0]), dtype=torch.bool, device=vectors[0].device)
    for x in vectors:
        own = samples(points.model, x, rows)
        kept &= kept if own is None else own
    return kept


def _captured(points: Points, ids: np.ndarray, precision: Precision) -> list[Tensor]:
    """Activations [*ids.shape, d] at each point, of a forward pass that ends at the last one."""
    device = next(points.model.parameters()).device
    with arithmetic(device, precision):
        return capture_all(points.model, points.hook_points, torch.from_numpy(ids).to(device))


def aligned_texts(
    a: Points,
    tokenizer_a: PreTrainedTokenizerBase,
    b: Points,
    tokenizer_b: PreTrainedTokenizerBase,
    texts: Sequence[str],
    context_size: int,
    precision: Precision = "float32",
) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Activations of both models at the characters where a token of each ends, in chunks like those of `aligned`.

    Of each text, at most the first `context_size` tokens of either tokenizer are read. A model that is read behind a
    prefix (see `lm.reading`) reads that and the text; another reads what its tokenizer adds at the ends, which is left
    out, as is what is no sample. Raises ValueError for a tokenizer without offsets or one that its model does not
    know, and as soon as less than 1 % of the positions have a counterpart; HookPointError for an unknown point.
    """
    if isinstance(texts, str):
        raise ValueError("texts is one str, whose characters would be read as texts; give a list of texts")
    encoders = [_encoder(tokenizer, end) for tokenizer, end in ((tokenizer_a, "A"), (tokenizer_b, "B"))]
    bare = [reading_of(points.model).prefix is not None for points in (a, b)]
    device, step = next(a.model.parameters()).device, blocks_at_once(context_size)
    met, seen = 0, np.zeros(2, np.int64)
    for start in range(0, len(texts), step):
        some = texts[start : start + step]
        rows_a, rows_b = (_rows(encoder, some, context_size, own) for encoder, own in zip(encoders, bare, strict=True))
        pairs = [common_ends(x, y) for (_, x), (_, y) in zip(rows_a, rows_b, strict=True)]
        # Cut only now: a character whose last token lies beyond the context has no end within it.
        pairs = [(i[kept], j[kept]) for i, j in pairs for kept in [(i < context_size) & (j < context_size)]]
        met += (here := sum(len(i) for i, _ in pairs))
        seen += [sum(int((ends[:context_size] >= 0).sum()) for _, ends in rows) for rows in (rows_a, rows_b)]
        if met < LEAST * seen.min():
            few = f"{met} of {seen.min()} positions end where one of the other tokenizer does, less than {LEAST:.0%}"
            raise ValueError(f"{few}; check that both tokenizers give offsets into the text itself")
        if here:
            read = (a, rows_a, [i for i, _ in pairs]), (b, rows_b, [j for _, j in pairs])
            (of_a, kept), (of_b, also) = (_read(*side, precision) for side in read)
            kept = kept.to(device) & also.to(device)
            yield [x.to(device)[kept] for x in of_a], [x.to(device)[kept] for x in of_b]


def block_texts(blocks: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Token blocks [n, context] as texts, parted where a special token ends a document; shortest first, so that few
    rows are padded."""
    special, texts = list(tokenizer.all_special_ids), list[Any]()
    for block in blocks:
        runs = np.split(block, np.flatnonzero(np.isin(block, special)))
        texts += tokenizer.batch_decode(
            [run.tolist() for run in runs if len(run)], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
    return sorted((text for text in texts if text.strip()), key=len)


def common_ends(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions in two rows of tokens, int64 [n] each, at which a token of both ends at the same character, in order.

    a, b: int64 [tokens], the character after each token, -1 for tokens outside the text. Where several tokens share an
    end, as the bytes of one character do, the last of them counts, since it has read all of the character.
    """
    of_a, of_b = ({end: place for place, end in enumerate(ends.tolist()) if end >= 0} for ends in (a, b))
    common = sorted(of_a.keys() & of_b.keys())
    return np.array([of_a[end] for end in common], np.int64), np.array([of_b[end] for end in common], np.int64)


def _encoder(tokenizer: PreTrainedTokenizerBase, end: str) -> Tokenizer:
    """The fast tokenizer, with offsets that cover every character of a token."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        kind = type(tokenizer).__name__
        raise ValueError(f"tokenizer {end} is a {kind}, which gives no offsets; save it as a fast one (tokenizer.json)")
    # Byte-level tokenizers may leave white space out of the offsets, and would then seem to end where they do not.
    content = json.loads(backend.to_str())
    untrimmed = json.dumps(content["post_processor"]).replace('"trim_offsets": true', '"trim_offsets": false')
    encoder = Tokenizer.from_str(json.dumps(content | {"post_processor": json.loads(untrimmed)}))
    encoder.encode_special_tokens = True
    encoder.no_truncation()
    encoder.no_padding()
    return encoder


def _rows(
    encoder: Tokenizer, texts: Sequence[str], context_size: int, bare: bool
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The ids of each text's first tokens, and the character after each of all its tokens (see `common_ends`).

    bare: without what the tokenizer adds at the ends.
    """
    rows = []
    for encoding in encoder.encode_batch(list(texts), add_special_tokens=not bare):
        spans = np.array(encoding.offsets, np.int64).reshape(-1, 2)
        inside = (np.array(encoding.special_tokens_mask, bool) == 0) & (spans[:, 1] > spans[:, 0])
        rows.append((np.array(encoding.ids[:context_size], np.int64), np.where(inside, spans[:, 1], -1)))
    return rows


def _read(
    points: Points,
    rows: Sequence[tuple[np.ndarray, np.ndarray]],
    places: Sequence[np.ndarray],
    precision: Precision,
) -> tuple[list[Tensor], Tensor]:
    """Activations [places of all rows, d] at each point, and which of them are samples. Rows are padded at the end,
    invisible to causal models."""
    blocks = nn.utils.rnn.pad_sequence([torch.from_numpy(ids) for ids, _ in rows], batch_first=True).numpy()
    known, kind = points.model.get_input_embeddings().num_embeddings, type(points.model).__name__  # type: ignore[operator]
    if (highest := int(blocks.max())) >= known:
        raise ValueError(f"the tokenizer gives token {highest}, its {kind} knows {known}; give each model its own one")
    within = torch.from_numpy(np.concatenate(places))
    at = within + torch.from_numpy(np.repeat(np.arange(len(rows)) * blocks.shape[1], [len(own) for own in places]))
    vectors = [x.flatten(0, 1)[at.to(x.device)] for x in _captured(points, blocks, precision)]
    return vectors, _samples(points, vectors, within)


def stitched_loss(
    front: Place,
    through: Callable[[Tensor], Tensor],
    back: Place,
    blocks: np.ndarray,
    special: Collection[int] = (),
    precision: Precision = "float32",
) -> Quality:
    """Next-token prediction of the back model with through(the front model's activation) in place of its own.

    All of the back model's residual stream must pass its hook point. through: float32 [tokens, d_front] -> [tokens,
    d_back]. blocks: tokens [n, context] of a tokenizer both models use. special: tokens read, but not predicted. Raises
    ValueError for blocks without anything to predict, unknown tokens, and a map to another width than the back model's.
    """
    (front_model, front_hook), (back_model, back_hook) = front, back
    sizes = [model.get_input_embeddings().num_embeddings for model in (back_model, front_model)]  # type: ignore[operator]
    if int(blocks.max()) >= min(sizes) or int(blocks.min()) < 0:
        raise ValueError(f"blocks hold token {blocks.max()} of {min(sizes)} known; both models must share a tokenizer")
    counted = ~np.isin(blocks[:, 1:], list(special))  # [n, context - 1]
    if not counted.any():
        raise ValueError(f"blocks {list(blocks.shape)} hold nothing to predict but special tokens; give other tokens")
    device, front_device = (next(model.parameters()).device for model in (back_model, front_model))
    step = max(1, chunk_rows(sizes[0], device) // blocks.shape[1])
    total, hits, training = 0.0, np.zeros(len(blocks), np.int64), back_model.training
    back_model.eval()
    try:
        for start in range(0, len(blocks), step):
            ids = torch.from_numpy(np.ascontiguousarray(blocks[start : start + step], np.int64))
            keep = torch.from_numpy(counted[start : start + step]).to(device)
            with arithmetic(front_device, precision):
                before = capture(front_model, front_hook, ids.to(front_device))
            with torch.no_grad():
                x = through(before.flatten(0, 1)).view(*ids.shape, -1).to(device)
                with replaced(back_model, back_hook, lambda _, x=x: x), arithmetic(device, precision):
                    logits = back_model(input_ids=ids.to(device), use_cache=False).logits[:, :-1]
            logits, labels = logits.flatten(0, 1).float(), ids[:, 1:].flatten().to(device)
            ce = nn.functional.cross_entropy(logits, labels, reduction="none")
            total += float(ce[keep.flatten()].sum(dtype=torch.float64))
            right = (logits.argmax(-1) == labels).view(keep.shape) & keep
            hits[start : start + step] = right.sum(1).cpu().numpy()
    finally:
        back_model.train(training)
    tokens = int(counted.sum())
    return Quality(total / tokens, int(hits.sum()) / tokens, tokens, hits)


BACKS = {"up": "target", "down": "source", "source_round_trip": "source", "target_round_trip": "target"}
"""The model whose back half predicts, by way through the maps."""


def stitched_losses(
    source: Place,
    target: Place,
    up: Affine,
    down: Affine,
    blocks: np.ndarray,
    special: Collection[int] = (),
    precision: Precision = "float32",
    apart: tuple[np.ndarray, Collection[int]] | None = None,
) -> dict[str, Quality]:
    """Both models, `source` and `target`, and the four ways of `BACKS` (table 1), on the same tokens and one device.

    A round trip is a model's own front, mapped there and back. apart: blocks and special tokens of the target where its
    tokenizer is another; no model then goes on from the other's front, and `up` and `down` are left out. Raises as
    `stitched_loss` does.
    """
    ways: dict[str, tuple[Place, Callable[[Tensor], Tensor], Place]] = {
        "source": (source, lambda x: x, source),
        "target": (target, lambda x: x, target),
        "up": (source, up, target),
        "down": (target, down, source),
        "source_round_trip": (source, lambda x: down(up(x)), source),
        "target_round_trip": (target, lambda x: up(down(x)), target),
    }
    own = {"source": (blocks, special), "target": apart or (blocks, special)}
    return {
        way: stitched_loss(front, through, back, *own[BACKS.get(way, way)], precision)
        for way, (front, through, back) in ways.items()
        if apart is None or front is back
    }
