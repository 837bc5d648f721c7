"""Do persisting features fire as often in the child as in the parent?

A feature can keep its meaning and become rarer or more common: r is blind to it where the firings that remain agree.
Each persisting parent feature is paired with its best match; the ratio is the share of the edge's tokens on which the
match fires over the share on which the feature fires.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from heredity import format
from heredity.analyses.analysis import Analysis, Needs, Results, Statement, Tables, rows_of
from heredity.analyses.match import KEY, edge_items, read_matches, threshold_of
from heredity.engine.stage import Work
from heredity.tables import Column, Table

DENSITY_CHANGE = Table(
    "density_change",
    "Persisting features whose match in the child fires at least twice as often, or at most half as often.",
    KEY,
    (
        Column("pairs", "count", "Persisting parent features, each with its best match."),
        Column("more", "count", "The match fires at least twice as often.", of="pairs"),
        Column("fewer", "count", "The match fires at most half as often.", of="pairs"),
        Column("median_ratio", "number", "Median density in the child over that in the parent."),
    ),
    brief=("instrument", "edge", "pairs", "more", "fewer", "median_ratio"),
)


def _run(work: Work, settings: tuple[()]) -> Results:
    match = work.inputs["match"]
    matches = read_matches(match).above(threshold_of(match))
    kept = matches.parent_match[:, 0] >= 0
    ratio = matches.child_density[matches.parent_match[kept, 0]] / matches.parent_density[kept]
    row = {"pairs": int(kept.sum()), "more": int((ratio >= 2).sum()), "fewer": int((ratio <= 0.5).sum())}
    return {"density_change": [row | {"median_ratio": float(np.median(ratio)) if len(ratio) else None}]}


def _say(tables: Tables) -> Iterable[Statement]:
    for row in rows_of(tables, "density_change"):
        more, fewer = (format.of(row[name], row["pairs"]) for name in ("more", "fewer"))
        text = (
            f"Of features that persist along {row['edge']}, {more} fire at least twice as often, {fewer} at most half."
        )
        yield Statement(row["edge"].split("->")[1], "density", text, (), row["instrument"])


def _needs(_study: object, item: dict) -> Needs:
    return {"match": ("match", item)}


ANALYSIS = Analysis(
    kind="density_change",
    version=1,
    title="How often persisting features fire",
    items=edge_items,
    settings=lambda study, item: (),
    needs=_needs,
    run=_run,
    tables=(DENSITY_CHANGE,),
    say=_say,
)
