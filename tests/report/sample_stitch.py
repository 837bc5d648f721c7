"""A study of one stitch, with figures of the size that runs give, for the page that is drawn of it."""

from __future__ import annotations

import math

from heredity.report.carried import BeginningSummary, CarriedFigures, CarriedSummary, CurveRow, SavingRow
from heredity.report.probing import (
    GapRow,
    ProbeMean,
    ProbeRow,
    ProbeSummary,
    SteeringRow,
    SteeringSummary,
    Written,
)
from heredity.report.provenance import Provenance
from heredity.report.stitch import FitPoint, FitSummary, LayersSummary, MapsSummary, StitchSummary, WaySummary
from heredity.report.summary import ModelSummary, Summary
from heredity.report.view import Measurement, Node, View
from report import sample_kept

EVIL = "</script><img src=x onerror=alert(1)> & more"
"""What a model may have written."""
CORPORA = ("english", "python", "lua")
SIZES = (1, 2, 5, 10, 20, 50)


def stitch_view() -> View:
    """Two models trained alone, joined by one stitch; no edges."""
    models = {
        name: ModelSummary(
            kind="train",
            parents=(),
            parameters=parameters,
            tokens=2_000_000,
            accuracy=dict.fromkeys(CORPORA, accuracy),
            ce_loss=dict.fromkeys(CORPORA, ce_loss),
            unigram_accuracy=dict.fromkeys(CORPORA, 0.041),
        )
        for name, parameters, accuracy, ce_loss in (("small", 1_200_000, 0.31, 4.02), ("large", 4_900_000, 0.36, 3.61))
    }
    return View(
        summary=Summary(
            heredity="0",
            study="stitching",
            seconds=812.0,
            instrument="joint",
            models=models,
            merges={},
            saes={},
            edges={},
            flow={},
            cases={},
            stitches={"pair": stitch()},
            also={},
        ),
        graph=tuple(Node(name=name, parents=(), corpora=CORPORA, trace=CORPORA) for name in models),
        measured={"joint": Measurement(edges={}, flows={})},
        provenance=Provenance(config="", hook_point="blocks.1.hook_resid_pre", seed=0),
    )


def stitch() -> StitchSummary:
    """Every part of a stitch."""
    return StitchSummary(
        maps=maps(),
        carried={2048: _carried()},
        beginnings={2048: {arm: _beginning(arm) for arm in _LEVELS}},
        savings=_savings(),
        probes={"origin": _probed(), "language": _empty_task()},
        steering=_steering(),
        kept=sample_kept.kept(),
        bridge=sample_kept.bridge(),
    )


def maps() -> MapsSummary:
    """The maps alone."""
    rows = {"ridge": (0.412, 0.71, 0.88), "joint": (0.398, 0.70, 0.87), "adam": (0.61, 0.66, 0.83)}
    fits = {
        method: FitSummary(
            loss=loss,
            r2={"up": up, "down": down, "there_and_back": 0.95, "back_and_there": up - 0.02},
            condition=(212.0, 340.5) if method != "adam" else (None, 1e4),
            effective_rank=(61.2, 70.4),
            tokens=600_000,
            flops=6.4e10 * place,
            seconds=4.2 * place,
            converged=True if method == "joint" else None,
        )
        for place, (method, (loss, up, down)) in enumerate(rows.items(), 1)
    }
    ways = {"source": (4.02, None), "target": (3.61, None), "up": (4.31, 0.194), "down": (4.47, 0.112)}
    ways |= {"source_round_trip": (4.05, 0.0075), "target_round_trip": (3.84, 0.064)}
    likeness = [[0.91, 0.74, 0.62, 0.51], [0.71, 0.83, 0.79, 0.66]]
    return MapsSummary(
        source="small",
        target="large",
        source_hook_point="blocks.1.hook_resid_pre",
        target_hook_point="blocks.1.hook_resid_pre",
        widths=(128, 256),
        corpora=CORPORA,
        method="joint",
        alpha=1.0,
        held_out=80_000,
        layers=LayersSummary(
            source=tuple(f"blocks.{layer}.hook_resid_pre" for layer in range(2)),
            target=tuple(f"blocks.{layer}.hook_resid_pre" for layer in range(4)),
            svcca=tuple(map(tuple, likeness)),
            cka=tuple(tuple(value - 0.1 for value in row) for row in likeness),
            tokens=50_000,
        ),
        fits=fits,
        curves={
            "joint": tuple(
                FitPoint(tokens=18_750 << step, flops=5e9 * (1 << step), loss=0.45 - 0.013 * step) for step in range(6)
            ),
            "adam": tuple(
                FitPoint(tokens=600_000 << step, flops=4e11 * (1 << step), loss=0.6 - 0.08 * step) for step in range(3)
            ),
        },
        ways={way: WaySummary(ce_loss=ce, accuracy=0.3, increase=rise) for way, (ce, rise) in ways.items()},
    )


def _carried() -> CarriedSummary:
    def figures(fvu: float, delta: float, dead: float) -> CarriedFigures:
        return CarriedFigures(
            l0=32.0,
            fvu=fvu,
            explained_variance=1 - fvu,
            ce_clean=3.61,
            ce_spliced=3.61 + delta,
            delta_loss=delta,
            ce_loss_recovered=1 - delta / 3,
            dead_share=dead,
        )

    return CarriedSummary(
        d_sae=2048,
        tokens=50_000,
        calibrated_on=50_000,
        figures={
            "source": figures(0.09, 0.12, 0.004),
            "transferred": figures(0.412, 0.96, 0.031),
            "normalized": figures(0.43, 1.01, 0.03),
            "bias": figures(0.401, 0.93, 0.031),
            "decoder": figures(0.233, 0.51, 0.031),
        },
        left_out={"density": "topk has no thresholds to match densities by"},
        folding_error=3e-6,
        other_features=0.0,
        same_selection=0.93,
    )


_LEVELS = {"random": (-1.9, 0.93), "transferred": (0.59, 0.94), "repaired": (0.767, 0.945), "geometry": (-0.6, 0.931)}


def _beginning(arm: str) -> BeginningSummary:
    start, end = _LEVELS[arm]
    steps = [0, *(2**n for n in range(12))]

    def level(step: int) -> float:
        return start + (end - start) * (1 - math.exp(-step / 180))

    curve = tuple(
        CurveRow(
            step=step,
            vectors=2048 * step,
            flops=2.6e9 * 2048 * step / 500,
            sparse_flops=8e8 * 4 * step,
            seconds=0.02 * step,
            explained_variance=level(step),
            l0=32.0,
            dead_share=0.02,
        )
        for step in steps
    )
    last = curve[-1]
    return BeginningSummary(
        arm=arm,
        d_in=256,
        d_sae=2048,
        steps=steps[-1],
        vectors=last.vectors,
        held_out=20_000,
        curve=curve,
        start_flops=0.0 if arm == "random" else 2.7e8,
        start_seconds=0.1,
        revived=61 if arm == "repaired" else 0,
        seconds=last.seconds,
        flops=last.flops,
        sparse_flops=last.sparse_flops,
        explained_variance=last.explained_variance,
        l0=32.0,
        dead_share=0.02,
    )


def _savings() -> tuple[SavingRow, ...]:
    rows = []
    for arm in ("random", "transferred", "repaired", "geometry"):
        for threshold in (0.85, 0.9, 0.94):
            never = tuple(one for one in (arm, "random") if threshold > _LEVELS[one][1] - 0.005)
            saved = None if never else {"random": 0.0, "transferred": 0.31, "repaired": 0.42, "geometry": -0.04}[arm]
            rows.append(
                SavingRow(
                    d_sae=2048,
                    arm=arm,
                    threshold=threshold,
                    never=tuple(dict.fromkeys(never)),
                    flops=None if never else 3.1e12,
                    seconds=None if never else 9.4,
                    saved_flops=saved,
                    saved_seconds=saved,
                    saved_flops_with_source=None if saved is None else saved - 0.9,
                    saved_seconds_with_source=None if saved is None else saved - 0.8,
                )
            )
    return tuple(rows)


def _probed() -> ProbeSummary:
    height = {"source": 0.9, "native": 0.93, "refitted": 0.91, "unchanged": 0.84, "random": 0.62}
    levels = {(arm, k): top - 0.25 / (k + 1) for arm, top in height.items() for k in SIZES}
    levels |= {("dense_source", 128): 0.95, ("dense_native", 256): 0.96, ("dense_unchanged", 128): 0.92}
    rows = tuple(
        ProbeRow(
            label=label,
            arm=arm,
            k=k,
            accuracy=(level, level - 0.03, level + 0.03),
            balanced_accuracy=(level, level - 0.03, level + 0.03),
            auc=(level, level - 0.02, level + 0.02),
            draws=5 if arm == "random" else 1,
            spread=0.02 if arm == "random" else None,
        )
        for label in CORPORA
        for (arm, k), level in levels.items()
    )
    return ProbeSummary(
        task="origin",
        origin="validation",
        classes=CORPORA,
        fitted=2250,
        tested=750,
        least_share=0.31,
        left_out=(),
        rows=rows,
        means=tuple(ProbeMean(arm=arm, k=k, balanced_accuracy=level, classes=3) for (arm, k), level in levels.items()),
    )


def _empty_task() -> ProbeSummary:
    return ProbeSummary(
        task="language",
        origin="",
        classes=(),
        fitted=0,
        tested=0,
        least_share=None,
        left_out=(),
        rows=(),
        means=(),
        reason="one corpus of code; two are needed",
    )


def _steering() -> SteeringSummary:
    shares = {"none": 0.02, "random": 0.05, "native": 0.74, "carried": 0.61}
    rows = tuple(
        SteeringRow(
            model=model,
            wanted=wanted,
            arm=arm,
            share=(share, max(0.0, share - 0.08), share + 0.08),
            n=100,
            change=0.0 if arm == "none" else 4.2,
            examples=(Written(prompt="Once upon a", text=f"{EVIL} by {arm}"), Written(prompt="He", text="was\n\there")),
        )
        for model in ("small", "large")
        for wanted in ("python", "lua")
        for arm, share in shares.items()
    )
    gaps = tuple(
        GapRow(model=model, wanted=wanted, gap=0.824, cosine=0.77)
        for model in ("small", "large")
        for wanted in ("python", "lua")
    )
    return SteeringSummary(classes=CORPORA, accuracy=(0.97, 0.95, 0.98), fitted=3000, tested=600, rows=rows, gaps=gaps)
