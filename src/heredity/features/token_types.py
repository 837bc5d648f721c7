"""Another reading of "correlation": over token strings on which both features fire. A variant to compare with only."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from heredity.features.acts import FeatureActs
from heredity.kernels.pairs import Means, common_r, common_r_of, ranked, type_means
from heredity.kernels.sparse import Sparse, transpose


class TypeMatches(NamedTuple):
    """Best partners by `token_type_correlate`, best first, ties to the lower index: no Pearson r over positions."""

    parent_match: np.ndarray
    """int32 [d_parent, top]: child features; -1 where there is none."""
    parent_r: np.ndarray
    """float64 [d_parent, top]: r over common token types, falling; nan where there is none."""
    child_match: np.ndarray
    """int32 [d_child, top]: parent features; -1 where there is none."""
    child_r: np.ndarray
    """float64 [d_child, top]."""
    parent_common: np.ndarray
    """int64 [d_parent, top]: token types that each r rests on; 0 where there is none."""
    child_common: np.ndarray
    """int64 [d_child, top]."""
    parent_density: np.ndarray
    """float64 [d_parent]: share of tokens on which the feature fires."""
    child_density: np.ndarray
    """float64 [d_child]."""
    tokens: int
    """Token positions."""
    types: int
    """Different token types among them."""
    least_common: int
    """Common types that a pair had to have."""


class TypeCorrelation(NamedTuple):
    """`token_type_correlate`'s measure of given pairs."""

    r: np.ndarray
    """float64 [n]: r over common token types; nan for fewer than `least_common`, or a feature constant on them."""
    common: np.ndarray
    """int64 [n]: common token types."""


def token_type_correlate(
    parent: FeatureActs,
    child: FeatureActs,
    ids: np.ndarray,
    top: int = 5,
    least_common: int = 2,
    workers: int | None = None,
) -> TypeMatches:
    """Match the features of two SAEs by what the code published with Horn & Elliott (github.com/nilq/feature-dynamics,
    `evaluation/autoencoder/correlation.py`) computes, which is not what section 3.4 of the paper says.

    Each feature becomes its mean activation at every token type, over the positions where it fires. The r of two
    features is Pearson's over the token types where both fire, if there are at least `least_common` (the code: 2).

    It inflates persistence, so never read it as the r of `correlate`. Two common types always give exactly +1 or -1,
    and three or four give a high |r| by chance; with thousands of candidates almost every feature finds a pair like
    that. Types on which only one feature fires count for nothing, so that features which hardly ever fire together can
    agree; and the mean takes away what tells contexts of a token apart. `parent_common` says how many types each best
    r rests on. The result stands beside the paper's definition to show what the other reading would have reported.

    ids: int [tokens], the token type of each position: the token id, or one number for all ids that decode to the
    same string, which is what the code groups by. workers: threads; their number changes no bit. Sums are float64,
    centered on each feature's mean over types. Work is one step for each pair of features and type on which both fire;
    blocks of the matrix of all pairs (32 MiB) are all that is held of it.
    Raises `ValueError` for samples or ids of different length, `least_common` below 2 and `top` below 1.
    """
    means, child_means, types = _both_means(parent, child, ids, least_common)
    by_type = _transposed(child_means, types)
    best = ranked(common_r(means, by_type, child.d_sae, least_common, workers), (parent.d_sae, child.d_sae), top)
    return TypeMatches(
        *best,
        _common(best.parent_match, means, child_means, least_common),
        _common(best.child_match, child_means, means, least_common),
        parent.density(),
        child.density(),
        parent.tokens,
        types,
        least_common,
    )


def _common(match: np.ndarray, own: Means, other: Means, least: int) -> np.ndarray:
    """int64 like match: types that each feature and its partner have in common, 0 where there is no partner."""
    common = np.zeros(match.shape, np.int64)
    feature, place = np.nonzero(match >= 0)
    pairs = np.stack([feature, match[feature, place]], axis=1)
    common[feature, place] = common_r_of(own, other, pairs, least)[0]
    return common


def token_type_r(
    parent: FeatureActs, child: FeatureActs, ids: np.ndarray, pairs: np.ndarray, least_common: int = 2
) -> TypeCorrelation:
    """The measure of `token_type_correlate` for given pairs [n, 2] of (parent, child) features, such as the best
    partners by r over positions. Raises as it does."""
    means, child_means, _ = _both_means(parent, child, ids, least_common)
    common, r = common_r_of(means, child_means, np.asarray(pairs).reshape(-1, 2), least_common)
    return TypeCorrelation(np.where(np.isinf(r), np.nan, r), common)


def _both_means(
    parent: FeatureActs, child: FeatureActs, ids: np.ndarray, least_common: int
) -> tuple[Means, Means, int]:
    """Centered means of both ends, features x types, and the number of types."""
    ids = np.asarray(ids)
    if not parent.tokens == child.tokens == len(ids) or ids.ndim != 1:
        raise ValueError(
            f"the parent has {parent.tokens} token positions, the child {child.tokens}, and ids is {list(ids.shape)}; "
            "encode the same tokens with both SAEs and give the type of each"
        )
    if least_common < 2:
        raise ValueError(f"least_common={least_common}: fewer than two points have no correlation; use 2 or more")
    kinds, types = np.unique(ids, return_inverse=True)
    means = [_centered(transpose(end.sparse), types.astype(np.int32), len(kinds)) for end in (parent, child)]
    return means[0], means[1], len(kinds)


def _centered(columns: Sparse, types: np.ndarray, number: int) -> Means:
    """Means less each feature's mean over its types. r does not see the shift; the sums lose fewer digits."""
    means = type_means(columns, types, number)
    length = np.diff(means.indptr)
    feature = np.repeat(np.arange(len(length)), length)
    total = np.bincount(feature, means.values, len(length))
    return means._replace(values=means.values - (total / np.maximum(length, 1))[feature])


def _transposed(means: Means, types: int) -> Means:
    """The same by types: types x features."""
    order = np.argsort(means.indices, kind="stable")
    feature = np.repeat(np.arange(len(means.indptr) - 1, dtype=np.int32), np.diff(means.indptr))
    indptr = np.concatenate([[0], np.cumsum(np.bincount(means.indices, minlength=types))])
    return Means(indptr, feature[order], means.values[order])
