"""Records that set a lineage matched through affine maps beside one matched by correlation."""

from __future__ import annotations

from heredity.report.record import Count, Frozen, Number


class AgreementSummary(Frozen):
    """How far the calls by one r agree with those by the best match, on the parent's live features."""

    persisting: Count
    """Features whose r is above the edge's threshold."""
    both: Count
    """Those of them that persist by their best match too."""
    only: Count
    """Those that do not."""
    only_matched: Count
    """Features that persist by their best match only."""
    neither: Count
    """Features that persist by neither."""
    kappa: Number
    """Cohen's kappa; null where both call all or none."""
    rank: Number
    """Spearman correlation of the two r, over features that have both."""
    median: Number
    """Median r; null without any."""


class ComparedSummary(Frozen):
    """The lineage of an edge by its matches and by its maps."""

    hook_point: str
    """Of both models and of the parent's SAE."""
    threshold: Number
    """On r, that of the edge."""
    tokens: Count
    """Validation tokens behind each r through maps; matches have the edge's own sample."""
    live: Count
    """Features of the parent that have a match."""
    matched: Count
    """Of them, those whose best match among the child's own features is above the threshold."""
    one_sae: bool
    """Whether the study has one SAE for all models: the child's own SAE is then the parent's as it is, and `unchanged`
    what matching each feature with itself gives."""
    carried: AgreementSummary
    """By r of each feature with itself, carried over by the maps."""
    unchanged: AgreementSummary | None
    """By r of each feature with itself, the parent's SAE reading the child as it is; null for other widths."""
    parent_explained_variance: Number
    """Of the parent's SAE on the parent."""
    carried_explained_variance: Number
    """Of the parent's SAE carried over by the maps, on the child."""
    unchanged_explained_variance: Number
    """Of the parent's SAE as it is, on the child; null for other widths."""


class BridgeSummary(Frozen):
    """An edge of the study that is a stitch too."""

    edge: str
    """`parent->child`."""
    compared: ComparedSummary | None
    """Null where the two cannot be compared."""
    reason: str = ""
    """Why they cannot."""
