"""What became of single features along an edge, by evidence: kept, changed, lost, or undecided.

A feature is judged only where another SAE of the same model, of another seed, has it too (stability): what follows
nothing differs between seeds (Paulo & Belrose 2025). What the other model makes of it is measured three ways, none of
which takes one SAE's word:

- effect: how far the other model's activations move per unit of the feature, over how far its own do, see
  `features.transmission`.
- map_r: Pearson r of the feature with itself, read by its own encoder from the other model's activations through the
  affine map back.
- match_r: best r in the SAEs of the other model, the best over their seeds.

Standard errors of effects: jackknife over groups of documents, to first order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from heredity.features.acts import FeatureActs
from heredity.features.transmission import Effects
from heredity.format import percent
from heredity.kernels.pairs import pair_moments

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
as the other half of a pair does, but has no such effect. Or both hold of its residual, or a linear readout finds less
than `UNREAD` of it in the other model, wherever that moves; p-values are multiplied by the number of these ways."""
UNREAD = 0.25
"""R² of a readout from the other model's activations over that from its own, below which a feature is not read."""
FOLLOWED = 0.7
"""match_r and map_r up to which the residual of a feature can show that it is lost: what is still read is there. Where
its match is above `LOST_MATCH`, that must be another feature that both models have: the whole of which it is a half is
not."""
SHARED_R = 0.75
"""r with itself, read in the other model through the map, above which a feature is one of both models."""
ALONE = 0.4
"""Best r in the SAEs of this model below which a stable feature of the other model is that one's alone. Lower than
`LOST_MATCH`: a feature that moved must not be taken for one that left and one that came."""
KEPT_TRANSMISSION, KEPT_DIRECTION, KEPT_R = 0.5, 0.7, 0.6
"""Margins of equivalence: a kept feature has a transmission between this and its inverse, a direction and an r (by map
or match) above these, all with their intervals."""
CHANGED_TRANSMISSION, CHANGED_DIRECTION, CHANGED_R = 0.6, 0.75, 0.5
"""A feature is changed where it lies outside of these by more than its errors: r with the whole of its interval, so
that a few positions with large activations, such as those of one token, do not make a change."""
LEAST_APART = 0.05
"""Share of a feature's variance that other features do not explain, below which no effect can be called its own."""
_SAME_R, _LEAST_SAME = 0.7, 20  # features that set the scale between both models' activations, and the fewest that can


class Followed(NamedTuple):
    """r of features with what follows them in the other model, float64 [d_sae] each; nan where nothing does.

    The ends are those of a 95 % interval over groups of documents; nan where r rests on a single one of them.
    """

    r: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def exactly(cls, r: np.ndarray) -> Followed:
        """r that is known as it is, float64 [d_sae]."""
        return cls(r, r, r)


class Judged(NamedTuple):
    """Verdicts on the features of one end of an edge."""

    verdict: np.ndarray
    """int8 [d_sae]: index into `VERDICTS`."""
    p_lost: np.ndarray
    """float64 [d_sae]: p-value of the hypothesis that it is not lost; nan for features that are not judged."""
    scale: float
    """Median transmission of features that both models have; strengths and transmissions are judged relative to it."""


def same_r(first: FeatureActs, second: FeatureActs) -> np.ndarray:
    """Pearson r of each feature with the feature of the same index in other activations of one SAE on the same tokens,
    float64 [d_sae]; nan where either never fires."""
    own = np.arange(first.d_sae)[:, None]
    sums = pair_moments(first.sparse, second.sparse, own, np.zeros(first.tokens, np.int32), 1)
    x, xx, y, yy, xy = (sum_of.ravel() / first.tokens for sum_of in sums[1:6])
    covariance, scale = xy - x * y, np.sqrt(np.maximum((xx - x**2) * (yy - y**2), 0))
    return np.where(scale > 0, covariance / np.where(scale > 0, scale, 1), np.nan)


def judge(
    effect: Effects,
    stable: np.ndarray,
    match: Followed,
    reread: Followed,
    elsewhere: np.ndarray | None = None,
    read: tuple[np.ndarray, np.ndarray, int] | None = None,
) -> Judged:
    """Verdicts from evidence.

    stable: bool [d_sae], which features to judge. match, reread: match_r and map_r. elsewhere: float64 [d_sae], r with
    itself of the feature that match_r is of, read in this model; None: nothing is known of it. read: what
    `Readout.readable` gives; None: nothing is known of it.
    Lost features are discoveries at a false discovery rate of `RATE`; kept is an equivalence within the margins above;
    changed is outside of them beyond the errors; all else that is stable is undecided, as are features that others
    explain but for `LEAST_APART`.
    """
    match_r, followed, judged = match.r, np.fmax(match.r, reread.r), stable & np.isfinite(effect.transmission)
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
        away_p = np.minimum(2 * np.fmin(p, t.cdf((retained - LOST_TRANSMISSION) / retained_error)), 1.0)
        sizes = (effect.strength, effect.strength_error), (effect.remainder, effect.remainder_error)
        most = np.where(match_r > LOST_MATCH, LOST_FOLLOWED, LOST_STRENGTH)
        p = np.fmax(away_p, np.fmin(*(t.cdf((size / scale - most) / (spread / scale)) for size, spread in sizes)))
        off, left = effect.residual_retained / scale, effect.residual_strength / scale
        errors = effect.residual_retained_error / scale, effect.residual_strength_error / scale
        residual = np.fmax(t.cdf((off - LOST_TRANSMISSION) / errors[0]), t.cdf((left - most) / errors[1]))
        free = match_r <= LOST_MATCH if elsewhere is None else (match_r <= LOST_MATCH) | (elsewhere > SHARED_R)
        residual = np.where((followed <= FOLLOWED) & free & np.isfinite(left), residual, np.nan)
        ways = [p, residual]
        if read is not None:
            unread = stats.t(max(read[2] - 1, 1)).cdf((read[0] - UNREAD) / read[1])
            ways.append(np.where(followed <= FOLLOWED, np.fmax(away_p, unread), np.nan))
        p = np.where(judged & alone, np.minimum(len(ways) * np.fmin.reduce(ways), 1.0), np.nan)
        lost = _discoveries(p, RATE)
        low, high = transmission - margin * error, transmission + margin * error
        away, toward = direction + margin * effect.direction_error, direction - margin * effect.direction_error
        kept = (low > KEPT_TRANSMISSION) & (high < 1 / KEPT_TRANSMISSION) & (toward > KEPT_DIRECTION)
        kept &= np.fmax(match.low, reread.low) > KEPT_R
        changed = (high < CHANGED_TRANSMISSION) | (low > 1 / CHANGED_TRANSMISSION) | (away < CHANGED_DIRECTION)
        ends = (np.where(np.isfinite(each.r), np.nan_to_num(each.high, nan=1), np.nan) for each in (match, reread))
        changed |= np.fmax(*ends) < CHANGED_R
    verdict = np.full(len(stable), VERDICTS.index("undecided"), np.int8)
    for name, chosen in (
        ("changed", changed & ~kept & alone),
        ("kept", kept & alone),
        ("lost", lost),
        ("unstable", ~judged),
    ):
        verdict[chosen] = VERDICTS.index(name)
    return Judged(verdict, p, scale)


def reason(row: Mapping[str, Any]) -> str:
    """Why a feature has its verdict, in a sentence.

    row: its evidence, with transmission and strength over their scale; what was not measured is None. Bounds and errors
    decide, of which this names the figures that lie on the side of the verdict.
    """
    r = max((row[name] for name in ("match_r", "map_r") if row[name] is not None), default=None)
    figures = {name: row[name] for name in REASONED} | {"r": r}
    said = {name: "not measured" if value is None else f"{value:.2f}" for name, value in figures.items()}
    return reason_form(row).format(**said)


REASONED = ("transmission", "direction", "strength", "match_r", "stability")
"""Figures that the form of a reason leaves open, beside r: the higher of match_r and map_r."""


def reason_form(row: Mapping[str, Any]) -> str:
    """The sentence of `reason` with figures of two decimals as `{name}`, so that many features share one."""
    names = ("transmission", "direction", "stability", "apart")
    transmission, direction, stability, apart = (row[name] for name in names)
    r = max((row[name] for name in ("match_r", "map_r") if row[name] is not None), default=None)
    figures = "transmission {transmission}, direction {direction}, r {r}"
    match row["verdict"]:
        case "unstable":
            if stability is None or stability <= STABLE:
                return f"stability {{stability}}: not above {STABLE:g} in a second SAE of its model, not judged"
            if not row["owned"]:
                return "less than 30 % of its energy lies in its own model, not judged"
            return "its effect could not be measured, not judged"
        case "lost" | "new":
            p = row["p_lost"]
            p = "" if p is None else f"p {p:.2g} that it is not, at a false discovery rate of {percent(RATE)}; "
            return p + "transmission {transmission}, strength {strength}, match r {match_r}"
        case "kept" | "inherited":
            margins = f"{KEPT_TRANSMISSION:g} to {1 / KEPT_TRANSMISSION:g}, {KEPT_DIRECTION:g} and {KEPT_R:g}"
            return f"{figures}: within the margins {margins}, errors included"
        case "changed":
            outside = []
            if transmission is not None and not CHANGED_TRANSMISSION <= transmission <= 1 / CHANGED_TRANSMISSION:
                ends = f"{CHANGED_TRANSMISSION:g} to {1 / CHANGED_TRANSMISSION:.2f}"
                outside.append(f"transmission {{transmission}} outside of {ends}")
            if direction is not None and direction < CHANGED_DIRECTION:
                outside.append(f"direction {{direction}} below {CHANGED_DIRECTION:g}")
            if r is not None and r < CHANGED_R:
                outside.append(f"r {{r}} below {CHANGED_R:g}")
            return f"{' and '.join(outside) or figures}, beyond the errors"
    if apart is not None and apart < LEAST_APART:
        return f"other features explain all but {percent(apart)} of it, so that no effect is its own"
    return f"{figures}: neither within the margins of kept nor outside of those of changed, errors included"


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
