"""Figures of probes and of steering in two models joined by a stitch."""

from __future__ import annotations

from heredity.report.record import Count, Frozen, Number

Estimated = tuple[Number, Number, Number]
"""A value, and the lower and the upper end of its 95 % interval."""


class ProbeRow(Frozen):
    """One arm at one size, for one class; judged on texts that it was not fitted on."""

    label: str
    """The class that is told from the rest, or from the only other one."""
    arm: str
    """`source`: the source's probe on the source. `native`: the target's own SAE. On the target through the source's
    SAE: `unchanged` (features and weights of the source's probe), `refitted` (its features), `random` (random ones,
    refitted). `dense_source`, `dense_native`, `dense_unchanged`: all dimensions of the vectors."""
    k: Count
    """Features that it reads, or dimensions."""
    accuracy: Estimated
    """Share of right answers."""
    balanced_accuracy: Estimated
    """Mean over both classes of the share of right answers."""
    auc: Estimated
    """Area under the ROC curve."""
    draws: Count
    """Probes behind it: draws of random features, of which values and ends of intervals are means; 1 for other arms."""
    spread: Number = None
    """Standard deviation of the balanced accuracy between draws; null for fewer than two."""


class ProbeMean(Frozen):
    """One arm at one size, over all classes."""

    arm: str
    """As in the rows."""
    k: Count
    """As in the rows."""
    balanced_accuracy: Number
    """Mean over classes."""
    classes: Count
    """That there is a probe of this size for."""


class ProbeSummary(Frozen):
    """Probes of one task."""

    task: str
    """What is told apart."""
    origin: str
    """Where its texts come from: `validation`, or `validation and train` where those were too few, documents of the
    corpora that both models have read; or a data set of the hub, with its revision where one was given."""
    classes: tuple[str, ...]
    """Names of the classes; empty where the task cannot be made of the corpora."""
    fitted: Count
    """Texts to fit on, all classes together."""
    tested: Count
    """Texts to test on."""
    least_share: Number
    """Of all texts, those of the rarest class."""
    left_out: tuple[Count, ...]
    """Sizes that some class has no probes of, because fewer features fire in the target."""
    rows: tuple[ProbeRow, ...]
    """Each class against as many texts of the rest in turn, or two classes once."""
    means: tuple[ProbeMean, ...]
    """Over the classes."""
    reason: str = ""
    """Why there are no probes; empty when there are."""


class Written(Frozen):
    """A text that a model wrote."""

    prompt: str
    """The beginning that it was given."""
    text: str
    """How it went on."""


class SteeringRow(Frozen):
    """One arm of steering in one model towards one corpus."""

    model: str
    """That writes."""
    wanted: str
    """Corpus that its texts shall be like."""
    arm: str
    """`none`: unsteered. `native`: the model's own direction. `carried`: the other model's. `random`."""
    share: Estimated
    """Of its texts, those that the classifier takes for the wanted corpus."""
    n: Count
    """Texts, one a prompt."""
    change: Number
    """Root mean square of how far steering moves vectors of the other corpora, 0 for `none`; that of `random` is made
    equal to that of `native`, but for one that moves them further by being held at all."""
    examples: tuple[Written, ...]
    """A few of the texts."""


class GapRow(Frozen):
    """What is left of a direction that was carried over."""

    model: str
    """That it was carried to."""
    wanted: str
    """Corpus."""
    gap: Number
    """Share by the carried direction over share by the native one, clipped to 0..1, with 0/0 = 0 (Chen et al. 2025,
    eq. 16): 1 is as good as native."""
    cosine: Number
    """Between the carried direction and the native one."""


class SteeringSummary(Frozen):
    """Steering of both models of a stitch by directions of their own and of each other."""

    classes: tuple[str, ...]
    """Corpora that texts are told apart by."""
    accuracy: Estimated | None = None
    """Of the classifier, on pieces of held-out documents as long as the texts are at most."""
    fitted: Count = 0
    """Pieces of training documents that it was fitted on."""
    tested: Count = 0
    """Pieces of held-out documents behind its accuracy."""
    rows: tuple[SteeringRow, ...] = ()
    """Every arm, in both models, towards every corpus."""
    gaps: tuple[GapRow, ...] = ()
    """Carried against native, in both models, for every corpus."""
    reason: str = ""
    """Why nothing was steered; empty when it was."""
