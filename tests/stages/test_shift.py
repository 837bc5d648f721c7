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
from heredity.stages.repeat import all_stages
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


def test_repeats_pair_the_orders_of_their_own_saes(tmp_path):
    values = tiny.study_values(tmp_path, repeat={"seeds": 2}, controls={"shifts": True})
    stages = {stage.label: stage for stage in all_stages(load_study(str(tiny.toml(values, tmp_path / "s.toml"))))}
    seeds = []
    for mark in ("", "~1"):
        seeds.append(stages[f"sae/base-control1-from-base{mark}"].config["seed"])
        assert stages[f"sae/base-to-sums-shift-model{mark}"].config["seed"] == seeds[-1]
        assert stages[f"shift/base-to-sums{mark}"].inputs["sae:model"].label.endswith(f"model{mark}")
    assert seeds[0] != seeds[1]


# -- figures of planted turns --------------------------------------------------------------------------------------


def turned(rows: torch.Tensor, degrees: list[float]) -> torch.Tensor:
    """Rows [m, 2] turned by an angle each."""
    angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    x, y = rows.double().T
    return torch.stack([x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()], dim=1)


def planted(data: list[float], model: list[float]) -> dict[str, torch.Tensor]:
    """Decoders whose rows turn by these angles, whichever step is first."""
    source = turned(torch.tensor([[1.0, 0.0]]).expand(len(data), 2), [10.0 * i for i in range(len(data))])
    both = turned(turned(source, data), model)
    return {
        "source": source,
        "data": turned(source, data),
        "data_model": both,
        "model": turned(source, model),
        "model_data": both,
        "control": turned(source, [2.0] * len(data)),
    }


def test_planted_turns_are_found():
    found = turns(planted(data=[4, 1, 3, 80], model=[20, 10, 5, 90]))
    np.testing.assert_allclose(found.data, [4, 1, 3, 80], atol=1e-9)
    np.testing.assert_allclose(found.model, [20, 10, 5, 90], atol=1e-9)
    for total in (found.data_first_total, found.model_first_total):
        np.testing.assert_allclose(total, [24, 11, 8, 170], atol=1e-9)
    assert found.noise is not None and found.weights is not None
    np.testing.assert_allclose(found.noise, 2, atol=1e-9)
    np.testing.assert_allclose(found.weights, [18, 8, 3, 88], atol=1e-9)


def test_every_live_feature_is_counted_once_and_dead_ones_never():
    # The third feature ties, the second is turned by the model only when that comes second, the last is dead.
    data, model = np.array([4.0, 1, 3, 9, 80]), np.array([20.0, 6, 3, 1, 90])
    found = Turns(data, model, data + model, np.array([20.0, 0, 3, 1, 90]), data, data + model, None, None)
    live = np.array([True, True, True, True, False])
    best = {"data": np.array([0.95, 0.7, np.nan, 0.81, 0.99]), "both": np.zeros(5)}
    summary = summarized(found, live, best, threshold=0.6, vectors=100)
    assert (summary.features, summary.by_model, summary.by_data, summary.by_neither) == (4, 2, 1, 1)
    assert summary.persist["data"].share == 0.75 and summary.persist["data"].paper == 0.5
    assert summary.persist["both"].share == 0
    assert summary.data_first.data.median == 3.5 and summary.data_first.model.median == 4.5
    assert summary.model_first.model.median == 2.0 and summary.noise is None


def test_what_does_not_turn_further_than_the_noise_is_neither():
    data, model = np.array([4.0, 1, 30]), np.array([9.0, 2, 3])
    noise = np.array([5.0, 5, 5])
    found = Turns(data, model, data + model, model, data, data + model, noise, None)
    summary = summarized(found, np.ones(3, bool), {}, threshold=0.5, vectors=10)
    assert (summary.by_model, summary.by_data, summary.by_neither) == (1, 1, 1)


def test_without_live_features_or_control_there_is_no_figure_rather_than_a_wrong_one():
    decoders = planted([1.0], [2.0])
    del decoders["control"]
    summary = summarized(turns(decoders), np.array([False]), {"data": np.array([np.nan])}, 0.5, 10)
    assert summary.features == summary.by_model == 0 and summary.noise is None and summary.weights is None
    assert summary.data_first.data.median is None and summary.persist["data"].share is None


def test_counts_that_do_not_add_up_and_decoders_of_other_shapes_are_refused():
    summary = summarized(turns(planted([1.0], [2.0])), np.array([True]), {}, 0.5, 10)
    with pytest.raises(ValueError, match="by_model=3, by_data=0 and by_neither=1 do not add up to features=1"):
        ShiftSummary(**{**summary.model_dump(), "by_model": 3})
    with pytest.raises(ValueError, match="equal shapes"):
        turns(planted([1.0], [2.0]) | {"data": torch.ones(2, 2)})


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
