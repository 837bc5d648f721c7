"""Records of the summary about what features mean."""

from __future__ import annotations

from heredity.report.record import Count, Frozen, Interval, Number


class DistributionSummary(Frozen):
    """Simulation scores of one group of features."""

    n: Count
    """Features with a score."""
    unscored: Count
    """Features that were asked about and have none."""
    rare: Count
    """Features that fire too seldom on the sample to be asked about."""
    median: Number
    """Median score; null without one."""
    interval: Interval
    """Its bootstrap interval."""
    histogram: tuple[Count, ...]
    """Features by score, in bins of 0.05 from -0.2 to 1; lower scores count in the first."""


class ComparisonSummary(Frozen):
    """Whether features that persist are explained better than others."""

    persisting: DistributionSummary
    """Features of the parent with a match above the edge's threshold."""
    others: DistributionSummary
    """As many without one, or all there are."""
    p: Number
    """Mann-Whitney test, two-sided; null unless both groups have scores."""
    effect: Number
    """Chance that one that persists scores above one that does not, ties counted half."""
    interval: Interval
    """Its bootstrap interval over features."""


class ExplainedSummary(Frozen):
    """Explanations of features, and how well they predict the activations."""

    judge: str
    """Who explained and predicted; `offline` is statistics of the text, no language model."""
    features: Count
    """Features asked about."""
    explained: Count
    """Explanations asked for."""
    carried: Count
    """Features that a matched feature's label was tried on."""
    kept: Count
    """Those that keep it."""
    re_explained: Count
    """Those that were explained anew, because the score fell by more than `explain.drop`; a new description that scores
    no better is not taken."""
    failed: Count
    """Explanations that failed."""
    too_rare: Count
    """Features with too few firings in one half of the sample."""
    saved: Count
    """Explanations that need not be asked for."""
    saved_cost: float
    """What these would have cost, in USD."""
    failures: dict[str, Count]
    """Answers that did not come, by kind."""
    edges: dict[str, ComparisonSummary]
    """By `parent->child`: features of the parent."""
    merges: dict[str, ComparisonSummary]
    """By merge: features of all its parents, each by its own edge into the merge."""
