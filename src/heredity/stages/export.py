"""Every table of a study, as files for other tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from heredity.report import tables
from heredity.report.summary import EdgeSummary, SAESummary
from heredity.stages.cases import CASES
from heredity.stages.classes import CLASSES_TABLE
from heredity.stages.explain import EXPLANATIONS
from heredity.stages.lineage import COUNTS
from heredity.stages.results import Artifacts, match_label, matches_of, summarize
from heredity.study import Init, Study

Format = Literal["csv", "parquet", "json"]


def export_tables(study: Study, artifacts: Artifacts, out: Path, format_: Format) -> list[Path]:
    """Write every table of a study as files of one format; returns their paths."""
    writers = {"csv": tables.write_csv, "parquet": tables.write_parquet, "json": _write_json}
    if out.exists() and not out.is_dir():
        raise ValueError(f"-o {out}: is a file; give the name of a folder")
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, table in study_tables(study, artifacts).items():
        paths.append(out / f"{name}.{format_}")
        writers[format_](table, paths[-1])
    return paths


def study_tables(study: Study, artifacts: Artifacts) -> dict[str, pa.Table]:
    """Every table of a study, by name; those that hold one init's figures have a column that says which."""
    summary = summarize(study, artifacts)
    measured: dict[Init, tuple[dict[str, SAESummary], dict[str, EdgeSummary], dict[str, dict[str, int]]]]
    measured = {study.instrument: (summary.saes, summary.edges, summary.flow)}
    measured |= {init: (also.saes, also.edges, also.flow) for init, also in summary.also.items()}
    found = {"models": tables.models(summary.models)}
    if summary.merges:
        found |= {"merges": tables.merges(summary.merges), "sweeps": tables.sweeps(summary.merges)}
    if study.config.case and study.inits:
        found["cases"] = tables.cases(artifacts[f"features/{study.instrument}"].json(CASES))
    parts: dict[str, list[pa.Table]] = {"saes": [], "edges": [], "curves": [], "rules": [], "strata": [], "flow": []}
    for init, (saes, edges, flows) in measured.items():
        made = (
            tables.saes(saes, init),
            tables.edges(edges, init),
            tables.curves(edges, init),
            tables.rules(edges, init),
            tables.strata(edges, init),
            tables.flows(flows, init),
        )
        for name, table in zip(parts, made, strict=True):
            parts[name].append(table)
    found |= {name: pa.concat_tables(made) for name, made in parts.items() if study.inits}
    for init in study.inits:
        found |= _feature_tables(study, artifacts, init)
    return found


def _feature_tables(study: Study, artifacts: Artifacts, init: Init) -> dict[str, pa.Table]:
    """Features of every SAE with their classes and explanations, and matches and fates of every edge both ways."""
    densities = {name: np.load(artifacts[f"sae_quality/{name}-{init}"] / "density.npy") for name in study.followed}
    features = pa.concat_tables([tables.features(name, density) for name, density in densities.items()])
    rows, verdicts = [], []
    for edge in study.edges:
        found, artifact = matches_of(artifacts, edge, init), artifacts[match_label(edge, init)]
        for end in ("parent", "child"):
            table = pq.read_table(artifact / f"{end}_features.parquet")
            columns = {name: table[name].to_numpy() for name in table.column_names}
            verdicts.append(tables.fates(edge.name, end, columns, artifact.json(COUNTS)["threshold"]))
        rows.append(tables.matches(edge.name, "parent", found.parent_match, found.parent_r))
        rows.append(tables.matches(edge.name, "child", found.child_match, found.child_r))
    made = {"matches": rows, "fates": verdicts}
    found = {f"features_{init}": features} | {f"{name}_{init}": pa.concat_tables(t) for name, t in made.items() if t}
    found[f"classes_{init}"] = pq.read_table(artifacts[f"classes/{init}"] / CLASSES_TABLE)
    if asked := artifacts.get(f"explain/{init}"):
        found[f"explanations_{init}"] = pq.read_table(asked / EXPLANATIONS)
    return found


def _write_json(table: pa.Table, path: Path) -> None:
    rows = [{key: _json(value) for key, value in row.items()} for row in table.to_pylist()]
    path.write_text(json.dumps(rows, indent=1, allow_nan=False) + "\n")


def _json(value: object) -> object:
    return None if isinstance(value, float) and not np.isfinite(value) else value
