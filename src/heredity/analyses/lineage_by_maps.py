"""An edge of the study that is a stitch too: features matched through the maps beside features matched by correlation.

Each live feature of the parent has, besides its best match among the child's own features, an r with itself: with its
transfer through the maps (`carried`), and, between models of one width, with the parent's SAE reading the child as it
is (`unchanged`). Above the edge's threshold it persists by that r; agreement with the best match is Cohen's kappa. With
a joint SAE the child's SAE is the parent's, and `unchanged` is what matching each feature with itself gives.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from heredity import format
from heredity.analyses.analysis import Analysis, Item, Needs, Results, Statement, Tables, rows_of
from heredity.analyses.match import edge_row, read_matches
from heredity.analyses.sae import sae_need
from heredity.analyses.stitch_maps import Sides, StitchSettings, maps_of, pass_cost, stitch_needs
from heredity.engine.stage import Work
from heredity.study import Edge, Study
from heredity.tables import Column, Table

if TYPE_CHECKING:
    from heredity.stitch.functional import Side

MAPPED_EDGES = Table(
    "mapped_edges",
    "Edges of the study that are stitches too.",
    ("stitch",),
    (
        Column("edge", "text", "Parent and child model, as parent->child."),
        Column("reason", "text", "Reason why maps and matches cannot be compared; empty where they can."),
        Column("hook_point", "text", "Hook point of both models and of the parent's SAE."),
        Column("threshold", "r", "Threshold of the edge on r."),
        Column("tokens", "count", "Validation tokens behind each r through maps; matches have the edge's sample."),
        Column("live", "count", "Parent features that have a best match."),
        Column("matched", "count", "Those whose best match is above the threshold.", of="live"),
        Column("one_sae", "flag", "Whether one SAE reads both ends of the edge."),
        Column("explained_variance", "r", "Explained variance of the parent's SAE on the parent."),
    ),
)
LINEAGE_BY_MAPS = Table(
    "lineage_by_maps",
    "Persistence by r of each feature with itself, beside persistence by its best match.",
    ("stitch", "arm"),
    (
        Column("arm", "text", "carried (through the maps) or unchanged (the parent's SAE as it is)."),
        Column("persisting", "count", "Live parent features with an r above the edge's threshold."),
        Column("both", "count", "Those that persist by their best match too.", of="persisting"),
        Column("only", "count", "Those that do not.", of="persisting"),
        Column("only_matched", "count", "Features that persist by their best match alone."),
        Column("neither", "count", "Features that persist by neither."),
        Column("kappa", "r", "Cohen's kappa of both calls; null where both call all or none."),
        Column("rank", "r", "Spearman correlation of both r, over features that have both."),
        Column("median", "r", "Median r."),
        Column("explained_variance", "r", "Explained variance on the child of the parent's SAE, so read."),
    ),
    brief=("stitch", "arm", "persisting", "both", "kappa", "rank", "explained_variance"),
    sums=(("persisting", "both", "only"),),
)
MAPPED_FEATURES = Table(
    "mapped_features",
    "Every parent feature by its best match and by its r with itself.",
    ("stitch", "feature"),
    (
        Column("match", "feature", "Best match among the child's features; -1 where there is none."),
        Column("matched_r", "r", "r of the best match."),
        Column("density", "share", "Share of the edge's tokens on which it fires in the parent."),
        Column("carried_r", "r", "r with itself through the maps."),
        Column("unchanged_r", "r", "r with itself, read as it is; null between models of different widths."),
        Column("matched", "flag", "Whether it persists by its best match."),
        Column("carried", "flag", "Whether it persists through the maps."),
        Column("unchanged", "flag", "Whether it persists read as it is."),
    ),
    large=True,
)


def _items(study: Study) -> Iterable[Item]:
    """Stitches along an edge, from parent to child."""
    stitches = study.config.stitch.items() if study.instruments else ()
    return ({"stitch": name} for name, stitch in stitches if Edge(stitch.source, stitch.target) in study.edges)


def _needs(study: Study, item: Item) -> Needs:
    config = study.config.stitch[item["stitch"]]
    edge = Edge(config.source, config.target).name
    match = {"instrument": study.instrument, "site": study.site, "edge": edge}
    parent = sae_need(study, config.source, study.instrument, study.site)
    return stitch_needs(study, item, match=("match", match), parent_sae=parent)


def _run(work: Work, settings: StitchSettings) -> Results:
    from heredity.features.criteria import agreement
    from heredity.lm.activations import sampled
    from heredity.sae.evaluate import quality
    from heredity.stitch.functional import Side, activation_correlation
    from heredity.stitch.transfer import transfer_sae

    config = settings.config
    maps, row = maps_of(work.inputs["stitch"]), dict[str, Any](edge=Edge(config.source, config.target).name, reason="")
    points, wanted = (maps["source_hook_point"], maps["target_hook_point"]), settings.hook_point
    if points != (wanted, wanted):
        row["reason"] = (
            f"the maps go from {points[0]} to {points[1]}, but features are followed at {wanted}; give the stitch "
            f'source_hook_point = target_hook_point = "{wanted}"'
        )
        return {"mapped_edges": [row], "lineage_by_maps": [], "mapped_features": []}
    sides = Sides.of(work)
    blocks = settings.blocks(work, "validation", config.evaluation)
    sae = sides.read_sae(work.inputs["parent_sae"])
    parent, carried = Side(*sides.source, sae, settings.precision), transfer_sae(sae, *sides.stitch)
    readers = {"carried": Side(*sides.target, carried, settings.precision)}
    if carried.d_in == sae.d_in:
        readers["unchanged"] = readers["carried"]._replace(sae=sae)

    def explained(side: Side) -> float:
        return quality(side.sae, sampled(side.model, side.hook_point, blocks, side.precision)).explained_variance

    matches, edge = read_matches(work.inputs["match"]), edge_row(work.inputs["match"])
    best, threshold = matches.parent_r[:, 0], edge["threshold"]
    live, matched = np.isfinite(best), best > threshold
    row |= {"hook_point": wanted, "threshold": threshold, "tokens": blocks.size, "one_sae": edge["one_dictionary"]}
    row |= {"live": int(live.sum()), "matched": int(matched.sum()), "explained_variance": explained(parent)}
    columns = {"feature": np.arange(len(best)), "match": matches.parent_match[:, 0].astype(np.int64), "matched_r": best}
    columns |= {"density": matches.parent_density, "matched": matched}
    columns |= dict.fromkeys(("unchanged_r", "unchanged"), [None] * len(best))
    rows = []
    for done, (arm, reader) in enumerate(readers.items(), 1):
        work.progress(done, len(readers) + 1)
        r = activation_correlation(parent, reader, blocks).r
        columns |= {f"{arm}_r": r, arm: r > threshold}
        agreed = agreement(best[live], r[live], threshold)._asdict()
        rows.append({"arm": arm, **agreed, "explained_variance": explained(reader)})
    return {"mapped_edges": [row], "lineage_by_maps": rows, "mapped_features": columns}


def _say(tables: Tables) -> Iterable[Statement]:
    for edge in rows_of(tables, "mapped_edges"):
        name = edge["stitch"]
        if edge["reason"]:
            note = f"edge {edge['edge']}: maps and matches are not compared: {edge['reason']}"
            yield Statement(f"stitch {name}", "note", note)
            continue
        arms = {row["arm"]: row for row in rows_of(tables, "lineage_by_maps", stitch=name)}
        carried = arms["carried"]
        text = (
            f"Through the maps, {format.of(carried['persisting'], edge['live'])} live features keep an r above "
            f"{edge['threshold']:.2f} with themselves; by best match {edge['matched']:,} persist."
        )
        kappa = "unknown" if carried["kappa"] is None else f"{carried['kappa']:.2f}"
        evidence = [f"{carried['both']:,} persist by both, kappa {kappa}"]
        if "unchanged" in arms:
            evidence.append(f"read as it is, the parent's SAE keeps {arms['unchanged']['persisting']:,}")
        yield Statement(f"stitch {name}", "lineage", text, tuple(evidence))


ANALYSIS = Analysis(
    kind="lineage_by_maps",
    version=2,
    title="Lineage by maps",
    items=_items,
    settings=lambda study, item: StitchSettings.of(study, item["stitch"], "bridge", "evaluation"),
    needs=_needs,
    run=_run,
    tables=(MAPPED_EDGES, LINEAGE_BY_MAPS, MAPPED_FEATURES),
    cost=lambda study, item, shapes: pass_cost(study, item["stitch"], shapes, 6),
    say=_say,
)
