"""Records of a stitch's summary about SAEs: carried over as they are, and as a start for training in the target."""

from __future__ import annotations

from heredity.report.record import Count, Frozen, Number


class CarriedFigures(Frozen):
    """What an SAE is worth on held-out text of a model (table 2 of Chen et al. 2025)."""

    l0: Number
    """Mean number of active features a token."""
    fvu: Number
    """Share of the activations' variance that is not explained."""
    explained_variance: Number
    """1 - fvu."""
    ce_clean: Number
    """The model's cross-entropy as it is, nats a token."""
    ce_spliced: Number
    """With the SAE's reconstruction in place of the activations."""
    delta_loss: Number
    """ce_spliced - ce_clean."""
    ce_loss_recovered: Number
    """1 when splicing costs nothing, 0 when it costs as much as zeros do."""
    dead_share: Number
    """Share of features that never fired on this text."""


class CarriedSummary(Frozen):
    """An SAE of the source in the target, without training there."""

    d_sae: Count
    """Features."""
    tokens: Count
    """Held-out tokens behind the figures."""
    calibrated_on: Count
    """Training vectors that repairs were fitted to."""
    figures: dict[str, CarriedFigures]
    """`source`: in its own model. In the target: `transferred`, folded; `normalized`, with decoder rows of unit norm;
    `bias` and `decoder`, folded and refitted; `density`, with thresholds that let features fire as often as in the
    source; where the models are of one width `unchanged`, the source's as it is, and `aligned`, folded through maps
    that only turn and scale."""
    left_out: dict[str, str]
    """Figures that there are none of, with the reason."""
    folding_error: Number
    """Largest element of the folded SAE's output minus that of up, SAE and down one after the other, in root mean
    squares of the activations."""
    other_features: Number
    """Share of vectors on which rounding made the two choose other features; the error leaves these out."""
    same_selection: Number
    """Share of the features active in `transferred` that are active in `normalized` too."""


class CurveRow(Frozen):
    """A point of a training's curve."""

    step: Count
    """Steps taken; 0 is the start."""
    vectors: Count
    """Vectors read."""
    flops: Number
    """Of a dense forward and backward pass of the SAE, as the paper counts."""
    sparse_flops: Number
    """Of the matrix products that this training did: where few features are active only the encoder's is dense."""
    seconds: Number
    """Wall time of the training, the model's forward passes included and the making of this curve not."""
    explained_variance: Number
    """On the held-out vectors."""
    l0: Number
    """Mean active features a vector there."""
    dead_share: Number
    """Share of features that never fired there."""


class BeginningSummary(Frozen):
    """An SAE of the target, trained from one start."""

    arm: str
    """`random`, `transferred`, `repaired` or `geometry`."""
    d_in: Count
    """Width of the target there."""
    d_sae: Count
    """Features."""
    steps: Count
    """Of training."""
    vectors: Count
    """Read in all."""
    held_out: Count
    """Validation vectors behind the curve, the same for all arms."""
    curve: tuple[CurveRow, ...]
    """From the start to the end, at steps of even distance in their logarithm."""
    start_flops: Number
    """Of making the start: folding, refitting, turning."""
    start_seconds: Number
    """Of the same."""
    revived: Count
    """Dead features that got a new start."""
    seconds: Number
    """Of training."""
    flops: Number
    """Of training, dense."""
    sparse_flops: Number
    """Of training, as it was done."""
    explained_variance: Number
    """At the end."""
    l0: Number
    """At the end."""
    dead_share: Number
    """At the end."""


class SavingRow(Frozen):
    """What a start saves on the way to an explained variance, as a share of what the random start takes to get there.

    Every saving counts the making of the start. Null where the random start or this one never got there.
    """

    d_sae: Count
    """Features."""
    arm: str
    """The start."""
    threshold: Number
    """The explained variance."""
    never: tuple[str, ...]
    """Which of the two never reached it: this arm, `random`, both or none."""
    flops: Number
    """Of training until there, dense; null when never."""
    seconds: Number
    """The same in wall time."""
    saved_flops: Number
    """With the cost of the maps, where the start needs them."""
    saved_seconds: Number
    """The same in wall time."""
    saved_flops_with_source: Number
    """With the training of the source's SAE too."""
    saved_seconds_with_source: Number
    """The same in wall time."""
