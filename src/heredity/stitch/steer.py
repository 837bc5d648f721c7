"""Steering: a direction clamped to a level while a model writes, and how often the text becomes of the wanted class.

Directions are differences of means and are clamped at every token (Chen et al. 2025, section 3.3, eq. 8-9). The level
of a direction carried over from another model is measured anew in the target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from heredity.lm.hooks import replaced
from heredity.lm.load import quiet
from heredity.lm.reading import plainly
from heredity.stitch.affine import Affine, Moments
from heredity.stitch.transfer import transfer_direction

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NONE = -1  # class of a blank text
_BATCH = 64  # texts written at a time


class Steering(NamedTuple):
    """A direction and the level it is clamped to."""

    direction: np.ndarray  # float64 [d_in], unit norm
    level: float  # mean of <h, direction> over vectors of the wanted class


def leveled(direction: np.ndarray, wanted: np.ndarray) -> Steering:
    """A direction [d_in] of any length but 0, at its mean level over vectors of the wanted class [n, d_in]."""
    length = float(np.linalg.norm(direction))
    if not np.isfinite(length) or length == 0:
        raise ValueError(f"the direction has length {length}; the vectors that made it must differ and be finite")
    return Steering(direction / length, float((wanted @ direction).mean() / length))


def change(steering: Steering, mean: np.ndarray, covariance: np.ndarray) -> float:
    """Root mean square distance by which `clamped` moves vectors of this mean [d_in] and covariance [d_in, d_in]."""
    v = steering.direction
    return float(np.sqrt((steering.level - mean @ v) ** 2 + max(0.0, v @ covariance @ v)))


def with_change(direction: np.ndarray, wanted: float, mean: np.ndarray, covariance: np.ndarray) -> Steering:
    """A direction [d_in] of any length, at the level where it moves vectors by the wanted distance (see `change`).

    The level lies above that of the vectors' mean, or equals it, which moves them least, when their covariance alone
    makes clamping move them further.
    """
    still = leveled(direction, mean[None])
    beyond = wanted**2 - change(still, mean, covariance) ** 2
    return still._replace(level=still.level + float(np.sqrt(max(0.0, beyond))))


def steering_arms(
    wanted: Moments, others: Moments, arriving: Affine, rng: np.random.Generator
) -> dict[str, Steering | None]:
    """The ways to steer a model towards a corpus: `none`, `native`, `carried` and `random`.

    wanted, others: moments of the wanted corpus and of all others; a is the model to steer, b the other one. arriving:
    b -> a. Directions are unit(mean of the wanted - mean of the others), in a (`native`) or in b (`carried`); `random`
    moves the vectors of the other corpora as far as `native` does.
    """
    # Levels are means, so one vector, the mean, gives the same as all vectors.
    native = leveled(wanted.mean_a - others.mean_a, wanted.mean_a[None])
    there = leveled(wanted.mean_b - others.mean_b, wanted.mean_b[None])
    direction = transfer_direction(torch.from_numpy(there.direction), arriving.to("cpu"))
    strength = change(native, others.mean_a, others.aa)
    return {
        "none": None,
        "native": native,
        "carried": leveled(direction.numpy(), wanted.mean_a[None]),
        "random": with_change(rng.standard_normal(len(wanted.mean_a)), strength, others.mean_a, others.aa),
    }


def clamped(h: Tensor, steering: Steering) -> Tensor:
    """h + (level - <h, v>) v for vectors h [..., d_in] (eq. 9): <h, v> is the level at every token, all else stays."""
    v = torch.as_tensor(steering.direction, dtype=torch.float32, device=h.device)
    h = h.float()
    return h + (steering.level - h @ v)[..., None] * v


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    hook_point: str,
    steering: Steering | None = None,
    *,
    max_tokens: int = 48,
    prompt_tokens: int | None = None,
    chat: bool = False,
    seed: int = 0,
) -> list[str]:
    """Continuations of the prompts, drawn from a model that is steered at the hook point from the first token on.

    prompt_tokens: only so many of a prompt are read. chat: each prompt stands as a user's message in the tokenizer's
    chat template, and the model answers. The global random state is left alone. Raises ValueError for an empty prompt,
    and for one that leaves no room in the model's context.
    """
    encoded: Any = tokenizer(list(prompts), verbose=False)["input_ids"] if prompts else []
    ids = [row[:prompt_tokens] for row in encoded]
    if chat:
        messages = [[{"role": "user", "content": tokenizer.decode(row, skip_special_tokens=True)}] for row in ids]
        framed: Any = partial(tokenizer.apply_chat_template, add_generation_prompt=True, return_dict=False)
        ids = [framed(message) for message in messages]
    context = getattr(model.config, "max_position_embeddings", None)
    for number, row in enumerate(ids):
        if not row:
            raise ValueError(f"prompt {number}, {prompts[number][:40]!r}, has no token; give at least one")
        if context is not None and len(row) + max_tokens > context:
            exceeds = f"{len(row)} tokens, and {max_tokens} more exceed the model's context of {context}"
            raise ValueError(f"prompt {number} has {exceeds}; lower max_tokens or prompt_tokens")
    device, texts = next(model.parameters()).device, []
    pad = next((x for x in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if isinstance(x, int)), 0)
    how: Any = {"max_new_tokens": max_tokens, "pad_token_id": pad, "num_beams": 1, "do_sample": True}
    how |= {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
    steered = nullcontext() if steering is None else replaced(model, hook_point, lambda h: clamped(h, steering))
    written: Any = model.eval().generate
    with steered, plainly(model), quiet(), torch.inference_mode(), torch.random.fork_rng():
        torch.manual_seed(seed)
        for start in range(0, len(ids), _BATCH):
            some = ids[start : start + _BATCH]
            longest = max(map(len, some))
            # Padded in front, so that every prompt ends where the continuation begins.
            rows = torch.tensor([[pad] * (longest - len(row)) + row for row in some], device=device)
            mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in some], device=device)
            out = written(rows, attention_mask=mask, **how)
            texts += tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)
    return texts


def transfer_gap(transferred: float, native: float) -> float:
    """transferred / native, clipped to 0..1, with 0/0 = 0 and x/0 = 1 (eq. 16)."""
    return min(transferred / native, 1.0) if native else float(transferred > 0)


def text_classifier(texts: Sequence[str], y: np.ndarray) -> Callable[[Sequence[str]], np.ndarray]:
    """A classifier of texts into classes y, int [n] >= 0: logistic regression on runs of one to three characters.

    Runs are weighted by TF-IDF. It gives the most likely class of each text, int64 [n], `NONE` for a blank one.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer  # an extra
    from sklearn.linear_model import LogisticRegression

    weigh = TfidfVectorizer(
        analyzer="char", ngram_range=(1, 3), max_features=50_000, sublinear_tf=True, lowercase=False
    )
    classes = LogisticRegression(C=10.0, max_iter=1000).fit(weigh.fit_transform(texts), np.asarray(y, np.int64))

    def classify(some: Sequence[str]) -> np.ndarray:
        guess = np.asarray(classes.predict(weigh.transform(some)), np.int64)
        return np.where([bool(text.strip()) for text in some], guess, NONE)

    return classify


def longest_pieces(blocks: np.ndarray, tokenizer: PreTrainedTokenizerBase, special: Sequence[int]) -> list[str]:
    """The longest piece of each token block [n, context] without special tokens, as text; blank ones are left out."""
    texts: list[Any] = []
    for block in blocks:
        runs = np.split(block, np.flatnonzero(np.isin(block, special)))
        texts.append(tokenizer.decode(max(runs, key=len), skip_special_tokens=True))
    return [text for text in texts if text.strip()]


def interleave(parts: Sequence[Sequence[str]]) -> list[str]:
    """One text of each part in turn, for as long as there are any."""
    return [text for row in zip_longest(*parts) for text in row if text is not None]
