"""Figures of a stitch: the maps between two models, and what was carried through them."""

from __future__ import annotations

from typing import NamedTuple

from heredity.report.bridge import BridgeSummary
from heredity.report.carried import BeginningSummary, CarriedSummary, SavingRow
from heredity.report.kept import KeptSummary
from heredity.report.probing import ProbeSummary, SteeringSummary
from heredity.report.record import Count, Frozen, Number


class WaySummary(Frozen):
    """Prediction by a model, or by one model's back half after the other's front."""

    ce_loss: Number
    """Nats a token."""
    accuracy: Number
    """Of the next token."""
    increase: Number = None
    """Of the cross-entropy, as a share of that of the model whose back half predicts; null for whole models."""


class FitSummary(Frozen):
    """One fit of both maps, judged on held-out tokens."""

    loss: Number
    """The joint loss: mean squared errors of both maps, plus alpha times those of both round trips."""
    r2: dict[str, Number]
    """`up`, `down`, `there_and_back` (source, target, source), `back_and_there`: pooled over dimensions."""
    condition: tuple[Number, Number]
    """Largest over least singular value, of up and of down; null for a map that loses a direction."""
    effective_rank: tuple[Number, Number]
    """Of up and of down."""
    tokens: Count
    """Tokens it read, repeats counted."""
    flops: Number
    """Of its matrix products, the models' forward passes not counted."""
    seconds: Number
    """Wall time, the models' forward passes included."""
    converged: bool | None = None
    """Whether iterations reached their end; null for fits without."""


class FitPoint(Frozen):
    """What a fit reached for what it cost."""

    tokens: Count
    """Tokens it read, repeats counted."""
    flops: Number
    """Of its matrix products."""
    loss: Number
    """Held-out joint loss."""


class LayersSummary(Frozen):
    """How alike the layers of both models are."""

    source: tuple[str, ...]
    """Hook points of the source."""
    target: tuple[str, ...]
    """Hook points of the target."""
    svcca: tuple[tuple[Number, ...], ...]
    """Mean canonical correlation of each of the source's with each of the target's (Raghu et al. 2017)."""
    cka: tuple[tuple[Number, ...], ...]
    """Linear centered kernel alignment (Kornblith et al. 2019)."""
    tokens: Count
    """Behind them."""


class MapsSummary(Frozen):
    """The maps of a stitch."""

    source: str
    """Model A."""
    target: str
    """Model B."""
    source_hook_point: str
    """Where A is read."""
    target_hook_point: str
    """Where B is read."""
    widths: tuple[Count, Count]
    """There."""
    corpora: tuple[str, ...]
    """Both have read them."""
    method: str
    """The fit in use."""
    alpha: Number
    """Weight of the round trips in the joint loss."""
    held_out: Count
    """Tokens that the fits are judged on."""
    layers: LayersSummary
    """The choice of layers."""
    fits: dict[str, FitSummary]
    """`joint`, `ridge`, `procrustes`, `adam`."""
    curves: dict[str, tuple[FitPoint, ...]]
    """`joint`, given half of the tokens, a quarter and so on; `adam`, trained for half of the epochs and so on, each
    time with a schedule of its own. Ascending by tokens; the last point is that of `fits`."""
    ways: dict[str, WaySummary]
    """`source`, `target`, `up` (front of A, back of B), `down`, `source_round_trip`, `target_round_trip` (table 1 of
    Chen et al. 2025)."""


class Effort(NamedTuple):
    """What two ways of fitting cost that end at one loss, but for a percent."""

    joint: float
    """FLOPs of the joint fit."""
    adam: float
    """Of the descent."""
    loss: float
    """Held-out loss that both come within a percent of, or below."""


def efforts(maps: MapsSummary) -> tuple[Effort | None, Effort | None]:
    """The least that both ways of fitting cost to come within a percent of the joint fit's held-out loss, and of the
    descent's best; each None when one of them never does, or was not tried."""

    def least(method: str, loss: float) -> float | None:
        costs = [row.flops for row in maps.curves[method] if row.loss is not None and row.loss <= 1.01 * loss]
        return min((cost for cost in costs if cost is not None), default=None)

    def both(method: str) -> Effort | None:
        losses = [row.loss for row in maps.curves.get(method, ()) if row.loss is not None]
        if not losses or not {"joint", "adam"} <= maps.curves.keys():
            return None
        level = losses[-1] if method == "joint" else min(losses)
        joint, adam = least("joint", level), least("adam", level)
        return None if joint is None or adam is None else Effort(joint, adam, level)

    return both("joint"), both("adam")


class StitchSummary(Frozen):
    """All of a stitch."""

    maps: MapsSummary
    """The maps, and the models they join."""
    carried: dict[int, CarriedSummary]
    """The source's SAE in the target, by its number of features."""
    beginnings: dict[int, dict[str, BeginningSummary]]
    """SAEs trained in the target, by number of features and by what they start from."""
    savings: tuple[SavingRow, ...]
    """What the starts save."""
    probes: dict[str, ProbeSummary]
    """By task."""
    steering: SteeringSummary | None = None
    """Null where none was asked for."""
    kept: KeptSummary | None = None
    """What single features keep; null where it was not asked for."""
    bridge: BridgeSummary | None = None
    """Beside the lineage, where source and target are parent and child; null elsewhere."""
