"""Tables of stitches, one row for each figure, as `heredity export` writes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from heredity.report.stitch import StitchSummary

Row = dict[str, Any]


def stitch_tables(stitches: Mapping[str, StitchSummary]) -> dict[str, pa.Table]:
    """Every table that has rows, by name; the first column is the stitch."""
    makers: dict[str, Callable[[StitchSummary], Iterator[Row]]] = {
        "stitch_fits": _fits,
        "stitch_costs": _costs,
        "stitch_ways": _ways,
        "stitch_carried": _carried,
        "stitch_curves": _curves,
        "stitch_savings": _savings,
        "stitch_probes": _probes,
        "stitch_steering": _steering,
    }
    found = {
        name: [{"stitch": stitch, **row} for stitch, own in stitches.items() for row in rows(own)]
        for name, rows in makers.items()
    }
    return {name: pa.Table.from_pylist(rows) for name, rows in found.items() if rows}


def _fits(own: StitchSummary) -> Iterator[Row]:
    """One for each fit: r2_up and so on, condition and effective_rank of up and of down."""
    for method, fit in own.maps.fits.items():
        row = fit.model_dump(exclude={"r2", "condition", "effective_rank"})
        row |= {f"r2_{way}": value for way, value in fit.r2.items()}
        for name in ("condition", "effective_rank"):
            row |= {f"{name}_{end}": value for end, value in zip(("up", "down"), getattr(fit, name), strict=True)}
        yield {"method": method, "in_use": method == own.maps.method, **row}


def _costs(own: StitchSummary) -> Iterator[Row]:
    """One for each point of a fit's loss by cost."""
    for method, points in own.maps.curves.items():
        for point in points:
            yield {"method": method, **point.model_dump()}


def _ways(own: StitchSummary) -> Iterator[Row]:
    """One for each model and each way through the maps."""
    for way, row in own.maps.ways.items():
        yield {"way": way, **row.model_dump()}


def _carried(own: StitchSummary) -> Iterator[Row]:
    """One for each size of SAE and kind of carrying, that in its own model included."""
    for width, carried in own.carried.items():
        for kind, row in carried.figures.items():
            yield {"d_sae": width, "kind": kind, **row.model_dump()}


def _curves(own: StitchSummary) -> Iterator[Row]:
    """One for each point of every training."""
    for width, arms in own.beginnings.items():
        for arm, found in arms.items():
            for row in found.curve:
                yield {"d_sae": width, "arm": arm, **row.model_dump()}


def _savings(own: StitchSummary) -> Iterator[Row]:
    """One for each size, start and explained variance; `never` names who did not reach it."""
    for row in own.savings:
        yield {**row.model_dump(), "never": " ".join(row.never)}


def _probes(own: StitchSummary) -> Iterator[Row]:
    """One for each task, class, arm and size; scores with `_low` and `_high`."""
    for task, found in own.probes.items():
        for row in found.rows:
            scores = {}
            for name in ("accuracy", "balanced_accuracy", "auc"):
                scores |= _estimated(name, getattr(row, name))
            yield {"task": task, "class": row.label, "arm": row.arm, "k": row.k, **scores, "draws": row.draws}


def _steering(own: StitchSummary) -> Iterator[Row]:
    """One for each model, corpus and arm; share with `_low` and `_high`."""
    for row in own.steering.rows if own.steering else ():
        kept = row.model_dump(exclude={"share", "examples"})
        yield {**kept, **_estimated("share", row.share)}


def _estimated(name: str, value: tuple[float | None, float | None, float | None]) -> Row:
    return dict(zip((name, f"{name}_low", f"{name}_high"), value, strict=True))
