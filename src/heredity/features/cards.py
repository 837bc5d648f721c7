"""Cards of features: where each fires, on which tokens, how strongly, and what it predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from heredity.features.acts import FeatureActs
from heredity.lm.hooks import HookPointError
from heredity.lm.logit_attribution import logit_weights

_ROWS = 64  # directions whose logit weights exist at a time


class Columns(NamedTuple):
    """Firings of all features of one SAE on a token sample, by feature: reading one costs that feature's firings."""

    indptr: np.ndarray  # int64 [d_sae + 1]: the firings of feature i are indptr[i]:indptr[i + 1]
    rows: np.ndarray  # int32 [n]: the token position of each, rising within a feature
    values: np.ndarray  # float32 [n]: its activation

    def of(self, feature: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and values of one feature, as views."""
        entries = slice(self.indptr[feature], self.indptr[feature + 1])
        return self.rows[entries], self.values[entries]


class Places(NamedTuple):
    """Positions of the sample, and the feature's activations in the whole block around each."""

    rows: np.ndarray  # int64 [n]: token positions; row r is position r mod context of block r // context
    values: np.ndarray  # float32 [n, context]: activations in the block of each


class Sizes(NamedTuple):
    """Largest number of each kind of entries on a card."""

    top: int = 20  # strongest places, one per block
    levels: int = 10  # equal intervals of the activation range
    each: int = 5  # places of each interval, one per block
    drawn: int = 10  # firings at random
    silent: int = 10  # blocks without a firing
    tokens: int = 20  # tokens by total activation
    bins: int = 50  # of the histogram of activations


class TopTokens(NamedTuple):
    """The tokens that carry most of a feature's activation, the largest total first, ties to the lower token."""

    ids: np.ndarray  # int64 [n]: vocabulary numbers
    total: np.ndarray  # float64 [n]: sum of activations on the token
    firings: np.ndarray  # int64 [n]: how often the feature fires on it
    mean: np.ndarray  # float64 [n]: mean activation of these firings
    share: np.ndarray  # float64 [n]: share of the token's occurrences in the sample on which the feature fires


class LogitTokens(NamedTuple):
    """The tokens that directions push up and down most, by `logit_weights`."""

    top: np.ndarray  # int64 [n, k]: tokens, the most promoted first
    top_weights: np.ndarray  # float32 [n, k]: by how much, falling; the mean over the vocabulary is 0
    bottom: np.ndarray  # int64 [n, k]: tokens, the most suppressed first
    bottom_weights: np.ndarray  # float32 [n, k]: rising


class Card(NamedTuple):
    """One feature on a token sample of [blocks, context]."""

    feature: int  # its number in its SAE
    firings: int  # token positions on which it fires
    density: float  # share of all positions
    highest: float  # its highest activation; 0 for a feature that never fires
    top: Places  # strongest firings, one per block, strongest first
    levels: list[Places]
    """Firings drawn from each equal interval of 0 to `highest`, the strongest interval first, one per block (as for the
    human ratings of Bricken et al. 2023)."""
    drawn: Places  # firings drawn from all of them
    silent: np.ndarray  # int64 [n]: blocks in which it never fires, at random
    tokens: TopTokens  # what it fires on
    histogram: np.ndarray  # int64 [bins]: firings by activation, in equal bins over 0 to `highest`
    logits: LogitTokens | None  # what it predicts, arrays [k]; None without a direct way to the logits or a request
    no_logits: str  # why not


def cards(
    acts: FeatureActs,
    ids: np.ndarray,
    features: np.ndarray,
    sizes: Sizes | None = None,
    seed: int = 0,
    logits: LogitTokens | str = "not asked for",
    columns: Columns | None = None,
) -> list[Card]:
    """A card for each feature.

    acts: of all features of an SAE on the tokens `ids`, int [blocks, context]. features: int [n]. logits: of the same
    features in the same order, from `logit_tokens`, or why there are none. columns: the activations by feature, where
    that is known. Random draws for a feature depend on `seed` and its number alone, not on the other features. Costs
    one transposition of the activations where columns are not given, and then each feature's own firings. Raises
    `ValueError` when ids and activations do not fit.
    """
    sizes = sizes or Sizes()
    if ids.ndim != 2 or ids.size != acts.tokens:
        raise ValueError(f"ids of shape {list(ids.shape)} do not fit {acts.tokens} positions; give [blocks, context]")
    sampled = ids.ravel() if acts.samples is None else ids.ravel()[acts.samples]
    columns, occurrences = columns or Columns(*acts.to_columns()), np.bincount(sampled)
    blocks, context = ids.shape
    made = []
    for number, feature in enumerate(features.tolist()):
        rng, (rows, values) = np.random.default_rng([seed, feature]), columns.of(feature)
        highest = float(values.max(initial=0))
        strongest = rows[np.argsort(-values, kind="stable")]
        _, first = np.unique(strongest // context, return_index=True)
        levels = _by_level(rows, values, sizes, context, rng)
        drawn = rng.choice(rows, min(sizes.drawn, len(rows)), replace=False)
        silent = np.setdiff1d(np.arange(blocks), rows // context)
        card = Card(
            feature=feature,
            firings=len(rows),
            density=len(rows) / acts.counted if acts.counted else float("nan"),
            highest=highest,
            top=_around(strongest[np.sort(first)[: sizes.top]], rows, values, context),
            levels=[_around(chosen, rows, values, context) for chosen in levels],
            drawn=_around(drawn, rows, values, context),
            silent=rng.choice(silent, min(sizes.silent, len(silent)), replace=False),
            tokens=_top_tokens(ids.ravel()[rows], values, occurrences, sizes.tokens),
            histogram=np.bincount(levels_of(values, highest, sizes.bins), minlength=sizes.bins),
            logits=None if isinstance(logits, str) else LogitTokens(*(part[number] for part in logits)),
            no_logits=logits if isinstance(logits, str) else "",
        )
        made.append(card)
    return made


def levels_of(values: np.ndarray, highest: float, levels: int) -> np.ndarray:
    """Equal interval of the range 0 to `highest` that each activation lies in, int64: 0 the lowest, the highest
    activation in the last; one below 0 counts to the lowest."""
    if not highest > 0:
        return np.zeros(len(values), np.int64)
    return np.clip((np.asarray(values, np.float64) * levels / highest).astype(np.int64), 0, levels - 1)


def _by_level(
    rows: np.ndarray, values: np.ndarray, sizes: Sizes, context_size: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Random firings of each interval of a feature's activation range, at most one per block, the strongest interval
    first."""
    levels = sizes.levels
    level = levels_of(values, float(values.max(initial=0)), levels)
    order = rng.permutation(len(rows))
    rows, level = rows[order].astype(np.int64), level[order]
    _, first = np.unique(rows // context_size * levels + level, return_index=True)
    first.sort()
    rows, level = rows[first], level[first]
    return [rows[level == wanted][: sizes.each] for wanted in reversed(range(levels))]


def _around(chosen: np.ndarray, rows: np.ndarray, values: np.ndarray, context_size: int) -> Places:
    """The blocks around chosen rows with a feature's activations in them; rows, values: of all its firings."""
    chosen = np.asarray(chosen, np.int64)
    starts = chosen // context_size * context_size
    first, last = np.searchsorted(rows, [starts, starts + context_size])
    length = last - first
    place = np.repeat(np.arange(len(chosen)), length)
    entry = np.arange(len(place)) + np.repeat(first - (np.cumsum(length) - length), length)
    blocks = np.zeros((len(chosen), context_size), np.float32)
    blocks[place, rows[entry] - starts[place]] = values[entry]
    return Places(chosen, blocks)


def _top_tokens(tokens: np.ndarray, values: np.ndarray, occurrences: np.ndarray, count: int) -> TopTokens:
    """tokens, values [n]: of each firing. occurrences: int [vocab], how often each token stands in the sample."""
    ids, which = np.unique(tokens, return_inverse=True)
    total = np.bincount(which, values.astype(np.float64), len(ids))
    fired = np.bincount(which, minlength=len(ids))
    best = np.argsort(-total, kind="stable")[:count]
    ids, total, fired = ids[best].astype(np.int64), total[best], fired[best]
    return TopTokens(ids, total, fired, total / fired, fired / occurrences[ids])


def leading_tokens(columns: Columns, ids: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The tokens that carry most of the activation of every feature of an SAE: feature, token, and share of its
    activation, [n] each, by feature and from the largest share down, at most `count` of a feature.

    ids: int [blocks, context], the tokens of the activations. Costs one sort of all firings.
    """
    features = np.repeat(np.arange(len(columns.indptr) - 1), np.diff(columns.indptr))
    pairs, which = np.unique(features * (int(ids.max(initial=0)) + 1) + ids.ravel()[columns.rows], return_inverse=True)
    total = np.bincount(which, columns.values.astype(np.float64), len(pairs))
    feature, token = np.divmod(pairs, int(ids.max(initial=0)) + 1)
    whole = np.bincount(feature, total, len(columns.indptr) - 1)
    order = np.lexsort((token, -total, feature))
    feature, token, total = feature[order], token[order], total[order]
    kept = np.arange(len(order)) - np.searchsorted(feature, feature) < count
    feature, token, total = feature[kept], token[kept], total[kept]
    return feature, token, np.divide(total, whole[feature], out=np.zeros_like(total), where=whole[feature] > 0)


def logit_tokens(model: nn.Module, hook_point: str, directions: Tensor, count: int = 10) -> LogitTokens | str:
    """The tokens that each direction at a hook point promotes and suppresses most on the direct path to the logits.

    directions: [n, d_in], such as rows of W_dec. count: tokens at each end. The reason, in words, for a
    hook point from which no linear map leads to the residual stream. Raises as `logit_weights` for everything else.
    """
    parts = []
    for some in directions.split(_ROWS):
        try:
            weights = logit_weights(model, hook_point, some)
        except HookPointError as error:
            return str(error)
        ends = (torch.topk(weights, min(count, weights.shape[1]), largest=largest) for largest in (True, False))
        parts.append([part.cpu().numpy() for end in ends for part in (end.indices, end.values)])
    return LogitTokens(*(np.concatenate(part) for part in zip(*parts, strict=True)))


class Context(NamedTuple):
    """One block of the sample around a strong activation."""

    block: int  # number of the block in the sample
    position: int  # place of the strongest activation in the block
    values: dict[str, list[float]]  # activation at every position of the block, by model, to 4 decimals


def contexts(
    rows: Sequence[int] | np.ndarray, members: Mapping[str, tuple[np.ndarray, np.ndarray]], context_size: int
) -> list[Context]:
    """The blocks around rows of the sample, with the activations of the members in them. members: by model, a feature's
    firings: the row of each, rising, and its activation."""
    chosen = np.asarray(rows, np.int64)
    values = {model: rounded(_around(chosen, *firings, context_size)) for model, firings in members.items()}
    places = (divmod(row, context_size) for row in chosen.tolist())
    return [
        Context(block, position, {model: own[place] for model, own in values.items()})
        for place, (block, position) in enumerate(places)
    ]


def rounded(places: Places) -> list[list[float]]:
    """Activations in the block of each place, to 4 decimals; those that are 0 as integers, which are short as text."""
    return [[round(value, 4) if value else 0 for value in values] for values in places.values.tolist()]
