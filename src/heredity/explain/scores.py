"""How well a judge's answers about a feature agree with its activations. A missing answer is counted, never scored.

Simulation: Bills et al. 2023 and Bricken et al. 2023. Detection and fuzzing: Paulo et al. 2024, as informedness, so
that guessing scores 0. Intruder: which of five excerpts does not belong, corrected for chance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from scipy.stats import mannwhitneyu, rankdata

from heredity.explain.excerpts import Drawn
from heredity.explain.protocol import Excerpt, Failure, Judge, Kind, Levels, quantized

MOST = 20  # questions of each sort: active and silent excerpts, right and wrong marks, intruder groups
THRESHOLD = 0.5  # answers from here on mean yes
GROUP = 5  # excerpts of an intruder question
BINS = np.round(np.arange(-0.2, 1.0001, 0.05), 2)  # of histograms of scores; the first bin holds all lower scores
NAN = float("nan")
Sort = Literal["simulation", "detection", "fuzzing", "intruder"]
SORTS: tuple[Sort, ...] = get_args(Sort)


Columns = dict[str, float]
"""Score columns of table explanations; nan where a score is undefined, such as without an answer."""


class Scores(NamedTuple):
    """Quality of one description of one feature."""

    columns: Columns
    failures: Mapping[str, int]  # failed requests by kind


def scored(
    judge: Judge, feature: str, description: str, drawn: Drawn, seed: int, sorts: Collection[Sort] = SORTS
) -> Scores:
    """Ask a judge about the scoring excerpts, and compare its answers with the activations.

    seed: of the questions; with the same seed, scores of judges and descriptions are comparable. sorts: questions to
    ask; scores of the others are nan.
    """
    active = [excerpt for excerpt in drawn.scoring if np.any(excerpt.values)]
    centered = [excerpt for excerpt in active if excerpt.values[excerpt.center]]
    most = {sort: MOST if sort in sorts else 0 for sort in SORTS}
    texts, truth = detection_set(active, drawn.silent, most["detection"], seed)
    fuzzy, marked, right = fuzz_set(active, most["fuzzing"], seed)
    groups, places = intruder_set(centered, drawn.silent, most["intruder"], seed)
    # Empty questions are not sent: a request without texts costs as well.
    none = np.empty(0)
    excerpts = drawn.scoring if "simulation" in sorts else ()
    simulated = judge.simulate(feature, description, excerpts) if excerpts else []
    detected = judge.detect(feature, description, texts) if texts else none
    fuzzed = judge.fuzz(feature, description, fuzzy, marked) if fuzzy else none
    intruders = judge.intruder(feature, groups) if groups else none
    parts = [simulated] if isinstance(simulated, Failure) else simulated
    # A failed request fails all of its excerpts by one Failure object, which counts once.
    answers = {id(answer): answer for answer in (*parts, detected, fuzzed, intruders)}.values()
    columns = simulation(excerpts, simulated, drawn.highest) | agreement("detection", truth, detected)
    columns |= agreement("fuzzing", right, fuzzed) | intruder_score(places, intruders)
    return Scores(columns, Counter(answer.kind for answer in answers if isinstance(answer, Failure)))


def correlation(true: np.ndarray, predicted: np.ndarray) -> float:
    """Pearson r, float64 sums; 0 for a constant prediction, nan for a constant truth, no tokens or nan."""
    true, predicted = np.asarray(true, np.float64), np.asarray(predicted, np.float64)
    if not len(true) or not np.isfinite(true).all() or not np.isfinite(predicted).all() or np.ptp(true) == 0:
        return NAN
    if np.ptp(predicted) == 0:
        return 0.0
    x, y = true - true.mean(), predicted - predicted.mean()
    return float(np.clip(x @ y / np.sqrt((x @ x) * (y @ y)), -1, 1))


def simulation(excerpts: Sequence[Excerpt], predicted: Levels, highest: float) -> Columns:
    """Agreement of predicted levels with the activations over the concatenated excerpts that were answered.

    Pearson r with the activations, with these as levels relative to `highest`, on top and random excerpts (Bills et
    al.), and on random ones; rank correlation; excerpts. A constant prediction of a feature that varies scores 0.
    """
    answers = [] if isinstance(predicted, Failure) else list(zip(excerpts, predicted, strict=True))
    pairs = [(excerpt, levels) for excerpt, levels in answers if not isinstance(levels, Failure)]

    def joined(*kinds: Kind) -> tuple[np.ndarray, np.ndarray]:
        chosen = [(excerpt.values, levels) for excerpt, levels in pairs if excerpt.kind in kinds]
        true, levels = zip(*chosen, strict=True) if chosen else ([np.empty(0)], [np.empty(0)])
        return np.concatenate(true), np.concatenate(levels)

    true, levels = joined(*get_args(Kind))
    ranks = (rankdata(true), rankdata(levels)) if np.isfinite(levels).all() else (true, levels)
    return {
        "simulation": correlation(true, levels),
        "simulation_levels": correlation(quantized(true, highest), levels),
        "simulation_top_random": correlation(*joined("top", "random")),
        "simulation_random": correlation(*joined("random")),
        "spearman": correlation(*ranks),
        "simulation_n": len(pairs),
    }


def agreement(sort: str, truth: np.ndarray, answers: np.ndarray | Failure) -> Columns:
    """Agreement of answers between 0 and 1 with the truth, by informedness (true-positive minus false-positive rate)
    and by area under the ROC curve; nan without both true and false questions.

    sort: name of the columns. truth: bool [n]. answers: float64 [n]; nan ones are left out.
    """
    score, auc, n = NAN, NAN, 0
    if not isinstance(answers, Failure):
        truth, answers = truth[np.isfinite(answers)], answers[np.isfinite(answers)]
        n = len(truth)
        if truth.any() and not truth.all():
            yes = answers >= THRESHOLD
            score = float(yes[truth].mean() - yes[~truth].mean())
            auc = effect(answers[truth], answers[~truth])
    return {sort: score, f"{sort}_auc": auc, f"{sort}_n": n}


def intruder_score(places: np.ndarray, answers: np.ndarray | Failure) -> Columns:
    """Success at finding the intruders, (accuracy - 1/5) / (1 - 1/5); int64 [n] both."""
    if isinstance(answers, Failure) or not len(places):
        return {"intruder": NAN, "intruder_n": 0}
    # From integers, so that guessing one place in balanced groups is exactly 0.
    hits, n = int((places == answers).sum()), len(places)
    return {"intruder": (GROUP * hits - n) / ((GROUP - 1) * n), "intruder_n": n}


def effect(first: np.ndarray, second: np.ndarray) -> float:
    """Probability that one of the first exceeds one of the second, ties counted half (area under the ROC curve);
    float64 [n] each, n of one or more."""
    ordered = np.sort(second)
    below, up_to = np.searchsorted(ordered, first, "left"), np.searchsorted(ordered, first, "right")
    return float((below + up_to).sum() / (2 * len(first) * len(second)))


def detection_set(
    active: Sequence[Excerpt], silent: Sequence[Excerpt], most: int, seed: int
) -> tuple[tuple[Excerpt, ...], np.ndarray]:
    """As many excerpts that activate the feature as silent ones, at most `most` of each, in random order; and which
    activate it, bool [n]."""
    rng = np.random.default_rng(seed)
    n = min(len(active), len(silent), most)
    chosen = [group[at] for group in (active, silent) for at in rng.permutation(len(group))[:n]]
    order = rng.permutation(2 * n)
    return tuple([chosen[at] for at in order]), order < n


def fuzz_set(
    active: Sequence[Excerpt], most: int, seed: int
) -> tuple[tuple[Excerpt, ...], tuple[np.ndarray, ...], np.ndarray]:
    """Excerpts, marks of their tokens (bool [tokens] each), and which marks are right, bool [n].

    Marked are all active tokens, or as many silent ones; at most `most` excerpts of each. Excerpts that are active on
    more than half of their tokens are left out.
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
            marks = np.zeros(len(marks), bool)
            marks[wrong] = True
        marked.append(marks)
    return tuple(chosen), tuple(marked), right


def intruder_set(
    active: Sequence[Excerpt], silent: Sequence[Excerpt], most: int, seed: int
) -> tuple[tuple[tuple[Excerpt, ...], ...], np.ndarray]:
    """Groups of four excerpts that activate the feature and a silent one, and the index of the latter, int64 [n].

    At most `most` groups, a multiple of five, each index equally often; none without four active and five silent ones.
    """
    rng = np.random.default_rng(seed)
    n = min(most, len(silent)) // GROUP * GROUP if len(active) >= GROUP - 1 else 0
    places = rng.permutation(np.arange(n) % GROUP)
    odd = rng.permutation(len(silent))[:n]
    groups = []
    for place, at in zip(places.tolist(), odd.tolist(), strict=True):
        group = [active[other] for other in rng.permutation(len(active))[: GROUP - 1]]
        groups.append((*group[:place], silent[at], *group[place:]))
    return tuple(groups), places


_NO_ANSWER = Failure("unreachable", "")
UNSCORED = simulation((), _NO_ANSWER, 1.0) | agreement("detection", np.empty(0, bool), _NO_ANSWER)
UNSCORED |= agreement("fuzzing", np.empty(0, bool), _NO_ANSWER) | intruder_score(np.empty(0), _NO_ANSWER)
"""Score columns of a feature that nothing was asked about."""


class Distribution(NamedTuple):
    """Scores of one group of features."""

    n: int  # features with a score
    unscored: int  # features without: no answer, or constant activations on the excerpts answered
    rare: int  # features too rare to be explained
    median: float  # nan without a score
    low: float  # of the median's bootstrap CI; nan for fewer than two scores
    high: float
    histogram: np.ndarray  # int64 [bins], features by score, in `BINS`


class Comparison(NamedTuple):
    """Scores of persisting features and of others."""

    persisting: Distribution  # with a match above the threshold
    others: Distribution
    p: float  # Mann-Whitney test, two-sided; nan unless both groups have scores
    effect: float  # probability that a persisting feature scores higher, ties counted half; nan likewise
    low: float  # of its bootstrap CI; nan unless both groups have two scores
    high: float


def compare(
    persisting: np.ndarray,
    others: np.ndarray,
    rare: tuple[int, int] = (0, 0),
    seed: int = 0,
    resamples: int = 1000,
    level: float = 0.95,
) -> Comparison:
    """Compare the scores of two groups of features (Horn & Elliott, appendix C, figure 6); bootstrap over features.

    persisting, others: float64 [n], nan for a feature without a score. rare: features too rare to be explained.
    """

    def interval(draws: Sequence[float] | np.ndarray, *groups: np.ndarray) -> tuple[float, float]:
        if min(map(len, groups)) < 2:
            return NAN, NAN
        low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    def distribution(group: np.ndarray, few: int) -> tuple[Distribution, np.ndarray, np.ndarray]:
        """Of the scores, these, and resamples of them."""
        scores = group[np.isfinite(group)]
        again = scores[rng.integers(len(scores), size=(resamples, len(scores)))] if len(scores) else np.empty((0, 0))
        median = float(np.median(scores)) if len(scores) else NAN
        ends = interval(np.median(again, axis=1) if len(scores) else [], scores)
        histogram = np.histogram(np.maximum(scores, BINS[0]), BINS)[0].astype(np.int64)
        return Distribution(len(scores), len(group) - len(scores), few, median, *ends, histogram), scores, again

    rng = np.random.default_rng(seed)
    of_persisting, first, first_again = distribution(np.asarray(persisting, np.float64), rare[0])
    of_others, second, second_again = distribution(np.asarray(others, np.float64), rare[1])
    if not len(first) or not len(second):
        return Comparison(of_persisting, of_others, NAN, NAN, NAN, NAN)
    p = float(mannwhitneyu(first, second, alternative="two-sided").pvalue)
    draws = [effect(*pair) for pair in zip(first_again, second_again, strict=True)]
    return Comparison(of_persisting, of_others, p, effect(first, second), *interval(draws, first, second))
