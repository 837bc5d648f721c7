"""Builds the view-model of a study from its artifacts, and writes the page."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from heredity.engine.store import CONFIG, Artifact
from heredity.features.fates import flow
from heredity.features.null import choose_threshold
from heredity.report.distributions import density_view, edge_view, flow_links, match_rows
from heredity.report.provenance import ArtifactView, CorpusView, Provenance
from heredity.report.render import render
from heredity.report.shown import (
    CardView,
    CaseMemberView,
    CaseView,
    Context,
    FamilyMatch,
    FeatureView,
    FiredToken,
    FitView,
    Highlight,
    LabelView,
    Level,
    NearestMiss,
    PushedToken,
    TopToken,
)
from heredity.report.summary import Summary
from heredity.report.view import EdgeView, FlowLink, Measurement, Node, TensorRow, View
from heredity.stages.explain import EXPLANATIONS
from heredity.stages.features import CASES, FEATURES
from heredity.stages.lineage import COUNTS
from heredity.stages.models import machine
from heredity.stages.results import bases_of, flow_edges, inherited, matches_of
from heredity.stages.text import RECORD
from heredity.study import Edge, Init, Study

_ROWS = 25  # pairs in the table of an edge

Artifacts = Mapping[str, Artifact]


def write_page(study: Study, artifacts: Artifacts, summary: Summary, out: Path) -> None:
    """Write the report as one HTML file, whole or not at all."""
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    partial.write_text(render(view_of(study, artifacts, summary)), encoding="utf-8")
    partial.replace(out)


def view_of(study: Study, artifacts: Artifacts, summary: Summary) -> View:
    """All that the page shows of a study that has been run."""
    shown = artifacts.get(f"features/{study.instrument}")
    rows, cases = (shown.json(FEATURES), shown.json(CASES)) if shown else ([], {})
    labels = _labels(artifacts.get(f"explain/{study.instrument}"))
    return View(
        summary=summary,
        graph=tuple(_node(study, name) for name in study.order),
        measured={init: _measurement(study, artifacts, init) for init in study.inits}
        or {study.instrument: Measurement(edges={}, flows={})},
        tensors={
            name: tuple(TensorRow(**row) for row in artifacts[f"model/{name}"].json("merge.json")["tensors"])
            for name in summary.merges
        },
        highlights=tuple(_highlight(study, row, labels) for row in rows),
        cases={name: _case(case) for name, case in cases.items()},
        provenance=_provenance(study, artifacts),
    )


def _node(study: Study, name: str) -> Node:
    model = study.config.model[name]
    note = f"LoRA, rank {model.lora.r}" if model.lora else ""
    return Node(
        name=name, parents=study.parents[name], corpora=study.own_corpora(name), trace=study.trace(name), note=note
    )


def _measurement(study: Study, artifacts: Artifacts, init: Init) -> Measurement:
    merges = [name for name in study.order if study.config.model[name].merge]
    return Measurement(
        edges={edge.name: _edge(artifacts, edge, init) for edge in study.edges},
        flows={name: _links(study, artifacts, name, init) for name in merges},
        kept=_kept(study, artifacts, init),
        densities={
            name: density_view(np.load(artifacts[f"sae_quality/{name}-{init}"] / "density.npy"))
            for name in study.followed
        },
    )


def _kept(study: Study, artifacts: Artifacts, init: Init) -> dict[str, int]:
    """Features of each parent that persist into at least one of its children."""
    best: dict[str, list[np.ndarray]] = {}
    for edge in study.edges:
        best.setdefault(edge.parent, []).append(inherited(artifacts, edge, init).parent_match[:, 0] >= 0)
    return {name: int(np.any(rows, axis=0).sum()) for name, rows in best.items()}


def _edge(artifacts: Artifacts, edge: Edge, init: Init) -> EdgeView:
    found, match = matches_of(artifacts, edge, init), artifacts[f"match/{edge.slug}-{init}"]
    controls = pq.read_table(match / "controls.parquet")
    named = {name: controls[name].to_numpy() for name in controls.column_names}
    ceilings, floors = ([r for name, r in named.items() if name.startswith(kind)] for kind in ("ceiling", "floor"))
    best, evidence = found.parent_r[:, 0], None
    if match.json(COUNTS)["threshold_by"] == "evidence":
        ends = choose_threshold(best, np.stack(floors), ceilings)
        evidence = (ends.chance, ends.same)
    rows = match_rows(
        found.parent_match, found.parent_r, found.child_match, found.parent_density, found.child_density, _ROWS
    )
    live = (found.parent_density > 0, found.child_density > 0)
    return edge_view(best, found.child_r[:, 0], ceilings, floors, rows, live, evidence)


def _links(study: Study, artifacts: Artifacts, merge: str, init: Init) -> tuple[FlowLink, ...]:
    before, into = flow_edges(study, merge, {edge: inherited(artifacts, edge, init) for edge in study.edges})
    found = flow(before, into, 0.0, bases_of(study, merge))
    return flow_links(merge, found.inherited_through, found.from_base_through)


def _labels(asked: Artifact | None) -> dict[tuple[str, int], LabelView]:
    """What is said of each feature that was asked about."""
    if asked is None:
        return {}
    return {
        (row["model"], row["feature"]): LabelView(
            origin=f"{row['origin_model']}/{row['origin_feature']}",
            **{key: row[key] for key in LabelView.model_fields if key != "origin"},
        )
        for row in pq.read_table(asked / EXPLANATIONS).to_pylist()
    }


def _highlight(study: Study, row: dict[str, Any], labels: Mapping[tuple[str, int], LabelView]) -> Highlight:
    model, index = row["model"], row["feature"]
    members = [member for member in row["family"] if member["model"] != model]
    more = {"card": _card(row["card"]), "label": labels.get((model, index))}
    return Highlight(
        list=row["list"],
        feature=_feature(row, model, index, row["density"], row["max"]).model_copy(update=more),
        matches=tuple(
            FamilyMatch(model=member["model"], index=member["feature"], r=member["r"], along=_along(study, member))
            for member in members
        ),
        family=tuple(
            _feature(row, member["model"], member["feature"], member["density"], member["max"]) for member in members
        ),
    )


def _card(row: dict[str, Any]) -> CardView:
    return CardView(
        firings=row["firings"],
        tokens=tuple(FiredToken(**token) for token in row["tokens"]),
        histogram=tuple(row["histogram"]),
        weaker=tuple(
            Level(
                low=level["low"],
                high=level["high"],
                contexts=tuple(_context(context, context["values"]) for context in level["contexts"]),
            )
            for level in row["weaker"]
        ),
        promoted=tuple(PushedToken(**token) for token in row["promoted"]),
        suppressed=tuple(PushedToken(**token) for token in row["suppressed"]),
        no_logits=row["no_logits"],
    )


def _along(study: Study, member: dict[str, Any]) -> str:
    down = Edge(member["via"], member["model"])
    return down.name if down in study.edges else Edge(member["model"], member["via"]).name


def _feature(row: dict[str, Any], model: str, index: int, density: float, max_act: float) -> FeatureView:
    return FeatureView(
        id=f"{model}/{index}",
        model=model,
        index=index,
        density=density,
        max_act=max_act,
        contexts=tuple(_context(context, context["values"][model]) for context in row["contexts"]),
    )


def _context(row: dict[str, Any], values: Any) -> Context:
    return Context(tokens=tuple(row["tokens"]), values=values, focus=row["position"], corpus=row["corpus"])


def _case(case: dict[str, Any]) -> CaseView:
    rows, asked = case["models"], case["hypothesis"]
    return CaseView(
        kind=asked["kind"],
        value=asked["value"] if asked["kind"] != "tokens" else "",
        tokens=tuple(case["tokens"]),
        set_size=case["set_size"],
        not_in_vocabulary=tuple(case["not_in_vocabulary"]),
        base_rate=case["base_rate"],
        members=tuple(
            CaseMemberView(model=model, previous=row["via"] or "", status=row["status"], **_fit(row))
            for model, row in rows.items()
        ),
        best={model: FitView(**_fit(row)) for model, row in case["best"].items() if row},
        top_tokens=tuple(TopToken(**{key: row[key] for key in TopToken.model_fields}) for row in case["top_tokens"]),
        verdict=case["verdict"],
        nearest_misses=tuple(
            NearestMiss(model=row["model"], threshold=row["threshold"], **_fit(row)) for row in case["misses"]
        ),
    )


def _fit(row: dict[str, Any]) -> dict[str, Any]:
    return {"llr_count": row["llr_counted"]} | {key: row[key] for key in FitView.model_fields if key in row}


def _provenance(study: Study, artifacts: Artifacts) -> Provenance:
    records = {name: artifacts[f"corpus/{name}"].json(RECORD) for name in study.config.corpus}
    kept = ("source", "sha256", "duplicates", "licences")
    counts = ("documents_train", "documents_validation", "bytes_train", "bytes_validation")
    manifests = {label: artifact.manifest for label, artifact in artifacts.items()}
    any_versions = next(iter(manifests.values()))["versions"]
    return Provenance(
        config=study.config.to_toml(),
        hook_point=study.config.hook_point,
        seed=study.config.seed,
        seeds={label: seed for label in artifacts if (seed := _seed(artifacts[label])) is not None},
        versions=any_versions,
        device=machine(),
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        corpora=tuple(
            CorpusView(name=name, **{key: record[key] for key in (*kept, *counts)}) for name, record in records.items()
        ),
        artifacts=tuple(
            ArtifactView(**{field: manifest[field] for field in ArtifactView.model_fields})
            for manifest in manifests.values()
        ),
    )


def _seed(artifact: Artifact) -> int | None:
    """The seed that an artifact was made with, if chance had a part in it."""
    return artifact.json(CONFIG).get("seed")
