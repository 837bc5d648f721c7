"""Every rule compared with planted truth, in a small form; `heredity validate` runs the large one."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from heredity.cli import app
from heredity.synthetic import validation
from heredity.synthetic.saes import Training
from heredity.synthetic.validation import TABLES, Condition, prove
from heredity.synthetic.world import WorldConfig

SMALL = Condition("small", WorldConfig(d=40, kept=30, rotated=10, lost=40, new=40, l0=4), Training(k=5, expansion=5))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Batches this small gain nothing from a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def results() -> dict[str, list[dict[str, Any]]]:
    """One world with two inits, and error rates of two worlds."""
    return prove([SMALL], ["joint", "parent"], 1, 2, tokens=20_000)


def by_key(rows: list[dict[str, Any]], **key: str) -> dict[str, Any]:
    (row,) = [row for row in rows if all(row[name] == value for name, value in key.items())]
    return row


@pytest.mark.parametrize("init", ["joint", "parent"])
def test_the_default_rule_distinguishes_kept_from_lost_in_a_well_trained_world(results, init):
    best = by_key(results["planted_rules"], init=init, rule="evidence")
    assert best["kept"] >= 0.98 and best["rotated"] >= 0.9
    assert best["lost"] <= 0.02 and best["precision"] >= 0.98
    world = by_key(results["planted_worlds"], init=init)
    assert world["recovered"] > 0.9 and world["reliability"] > 0.8
    assert by_key(results["planted_rules"], init=init, rule="r > 0.8")["recall"] <= best["recall"]


@pytest.mark.parametrize("init", ["joint", "parent"])
def test_emerged_features_are_the_new_ones_and_scaling_confirms_them(results, init):
    new = by_key(results["planted_emerged"], init=init, fate="new")
    assert new["emerged"] >= 0.98 and new["confirmed"] >= 0.95
    assert by_key(results["planted_emerged"], init=init, fate="kept")["emerged"] <= 0.02


def test_directions_of_continued_saes_cling_to_lost_features(results):
    evidence, cosine = (
        by_key(results["planted_rules"], init="parent", rule=rule) for rule in ("evidence", "decoder cosine")
    )
    assert cosine["precision"] < evidence["precision"]
    joint = {row["rule"] for row in results["planted_rules"] if row["init"] == "joint"}
    assert "decoder cosine" not in joint, "one SAE has one decoder"


def test_error_rates_hold_roughly_even_over_two_worlds(results):
    measured = {row["rate"]: row["measured"] for row in results["planted_rates"]}
    assert measured["false discovery rate"] < 0.15 and measured["power"] > 0.8
    assert measured["coverage of r"] > 0.9 and measured["coverage of counts"] > 0.6


def test_means_skip_what_a_world_does_not_have(results):
    world = {"condition": "other", "init": "joint", "seed": 0}
    rules = [
        world | row for row in ({"rule": rule, "precision": None, "recall": 0.5} for rule in ("evidence", "r > 0.8"))
    ]
    fates = dict.fromkeys(("kept", "rotated", "faint", "noisy", "split", "merged", "lost"))
    other = {
        "planted_worlds": [world | {"explained_variance": 0.5, "reliability": None}],
        "planted_rules": [row | fates for row in rules],
        "planted_emerged": [],
    }
    means = validation.means({name: results[name] + rows for name, rows in other.items()})
    both = by_key(means["planted_rule_means"], init="joint", rule="evidence")
    alone = by_key(results["planted_rules"], init="joint", rule="evidence")
    assert both["precision"] == alone["precision"] and both["kept"] == alone["kept"] and both["faint"] is None
    assert both["recall"] == (0.5 + alone["recall"]) / 2
    row = by_key(means["planted_world_means"], condition="other")
    assert row["explained_variance"] == 0.5 and row["reliability"] is None and row["new_emerged"] is None


def test_tables_are_flat_json_with_one_set_of_columns_each(results):
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    for name, rows in results.items():
        assert rows and len({tuple(row) for row in rows}) == 1, name
        assert all(value is None or isinstance(value, str | int | float) for row in rows for value in row.values())
    assert {table.name for table in TABLES} == results.keys()
    for table in TABLES:
        checked = table.check(results[table.name])
        assert len(checked) == len(results[table.name]) and set(table.brief) <= set(checked.column_names)


def test_the_command_writes_what_it_prints_and_answers_to_its_old_name(results, monkeypatch, tmp_path):
    monkeypatch.setattr(validation, "prove", lambda *_, **__: results)
    for command in ("validate", "plant"):
        run = CliRunner().invoke(app, [command, "--only", "rules", "--json", "-o", str(tmp_path / "out.json")])
        assert run.exit_code == 0
        assert json.loads(run.stdout) == results == json.loads((tmp_path / "out.json").read_text())
        assert ("is now called `heredity validate`" in run.stderr) == (command == "plant")
