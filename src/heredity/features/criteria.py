"""Other rules for calling a feature inherited, beside existence of a match: one-to-one, splits, merges, token types."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from heredity.features.acts import FeatureActs
from heredity.features.correlate import Matches, median, rank_correlation
from heredity.kernels.assign import assign
from heredity.kernels.pairs import Means, Ranked, common_best, greedy_cover, masked_sums, type_means
from heredity.kernels.processors import default_workers
from heredity.kernels.sparse import Sparse, transpose

# Splits and merges, see `splits_and_merges`.
_EDGE = 0.4  # masked cosine above which a pair is looked at
_LEAST = 0.1  # share of the whole that each part adds
_MOSTLY = 0.5  # share that is most of something


def candidates(parent_match: np.ndarray, child_match: np.ndarray) -> np.ndarray:
    """Pairs in the list of best partners of either feature: int32 [n, 2] (parent, child), rising, each once.

    parent_match [d_parent, top] and child_match [d_child, top] as in `Matches`, of whole dictionaries.
    """
    return _listed(parent_match, child_match)[0]


def _listed(parent_match: np.ndarray, child_match: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`candidates`, and the first place of each in the lists of parent features, then of child features."""
    parents, children = np.nonzero(parent_match >= 0)[0], np.nonzero(child_match >= 0)[0]
    of_parents = np.stack([parents, parent_match[parent_match >= 0]], axis=1)
    of_children = np.stack([child_match[child_match >= 0], children], axis=1)
    pairs = np.concatenate([of_parents, of_children]).astype(np.int64)
    keys, first = np.unique(pairs[:, 0] << 32 | pairs[:, 1], return_index=True)  # as rows, they take ten times as long
    return np.stack([keys >> 32, keys & 0xFFFFFFFF], axis=1).astype(np.int32), first


def one_to_one(
    parent_match: np.ndarray, parent_r: np.ndarray, child_match: np.ndarray, child_r: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(pairs, r) of the one-to-one assignment of largest total r, over the pairs in the lists of either end.

    pairs: int32 [n, 2] of (parent, child) features, by rising parent feature, each in one pair at most. r: float64 [n].
    Lists [d, top] as in `Matches` (`one_to_one(*matches[:4])`). A feature may stay alone, which counts as r = 0. With
    lists of all features this is the Hungarian assignment of max(r, 0); with shorter ones it is the best assignment
    within them, and a feature that loses all partners on its list stays alone although one further down might be free.
    Exact; of assignments with the same total it is one.
    """
    pairs, first = _listed(parent_match, child_match)
    r = np.concatenate([parent_r[parent_match >= 0], child_r[child_match >= 0]])[first]
    pairs, r = pairs[r > 0], r[r > 0]
    if not len(pairs):
        return pairs, r
    starts = np.searchsorted(pairs[:, 0], np.arange(len(parent_match) + 1))
    chosen = assign(starts, pairs[:, 1].astype(np.int64), r, len(child_match))
    made = chosen[pairs[:, 0]] == pairs[:, 1]
    return pairs[made], r[made]


class Parts(NamedTuple):
    """Features of one end, the wholes, and the two or more features of the other end that share their firings."""

    pairs: np.ndarray  # int32 [n, 2]: (whole, part), by rising whole, the part that adds most first
    share: np.ndarray
    """float64 [n]: what the part adds: share of the whole's squared activation on tokens where the part fires and no
    part listed before it does."""
    cosine: np.ndarray  # float64 [n]: masked cosine of the pair

    @property
    def wholes(self) -> np.ndarray:
        """int32 [wholes]: each whole once, rising."""
        return np.unique(self.pairs[:, 0])


def splits_and_merges(parent: FeatureActs, child: FeatureActs, pairs: np.ndarray) -> tuple[Parts, Parts, np.ndarray]:
    """Parent features that split into several child features, and parent features that merge into one.

    The masked cosine of a pair is the larger of two cosines of the activations of both features: over the tokens on
    which the parent's fires, and over those on which the child's does; 0 for features that never fire together
    (Bricken et al. 2023, who draw an edge of feature splitting above about 0.4). Parts are a definition of our own:
    a child feature can be a part of a parent feature (the whole) when their masked cosine exceeds 0.4 and the part lies
    inside the whole: more than half of the part's squared activation is on tokens where the whole fires. Parts are then
    taken one by one, the one that covers most of what is left of the whole first. To cover is to fire on the same
    tokens, which counts with the squared activation of the whole. A part must add a tenth of the whole or more, and
    more than half of all it covers itself must be new: a second copy of a part, or a finer version of it, adds little.
    A whole splits when it has two parts or more that cover more than half of it between them. One with a faithful copy
    has no room for a second part and does not; one of which slivers are left is lost rather than split. A merge is the
    same with the ends exchanged.

    pairs: int [n, 2] (parent, child) to look at, such as `candidates` gives: a part with a share s of the whole's
    squared activation has an r with it near sqrt(s), so lists of a few best partners hold it. Returns (splits, merges,
    masked cosine of each pair); the wholes are parent features in splits, child features in merges.
    Raises `ValueError` for samples of different length.
    """
    if parent.tokens != child.tokens:
        sizes = f"the parent has {parent.tokens} token positions and the child {child.tokens}"
        raise ValueError(f"{sizes}; encode the same tokens with both SAEs")
    columns, child_columns = (transpose(acts.sparse, workers=default_workers()) for acts in (parent, child))
    sums = masked_sums(columns, child_columns, pairs)
    square, child_square = _squares(columns)[pairs[:, 0]], _squares(child_columns)[pairs[:, 1]]
    norms = (np.sqrt(square * sums.child_square), np.sqrt(sums.parent_square * child_square))
    together = sums.parent_square > 0
    cosine = np.maximum(*(np.divide(sums.product, n, out=np.zeros_like(n), where=together) for n in norms))
    with np.errstate(invalid="ignore", divide="ignore"):
        share, child_share = sums.parent_square / square, sums.child_square / child_square
    splits = (cosine > _EDGE) & (child_share > _MOSTLY) & (share >= _LEAST)
    merges = (cosine > _EDGE) & (share > _MOSTLY) & (child_share >= _LEAST)
    return (
        _parts(columns, child_columns, pairs[splits], share[splits], cosine[splits]),
        _parts(child_columns, columns, pairs[merges, ::-1], child_share[merges], cosine[merges]),
        cosine,
    )


def _squares(columns: Sparse) -> np.ndarray:
    """float64 [features]: sum of squares of each feature."""
    feature = np.repeat(np.arange(len(columns.indptr) - 1), np.diff(columns.indptr))
    return np.bincount(feature, np.square(columns.values, dtype=np.float64), len(columns.indptr) - 1)


def _parts(columns: Sparse, part_columns: Sparse, pairs: np.ndarray, cover: np.ndarray, cosine: np.ndarray) -> Parts:
    """The wholes that split, among the candidate pairs (whole, part); cover: share of the whole."""
    # What one part alone covers has no room for another, but for rounding.
    most = np.zeros(len(columns.indptr) - 1)
    np.maximum.at(most, pairs[:, 0], cover)
    several = (np.bincount(pairs[:, 0])[pairs[:, 0]] > 1) & (most[pairs[:, 0]] < 1 - _LEAST + 1e-9)
    pairs, cover, cosine = pairs[several], cover[several], cosine[several]
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    pairs, cover, cosine = pairs[order], cover[order], cosine[order]
    whole, added = pairs[:, 0], greedy_cover(columns, part_columns, pairs, cover, _LEAST, _MOSTLY)
    split = (np.bincount(whole, added > 0) >= 2) & (np.bincount(whole, added) > _MOSTLY)
    kept = np.flatnonzero((added > 0) & split[whole])
    kept = kept[np.lexsort((-added[kept], whole[kept]))]
    return Parts(pairs[kept].astype(np.int32), added[kept], cosine[kept])


def token_type_correlate(
    parent: FeatureActs, child: FeatureActs, ids: np.ndarray, top: int = 5, workers: int | None = None
) -> Ranked:
    """Match the features of two SAEs by what the code published with Horn & Elliott (github.com/nilq/feature-dynamics,
    `evaluation/autoencoder/correlation.py`) computes, which is not what section 3.4 of the paper says.

    Each feature becomes its mean activation at every token type, over the positions where it fires. The score of two
    features is Pearson's r over the token types where both fire, if there are at least two. It inflates persistence, so
    never read it as the r of `correlate`. Two common types always give exactly +1 or -1, and three or four give a high
    |r| by chance; with thousands of candidates almost every feature has a pair like that. Types on which only one
    feature fires count for nothing, so that features which hardly ever fire together can agree; and the mean hides
    differences between contexts of a token. The result shows what this other reading of the paper would have reported.

    ids: int [tokens], the token type of each position: the token id, or one number for all ids that decode to the
    same string, which is what the code groups by. workers: threads; their number changes no bit. Sums are float64.
    Raises `ValueError` for samples or ids of different length and `top` below 1.
    """
    if not parent.tokens == child.tokens == len(ids):
        sizes = (
            f"the parent has {parent.tokens} token positions, the child {child.tokens}, and ids is {list(ids.shape)}"
        )
        raise ValueError(f"{sizes}; encode the same tokens with both SAEs and give the type of each")
    kinds, types = np.unique(ids, return_inverse=True)
    means, child_means = (_centered_means(acts, types.astype(np.int32), len(kinds)) for acts in (parent, child))
    entries = child_means.values, child_means.indices, child_means.indptr
    columns = csr_array(entries, (child.d_sae, len(kinds))).tocsc()  # the child's by types: types x features
    by_type = Means(columns.indptr.astype(np.int64), columns.indices.astype(np.int32), columns.data)
    return common_best(means, by_type, child.d_sae, 2, top, workers)


def _centered_means(acts: FeatureActs, types: np.ndarray, number: int) -> Means:
    """Features x types, less each feature's mean over types: r does not see the shift; the sums lose fewer digits."""
    means = type_means(transpose(acts.sparse, workers=default_workers()), types, number)
    length = np.diff(means.indptr)
    feature = np.repeat(np.arange(len(length)), length)
    total = np.bincount(feature, means.values, len(length))
    return means._replace(values=means.values - (total / np.maximum(length, 1))[feature])


def by_parent(pairs: np.ndarray, score: np.ndarray, features: int) -> np.ndarray:
    """float64 [features]: the score of each parent feature's pair (at most one), nan without one. pairs [n, 2]."""
    scores = np.full(features, np.nan)
    scores[pairs[:, 0]] = score
    return scores


def scores(matches: Matches, assigned: tuple[np.ndarray, np.ndarray]) -> dict[str, np.ndarray]:
    """Score of each parent feature by each rule on r, float64 [d_parent], nan for a feature without a partner.

    existence: best r. mutual: the same, if the feature is also the best match of its own best match. assigned: r of
    the assigned pair, from `one_to_one`.
    """
    best, r = matches.parent_match[:, 0], matches.parent_r[:, 0]
    chosen_back = (best >= 0) & (matches.child_match[best, 0] == np.arange(len(best)))
    pairs = by_parent(*assigned, len(r))
    return {"existence": r, "mutual": np.where(chosen_back, r, np.nan), "assigned": pairs}


class Agreement(NamedTuple):
    """Calls by one r beside calls by the best match, over the same features."""

    persisting: int  # features whose r is above the threshold
    both: int  # those of them that persist by their best match too
    only: int  # those that do not
    only_matched: int  # features that persist by their best match only
    neither: int  # features that persist by neither
    kappa: float | None  # Cohen's: 1 for equal calls, 0 for what chance gives; None where both call all or none
    rank: float | None  # Spearman correlation of the two r, over features that have both; None where one is constant
    median: float  # median r; nan without any


def agreement(best: np.ndarray, r: np.ndarray, threshold: float) -> Agreement:
    """Compare calls by r with calls by the best match's r; both float64 [live features], r nan for one without."""
    counts = np.zeros((2, 2), np.int64)
    np.add.at(counts, ((best > threshold).astype(int), (r > threshold).astype(int)), 1)
    own = float(kappa(counts))
    return Agreement(
        persisting=int(counts[:, 1].sum()),
        both=int(counts[1, 1]),
        only=int(counts[0, 1]),
        only_matched=int(counts[1, 0]),
        neither=int(counts[0, 0]),
        kappa=None if np.isnan(own) else own,
        rank=rank_correlation(best, r),
        median=median(r),
    )


def kappa(counts: np.ndarray) -> np.ndarray:
    """Cohen's kappa of how often each of two raters' calls meet: [..., k, k] to float64 [...]; nan where both always
    make one call, or make none.

    Whole numbers stay so until the division, so that calls of all or none are known exactly; shares do as well.
    """
    n, agreed = counts.sum((-2, -1)), np.trace(counts, axis1=-2, axis2=-1)
    by_chance = (counts.sum(-1) * counts.sum(-2)).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (n * agreed - by_chance) / (n * n - by_chance)
