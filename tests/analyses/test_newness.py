"""What an edge says of its emerged features is what was planted: really new, turned, or missed by the parent's SAE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import artifacts
import tiny
from heredity.analyses import Pipeline, newness, stages_of
from heredity.analyses.newness import NewnessSettings
from heredity.analyses.plan import plan
from heredity.engine.store import Store
from heredity.features.collect import Reader, encoded
from heredity.lm.load import mistral_config, new_model
from heredity.sae.model import SAE, new_sae
from heredity.study import ArchitectureConfig, Edge, load_study

VOCAB, D_MODEL, UNITS, LAST = 90, 24, 32, "blocks.1.mlp.hook_post"
CHANGED, MISSED, SWAPPED = (2, 5, 11), (7, 8), (20, 21)
"""Units of the child that compute something else, that the parent's SAE does not read, and that changed places."""

Tables = dict[str, Any]
"""Rows by table, those of fates by fate."""


def model(seed: int = 0, vocab: int = VOCAB) -> Any:
    shape = ArchitectureConfig(d_model=D_MODEL, d_mlp=UNITS, n_layers=2, n_heads=4)
    return new_model(mistral_config(shape, vocab, 64, 0), seed).eval()


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


def inquire(
    folder: Path,
    models: tuple[Any, Any],
    saes: tuple[SAE, SAE],
    hook_point: str = LAST,
    threshold: float = 0.9,
    count: int = 150,
    second: SAE | None = None,
) -> Tables:
    """Tables of the stage, from models and SAEs in folders and matches on the same random tokens."""
    blocks = np.random.default_rng(0).integers(0, VOCAB, (count, 16))
    acts = [encoded(Reader(end, hook_point, [sae]), blocks)[0] for end, sae in zip(models, saes, strict=True)]
    edge = Edge("base", "tuned")
    inputs = {
        "parent": artifacts.model_artifact(folder / "parent", models[0]),
        "child": artifacts.model_artifact(folder / "child", models[1]),
        "parent_sae": artifacts.sae_artifact(folder / "parent_sae", saes[0]),
        "child_sae": artifacts.sae_artifact(folder / "child_sae", saes[1]),
        "match": artifacts.match_artifact(folder / "match", edge, *acts, threshold),
        "tokens": {"words": artifacts.tokens_artifact(folder / "tokens", blocks.ravel(), np.array([0, blocks.size]))},
    }
    if second is not None:
        inputs["second_sae"] = artifacts.sae_artifact(folder / "second_sae", second)
    steps: list[tuple[int, int]] = []
    work = artifacts.work_of(folder / "work", inputs, lambda *step: steps.append(step))
    settings = NewnessSettings(hook_point, "float32", blocks.size, 0.95, 16, 4)
    rows = newness.ANALYSIS.run(work, settings)
    assert steps == [(1, 3), (2, 3)]
    item = {**artifacts.SITE, "edge": edge.name}
    tables = {table.name: table.check(rows[table.name], **item) for table in newness.ANALYSIS.tables}
    features = tables["newness_features"]
    return {
        "features": {name: features[name].to_numpy() for name in features.column_names},
        "splice": tables["splice"].to_pylist(),
        **{name: {row["fate"]: row for row in tables[name].to_pylist()} for name in ("newness", "effects")},
    }


@pytest.fixture(scope="module")
def edge(tmp_path_factory) -> Tables:
    folder = tmp_path_factory.mktemp("edge")
    return inquire(folder, (model(), child_model()), (units((*MISSED, *SWAPPED)), units()))


def test_emerged_features_are_told_apart_by_what_the_parent_has(edge):
    row, counts = edge["features"], edge["newness"]
    changed, missed, swapped = both(CHANGED), both(MISSED), both(SWAPPED)
    emerged = sorted(changed + missed + swapped)
    assert np.flatnonzero(row["emerged"]).tolist() == emerged and counts["emerged"]["features"] == len(emerged)
    assert row["new"][changed].mean() > 0.8 and not row["missed"][changed].any()
    assert row["missed"][missed].all() and not row["new"][missed].any()
    np.testing.assert_allclose(row["nu"][missed], 1, atol=1e-4)
    assert row["new_fixed"][swapped].all() and row["turned"][swapped].all(), "same firing, other direction"
    assert not row["new"][swapped].any()
    np.testing.assert_allclose(row["strength"][swapped], 1, atol=0.3)
    kept = counts["inherited"]
    assert kept["new"] == 0 and kept["missed"] == kept["judged"] == 2 * UNITS - len(emerged)
    assert counts["emerged"]["missed"] == len(missed) and counts["emerged"]["turned"] >= len(swapped)
    assert counts["unseen"]["features"] == 0 and kept["tokens"] == 150 * 16
    assert np.array_equal(row["feature"], np.arange(2 * UNITS))
    assert counts["emerged"]["cut"] == 1
    assert kept["calibrated"] and kept["known"] == 2 * UNITS - len(emerged) and kept["known_new"] == 0


def test_what_a_second_sae_does_not_have_is_a_fate_of_its_own_and_calibrates_nothing(tmp_path):
    unread = (3, *CHANGED[:1])
    saes = units((*MISSED, *SWAPPED)), units()
    tables = inquire(tmp_path, (model(), child_model()), saes, second=units(unread))
    counts, row = tables["newness"], tables["features"]
    assert counts["unstable"]["features"] == 4 and counts["emerged"]["features"] == 14 - 2
    assert counts["inherited"]["known"] == counts["inherited"]["features"] == 50 - 2
    assert np.isnan(row["stability"][both(unread)]).all() or (row["stability"][both(unread)] < 0.7).all()
    assert row["emerged"].sum() == 14, "the edge's own count"


def test_inherited_pairs_act_alike_and_nearest_misses_do_not(edge):
    effects = edge["effects"]
    assert effects["inherited"]["pairs"] == 50 and effects["emerged"]["pairs"] == 14
    assert effects["inherited"]["logits"] == pytest.approx(1, abs=1e-6)
    assert effects["inherited"]["attribution"] > 0.8 > 0.6 > effects["emerged"]["attribution"]
    assert abs(effects["emerged"]["logits"]) < 0.6 and effects["emerged"]["unavailable"] == ""
    assert np.isfinite(edge["features"]["logit_similarity"]).sum() == 64


def test_the_emerged_features_carry_the_difference_and_others_do_not(edge):
    (splice,) = edge["splice"]
    assert splice["before"] > 0
    assert splice["features"] == 10 and splice["others"] == 0, "missed units do not differ between the models"
    assert splice["recovered"] == pytest.approx(1, abs=1e-3) and splice["spliced"] == pytest.approx(0, abs=1e-5)
    assert splice["control"] is None


def test_controls_are_moved_where_there_are_others(tmp_path):
    """Two models that differ everywhere; few features emerged: the rest are called inherited by a low threshold."""
    models = model(), child_model()
    with torch.no_grad():
        models[1].model.layers[0].mlp.down_proj.weight.mul_(1.1)
    (splice,) = inquire(tmp_path, models, (units(), units()), threshold=0.7, count=60)["splice"]
    assert 0 < splice["features"] <= splice["others"]
    ratio = splice["control_moved"] / splice["moved"]
    assert splice["matched"] == (0.8 <= ratio <= 1.25)
    assert splice["excess"] == pytest.approx(splice["recovered"] - splice["control_recovered"])
    low, high = splice["excess_low"], splice["excess_high"]
    assert low <= splice["excess"] <= high


def test_without_a_way_to_the_logits_or_a_common_vocabulary_figures_are_null(tmp_path):
    hook = "blocks.1.mlp.hook_pre"
    tables = inquire(tmp_path / "a", (model(), child_model()), (units(), units()), hook)
    effects = tables["effects"]["inherited"]
    assert "no linear map into the residual stream" in effects["unavailable"] and tables["splice"]
    assert np.isnan(tables["features"]["logit_similarity"]).all()
    assert effects["logits"] is None and effects["attribution"] is not None
    tables = inquire(tmp_path / "b", (model(), model(3, VOCAB + 1)), (units(), units()))
    effects = tables["effects"]["inherited"]
    assert effects["unavailable"] == "vocabulary sizes differ (parent 90, child 91)" and effects["pairs"] == 0
    assert tables["splice"] == [] and tables["newness"]["emerged"]["judged"] > 0
    assert np.isnan(tables["features"]["attribution_similarity"]).all()


def test_models_that_are_alike_at_the_hook_point_have_nothing_to_move(tmp_path):
    tables = inquire(tmp_path, (model(), model()), (units(MISSED), units()))
    counts = tables["newness"]["emerged"]
    assert counts["features"] == counts["missed"] == 4 and tables["splice"] == []


def test_every_edge_has_its_newness(lineage):
    for row in lineage.rows("edges", rule="evidence"):
        key = {name: row[name] for name in ("instrument", "edge")}
        counts = {one["fate"]: one for one in lineage.rows("newness", **key)}
        assert counts["emerged"]["features"] <= row["emerge"]
        assert sum(one["features"] for one in counts.values()) >= row["child_live"]
        for one in counts.values():
            assert one["new"] + one["missed"] <= one["judged"] <= one["features"]
            assert one["new"] <= one["new_fixed"] and one["known_new"] <= one["known"]
            assert one["turned"] + one["new"] <= one["new_fixed"] and one["surely_new"] <= one["new"]
            assert 2_000 < one["tokens"] <= 3_008
        features = lineage.run["newness_features"].to_pylist()
        emerged = [one["emerged"] for one in features if all(one[name] == value for name, value in key.items())]
        assert len(emerged) == 128 and sum(emerged) == row["emerge"]
    effects = lineage.rows("effects", fate="inherited")
    assert len(effects) == 12 and all(row["logits"] is not None and not row["unavailable"] for row in effects)
    assert any(row["judged"] for row in lineage.rows("newness", fate="emerged"))
    assert lineage.rows("splice") and all(row["before"] > 0 for row in lineage.rows("splice"))


def test_it_reads_all_text_of_the_child_and_can_be_left_out(tmp_path):
    path = str(tiny.toml(tiny.lineage_values(tmp_path), tmp_path / "s.toml"))
    pipeline = Pipeline(load_study(path))
    stages = pipeline.stages
    stage = stages["newness/sums+both@joint"]
    assert set(stage.inputs["tokens"]) == {"words", "code", "sums", "stories"}, "the text of both its parents"
    assert stage.inputs["match"].label == "match/sums+both@joint"
    assert sum(label.startswith("newness/") for label in stages) == 12
    assert "newness" not in {stage.kind for stage in stages_of(load_study(path, ["controls.newness=0"]))}
    rows = {row["stage"]: row for row in plan(pipeline, Store(tmp_path))["plan_stages"]}
    assert rows["newness/base+sums@joint"]["tokens"] == 6_000 and rows["newness/base+sums@joint"]["flops"] > 0
