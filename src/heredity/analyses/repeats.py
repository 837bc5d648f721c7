"""How far the figures vary when fine-tunes and SAEs are trained again with other seeds.

A repeat trains fine-tunes and SAEs with seeds of its own; corpora, tokenizer, tokens, models that are loaded or trained
from scratch, and the seeds of every measurement are those of the plain study, so that figures differ by the training
runs alone. The plain study is the first repeat.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from heredity import format
from heredity.analyses.analysis import Analysis, Item, Need, Needs, Results, Statement, Tables, rows_of
from heredity.analyses.match import edge_items, edge_row
from heredity.analyses.sae import sae_items
from heredity.analyses.verdicts import ANALYSIS as VERDICTS
from heredity.engine.stage import Work
from heredity.study import Study
from heredity.tables import Column, Table

_FIGURES = {
    "quality": ("accuracy", ("accuracy",)),
    "sae_quality": ("saes", ("explained_variance", "l0", "ce_loss_recovered")),
    "model": ("merges", ("t",)),
}

REPEATS = Table(
    "repeats",
    "Spread of the headline figures over training seeds.",
    ("instrument", "about", "figure"),
    (
        Column("instrument", "text", "Origin of the SAEs; empty for figures of models."),
        Column("about", "text", "Model, model and corpus, merge, edge, or edge and end."),
        Column("figure", "text", "Figure; persist, emerge and stable_share are of live features, verdicts of stable."),
        Column("mean", "number", "Mean over repeats."),
        Column("standard_deviation", "number", "Standard deviation (n - 1)."),
        Column("minimum", "number", "Lowest."),
        Column("maximum", "number", "Highest."),
        Column("seeds", "count", "Repeats with the figure."),
    ),
    brief=("instrument", "about", "figure", "mean", "standard_deviation", "seeds"),
)


class RepeatsSettings(NamedTuple):
    seeds: int


def _needs(study: Study, item: Item) -> Needs:
    sought = [name for name in study.order if (merge := study.config.model[name].merge) and merge.t == "equilibrium"]
    kinds: list[tuple[str, Iterable[Item]]] = [
        ("quality", ({"model": name} for name in study.order)),
        ("model", ({"model": name} for name in sought)),
        ("sae_quality", sae_items(study)),
        ("match", edge_items(study)),
        ("verdicts", (one for one in VERDICTS.items(study) if one["text"] == "common")),
    ]
    needs: Needs = {}
    for kind, items in kinds:
        for one in items:
            for repeat in range(study.config.repeat.seeds):
                role = "|".join((kind, *(str(one.get(key, "")) for key in ("instrument", "edge", "model"))))
                group: dict[str, Need] = needs.setdefault(role, {})  # pyright: ignore[reportAssignmentType]
                group[str(repeat)] = (kind, {**one, "repeat": repeat})
    return needs


def _run(work: Work, settings: RepeatsSettings) -> Results:
    figures: dict[tuple[str, str, str], list[Any]] = {}
    for role, repeats in work.inputs.items():
        kind, instrument, edge, model = role.split("|")
        if len({artifact.key for artifact in repeats.values()}) < len(repeats):
            continue  # not trained again
        for artifact in repeats.values():
            if kind == "match":
                row = edge_row(artifact)
                live = {"persist": row["parent_live"], "emerge": row["child_live"]}
                values = {name: row[name] / whole if whole else None for name, whole in live.items()}
                values |= {name: row[name] for name in ("ceiling", "floor")}
                rows = [(edge, values)]
            elif kind == "verdicts":
                ends = pq.read_table(artifact / "verdicts.parquet").to_pylist()
                rows = [(f"{edge}, {row['end']}", _verdict_shares(row)) for row in ends]
            else:
                table, names = _FIGURES[kind]
                rows = [
                    (" on ".join(filter(None, (model, row.get("corpus")))), {name: row[name] for name in names})
                    for row in pq.read_table(artifact / f"{table}.parquet").to_pylist()
                ]
            for about, values in rows:
                for name, value in values.items():
                    figures.setdefault((instrument, about, name), []).append(value)
    return {"repeats": [_spread(key, values) for key, values in figures.items() if any(v is not None for v in values)]}


def _verdict_shares(row: Mapping[str, Any]) -> dict[str, float | None]:
    stable, live = row["stable"], row["live"]
    return {
        "stable_share": stable / live if live else None,
        **{f"{name}_share": row[name] / stable if stable else None for name in ("kept", "changed", "lost")},
    }


def _spread(key: tuple[str, str, str], values: list[float | None]) -> dict[str, Any]:
    known = np.array([value for value in values if value is not None], np.float64)
    return dict(zip(REPEATS.key, key, strict=True)) | {
        "mean": float(known.mean()),
        "standard_deviation": float(known.std(ddof=1)) if len(known) > 1 else None,
        "minimum": float(known.min()),
        "maximum": float(known.max()),
        "seeds": len(known),
    }


def _say(tables: Tables) -> Iterable[Statement]:
    for row in rows_of(tables, "repeats"):
        edge, _, end = row["about"].partition(", ")
        parent, _, child = edge.partition("->")
        if row["figure"] == "persist":
            share = f"the share of {edge} that persists"
        elif (row["figure"], end) == ("lost_share", "parent"):
            share = f"the share of stable features of {parent} that {child} lost"
        elif (row["figure"], end) == ("lost_share", "child"):
            share = f"the share of stable features of {child} that are new compared with {parent}"
        else:
            continue
        yield Statement(
            child,
            "sure",
            f"Between {row['seeds']} training seeds, {share} varies by {format.percent(row['standard_deviation'] or 0)}"
            f" (standard deviation; mean {format.percent(row['mean'])}).",
            (f"from {format.percent(row['minimum'])} to {format.percent(row['maximum'])}",),
            row["instrument"],
        )


ANALYSIS = Analysis(
    kind="repeats",
    version=2,
    title="Between training seeds",
    items=lambda study: [{}] if study.config.repeat.seeds > 1 else [],
    settings=lambda study, item: RepeatsSettings(study.config.repeat.seeds),
    needs=_needs,
    run=_run,
    tables=(REPEATS,),
    say=_say,
)
