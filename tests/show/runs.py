"""A run without artifacts: example rows of every declared table beside a small, consistent lineage."""

from __future__ import annotations

import base64
import gzip
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa

import examples
from heredity.analyses import TABLES, statements_of
from heredity.analyses.features import ANALYSIS as FEATURES
from heredity.engine.store import Artifact
from heredity.study import Study
from tiny import study_values

PLACE = {"site": "blocks.0.mlp.hook_post"}
EVIL = "</script><script>alert(1)</script><!-- <img src=x onerror=alert(1)> \u2028 {{data}} {{script}}"


def unpacked(text: str) -> Any:
    """A value as the page holds it."""
    return json.loads(gzip.decompress(base64.b64decode(text)))


def data_of(text: str) -> Any:
    """The data of a page, from its text."""
    match = re.search(r'<script type="text/plain" id="data">([A-Za-z0-9+/=]*)</script>', text)
    assert match
    return unpacked(match[1])


def script_of(text: str) -> str:
    """The script of a page, from its text."""
    return re.findall(r'<script type="module">(.*?)</script>', text, re.DOTALL)[0]


def example(name: str) -> pa.Table:
    """Rows of a table that fit its declaration, of the instrument and the site that the run has."""
    rows = examples.example(TABLES[name], np.random.default_rng(sum(name.encode())), 6)
    for key, value in ({"instrument": "joint"} | PLACE).items():
        if key in rows.column_names:
            field = rows.schema.field(key)
            rows = rows.set_column(rows.schema.get_field_index(key), field, pa.array([value] * len(rows)))
    return rows


def fates(edge: str, instrument: str, rule: str, persist: int, live: int = 128) -> dict[str, Any]:
    """A row of the table `edges`."""
    parent, child = edge.split("->")
    row = dict.fromkeys(TABLES["edges"].schema.names) | PLACE
    counts = {"persist": persist, "disappear": live - persist, "emerge": live - persist + 2}
    ends = {f"{name}_{end}": count + step for name, count in counts.items() for end, step in (("low", -3), ("high", 3))}
    row |= {"instrument": instrument, "edge": edge, "rule": rule, "parent": parent, "child": child, "tokens": 8000}
    row |= {"threshold": 0.5, "parent_live": live, "child_live": live, "parent_features": live, "child_features": live}
    row |= {"one_to_one": persist // 2, "ceiling": 0.9, "floor": 0.0, "relative": persist / live / 0.9, "level": 0.95}
    return row | counts | ends | {"one_dictionary": False}


def judged(edge: str, instrument: str, end: str, kept: int, lost: int) -> dict[str, Any]:
    """A row of the table `verdicts`."""
    row = dict.fromkeys(TABLES["verdicts"].schema.names) | PLACE
    row |= {"instrument": instrument, "edge": edge, "text": "common", "corpora": "words, code", "end": end}
    row |= {"live": 128, "stable": 100, "undecided": 2}
    row |= {"kept": kept, "changed": 98 - kept - lost, "lost": lost, "pairs": 90, "agreement": 0.9, "tokens": 8000}
    for name, count in (("kept", kept), ("lost", lost)):
        ends = {f"{name}_share_low": max(0.0, count / 100 - 0.02), f"{name}_share_high": count / 100 + 0.02}
        row |= {f"{name}_share": count / 100, **ends}
    return row


def lineage() -> dict[str, pa.Table]:
    """Tables of four models that fit each other."""
    edges = ("base->sums", "base->stories", "sums->both", "stories->both")
    rows: dict[str, list[dict[str, Any]]] = {"edges": [], "best_r": [], "flow": [], "flow_links": [], "reach": []}
    rows |= {"verdicts": [], "references": [], "changed_most": []}
    for instrument in ("joint", "independent"):
        key = {"instrument": instrument, **PLACE}
        for place, edge in enumerate(edges):
            rows["edges"] += [fates(edge, instrument, rule, 90 - 9 * place) for rule in ("evidence", "paper")]
            rows["verdicts"] += [judged(edge, instrument, end, 80, 5 + place) for end in ("parent", "child")]
            known = {"reference": "codebook", "stable": 50, "kept": 45, "changed": 5, "lost": 0, "undecided": 0}
            known |= {"kept_difference": -0.1, "kept_difference_low": -0.2, "kept_difference_high": 0.0}
            rows["references"].append({**key, "edge": edge, "text": "common", **known})
            most = {"verdict": "changed", "transmission": 2.0, "strength": 2.1, "match_r": 0.9, "map_r": 0.8}
            ranks = [{"end": "parent", "rank": rank, "feature": 7 * rank, **most} for rank in (1, 2, 3)]
            rows["changed_most"] += [{**key, "edge": edge, "text": "common", **row} for row in ranks]
            for end in ("parent", "child", "floor"):
                bins = [{"end": end, "r": round(0.02 * step, 2), "features": 128 / 50} for step in range(50)]
                rows["best_r"] += [{**key, "edge": edge, **row} for row in bins]
        flow = {"from_base": 80, "emerged_in_sums": 10, "emerged_in_stories": 20, "emerged_in_both": 4, "novel": 14}
        paper = {"from_base": 50, "emerged_in_sums": 5, "emerged_in_stories": 10, "emerged_in_both": 2, "novel": 61}
        for rule, counts in (("evidence", flow), ("paper", paper)):
            one = {**key, "rule": rule, "model": "both", "live": 128}
            rows["flow"] += [{**one, "origin": origin, "features": n} for origin, n in counts.items()]
        for parent in ("sums", "stories"):
            for origin, n, shared in (("base", 60, 20), (parent, 10, 0), ("both", 4, 4)):
                link = {**key, "source": parent, "model": "both", "origin": origin}
                rows["flow_links"].append({**link, "rule": "evidence", "features": n, "shared": shared})
                rows["flow_links"].append({**link, "rule": "paper", "features": n // 2, "shared": shared // 2})
        for name, count, into in (
            ("sums", 70, "both 70"),
            ("stories", 70, "both 70"),
            ("base", 100, "sums 90, stories 81"),
        ):
            own = {**key, "model": name, "live": 128, "total": 128, "children": into}
            rows["reach"] += [
                {**own, "rule": rule, "features": n} for rule, n in (("evidence", count), ("paper", count // 2))
            ]
    models = [("base", "train", ""), *((name, "finetune", "base") for name in ("sums", "stories"))]
    rows["models"] = [
        {"model": name, "kind": kind, "parents": parents, "parameters": 10_000, "tokens": 20_000}
        for name, kind, parents in [*models, ("both", "merge", "sums, stories")]
    ]
    return {name: TABLES[name].check(part) for name, part in rows.items()}


def features(folder: Path, text: str = " =") -> Artifact:
    """An artifact of the kind `features`: one card and one case."""
    folder.mkdir(parents=True)
    members = [("base", 1, None, None), ("sums", 2, 0.9, "base"), ("both", 3, 0.4, "sums")]
    family = [
        {"model": model, "feature": index, "r": r, "via": via, "density": 0.01, "max": 2.0}
        for model, index, r, via in members
    ]
    context = {"corpus": "code", "tokens": ["x", text, "1"], "position": 1}
    shown = context | {"values": {model: [0.0, 1.5, 0.2] for model, *_ in members}}
    pushed = [{"token": " y", "weight": 0.3}]
    card = {"firings": 40, "tokens": [{"token": text, "share": 0.9, "firings": 36, "mean": 0.7, "fired": 0.8}]}
    card |= {"histogram": [30, 8, 0, 2], "promoted": pushed, "suppressed": pushed, "no_logits": ""}
    card["weaker"] = [{"low": 0.5, "high": 1.0, "contexts": [context | {"values": [0.0, 0.7, 0.0]}]}]
    row = {"list": "most persistent", "model": "base", "feature": 1, "density": 0.01, "max": 2.0, "family": family}
    fit = {"feature": 1, "llr": 3.1, "llr_counted": 2.9, "sensitivity": 0.8, "elsewhere": 0.4, "hits": 20}
    case = {"hypothesis": {"kind": "tokens", "value": [text]}, "tokens": [text], "not_in_vocabulary": []}
    case |= {"set_size": 1, "base_rate": 0.02, "verdict": "persists", "mean_r": 0.7, "misses": []}
    case["models"] = {"base": fit | {"model": "base", "r": None, "via": None, "status": "start"}}
    case["best"] = {"base": fit | {"r": 1.0}, "sums": None}
    (folder / "features.json").write_text(json.dumps([row | {"contexts": [shown], "card": card}]))
    (folder / "cases.json").write_text(json.dumps({"assignment": case}))
    (folder / "manifest.json").write_text(
        json.dumps({"key": "0" * 64, "seconds": 1.5, "peak_memory_gib": 0.5, "versions": {"numpy": "2"}})
    )
    return Artifact(folder, "0" * 64)


def columns(text: str = " =") -> dict[str, Any]:
    """Columns of eight features of each model of the lineage, all alike: r from 0.2 to 0.9 along every edge."""
    size, edges = 8, ("base->sums", "base->stories", "sums->both", "stories->both")
    model = {"counted": 8000, "firings": [40 * one for one in range(size)], "max": [0.5 * one for one in range(size)]}
    model |= {"class": [0] * size, "domain": [0, -1] * 4, "top": [0, 1, -1] * size, "share": [90, 10, 0] * size}
    model |= {"text": [text, *[None] * 7], "score": [86, *[None] * 7]}
    r = [2000 + 1000 * one for one in range(size)]
    figures = {name: [90] * size for name in ("stability", "direction", "map_r", "transmission", "strength")}
    figures |= {"match_r": [80] * size, "reason": [1] * size}
    end = {"r": r, "match": list(range(size)), "verdict": [1, 1, 1, 1, 2, 2, 3, 4], **figures}
    made = [dict(zip(("parent", "child"), edge.split("->"), strict=True)) | {"edge": edge} for edge in edges]
    places = [{**one, "threshold": 0.5, "ends": {"parent": end, "child": end}} for one in made]
    chain = {"r": r, "own": [0, 0, 0, 0, 1, 1, 1, 1]}
    audit = {"corpus": "code", "tokens": ["x", text, "1"], "position": 1, "values": [0, 1.5, 0], "predicted": [0, 1, 0]}
    said = {"folder": "m", "by": "m", "description": text, "failure": "", "carried": False, "re_explained": False}
    said |= {"origin_model": "base", "origin_feature": 1, "simulation": 0.4, "detection": None, "fuzzing": None}
    said |= {"intruder": None, "cost": 0.004}
    return {
        "tokens": [text, "y"],
        "classes": ["punctuation"],
        "domains": ["code"],
        "verdicts": ["", "kept", "changed", "lost", "unstable"],
        "reasons": ["", "match r {match_r}, r {r}, strength {strength}, and no {other}"],
        "unit": 10_000,
        "models": dict.fromkeys(("base", "sums", "stories", "both"), model),
        "edges": places,
        "chains": {"both": {"sums": chain, "stories": chain}},
        "audits": {"base/1": [audit]},
        "said": {"base/1": [said]},
    }


def all_columns(text: str = " =") -> dict[str, Any]:
    """Columns of every place of the run."""
    return {name: {PLACE["site"]: columns(text)} for name in ("joint", "independent")}


def run_of(folder: Path, text: str = " =", whole: bool = True) -> Any:
    """A run as media see it; whole: with example rows of all other tables."""
    values = study_values(folder / "text", sae={"instruments": ["joint", "independent"]}, case={})
    study = Study.of(values, "small", folder)
    made = lineage()
    tables = {name: made.get(name, example(name)) for name in TABLES if name in made or whole}
    small = {name: rows for name, rows in tables.items() if not TABLES[name].large}
    rows = {name: made[name].to_pylist() for name in made}
    return SimpleNamespace(
        name=study.name,
        folder=folder,
        study=study,
        artifacts={"features/joint": features(folder / "features" / "joint", text)},
        pipeline=SimpleNamespace(items={"features/joint": (FEATURES, {"instrument": "joint", **PLACE}, 0)}),
        missing=[],
        find=lambda need: None,
        tables=small,
        table=tables.__getitem__,
        statements=statements_of(rows),
        seconds=12.5,
        peak_memory_gib=0.5,
    )
