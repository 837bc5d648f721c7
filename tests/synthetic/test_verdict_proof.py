"""Verdicts against planted truth, in a small form; `heredity validate` runs the large one."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from heredity.cli import app
from heredity.engine.workers import Processes
from heredity.features.acts import FeatureActs
from heredity.features.verdicts import VERDICTS, Judged
from heredity.synthetic import verdict_proof
from heredity.synthetic.planted_edges import PLANTED, EdgeEnd
from heredity.synthetic.saes import Training
from heredity.synthetic.verdict_proof import (
    SMALL_CONDITIONS,
    TABLES,
    EdgeCondition,
    compared,
    prove_verdicts,
    proven,
    targets,
)

Row = dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Batches this small gain nothing from a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def results() -> dict[str, list[Row]]:
    """One edge with many fates, one with none."""
    return prove_verdicts(SMALL_CONDITIONS, 1, tokens=30_000)


def ends(results: dict[str, list[Row]], condition: str) -> list[Row]:
    return [row for row in results["proof_edges"] if row["condition"] == condition]


def test_listed_losses_are_true_and_most_losses_are_listed(results):
    for row in ends(results, "small flat"):
        assert row["stable"] >= 0.5 * row["live"] and row["found"] >= 15
        assert row["precision"] >= 0.9 and row["not_kept"] >= 0.97 and row["recall"] >= 0.75
        assert row["kept_kept"] >= 0.95 and abs(row["said"] - row["truth"]) <= 0.05


def test_nothing_is_lost_where_nothing_is(results):
    for row in ends(results, "small trees, nothing lost"):
        assert row["listed"] == 0 and row["kept_kept"] >= 0.98 and row["precision"] is row["recall"] is None


def test_tables_are_flat_json_that_fits_their_declarations(results):
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    assert {table.name for table in TABLES} == results.keys()
    for table in TABLES:
        assert len(table.check(results[table.name])) == len(results[table.name]) > 0


def test_the_command_writes_what_it_prints(results, monkeypatch, tmp_path):
    monkeypatch.setattr(verdict_proof, "prove_verdicts", lambda *_, **__: results)
    run = CliRunner().invoke(app, ["validate", "--only", "verdicts", "--json", "-o", str(tmp_path / "out.json")])
    assert run.exit_code == 0
    assert json.loads(run.stdout) == results == json.loads((tmp_path / "out.json").read_text())
    assert CliRunner().invoke(app, ["validate", "--only", "nothing"]).exit_code != 0


def test_an_interrupted_proof_goes_on_and_processes_change_no_number(monkeypatch, tmp_path):
    tiny = EdgeCondition("tiny", replace(SMALL_CONDITIONS[0].edge, features=60, d=24, l0=3), "choice", Training(
        tokens=4_000, k=3, expansion=3, epochs=1))  # fmt: skip
    whole, kept, done = prove_verdicts([tiny], 3, 4_000), tmp_path / "out.json.partial", []

    def cut(condition: EdgeCondition, seed: int, tokens: int) -> dict[str, list[Row]]:
        if seed == 2:
            raise KeyboardInterrupt
        done.append(seed)
        return proven(condition, seed, tokens)

    monkeypatch.setattr(verdict_proof, "proven", cut)
    with pytest.raises(KeyboardInterrupt):
        prove_verdicts([tiny], 3, 4_000, kept=kept)
    kept.write_text(kept.read_text() + '\n{"key": "cut off')
    monkeypatch.undo()
    steps: list[tuple[int, int]] = []
    with Processes(2) as shared:
        assert prove_verdicts([tiny], 3, 4_000, lambda *step: steps.append(step), shared, kept) == whole
    assert done == [0, 1] and steps == [(3, 3)] and not kept.exists()


def test_a_spare_latent_that_is_listed_counts_as_an_error():
    """Four latents: of a lost, a kept and a faint feature, and of none; all are listed, and one lost one is missed."""
    rng = np.random.default_rng(0)
    true = (rng.random((4000, 4)) < 0.1) * rng.lognormal(size=(4000, 4))
    spare = (rng.random((4000, 1)) < 0.1) * 1.0
    acts = FeatureActs.from_dense(np.concatenate([true[:, :3], spare], axis=1))
    model = EdgeEnd(np.array([PLANTED.index(name) for name in ("lost", "kept", "faint", "lost")], np.int8), np.eye(4))
    judged = Judged(np.full(4, VERDICTS.index("lost"), np.int8), np.zeros(4), 1.0)
    row, by_fate = compared([acts, acts], [judged, judged], FeatureActs.from_dense(true), model, "lost")
    assert [row[name] for name in ("listed", "true", "kept", "changed", "nothing")] == [4, 1, 1, 1, 1]
    assert row["precision"] == 0.25 and row["not_kept"] == 0.5 and row["said"] == 1 and row["truth"] == 0.5
    assert row["found"] == row["hit"] == 1, "no SAE has found the other lost feature"
    assert {each["fate"]: each["lost"] for each in by_fate} == {"lost": 1, "kept": 1, "faint": 1, "nothing": 1}


def test_targets_name_the_worst_end_and_skip_what_does_not_apply(results):
    rows = {row["target"]: row for row in targets(results["proof_edges"])}
    nowhere, precise = rows["said lost or new where nothing is"], rows["listed losses that are true"]
    assert nowhere["worst"] == 0 and nowhere["met"] and "nothing lost" in nowhere["worst_at"]
    assert "small flat" in precise["worst_at"] and precise["worst"] <= precise["mean"]
    assert "latents of a joint SAE both lost and new" not in rows, "no SAE of these edges is joint"
    assert targets([row | {"stable": 0} for row in results["proof_edges"]]) == []
