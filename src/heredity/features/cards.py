"""Everything that is shown of a feature: where it fires, on which tokens, how strongly, and what it predicts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from heredity.features.acts import FeatureActs
from heredity.features.effects import logit_weights
from heredity.features.examples import Columns, Places, around, in_intervals, levels_of, silent_blocks, strongest
from heredity.lm.hooks import HookPointError

_ROWS = 64  # directions whose logit weights exist at a time


class Sizes(NamedTuple):
    """How much a card holds at the most."""

    top: int = 20
    """Strongest places, one a block."""
    levels: int = 10
    """Equal intervals of the activation range."""
    each: int = 5
    """Places of each interval, one a block."""
    drawn: int = 10
    """Firings at random."""
    silent: int = 10
    """Blocks without a firing."""
    tokens: int = 20
    """Tokens by total activation."""
    bins: int = 50
    """Of the histogram of activations."""


class TopTokens(NamedTuple):
    """The tokens that carry most of a feature's activation, the largest total first, ties to the lower token."""

    ids: np.ndarray
    """int64 [n]: vocabulary numbers."""
    total: np.ndarray
    """float64 [n]: sum of activations on the token."""
    firings: np.ndarray
    """int64 [n]: how often the feature fires on it."""
    mean: np.ndarray
    """float64 [n]: mean activation of these firings."""
    share: np.ndarray
    """float64 [n]: share of the token's occurrences in the sample on which the feature fires."""


class LogitTokens(NamedTuple):
    """The tokens that directions push up and down most, by `logit_weights`."""

    top: np.ndarray
    """int64 [n, k]: tokens, the most promoted first."""
    top_weights: np.ndarray
    """float32 [n, k]: by how much, falling; the mean over the vocabulary is 0."""
    bottom: np.ndarray
    """int64 [n, k]: tokens, the most suppressed first."""
    bottom_weights: np.ndarray
    """float32 [n, k]: rising."""


class Card(NamedTuple):
    """One feature on a token sample of [blocks, context]."""

    feature: int
    """Its number in its SAE."""
    firings: int
    """Token positions on which it fires."""
    density: float
    """Share of all positions."""
    highest: float
    """Its highest activation; 0 for a feature that never fires."""
    top: Places
    """Strongest firings, one a block, strongest first."""
    levels: list[Places]
    """Firings drawn from each equal interval of 0 to `highest`, the strongest interval first."""
    drawn: Places
    """Firings drawn from all of them."""
    silent: np.ndarray
    """int64 [n]: blocks in which it never fires, at random."""
    tokens: TopTokens
    """What it fires on."""
    histogram: np.ndarray
    """int64 [bins]: firings by activation, in equal bins over 0 to `highest`."""
    logits: LogitTokens | None
    """What it predicts, arrays [k]; None when there is no direct way to the logits, or none was asked for."""
    no_logits: str
    """Why not."""


def cards(
    acts: FeatureActs,
    ids: np.ndarray,
    features: np.ndarray,
    sizes: Sizes | None = None,
    seed: int = 0,
    logits: LogitTokens | str = "not asked for",
) -> list[Card]:
    """A card for each feature.

    acts: of all features of an SAE on the tokens `ids`, int [blocks, context]. features: int [n]. logits: of the same
    features in the same order, from `logit_tokens`, or why there are none. What is drawn for a feature depends on
    `seed` and its number alone, not on the other features. Costs one transposition of the activations, and then each
    feature's own firings. Raises `ValueError` when ids, features or logits do not fit.
    """
    sizes, ids, features = sizes or Sizes(), np.asarray(ids), np.asarray(features)
    if ids.ndim != 2 or ids.size != acts.tokens:
        raise ValueError(f"ids of shape {list(ids.shape)} do not fit {acts.tokens} positions; give [blocks, context]")
    if len(features) and not 0 <= features.min() <= features.max() < acts.d_sae:
        raise ValueError(f"features run from {features.min()} to {features.max()}; the SAE has 0 to {acts.d_sae - 1}")
    if not isinstance(logits, str) and len(logits.top) != len(features):
        raise ValueError(f"logits are of {len(logits.top)} directions, not of {len(features)} features; give one each")
    columns, occurrences = Columns(*acts.to_columns()), np.bincount(ids.ravel())
    made = []
    for number, feature in enumerate(features.tolist()):
        card = _card(feature, columns.of(feature), ids, occurrences, sizes, seed)
        if isinstance(logits, str):
            made.append(card._replace(no_logits=logits))
        else:
            made.append(card._replace(logits=LogitTokens(*(part[number] for part in logits))))
    return made


def _card(
    feature: int,
    column: tuple[np.ndarray, np.ndarray],
    ids: np.ndarray,
    occurrences: np.ndarray,
    sizes: Sizes,
    seed: int,
) -> Card:
    rng = np.random.default_rng([seed, feature])
    (rows, values), (blocks, size) = column, ids.shape
    highest = float(values.max(initial=0))
    levels = in_intervals(rows, values, sizes.levels, sizes.each, size, rng)
    drawn = rng.choice(rows, min(sizes.drawn, len(rows)), replace=False)
    return Card(
        feature=feature,
        firings=len(rows),
        density=len(rows) / ids.size if ids.size else float("nan"),
        highest=highest,
        top=around(strongest(rows, values, sizes.top, size), rows, values, size),
        levels=[around(chosen, rows, values, size) for chosen in levels],
        drawn=around(drawn, rows, values, size),
        silent=silent_blocks(rows, blocks, sizes.silent, size, rng),
        tokens=top_tokens(ids.ravel()[rows], values, occurrences, sizes.tokens),
        histogram=np.bincount(levels_of(values, highest, sizes.bins), minlength=sizes.bins),
        logits=None,
        no_logits="",
    )


def top_tokens(tokens: np.ndarray, values: np.ndarray, occurrences: np.ndarray, count: int) -> TopTokens:
    """The tokens with the largest total activation.

    tokens: int [n], the token at each firing of a feature. values: [n], its activations. occurrences: int [vocab], how
    often each token stands in the sample.
    """
    found, which = np.unique(tokens, return_inverse=True)
    total = np.bincount(which, values.astype(np.float64), len(found))
    fired = np.bincount(which, minlength=len(found))
    best = np.argsort(-total, kind="stable")[:count]
    found, total, fired = found[best].astype(np.int64), total[best], fired[best]
    return TopTokens(found, total, fired, total / fired, fired / occurrences[found])


def logit_tokens(model: nn.Module, hook_point: str, directions: Tensor, count: int = 10) -> LogitTokens | str:
    """The tokens that each direction at a hook point promotes and suppresses most on the direct path to the logits.

    directions: [n, d_in], such as rows of W_dec. count: tokens at each end. The reason, in words, for a hook point from
    which no linear map leads to the residual stream. Raises as `logit_weights` does for everything else.
    """
    parts = []
    for start in range(0, len(directions), _ROWS):
        try:
            weights = logit_weights(model, hook_point, directions[start : start + _ROWS])
        except HookPointError as error:
            return str(error)
        ends = (torch.topk(weights, min(count, weights.shape[1]), largest=largest) for largest in (True, False))
        parts.append([part.cpu().numpy() for end in ends for part in (end.indices, end.values)])
    if not parts:
        nothing = np.zeros((0, count), np.int64), np.zeros((0, count), np.float32)
        return LogitTokens(*nothing, *nothing)
    return LogitTokens(*(np.concatenate(part) for part in zip(*parts, strict=True)))
