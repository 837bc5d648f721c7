"""What became of single features along an edge, by evidence: kept, changed, lost, or undecided.

A feature is judged only where another SAE of the same model, of another seed, has it too (stability): what follows
nothing differs between seeds (Paulo & Belrose 2025). What the other model makes of it is measured three ways, none of
which takes one SAE's word:

- effect: activations of both models are regressed on all features of the feature's own SAE at once. Row i of the
  coefficients is how far a model's activations move per unit of feature i while all other features stay as they are, so
  that what features that fire together with it do is not counted as its own. `strength` is the length of the row in the
  other model over that in its own; `direction` its cosine with the image of the own row under the affine map that fits
  all activations best, so that a change of basis is no change; `transmission` their product. Such a map forgets
  directions that the other model lost; `retained` looks along the feature's own decoder row instead, turned by an
  orthogonal map: the part of the other model's row that lies along it over the part of its own. Features that only the
  other model has may fire together with a feature (the child of a new root, half of a new pair) and count as its own,
  since no regressor stands for them; `remainder` is the strength in what they leave of the other model's activations.
- map_r: Pearson r of the feature with itself, read by its own encoder from the other model's activations through the
  affine map back.
- match_r: best r in the SAEs of the other model, the best over their seeds.

Standard errors of effects: jackknife over groups of documents, to first order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import linalg, stats
from scipy.sparse import csr_array

from heredity.features.acts import FeatureActs
from heredity.features.bootstrap import document_groups

VERDICTS = ("kept", "changed", "lost", "undecided", "unstable")
STABLE = 0.7
"""Best r in another SAE of the same model above which a feature is judged."""
RATE = 0.1
"""False discovery rate of lost features (Benjamini and Hochberg 1995)."""
LEVEL = 0.95
"""Of the one-sided bounds behind kept and changed."""
LOST_TRANSMISSION, LOST_STRENGTH, LOST_FOLLOWED, LOST_MATCH = 0.2, 0.6, 0.5, 0.5
"""Of a lost feature the activations no longer move its way (transmission or retained below the first; p-values are
doubled for the choice), nor much in any other (strength, or its remainder, below the second). Where a feature of the
other model follows it (match_r above the last), strength must be below the third: what is left may then fire with it,
as the other half of a pair does, but has no such effect."""
ALONE = 0.4
"""Best r in the SAEs of this model below which a stable feature of the other model is that one's alone. Lower than
`LOST_MATCH`: a feature that moved must not be taken for one that left and one that came."""
KEPT_TRANSMISSION, KEPT_DIRECTION, KEPT_R = 0.5, 0.7, 0.6
"""Margins of equivalence: a kept feature has a transmission between this and its inverse, a direction and an r (by map
or match) above these."""
CHANGED_TRANSMISSION, CHANGED_DIRECTION, CHANGED_R = 0.6, 0.75, 0.5
"""A feature is changed where it lies outside of these by more than its standard errors."""
LEAST_APART = 0.05
"""Share of a feature's variance that other features do not explain, below which no effect can be called its own."""
_LEAST_FIRINGS = 10  # of a feature whose effect is estimated
_SAME_R, _LEAST_SAME = 0.7, 20  # features that set the scale between both models' activations, and the fewest that can
_RIDGE = 1e-3  # of the median variance, against features that never fire apart
_COLUMNS = 128  # of the activations regressed at a time
_BLOCK = 1024  # features whose Gram matrix is made at a time
_PAIRS = {
    "own": ("own", "own"),
    "image": ("image", "image"),
    "other": ("other", "other"),
    "across": ("image", "other"),
    "rest": ("rest", "rest"),
}


class Effects(NamedTuple):
    """Effects of every feature in another model relative to its own, float64 [d_sae]; nan for features that fired on
    fewer than 10 tokens. Errors are standard errors."""

    strength: np.ndarray
    strength_error: np.ndarray
    direction: np.ndarray
    direction_error: np.ndarray
    transmission: np.ndarray
    transmission_error: np.ndarray
    remainder: np.ndarray
    remainder_error: np.ndarray
    retained: np.ndarray
    retained_error: np.ndarray
    apart: np.ndarray  # share of a feature's variance that the other features do not explain
    groups: int  # of documents


class Judged(NamedTuple):
    """Verdicts on the features of one end of an edge."""

    verdict: np.ndarray
    """int8 [d_sae]: index into `VERDICTS`."""
    p_lost: np.ndarray
    """float64 [d_sae]: p-value of the hypothesis that it is not lost; nan for features that are not judged."""
    scale: float
    """Median transmission of features that both models have; strengths and transmissions are judged relative to it."""


def least_squares(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The affine map from x [tokens, d_in] to y [tokens, d_out] of least squared error: weight [d_in, d_out], bias
    [d_out], both float64. A ridge of 1e-6 of the mean variance keeps dimensions that never vary at 0."""
    mean_x, mean_y = x.mean(0, dtype=np.float64), y.mean(0, dtype=np.float64)
    centered = x - mean_x
    covariance = centered.T @ centered
    ridge = 1e-6 * max(float(np.trace(covariance)) / len(covariance), 1e-30)
    weight = np.linalg.solve(covariance + ridge * np.eye(len(covariance)), centered.T @ (y - mean_y))
    return weight, mean_y - mean_x @ weight


def orthogonal(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The orthogonal map from x [tokens, d_in] to y [tokens, d_out] of least squared error, up to scale (Procrustes):
    [d_in, d_out], float64. The identity where widths are equal and it fits nearly as well: models of one family share
    their basis, and directions that hardly vary say nothing about a map."""
    a, b = x - x.mean(0, dtype=np.float64), y - y.mean(0, dtype=np.float64)
    product = a.T @ b
    left, values, right = np.linalg.svd(product, full_matrices=False)
    if x.shape[1] == y.shape[1] and float(np.trace(product)) >= 0.9 * float(values.sum()):
        return np.eye(x.shape[1])
    return left @ right


def effects(
    acts: FeatureActs,
    own: np.ndarray,
    image: np.ndarray,
    other: np.ndarray,
    documents: np.ndarray,
    seed: int = 0,
    alone: np.ndarray | None = None,
    directions: tuple[np.ndarray, np.ndarray] | None = None,
) -> Effects:
    """Effects of features in another model, relative to their own.

    acts: [tokens, d_sae] of an SAE on its own model. own [tokens, d_own], other [tokens, d_other]: activations of both
    models on the same tokens; image [tokens, d_other]: `own` under the affine map that fits `other` best, fitted on
    other tokens. documents: int [tokens]. alone [tokens, d_other]: what features that only the other model has add to
    its activations; None: nothing. directions: the SAE's decoder rows [d_sae, d_own] and their images [d_sae, d_other]
    under an orthogonal map, for `retained`, which is nan without them.

    On one core 4,096 features of 512 dimensions take about a minute; time grows like d_sae² d. Memory in bytes:
    16 d_sae² of the features that fire, and about 100,000 for each of them, 6 GiB at 16,384 features, beside copies of
    the activations. Raises ValueError for samples of different length or fewer than two documents.
    """
    if not len(own) == len(image) == len(other) == len(documents) == acts.tokens:
        sizes = ", ".join(str(len(part)) for part in (own, image, other, documents))
        raise ValueError(f"{acts.tokens} tokens of features, and {sizes} of activations and documents; give the same")
    group = document_groups(documents, 16, seed)
    order, count = np.argsort(group, kind="stable"), int(group.max()) + 1
    if count < 2:
        raise ValueError("all tokens are of one document; give text of two or more, of ten for usable errors")
    bounds = np.searchsorted(group[order], np.arange(count + 1))
    columns = np.full((11, acts.d_sae), np.nan)
    seen = np.flatnonzero(acts.firings() >= _LEAST_FIRINGS)
    if not len(seen):
        return Effects(*columns, groups=count)
    features = _matrix(acts)[order][:, seen]
    mean = np.asarray(features.mean(0)).ravel()
    factor, apart = _factor(features, mean)
    products = {name: np.zeros(len(seen)) for name in _PAIRS}
    noise = {name: np.zeros(len(seen)) for name in _PAIRS}
    without = {name: np.zeros((count, len(seen))) for name in _PAIRS}
    along = {name: np.zeros((count + 1, len(seen))) for name in ("own", "other")}  # the last without no group
    parts = {"own": own, "image": image, "other": other}
    if alone is not None:
        parts["rest"] = other - alone
    for start in range(0, max(own.shape[1], other.shape[1]), _COLUMNS):
        rows, moved = {}, {}
        for name, x in parts.items():
            y = x[:, start : start + _COLUMNS].astype(np.float64)[order]
            y -= y.mean(0)
            rows[name] = linalg.cho_solve(factor, features.T @ y)
            error = y - (features @ rows[name] - mean @ rows[name])
            score = [
                features[low:high].T @ error[low:high] - np.outer(mean, error[low:high].sum(0))
                for low, high in zip(bounds, bounds[1:], strict=False)
            ]
            solved = linalg.cho_solve(factor, np.concatenate(score, axis=1))
            # What each group adds to the rows.
            moved[name] = solved.reshape(len(seen), count, y.shape[1]).transpose(1, 0, 2)
        for name, written in zip(along, directions or (), strict=False):
            part = written[seen, start : start + _COLUMNS]
            along[name] += (rows[name] * part).sum(1)
            along[name][:count] -= (moved[name] * part).sum(2)
        if alone is None:
            rows["rest"], moved["rest"] = rows["other"], moved["other"]
        for name, (a, b) in _PAIRS.items():
            products[name] += (rows[a] * rows[b]).sum(1)
            noise[name] += (moved[a] * moved[b]).sum((0, 2))
            change = (moved[a] * moved[b]).sum(2) - (rows[a] * moved[b]).sum(2) - (moved[a] * rows[b]).sum(2)
            without[name] += change
    retained = along["other"] / np.where(along["own"] == 0, np.nan, along["own"])
    estimates, errors = _ratios(products, noise, without, retained)
    columns[:10, seen] = np.stack([estimates, errors], axis=1).reshape(10, -1)
    columns[10, seen] = apart
    return Effects(*columns, groups=count)


def _ratios(
    products: dict[str, np.ndarray], noise: dict[str, np.ndarray], without: dict[str, np.ndarray], retained: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Strength, direction, transmission, remainder and retained of every feature, and their standard errors, each
    float64 [5, features].

    products: inner products of rows by pair of `_PAIRS`; noise: their variance; without: what leaving out each group
    adds to them, [groups, features]; retained: without each group in turn, and last without none.
    """
    # A squared length of an estimate holds its variance, which the jackknife knows.
    free, count = {name: products[name] - noise[name] for name in _PAIRS}, len(retained) - 1
    least = 1e-12 * np.maximum(products["own"], 1e-30)

    def ratios(parts: dict[str, np.ndarray]) -> np.ndarray:
        lengths = (np.sqrt(np.maximum(parts[name], least)) for name in ("own", "image", "other", "rest"))
        at_own, at_image, at_other, at_rest = lengths
        strength, direction = at_other / at_own, parts["across"] / (at_image * at_other)
        return np.stack([strength, direction, strength * direction, at_rest / at_own])

    left_out = np.stack([ratios({name: free[name] + without[name][g] for name in _PAIRS}) for g in range(count)])
    estimates = np.concatenate([ratios(free), retained[-1:]])
    left_out = np.concatenate([left_out, retained[:count, None]], axis=1)
    return estimates, np.sqrt((count - 1) / count * np.square(left_out - left_out.mean(0)).sum(0))


def _factor(features: csr_array, mean: np.ndarray) -> tuple[tuple[np.ndarray, bool], np.ndarray]:
    """Cholesky factor of the features' centered Gram matrix with its ridge, and the share of each feature's variance
    that the others do not explain: 1 / (Gram_ii (Gram⁻¹)_ii)."""
    tokens, count = len(features.indptr) - 1, len(mean)
    gram = np.empty((count, count), order="F")
    transposed = features.T.tocsr()
    for start in range(0, count, _BLOCK):  # whole, the sparse product takes more than the matrix it becomes
        block = slice(start, start + _BLOCK)
        gram[:, block] = (transposed @ features[:, block]).toarray()
        gram[:, block] -= np.outer(tokens * mean, mean[block])
    gram[np.diag_indices_from(gram)] += _RIDGE * float(np.median(np.diag(gram)))
    own = np.diag(gram).copy()
    factor = linalg.cho_factor(gram, lower=True, overwrite_a=True)
    inverse, _ = linalg.get_lapack_funcs(("potri",), (factor[0],))[0](factor[0], lower=True)
    return factor, 1 / (own * np.diag(inverse))


def same_r(first: FeatureActs, second: FeatureActs) -> np.ndarray:
    """Pearson r of each feature with the feature of the same index in other activations of one SAE on the same tokens,
    float64 [d_sae]; nan where either never fires."""
    a, b = _matrix(first), _matrix(second)
    mean_a, mean_b = (np.asarray(each.mean(0)).ravel() for each in (a, b))
    covariance = np.asarray(a.multiply(b).mean(0)).ravel() - mean_a * mean_b
    variance = [np.asarray(x.multiply(x).mean(0)).ravel() - m**2 for x, m in ((a, mean_a), (b, mean_b))]
    scale = np.sqrt(np.maximum(variance[0] * variance[1], 0))
    return np.where(scale > 0, covariance / np.where(scale > 0, scale, 1), np.nan)


def judge(effect: Effects, stable: np.ndarray, match_r: np.ndarray, map_r: np.ndarray) -> Judged:
    """Verdicts from evidence.

    stable: bool [d_sae], which features to judge. match_r, map_r: float64 [d_sae], nan where there is none.
    Lost features are discoveries at a false discovery rate of `RATE`; kept is an equivalence within the margins above;
    changed is outside of them beyond the errors; all else that is stable is undecided, as are features that others
    explain but for `LEAST_APART`.
    """
    followed, judged = np.fmax(match_r, map_r), stable & np.isfinite(effect.transmission)
    alone = effect.apart >= LEAST_APART
    same = judged & (followed > _SAME_R)
    scale = float(np.median(effect.transmission[same])) if same.sum() >= _LEAST_SAME else 1.0
    scale = scale if scale > 0 else 1.0
    transmission, error = effect.transmission / scale, effect.transmission_error / scale
    direction = effect.direction
    t = stats.t(effect.groups - 1)
    margin = float(t.ppf(LEVEL))
    with np.errstate(invalid="ignore", divide="ignore"):
        p = t.cdf((transmission - LOST_TRANSMISSION) / error)
        retained, retained_error = effect.retained / scale, effect.retained_error / scale
        p = np.minimum(2 * np.fmin(p, t.cdf((retained - LOST_TRANSMISSION) / retained_error)), 1.0)
        sizes = (effect.strength, effect.strength_error), (effect.remainder, effect.remainder_error)
        most = np.where(match_r > LOST_MATCH, LOST_FOLLOWED, LOST_STRENGTH)
        p = np.fmax(p, np.fmin(*(t.cdf((size / scale - most) / (spread / scale)) for size, spread in sizes)))
        p = np.where(judged & alone, p, np.nan)
        lost = _discoveries(p, RATE)
        low, high = transmission - margin * error, transmission + margin * error
        away, toward = direction + margin * effect.direction_error, direction - margin * effect.direction_error
        kept = (low > KEPT_TRANSMISSION) & (high < 1 / KEPT_TRANSMISSION) & (toward > KEPT_DIRECTION)
        kept &= followed > KEPT_R
        changed = (high < CHANGED_TRANSMISSION) | (low > 1 / CHANGED_TRANSMISSION) | (away < CHANGED_DIRECTION)
        changed |= followed < CHANGED_R
    verdict = np.full(len(stable), VERDICTS.index("undecided"), np.int8)
    for name, chosen in (
        ("changed", changed & ~kept & alone),
        ("kept", kept & alone),
        ("lost", lost),
        ("unstable", ~judged),
    ):
        verdict[chosen] = VERDICTS.index(name)
    return Judged(verdict, p, scale)


def owned(own: FeatureActs, other: FeatureActs, least: float = 0.3) -> np.ndarray:
    """bool [d_sae]: at least this share of a feature's energy (sum of squares) lies in the first activations; for an
    SAE that reads both models, whose features may be only the other's."""
    energy = [np.bincount(acts.indices, np.square(acts.values, dtype=np.float64), acts.d_sae) for acts in (own, other)]
    return energy[0] > least * (energy[0] + energy[1])


def share_interval(count: int, of: int, others: Sequence[float] = (), level: float = LEVEL) -> tuple[float, float]:
    """A confidence interval for a share of judged features, features of other SAE seeds included: Wilson's (1927), and
    wide enough for the shares that other seeds gave. nan without features."""
    if not of:
        return float("nan"), float("nan")
    z, share = float(stats.norm.ppf((1 + level) / 2)), count / of
    middle = (share + z * z / (2 * of)) / (1 + z * z / of)
    half = z * np.sqrt(share * (1 - share) / of + z * z / (4 * of * of)) / (1 + z * z / of)
    return max(0.0, min(middle - half, share, *others)), min(1.0, max(middle + half, share, *others))


def _discoveries(p: np.ndarray, rate: float) -> np.ndarray:
    """bool: p-values called at a false discovery rate; nan are none."""
    known = np.isfinite(p)
    called = np.zeros(len(p), bool)
    if known.any():
        called[known] = stats.false_discovery_control(p[known]) <= rate
    return called


def _matrix(acts: FeatureActs) -> csr_array:
    values = acts.values.astype(np.float64)
    return csr_array((values, acts.indices, acts.indptr), shape=(acts.tokens, acts.d_sae))
