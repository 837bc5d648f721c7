"""Stages that match features along the edges of the graph and judge the counts by a ceiling and a floor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from heredity.engine.stage import Stage, Work
from heredity.engine.store import write_json
from heredity.engine.workers import Job, Progress
from heredity.features.acts import FeatureActs
from heredity.features.collect import Reader, collected
from heredity.features.correlate import Matches, correlate
from heredity.features.edge_statistics import (
    Compared,
    Directions,
    EdgeStatistics,
    Figures,
    Settings,
    ceiling_r,
    edge_statistics,
)
from heredity.features.null import Floor, floor
from heredity.sae.formats import read_sae
from heredity.sae.model import SAE
from heredity.stages.models import RECORD, device, seed_of
from heredity.stages.readers import reader_of
from heredity.stages.text import packs
from heredity.study import ControlsConfig, Edge, Init, LineageConfig, Study, StudyError
from heredity.text.tokens import BlockSampler

COUNTS = "counts.json"


def match_stage(
    study: Study,
    edge: Edge,
    init: Init,
    models: dict[str, Stage],
    saes: dict[str, Stage],
    controls: Sequence[Stage],
    tokens: dict[str, Stage],
) -> Stage:
    """Matches of the features of one edge, both ways, with ceiling and floor."""
    lineage, settings_ = study.config.lineage, study.config.controls
    context, mix = study.config.sae.context_size, study.config.sae.mix
    corpora = study.common_trace(edge)
    seed = seed_of(study, "match", edge.name)
    settings = {
        "hook_point": study.config.hook_point,
        "precision": study.config.precision,
        "init": init,
        "lineage": lineage.model_dump(),
        "controls": settings_.model_dump(exclude={"seeds", "models", "shifts", "newness"}),
        "context_size": context,
        "mix": mix,
        "seed": seed,
    }
    inputs = {"parent": models[edge.parent], "child": models[edge.child]}
    inputs |= {"parent_sae": saes[edge.parent], "child_sae": saes[edge.child]}
    inputs |= {f"control:{number}": stage for number, stage in enumerate(controls, 1)}
    inputs |= {f"tokens:{corpus}": tokens[corpus] for corpus in corpora}

    def make(work: Work) -> None:
        states = [work.inputs[end].json(RECORD)["state"] for end in ("parent", "child")]
        if states[0] == states[1]:
            raise StudyError(
                f"{study.name}: edge {edge.name}: parent and child have identical weights; nothing was inherited or "
                "lost between a model and itself: check the child's path or revision"
            )
        sampler = sampler_of(work, "train", context, seed, mix)
        spare = list(work.group("control").values())
        parent = reader_of(study, work.inputs["parent"], [work.inputs["parent_sae"], *spare])
        child = reader_of(study, work.inputs["child"], [work.inputs["child_sae"]])
        ends = work.shards.job(parent), work.shards.job(child)
        directions = directions_of(*(read_sae(work.inputs[f"{end}_sae"] / "sae")[0] for end in ("parent", "child")))
        match_edge(work.folder, ends, directions, sampler, (lineage, settings_), seed, work.progress)

    return Stage("match", f"{edge.slug}-{init}", settings, inputs, make)


def match_edge(
    folder: Path,
    ends: tuple[Job[Reader], Job[Reader]],
    directions: Directions,
    sampler: BlockSampler,
    config: tuple[LineageConfig, ControlsConfig],
    seed: int,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Match one edge and write its tables and counts into a folder.

    ends: parent and child, each with its SAE first; further SAEs of the parent are its controls, for the ceiling.
    directions: of the SAEs of parent and child. Returns the counts, which also stand in `counts.json`.
    """

    def half(first: int) -> Progress:
        return lambda done, total: progress(first * total + done, 2 * total) if progress else None

    lineage, controls = config
    parent, *spare = collected(ends[0], sampler, lineage.tokens, half(0))
    (child,) = collected(ends[1], sampler, lineage.tokens, half(1))
    at, blocks = device(), parent.tokens // sampler.context_size
    edge = Compared(
        parent,
        child,
        spare,
        matches=correlate(parent, child, lineage.top, device=at),
        ceilings=[correlate(parent, acts, 1, device=at) for acts in spare],
        floor=floor(parent, child, controls.passes, seed, device=at),
        documents=np.repeat(sampler.documents(0, blocks), sampler.context_size),
        ids=sampler.take(0, blocks).ravel(),
        one_dictionary=directions.equal(),
    )
    chosen = None if lineage.threshold == "evidence" else lineage.threshold
    settings = Settings(chosen, controls.rate, controls.resamples, controls.level, seed)
    statistics = edge_statistics(edge, settings, directions)
    counts = _record(statistics)
    write_matches(edge.matches, folder)
    _write_controls(folder, ceiling_r(edge), edge.floor)
    for end, found in statistics.columns.items():
        pq.write_table(pa.table(found), folder / f"{end}_features.parquet")
    write_json(folder / COUNTS, counts)
    return counts


def _record(statistics: EdgeStatistics) -> dict[str, Any]:
    """The figures in the shape of `EdgeSummary`."""

    def counts(figures: Figures) -> dict[str, Any]:
        names = [name for name in figures if f"{name}_low" in figures]
        plain = {name: value for name, value in figures.items() if not name.endswith(("_low", "_high"))}
        ends = {name: (figures[f"{name}_low"], figures[f"{name}_high"]) for name in names}
        return plain | {"intervals": {name: pair for name, pair in ends.items() if None not in pair}}

    same = (
        "threshold_by parent_features child_features parent_live child_live l0_parent l0_child tokens level "
        "one_dictionary chance splits merges"
    )
    record = counts(statistics.counts[statistics.threshold_by])
    record |= {name: getattr(statistics, name) for name in same.split()}
    record |= {"paper": counts(statistics.counts["paper"])}
    record |= {"curve": {f"{at:.2f}": persist for at, persist in statistics.curve}}
    if statistics.corrected is not None:
        record |= {"corrected": statistics.corrected}
    record |= {"strata": {}, "rules": {}, "disagreement": {}}
    for end, name, size, matched, of_live, of_all in statistics.strata:
        row = {"features": size, "matched": matched, "of_live": of_live, "of_all": of_all}
        record["strata"].setdefault(end, {})[name] = row
    for rule, persist, threshold, flag in statistics.rules:
        curve = {f"{at:.2f}": count for name, at, count in statistics.rule_curves if name == rule}
        record["rules"][rule] = {"persist": persist, "threshold": threshold, "curve": curve, "flag": flag}
    for rule, other, count in statistics.disagreement:
        record["disagreement"].setdefault(rule, {})[other] = count
    return record


def directions_of(parent: SAE, child: SAE) -> Directions:
    """The weights of the SAEs of both ends."""
    return Directions((parent.W_enc, child.W_enc), (parent.W_dec, child.W_dec))


def write_matches(matches: Matches, folder: Path) -> None:
    """Both directions as Parquet: one row a feature and rank (`parent.parquet`, `child.parquet`)."""
    for end in ("parent", "child"):
        match, r = getattr(matches, f"{end}_match"), getattr(matches, f"{end}_r")
        features, top = match.shape
        table = pa.table(
            {
                "feature": np.repeat(np.arange(features, dtype=np.int32), top),
                "rank": np.tile(np.arange(1, top + 1, dtype=np.int8), features),
                "match": match.ravel().astype(np.int32),
                "r": r.ravel(),
                "density": np.repeat(getattr(matches, f"{end}_density"), top),
            }
        )
        pq.write_table(table.replace_schema_metadata({"tokens": str(matches.tokens)}), folder / f"{end}.parquet")


def read_matches(folder: Path) -> Matches:
    """What `write_matches` wrote."""
    values: dict[str, Any] = {}
    for end in ("parent", "child"):
        table = pq.read_table(folder / f"{end}.parquet")
        top = int(table["rank"].to_numpy().max())
        for column, name in (("match", f"{end}_match"), ("r", f"{end}_r")):
            values[name] = table[column].to_numpy().reshape(-1, top)
        values[f"{end}_density"] = table["density"].to_numpy()[::top]
        values["tokens"] = int(table.schema.metadata[b"tokens"])
    return Matches(**values)


def _write_controls(folder: Path, ceilings: Sequence[np.ndarray], by_chance: Floor) -> None:
    columns = {f"ceiling_{number}": best for number, best in enumerate(ceilings, 1)}
    columns |= {f"floor_{number}": best for number, best in enumerate(by_chance.parent_r, 1)}
    pq.write_table(pa.table(columns), folder / "controls.parquet")


def sampler_of(work: Work, split: str, context_size: int, seed: int, mix: str) -> BlockSampler:
    """Blocks from the work's tokens: uniform over their union, or in equal parts."""
    found = packs(work.group("tokens"), split)
    shares = {name: 1 / len(found) for name in found} if mix == "equal" else None
    return BlockSampler(found, context_size, seed, shares)


def acts_stage(study: Study, name: str, init: Init, model: Stage, sae: Stage, tokens: dict[str, Stage]) -> Stage:
    """Feature activations of a model on the sample that contexts and case studies are taken from."""
    config = study.config
    seed = seed_of(study, "sample")
    settings = {
        "hook_point": config.hook_point,
        "precision": config.precision,
        "tokens": config.report.tokens,
        "context_size": config.sae.context_size,
        "seed": seed,
    }

    def make(work: Work) -> None:
        sampler = sampler_of(work, "train", config.sae.context_size, seed, "equal")
        readers = work.shards.job(reader_of(study, work.inputs["model"], [work.inputs["sae"]]))
        (acts,) = collected(readers, sampler, config.report.tokens, work.progress)
        acts.save(work.folder / "acts.safetensors")

    inputs = {"model": model, "sae": sae, **{f"tokens:{corpus}": stage for corpus, stage in tokens.items()}}
    return Stage("acts", f"{name}-{init}", settings, inputs, make)


def acts_of(folder: Path) -> FeatureActs:
    """The feature activations of an acts artifact."""
    return FeatureActs.load(folder / "acts.safetensors")
