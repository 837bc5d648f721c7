"""What `classes.json` says: which kinds of features a model has, and which of them an edge kept, lost or made."""

from __future__ import annotations

from pydantic import model_validator

from heredity.report.record import Count, Frozen, Interval, Number


class ShareSummary(Frozen):
    """Features of a group that belong to a class."""

    count: Count
    """How many."""
    share: Number
    """Of the group's judged features; null when it has none."""
    interval: Interval
    """Wilson's score interval of the share."""


class ClassGroup(Frozen):
    """The classes of some features. `judged + rare + silent = features`, and the classes add up to `judged`."""

    features: Count
    """All of the group."""
    judged: Count
    """Those that fire often enough on the sample: the denominator of every share."""
    rare: Count
    """Those that fire too seldom on it."""
    silent: Count
    """Those that never fire on it."""
    classes: dict[str, ShareSummary]
    """By class; each judged feature belongs to exactly one."""
    groups: dict[str, ShareSummary]
    """Classes taken together: `punctuation`, `formatting` (whitespace and line breaks), `code` (operators, keywords,
    identifiers, and features of a corpus of code); and `single-token`, whatever the class. They overlap."""
    domains: dict[str, ShareSummary]
    """By corpus: features that have nearly all of their activation in it; empty where there is but one."""

    @model_validator(mode="after")
    def _adds_up(self) -> ClassGroup:
        counted = sum(share.count for share in self.classes.values())
        if counted != self.judged or self.judged + self.rare + self.silent != self.features:
            raise ValueError(
                f"classes hold {counted} features, judged={self.judged}, rare={self.rare} and silent={self.silent} of "
                f"features={self.features}; every feature belongs to exactly one class"
            )
        return self


class GapSummary(Frozen):
    """Share of a class among persisting features minus its share among lost ones."""

    value: Number
    """Above 0: persisting features are more often of this class; null when either group has no judged feature."""
    interval: Interval
    """Bootstrap over features; null where no resample differs from another."""


class EdgeClasses(Frozen):
    """The classes of the features of an edge, by fate. Fates are of the edge's threshold and its own token sample."""

    threshold: float
    """On r."""
    live: ClassGroup
    """Live parent features."""
    persist: ClassGroup
    """Those with a match above the threshold."""
    disappear: ClassGroup
    """Those without."""
    child_live: ClassGroup
    """Live child features."""
    inherited: ClassGroup
    """Those with a match above the threshold."""
    emerge: ClassGroup
    """Those without."""
    class_gaps: dict[str, GapSummary]
    """Persisting minus lost, by class."""
    group_gaps: dict[str, GapSummary]
    """Persisting minus lost, by group."""


class ClassesSummary(Frozen):
    """Classes of features by rule, without a language model."""

    tokens: Count
    """Positions of the sample that firings are taken from, of all corpora in equal parts."""
    level: float
    """Nominal coverage of the intervals."""
    rules: dict[str, float]
    """The thresholds of the rules."""
    languages: dict[str, str]
    """What each corpus is written in, told from its words."""
    base_rates: dict[str, Number]
    """Share of the sample's tokens in each token category."""
    models: dict[str, ClassGroup]
    """By model: features that fire on the sample."""
    edges: dict[str, EdgeClasses]
    """By `parent->child`."""
    paths: dict[str, ClassGroup]
    """By `base->child->grandchild`: features of the last model that flow in from the first, by matches above the
    thresholds of both edges. Where several edges lead into the middle model, they are taken together: `a|b->c->d`."""
