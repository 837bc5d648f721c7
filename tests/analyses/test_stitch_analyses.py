"""Two stitched models and a stitch along an edge: one study, run once, whose tables equal plain computations."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import mannwhitneyu

from artifacts import table_of
from heredity.analyses import Pipeline, feature_transfer, lineage_by_maps, statements_of
from heredity.analyses.functional_features import quantiles
from heredity.analyses.match import edge_row, read_matches
from heredity.analyses.plan import Shapes, check_inputs, check_stitch, is_residual, plan
from heredity.analyses.probes import texts_of_corpora
from heredity.analyses.sae_transfer import SOURCE_SAE, variants
from heredity.analyses.steering import gap_by_frequency
from heredity.analyses.stitch_maps import Sides
from heredity.analyses.structural_features import percentiles, prose_corpus
from heredity.analyses.warm_starts import WARM_START, moved_rows
from heredity.engine.stage import Stage, Watcher, Work, inputs_of, run
from heredity.engine.store import Artifact, Store
from heredity.engine.workers import Here
from heredity.features.correlate import rank_correlation
from heredity.features.fates import RARE_FIRINGS
from heredity.lm.hooks import capture
from heredity.metrics import Variance
from heredity.sae.evaluate import quality
from heredity.sae.formats import read_sae
from heredity.sae.model import new_sae
from heredity.show import markdown
from heredity.stitch.affine import Affine, Stitch
from heredity.stitch.functional import null_share
from heredity.stitch.probe import proportion
from heredity.stitch.savings import dense_flops, fold_flops, sparse_flops
from heredity.stitch.steer import transfer_gap
from heredity.stitch.transfer import cut_to_unit, transfer_sae
from heredity.study import AdamConfig, StitchConfig, Study, StudyError, load_study
from stitch.test_affine import random
from stitches import CONTEXT, CORPORA, HOOK, SEEN, SIZES, STARTS, TARGET_HOOK, WIDTH, K, topics, values
from tiny import command

pytest.importorskip("sklearn")
STEPS = -(-60_000 // 256)
KINDS = {"stitch", "source_sae", "sae_transfer", "warm_start", "savings", "alphas", "probes", "steering"}
KINDS |= {"feature_transfer"}
SPARSE = {"source", "unchanged", "refitted", "native", "random"}
DENSE = {"dense_source": 32, "dense_unchanged": 32, "dense_native": 48}
STEERED = ("none", "native", "carried", "random")
Row = Mapping[str, Any]


class World(NamedTuple):
    """A study that has been run."""

    study: Study
    pipeline: Pipeline
    store: Store
    artifacts: dict[str, Artifact]
    tables: dict[str, list[Row]]

    def rows(self, table: str, stitch: str = "pair", **key: Any) -> list[Row]:
        key["stitch"] = stitch
        return [row for row in self.tables[table] if all(row[name] == value for name, value in key.items())]

    def row(self, table: str, stitch: str = "pair", **key: Any) -> Row:
        (row,) = self.rows(table, stitch, **key)
        return row

    def columns(self, label: str, table: str) -> dict[str, np.ndarray]:
        read = table_of(self.artifacts[label], table)
        return {name: read[name].to_numpy() for name in read.column_names}

    def work(self, stage: Stage | str, folder: Path) -> Work:
        stage = self.pipeline.stages[stage] if isinstance(stage, str) else stage
        return Work(folder, inputs_of(stage, self.store), stage.config, lambda *_: None, Here())

    def changed(self, label: str, **pair: Any) -> Stage:
        """A stage of the study with other settings of the stitch."""
        made = values(self.study.root, **pair)
        return Pipeline(Study.of(made, name="s", root=self.study.root)).stages[label]


def stage_rows(world: World, stage: Stage, folder: Path) -> dict[str, list[Row]]:
    """Tables of a stage with other settings, made from the inputs of the study."""
    stage.make(world.work(stage, folder))
    return {path.stem: pq.read_table(path).to_pylist() for path in folder.glob("*.parquet")}


@pytest.fixture(scope="module")
def world(stitch) -> World:
    run = stitch.run
    tables = {name: table.to_pylist() for name, table in run.tables.items()}
    return World(run.study, run.pipeline, Store(run.folder), run.artifacts, tables)


def texts_of(world: World, corpus: str) -> list[str]:
    """Held-out documents."""
    return pq.read_table(world.artifacts[f"corpus/{corpus}"] / "validation.parquet")["text"].to_pylist()


def pearson(found: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    """That r of all live features are numpy's."""
    live = np.flatnonzero((a.std(0) > 0) & (b.std(0) > 0))
    expected = [np.corrcoef(a[:, i], b[:, i])[0, 1] for i in live]
    assert len(live) > 30
    np.testing.assert_allclose(found[live], expected, atol=1e-4)


# -- stages -----------------------------------------------------------------------------------------------------------


def keys(folder: Path, **pair: Any) -> dict[str, str]:
    stages = Pipeline(Study.of(values(folder, **pair), name="s", root=folder)).stages
    return {label: stage.key for label, stage in stages.items() if stage.kind in KINDS | {"lineage_by_maps"}}


def test_keys_follow_what_matters(tmp_path):
    first = keys(tmp_path)
    pair = [label for label in first if "/pair" in label]
    assert pair == [
        "stitch/pair",
        f"source_sae/pair@{WIDTH}",
        f"sae_transfer/pair@{WIDTH}",
        *(f"warm_start/pair@{WIDTH}@{arm}" for arm in STARTS),
        "savings/pair",
        "alphas/pair",
        *(f"probes/pair@{task}" for task in ("origin", "kind", "test")),
        "steering/pair",
        "feature_transfer/pair",
    ]
    assert [label for label in first if "lineage" in label] == ["lineage_by_maps/along", "lineage_by_maps/elsewhere"]
    probed = {"tasks": ["origin", "kind", "test"], "texts": 41}
    for changes, labels in (
        ({"thresholds": [0.5]}, {"savings/pair"}),
        ({"levels": [0.5]}, {"savings/pair"}),
        ({"alphas": [0]}, {"alphas/pair"}),
        ({"probes": probed}, {label for label in pair if "probes" in label}),
        ({"steering": {"prompts": 5}}, {"steering/pair"}),
        ({"evaluation": 1_400}, {*pair} - {f"source_sae/pair@{WIDTH}"}),
    ):
        assert {label for label, key in keys(tmp_path, **changes).items() if key != first[label]} == labels
    bare = keys(tmp_path, arms=[], alphas=[], probes={"tasks": []}, steering={"prompts": 0}, features={"tokens": 0})
    assert [label for label in bare if "/pair" in label] == pair[:3]


def test_a_native_sae_needs_nothing_of_the_source_and_all_arms_read_the_same_vectors(world: World):
    stages = [world.pipeline.stages[f"warm_start/pair@{WIDTH}@{arm}"] for arm in STARTS]
    assert ["source" in stage.inputs for stage in stages] == [False, True, True, True]
    assert len({(stage.config["seed"], stage.config["held_out_seed"]) for stage in stages}) == 1
    logs = [world.artifacts[stage.label].json("training.json") for stage in stages[:2]]
    assert logs[0] != logs[1] and len(logs[0]) == len(logs[1])


def test_every_stage_is_estimated(world: World, tmp_path):
    for row in plan(world.pipeline, Store(tmp_path))["plan_stages"]:
        if row["stage"].split("/")[0] in (KINDS | {"lineage_by_maps"}) - {"savings"}:
            assert row["flops"] > 0 and row["tokens"] > 0 and not row["cached"], row["stage"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source_hook_point": "blocks.7.hook_resid_pre"}, r"stitch\.pair\.source_hook_point"),
        ({"target_hook_point": "blocks.3.hook_resid_pre"}, r"stitch\.pair\.target_hook_point"),
        ({"widths": [4]}, r"sae\.k: 8 is more than the 4 features"),
        ({"tokens": 0}, r"stitch\.pair\.tokens"),
        ({"arms": ["transferred"]}, "add random"),
        ({"method": "published", "adam": {"epochs": 0}}, "'published' is not among this stitch's descents"),
        ({"method": "published", "alpha": 0.5}, r"descents \(descent\); choose another"),
        ({"arms": []}, r"stitch\.pair\.probes: there is no SAE of the target .*; add random to arms"),
        ({"probes": {"sets": {"kind": {"source": "hub:x/y"}}}}, r"probes\.sets\.kind: .*; rename the set"),
        (
            {"probes": {"sets": {"own": {"source": "x/y"}}}},
            r"sets\.own\.source: .*'x/y' is neither local:PATH nor hub:",
        ),
        (
            {"probes": {"sets": {"own": {"source": "local:none"}}}},
            r"s: stitch\.pair\.probes\.sets\.own: .*no file or f",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(tmp_path, changes, message):
    with pytest.raises(StudyError, match=message):
        Pipeline(Study.of(values(tmp_path, **changes), name="s", root=tmp_path))


def test_scikit_learn_is_required_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr("heredity.analyses.probes.find_spec", lambda name: None)
    with pytest.raises(StudyError, match=r"stitch.pair: needs scikit-learn.*'.\[stitch\]'; or set"):
        keys(tmp_path)
    with pytest.raises(StudyError, match=r"or set steering.prompts = 0 to do without"):
        keys(tmp_path, probes={"tasks": []})
    assert keys(tmp_path, probes={"tasks": []}, steering={"prompts": 0})


def test_a_stitch_stands_where_all_of_the_residual_stream_passes():
    points = "blocks.1.hook_resid_pre blocks.0.hook_resid_mid model.layers.3 model.layers.3:input model.norm:input "
    points += "model.layers.3.post_attention_layernorm:input transformer.h.2.ln_1:input"
    parts = "blocks.1.mlp.hook_post blocks.1.hook_mlp_out model.layers.3.mlp model.layers.3.input_layernorm "
    parts += "model.layers.3.self_attn.q_norm:input"
    assert [point for point in f"{points} {parts}".split() if is_residual(point)] == points.split()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_hook_point": "blocks.1.hook_mlp_out"}, r"\.target_hook_point: blocks\.1\.hook_mlp_out is a part"),
        ({"held_out": 1}, r"stitch\.small-large\.held_out: 1 tokens do not fill .* at least 256"),
        ({"tokens": 100}, r"stitch\.small-large\.tokens: 100 tokens .* at least 128"),
        ({"method": "procrustes"}, r"method: procrustes .* large \(32\) is narrower than small \(64\)"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_their_key(settings, message):
    given = [f"stitch.small-large.{key}={json.dumps(value)}" for key, value in settings.items()]
    study = load_study(str(Path(__file__).parents[2] / "studies" / "stitching.toml"), given)
    shapes = Shapes(study)
    for end, d in (("small", 64), ("large", 32)):
        shapes._shapes[end] = SimpleNamespace(model_type="mistral", hidden_size=d, num_hidden_layers=4)
    with pytest.raises(StudyError, match=message):
        check_stitch(study, "small-large", shapes)


# -- maps -------------------------------------------------------------------------------------------------------------


def test_maps_are_fitted_by_every_method_and_judged(world: World, tmp_path):
    maps, fits = world.row("stitch_maps"), {row["method"]: row for row in world.rows("stitch_fits")}
    assert (maps["source_width"], maps["target_width"], maps["corpora"]) == (32, 48, "code, words, sums")
    assert set(fits) == {"ridge", "joint", "procrustes", "published", "descent"}
    given = [[fits[method][name] for name in ("lr", "epochs", "batch_tokens")] for method in fits]
    assert given == [3 * [None]] * 3 + [[1e-4, 2, 5120], [1e-2, 2, 512]]
    assert [method for method, row in fits.items() if row["in_use"]] == ["joint"] == [maps["method"]]
    assert fits["joint"]["loss"] <= fits["ridge"]["loss"] * 1.02 and fits["joint"]["converged"] is not None
    for method in ("joint", "published", "descent"):
        rows = world.rows("stitch_costs", method=method)
        assert all(rows[-1][name] == fits[method][name] for name in ("tokens", "flops", "loss"))
        assert len(rows) > 1 and [row["tokens"] for row in rows] == sorted(row["tokens"] for row in rows)
    ways = {row["way"]: row for row in world.rows("stitched_models")}
    assert ways["up"]["ce_loss"] < 5 and ways["source"]["increase"] is None
    assert ways["up"]["increase"] == pytest.approx(ways["up"]["ce_loss"] / ways["target"]["ce_loss"] - 1)
    layers, (chosen,) = world.rows("stitch_layers"), world.rows("stitch_layers", chosen=True)
    assert len(layers) == 2 * 3 and maps["compared"] > 0
    assert (chosen["source_layer"], chosen["target_layer"]) == (HOOK, TARGET_HOOK)
    block = Sides.of(world.work("steering/pair", tmp_path)).source[0].model.layers[0]
    weights = sum(part.weight.numel() for part in block.modules() if isinstance(part, torch.nn.Linear))
    assert maps["source_reading_flops"] == 2 * weights and maps["reading_seconds"] > 0, "one block lies before it"


def test_only_the_published_settings_are_called_published():
    made = StitchConfig(source="a", target="b")
    assert list(made.descents) == ["published"] and made.descents["published"] == AdamConfig()
    for adam in (AdamConfig(lr=1e-3), AdamConfig(epochs=3), AdamConfig(batch_tokens=512)):
        own = made.model_copy(update={"adam": adam})
        assert list(own.descents) == ["published", "descent"] and own.descents["published"] == AdamConfig()
    assert list(made.model_copy(update={"alpha": 0.5}).descents) == ["descent"], "nor another loss"
    assert not made.model_copy(update={"adam": AdamConfig(epochs=0)}).descents


def test_without_a_layer_given_the_stitch_stands_where_svcca_is_highest(world: World, tmp_path):
    stage = world.changed("stitch/pair", target_hook_point=None, adam={"epochs": 0})
    rows = stage_rows(world, stage, tmp_path)["stitch_layers"]
    own = [row for row in rows if row["source_layer"] == HOOK]
    best = max(own, key=lambda row: row["svcca"])
    assert [row for row in rows if row["chosen"]] == [best] and len({row["svcca"] for row in own}) == 3


def test_round_trips_are_weighed_against_the_maps(world: World):
    rows = {(row["alpha"], row["way"]): row for row in world.rows("alphas")}
    assert list(rows) == list(product((0, 1), ("up", "down", "source_round_trip", "target_round_trip", "sae")))
    ways, sae = {row["way"]: row for row in world.rows("stitched_models")}, world.row("sae_transfer", variant="source")
    for way in ("up", "down", "source_round_trip", "target_round_trip"):
        for name in ("ce_loss", "increase"):
            assert rows[1, way][name] == pytest.approx(ways[way][name], rel=1e-5), "alpha = 1 is the stitch itself"
    fits = {row["method"]: row for row in world.rows("stitch_fits")}
    for alpha, fit in ((0, fits["ridge"]), (1, fits["joint"])):
        found = [rows[alpha, way]["r2"] for way in ("up", "down", "source_round_trip", "target_round_trip")]
        told = [fit[f"r2_{way}"] for way in ("up", "down", "there_and_back", "back_and_there")]
        assert found == pytest.approx(told, abs=1e-5)
    for way in ("source_round_trip", "target_round_trip"):
        assert rows[1, way]["r2"] > rows[0, way]["r2"] and rows[1, way]["ce_loss"] < rows[0, way]["ce_loss"]
    assert rows[1, "up"]["r2"] <= rows[0, "up"]["r2"] + 1e-3
    assert 0 < rows[1, "sae"]["r2"] < sae["explained_variance"] and rows[1, "sae"]["delta_loss"] > 0


# -- SAEs -------------------------------------------------------------------------------------------------------------


def test_a_transferred_sae_explains_less_than_at_home_and_repairs_help(world: World):
    rows, check = {row["variant"]: row for row in world.rows("sae_transfer")}, world.row("sae_folding")
    made = {name: row for name, row in rows.items() if row["left_out"] is None}
    assert list(made) == ["source", "transferred", "normalized", "bias", "decoder"]
    assert rows.keys() - made.keys() == {"density", "unchanged", "aligned"}
    assert rows["unchanged"]["left_out"] == "the models are 32 and 48 wide" and rows["unchanged"]["l0"] is None
    ev = {name: row["explained_variance"] for name, row in made.items()}
    assert ev["source"] > ev["transferred"] > 0 and ev["decoder"] > ev["bias"] > ev["transferred"] - 0.01
    for row in made.values():
        assert row["l0"] == pytest.approx(K, abs=0.5) and row["fvu"] == pytest.approx(1 - row["explained_variance"])
        assert row["delta_loss"] == pytest.approx(row["ce_spliced"] - row["ce_clean"])
    assert made["bias"]["ce_clean"] == made["decoder"]["ce_clean"] != made["source"]["ce_clean"]
    assert check["folding_error"] < 1e-4 and check["other_features"] < 0.01 and 0.5 < check["same_selection"] <= 1
    assert 0 < check["tokens"] <= 1_536


def test_transferred_saes_are_folders_that_can_be_read(world: World):
    for name in ("transferred", "normalized", "bias", "decoder"):
        sae, metadata = read_sae(world.artifacts[f"sae_transfer/pair@{WIDTH}"] / name)
        assert (sae.d_in, sae.d_sae, sae.activation, sae.k) == (48, WIDTH, "topk", K)
        assert metadata["model_name"] == "large" and metadata["transferred_from"] == "small"
        assert metadata["variant"] == name and metadata["hook_name"] == TARGET_HOOK
        if name == "normalized":
            torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(WIDTH))
    source, metadata = read_sae(world.artifacts[f"source_sae/pair@{WIDTH}"] / "sae")
    assert (source.d_in, source.d_sae) == (32, WIDTH) and metadata["hook_name"] == HOOK


def test_an_sae_of_a_model_of_the_same_width_is_also_used_as_it_is(tmp_path):
    """B is A turned: unchanged the SAE is worth little there, through maps that only turn all of it."""
    a = random(400, 12, seed=0) * torch.linspace(0.2, 3, 12) + 1
    turn = torch.linalg.qr(random(12, 12, seed=1)).Q
    exact = Stitch(Affine(turn, torch.ones(12)), Affine(turn.T, -(torch.ones(12) @ turn.T)))
    exact.save(tmp_path)
    sae = new_sae(12, 48, "jumprelu", None, torch.Generator().manual_seed(2))
    sae.b_dec.copy_(a.mean(0))
    sae.W_enc *= 0.3
    assert sae.threshold is not None
    sae.threshold += 0.1
    weak = Stitch(exact.up, Affine(0.8 * exact.down.weight, 0.8 * exact.down.bias + 0.2 * a.mean(0)))
    b, own = exact.up(a), quality(sae, [a])
    made, left_out = variants(sae, weak, b, own.density, tmp_path)
    assert left_out == {}
    assert list(made) == ["transferred", "normalized", "bias", "decoder", "density", "unchanged", "aligned"]
    figures = {name: quality(each, [b]) for name, each in made.items()}
    home, ev = own.explained_variance, {name: each.explained_variance for name, each in figures.items()}
    assert ev["aligned"] == pytest.approx(home, abs=1e-4) and ev["unchanged"] < home - 0.2
    assert ev["unchanged"] == quality(sae, [b]).explained_variance
    assert ev["decoder"] > ev["bias"] > ev["transferred"] < home
    np.testing.assert_allclose(figures["density"].density, own.density, atol=1.5 / len(b))
    few, left_out = variants(sae, weak, b[:90], own.density, tmp_path)
    assert left_out == {"decoder": "90 vectors are fewer than two per feature"} and "decoder" not in few


def test_every_start_is_trained_on_and_a_transferred_one_begins_higher(world: World):
    ends = {row["arm"]: row for row in world.rows("warm_starts")}
    assert list(ends) == STARTS
    curves = {arm: world.rows("warm_start_curves", arm=arm) for arm in STARTS}
    starts = {arm: rows[0]["explained_variance"] for arm, rows in curves.items()}
    assert starts["repaired"] > starts["transferred"] > starts["random"] + 0.1
    assert starts["transferred"] > starts["geometry"]
    for arm, rows in curves.items():
        own = ends[arm]
        assert [own[name] for name in ("steps", "vectors", "d_in", "d_sae")] == [STEPS, 256 * STEPS, 48, WIDTH]
        assert [row["step"] for row in rows] == sorted({row["step"] for row in rows}) and 15 < len(rows) <= 25
        assert [rows[place]["step"] for place in (0, 1, -1)] == [0, 1, STEPS]
        assert rows[0]["flops"] == rows[0]["sparse_flops"] == 0 and own["flops"] == dense_flops(48, WIDTH, 256 * STEPS)
        assert own["sparse_flops"] == pytest.approx(sparse_flops(48, WIDTH, K, 256 * STEPS), rel=0.01)
        seconds = [row["seconds"] for row in rows]
        assert seconds == sorted(seconds) and own["seconds"] == seconds[-1] > seconds[0]
        assert own["explained_variance"] == rows[-1]["explained_variance"] > starts[arm] and rows[0]["l0"] <= K
        sae, metadata = read_sae(world.artifacts[f"warm_start/pair@{WIDTH}@{arm}"] / "sae")
        assert metadata["model_name"] == "large" and metadata["training_tokens"] == own["vectors"] and sae.d_in == 48
        left = {path.name for path in world.artifacts[f"warm_start/pair@{WIDTH}@{arm}"].folder.iterdir()}
        tables = {"warm_starts.parquet", "warm_start_curves.parquet", "moved.parquet"}
        assert left == {"config.json", "manifest.json", "sae", "training.json"} | tables
    assert len({own["held_out"] for own in ends.values()}) == 1
    assert [ends["random"][name] for name in ("start_flops", "start_seconds", "revived")] == [0, 0, 0]
    assert ends["transferred"]["start_flops"] == fold_flops(32, 48, WIDTH) < ends["repaired"]["start_flops"]
    told = [[own[name] for name in ("recipe", "lr", "warm_up", "decay", "scaled", "rows")] for own in ends.values()]
    ours = ["study", 1e-3, 0.02, False, True, "moved into the encoder"]
    assert told == [["study", 1e-3, 0.0, False, True, "drawn"], ours, ours, ours]


def test_how_far_rows_move_is_told_of_features_that_fire():
    start = torch.nn.functional.normalize(random(1000, 16, seed=0), dim=1)
    angle = torch.linspace(0, torch.pi / 2, 1000)[:, None]
    other = torch.nn.functional.normalize(random(1000, 16, seed=1), dim=1)
    other = torch.nn.functional.normalize(other - (other * start).sum(1, keepdim=True) * start, dim=1)
    fires = np.arange(1000) >= 500  # those that stayed near their start do not
    rows = moved_rows(start, angle.cos() * start + angle.sin() * other, fires)
    assert [row["quantile"] for row in rows] == pytest.approx(np.arange(0.05, 0.96, 0.05)) and len(rows) == 19
    expected = np.cos((np.pi / 2) * (1 - np.array([row["quantile"] for row in rows]) / 2))
    assert [row["cosine"] for row in rows] == pytest.approx(expected, abs=0.005)
    assert {row["features"] for row in rows} == {500} and not moved_rows(start, start, np.zeros(1000, bool))


def test_arms_as_published_differ_as_their_row_says(world: World, tmp_path):
    """No warm-up, no scale, no features resampled, and a start whose rows are cut to norm 1 and not its encoder."""
    made = values(world.study.root, arms_recipe="published")
    made["sae"] |= {"tokens": 10_000, "decay": True, "activation": "relu"}
    study = Study.of(made, name="s", root=world.study.root)
    item = {"stitch": "pair", "d_sae": WIDTH, "arm": "transferred"}
    work = world.work(f"warm_start/pair@{WIDTH}@transferred", tmp_path)
    rows: Any = WARM_START.run(work, WARM_START.settings(study, item))
    (row,) = rows["warm_starts"]
    told = [row[name] for name in ("recipe", "lr", "warm_up", "decay", "scaled", "rows", "resampled")]
    assert told == ["published", 1e-4, 0, False, False, "cut off", 0]
    stitch = Stitch.load(world.artifacts["stitch/pair"] / "joint")
    folded = transfer_sae(read_sae(work.inputs["source"] / "sae")[0], *stitch)
    cut = cut_to_unit(folded)
    torch.testing.assert_close(cut.W_dec, folded.W_dec / folded.W_dec.norm(dim=1, keepdim=True))
    assert torch.equal(cut.W_enc, folded.W_enc) and (cut.activation, cut.k) == ("topk", K)
    after, _ = read_sae(tmp_path / "sae")
    cosines = torch.cosine_similarity(cut.W_dec, after.W_dec, dim=1).numpy()
    (median,) = (each["cosine"] for each in rows["moved"] if each["quantile"] == 0.5)
    assert np.quantile(cosines, 0.25) < median < np.quantile(cosines, 0.75) and median > 0.9, (
        "a small rate moves little"
    )


class Killer(Watcher):
    """Interrupts the run at a step of a stage."""

    def __init__(self, label: str, step: int) -> None:
        self.at = label, step

    def progress(self, stage: Stage, done: int, total: int) -> None:
        if (stage.label, done) == self.at:
            raise KeyboardInterrupt


def test_a_killed_training_resumes_with_the_same_curve(world: World, tmp_path, monkeypatch):
    import heredity.sae.train as room

    name = f"pair@{WIDTH}@repaired"
    label, whole = f"warm_start/{name}", world.rows("warm_start_curves", arm="repaired")
    store, stages = Store(tmp_path / "runs"), world.pipeline.closure([label])
    shutil.copytree(world.store.root, store.root, ignore=shutil.ignore_patterns(f"{name}-*", ".lock"))
    monkeypatch.setattr(room, "training", partial(room.training, checkpoint_seconds=0))
    stop = whole[-4]["step"]
    with pytest.raises(KeyboardInterrupt):
        run(stages, store, Killer(label, stop))
    (folder,) = (store.root / "warm_start").glob(f".partial-{name}-*")
    kept = json.loads((folder / "curve.json").read_text())
    assert kept[-1]["step"] == stop, "the row of a step after the checkpoint's, to be dropped"
    assert (folder / "clock").stat().st_size == 8 * (stop + 1)
    artifact = run(stages, store)[label]

    def untimed(rows: list[Row]) -> list[Row]:
        return [{key: value for key, value in row.items() if key not in ("seconds", "start_seconds")} for row in rows]

    for table in ("warm_starts", "warm_start_curves"):
        assert untimed(table_of(artifact, table).to_pylist()) == untimed(world.rows(table, arm="repaired"))
    seconds = [row["seconds"] for row in table_of(artifact, "warm_start_curves").to_pylist()]
    before = [row["seconds"] for row in kept if row["step"] < stop]
    assert seconds == sorted(seconds) and seconds[: len(before)] == before, "seconds before the kill are kept"
    assert {path.name for path in artifact.folder.glob("c*")} == {"config.json"}


def test_savings_count_the_maps_and_the_sources_sae(world: World):
    rows, begun = world.rows("savings"), {row["arm"]: row["start_flops"] for row in world.rows("warm_starts")}
    for (arm, level), row in zip(product(STARTS[1:], (0.5, 0.9999)), rows, strict=True):
        assert (row["arm"], row["threshold"]) == (arm, level)
        if level == 0.9999:
            assert (
                row["never"] == f"{arm}, random" and row["saved_flops"] is row["flops"] is row["saved_seconds"] is None
            )
        else:
            assert row["never"] == "" and None not in row.values()
    curve = world.rows("warm_start_curves", arm="random")
    reached = next(row["flops"] for row in curve if row["explained_variance"] >= 0.5)
    one, repaired, turned = rows[0], rows[2], rows[4]
    assert max(one["flops"], repaired["flops"]) <= reached
    other = dense_flops(32, WIDTH, 256 * STEPS) / (one["saved_flops"] - one["saved_flops_with_source"])
    spent = one["flops"] + world.row("stitch_fits", in_use=True)["flops"] + begun["transferred"]
    assert 1 - spent / other == pytest.approx(one["saved_flops"])
    spent = turned["flops"] + begun["geometry"]
    assert 1 - spent / other == pytest.approx(turned["saved_flops"]), "a turn needs no maps"
    levels = world.rows("savings_by_level", level=0.5)
    for row, same in zip(rows[::2], levels, strict=True):
        assert {**same, "threshold": 0.5} == {**row, "level": 0.5}
    assert len(world.rows("savings_by_level")) == 2 * len(levels)


def test_parts_cost_what_their_tables_say(world: World):
    parts = {row["part"]: row for row in world.rows("costs")}
    fits, (end,) = {row["method"]: row for row in world.rows("stitch_fits")}, world.rows("warm_starts", arm="random")
    maps = world.row("stitch_maps")
    for method, fit in fits.items():
        row = parts[f"maps: {method}"]
        assert all(row[name] == fit[name] for name in ("flops", "seconds", "in_use"))
        assert row["share"] == pytest.approx(fit["flops"] / dense_flops(48, WIDTH, 256 * STEPS))
    assert parts["source SAE"]["flops"] == dense_flops(32, WIDTH, 256 * STEPS) and parts["source SAE"]["seconds"] > 0
    assert parts["target SAE"]["share"] == 1 and parts["target SAE"]["seconds"] == end["seconds"]
    reading = parts["target SAE: reading"]
    assert reading["flops"] == maps["target_reading_flops"] * 256 * STEPS and reading["seconds"] is None
    assert parts["maps: reading"]["seconds"] < fits["joint"]["seconds"]
    assert len(parts) == len(fits) + 5


def test_scaling_is_fitted_to_the_curve_of_every_arm(world: World):
    rows = world.rows("scaling_fits")
    assert [(row["arm"], row["curve"]) for row in rows] == [(arm, str(WIDTH)) for arm in STARTS]
    last = world.row("warm_starts", arm="random")
    for row in rows:
        assert row["points"] >= 4 and row["beta_low"] <= row["beta"] <= row["beta_high"]
        assert row["to_flops"] == last["flops"] and row["from_flops"] >= 0.05 * last["flops"]
        assert row["a_low"] <= row["a"] <= row["a_high"]
    random_, carried = rows[0], rows[1]
    assert random_["beta"] > carried["beta"], "who begins far down has less left to fall"


# -- an SAE that is there already -------------------------------------------------------------------------------------


def source_folder(world: World, folder: Path, **settings: Any) -> Path:
    """The source's SAE of the study as a folder, with other settings in its file."""
    shutil.copytree(world.artifacts[f"source_sae/pair@{WIDTH}"] / "sae", folder / "given")
    config = json.loads((folder / "given" / "cfg.json").read_text())
    config["metadata"].update(settings.pop("metadata", {}))
    (folder / "given" / "cfg.json").write_text(json.dumps(config | settings))
    return folder / "given"


def test_a_source_sae_is_loaded_in_place_of_a_training(world: World, tmp_path):
    given = source_folder(world, tmp_path)
    study = Study.of(values(world.study.root, sae=str(given)), name="s", root=world.study.root)
    pipeline, label = Pipeline(study), f"source_sae/pair@{WIDTH}"
    stage = pipeline.stages[label]
    assert "tokens" not in stage.inputs and stage.key != world.pipeline.stages[label].key
    work = world.work(stage, tmp_path / "made")
    work.folder.mkdir()
    assert SOURCE_SAE.run(work, SOURCE_SAE.settings(study, {"stitch": "pair", "d_sae": WIDTH})) == {}
    own, metadata = read_sae(tmp_path / "made" / "sae")
    sae, _ = read_sae(given)
    assert torch.equal(own.W_dec, sae.W_dec) and torch.equal(own.W_enc, sae.W_enc) and metadata["hook_name"] == HOOK
    (given / "cfg.json").write_text((given / "cfg.json").read_text() + "\n")
    assert Pipeline(study).stages[label].key != stage.key, "its content is in the key"


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        ({"normalize_activations": "layer_norm"}, {}, r"stitch\.pair\.sae: .*'layer_norm' .* give an SAE of raw"),
        (
            {"metadata": {"model_from_pretrained_kwargs": {"center_writing_weights": True}}},
            {},
            r"stitch\.pair\.sae: .* \(center_writing_weights\)",
        ),
        ({}, {"widths": [64]}, rf"stitch\.pair\.widths: \[64\] .*; set widths = \[{WIDTH}\]"),
        (
            {},
            {"source": "large", "target": "small", "target_hook_point": HOOK},
            r"stitch\.pair\.sae: .* reads 32 dimensions, and large is 48",
        ),
        ({}, {"sae": "nowhere"}, r"stitch\.pair\.sae: nowhere: no such folder"),
    ],
)
def test_an_sae_that_cannot_be_carried_is_refused_by_name(world: World, tmp_path, settings, changes, message):
    made = values(world.study.root, **{"sae": str(source_folder(world, tmp_path, **settings)), **changes})
    with pytest.raises(StudyError, match=message):
        Pipeline(Study.of(made, name="s", root=world.study.root))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"hook_name": "blocks.0.hook_resid_pre"}, r".* made for blocks\.0\.hook_resid_pre, .* set source_"),
        ({"model_state": "0"}, ".* was trained on other weights than those of small"),
    ],
)
def test_an_sae_of_another_place_or_model_is_refused(world: World, tmp_path, metadata, message):
    given = source_folder(world, tmp_path, metadata=metadata)
    study = Study.of(values(world.study.root, sae=str(given)), name="s", root=world.study.root)
    work = world.work(Pipeline(study).stages[f"source_sae/pair@{WIDTH}"], tmp_path)
    with pytest.raises(StudyError, match=rf"stitch\.pair\.sae: {message}"):
        SOURCE_SAE.run(work, SOURCE_SAE.settings(study, {"stitch": "pair", "d_sae": WIDTH}))


# -- probes -----------------------------------------------------------------------------------------------------------


def test_each_class_is_told_from_the_rest_by_every_arm_at_every_size(world: World):
    task, rows = world.row("probe_tasks", task="origin"), world.rows("probes", task="origin")
    assert (task["classes"], task["reason"], task["left_out"]) == ("code, words, sums", "", "129")
    assert (task["fitted"], task["tested"], task["least_share"]) == (90, 30, pytest.approx(1 / 3))
    expected = [(arm, k) for k in SIZES for arm in SPARSE] + list(DENSE.items())
    for label in CORPORA:
        assert sorted((row["arm"], row["k"]) for row in rows if row["label"] == label) == sorted(expected)
    assert len(rows) == 3 * len(expected)
    for row in rows:
        for score in ("accuracy", "balanced_accuracy", "auc"):
            low, high = row[f"{score}_low"], row[f"{score}_high"]
            assert 0 <= low <= row[score] <= high <= 1 and low < high
        assert (row["draws"], row["spread"] is None) == ((5, False) if row["arm"] == "random" else (1, True))
    # The corpora differ in every character, which whole vectors hardly miss.
    assert all(row["accuracy"] > 0.85 for row in rows if row["arm"] in ("dense_source", "dense_native"))


def test_means_are_those_of_the_classes_and_draws_those_of_the_large_table(world: World):
    draws = table_of(world.artifacts["probes/pair@origin"], "probe_draws").to_pylist()
    rows, means = world.rows("probes", task="origin"), world.rows("probe_means", task="origin")
    assert len(draws) == 3 * (len(SIZES) * (4 + 5) + 3) and len(means) == len(SPARSE) * len(SIZES) + len(DENSE)
    for row in rows:
        own = [one for one in draws if all(one[name] == row[name] for name in ("label", "arm", "k"))]
        assert [one["draw"] for one in own] == list(range(row["draws"]))
        for name in ("balanced_accuracy", "auc_low", "auc_high"):
            assert row[name] == pytest.approx(np.mean([one[name] for one in own]))
        if row["spread"] is not None:
            assert row["spread"] == pytest.approx(np.std([one["balanced_accuracy"] for one in own], ddof=1))
    for mean in means:
        own = [row["balanced_accuracy"] for row in rows if (row["arm"], row["k"]) == (mean["arm"], mean["k"])]
        assert mean["balanced_accuracy"] == pytest.approx(np.mean(own)) and mean["classes"] == len(own) == 3


def test_two_classes_are_told_apart_once(world: World):
    task = world.row("probe_tasks", task="kind")
    assert task["classes"] == "prose, code" and task["least_share"] == 0.5
    assert {row["label"] for row in world.rows("probes", task="kind")} == {"code"}
    assert all(mean["classes"] == 1 for mean in world.rows("probe_means", task="kind"))


def test_texts_are_held_out_ones_if_there_are_enough(world: World, tmp_path):
    work = world.work("probes/pair@origin", tmp_path)
    held_out = {text for name in CORPORA for text in texts_of(world, name)}
    for wanted, origin in ((3, "validation"), (60, "validation and train")):
        settings: Any = SimpleNamespace(task="origin", texts=wanted, seed=0)
        texts, splits = texts_of_corpora(work, settings)
        assert splits == origin and (set(texts.texts) <= held_out) == (origin == "validation")
        assert len(texts.texts) == 3 * wanted


def test_a_task_that_the_corpora_do_not_give_is_left_out_with_a_reason(world: World):
    task = world.row("probe_tasks", task="test")
    assert "class 'test' has 0 different texts of its own" in task["reason"] and task["least_share"] is None
    assert not world.rows("probes", task="test") and not world.rows("probe_means", task="test")
    assert any("no probes of test: class 'test'" in note.text for note in statements_of(world.tables))


def test_a_set_with_labels_of_its_own_is_read_and_a_change_of_it_is_seen(world: World, tmp_path):
    task = world.row("probe_tasks", task="topics")
    assert (task["origin"], task["classes"], task["fitted"], task["tested"]) == ("local:topics", "0, 1", 44, 16)

    def key() -> str:
        return Pipeline(world.study).stages["probes/pair@topics"].key

    file = world.study.root / "topics" / "train.jsonl"
    before, text = key(), file.read_text()
    assert before == world.pipeline.stages["probes/pair@topics"].key
    file.write_text(text + '\n{"body": "one more", "topic": 1}')
    assert key() != before
    file.write_text(text)
    made = values(world.study.root, probes={"tasks": [], "sets": topics(world.study.root, text="no_such")})
    wrong = r"s: stitch.pair.probes.sets.topics: .*train.jsonl, line 1: no column 'no_such'; it has body, topic"
    with pytest.raises(StudyError, match=wrong):
        check_inputs(Study.of(made, name="s", root=world.study.root))


# -- steering ---------------------------------------------------------------------------------------------------------


def test_both_models_are_steered_to_every_corpus_by_every_arm(world: World):
    judge, rows, gaps = world.row("steering_classifiers"), world.rows("steering"), world.rows("steering_gaps")
    assert judge["classes"] == "code, words, sums" and judge["reason"] == ""
    places, of = [(model, wanted) for model in ("small", "large") for wanted in CORPORA], {}
    for row in rows:
        of[row["model"], row["wanted"], row["arm"]] = row
    assert list(of) == [(*at, arm) for at in places for arm in STEERED] and len(of) == len(rows)
    assert [(gap["model"], gap["wanted"]) for gap in gaps] == places
    assert judge["accuracy"] > 0.9, "the corpora differ in every character"
    assert judge["fitted"] % 3 == judge["tested"] % 3 == 0 and judge["fitted"] > judge["tested"] > 0
    for row in rows:
        ends = row["share"], row["share_low"], row["share_high"]
        assert row["n"] == 6 and ends == pytest.approx(proportion(round(row["share"] * 6), 6))
    for gap in gaps:
        own = [of[gap["model"], gap["wanted"], arm] for arm in STEERED]
        assert gap["gap"] == transfer_gap(own[2]["share"], own[1]["share"]) and -1 <= gap["cosine"] <= 1
        changes = [row["change"] for row in own]
        assert changes[0] == 0 < changes[2] and changes[3] == pytest.approx(changes[1])


def test_gaps_stand_beside_the_frequency_in_the_maps_text(world: World):
    for model in ("small", "large"):
        frequencies = [row["frequency"] for row in world.rows("steering_gaps", model=model)]
        assert sum(frequencies) == pytest.approx(1) and min(frequencies) > 0.25, "corpora are read in equal parts"
        row = world.row("steering_frequencies", model=model)
        assert (row["corpora"], row["r"], row["reason"]) == (3, None, "3 corpora are too few, 4 are needed")
    rare, gaps = np.array([0.01, 0.04, 0.2, 0.3, 0.45]), np.array([0.1, 0.2, 0.6, 0.4, 0.9])
    found = gap_by_frequency(gaps, rare)
    assert found["r"] == pytest.approx(np.corrcoef(gaps, np.log(rare))[0, 1]) and found["reason"] == ""
    assert -1 < found["r_low"] < found["r"] < found["r_high"] < 1
    for gaps_, frequencies, says in (
        (gaps, np.array([0.19, 0.21, 0.2, 0.2, 0.2]), "the maps read all alike, 19–21 % of the tokens each"),
        (np.ones(5), rare, "all gaps are 1.00"),
    ):
        assert gap_by_frequency(gaps_, frequencies) == {"corpora": 5, "reason": says}


def test_chat_format_needs_a_template(world: World, tmp_path):
    stage = world.changed("steering/pair", steering={"prompts": 6, "chat": True})
    stage.make(world.work(stage, tmp_path))
    judge = pq.read_table(tmp_path / "steering_classifiers.parquet").to_pylist()[0]
    assert "no chat template" in judge["reason"] and pq.read_table(tmp_path / "steering.parquet").num_rows == 0


def test_models_continue_held_out_beginnings_of_the_other_corpora(world: World):
    for wanted in CORPORA:
        others = [text for name in CORPORA if name != wanted for text in texts_of(world, name)]
        for row in world.rows("steering_examples", wanted=wanted):
            assert row["prompt"] and any(other.startswith(row["prompt"]) for other in others)
            whole = row["prompt"] + row["text"]
            assert not any(other.startswith(whole) for other in others) or len(row["text"]) < 40
        for model in ("small", "large"):
            own = world.rows("steering_examples", wanted=wanted, model=model)
            assert len({row["prompt"] for row in own if row["arm"] == "none"}) == 2
            by_arm = {arm: tuple(row["text"] for row in own if row["arm"] == arm) for arm in STEERED}
            assert len(set(by_arm.values())) > 2


def test_one_corpus_leaves_nothing_to_steer_between(world: World, tmp_path):
    made = values(world.study.root)
    made["model"]["large"]["train"]["corpora"] = ["words"]
    pipeline = Pipeline(Study.of(made, name="s", root=world.study.root))
    pipeline.stages["steering/pair"].make(world.work("steering/pair", tmp_path))
    judge = pq.read_table(tmp_path / "steering_classifiers.parquet").to_pylist()[0]
    assert "both models have read words only" in judge["reason"] and judge["classes"] == "words"
    assert judge["accuracy"] is None and pq.read_table(tmp_path / "steering.parquet").num_rows == 0


def test_a_text_longer_than_the_models_context_is_an_error_by_its_place(world: World, tmp_path):
    long = {"prompts": 6, "prompt_tokens": 5, "max_tokens": 2045, "vectors": 500}
    stage = world.changed("steering/pair", steering=long)
    with pytest.raises(StudyError, match=r"s: stitch.pair.steering: small to code: .*; lower max_tokens"):
        stage.make(world.work("steering/pair", tmp_path))


@pytest.mark.parametrize("label", ["steering/pair", "feature_transfer/pair", "probes/pair@kind"])
def test_a_stage_gives_the_same_again(world: World, tmp_path, label):
    world.pipeline.stages[label].make(world.work(label, tmp_path))
    for file in tmp_path.glob("*.parquet"):
        assert pq.read_table(file).equals(pq.read_table(world.artifacts[label] / file.name)), file.name


# -- features ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def column(world: World) -> dict[str, np.ndarray]:
    return world.columns("feature_transfer/pair", "transferred_features")


def test_activations_correlate_as_numpy_says(world: World, column, tmp_path):
    row, work = world.row("feature_transfer"), world.work("feature_transfer/pair", tmp_path)
    assert not world.rows("transfer_gaps") and row["d_sae"] == WIDTH and 20 < row["judged"] <= WIDTH
    assert SEEN / 2 < row["tokens"] < SEEN + CONTEXT, "whole blocks"
    settings = feature_transfer.ANALYSIS.settings(world.study, {"stitch": "pair"})
    sides = Sides.of(work)
    sae = sides.read_sae(work.inputs["source_sae"])
    ids, moved = torch.from_numpy(settings.blocks(work, "validation", SEEN)), transfer_sae(sae, *sides.stitch)
    a = sae.encode(capture(*sides.source, ids).flatten(0, 1)).double().numpy()
    b = moved.encode(capture(*sides.target, ids).flatten(0, 1)).double().numpy()
    assert ids.numel() == row["tokens"] and np.array_equal(column["source_firings"], (a > 0).sum(0))
    assert np.array_equal(column["judged"], (a > 0).sum(0) >= RARE_FIRINGS) and column["judged"].sum() == row["judged"]
    pearson(column["activation_r"], a, b)
    np.testing.assert_allclose(column["source_peak"], a.max(0), rtol=1e-4)
    known = column["activation_r"][column["judged"] & np.isfinite(column["activation_r"])]
    spread = world.row("transfer_correlations", measure="activation", features="judged")
    bins = world.rows("transfer_histograms", measure="activation", features="judged")
    assert spread["n"] == len(known) == sum(row["n"] for row in bins) and len(bins) == 40
    names = ("q05", "q25", "median", "q75", "q95")
    np.testing.assert_allclose([spread[name] for name in names], np.quantile(known, [0.05, 0.25, 0.5, 0.75, 0.95]))
    share = null_share(*sides.target, moved.W_dec).share
    np.testing.assert_allclose(column["carried_null_share"], share, rtol=1e-5)


def test_trained_features_keep_more_of_what_they_push_than_random_ones(world: World, column):
    row = world.row("feature_transfer")
    groups = {one["features"]: one for one in world.rows("transfer_correlations", measure="attribution")}
    own = column["attribution_r"][column["judged"]]
    own = own[np.isfinite(own)]
    assert row["k"] == K, "the L0 of a topk SAE is its k"
    assert groups["judged"]["n"] == len(own) and row["cut"] == groups["random"]["q95"] and groups["random"]["n"] > 20
    assert row["above"] == pytest.approx((own > row["cut"]).mean())
    assert row["negative"] == pytest.approx((own < 0).mean()) and groups["judged"]["median"] > 0.1


def test_structural_and_semantic_features_are_compared(world: World, column):
    split, classes = world.row("transfer_split"), {row["features"]: row for row in world.rows("transfer_classes")}
    assert split["corpus"] == "words", "code comes first, but is no prose"
    assert split["versions"] == 3 and split["prompts"] + split["unchanged"] == 20 and split["prompts"] > 10
    own = {name: column[name] & column["judged"] for name in ("structural", "semantic")}
    assert not (own["structural"] & own["semantic"]).any()
    assert all(classes[name]["n"] == mask.sum() > 0 for name, mask in own.items())
    judged = world.row("feature_transfer")["judged"]
    assert classes["structural"]["n"] + classes["semantic"]["n"] + split["neither"] == judged
    firings = column["source_firings"] / world.row("feature_transfer")["tokens"]
    assert classes["structural"]["density"] == pytest.approx(np.median(firings[own["structural"]]))
    tests = {row["measure"]: row for row in world.rows("transfer_class_tests")}
    assert set(tests) == {"attribution", "activation", "density"}
    for name, each in {"activation": column["activation_r"], "density": firings}.items():
        groups = [each[mask] for mask in own.values()]
        groups = [group[np.isfinite(group)] for group in groups]
        test = mannwhitneyu(*groups, alternative="two-sided")
        assert tests[name]["p"] == pytest.approx(test.pvalue)
        assert tests[name]["effect"] == pytest.approx(test.statistic / (len(groups[0]) * len(groups[1])))


def test_shares_of_classes_stand_beside_what_chance_gives(world: World, column):
    for row in world.rows("transfer_classes"):
        own = column[row["features"]] & column["judged"]
        assert row["share"] == pytest.approx(np.median(column["share"][own]))
        assert row["share_by_chance"] == pytest.approx(np.median(column["share_by_chance"][own]))
        assert row["structural_by_chance"] == (column["share_by_chance"][own] >= 0.5).sum()
    known = column["judged"] & np.isfinite(column["attribution_r"])
    for name in ("structural", "semantic"):
        tenths = world.rows("transfer_percentiles", features=name)
        assert [row["percentile"] for row in tenths] == [10 * tenth for tenth in range(10)]
        assert sum(row["judged"] for row in tenths) == known.sum()
        assert sum(row["n"] for row in tenths) == (known & column[name]).sum()
        assert [row["r"] for row in tenths] == sorted(row["r"] for row in tenths)


def test_classes_planted_at_the_ends_fill_the_end_tenths():
    """Semantic features at both ends of r, structural ones in the middle (figure 4b)."""
    r = np.random.default_rng(0).permutation(np.linspace(-1, 1, 200))
    r[7] = np.nan
    classes = {"structural": np.abs(r) < 0.5, "semantic": np.abs(r) > 0.75}
    rows = list(percentiles(r, np.arange(200) > 3, classes))
    assert sum(row["judged"] for row in rows) == 2 * 195
    share = {name: [row["share"] for row in rows if row["features"] == name] for name in classes}
    assert share["semantic"][0] == share["semantic"][-1] == 1 and share["structural"][4:6] == [1, 1]
    assert max(share["semantic"][3:7]) == 0 and share["structural"][0] == share["structural"][-1] == 0
    assert rows[0]["overall"] == pytest.approx(0.5, abs=0.02) and rows[0]["share_high"] < 0.25


def test_examples_show_a_feature_where_it_fires(world: World, column):
    examples = world.rows("class_examples")
    assert {row["features"] for row in examples} == {"structural", "semantic"}
    for row in examples:
        i, structural = row["feature"], row["features"] == "structural"
        assert column[row["features"]][i] and column["judged"][i] and row["prompts"] >= 5
        assert row["share"] == column["share"][i] and row["share_by_chance"] == column["share_by_chance"][i]
        assert row["context"].count("«") == 1 and row["version"].count("«") == structural
        assert row["tokens"].endswith("%") and row["context"].replace("«", "").replace("»", "") != row["version"]
    surest = [row["share"] - row["share_by_chance"] for row in examples if row["features"] == "structural"]
    assert surest == sorted(surest, reverse=True)


def test_functional_features_are_the_highest_of_their_kind(world: World, column):
    row, spaces, judged = world.row("feature_transfer"), world.rows("transfer_null_space"), column["judged"]

    def best(values: np.ndarray) -> list[int]:
        return [i for i in np.argsort(-values, kind="stable") if judged[i]][:2]

    entropy = world.rows("entropy_features")
    expected = best(column["null_share"] * column["source_peak"])  # trained decoder rows have unit norm
    assert [each["feature"] for each in entropy] == expected
    assert entropy[0]["share"] == pytest.approx(column["null_share"][expected[0]])
    assert [space["dimensions"] for space in spaces] == [1, 1]
    assert [space["by_chance"] for space in spaces] == pytest.approx([32**-0.5, 48**-0.5])
    for rank, name in (("null_share_rank", "null_share"), ("head_score_rank", "head_score")):
        both = (column[each][judged] for each in (name, f"carried_{name}"))
        assert row[rank] == pytest.approx(rank_correlation(*both))
    heads, (first, second) = world.rows("deactivation_features"), best(column["head_score"])
    expected = [(i, end, effect) for i in (first, second) for end in ("source", "target") for effect in ("off", "on")]
    assert [(each["feature"], each["end"], each["effect"]) for each in heads] == expected
    assert row["first_token"] == "bos"
    for each in heads:
        source = each["end"] == "source"
        highest = column["head_score" if source else "carried_head_score"][each["feature"]]
        assert each["null_share"] == column["null_share" if source else "carried_null_share"][each["feature"]]
        curve = world.rows("attention_curves", **{name: each[name] for name in ("feature", "end", "effect")})
        assert sum(point["tokens"] for point in curve) == each["tokens"] and (each["tokens"] > 0 or not source)
        if each["tokens"]:
            assert each["score"] <= highest + 1e-4 and each["layer"] == (1 if source else 2) and 0 <= each["head"] < 4
            assert 0 < each["attention"] < 1 and each["norm"] > 0
            drops = [point["attention_drop"] * point["tokens"] for point in curve]
            assert each["attention_drop"] == pytest.approx(sum(drops) / each["tokens"])
            assert each["attention_drop_low"] < each["attention_drop"] < each["attention_drop_high"]


def test_entropy_features_are_those_high_in_share_and_push(world: World, column):
    """All judged features are drawn here, so that the table holds what the counts are made of."""
    shares, judged = world.rows("null_shares"), column["judged"]
    for end, name in (("source", "null_share"), ("target", "carried_null_share")):
        own, space = [row for row in shares if row["end"] == end], world.row("transfer_null_space", end=end)
        assert [row["feature"] for row in own] == np.flatnonzero(judged).tolist()
        np.testing.assert_allclose([row["share"] for row in own], column[name][judged])
        cuts = [np.quantile([row[of] for row in own], 0.95) for of in ("share", "push")]
        assert [space["share_cut"], space["push_cut"]] == pytest.approx(cuts)
        high = {row["feature"] for row in own if row["share"] > cuts[0] and row["push"] > cuts[1]}
        assert {row["feature"] for row in own if row["high"]} == high and space["high"] == len(high)
        assert space["high_by_chance"] == pytest.approx(0.05**2 * judged.sum(), rel=0.5)
    both = [{row["feature"] for row in shares if row["end"] == end and row["high"]} for end in ("source", "target")]
    assert space["kept"] == len(both[0] & both[1])
    assert space["kept_by_chance"] == pytest.approx(len(both[0]) * len(both[1]) / judged.sum())


def test_parts_without_a_result_say_why_and_the_others_are_there(world: World):
    gaps = {row["part"]: row["reason"] for row in world.rows("transfer_gaps", "late")}
    assert set(gaps) == {"deactivation"} and "no attention follows blocks.1.hook_resid_post" in gaps["deactivation"]
    row = world.row("feature_transfer", "late")
    assert row["attribution_tokens"] and row["head_score_rank"] is None and row["null_share_rank"] is not None
    column = world.columns("feature_transfer/late", "transferred_features")
    assert len(column["feature"]) == 64 and np.isnan(column["head_score"]).all()
    assert np.isfinite(column["null_share"]).all()


def test_prose_is_found_or_named_and_few_values_have_quantiles(world: World):
    corpora = {name: world.artifacts[f"corpus/{name}"] for name in ("code", "words")}
    assert prose_corpus(corpora, None) == "words" and prose_corpus(corpora, "code") == "code"
    with pytest.raises(ValueError, match="of the common corpora, code, none is prose"):
        prose_corpus({"code": corpora["code"]}, None)
    assert set(quantiles(np.array([np.nan])).values()) == {None}
    assert quantiles(np.array([2.0, np.nan]))["q05"] == 2


# -- lineage ----------------------------------------------------------------------------------------------------------


def test_lineage_by_maps_is_that_of_a_plain_computation(world: World, tmp_path):
    edge, work = world.row("mapped_edges", "along"), world.work("lineage_by_maps/along", tmp_path)
    assert (edge["edge"], edge["reason"], edge["one_sae"], edge["hook_point"]) == ("small->child", "", True, HOOK)
    settings = lineage_by_maps.ANALYSIS.settings(world.study, {"stitch": "along"})
    sides = Sides.of(work)
    sae = sides.read_sae(work.inputs["parent_sae"])
    ids = torch.from_numpy(settings.blocks(work, "validation", 1_500))
    assert edge["tokens"] == ids.numel() > 750
    x, y = (capture(*end, ids).flatten(0, 1) for end in (sides.source, sides.target))
    column = world.columns("lineage_by_maps/along", "mapped_features")
    arms = {row["arm"]: row for row in world.rows("lineage_by_maps", "along")}
    explained = [(edge, x, sae), (arms["unchanged"], y, sae), (arms["carried"], y, transfer_sae(sae, *sides.stitch))]
    for row, read, reader in explained:
        variance = Variance().update(read, reader(read)).result().explained_variance
        assert row["explained_variance"] == pytest.approx(variance, abs=1e-4)
        if row is not edge:
            codes = (each.encode(part).double().numpy() for each, part in ((sae, x), (reader, y)))
            pearson(column[f"{row['arm']}_r"], *codes)
    best = read_matches(work.inputs["match"]).parent_r[:, 0]
    np.testing.assert_array_equal(column["matched_r"], best)
    assert edge["threshold"] == edge_row(work.inputs["match"])["threshold"]
    assert edge["matched"] == (best > edge["threshold"]).sum() and edge["live"] == np.isfinite(best).sum()
    for row in arms.values():
        assert row["both"] + row["only_matched"] == edge["matched"]
        assert row["persisting"] + row["only_matched"] + row["neither"] == edge["live"]
        assert row["rank"] > 0, "what is kept, is kept by either"


def test_maps_between_other_places_give_a_reason(world: World):
    edge = world.row("mapped_edges", "elsewhere")
    assert f"from {HOOK} to blocks.0.hook_resid_pre, but features are followed at {HOOK}" in edge["reason"]
    assert not world.rows("lineage_by_maps", "elsewhere") and edge["live"] is None


# -- sentences --------------------------------------------------------------------------------------------------------


def test_every_question_about_a_stitch_has_a_finding(world: World):
    asked = [(one.about, one.question) for one in statements_of(world.tables) if one.about.startswith("stitch ")]
    pair = ["maps", "SAEs", "training", "probes", "note", "steering", "steering", "features"]
    assert [question for about, question in asked if about == "stitch pair"] == pair
    assert ("stitch along", "lineage") in asked and ("stitch elsewhere", "note") in asked
    said = statements_of(world.tables)
    text = next(one.text for one in said if (one.about, one.question) == ("stitch pair", "SAEs"))
    maps = next(one for one in said if (one.about, one.question) == ("stitch pair", "maps"))
    assert any("the published descent (learning rate 0.0001, epochs 2)" in line for line in maps.evidence)
    assert any("the descent (learning rate 0.01, epochs 2)" in line for line in maps.evidence)
    fvu = world.row("sae_transfer", variant="transferred")["fvu"]
    assert f"leaves {100 * fvu:.0f} %" in text or f"leaves {100 * fvu:.1f} %" in text


# -- the command line -------------------------------------------------------------------------------------------------


def test_a_study_of_stitches_is_summarized_exported_and_drawn(stitch, tmp_path):
    asked = (stitch.path, "--runs", stitch.runs)
    summary = json.loads((stitch.run.folder / "summary.json").read_text())
    assert "stitch_maps" in summary["tables"] and set(summary["tables"]) == set(stitch.run.tables)
    texts = [statement.text for statement in stitch.run.statements if statement.question != "note"]
    assert [row["text"] for row in summary["statements"]] == texts
    report = markdown.render(stitch.run)
    told = [one.text for one in stitch.run.statements if one.question not in ("note", *markdown.LEFT_OUT)]
    assert all(text in report for text in told) and "### Stitches: pairs of models" in report and len(report) < 50_000
    files = json.loads(command("export", *asked, "-o", tmp_path, "--json").stdout)["files"]
    assert {Path(file).stem for file in files} >= set(stitch.run.tables)
    page = (stitch.run.folder / "report.html").read_text()
    assert 'src="http' not in page and "pair" in page and len(page) < 5_000_000
    result = command("stitch", *asked)
    assert "pair" in result.stdout and not [line for line in result.stderr.splitlines() if line.endswith(" s")]


def test_a_run_is_set_beside_the_second_paper_with_all_its_pictures(stitch, tmp_path):
    pytest.importorskip("matplotlib")
    asked = (stitch.path, "--runs", stitch.runs, "--paper", "stitching", "-o", tmp_path / "beside.md", "--json")
    value = json.loads(command("reproduce", *asked).stdout)
    measured = {row["element"] for row in value["beside_paper"] if row["agreement"] != "not measured"}
    assert {63, 64, 67, 71, 76, 77, 78, 81, 84, 85, 88, 89, 90, 92, 93, 94} <= measured
    widths = [row for row in value["beside_paper"] if row["element"] == 64 and row["what"].endswith("small to large")]
    (own,) = [row for row in stitch.rows("stitched_models", way="up") if row["stitch"] == "pair"]
    assert widths[0]["value"] == own["increase"]
    pictures = sorted(path.name for path in (tmp_path / "beside_pictures").iterdir())
    assert len(pictures) >= 10 and (tmp_path / "beside.md").read_text().count("![") == len(pictures)
