"""What became of features that are not kept: how much of them the other model holds, and in which form.

`readable` is the R² of a linear readout of a feature's activation from the other model's activations, over that from
its own model's: fitted on some tokens, measured on others. Features that fire together leak into it. `readable_apart`
is the same of what the other stable features of the SAE leave of the activation and of the activations (partial R²).
Splits and absorption are looked for in an SAE of the other model.
"""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy import linalg
from scipy.sparse import csr_array, hstack

from heredity.features.acts import FeatureActs
from heredity.features.correlate import correlate
from heredity.features.verdicts import CHANGED_DIRECTION, KEPT_DIRECTION, LOST_TRANSMISSION

FATES = ("gone", "split", "absorbed", "narrowed", "faint", "moved", "blurred", "unclear")
"""In the order in which they are asked for: the first that holds is the fate."""
GONE, READABLE = 0.2, 0.5
"""readable_apart below which a feature is gone, and from which on it is still there."""
FAINT, FOLLOWED = 0.5, 0.5
"""Relative strength below which a feature is faint, best r above which a feature of the other model follows it. A
direction is the same, or another one, as verdicts have it: `KEPT_DIRECTION`, `CHANGED_DIRECTION`."""
SPLIT_GAIN, SPLIT_R = 0.1, 0.6
"""What the best pair of features adds to the best single r, and the r that it reaches, where a feature is split."""
ABSORBED, SPARED = 0.5, 0.15
"""Share of the missing firings at which the absorbing feature fires, at least, and of the surviving ones, at most."""
UNEVEN = 0.5
"""Unevenness above which the effect is missing at some firings; one with two thirds of them has 0.5."""
_SURVIVORS = (0.1, 0.8)  # share of its energy that an absorbed feature keeps
_PART = 0.5  # share of a partner's energy that lies on firings of the feature, where it is a part of it
_PARTNERS = 5  # that are looked at
MARGIN = 1.7
"""Standard errors by which strength and direction lie on their side of a cut (one-sided 95 %)."""
_LEAST_READ = 0.05  # R² in its own model below which no readout says anything


class Readability(NamedTuple):
    """Linear readouts of features from activations of two models, R² on held-out tokens, each float64 [chosen]."""

    own: np.ndarray
    other: np.ndarray
    own_apart: np.ndarray  # partial: beyond what the other features say
    other_apart: np.ndarray

    @property
    def readable(self) -> np.ndarray:
        """R² in the other model over that in the own; nan where the own model does not read it."""
        return _over(self.other, self.own)

    @property
    def readable_apart(self) -> np.ndarray:
        """The same of partial R²."""
        return _over(self.other_apart, self.own_apart)


class Sides(NamedTuple):
    """One sample of tokens, seen from both models."""

    acts: FeatureActs  # of the SAE whose features are examined; further columns as in `beside`
    own: np.ndarray  # float32 [tokens, d_own]
    other: np.ndarray  # float32 [tokens, d_other]


def beside(acts: FeatureActs, others: FeatureActs, alone: np.ndarray) -> FeatureActs:
    """Activations with those of some features of another SAE, bool [d_sae], as further columns: what only the other
    model has may fire together with a feature, and would be read as its own."""
    joined = csr_array(hstack([acts.matrix(), others.matrix()[:, alone]]))
    return FeatureActs(joined.indptr, joined.indices, joined.data, acts.d_sae + int(alone.sum()))


def readability(fitting: Sides, judging: Sides, chosen: np.ndarray, stable: np.ndarray) -> Readability:
    """Readouts of the chosen features, int [n], fitted on one sample and measured on the other.

    stable: bool [d_sae], the features whose part is removed for partial R². All follows from covariances: row i of the
    inverse of a covariance matrix holds the regression of variable i on all others. Memory in bytes: about 48 (stable
    features + width)².
    """
    features = np.union1d(np.flatnonzero(stable), chosen)
    place, count = np.searchsorted(features, chosen), len(features)
    result: dict[str, np.ndarray] = {}
    for name in ("own", "other"):
        fit, held = (_covariance(side.acts, getattr(side, name), features) for side in (fitting, judging))
        ridge = np.full(len(fit), 1e-6 * max(float(np.trace(fit[count:, count:])) / (len(fit) - count), 1e-30))
        ridge[:count] = 1e-3 * float(np.median(np.diag(fit)[:count]))
        fit[np.diag_indices_from(fit)] += ridge
        variance = np.diag(held)[place]
        weight = linalg.solve(fit[count:, count:], fit[count:, place], assume_a="pos")
        cross = held[count:, place]
        left = variance - 2 * (weight * cross).sum(0) + (weight * (held[count:, count:] @ weight)).sum(0)
        result[name] = 1 - left / np.where(variance > 0, variance, np.nan)
        without = _left_by_others(fit[:count, :count], held[:count, :count], place)
        result[f"{name}_apart"] = 1 - _left_by_others(fit, held, place) / without
    return Readability(**{name: np.clip(result[name], 0, 1) for name in Readability._fields})


def _covariance(acts: FeatureActs, x: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Of some features and activations, float64 [features + d, features + d]."""
    matrix = acts.matrix()[:, features]
    mean, count = np.concatenate([np.asarray(matrix.mean(0)).ravel(), x.mean(0, dtype=np.float64)]), len(features)
    made = np.empty((len(mean), len(mean)))
    made[:count, :count] = (matrix.T @ matrix).toarray()
    made[count:, :count] = np.asarray(matrix.T @ x).T
    made[:count, count:] = made[count:, :count].T
    made[count:, count:] = x.astype(np.float64).T @ x
    return made / len(x) - np.outer(mean, mean)


def _left_by_others(fit: np.ndarray, held: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Variance of some variables that a regression on all others, fitted on one covariance, leaves in another."""
    rows = linalg.solve(fit, np.eye(len(fit))[:, place], assume_a="pos")
    rows /= rows[place, np.arange(len(place))]
    return (rows * (held @ rows)).sum(0)


def unevenness(judging: Sides, chosen: np.ndarray, stable: np.ndarray) -> np.ndarray:
    """How unevenly the effect of features in the other model is spread over their firings, float64 [chosen]: the
    variance of the effect per firing along its mean direction, over the squared mean effect, less the same in their own
    model. 0: every firing has it alike, though perhaps weaker; (1 - p) / p: a share p of the firings has all of it.

    The effect is that of `features.verdicts`, with all stable features as regressors; what other tokens vary along the
    same direction is taken off.
    """
    features = np.union1d(np.flatnonzero(stable), chosen)
    matrix, count = judging.acts.matrix()[:, features], len(features)
    spread = []
    for x in (judging.own, judging.other):
        covariance = _covariance(judging.acts, x, features)
        gram = covariance[:count, :count]
        gram[np.diag_indices_from(gram)] += 1e-3 * float(np.median(np.diag(gram)))
        rows = linalg.solve(gram, covariance[:count, count:], assume_a="pos")
        left = x - x.mean(0, dtype=np.float64) - (matrix @ rows - np.asarray(matrix.mean(0)).ravel() @ rows)
        rows = rows[np.searchsorted(features, chosen)]
        length = np.maximum(np.linalg.norm(rows, axis=1), 1e-30)
        along = np.square(left @ (rows / length[:, None]).T)
        f = judging.acts.matrix()[:, chosen]
        fires = csr_array((np.ones(len(f.data)), f.indices, f.indptr), shape=f.shape)
        firings = np.maximum(np.asarray(fires.sum(0)).ravel(), 1)
        at_firings = np.asarray(fires.multiply(along).sum(0)).ravel()
        usual = (along.sum(0) - at_firings) / np.maximum(len(x) - firings, 1)
        energy = np.asarray(f.multiply(f).sum(0)).ravel() / firings
        spread.append((at_firings / firings - usual) / (length**2 * np.maximum(energy, 1e-30)))
    return spread[1] - spread[0]


class Partners(NamedTuple):
    """Features of the other SAE that are parts of the chosen ones, or took their place; each [chosen]."""

    best_r: np.ndarray  # r of the best match
    first: np.ndarray  # int64: the pair whose sum follows it best, or -1
    second: np.ndarray
    pair_r: np.ndarray  # multiple r of the feature with the pair; nan without one
    survivors: np.ndarray  # share of its energy on which the feature that follows it fires; nan without one
    absorber: np.ndarray  # int64: the feature that fires on most of the rest and hardly on the survivors, or -1
    absorbed: np.ndarray  # share of the rest on which it fires


def partners(own: FeatureActs, other: FeatureActs, chosen: np.ndarray) -> Partners:
    """Look for the parts of features, int [n], in another SAE on the same tokens. A partner counts as a part only where
    the feature is its own best match, and most of its energy lies on the feature's firings: what was a feature of its
    own already took nothing."""
    matches = correlate(own, other, _PARTNERS)
    mine, theirs = own.matrix().tocsc(), other.matrix()
    columns = theirs.tocsc()
    fires = csr_array((np.ones(len(theirs.data)), theirs.indices, theirs.indptr), shape=theirs.shape)
    found = Partners(*(np.full(len(chosen), value) for value in (np.nan, -1, -1, np.nan, np.nan, -1, 0.0)))
    found.best_r[:] = matches.parent_r[chosen, 0]
    for number, feature in enumerate(chosen):
        f = mine[:, [feature]].toarray().ravel()
        parts = []
        for partner, r in zip(matches.parent_match[feature], matches.parent_r[feature], strict=True):
            if partner >= 0 and r > 0 and matches.child_match[partner, 0] == feature:
                g = columns[:, [partner]].toarray().ravel()
                if np.square(g[f > 0]).sum() > _PART * np.square(g).sum():
                    parts.append((int(partner), float(r), g))
        for (a, r_a, g_a), (b, r_b, g_b) in combinations(parts, 2):
            r_ab = float(np.corrcoef(g_a, g_b)[0, 1])
            pair_r = np.sqrt((r_a**2 + r_b**2 - 2 * r_a * r_b * r_ab) / max(1 - r_ab**2, 1e-9))
            if not pair_r <= found.pair_r[number]:
                found.first[number], found.second[number], found.pair_r[number] = a, b, pair_r
        if parts:
            weight = np.square(f)
            stays = weight * (parts[0][2] > 0)
            found.survivors[number] = stays.sum() / weight.sum()
            missing = weight - stays
            spared = fires.T @ stays <= SPARED * stays.sum()
            covered = np.where(spared, fires.T @ missing, 0.0)
            if missing.any() and covered.any():
                found.absorber[number] = covered.argmax()
                found.absorbed[number] = covered.max() / missing.sum()
    return found


class Evidence(NamedTuple):
    """What is known of the chosen features from verdicts, each float64 [chosen]; strength relative to scale."""

    strength: np.ndarray
    strength_error: np.ndarray
    direction: np.ndarray
    direction_error: np.ndarray
    left: np.ndarray  # upper bound of transmission or retained, whichever is lower
    match_r: np.ndarray


def fates_of(readable_apart: np.ndarray, unevenness: np.ndarray, found: Partners, evidence: Evidence) -> np.ndarray:
    """Fates, str [chosen]: the first of these that holds.

    gone: nothing of it is readable apart, and no effect is left in its direction. split: two parts follow it
    clearly better than one. absorbed: one part follows some of its firings, and another feature fires on the rest.
    narrowed, faint: the effect has its direction; of narrowed features it is there at some firings and missing at
    others, of faint ones less than half as strong, and evenly so. moved, blurred: still readable apart, with an effect
    in another direction; a feature of the other model follows moved ones. unclear: none of these, or too uncertain.
    """
    low, high = _SURVIVORS
    with np.errstate(invalid="ignore"):
        there = readable_apart >= READABLE
        same = evidence.direction - MARGIN * evidence.direction_error > KEPT_DIRECTION
        elsewhere = evidence.direction + MARGIN * evidence.direction_error < CHANGED_DIRECTION
        weak = evidence.strength + MARGIN * evidence.strength_error < FAINT
        holds = {
            "gone": (readable_apart < GONE) & (evidence.left < LOST_TRANSMISSION),
            "split": (found.pair_r > found.best_r + SPLIT_GAIN) & (found.pair_r > SPLIT_R),
            "absorbed": (found.survivors > low) & (found.survivors < high) & (found.absorbed > ABSORBED),
            "narrowed": same & (unevenness > UNEVEN),
            "faint": same & weak & (unevenness <= UNEVEN),
            "moved": there & elsewhere & (evidence.match_r > FOLLOWED),
            "blurred": there & elsewhere & ~(evidence.match_r > FOLLOWED),
        }
    return np.select(list(holds.values()), list(holds), "unclear")


def _over(other: np.ndarray, own: np.ndarray) -> np.ndarray:
    return np.where(own > _LEAST_READ, other / np.where(own > _LEAST_READ, own, 1), np.nan)
