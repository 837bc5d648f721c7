"""The true fate of every SAE feature of a planted world, and calls judged by it.

An SAE feature follows the true feature of its own model with which its activations correlate best, when that r is
above `recovered`; what follows none is unknown and counts neither for nor against a call.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np

from heredity.features.acts import FeatureActs
from heredity.features.correlate import correlate
from heredity.synthetic.settings import FAINT, FATES, KEPT, LOST, NEW, NOISY, ROTATED
from heredity.synthetic.world import Sample, World

UNKNOWN = -1
"""Label of an SAE feature that follows no true feature."""
RECOVERED = 0.5
"""Least r with a true feature for an SAE feature to count as following it."""
KEPT_LIKE = (KEPT, ROTATED, FAINT, NOISY)
"""Fates with one partner at the other end, which a call should find. Splits and merges have two partners with a true r
of about .7 each, so that what a call should say is a matter of taste: they are reported, not judged. Whether `noisy`
belongs here depends on its r; leave it out of the argument where that is low."""


class Labels(NamedTuple):
    """What the features of one SAE are, by the true features of its model."""

    feature: np.ndarray
    """int32 [d_sae]: true feature it follows; -1 for none."""
    fate: np.ndarray
    """int8 [d_sae]: fate of that feature, or UNKNOWN."""
    r: np.ndarray
    """float64 [d_sae]: r with the best true feature, whether it reaches `recovered` or not; nan for a feature that is
    constant."""
    true_r: np.ndarray
    """float64 [true features]: best r of each true feature with any SAE feature; nan for one that never fired."""
    true_fate: np.ndarray
    """int8 [true features]."""
    recovered: float
    """Threshold on r that was used."""


class Truth(NamedTuple):
    """The true fates of both ends' SAE features."""

    parent: Labels
    """Of the parent's SAE."""
    child: Labels
    """Of the child's SAE."""

    @property
    def parent_fate(self) -> np.ndarray:
        """int8 [d_parent]: fate, or UNKNOWN."""
        return self.parent.fate

    @property
    def child_fate(self) -> np.ndarray:
        """int8 [d_child]: fate, or UNKNOWN."""
        return self.child.fate


class Group(NamedTuple):
    """SAE features of one fate."""

    n: int
    """Features."""
    called: int
    """Of these, features that the call says yes to."""
    share: float
    """called / n; nan when there are none."""


class Judgment(NamedTuple):
    """A yes-no call on every SAE feature of one end, held against the truth."""

    groups: dict[str, Group]
    """By the name of the fate, and `unknown`; groups without features are left out."""
    precision: float
    """Of the judged features called, the share called rightly; nan when none is called."""
    recall: float
    """Of the features to be called, the share that is; nan when there is none."""
    specificity: float
    """Of the judged features not to be called, the share that is not; nan when there is none."""
    judged: int
    """Features that count for or against the call."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, None for nan."""
        groups = {name: _plain(group._asdict()) for name, group in self.groups.items()}
        return _plain(self._asdict()) | {"groups": groups}


class Recovery(NamedTuple):
    """How much of a model's truth its SAE has found."""

    features: int
    """True features that fired."""
    found: int
    """Of these, with an SAE feature whose r is above `recovered`."""
    share: float
    """found / features; nan when none fired."""
    by_fate: dict[str, float]
    """The same share by the name of the fate."""
    median_r: float
    """Median over SAE features that follow a true feature of their r with it: the reliability; nan when none does."""
    duplicates: int
    """SAE features beyond the first that follow the same true feature."""
    unknown: int
    """Live SAE features that follow none."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, None for nan."""
        return _plain(self._asdict()) | {"by_fate": _plain(self.by_fate)}


def label(
    acts: FeatureActs,
    true_acts: FeatureActs,
    fate: np.ndarray,
    recovered: float = RECOVERED,
    *,
    one_to_one: bool = False,
) -> Labels:
    """Label the features of one SAE.

    acts: of the SAE, and true_acts: of its own model's true features, on the same tokens. fate: int8 [true features].
    one_to_one: of several SAE features that follow one true feature keep only the one with the highest r; the others
    become unknown. By default all of them follow it.
    Raises `ValueError` when samples differ in length or `fate` does not fit.
    """
    if fate.shape != (true_acts.d_sae,):
        raise ValueError(f"fate has shape {fate.shape}, not ({true_acts.d_sae},); give one fate a true feature")
    matches = correlate(acts, true_acts, top=1)
    best, r = matches.parent_match[:, 0], matches.parent_r[:, 0]
    follows = r > recovered
    if one_to_one:
        follows &= matches.child_match[best, 0] == np.arange(acts.d_sae)
    feature = np.where(follows, best, -1).astype(np.int32)
    own = np.where(follows, fate[best], UNKNOWN).astype(np.int8)
    return Labels(feature, own, r, matches.child_r[:, 0], fate, recovered)


def label_edge(
    parent: FeatureActs,
    child: FeatureActs,
    sample: Sample,
    world: World,
    recovered: float = RECOVERED,
    *,
    one_to_one: bool = False,
) -> Truth:
    """Label the SAEs of both ends on the tokens of a sample; `recovered` and `one_to_one` as in `label`."""
    return Truth(
        label(parent, sample.parent, world.parent.fate, recovered, one_to_one=one_to_one),
        label(child, sample.child, world.child.fate, recovered, one_to_one=one_to_one),
    )


def judge(persist: np.ndarray, truth: Truth, kept_like: Collection[int] = KEPT_LIKE) -> Judgment:
    """Judge the call that parent features persist, bool [d_parent]: right on `kept_like` fates, wrong on lost ones."""
    return _judge(persist, truth.parent_fate, kept_like, (LOST,))


def judge_new(emerge: np.ndarray, truth: Truth, kept_like: Collection[int] = KEPT_LIKE) -> Judgment:
    """Judge the call that child features emerge, bool [d_child]: right on new ones, wrong on `kept_like` fates."""
    return _judge(emerge, truth.child_fate, (NEW,), kept_like)


def recovery(labels: Labels) -> Recovery:
    """How many true features an SAE has found, from `label`."""
    fired = np.isfinite(labels.true_r)
    found = labels.true_r > labels.recovered
    by_fate = {}
    for fate, name in enumerate(FATES):
        own = fired & (labels.true_fate == fate)
        if own.any():
            by_fate[name] = _share(int(found[own].sum()), int(own.sum()))
    follows = labels.feature >= 0
    return Recovery(
        features=int(fired.sum()),
        found=int(found.sum()),
        share=_share(int(found.sum()), int(fired.sum())),
        by_fate=by_fate,
        median_r=float(np.median(labels.r[follows])) if follows.any() else math.nan,
        duplicates=int(follows.sum()) - len(np.unique(labels.feature[follows])),
        unknown=int((np.isfinite(labels.r) & ~follows).sum()),
    )


def _judge(called: np.ndarray, fate: np.ndarray, right: Collection[int], wrong: Collection[int]) -> Judgment:
    called = np.asarray(called)
    if called.shape != fate.shape or called.dtype != bool:
        raise ValueError(f"calls are {called.dtype} {called.shape}; give bool {fate.shape}, one an SAE feature")
    names = {**dict(enumerate(FATES)), UNKNOWN: "unknown"}
    groups = {}
    for number, name in names.items():
        own = fate == number
        if own.any():
            n, yes = int(own.sum()), int(called[own].sum())
            groups[name] = Group(n, yes, _share(yes, n))
    positive, negative = np.isin(fate, list(right)), np.isin(fate, list(wrong))
    hits, false = int((called & positive).sum()), int((called & negative).sum())
    return Judgment(
        groups=groups,
        precision=_share(hits, hits + false),
        recall=_share(hits, int(positive.sum())),
        specificity=_share(int((~called & negative).sum()), int(negative.sum())),
        judged=int((positive | negative).sum()),
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in values.items()}
