"""What an edge says of its emerged features is what was planted: really new, turned, or missed by the parent's SAE."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

import tiny
from heredity.cli import app
from heredity.engine.store import Store
from heredity.features.collect import Reader, encoded
from heredity.features.correlate import correlate
from heredity.lm.load import mistral_config, new_model
from heredity.report.edge import NewnessSummary
from heredity.report.summary import Summary
from heredity.sae.model import SAE, new_sae
from heredity.stages import stages_of
from heredity.stages.newness import (
    Inquiry,
    inquire,
)
from heredity.stages.plan import plan
from heredity.study import ArchitectureConfig, load_study

VOCAB, D_MODEL, UNITS, LAST = 90, 24, 32, "blocks.1.mlp.hook_post"
CHANGED, MISSED, SWAPPED = (2, 5, 11), (7, 8), (20, 21)
"""Units of the child that compute something else, that the parent's SAE does not read, and that changed places."""


# -- an edge between two models whose difference is known -------------------------------------------------------------


def model(seed: int = 0) -> Any:
    shape = ArchitectureConfig(d_model=D_MODEL, d_mlp=UNITS, n_layers=2, n_heads=4)
    return new_model(mistral_config(shape, VOCAB, 64, 0), seed).eval()


def child_model() -> Any:
    """The parent, but some units of its last MLP compute something else, and two changed places."""
    made, generator = model(), torch.Generator().manual_seed(9)
    mlp = made.model.layers[1].mlp
    a, b = list(SWAPPED), list(SWAPPED[::-1])
    with torch.no_grad():
        for part in (mlp.gate_proj.weight, mlp.up_proj.weight):
            part[list(CHANGED)] = part.std() * torch.randn(len(CHANGED), D_MODEL, generator=generator)
        mlp.gate_proj.weight[a], mlp.up_proj.weight[a] = mlp.gate_proj.weight[b], mlp.up_proj.weight[b]
    return made


def units(unread: tuple[int, ...] = ()) -> SAE:
    """One feature for each unit and sign, but none for some."""
    sae = new_sae(UNITS, 2 * UNITS, "relu")
    sae.W_enc.copy_(torch.cat([torch.eye(UNITS), -torch.eye(UNITS)], dim=1))
    sae.W_dec.copy_(sae.W_enc.T)
    for unit in unread:
        sae.b_enc[[unit, unit + UNITS]] = -1e6
    return sae


def both(unit: tuple[int, ...]) -> list[int]:
    return [*unit, *(UNITS + one for one in unit)]


@pytest.fixture(scope="module")
def edge(tmp_path_factory) -> tuple[NewnessSummary, dict[str, np.ndarray]]:
    return asked(tmp_path_factory.mktemp("edge"), (model(), child_model()), LAST, units((*MISSED, *SWAPPED)), units())


def asked(
    folder: Path, models: tuple[Any, Any], hook_point: str, parent_sae: SAE, child_sae: SAE
) -> tuple[NewnessSummary, dict[str, np.ndarray]]:
    blocks = np.random.default_rng(0).integers(0, VOCAB, (150, 16))
    ends = Reader(models[0], hook_point, [parent_sae]), Reader(models[1], hook_point, [child_sae])
    (parent,), (child,) = (encoded(end, blocks) for end in ends)
    steps: list[tuple[int, int]] = []
    found = inquire(
        folder, ends, correlate(parent, child, 3), blocks, Inquiry(0.9, 4), lambda *step: steps.append(step)
    )
    assert steps == [(1, 3), (2, 3), (3, 3)]
    table = pq.read_table(folder / "newness.parquet")
    return found, {name: table[name].to_numpy() for name in table.column_names}


def test_emerged_features_are_told_apart_by_what_the_parent_has(edge):
    found, row = edge
    changed, missed, swapped = both(CHANGED), both(MISSED), both(SWAPPED)
    emerged = sorted(changed + missed + swapped)
    assert np.flatnonzero(row["emerged"]).tolist() == emerged and found.emerged.features == len(emerged)
    assert row["new"][changed].mean() > 0.8 and not row["missed"][changed].any()
    assert row["missed"][missed].all() and not row["new"][missed].any()
    np.testing.assert_allclose(row["nu"][missed], 1, atol=1e-4)
    assert row["new"][swapped].all() and row["turned"][swapped].all(), "same firing, other direction"
    np.testing.assert_allclose(row["strength"][swapped], 1, atol=0.3)
    assert found.inherited.new == 0 and found.inherited.missed == found.inherited.judged == 2 * UNITS - len(emerged)
    assert found.emerged.missed == len(missed) and found.emerged.turned >= len(swapped)
    assert (
        found.unseen.features == 0 and found.tokens == 150 * 16 and np.array_equal(row["feature"], np.arange(2 * UNITS))
    )


def test_inherited_pairs_act_alike_and_nearest_misses_do_not(edge):
    found, row = edge
    assert found.effects["inherited"].pairs == 50 and found.effects["emerged"].pairs == 14
    assert found.effects["inherited"].logits == pytest.approx(1, abs=1e-6)
    assert found.effects["inherited"].attribution > 0.8 > 0.6 > found.effects["emerged"].attribution
    assert abs(found.effects["emerged"].logits) < 0.6 and found.no_logits == ""
    assert np.isfinite(row["logit_similarity"]).sum() == 64


def test_the_emerged_features_carry_the_difference_and_others_do_not(edge):
    splice = edge[0].splice
    assert splice is not None and splice.before > 0
    assert splice.features == 10 and splice.others == 0, "missed units do not differ between the models"
    assert splice.recovered == pytest.approx(1, abs=1e-3) and splice.spliced == pytest.approx(0, abs=1e-5)
    assert splice.control is None


def test_controls_are_moved_where_there_are_others(tmp_path):
    """Two models that differ everywhere; few features emerged: the rest are called inherited by a low threshold."""
    ends = Reader(model(), LAST, [units()]), Reader(child_model(), LAST, [units()])
    with torch.no_grad():
        ends[1].model.model.layers[0].mlp.down_proj.weight.mul_(1.1)
    blocks = np.random.default_rng(0).integers(0, VOCAB, (60, 16))
    (parent,), (child,) = (encoded(end, blocks) for end in ends)
    splice = inquire(tmp_path, ends, correlate(parent, child, 3), blocks, Inquiry(0.7, 4)).splice
    assert splice is not None and 0 < splice.features <= splice.others
    assert splice.excess == pytest.approx(splice.recovered - splice.control_recovered)
    low, high = splice.intervals["excess"]
    assert 0 < low <= splice.excess <= high, "what was changed carries more than what was not"


def test_without_a_way_to_the_logits_or_a_common_vocabulary_figures_are_null(tmp_path):
    hook = "blocks.1.mlp.hook_pre"
    found, row = asked(tmp_path, (model(), child_model()), hook, units(), units())
    assert "no linear map into the residual stream" in found.no_logits and np.isnan(row["logit_similarity"]).all()
    assert found.effects["inherited"].logits is None and found.effects["inherited"].attribution is not None
    assert found.splice is not None
    shape = ArchitectureConfig(d_model=D_MODEL, d_mlp=UNITS, n_layers=2, n_heads=4)
    larger = new_model(mistral_config(shape, VOCAB + 1, 64, 0), 3).eval()
    found, row = asked(tmp_path, (model(), larger), LAST, units(), units())
    assert found.no_logits == "the parent knows 90 tokens and the child 91"
    assert found.effects == {} and found.splice is None and found.emerged.judged > 0
    assert np.isnan(row["attribution_similarity"]).all()


def test_models_that_are_alike_at_the_hook_point_have_nothing_to_move(tmp_path):
    found, _ = asked(tmp_path, (model(), model()), LAST, units(MISSED), units())
    assert found.emerged.features == found.emerged.missed == 4 and found.splice is None


# -- in a study --------------------------------------------------------------------------------------------------------


def small(folder: Path) -> dict:
    """Two models, as little work as shows a difference."""
    values = tiny.study_values(folder)
    values["model"] = {name: values["model"][name] for name in ("base", "sums")}
    values["corpus"] = {name: values["corpus"][name] for name in ("words", "code", "sums")}
    values["sae"] |= {"init": "joint", "expansion": 2, "tokens": 6_000, "evaluation_tokens": 512}
    values["lineage"] = {"tokens": 4_000}
    values["controls"] = {"newness": 3_000}
    values["report"] = {"tokens": 512, "features": 2, "contexts": 1}
    values["evaluation"], values["case"] = {"tokens": 512}, {}
    return values


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("newness")
    path = tiny.toml(small(folder), folder / "s.toml")
    result = CliRunner().invoke(app, ["run", str(path), "--runs", str(folder / "runs")])
    assert result.exit_code == 0, (result.output, result.stderr, result.exception)
    return folder


def test_every_edge_of_a_study_has_its_newness(done):
    edge = Summary.model_validate_json((done / "runs/s/summary.json").read_text()).edges["base->sums"]
    found = edge.newness
    assert found is not None and found.corpora == ("words", "code", "sums"), "the child's trace, not the common one"
    assert found.emerged.features == edge.emerge and found.inherited.features == edge.child_live - edge.emerge
    for counts in (found.emerged, found.inherited, found.unseen):
        assert counts.new + counts.missed <= counts.judged <= counts.features
        assert counts.turned <= counts.new and counts.surely_new <= counts.new
    assert found.emerged.judged > 0 and 2_000 < found.tokens <= 3_008
    assert found.splice is not None and found.splice.before > 0 and found.effects["inherited"].logits is not None


def test_the_artifact_holds_a_row_for_every_child_feature(done):
    (folder,) = (done / "runs/s/newness").iterdir()
    assert folder.name.startswith("base-to-sums-joint-")
    table = pq.read_table(folder / "newness.parquet")
    assert table.num_rows == 64 and {"emerged", "best_r", "nu", "nu_r", "nu_eps", "new", "match"} <= set(
        table.column_names
    )
    record = json.loads((folder / "newness.json").read_text())
    assert record["emerged"]["features"] == table["emerged"].to_numpy().sum()


def test_edges_into_a_merge_are_asked_about_on_the_text_of_both_its_parents(tmp_path):
    stages = {
        stage.label: stage
        for stage in stages_of(load_study(str(tiny.toml(tiny.study_values(tmp_path), tmp_path / "s.toml"))))
    }
    asked = stages["newness/sums-to-both-joint"]
    corpora = {role for role in asked.inputs if role.startswith("tokens:")}
    assert corpora == {"tokens:words", "tokens:code", "tokens:sums", "tokens:stories"}
    assert asked.inputs["match"].label == "match/sums-to-both-joint"
    assert sum(label.startswith("newness/") for label in stages) == 4


def test_a_study_can_leave_it_out_and_plans_what_it_costs(done):
    path = str(done / "s.toml")
    kinds = {stage.kind for stage in stages_of(load_study(path, ["controls.newness=0"]))}
    assert "newness" not in kinds and "match" in kinds
    rows = {row.stage: row for row in plan(load_study(path), Store(done / "elsewhere")).stages}
    assert rows["newness/base-to-sums-joint"].tokens == 6_000 and rows["newness/base-to-sums-joint"].flops > 0
