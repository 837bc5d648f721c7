"""How well answers about a feature agree with its activations. A missing answer is counted, never scored.

Simulation: Bills et al. 2023 and Bricken et al. 2023. Detection and fuzzing: Paulo et al. 2024, as informedness, so
that guessing scores 0. Intruder: which of five excerpts does not belong, corrected for chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from heredity.explain.protocol import Excerpt, Failure, Kind, quantized

THRESHOLD = 0.5
"""An answer from here on is a yes."""
GROUP = 5
"""Excerpts of an intruder question."""


class Simulation(NamedTuple):
    """Agreement of predicted and true activations over the concatenated excerpts.

    nan where it is undefined: no excerpt was answered, or the feature is constant on those that were. A constant
    prediction of a feature that varies scores 0.
    """

    score: float
    """Pearson r with the activations, on all excerpts."""
    levels: float
    """Pearson r with the activations as levels 0 to 9."""
    spearman: float
    """Spearman's rank correlation with the activations."""
    top_random: float
    """Pearson r on the top and the random excerpts only (Bills et al.)."""
    random: float
    """Pearson r on the random excerpts only; nan where the feature happens to be silent on them."""
    excerpts: int
    """Excerpts that were answered."""
    tokens: int
    """Their tokens."""


class Agreement(NamedTuple):
    """Agreement of yes-or-no answers with the truth."""

    score: float
    """Informedness: share of the true ones that are told minus share of the others that are; nan without both."""
    auc: float
    """Chance that a true one is answered higher than another; ties count half. nan without both."""
    n: int
    """Questions answered."""


class Odd(NamedTuple):
    """Success at telling the intruder."""

    score: float
    """(accuracy - 1/5) / (1 - 1/5); nan without an answer."""
    n: int
    """Groups answered."""


class FuzzSet(NamedTuple):
    """Excerpts with marked tokens."""

    excerpts: tuple[Excerpt, ...]
    """All of them activate the feature."""
    marked: tuple[np.ndarray, ...]
    """bool [tokens] each."""
    right: np.ndarray
    """bool [n]: whether the marked tokens are all those that the feature is active on, or as many others."""


class DetectionSet(NamedTuple):
    """Excerpts, half of which activate the feature."""

    excerpts: tuple[Excerpt, ...]
    """In seeded order."""
    active: np.ndarray
    """bool [n]: whether the feature is active anywhere in the excerpt."""


class IntruderSet(NamedTuple):
    """Groups of five excerpts, one of which does not activate the feature."""

    groups: tuple[tuple[Excerpt, ...], ...]
    """In seeded order."""
    places: np.ndarray
    """int64 [n]: where in its group the intruder stands; each place equally often."""


def correlation(true: np.ndarray, predicted: np.ndarray) -> float:
    """Pearson r of two arrays, float64 sums; 0 for a constant prediction, nan for a constant truth, no tokens or nan.

    Raises `ValueError` when they differ in length.
    """
    true, predicted = np.asarray(true, np.float64), np.asarray(predicted, np.float64)
    if true.shape != predicted.shape:
        raise ValueError(f"{true.shape} activations and {predicted.shape} predictions; give one prediction a token")
    if not len(true) or not np.isfinite(true).all() or not np.isfinite(predicted).all() or np.ptp(true) == 0:
        return float("nan")
    if np.ptp(predicted) == 0:
        return 0.0
    x, y = true - true.mean(), predicted - predicted.mean()
    return float(np.clip(x @ y / np.sqrt((x @ x) * (y @ y)), -1, 1))


def simulation(
    excerpts: Sequence[Excerpt], predicted: Sequence[np.ndarray | Failure] | Failure, highest: float
) -> Simulation:
    """Scores of predicted levels (float64 [tokens] for each excerpt) against the excerpts' activations.

    highest: activation that levels are relative to. Excerpts without an answer are left out.
    """
    answers = [] if isinstance(predicted, Failure) else list(zip(excerpts, predicted, strict=True))
    pairs = [(excerpt, levels) for excerpt, levels in answers if not isinstance(levels, Failure)]

    def joined(*kinds: Kind) -> tuple[np.ndarray, np.ndarray]:
        own = [(excerpt.values, levels) for excerpt, levels in pairs if not kinds or excerpt.kind in kinds]
        empty = [np.empty(0)]
        return np.concatenate([true for true, _ in own] or empty), np.concatenate(
            [levels for _, levels in own] or empty
        )

    true, levels = joined()
    ranks = (rankdata(true), rankdata(levels)) if np.isfinite(levels).all() else (true, levels)
    return Simulation(
        correlation(true, levels),
        correlation(quantized(true, highest), levels),
        correlation(*ranks),
        correlation(*joined("top", "random")),
        correlation(*joined("random")),
        len(pairs),
        len(true),
    )


def agreement(truth: np.ndarray, answers: np.ndarray | Failure) -> Agreement:
    """Scores of answers between 0 and 1. truth: bool [n]. answers: float64 [n]; nan ones are left out.

    Raises `ValueError` when they differ in length.
    """
    if isinstance(answers, Failure):
        return Agreement(float("nan"), float("nan"), 0)
    truth, answers = np.asarray(truth, bool), np.asarray(answers, np.float64)
    if truth.shape != answers.shape:
        raise ValueError(f"{len(answers)} answers to {len(truth)} questions; give one each")
    truth, answers = truth[np.isfinite(answers)], answers[np.isfinite(answers)]
    if not truth.any() or truth.all():
        return Agreement(float("nan"), float("nan"), len(truth))
    told = answers >= THRESHOLD
    score = float(told[truth].mean() - told[~truth].mean())
    return Agreement(score, effect(answers[truth], answers[~truth]), len(truth))


def effect(first: np.ndarray, second: np.ndarray) -> float:
    """Chance that one of the first exceeds one of the second, ties counted half (area under the ROC curve); both are
    float64 [n] of one or more."""
    ordered = np.sort(second)
    below, up_to = np.searchsorted(ordered, first, "left"), np.searchsorted(ordered, first, "right")
    return float((below + up_to).sum() / (2 * len(first) * len(second)))


def told_apart(places: np.ndarray, answers: np.ndarray | Failure) -> Odd:
    """Score of answers to intruder questions. places, answers: int64 [n]. Raises `ValueError` for another length."""
    if isinstance(answers, Failure) or not len(places):
        return Odd(float("nan"), 0)
    if len(places) != len(answers):
        raise ValueError(f"{len(answers)} answers about {len(places)} groups; give one each")
    # From whole numbers, so that guessing one place in balanced groups is 0 and not nearly so.
    hits, n = int((np.asarray(places) == np.asarray(answers)).sum()), len(places)
    return Odd((GROUP * hits - n) / ((GROUP - 1) * n), n)


def detection_set(active: Sequence[Excerpt], silent: Sequence[Excerpt], most: int, seed: int) -> DetectionSet:
    """As many excerpts that activate the feature as silent ones, at most `most` of each, drawn and mixed by seed."""
    rng = np.random.default_rng(seed)
    n = min(len(active), len(silent), most)
    chosen = [active[at] for at in rng.permutation(len(active))[:n]]
    chosen += [silent[at] for at in rng.permutation(len(silent))[:n]]
    order = rng.permutation(2 * n)
    return DetectionSet(tuple([chosen[at] for at in order]), order < n)


def fuzz_set(active: Sequence[Excerpt], most: int, seed: int) -> FuzzSet:
    """Excerpts with all their active tokens marked, and as many others with as many silent tokens marked instead.

    At most `most` of each. Excerpts that are active on more than half of their tokens are left out.
    """
    rng = np.random.default_rng(seed)
    fit = [excerpt for excerpt in active if 0 < 2 * np.count_nonzero(excerpt.values) <= len(excerpt.values)]
    n = min(len(fit) // 2, most)
    chosen = [fit[at] for at in rng.permutation(len(fit))[: 2 * n]]
    right = np.arange(len(chosen)) % 2 == 0
    marked = []
    for excerpt, as_is in zip(chosen, right.tolist(), strict=True):
        marks = excerpt.values != 0
        if not as_is:
            wrong = rng.choice(np.flatnonzero(~marks), int(marks.sum()), replace=False)
            marks = np.isin(np.arange(len(marks)), wrong)
        marked.append(marks)
    return FuzzSet(tuple(chosen), tuple(marked), right)


def intruder_set(active: Sequence[Excerpt], silent: Sequence[Excerpt], most: int, seed: int) -> IntruderSet:
    """Groups of four excerpts that activate the feature and a silent one, each of the five places equally often.

    At most `most` groups, a multiple of five; none without four of the one and five of the other.
    """
    rng = np.random.default_rng(seed)
    n = min(most, len(silent)) // GROUP * GROUP if len(active) >= GROUP - 1 else 0
    places = rng.permutation(np.arange(n) % GROUP)
    odd = rng.permutation(len(silent))[:n]
    groups = []
    for place, at in zip(places.tolist(), odd.tolist(), strict=True):
        group = [active[other] for other in rng.permutation(len(active))[: GROUP - 1]]
        groups.append((*group[:place], silent[at], *group[place:]))
    return IntruderSet(tuple(groups), places)
