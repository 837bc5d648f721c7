"""The true fate of every SAE feature of a planted world, and calls judged by it.

An SAE feature follows the true feature of its model with which its activations correlate best, if that r exceeds
`RECOVERED`. The fate of the others is unknown; they count neither for nor against a call.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from heredity.features.acts import FeatureActs
from heredity.features.correlate import correlate
from heredity.synthetic.world import FAINT, FATES, KEPT, LOST, NOISY, ROTATED

UNKNOWN = -1
"""Label of an SAE feature that follows no true feature."""
RECOVERED = 0.5
"""An SAE feature follows a true feature if r exceeds this."""
KEPT_LIKE = (KEPT, ROTATED, FAINT, NOISY)
"""Fates with one partner at the other end, which a call should find. Splits and merges have two partners with a true r
of about .7 each, so neither answer is wrong: they are reported, not judged. Whether `noisy` belongs here depends on its
r; leave it out of the argument where that is low."""


class Labels(NamedTuple):
    """True features and fates of one SAE's features."""

    feature: np.ndarray
    """int32 [d_sae]: the true feature it follows; -1 for none."""
    fate: np.ndarray
    """int8 [d_sae]: fate of that feature, or UNKNOWN."""
    r: np.ndarray
    """float64 [d_sae]: r with the best true feature, even if below `RECOVERED`; nan for a constant feature."""
    true_r: np.ndarray
    """float64 [true features]: best r of each true feature with any SAE feature; nan for one that never fired."""

    @property
    def recovered(self) -> float:
        """Share of the true features that fired with an SAE feature whose r exceeds `RECOVERED`; nan if none fired."""
        return _share(int((self.true_r > RECOVERED).sum()), int(np.isfinite(self.true_r).sum()))

    @property
    def reliability(self) -> float:
        """Median r of the SAE features that follow a true feature with that feature; nan if none does."""
        follows = self.feature >= 0
        return float(np.median(self.r[follows])) if follows.any() else math.nan


class Judgment(NamedTuple):
    """A yes-no call on every SAE feature of one end, compared with the truth."""

    called: dict[str, float]
    """Share of features called, by the name of their fate, `unknown` included; fates without features are left out."""
    precision: float
    """Share of right calls among the judged features called; nan if none is called."""
    recall: float
    """Share of the features to be called that are called; nan if there are none."""


def label(acts: FeatureActs, true_acts: FeatureActs, fate: np.ndarray) -> Labels:
    """Label the features of one SAE.

    acts: of the SAE, and true_acts: of its model's true features, on the same tokens. fate: int8 [true features].
    Raises `ValueError` when samples differ in length or `fate` does not fit.
    """
    if fate.shape != (true_acts.d_sae,):
        raise ValueError(f"fate has shape {fate.shape}, not ({true_acts.d_sae},); give one fate per true feature")
    matches = correlate(acts, true_acts, top=1)
    best, r = matches.parent_match[:, 0], matches.parent_r[:, 0]
    follows = r > RECOVERED
    feature = np.where(follows, best, -1).astype(np.int32)
    return Labels(feature, np.where(follows, fate[best], UNKNOWN).astype(np.int8), r, matches.child_r[:, 0])


def judge(
    called: np.ndarray, fate: np.ndarray, right: Collection[int] = KEPT_LIKE, wrong: Collection[int] = (LOST,)
) -> Judgment:
    """Judge a call, bool [d_sae], by the features' fates: right on some of them, wrong on others.

    By default the call is that parent features persist; `right=(NEW,), wrong=KEPT_LIKE` judges that child features
    emerge. Raises `ValueError` for a call of another shape or type.
    """
    called = np.asarray(called)
    if called.shape != fate.shape or called.dtype != bool:
        raise ValueError(f"calls are {called.dtype} {called.shape}; give bool {fate.shape}, one per SAE feature")
    positive = np.isin(fate, list(right))
    hits, false = int((called & positive).sum()), int((called & np.isin(fate, list(wrong))).sum())
    return Judgment(share_by_fate(called, fate), _share(hits, hits + false), _share(hits, int(positive.sum())))


def share_by_fate(called: np.ndarray, fate: np.ndarray) -> dict[str, float]:
    """Share of features called (bool), by the name of their fate; fates without features are left out."""
    groups = {name: called[fate == number] for number, name in [*enumerate(FATES), (UNKNOWN, "unknown")]}
    return {name: _share(int(group.sum()), len(group)) for name, group in groups.items() if len(group)}


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
