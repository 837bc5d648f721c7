"""Records of the page about single features: the text they fire on, their cards and labels, and the cases."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import BeforeValidator, model_validator

from heredity.report.record import Count, Frozen, Number, finite


def _floats(values: object) -> object:
    """Numpy arrays and scalars as rounded Python floats: the page shows three digits and should stay small."""
    return [round(float(value), 4) for value in np.asarray(values, dtype=np.float64).ravel()]


Values = Annotated[tuple[float, ...], BeforeValidator(_floats)]
"""Activations, rounded."""


def _short(value: object) -> object:
    number = finite(value)
    return round(number, 4) if isinstance(number, float) else number


Short = Annotated[float | None, BeforeValidator(_short)]
"""A number of which there are many: four digits after the point are sent."""


class Context(Frozen):
    """A stretch of text around a firing."""

    tokens: tuple[str, ...]
    """Tokens as text."""
    values: Values
    """Activation of the feature on each."""
    focus: Annotated[int, BeforeValidator(int)]
    """Position of the firing that the context was chosen for."""
    corpus: str
    """Where it comes from."""
    others: dict[str, Values] = {}
    """Activations of the feature's matches on the same tokens, by model."""

    @model_validator(mode="after")
    def _aligned(self) -> Context:
        if len(self.tokens) != len(self.values):
            raise ValueError(f"{len(self.tokens)} tokens but {len(self.values)} values; give one value a token")
        for model, values in self.others.items():
            if len(values) != len(self.tokens):
                raise ValueError(f"{len(self.tokens)} tokens but {len(values)} values of {model}; give one a token")
        if not 0 <= self.focus < len(self.tokens):
            raise ValueError(f"focus={self.focus} is outside the {len(self.tokens)} tokens of its context")
        return self


class FiredToken(Frozen):
    """A token that a feature fires on."""

    token: str
    """Its text."""
    share: Short
    """Share of the feature's total activation."""
    firings: Count
    """How often the feature fires on it."""
    mean: Short
    """Mean activation of these firings."""
    fired: Short
    """Share of the token's occurrences on which the feature fires."""


class PushedToken(Frozen):
    """A token whose logit a feature moves."""

    token: str
    """Its text."""
    weight: Short
    """By how much an activation of 1 moves its logit on the direct path, before the scale of the final norm; the mean
    over the vocabulary is 0."""


class Level(Frozen):
    """Firings drawn from one interval of a feature's activation range."""

    low: Short
    """Lower end of the interval."""
    high: Short
    """Upper end."""
    contexts: tuple[Context, ...]
    """Some text around each."""


class CardView(Frozen):
    """On which tokens a feature fires, how strongly, and what it predicts."""

    firings: Count
    """Token positions on which it fires."""
    tokens: tuple[FiredToken, ...]
    """The tokens that carry most of its activation, the largest share first."""
    histogram: tuple[Count, ...]
    """Firings by activation, in equal bins from 0 to the highest."""
    weaker: tuple[Level, ...] = ()
    """Intervals below the strongest, the strongest of them first."""
    promoted: tuple[PushedToken, ...] = ()
    """Tokens that it makes more likely, the most first; empty where `no_logits` says why."""
    suppressed: tuple[PushedToken, ...] = ()
    """Tokens that it makes less likely, the most first."""
    no_logits: str = ""
    """Why it is not known what it predicts."""


class LabelView(Frozen):
    """What is said of a feature."""

    description: str | None
    """In words; null where explaining failed."""
    by: str
    """Who explained and predicted."""
    origin: str
    """The feature that the description was made for, as `model/index`."""
    carried: bool
    """Whether it is that of a matched feature, kept here."""
    re_explained: bool
    """Whether a matched feature's description was tried and given up for one of its own."""
    simulation: Short
    """Simulation score on this feature's own activations; null where it is undefined."""
    detection: Short = None
    """Informedness of telling excerpts it fires in from others by the description; 0 is guessing."""
    fuzzing: Short = None
    """Informedness of telling excerpts with its firings marked from others; 0 is guessing."""
    failure: str = ""
    """Why there is no description."""


class FeatureView(Frozen):
    """One feature with the text it fires on most."""

    id: str
    """`model/index`."""
    model: str
    """Its model."""
    index: Annotated[int, BeforeValidator(int)]
    """Its index in the SAE."""
    density: Number
    """Share of tokens it fires on."""
    max_act: Number
    """Its highest activation."""
    contexts: tuple[Context, ...] = ()
    """Top contexts, strongest first."""
    card: CardView | None = None
    """What else is known of where it fires; null for features that are shown as matches only."""
    label: LabelView | None = None
    """What is said of it; null unless it was asked about."""


class FamilyMatch(Frozen):
    """The best match of a highlighted feature in another model."""

    model: str
    """The other model."""
    index: Annotated[int | None, BeforeValidator(lambda value: None if value is None else int(value))]
    """Its feature; null when nothing fires alike."""
    r: Number
    """Pearson r along the edge."""
    along: str = ""
    """The edge, `parent->child`, that r was measured on."""
    max_act: Number = None
    """Highest activation of the match, which its shades are scaled to; default the highest shown."""


class Highlight(Frozen):
    """A feature of one of the page's lists."""

    list: str
    """`most persistent`, `most changed`, `emerged in MODEL` or `case:NAME`."""
    feature: FeatureView
    """The feature."""
    matches: tuple[FamilyMatch, ...] = ()
    """Its matches along the lineage, in the order of the models."""
    family: tuple[FeatureView, ...] = ()
    """The matched features, where their activations on the contexts are not in `others` already."""
    note: str = ""
    """A sentence on why it stands in the list."""


class FitView(Frozen):
    """How well one feature fits a case."""

    feature: int
    """Its index."""
    llr: Number
    """Activation-weighted."""
    llr_count: Number = None
    """Count-weighted."""
    sensitivity: Number = None
    """Pearson r of the activation and the indicator of the set."""
    elsewhere: Number = None
    """Total activation on all other tokens over that on the set."""
    hits: Count | None = None
    """Firings on the set."""
    r: Number = None
    """Pearson r with the family's feature of the same model."""


class CaseMemberView(FitView):
    """The feature of one model in a case; r is that with the member it was reached from."""

    model: str
    """The model."""
    previous: str = ""
    """The model it was reached from."""
    status: str = ""
    """start, kept, lost, absent or beyond."""


class NearestMiss(FitView):
    """The best match of a feature that counts as lost; r is along the edge, below the threshold."""

    model: str
    """Where it was looked for."""
    threshold: Number = None
    """What r would have to be above."""


class TopToken(Frozen):
    """A token that a feature is active on."""

    token: str
    """Its text."""
    share: Number
    """Share of the feature's total activation."""
    llr: Number
    """Of the hypothesis that it is this token."""


class CaseView(Frozen):
    """One question followed through the lineage."""

    kind: str = "tokens"
    """What is given: tokens, regex, script or predicate."""
    value: str = ""
    """The pattern, script or function, where it is not tokens."""
    tokens: tuple[str, ...]
    """The token set of the hypothesis; the most frequent of it where it is given by a pattern or a script."""
    set_size: Count | None = None
    """Tokens of the vocabulary in the set; null for a predicate."""
    not_in_vocabulary: tuple[str, ...] = ()
    """Those that are no single token and could not be looked for."""
    base_rate: Number = None
    """Share of the sample's tokens that are in the set."""
    members: tuple[CaseMemberView, ...]
    """In the order of the models."""
    best: dict[str, FitView] = {}
    """By model: the feature that fits best, whatever it matches."""
    top_tokens: tuple[TopToken, ...] = ()
    """What the feature that the family starts with is most active on."""
    verdict: str
    """One sentence."""
    nearest_misses: tuple[NearestMiss, ...] = ()
    """Where the case was lost, what came nearest."""
