"""What became of each feature along an edge: matches by Pearson r, fates at a threshold, ceiling and floor.

Pearson r is taken over aligned token positions of the corpora that both ends have read, zeros included, with float64
sums; a feature that never fires has no r and is counted apart. A parent feature persists when any child feature matches
it with r above the threshold; a live child feature without such a match emerges. The threshold is chosen between what
chance reaches and what an unchanged model reaches (`evidence`), or given by the study; counts at the paper's 0.8
(Horn & Elliott 2024, section 3.4) stand beside it. The ceiling is the share that persists into another SAE of the
parent itself, the floor the share that persists under shifted alignment. Intervals: bootstrap over documents, not over
training seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from heredity.analyses import match_findings
from heredity.analyses.analysis import (
    Analysis,
    Cost,
    Item,
    Needs,
    Results,
    seed_of,
)
from heredity.analyses.held import HELD
from heredity.analyses.match_findings import KEY
from heredity.analyses.reading import device, reader_of, sampler_of
from heredity.analyses.sae import control_needs, control_start, encode_flops, expected_l0, read_passes, sae_need
from heredity.analyses.text import tokens_needs
from heredity.engine.stage import Work
from heredity.engine.store import Artifact
from heredity.engine.workers import Here
from heredity.study import Edge, LineageConfig, Precision, Study
from heredity.tables import Column, Plot, Table

if TYPE_CHECKING:
    from heredity.analyses.plan import Shapes
    from heredity.engine.workers import Job, Progress, Shards
    from heredity.features.acts import FeatureActs
    from heredity.features.collect import Reader
    from heredity.features.correlate import Matches
    from heredity.features.edge_statistics import Compared, Directions, EdgeStatistics
    from heredity.sae.model import SAE
    from heredity.text.tokens import BlockSampler

BIN = 0.02
"""Width of the bins of best r."""
_PAPER = 0.8

EDGES = Table(
    "edges",
    "Fates of features along every edge. Intervals: 95 % bootstrap over documents, not over training seeds.",
    (*KEY, "rule"),
    (
        Column("rule", "text", "How the threshold came about: evidence, study (given), or paper (0.8)."),
        Column("parent", "text", "Parent model."),
        Column("child", "text", "Child model."),
        Column("threshold", "r", "A pair with r above it is a match."),
        Column("parent_live", "count", "Parent features that fired at least once on the aligned tokens."),
        Column("child_live", "count", "Child features that did."),
        Column("persist", "count", "Parent features with a match.", of="parent_live", ci=True),
        Column("disappear", "count", "Live parent features without a match.", of="parent_live", ci=True),
        Column("emerge", "count", "Live child features without a match.", of="child_live", ci=True),
        Column("one_to_one", "count", "Matched pairs that are each other's best match."),
        Column("ceiling", "share", "Share that persists into another SAE of the parent; null without one.", ci=True),
        Column("floor", "share", "Share that persists under shifted alignment."),
        Column(
            "relative",
            "share",
            "Share that persists over the ceiling; above 1 by the chance in both.",
            ci=True,
        ),
        Column("parent_features", "count", "All features of the parent's SAE."),
        Column("child_features", "count", "All features of the child's SAE."),
        Column("one_dictionary", "flag", "Whether one SAE reads both ends; the ceiling is then 1 by construction."),
        Column("chance_end", "r", "Lower end between which evidence chooses the threshold: what chance reaches."),
        Column("same_end", "r", "Upper end: what an unchanged feature reaches."),
        Column("tokens", "count", "Aligned token positions."),
        Column("l0_parent", "number", "Mean number of active parent features per token."),
        Column("l0_child", "number", "Mean number of active child features per token."),
        Column("splits", "count", "Parent features that split into two or more child features (masked cosine)."),
        Column("merges", "count", "Child features that two or more parent features merged into."),
        Column("level", "share", "Nominal coverage of the intervals."),
    ),
    brief=(
        "instrument",
        "edge",
        "rule",
        "threshold",
        "parent_live",
        "persist",
        "relative",
        "disappear",
        "emerge",
        "floor",
    ),
    sums=(("parent_live", "persist", "disappear"),),
)
CURVES = Table(
    "curves",
    "Persisting parent features by threshold on r.",
    (*KEY, "threshold"),
    (
        Column("threshold", "r", "On r."),
        Column("persist", "count", "Parent features with a match above it."),
    ),
    plot=Plot("lines", x="threshold", y="persist"),
)
BEST_R = Table(
    "best_r",
    "Best match of every live feature, binned by r.",
    (*KEY, "end", "r"),
    (
        Column("end", "text", "parent, child, ceiling (parent features in another SAE of the parent) or floor."),
        Column("r", "r", "Lower edge of the bin."),
        Column("features", "number", "Features in the bin; mean over SAEs (ceiling) and passes (floor)."),
    ),
    plot=Plot("histogram", x="r", y="features", by="end"),
)
CHANCE = Table(
    "chance",
    "What chance reaches on every edge, by shifted alignment.",
    KEY,
    (
        Column("passes", "count", "Comparisons under shifted alignment."),
        Column("rate", "share", "False discovery rate at which a match counts as more than chance."),
        Column("threshold", "r", "Lowest r from which on the expected share of chance stays at or below the rate."),
        Column("expected", "number", "Parent features expected to persist by chance at the edge's threshold."),
        Column("parent_above", "count", "Live parent features whose best match is more than chance."),
        Column("child_above", "count", "Live child features whose best match is more than chance."),
    ),
)
CORRECTED = Table(
    "corrected",
    "r over the r that the same feature reaches in another SAE of its own model.",
    KEY,
    (
        Column("persist", "count", "Parent features whose corrected r exceeds the paper's threshold."),
        Column("median", "r", "Median corrected r of live parent features."),
        Column("raw_median", "r", "Median raw r."),
    ),
)
CRITERIA = Table(
    "criteria",
    "Other criteria for a match.",
    (*KEY, "criterion"),
    (
        Column("criterion", "text", "Criterion."),
        Column("persist", "count", "Live parent features that persist by it."),
        Column("threshold", "r", "On its score."),
        Column("flag", "text", "Warning."),
    ),
)
CRITERIA_CURVES = Table(
    "criteria_curves",
    "Persisting parent features by threshold on each criterion's score.",
    (*KEY, "criterion", "threshold"),
    (
        Column("criterion", "text", "Criterion."),
        Column("threshold", "r", "On its score."),
        Column("persist", "count", "Parent features above it."),
    ),
    plot=Plot("lines", x="threshold", y="persist", by="criterion"),
)
DISAGREEMENT = Table(
    "disagreement",
    "Parent features that persist by one criterion and not by another.",
    (*KEY, "criterion", "other"),
    (
        Column("criterion", "text", "They persist by this one."),
        Column("other", "text", "They do not by this one."),
        Column("features", "count", "Parent features."),
    ),
    plot=Plot("heat", x="other", y="features", by="criterion"),
)
STRATA = Table(
    "strata",
    "Matched features by how often they fire.",
    (*KEY, "end", "stratum"),
    (
        Column("end", "text", "parent or child."),
        Column("stratum", "text", "rare (fewer than 30 firings), usual, dense or dead."),
        Column("features", "count", "Features."),
        Column("matched", "count", "Those that persist (parent) or are inherited (child).", of="features"),
        Column("of_live", "share", "Matched over the live features of the stratum."),
        Column("of_all", "share", "Matched over all features of the end."),
    ),
)
MATCHES = Table(
    "matches",
    "The best matches of every feature, both ways.",
    (*KEY, "end", "feature", "rank"),
    (
        Column("end", "text", "Whose features: parent or child."),
        Column("rank", "count", "1 is the best match."),
        Column("match", "feature", "Feature of the other end; -1 where there is none."),
        Column("r", "r", "Pearson r."),
    ),
    large=True,
)
FATES = Table(
    "fates",
    "What became of every feature, and how sure that is.",
    (*KEY, "end", "feature"),
    (
        Column("end", "text", "parent or child."),
        Column("fate", "text", "persist or disappear (parent), inherited or emerge (child), dead."),
        Column("stratum", "text", "rare, usual, dense or dead."),
        Column("density", "share", "Share of tokens on which it fires."),
        Column("best_r", "r", "r of its best match.", ci=True),
        Column("p", "number", "p-value of its best r under shifted alignment."),
        Column("q", "number", "False discovery rate at which the match counts as more than chance."),
        Column("effective_groups", "number", "Effective number of document groups behind the interval."),
        Column("ceiling_r", "r", "Best r in another SAE of the parent."),
        Column("corrected_r", "r", "best_r over ceiling_r."),
    ),
    large=True,
)
TABLES = (
    EDGES,
    CURVES,
    BEST_R,
    CHANCE,
    CORRECTED,
    CRITERIA,
    CRITERIA_CURVES,
    DISAGREEMENT,
    STRATA,
    MATCHES,
    FATES,
)


class MatchSettings(NamedTuple):
    edge: Edge
    hook_point: str
    precision: Precision
    lineage: LineageConfig
    passes: int
    rate: float
    resamples: int
    level: float
    context_size: int
    mix: str
    seed: int
    text_seed: int
    """Of the order of the blocks: edges that compare on the same corpora read the same ones."""


def text_seed(study: Study, edge: Edge) -> int:
    """Seed of the order of the blocks on which the features of an edge are matched."""
    return seed_of(study, "match", *study.common_trace(edge))


def edge_items(study: Study, edges: Sequence[Edge] | None = None) -> Iterable[Item]:
    """One item per instrument, site and edge, by default of all edges."""
    return (
        {"instrument": instrument, "site": site, "edge": edge.name}
        for instrument in study.instruments
        for site in study.sites
        for edge in (study.edges if edges is None else edges)
    )


def _settings(study: Study, item: Item) -> MatchSettings:
    edge, controls = study.edge(item["edge"]), study.config.controls
    return MatchSettings(
        edge,
        item["site"],
        study.config.precision,
        study.config.lineage,
        controls.passes,
        controls.rate,
        controls.resamples,
        controls.level,
        study.config.sae.context_size,
        study.config.sae.mix,
        seed_of(study, "match", edge.name),
        text_seed(study, edge),
    )


def _needs(study: Study, item: Item) -> Needs:
    edge, instrument, site = study.edge(item["edge"]), item["instrument"], item["site"]
    start = control_start(study, edge, instrument)
    return {
        "parent": ("model", {"model": edge.parent}),
        "child": ("model", {"model": edge.child}),
        "parent_sae": sae_need(study, edge.parent, instrument, site),
        "child_sae": sae_need(study, edge.child, instrument, site),
        "control": control_needs(study, edge.parent, instrument, start, site),
        "tokens": tokens_needs(study.common_trace(edge)),
    }


def _run(work: Work, settings: MatchSettings) -> Results:
    from heredity.sae.formats import read_sae

    parent, child = work.inputs["parent"], work.inputs["child"]
    sampler = sampler_of(work.inputs["tokens"], "train", settings.context_size, settings.text_seed, settings.mix)
    place = settings.hook_point, settings.precision
    ends = (
        work.shards.job(reader_of(parent, [work.inputs["parent_sae"], *work.inputs["control"].values()], *place)),
        work.shards.job(reader_of(child, [work.inputs["child_sae"]], *place)),
    )
    saes = [read_sae(work.inputs[f"{end}_sae"] / "sae")[0] for end in ("parent", "child")]
    text = *(one.key for one in work.inputs["tokens"].values()), settings.text_seed, settings.lineage.tokens
    read = work.inputs["parent_sae"], *work.inputs["control"].values()
    names = (
        (parent.key, *(one.key for one in read), *place, *text),
        (child.key, work.inputs["child_sae"].key, *place, *text),
    )
    return match_edge(ends, directions_of(*saes), sampler, settings, work.progress, names, work.shards)


def match_edge(
    ends: tuple[Job[Reader], Job[Reader]],
    directions: Directions,
    sampler: BlockSampler,
    settings: MatchSettings,
    progress: Progress | None = None,
    names: tuple[Any, Any] | None = None,
    shards: Shards | None = None,
) -> dict[str, Any]:
    """Rows of all tables of one edge, by name, from models that are read for it.

    ends: parent and child, each with its SAE first; further SAEs of the parent are its controls, for the ceiling.
    directions: weights of the SAEs of both ends. names: of each end, what no other reading is called, under which its
    activations are held for other edges. shards: workers that share the matching; by default this process.
    """
    from heredity.features.collect import collected, together

    def half(first: int) -> Progress:
        return lambda done, total: progress(first * total + done, 2 * total) if progress else None

    lineage = settings.lineage

    def read(end: int) -> list[FeatureActs]:
        return collected(ends[end], sampler, lineage.tokens, half(end))

    def sized(end: int) -> tuple[list[FeatureActs], int]:
        acts = read(end)
        return acts, sum(one.nbytes for one in acts)

    parent, *spare = HELD.get(names[0], lambda: sized(0)) if names else read(0)
    (child,) = HELD.get(names[1], lambda: sized(1)) if names else read(1)
    blocks = parent.tokens // sampler.context_size
    (parent, child, *spare), kept = together(parent, child, *spare)
    documents = np.repeat(sampler.documents(0, blocks), sampler.context_size)
    ids = np.ma.getdata(sampler.take(0, blocks)).ravel()
    if kept is not None:
        documents, ids = documents[kept], ids[kept]
    return match_read(parent, child, spare, documents, ids, directions, settings, shards)


def match_read(
    parent: FeatureActs,
    child: FeatureActs,
    spare: Sequence[FeatureActs],
    documents: np.ndarray,
    ids: np.ndarray,
    directions: Directions,
    settings: MatchSettings,
    shards: Shards | None = None,
) -> dict[str, Any]:
    """Rows of all tables of one edge, by name, from activations at the same positions.

    spare: of further SAEs of the parent. documents, ids: int64 [tokens], the document and the token of each position.
    """
    from heredity.features.edge_statistics import Compared, Settings, edge_statistics
    from heredity.features.match_by import correlate_by
    from heredity.features.null import floor

    lineage, at, matched = settings.lineage, device(), partial(correlate_by, shards or Here())
    edge = Compared(
        parent,
        child,
        spare,
        matches=matched(parent, child, lineage.top, device=at),
        ceilings=[matched(parent, acts, 1, device=at) for acts in spare],
        floor=floor(parent, child, settings.passes, settings.seed, device=at, match=matched),
        documents=documents,
        ids=ids,
        one_dictionary=directions.equal(),
    )
    chosen = None if lineage.threshold == "evidence" else lineage.threshold
    statistics = edge_statistics(
        edge, Settings(chosen, settings.rate, settings.resamples, settings.level, settings.seed), directions
    )
    return rows_of_edge(edge, statistics, settings.edge)


def rows_of_edge(edge: Compared, statistics: EdgeStatistics, ends: Edge) -> dict[str, Any]:
    """Rows of all tables from the statistics of an edge."""
    from heredity.features.edge_statistics import ceiling_r
    from heredity.features.fates import STRATA as NAMES

    shared = {
        "parent": ends.parent,
        "child": ends.child,
        **{
            name: getattr(statistics, name)
            for name in EDGES.schema.names
            if hasattr(statistics, name) and name != "threshold"
        },
    }
    arrays = {
        "parent": [edge.matches.parent_r[:, 0]],
        "child": [edge.matches.child_r[:, 0]],
        "ceiling": ceiling_r(edge),
        "floor": list(edge.floor.parent_r),
    }
    fates = []
    for end, (matched, lost) in {"parent": ("persist", "disappear"), "child": ("inherited", "emerge")}.items():
        columns = dict(statistics.columns[end])
        live, best = columns["density"] > 0, columns["best_r"]
        fate = np.where(live, np.where(best > statistics.threshold, matched, lost), "dead")
        stratum = np.array(NAMES, object)[columns.pop("stratum")]
        names = {"r_low": "best_r_low", "r_high": "best_r_high"}
        nothing = np.full(len(best), np.nan)
        absent = {name: nothing for name in FATES.schema.names if name not in (*KEY, "end", "feature")}
        renamed = {names.get(name, name): values for name, values in columns.items()}
        fates.append(
            absent
            | renamed
            | {
                "end": [end] * len(best),
                "feature": np.arange(len(best)),
                "fate": fate.astype(object),
                "stratum": stratum,
            }
        )
    return {
        "edges": [{"rule": rule, **shared, **figures} for rule, figures in statistics.counts.items()],
        "curves": _rows(("threshold", "persist"), statistics.curve),
        "best_r": [row for end, best in arrays.items() for row in _histogram(end, best)],
        "chance": [statistics.chance],
        "corrected": [statistics.corrected] if statistics.corrected else [],
        "criteria": _rows(("criterion", "persist", "threshold", "flag"), statistics.rules),
        "criteria_curves": _rows(("criterion", "threshold", "persist"), statistics.rule_curves),
        "disagreement": _rows(("criterion", "other", "features"), statistics.disagreement),
        "strata": _rows(("end", "stratum", "features", "matched", "of_live", "of_all"), statistics.strata),
        "matches": _match_rows(edge.matches),
        "fates": {name: np.concatenate([part[name] for part in fates]) for name in fates[0]},
    }


def _rows(names: Sequence[str], values: Iterable[Sequence[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(names, row, strict=True)) for row in values]


def _histogram(end: str, best: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    if not len(best):
        return []
    finite = [r[np.isfinite(r)] for r in best]
    bins = np.round(np.floor(np.minimum(np.concatenate(finite), 1 - BIN / 2) / BIN + 1e-9) * BIN, 2)
    edges, counts = np.unique(bins, return_counts=True)
    return [
        {"end": end, "r": float(at), "features": float(count) / len(best)}
        for at, count in zip(edges, counts, strict=True)
    ]


def _match_rows(matches: Matches) -> dict[str, Any]:
    columns: dict[str, list[Any]] = {"end": [], "feature": [], "rank": [], "match": [], "r": []}
    for end in ("parent", "child"):
        match, r = getattr(matches, f"{end}_match"), getattr(matches, f"{end}_r")
        features, top = match.shape
        columns["end"].append(np.full(features * top, end, object))
        columns["feature"].append(np.repeat(np.arange(features), top))
        columns["rank"].append(np.tile(np.arange(1, top + 1), features))
        columns["match"].append(match.ravel().astype(np.int64))
        columns["r"].append(r.ravel().astype(np.float64))
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def read_matches(artifact: Artifact) -> Matches:
    """The matches of an edge."""
    columns = {"matches": ["end", "rank", "match", "r"], "fates": ["end", "density"], "edges": ["tokens"]}
    return matches_from({name: artifact.table(name, c) for name, c in columns.items()})


def matches_from(tables: Mapping[str, pa.Table]) -> Matches:
    """The matches that tables of one edge hold."""
    from heredity.features.correlate import Matches

    matches, fates = tables["matches"], tables["fates"]
    values: dict[str, Any] = {"tokens": tables["edges"]["tokens"][0].as_py()}
    for end in ("parent", "child"):
        rows = matches.filter(pa.array(matches["end"].to_numpy() == end))
        top = int(rows["rank"].to_numpy().max())
        values[f"{end}_match"] = rows["match"].to_numpy().reshape(-1, top)
        values[f"{end}_r"] = rows["r"].to_numpy().reshape(-1, top)
        values[f"{end}_density"] = fates.filter(pa.array(fates["end"].to_numpy() == end))["density"].to_numpy()
    return Matches(**values)


def edge_row(artifact: Artifact) -> dict[str, Any]:
    """Figures of an edge at its own threshold."""
    rows = artifact.table("edges").to_pylist()
    return next(row for row in rows if row["rule"] != "paper")


def threshold_of(artifact: Artifact) -> float:
    """The threshold of an edge."""
    return edge_row(artifact)["threshold"]


def thresholds_of(artifact: Artifact) -> dict[str, float]:
    """Thresholds of an edge by rule: its own (`evidence` or `study`), then the paper's."""
    rows = artifact.table("edges", ["rule", "threshold"]).to_pylist()
    return {row["rule"]: row["threshold"] for row in rows}


def directions_of(parent: SAE, child: SAE) -> Directions:
    """Weights of the SAEs of both ends."""
    from heredity.features.edge_statistics import Directions

    return Directions((parent.W_enc, child.W_enc), (parent.W_dec, child.W_dec))


def _cost(study: Study, item: Item, shapes: Shapes) -> Cost:
    parent, site, tokens = study.edge(item["edge"]).parent, item["site"], 2 * study.config.lineage.tokens
    flops = tokens * (encode_flops(study, parent, shapes, site) + expected_l0(study) ** 2)
    passes = read_passes(study, parent, shapes, tokens, site)
    gib = shapes.sae_gib(parent, site, tokens) + shapes.read_gib(parent)
    gib += shapes.held_gib(parent, tokens, len(study.order))
    return Cost(tokens, flops, gib, 0.5, passes=passes)


ANALYSIS = Analysis(
    kind="match",
    version=1,
    title="Features along every edge",
    items=edge_items,
    settings=_settings,
    needs=_needs,
    run=_run,
    tables=TABLES,
    cost=_cost,
    say=match_findings.findings,
)
