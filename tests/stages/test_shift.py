"""What other data and other weights do to the features of an edge, told apart by SAEs continued in two steps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

import tiny
from heredity.cli import app
from heredity.engine.stage import Stage, run
from heredity.engine.store import Store
from heredity.report.edge import ShiftSummary
from heredity.report.summary import Summary
from heredity.sae.formats import read_sae
from heredity.stages import stages_of
from heredity.stages.models import seed_of
from heredity.stages.plan import plan
from heredity.stages.shift import Turns, summarized, turns
from heredity.study import load_study

INITS = ('sae.init="joint"', 'sae.init="parent"', 'sae.init="independent"', 'sae.init=["joint", "parent"]')
STEPS = ("data", "data-then-model", "model", "model-then-data")


def keys(stages: list[Stage]) -> dict[str, str]:
    return {stage.label: stage.key for stage in stages}


def added(*overrides: str) -> set[str]:
    """Labels of the built-in study's stages that `shifts` adds."""
    plain = keys(stages_of(load_study("demo", overrides)))
    with_shifts = keys(stages_of(load_study("demo", [*overrides, "controls.shifts=true"])))
    assert {label: with_shifts[label] for label in plain} == plain, "what is there already must not be made anew"
    return set(with_shifts) - set(plain)


@pytest.mark.parametrize("init", INITS)
def test_an_edge_to_a_trained_child_gets_four_saes_and_a_merge_gets_none(init):
    expected = {f"sae/base-to-{child}-shift-{step}" for child in ("cpp", "stories") for step in STEPS}
    expected |= {"shift/base-to-cpp", "shift/base-to-stories"}
    assert {label for label in added(init) if "shift" in label} == expected


def test_the_sae_to_start_from_and_the_noise_are_made_only_where_the_study_has_none():
    def others(*overrides: str) -> set[str]:
        return {label for label in added(*overrides) if "shift" not in label}

    assert others('sae.init="joint"', "controls.seeds=2") == {"sae/base-scratch", "sae/base-control1-from-base"}
    assert others('sae.init="independent"', "controls.seeds=2") == {"sae/base-control1-from-base"}
    assert others('sae.init=["joint", "parent"]', "controls.seeds=2") == set()
    assert others('sae.init="joint"', "controls.seeds=1") == {"sae/base-scratch"}


def test_without_shifts_the_recipes_hold_nothing_of_them():
    study = load_study("demo", ['sae.init="parent"', "controls.seeds=2"])
    stages = {stage.label: stage for stage in stages_of(study)}
    sae = stages["sae/cpp-parent"]
    assert set(sae.config) == {"hook_point", "precision", "sae", "seed", "model"} and sae.config["model"] == "cpp"
    assert sae.config["seed"] == seed_of(study, "sae", "cpp-parent")
    assert list(sae.inputs) == ["model", "tokens:english", "tokens:python", "tokens:cpp", "source"]
    assert "shifts" not in stages["match/base-to-cpp-parent"].config["controls"]


def test_each_step_changes_one_thing():
    stages = {stage.label: stage for stage in stages_of(load_study("demo", ["controls.shifts=true"]))}

    def recipe(step: str) -> tuple[str, str, set[str]]:
        inputs = stages[f"sae/base-to-cpp-shift-{step}"].inputs
        corpora = {role.removeprefix("tokens:") for role in inputs if role.startswith("tokens:")}
        return inputs["model"].name, inputs["source"].name, corpora

    old = {"english", "python"}
    assert recipe("data") == ("base", "base-scratch", old | {"cpp"})
    assert recipe("data-then-model") == ("cpp", "base-to-cpp-shift-data", old | {"cpp"})
    assert recipe("model") == ("cpp", "base-scratch", old)
    assert recipe("model-then-data") == ("cpp", "base-to-cpp-shift-model", old | {"cpp"})


def test_shares_that_persist_are_of_live_features():
    angles = np.arange(5.0)
    found = Turns(*[angles] * 6, None, None)
    best = {"data": np.array([0.95, 0.7, np.nan, 0.81, 0.99]), "both": np.zeros(5)}
    summary = summarized(found, np.arange(5) < 4, best, threshold=0.6, vectors=100)
    assert summary.persist["data"].share == 0.75 and summary.persist["data"].paper == 0.5
    assert summary.persist["both"].share == 0 and summary.features == 4 and summary.noise is None
    empty = summarized(found, np.zeros(5, bool), best, 0.5, 10)
    assert empty.features == 0 and empty.data_first.data.median is None and empty.persist["data"].share is None


def test_counts_that_do_not_add_up_are_refused():
    summary = summarized(Turns(*[np.ones(1)] * 6, None, None), np.array([True]), {}, 0.5, 10)
    with pytest.raises(ValueError, match="by_model=3, by_data=0 and by_neither=1 do not add up to features=1"):
        ShiftSummary(**{**summary.model_dump(), "by_model": 3})


# -- real ones -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    """A study of one edge with shifts, run; and beside it the study `twin.toml`, whose child keeps the weights."""
    folder = tmp_path_factory.mktemp("shift")
    controls = {"shifts": True, "passes": 1, "resamples": 100, "newness": 0}
    values = tiny.study_values(folder, controls=controls, lineage={"tokens": 3_000}, case={})
    values["sae"] |= {"tokens": 6_000, "continue_tokens": 4_000, "evaluation_tokens": 500}
    values |= {"report": {"tokens": 1_000, "features": 1, "contexts": 1}, "evaluation": {"tokens": 500}}
    values["model"] = {name: values["model"][name] for name in ("base", "sums")}
    values["model"]["base"]["train"]["tokens"] = values["model"]["sums"]["tokens"] = 6_000
    del values["corpus"]["stories"]
    path = tiny.toml(values, folder / "s.toml")
    result = CliRunner().invoke(app, ["run", str(path), "--runs", str(folder / "runs")])
    assert result.exit_code == 0, (result.output, result.exception)
    values["model"]["twin"] = {**values["model"].pop("sums"), "lr": 1e-30}
    tiny.toml(values, folder / "twin.toml")
    return folder


def test_the_summary_tells_data_from_weights(done):
    edge = Summary.model_validate_json((done / "runs/s/summary.json").read_text()).edges["base->sums"]
    shift = edge.shift
    assert shift is not None and shift.features > 20 and shift.threshold == edge.threshold
    for order in (shift.data_first, shift.model_first):
        for angles in (order.data, order.model, order.total):
            assert angles.median is not None and 0 < angles.lower <= angles.median <= angles.upper < 180
    assert shift.noise is not None and shift.weights is not None and shift.weights.median > 0
    assert set(shift.persist) == {"noise", "data", "model", "both"}
    assert all(0 <= row.paper <= 1 for row in shift.persist.values())
    assert shift.vectors >= 4_000


def test_the_table_has_a_row_a_feature_and_agrees_with_the_summary(done):
    (folder,) = (done / "runs/s/shift").glob("base-to-sums-*")
    table, summary = (
        pq.read_table(folder / "shift.parquet"),
        ShiftSummary(**json.loads((folder / "shift.json").read_text())),
    )
    columns = {name: table[name].to_numpy() for name in table.column_names}
    live = columns["live"]
    assert len(live) == 4 * 32 and live.sum() == summary.features
    data, model = (
        (columns[f"data_first_{cause}"] + columns[f"model_first_{cause}"])[live] / 2 for cause in ("data", "model")
    )
    beyond = np.maximum(data, model) > np.quantile(columns["noise"][live], 0.95)
    assert (beyond & (model > data + 1e-9)).sum() == summary.by_model
    assert np.median(columns["noise"][live]) == summary.noise.median
    assert (columns["data_r"][live] > 0.8).mean() == summary.persist["data"].paper
    silent = ~live & (columns["noise"] == 0)
    assert not np.isnan(columns["data_r"][live]).all() and np.isnan(columns["data_r"][silent]).all()


def test_equal_weights_do_not_turn_a_feature_beyond_the_noise(done):
    study = load_study(str(done / "twin.toml"))
    stages = stages_of(study)
    wanted = {f"sae/base-to-twin-shift-{step}" for step in STEPS} | {"sae/base-control1-from-base", "sae/base-scratch"}
    for stage in reversed(stages):
        if stage.label in wanted:
            wanted |= {source.label for source in stage.inputs.values()}
    found = run([stage for stage in stages if stage.label in wanted], Store(done / "runs/s"))

    def decoder(name: str) -> torch.Tensor:
        return read_sae(found[f"sae/{name}"] / "sae")[0].W_dec

    steps = {step.replace("-then-", "_"): decoder(f"base-to-twin-shift-{step}") for step in STEPS}
    turn = turns(steps | {"source": decoder("base-scratch"), "control": decoder("base-control1-from-base")})
    assert (turn.weights == 0).all(), "the same weights, tokens and order: the same SAE"
    assert (turn.model_first_model == turn.noise).all() and turn.noise.max() > 1
    assert (turn.model_first_data > 0).any() and (turn.data_first_data != turn.noise).any()


def test_the_plan_counts_the_four_saes_and_the_shift(done):
    study = load_study(str(done / "s.toml"))
    rows = {row.stage: row for row in plan(study, Store(done / "empty")).stages}
    assert {rows[f"sae/base-to-sums-shift-{step}"].tokens for step in STEPS} == {4_000}
    assert rows["shift/base-to-sums"].tokens == 2 * study.config.lineage.tokens
    assert rows["shift/base-to-sums"].flops > rows["match/base-to-sums-joint"].flops
