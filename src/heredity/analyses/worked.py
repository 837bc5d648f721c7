"""What each stage of a run took: time, tokens a second, memory, and its share of what this machine can do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from heredity.analyses.plan import Rates, check_shapes
from heredity.tables import Column, Table

if TYPE_CHECKING:
    from heredity.analyses import Pipeline
    from heredity.engine.store import Store

WORKED = Table(
    "worked",
    "What the stages took that were done now.",
    ("stage",),
    (
        Column("stage", "text", "kind/name; `others`: all that took less than a hundredth of the time each."),
        Column("stages", "count", "Number of stages."),
        Column("took", "seconds", "Time, that of tries which were stopped included."),
        Column("tokens", "count", "Tokens that it read."),
        Column("tokens_a_second", "count", "Tokens over time."),
        Column("peak_gib", "number", "GiB of memory at most, its workers' included."),
        Column(
            "ceiling",
            "share",
            "Floating-point operations of its matrix products over time, as a share of what this machine was measured "
            "to do in products of float32; it reads text, writes files and compares features besides.",
        ),
    ),
    brief=("stage", "took", "tokens", "tokens_a_second", "peak_gib", "ceiling"),
)
_SMALL = 0.01  # share of the time below which a stage has no row of its own


def worked(pipeline: Pipeline, store: Store, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of `WORKED` for stages that are done, in their order, without those that took hardly any of the time."""
    shapes, rate = check_shapes(pipeline.study), Rates().of("float32") if labels else 0.0
    rows = list[dict[str, Any]]()
    for label in labels:
        analysis, item, _ = pipeline.items[label]
        stage, cost = pipeline.stages[label], analysis.cost(pipeline.study, item, shapes)
        artifact = store.find(stage.kind, stage.name, stage.key)
        if artifact is None:
            continue
        took, gib = (artifact.manifest[name] for name in ("seconds", "peak_memory_gib"))
        flops = cost.flops + cost.passes.flops
        rows.append({"stage": label, "stages": 1, "took": took, "tokens": cost.tokens, "peak_gib": gib, "flops": flops})
    least = _SMALL * sum(row["took"] for row in rows)
    small = [row for row in rows if row["took"] < least]
    if len(small) > 1:
        others = {name: sum(row[name] for row in small) for name in ("stages", "took", "tokens", "flops")}
        others |= {"stage": "others", "peak_gib": max(row["peak_gib"] for row in small)}
        rows = [*(row for row in rows if row["took"] >= least), others]
    for row in rows:
        took, flops = row["took"], row.pop("flops")
        row["tokens"] = row["tokens"] or None
        row["tokens_a_second"] = row["tokens"] and took and round(row["tokens"] / took)
        row["ceiling"] = flops / took / rate if flops and took else None
    return rows
