"""What an edge says of its emerged features is what was planted: really new, turned, or missed by the parent's SAE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import artifacts
from heredity.analyses import newness
from heredity.analyses.newness import NewnessSettings
from heredity.features.collect import Reader, encoded
from heredity.lm.load import mistral_config, new_model
from heredity.sae.model import SAE, new_sae
from heredity.study import ArchitectureConfig, Edge

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
    assert row["new"][swapped].all() and row["turned"][swapped].all(), "same firing, other direction"
    np.testing.assert_allclose(row["strength"][swapped], 1, atol=0.3)
    kept = counts["inherited"]
    assert kept["new"] == 0 and kept["missed"] == kept["judged"] == 2 * UNITS - len(emerged)
    assert counts["emerged"]["missed"] == len(missed) and counts["emerged"]["turned"] >= len(swapped)
    assert counts["unseen"]["features"] == 0 and kept["tokens"] == 150 * 16
    assert np.array_equal(row["feature"], np.arange(2 * UNITS))


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
    assert splice["excess"] == pytest.approx(splice["recovered"] - splice["control_recovered"])
    low, high = splice["excess_low"], splice["excess_high"]
    assert 0 < low <= splice["excess"] <= high, "what was changed carries more than what was not"


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
