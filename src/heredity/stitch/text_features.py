"""What a model has at a hook point for a list of texts, and its mean over each text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array, vstack
from torch import Tensor

from heredity.lm.activations import activations, blocks_at_once
from heredity.sae.model import SAE
from heredity.study import Precision

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Vectors(NamedTuple):
    """Vectors at the tokens of some texts, without special tokens. A text is here whole or not at all."""

    x: Tensor
    """float32 [tokens, d_in]."""
    text: np.ndarray
    """int64 [tokens]: number of the text that each token belongs to."""


class Dictionary(NamedTuple):
    """An SAE and the way of the vectors to it."""

    sae: SAE
    """Its activations are averaged."""
    through: Callable[[Tensor], Tensor] | None = None
    """Map that brings the vectors to the SAE's space; none if they are of that space."""


class Means(NamedTuple):
    """Means over the tokens of each text."""

    x: np.ndarray
    """float64 [texts, d_in]: of the vectors."""
    features: list[csr_array]
    """Of the feature activations of each dictionary, float64 [texts, d_sae]; zeros are not stored."""


def text_vectors(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    hook_point: str,
    texts: Sequence[str],
    context_size: int,
    precision: Precision = "float32",
) -> Iterator[Vectors]:
    """Vectors at every token of the texts but the special ones, several texts at a time, the longest texts first.

    Each text is read from its beginning, at most `context_size` tokens of it. The model must be causal: shorter texts
    of a batch are padded at the end, which their own tokens do not see. Raises ValueError for a text without tokens,
    and as `activations` does.
    """
    special = list(tokenizer.all_special_ids)
    found: Any = tokenizer(list(texts), verbose=False)["input_ids"] if texts else []
    ids = [np.array(own[:context_size], np.int64) for own in found]
    for number, own in enumerate(ids):
        if np.isin(own, special).all():
            raise ValueError(f"text {number}, {texts[number][:40]!r}, has no token; leave out texts that are empty")
    order = sorted(range(len(ids)), key=lambda number: -len(ids[number]))
    while order:
        longest = len(ids[order[0]])
        some, order = order[: blocks_at_once(longest)], order[blocks_at_once(longest) :]
        blocks, kept = np.zeros((len(some), longest), np.int64), np.zeros((len(some), longest), bool)
        for row, number in enumerate(some):
            blocks[row, : len(ids[number])] = ids[number]
            kept[row, : len(ids[number])] = ~np.isin(ids[number], special)
        x = torch.cat(list(activations(model, hook_point, blocks, precision)))
        yield Vectors(x[torch.from_numpy(kept.ravel()).to(x.device)], np.repeat(some, kept.sum(1)))


def means(stream: Iterable[Vectors], texts: int, dictionaries: Sequence[Dictionary] = ()) -> Means:
    """Means over each of `texts` texts of their vectors and of any number of dictionaries' activations, in one pass.

    A feature's mean is above 0 exactly when it fires on a token of the text. Raises ValueError when a text has no
    vectors, and as `SAE.encode_sparse` does.
    """
    order, dense, sparse = [], [], [[] for _ in dictionaries]
    for x, text in stream:
        own, row, count = np.unique(text, return_inverse=True, return_counts=True)
        average = csr_array((1 / count[row], (row, np.arange(len(row)))), shape=(len(own), len(row)))
        order.append(own)
        dense.append(average @ x.double().cpu().numpy())
        for (sae, through), part in zip(dictionaries, sparse, strict=True):
            indptr, indices, values = sae.encode_sparse(x if through is None else through(x))
            part.append(average @ csr_array((values.astype(np.float64), indices, indptr), (len(x), sae.d_sae)))
    read = np.concatenate(order) if order else np.zeros(0, np.int64)
    if not np.array_equal(np.sort(read), np.arange(texts)) or not texts:
        raise ValueError(f"vectors of {len(read)} texts were given for {texts} texts; give each text once and whole")
    place = np.argsort(read)
    return Means(np.concatenate(dense)[place], [csr_array(csr_array(vstack(part))[place]) for part in sparse])
