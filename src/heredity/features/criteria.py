"""Other rules for calling a feature inherited, beside existence of a match: one-to-one, splits and merges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from heredity.features.acts import FeatureActs
from heredity.features.correlate import Matches
from heredity.features.fates import THRESHOLDS
from heredity.kernels.pairs import greedy_cover, masked_sums
from heredity.kernels.sparse import Sparse, transpose


class Pairs(NamedTuple):
    """Pairs of features, each feature of either end in one pair at most."""

    pairs: np.ndarray
    """int32 [n, 2]: (parent, child) features, by rising parent feature."""
    r: np.ndarray
    """float64 [n]: the score of each pair: Pearson r, or the cosine where cosines were assigned."""


class Parts(NamedTuple):
    """Features of one end, the wholes, whose firings two or more features of the other end have between them."""

    pairs: np.ndarray
    """int32 [n, 2]: (whole, part), by rising whole, the part that adds most first; every whole has two or more."""
    share: np.ndarray
    """float64 [n]: what the part adds: squared activation of the whole, as a share of all of it, on tokens where the
    part fires and no part listed before it does."""
    cosine: np.ndarray
    """float64 [n]: masked cosine of the pair."""

    @property
    def wholes(self) -> np.ndarray:
        """int32 [wholes]: each whole once, rising."""
        return np.unique(self.pairs[:, 0])

    @property
    def together(self) -> np.ndarray:
        """float64 [wholes]: share of the squared activation of each whole that its parts cover between them."""
        return np.bincount(self.pairs[:, 0], self.share)[self.wholes] if len(self.pairs) else np.empty(0)


class SplitsAndMerges(NamedTuple):
    """Features that come apart and features that come together along an edge."""

    splits: Parts
    """Parent features (wholes) and the child features they split into (parts)."""
    merges: Parts
    """Child features (wholes) and the parent features that merged into them (parts)."""
    cosine: np.ndarray
    """float64 [candidates]: masked cosine of every candidate pair, see `masked_cosine`."""


class Overlap(NamedTuple):
    """How far the calls of one rule agree with those of another. `_asdict()` is ready for JSON."""

    rule: str
    """The one rule."""
    other: str
    """The other rule."""
    both: int
    """Features that both call persisting."""
    only: int
    """Features that `rule` calls persisting and `other` does not."""
    jaccard: float | None
    """Features that both call over features that either calls; None where neither calls any."""
    kappa: float | None
    """Cohen's kappa: 1 for equal calls, 0 for what chance gives at these counts; None where both call all or none."""


def candidates(parent_match: np.ndarray, child_match: np.ndarray) -> np.ndarray:
    """Pairs that are in the list of best partners of either feature: int32 [n, 2] (parent, child), rising, each once.

    parent_match [d_parent, top] and child_match [d_child, top] as in `Matches`: of whole dictionaries, not of a range.
    Raises `ValueError` for a partner that the other end does not have.
    """
    found = []
    for end, match, other in (("parent", parent_match, child_match), ("child", child_match, parent_match)):
        if match.size and match.max() >= len(other):
            raise ValueError(
                f"{end}_match names feature {match.max()}, but the other end has lists of {len(other)} features only; "
                "give both ends of one edge, with ranges joined"
            )
        own, place = np.nonzero(match >= 0)
        found.append(np.stack([own, match[own, place]], axis=1))
    width = max(1, len(child_match))
    keys = np.unique(np.concatenate([found[0] @ [width, 1], found[1] @ [1, width]]))
    return np.stack(np.divmod(keys, width), axis=1).astype(np.int32)


def one_to_one(
    parent_match: np.ndarray,
    parent_r: np.ndarray,
    child_match: np.ndarray,
    child_r: np.ndarray,
    least: float = 0.0,
) -> Pairs:
    """The pairs of the one-to-one assignment of largest total r, over the pairs that either end's lists hold.

    Lists [d, top] as in `Matches` (`one_to_one(*matches[:4])`). A feature may stay alone, which counts as r = `least`
    for each parent feature, so a pair with r <= `least` is never made. With lists of all features this is the Hungarian
    assignment of max(r, least); with shorter ones it is the best assignment within them, and a feature that loses all
    partners on its list stays alone although one further down might be free. Exact (Jonker & Volgenant 1987, sparse).
    Raises `ValueError` where `candidates` does, and for a `least` that is not finite.
    """
    if not np.isfinite(least):
        raise ValueError(f"least={least} is no r to stay alone at; use a number such as 0.0")
    pairs = candidates(parent_match, child_match)
    r = _scores(pairs, (parent_match, parent_r), (child_match, child_r))
    kept = r > least
    pairs, r = pairs[kept], r[kept]
    parents, children = len(parent_match), len(child_match)
    if not len(pairs):
        return Pairs(pairs, r)
    # The solver wants weights other than 0 and a partner for every row: one column a parent feature stands for none.
    alone = np.arange(parents)
    weights = csr_array(
        (
            np.concatenate([1.0 + (r - least), np.ones(parents)]),
            (np.concatenate([pairs[:, 0], alone]), np.concatenate([pairs[:, 1], children + alone])),
        ),
        shape=(parents, children + parents),
    )
    rows, columns = min_weight_full_bipartite_matching(weights, maximize=True)
    chosen = np.full(parents, -1, np.int64)
    chosen[rows] = columns
    made = chosen[pairs[:, 0]] == pairs[:, 1]
    return Pairs(pairs[made], r[made])


def _scores(
    pairs: np.ndarray, parent: tuple[np.ndarray, np.ndarray], child: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """float64 [n]: the score of each pair, from whichever list (match, score) holds it; the parent's if both do."""
    score = np.full(len(pairs), np.nan)
    for own, other, (match, r) in ((1, 0, child), (0, 1, parent)):
        for place in range(match.shape[1]):
            here = match[pairs[:, own], place] == pairs[:, other]
            score[here] = r[pairs[here, own], place]
    return score


def masked_cosine(parent: FeatureActs, child: FeatureActs, pairs: np.ndarray) -> np.ndarray:
    """float64 [n]: for pairs [n, 2], the larger of two cosines of the activations of both features: over the tokens on
    which the parent's fires, and over those on which the child's does; 0 for features that never fire together.

    Bricken et al. 2023, who draw an edge of feature splitting above about 0.4. Raises `ValueError` for samples of
    different length.
    """
    columns, child_columns = _columns(parent, child)
    sums = masked_sums(columns, child_columns, pairs)
    return _cosine(sums.product, sums.parent_square, sums.child_square, columns, child_columns, pairs)


def _columns(parent: FeatureActs, child: FeatureActs) -> tuple[Sparse, Sparse]:
    if parent.tokens != child.tokens:
        raise ValueError(
            f"the parent has {parent.tokens} token positions and the child {child.tokens}; "
            "encode the same tokens with both SAEs"
        )
    return transpose(parent.sparse), transpose(child.sparse)


def _squares(columns: Sparse) -> np.ndarray:
    """float64 [features]: sum of squares of each feature."""
    feature = np.repeat(np.arange(len(columns.indptr) - 1), np.diff(columns.indptr))
    return np.bincount(feature, np.square(columns.values, dtype=np.float64), len(columns.indptr) - 1)


def _cosine(
    product: np.ndarray,
    parent_square: np.ndarray,
    child_square: np.ndarray,
    columns: Sparse,
    child_columns: Sparse,
    pairs: np.ndarray,
) -> np.ndarray:
    on_parent = _squares(columns)[pairs[:, 0]] * child_square
    on_child = parent_square * _squares(child_columns)[pairs[:, 1]]
    together = parent_square > 0
    cosines = [np.divide(product, np.sqrt(s), out=np.zeros_like(s), where=together) for s in (on_parent, on_child)]
    return np.maximum(*cosines)


def splits_and_merges(
    parent: FeatureActs,
    child: FeatureActs,
    pairs: np.ndarray,
    edge: float = 0.4,
    least: float = 0.1,
    mostly: float = 0.5,
) -> SplitsAndMerges:
    """Parent features that split into several child features, and parent features that merge into one.

    A child feature can be a part of a parent feature (the whole) when their masked cosine exceeds `edge` and the part
    lies inside the whole: more than `mostly` of the part's squared activation is on tokens where the whole fires. Parts
    are then taken one by one, the one that covers most of what is left of the whole first. To cover is to fire on the
    same tokens, which counts with the squared activation of the whole. A part must add `least` of the whole or more,
    and more than `mostly` of all it covers itself must be new: a second copy of a part, or a finer version of it, adds
    little. A whole splits when it has two parts or more that cover more than `mostly` of it between them. One with a
    faithful copy has no room for a second part and does not; one of which slivers are left is lost rather than split.
    A merge is the same with the ends exchanged.

    pairs: int [n, 2] (parent, child) to look at, such as `candidates` gives: a part with a share s of the whole's
    squared activation has an r with it near sqrt(s), so lists of a few best partners hold it. Work is the firings of
    both features of every pair, and again for each part of a whole. The masked cosine is that of Bricken et al. 2023;
    parts are a definition of our own. Raises `ValueError` for samples of different length.
    """
    columns, child_columns = _columns(parent, child)
    pairs = np.asarray(pairs).reshape(-1, 2)
    sums = masked_sums(columns, child_columns, pairs)
    cosine = _cosine(sums.product, sums.parent_square, sums.child_square, columns, child_columns, pairs)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = sums.parent_square / _squares(columns)[pairs[:, 0]]
        child_share = sums.child_square / _squares(child_columns)[pairs[:, 1]]
    splits = (cosine > edge) & (child_share > mostly) & (share >= least)
    merges = (cosine > edge) & (share > mostly) & (child_share >= least)
    return SplitsAndMerges(
        _parts(columns, child_columns, pairs[splits], share[splits], cosine[splits], least, mostly),
        _parts(child_columns, columns, pairs[merges, ::-1], child_share[merges], cosine[merges], least, mostly),
        cosine,
    )


def _parts(
    columns: Sparse,
    part_columns: Sparse,
    pairs: np.ndarray,
    cover: np.ndarray,
    cosine: np.ndarray,
    least: float,
    mostly: float,
) -> Parts:
    """The wholes that have two or more parts, and mostly consist of them, among the candidate pairs (whole, part)."""
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    pairs, cover, cosine = pairs[order], cover[order], cosine[order]
    groups = np.flatnonzero(np.diff(pairs[:, 0], prepend=-1, append=-1))
    added = np.zeros(len(pairs))
    greedy_cover(
        groups, np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1]), *columns[:3], *part_columns[:2],
        cover, least, mostly, added,
    )  # fmt: skip
    wholes = len(columns.indptr) - 1
    parts, together = np.bincount(pairs[:, 0], added > 0, wholes), np.bincount(pairs[:, 0], added, wholes)
    whole = (parts >= 2) & (together > mostly)
    kept = np.flatnonzero((added > 0) & whole[pairs[:, 0]])
    kept = kept[np.lexsort((-added[kept], pairs[kept, 0]))]
    return Parts(pairs[kept].astype(np.int32), added[kept], cosine[kept])


def by_parent(pairs: np.ndarray, score: np.ndarray, features: int) -> np.ndarray:
    """float64 [features]: the score of each parent feature's pair (one at most), nan without one. pairs [n, 2]."""
    scores = np.full(features, np.nan)
    scores[pairs[:, 0]] = score
    return scores


def scores(matches: Matches, assigned: Pairs) -> dict[str, np.ndarray]:
    """What each rule on r gives a parent feature, float64 [d_parent], nan where it finds no partner.

    existence: best r. mutual: the same, if the feature is also the best match of its own best match. assigned: r of
    the assigned pair, from `one_to_one`. Scores of further rules go beside them, made with `by_parent` where they are
    pairs.
    """
    best, r = matches.parent_match[:, 0], matches.parent_r[:, 0]
    chosen_back = (best >= 0) & (matches.child_match[best, 0] == np.arange(len(best)))
    return {
        "existence": r,
        "mutual": np.where(chosen_back, r, np.nan),
        "assigned": by_parent(assigned.pairs, assigned.r, len(r)),
    }


def curves(scores: Mapping[str, np.ndarray], thresholds: Sequence[float] = THRESHOLDS) -> dict[str, dict[str, int]]:
    """By rule: parent features whose score exceeds each threshold, keyed by the threshold with two decimals.

    scores: by rule, float64 [d_parent], nan for no partner. Pairs are not assigned anew for each threshold.
    """
    return {rule: {f"{at:.2f}": int((score > at).sum()) for at in thresholds} for rule, score in scores.items()}


def disagreement(calls: Mapping[str, np.ndarray]) -> tuple[Overlap, ...]:
    """Agreement of every ordered pair of rules, in the order of `calls`: bool [features] by rule, over one set of
    features. Restrict it to live ones: features that no rule could ever call raise kappa.

    Raises `ValueError` when the rules judge different numbers of features.
    """
    sizes = {rule: len(call) for rule, call in calls.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"rules judge {sizes} features; give the calls of all rules on the same features")
    return tuple(_overlap(rule, other, calls[rule], calls[other]) for rule, other in permutations(calls, 2))


def _overlap(rule: str, other: str, a: np.ndarray, b: np.ndarray) -> Overlap:
    a, b = np.asarray(a, bool), np.asarray(b, bool)
    n, both, either = len(a), int((a & b).sum()), int((a | b).sum())
    # Counts stay whole numbers until the end, so that calls of all or none are known exactly.
    called = int(a.sum()), int(b.sum())
    by_chance = called[0] * called[1] + (n - called[0]) * (n - called[1])
    agreed = n * (n - either + both)
    kappa = (agreed - by_chance) / (n * n - by_chance) if by_chance < n * n else None
    return Overlap(rule, other, both, called[0] - both, both / either if either else None, kappa)
