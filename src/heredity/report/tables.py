"""Flat tables of a study for export; a number that is not known is null, in every format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from heredity.features.fates import STRATA
from heredity.report.summary import EdgeSummary, MergeSummary, ModelSummary, SAESummary
from heredity.report.view import TensorRow
from heredity.study import Init

_FATES = ("persist", "disappear", "emerge", "one_to_one")
_INTERVALS = ("persist", "disappear", "emerge", "ceiling", "relative")
_ABOVE = ("parent_above", "child_above")
_FURTHER = ("chance_rate", "chance_threshold", "chance_expected", "corrected_median", "corrected_raw_median")


def matches(edge: str, end: str, match: np.ndarray, r: np.ndarray) -> pa.Table:
    """One row for each feature and rank: edge, end, feature, rank (1 is the best), match, r.

    end: `parent` or `child`, whose features the rows are. match, r [features, top]: best first; -1 and nan where a
    feature has no match, which makes no row.
    Raises ValueError when the shapes differ.
    """
    if match.shape != r.shape:
        raise ValueError(f"match has shape {match.shape}, r {r.shape}; give one r a match")
    features, top = match.shape
    known = (match >= 0).ravel()
    rows = int(known.sum())
    return pa.table(
        {
            "edge": pa.array([edge] * rows, pa.string()),
            "end": pa.array([end] * rows, pa.string()),
            "feature": np.repeat(np.arange(features, dtype=np.int32), top)[known],
            "rank": np.tile(np.arange(1, top + 1, dtype=np.int16), features)[known],
            "match": match.ravel().astype(np.int32)[known],
            "r": _floats(r.ravel()[known]),
        }
    )


def fates(edge: str, end: str, columns: Mapping[str, np.ndarray], threshold: float) -> pa.Table:
    """One row for each feature of an end of an edge: what became of it, and how sure that is.

    columns: `density`, `best_r`, `p`, `q`, `stratum` and, where documents were many enough, `r_low`, `r_high` and
    `effective_groups`, each [features]. fate: persist or disappear (parent), inherited or emerge (child), dead.
    """
    matched, lost = ("persist", "disappear") if end == "parent" else ("inherited", "emerge")
    density, best = columns["density"], columns["best_r"]
    fate = np.where(density > 0, np.where(best > threshold, matched, lost), "dead")
    numbers = ("density", "best_r", "r_low", "r_high", "effective_groups", "p", "q")
    absent = np.full(len(best), np.nan)
    return pa.table(
        {
            "edge": pa.array([edge] * len(best), pa.string()),
            "end": pa.array([end] * len(best), pa.string()),
            "feature": np.arange(len(best), dtype=np.int32),
            "fate": pa.array(fate.tolist(), pa.string()),
            "stratum": pa.array([STRATA[label] for label in columns["stratum"]], pa.string()),
            **{name: _floats(columns.get(name, absent)) for name in numbers},
        }
    )


def features(model: str, density: np.ndarray) -> pa.Table:
    """One row for each feature: model, feature, density (share of tokens it fires on), dead. density: [d_sae]."""
    count = len(density)
    return pa.table(
        {
            "model": pa.array([model] * count, pa.string()),
            "feature": np.arange(count, dtype=np.int32),
            "density": _floats(density),
            "dead": np.asarray(density) == 0,
        }
    )


def models(rows: Mapping[str, ModelSummary]) -> pa.Table:
    """One row for each model and corpus: kind, parents, parameters, tokens, accuracy, ce_loss, unigram_accuracy."""
    schema = _schema(
        text=("model", "kind", "parents", "corpus"),
        counts=("parameters", "tokens"),
        numbers=("accuracy", "ce_loss", "unigram_accuracy"),
    )
    return _table(
        schema,
        [
            {
                "model": name,
                "kind": row.kind,
                "parents": " ".join(row.parents),
                "corpus": corpus,
                "parameters": row.parameters,
                "tokens": row.tokens,
                "accuracy": row.accuracy[corpus],
                "ce_loss": row.ce_loss.get(corpus),
                "unigram_accuracy": row.unigram_accuracy.get(corpus),
            }
            for name, row in rows.items()
            for corpus in row.accuracy
        ],
    )


def saes(rows: Mapping[str, SAESummary], init: Init) -> pa.Table:
    """One row for each SAE of an init: the fields of `SAESummary`."""
    schema = _schema(
        text=("init", "model"),
        counts=("d_in", "d_sae", "seed", "tokens"),
        numbers=("l0", "mse", "explained_variance", "ce_loss_recovered", "dead_share", "l1_coefficient"),
    )
    return _table(schema, [{"init": init, "model": name, **row.model_dump()} for name, row in rows.items()])


def edges(rows: Mapping[str, EdgeSummary], init: Init) -> pa.Table:
    """One row for each edge of an init: the fields of `EdgeSummary`, intervals as `_low` and `_high`.

    What was counted at the paper's threshold starts with `paper_`, what chance reaches with `chance_`, counts of
    corrected r with `corrected_`. Curves, rules and strata have tables of their own.
    """
    counts = ("tokens", "parent_features", "child_features", "parent_live", "child_live", *_FATES, "splits", "merges")
    within = [f"{name}_{end}" for name in _INTERVALS for end in ("low", "high")]
    schema = _schema(
        text=("init", "edge", "threshold_by"),
        counts=(*counts, *(f"paper_{name}" for name in _FATES), *(f"chance_{name}" for name in _ABOVE)),
        numbers=("threshold", "ceiling", "floor", "relative", "l0_parent", "l0_child", "level", *within),
    )
    for name in (*(f"paper_{name}" for name in ("threshold", "ceiling", "floor", "relative", *within)), *_FURTHER):
        schema = schema.append(pa.field(name, pa.float64()))
    schema = schema.append(pa.field("corrected_persist", pa.int64())).append(pa.field("one_dictionary", pa.bool_()))
    return _table(schema, [{"init": init, "edge": name, **_edge(row)} for name, row in rows.items()])


def _edge(row: EdgeSummary) -> dict[str, Any]:
    """One edge without its nests; what it does not have is None."""
    parts: list[tuple[str, Any]] = [("", row), ("paper_", row.paper), ("chance_", row.chance)]
    flat: dict[str, Any] = dict.fromkeys(f"paper_{name}" for name in (*_FATES, "threshold", "ceiling", "floor"))
    flat |= dict.fromkeys((*(f"chance_{name}" for name in _ABOVE), *_FURTHER, "paper_relative", "corrected_persist"))
    for prefix, part in (*parts, ("corrected_", row.corrected)):
        if part is not None:
            flat |= {f"{prefix}{name}": value for name, value in part}
    for prefix, part in (("", row), ("paper_", row.paper)):
        for name in _INTERVALS:
            low, high = (part.intervals if part else {}).get(name, (None, None))
            flat |= {f"{prefix}{name}_low": low, f"{prefix}{name}_high": high}
    return flat


def rules(rows: Mapping[str, EdgeSummary], init: Init) -> pa.Table:
    """One row for each edge and rule for a match: parent features that persist by it, their share of live, its flag."""
    schema = _schema(
        text=("init", "edge", "rule", "flag"), counts=("persist",), numbers=("threshold", "of_live", "of_all")
    )
    return _table(
        schema,
        [
            {
                "init": init,
                "edge": name,
                "rule": rule,
                "flag": found.flag,
                "persist": found.persist,
                "threshold": found.threshold,
                "of_live": _ratio(found.persist, row.parent_live),
                "of_all": _ratio(found.persist, row.parent_features),
            }
            for name, row in rows.items()
            for rule, found in row.rules.items()
        ],
    )


def strata(rows: Mapping[str, EdgeSummary], init: Init) -> pa.Table:
    """One row for each edge, end and stratum: the fields of `StratumSummary`."""
    schema = _schema(
        text=("init", "edge", "end", "stratum"), counts=("features", "matched"), numbers=("of_live", "of_all")
    )
    return _table(
        schema,
        [
            {"init": init, "edge": name, "end": end, "stratum": stratum, **found.model_dump()}
            for name, row in rows.items()
            for end, strata_ in row.strata.items()
            for stratum, found in strata_.items()
        ],
    )


def curves(rows: Mapping[str, EdgeSummary], init: Init) -> pa.Table:
    """One row for each edge and threshold: how many parent features persist."""
    schema = _schema(text=("init", "edge"), counts=("persist",), numbers=("threshold",))
    return _table(
        schema,
        [
            {"init": init, "edge": name, "threshold": float(threshold), "persist": count}
            for name, row in rows.items()
            for threshold, count in row.curve.items()
        ],
    )


def flows(rows: Mapping[str, Mapping[str, int]], init: Init) -> pa.Table:
    """One row for each merge and origin: how many live features."""
    schema = _schema(text=("init", "merge", "origin"), counts=("features",), numbers=())
    return _table(
        schema,
        [
            {"init": init, "merge": name, "origin": origin, "features": count}
            for name, counts in rows.items()
            for origin, count in counts.items()
        ],
    )


def merges(rows: Mapping[str, MergeSummary]) -> pa.Table:
    """One row for each merge: method, t with its interval, first, second, crossed, linear_fallback."""
    schema = _schema(
        text=("merge", "method", "first", "second"), counts=("linear_fallback",), numbers=("t", "t_low", "t_high")
    ).append(pa.field("crossed", pa.bool_()))
    return _table(
        schema,
        [
            {
                "merge": name,
                **row.model_dump(include={"method", "first", "second", "t", "crossed", "linear_fallback"}),
                **dict(zip(("t_low", "t_high"), row.interval or (None, None), strict=True)),
            }
            for name, row in rows.items()
        ],
    )


def sweeps(rows: Mapping[str, MergeSummary]) -> pa.Table:
    """One row for each merge, t and parent: accuracy on the parent's text with its interval, and cross-entropy."""
    schema = _schema(text=("merge", "on"), counts=(), numbers=("t", "accuracy", "low", "high", "ce_loss"))
    return _table(
        schema,
        [
            {
                "merge": name,
                "t": point.t,
                "on": parent,
                "accuracy": accuracy,
                **dict(zip(("low", "high"), point.interval.get(parent, (None, None)), strict=True)),
                "ce_loss": point.ce_loss.get(parent),
            }
            for name, row in rows.items()
            for point in row.sweep
            for parent, accuracy in point.accuracy.items()
        ],
    )


def cases(rows: Mapping[str, Mapping[str, Any]]) -> pa.Table:
    """One row for each case, model and role: `family` is the feature followed by matches, `best` the one that fits best
    whatever it matches (its r is that with the family's feature of the same model). rows: what `cases.json` holds."""
    fit = ("llr", "llr_counted", "sensitivity", "elsewhere", "elsewhere_mean", "base_rate")
    schema = _schema(
        text=("case", "model", "role", "via", "status", "verdict"),
        counts=("feature", "hits", "firings"),
        numbers=("r", *fit),
    ).append(pa.field("fits", pa.bool_()))
    absent: dict[str, Any] = {"via": None, "status": None}
    return _table(
        schema,
        [
            {**absent, **row, "case": name, "model": model, "role": role, "verdict": case["verdict"]}
            for name, case in rows.items()
            for role, members in (("family", case["models"]), ("best", case["best"]))
            for model, row in members.items()
            if row is not None
        ],
    )


def tensors(merge: str, rows: Sequence[TensorRow]) -> pa.Table:
    """One row for each tensor of a merge: the fields of `TensorRow`."""
    numbers = ("angle_degrees", "cosine", "norm_ratio", "norm_a", "norm_b")
    schema = _schema(text=("merge", "name", "method"), counts=(), numbers=numbers)
    return _table(schema, [{"merge": merge, **row.model_dump()} for row in rows])


def write_csv(table: pa.Table, path: Path) -> None:
    """Write a table as CSV, whole or not at all; a null is an empty cell, nan becomes one too."""
    partial = path.with_name(f".{path.name}.partial")
    pyarrow.csv.write_csv(_without_nan(table), partial)
    partial.replace(path)


def write_parquet(table: pa.Table, path: Path) -> None:
    """Write a table as Parquet (zstd), whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    pyarrow.parquet.write_table(table, partial, compression="zstd")
    partial.replace(path)


def _schema(text: Sequence[str], counts: Sequence[str], numbers: Sequence[str]) -> pa.Schema:
    typed = [(text, pa.string()), (counts, pa.int64()), (numbers, pa.float64())]
    return pa.schema([(name, kind) for names, kind in typed for name in names])


def _table(schema: pa.Schema, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows as a table of this schema; what a row has beyond it is left out."""
    return pa.Table.from_pylist([{name: row[name] for name in schema.names} for row in rows], schema=schema)


def _ratio(part: int, whole: int | None) -> float | None:
    return part / whole if whole else None


def _floats(values: np.ndarray) -> pa.Array:
    return pa.array(np.asarray(values, dtype=np.float64), from_pandas=True)  # nan becomes null


def _without_nan(table: pa.Table) -> pa.Table:
    for place, field in enumerate(table.schema):
        if pa.types.is_floating(field.type):
            values = table.column(place).to_numpy(zero_copy_only=False)
            table = table.set_column(place, field.name, pa.array(values, field.type, from_pandas=True))
    return table
