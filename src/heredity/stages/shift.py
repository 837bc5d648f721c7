"""Stages that tell what other data and what other weights do to the features of an edge.

A child's SAE differs from its parent's because the child read other corpora and because it has other weights. An SAE
that is continued keeps what its features mean by index, so each cause can be taken as a step of its own, and the turn
of a feature's decoder row tells how far the step moved it. What one step moves depends on what the other has moved
before, so both orders are measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from heredity.engine.stage import Stage, Work
from heredity.engine.store import write_json
from heredity.engine.workers import Progress
from heredity.features.collect import collected
from heredity.features.correlate import correlate
from heredity.features.directions import Turns, causes, quartiles, turns
from heredity.features.null import PAPER
from heredity.report.edge import Angles, Persisting, ShiftOrder, ShiftSummary
from heredity.sae.formats import read_sae
from heredity.stages.lineage import COUNTS, sampler_of
from heredity.stages.models import device, seed_of
from heredity.stages.readers import reader_of
from heredity.stages.saes import control_stages, sae_stage, training_stage
from heredity.study import Edge, Study

SHIFT = "shift.json"


def shift_stages(
    study: Study, models: Mapping[str, Stage], matches: Mapping[Edge, Stage], tokens: Mapping[str, Stage]
) -> list[Stage]:
    """For every edge to a child with one parent: four SAEs in two steps each way, and what they tell.

    matches: of every edge, by the study's instrument; the threshold comes from there. The experiment continues SAEs
    whatever the study's inits are: the SAE it starts from and a further one of the parent, for the noise, are made
    where the study has none. A merge has no such edges: its SAE continues that of its parents' common ancestor, not
    either parent's, and it has read nothing itself.
    """
    stages: list[Stage] = []
    sources: dict[str, Stage] = {}
    for edge in study.edges:
        if study.config.model[edge.child].merge is not None:
            continue
        source = _source(study, edge.parent, models, tokens, sources)
        controls = control_stages(study, edge.parent, "parent", edge.parent, models, sources, tokens)[:1]
        steps = _steps(study, edge, models, source, controls[0].name if controls else None, tokens)
        found = {"source": source, **steps, **({"control": controls[0]} if controls else {})}
        stages += [*sources.values(), *controls, *steps.values()]
        stages.append(_shift_stage(study, edge, models, found, matches[edge], tokens))
    return stages


def _source(
    study: Study, name: str, models: Mapping[str, Stage], tokens: Mapping[str, Stage], made: dict[str, Stage]
) -> Stage:
    """The SAE of a model that those of its children continue, and before it those that it continues itself."""
    if name not in made:
        start = study.sae_parent(name)
        if start is not None:
            _source(study, start, models, tokens, made)
        made[name] = sae_stage(study, name, "parent", models, made, tokens)
    return made[name]


def _steps(
    study: Study,
    edge: Edge,
    models: Mapping[str, Stage],
    source: Stage,
    control: str | None,
    tokens: Mapping[str, Stage],
) -> dict[str, Stage]:
    """The SAEs of both orders. control: the one whose token order the step to the child's weights takes."""
    parent, child, label = edge.parent, edge.child, f"{edge.slug}-shift"
    old, new = study.trace(parent), study.trace(child)

    def step(end: str, name: str, start: Stage, corpora: tuple[str, ...], order_of: str | None = None) -> Stage:
        label_ = f"{label}-{end}"
        return training_stage(
            study, label_, name, models[name], start, tokens, corpora=corpora, order_of=order_of or label_
        )

    data = step("data", parent, source, new)
    model = step("model", child, source, old, control)
    return {
        "data": data,
        "data_model": step("data-then-model", child, data, new),
        "model": model,
        "model_data": step("model-then-data", child, model, new),
    }


def _shift_stage(
    study: Study,
    edge: Edge,
    models: Mapping[str, Stage],
    saes: Mapping[str, Stage],
    match: Stage,
    tokens: Mapping[str, Stage],
) -> Stage:
    lineage, sae = study.config.lineage, study.config.sae
    seed = seed_of(study, "match", edge.name)  # the edge's own tokens
    settings = {
        "hook_point": study.config.hook_point,
        "precision": study.config.precision,
        "tokens": lineage.tokens,
        "context_size": sae.context_size,
        "mix": sae.mix,
        "seed": seed,
    }
    inputs = {"parent": models[edge.parent], "child": models[edge.child], "match": match}
    inputs |= {f"sae:{role}": stage for role, stage in saes.items()}
    inputs |= {f"tokens:{corpus}": tokens[corpus] for corpus in study.common_trace(edge)}

    def make(work: Work) -> None:
        found = work.group("sae")
        read = {role: read_sae(artifact / "sae") for role, artifact in found.items()}
        turned = turns({role: sae.W_dec for role, (sae, _) in read.items()})
        threshold = float(work.inputs["match"].json(COUNTS)["threshold"])
        live, best = _compared(study, work, seed)
        columns = {name: angles for name, angles in turned._asdict().items() if angles is not None}
        columns |= {f"{name}_r": r for name, r in best.items()}
        table = {"feature": np.arange(len(live), dtype=np.int32), "live": live, **columns}
        pq.write_table(pa.table(table), work.folder / "shift.parquet")
        vectors = read["data"][1]["training_tokens"]
        summary = summarized(turned, live, best, threshold, vectors)
        write_json(work.folder / SHIFT, summary.model_dump(mode="json"))

    return Stage("shift", edge.slug, settings, inputs, make)


def summarized(
    turned: Turns, live: np.ndarray, best: Mapping[str, np.ndarray], threshold: float, vectors: int
) -> ShiftSummary:
    """Figures of the live features. live: bool [d_sae]; best: by kind of step, the best r of each feature [d_sae]."""
    ends = ("lower", "median", "upper")
    angles = {
        name: Angles(**dict(zip(ends, quartiles(values[live]), strict=True)))
        for name, values in turned._asdict().items()
        if values is not None
    }
    shares = {
        name: Persisting(share=_share(r[live] > threshold), paper=_share(r[live] > PAPER)) for name, r in best.items()
    }
    orders = {
        order: ShiftOrder(**{cause: angles[f"{order}_{cause}"] for cause in ("data", "model", "total")})
        for order in ("data_first", "model_first")
    }
    by_model, by_data, by_neither = causes(turned, live)
    return ShiftSummary(
        features=int(live.sum()),
        vectors=vectors,
        noise=angles.get("noise"),
        weights=angles.get("weights"),
        by_model=by_model,
        by_data=by_data,
        by_neither=by_neither,
        threshold=threshold,
        persist=shares,
        **orders,
    )


def _share(hits: np.ndarray) -> float | None:
    return float(hits.mean()) if len(hits) else None


def _compared(study: Study, work: Work, seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Which features of the source fire on the edge's tokens, bool [d_sae], and their best r in the other SAEs."""

    def half(first: int) -> Progress:
        return lambda done, total: work.progress(first * total + done, 2 * total)

    found = work.group("sae")
    sampler = sampler_of(work, "train", study.config.sae.context_size, seed, study.config.sae.mix)
    ends = {"parent": ["source", "data"], "child": ["model", "data_model"]}
    if "control" in found:
        ends["parent"].append("control")
    acts: dict[str, Any] = {}
    for number, (end, roles) in enumerate(ends.items()):
        readers = work.shards.job(reader_of(study, work.inputs[end], [found[role] for role in roles]))
        counted = collected(readers, sampler, study.config.lineage.tokens, half(number))
        acts |= dict(zip(roles, counted, strict=True))
    kinds = {"noise": "control", "data": "data", "model": "model", "both": "data_model"}
    best = {
        kind: correlate(acts["source"], acts[role], 1, device=device()).parent_r[:, 0]
        for kind, role in kinds.items()
        if role in acts
    }
    return acts["source"].density() > 0, best
