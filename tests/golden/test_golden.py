"""Numbers of stored inputs, held fast: every processor agrees, and no number moves without its analysis's version.

To move numbers on purpose, raise the version of their analysis and run HEREDITY_UPDATE_GOLDEN=1 pytest tests/golden.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import artifacts
from artifacts import table_of
from heredity.analyses import BY_KIND, TABLES, classes, explain, flow, match
from heredity.analyses.features import MISSES, _case_rows, _verdict_row
from heredity.analyses.flow import FlowSettings
from heredity.analyses.hypotheses import case_of
from heredity.analyses.sample import Sample
from heredity.features.correlate import correlate
from heredity.features.null import floor
from heredity.stitch.affine import MapQuality, Moments, stitch_quality
from heredity.stitch.fit import fit
from heredity.study import CaseConfig, ExplainConfig
from heredity.synthetic import validation
from heredity.synthetic.saes import judge, noisy_code, noisy_codes
from heredity.synthetic.world import World, WorldConfig

from golden import inputs  # isort: skip - a folder of the tests

UPDATE = bool(os.environ.get("HEREDITY_UPDATE_GOLDEN"))
SMALL = 1e-9  # differences below it are rounding

Columns = dict[str, list[Any]]
"""A table: values by column."""
Numbers = dict[str, dict[str, Columns]]
"""Tables by kind of analysis and name."""


def check(path: Path, numbers: Numbers, update: bool = UPDATE) -> None:
    """Compare with a golden file; where numbers moved and their version did too, an update writes it anew."""
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"versions": {}, "tables": {}}
    versions = {kind: BY_KIND[kind].version if kind in BY_KIND else 1 for kind in numbers}
    moved = {kind: list(differences(kept["tables"].get(kind, {}), tables)) for kind, tables in numbers.items()}
    for kind, lines in moved.items():
        if lines and kind in kept["versions"] and kept["versions"][kind] == versions[kind]:
            pytest.fail(
                f"numbers moved: bump the version of {kind} in its analysis and run HEREDITY_UPDATE_GOLDEN=1 pytest "
                "tests/golden\n" + "\n".join(lines[:10])
            )
    if update:
        path.write_text(json.dumps({"versions": versions, "tables": numbers}, separators=(",", ":")) + "\n")
    elif kept["versions"] != versions or any(moved.values()):
        pytest.fail(
            f"{path.name} is of versions {kept['versions']}, the code of {versions}: run HEREDITY_UPDATE_GOLDEN=1 "
            "pytest tests/golden"
        )


def differences(kept: Mapping[str, Columns], now: Mapping[str, Columns]) -> Iterator[str]:
    """One line per value that differs: counts and text exactly, floats by more than 1e-6 of them."""
    for table in sorted({*kept, *now}):
        before, after = kept.get(table, {}), now.get(table, {})
        if list(before) != list(after):
            yield f"{table}: columns {list(before)} are now {list(after)}"
            continue
        for column, values in after.items():
            if len(values) != len(before[column]):
                yield f"{table}: {len(before[column])} rows are now {len(values)}"
                break
            for row, (old, new) in enumerate(zip(before[column], values, strict=True)):
                close = isinstance(old, float) and isinstance(new, float)
                if not (math.isclose(old, new, rel_tol=1e-6, abs_tol=SMALL) if close else old == new):
                    yield f"{table}, row {row}: {column} {old!r} is now {new!r}"


def columns(rows: pa.Table | list[dict[str, Any]]) -> Columns:
    """Rows as columns without those of the item and without rules as JSON; floats to 8 digits, null for nan."""
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows)
    left_out = ("instrument", "site", *(["rule"] if "inherited_simulation" in table.column_names else []))
    return {name: [_short(value) for value in own] for name, own in table.to_pydict().items() if name not in left_out}


def _short(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return float(f"{value:.8g}") if math.isfinite(value) else None


def made(analysis: Any, inputs: Mapping[str, Any], settings: Any, folder: Path) -> dict[str, Columns]:
    rows = analysis.run(artifacts.work_of(folder, inputs), settings)
    return {one.name: columns(one.check(rows[one.name], **artifacts.SITE)) for one in analysis.tables}


def test_a_lineage(tmp_path):
    given = inputs.lineage(tmp_path)
    sample = Sample(given, inputs.SAMPLE)
    incoming = FlowSettings({"both": ((), inputs.EDGES)})
    explaining = explain.ExplainSettings(inputs.SAMPLE, ExplainConfig(features=12), 3, 100, 0.95, ("both",))
    cases = {
        name: case_of(tmp_path, sample, case)[0]
        for name, case in {
            "sums": CaseConfig(tokens=("=", " =", "none")),
            "digits": CaseConfig(regex=" ?[0-9]+"),
        }.items()
    }
    rows = {
        "cases": [row for name, case in cases.items() for row in _case_rows(name, case)],
        "case_verdicts": [_verdict_row(name, case) for name, case in cases.items()],
        "case_pairs": [{"case": name, **pair} for name, case in cases.items() for pair in case["pairs"]],
        "case_misses": [
            {"case": name, **{key: miss[key] for key in MISSES.schema.names if key in miss}}
            for name, case in cases.items() for miss in case["misses"]
        ],
    }  # fmt: skip
    edges = {
        one.name: columns(pa.concat_tables([table_of(given["match"][edge.name], one.name) for edge in inputs.EDGES]))
        for one in match.TABLES
    }
    numbers: Numbers = {
        "match": edges,
        "flow": made(flow.ANALYSIS, given, incoming, tmp_path / "flow"),
        "features": {name: columns(TABLES[name].check(own, **artifacts.SITE)) for name, own in rows.items()},
        "classes": made(classes.ANALYSIS, given, classes.ClassesSettings(inputs.SAMPLE, 0.95), tmp_path / "classes"),
        "explain": made(explain.ANALYSIS, given, explaining, tmp_path / "explain"),
    }
    check(inputs.FOLDER / "lineage.json", numbers)


def test_maps_between_two_models():
    fitting, tuning, judging = (
        Moments.load(inputs.FOLDER / f"stitch-{part}.safetensors") for part in ("fit", "tune", "judge")
    )
    fits, maps = [], []
    for method in ("ridge", "joint", "procrustes"):
        result = fit(fitting, method, 1.0, held_out=tuning)
        quality = stitch_quality(result.stitch, judging, 1.0)
        up, down = result.ridge
        fits.append(
            {"method": method, "ridge_up": up, "ridge_down": down, "loss": quality.loss, "tokens": quality.tokens}
        )
        for name in ("up", "down", "there_and_back", "back_and_there"):
            own: MapQuality = getattr(quality, name)
            row = {
                "method": method,
                "map": name,
                "r2": own.r2,
                "mse": own.mse,
                "worst_r2": float(np.min(own.r2_by_dim)),
            }
            weight = getattr(result.stitch, name, None)
            norm = None if weight is None else float(weight.weight.double().norm())
            maps.append(row | {"norm": norm})
    check(inputs.FOLDER / "stitch.json", {"stitch": {"fits": columns(fits), "maps": columns(maps)}})


def test_planted_truth():
    world = World(WorldConfig(kept=40, rotated=10, lost=40, new=40, noisy=10, faint=10, l0=6, document=24), 3)
    parent, child, sample = noisy_codes(world, 6_000, 4, reliability=0.85, miss=0.1, false_fire=0.1)
    control = noisy_code(sample.parent, np.random.default_rng(5), 0.85, 0.1, 0.1)
    matches, again = (correlate(parent.acts, other.acts, 1) for other in (child, control))
    same: Any = (None, None)  # rules on directions are left out
    rules = []
    called = validation.calls(matches, floor(parent.acts, child.acts, 2, 0), again.parent_r[:, 0], same)
    for rule, (call, threshold) in called.items():
        judgment = judge(call, world.parent.fate[parent.feature])
        row = {"rule": rule, "threshold": threshold, "precision": judgment.precision, "recall": judgment.recall}
        rules.append(row | {"called": int(call.sum())} | judgment.called)
    check(inputs.FOLDER / "planted.json", {"match": {"rules": columns(rules), "rates": columns(validation.rates(1))}})


# -- what the check itself does --------------------------------------------------------------------------------------


def numbers(count: int = 3, share: float = 0.5) -> Numbers:
    return {"match": {"edges": {"edge": ["a->b"], "persist": [count], "share": [share]}}}


def test_numbers_that_moved_are_refused_until_their_version_is_raised(tmp_path, monkeypatch):
    path = tmp_path / "g.json"
    with pytest.raises(pytest.fail.Exception, match="run HEREDITY_UPDATE_GOLDEN=1"):
        check(path, numbers(), update=False)
    check(path, numbers(), update=True)
    check(path, numbers(share=0.5 * (1 + 1e-8)), update=False)
    for moved in (numbers(count=4), numbers(share=0.50001), {"match": {"edges": {"edge": ["a->b"], "persist": [3]}}}):
        for update in (False, True):
            with pytest.raises(pytest.fail.Exception, match="numbers moved: bump the version of match in its analysis"):
                check(path, moved, update)
    monkeypatch.setitem(BY_KIND, "match", BY_KIND["match"]._replace(version=99))
    with pytest.raises(pytest.fail.Exception, match="the code of .*99.*: run HEREDITY_UPDATE_GOLDEN=1"):
        check(path, numbers(), update=False)
    check(path, numbers(count=4), update=True)
    check(path, numbers(count=4), update=False)
    assert json.loads(path.read_text())["versions"] == {"match": 99}
