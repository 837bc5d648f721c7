"""SAEs carried through a stitch of two tiny models, and trained in the target from every start."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import tiny
from heredity.engine.stage import Silent, Stage, Work, run
from heredity.engine.store import Artifact, Store
from heredity.engine.workers import Here
from heredity.sae.evaluate import quality
from heredity.sae.formats import read_sae
from heredity.sae.model import new_sae
from heredity.stages.beginnings import BEGINNING, beginning_label, beginnings_of, savings_of, source_label
from heredity.stages.carried import _Given, _variants, carried_of, carried_stages
from heredity.stages.models import model_stage
from heredity.stages.stitch import Sides, maps_of, maps_stage
from heredity.stages.text import corpus_stage, tokenizer_stage, tokens_stage
from heredity.stitch.affine import Affine, Stitch
from heredity.stitch.savings import dense_flops, fold_flops, sparse_flops
from heredity.stitch.transfer import transfer_sae
from heredity.study import StitchConfig, StudyError, load_study

WIDTH, K = 128, 8


class World(NamedTuple):
    """A study that has been run."""

    stages: dict[str, Stage]
    artifacts: dict[str, Artifact]
    store: Store
    config: StitchConfig


def study(folder: Path, **stitch: Any):
    shape = {"d_mlp": 32, "n_heads": 4, "corpora": ["words", "code"], "tokens": 20_000}
    shape |= {"batch_size": 8, "context_size": 32, "lr": 5e-3, "precision": "float32"}
    values = tiny.study_values(folder)
    values |= {
        "hook_point": "blocks.1.hook_resid_pre",
        "model": {
            "small": {"train": {"d_model": 32, "n_layers": 2, **shape}},
            "large": {"train": {"d_model": 48, "n_layers": 3, **shape}},
        },
        "sae": values["sae"] | {"tokens": 60_000, "lr": 1e-3},
        "stitch": {
            "pair": {
                "source": "small",
                "target": "large",
                "target_hook_point": "blocks.2.hook_resid_pre",
                "tokens": 20_000,
                "held_out": 3_000,
                "context_size": 32,
                "evaluation": 1_500,
                "widths": [WIDTH],
                "adam": {"epochs": 0},
                **stitch,
            }
        },
    }
    for name in ("case", "report"):
        values.pop(name)
    values["corpus"] = {name: values["corpus"][name] for name in ("words", "code")}
    return load_study(tiny.toml(values, folder / "study.toml"))


def listed(folder: Path, **stitch: Any) -> dict[str, Stage]:
    made = study(folder, **stitch)
    corpora = {name: corpus_stage(made, name) for name in made.config.corpus}
    tokenizer = tokenizer_stage(made, corpora)
    tokens = {name: tokens_stage(name, corpus, tokenizer) for name, corpus in corpora.items()}
    models = {name: model_stage(made, name, {}, tokens, tokenizer, None) for name in made.order}
    maps = maps_stage(made, "pair", models, tokens, tokenizer)
    base = [*corpora.values(), tokenizer, *tokens.values(), *models.values(), maps]
    return {stage.label: stage for stage in base} | carried_stages(made, "pair", models, maps, tokens, tokenizer)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    folder = tmp_path_factory.mktemp("carried")
    stages, store = listed(folder), Store(folder / "runs")
    return World(stages, run(list(stages.values()), store), store, study(folder).config.stitch["pair"])


def test_stages_come_in_order_and_their_keys_follow_what_matters(tmp_path):
    stages = listed(tmp_path)
    names = [label for label, stage in stages.items() if stage.kind in ("sae", "carried", "beginning")]
    arms = [f"beginning/pair-{WIDTH}-{arm}" for arm in ("random", "transferred", "repaired", "geometry")]
    assert names == [f"sae/pair-source-{WIDTH}", f"carried/pair-{WIDTH}", *arms]
    assert names[0] == source_label("pair", WIDTH) and names[2] == beginning_label("pair", WIDTH, "random")
    seen = set[str]()
    for stage in stages.values():
        assert {source.key for source in stage.inputs.values()} <= seen
        seen.add(stage.key)
    assert "source" not in stages[arms[0]].inputs, "the native SAE needs nothing of the source's"
    other = listed(tmp_path, evaluation=1_400, thresholds=[0.5])
    changed = {label for label in names if other[label].key != stages[label].key}
    assert changed >= {f"carried/pair-{WIDTH}"} and source_label("pair", WIDTH) not in changed
    narrow = listed(tmp_path, widths=[64], arms=[])
    assert [label for label in narrow if "-64" in label] == ["sae/pair-source-64", "carried/pair-64"]
    with pytest.raises(StudyError, match=r"stitch.pair.widths: 4 features are fewer than sae.k = 8"):
        listed(tmp_path, widths=[4])


def test_a_carried_sae_explains_less_than_at_home_and_repairs_help(world: World):
    told = carried_of(world.artifacts, "pair", WIDTH)
    assert list(told.figures) == ["source", "transferred", "normalized", "bias", "decoder"]
    assert told.left_out.keys() == {"density", "unchanged", "aligned"}
    assert told.left_out["unchanged"] == "the models are 32 and 48 wide"
    ev = {name: own.explained_variance or -1.0 for name, own in told.figures.items()}
    assert ev["source"] > ev["transferred"] > 0 and ev["decoder"] > ev["bias"] > ev["transferred"] - 0.01
    for own in told.figures.values():
        assert own.l0 == pytest.approx(K, abs=0.5) and own.fvu == pytest.approx(1 - (own.explained_variance or 0))
        assert own.delta_loss == pytest.approx((own.ce_spliced or 0) - (own.ce_clean or 0))
    assert told.figures["bias"].ce_clean == told.figures["decoder"].ce_clean != told.figures["source"].ce_clean
    assert (told.folding_error or 1) < 1e-4 and (told.other_features or 0) < 0.01
    assert 0.5 < (told.same_selection or 0) <= 1 and told.d_sae == WIDTH and 0 < told.tokens <= 1_536


def test_carried_saes_are_folders_that_can_be_read(world: World):
    folder = world.artifacts[f"carried/pair-{WIDTH}"].folder
    found = {name: read_sae(folder / name) for name in ("transferred", "normalized", "bias", "decoder")}
    for name, (sae, metadata) in found.items():
        assert (sae.d_in, sae.d_sae, sae.activation, sae.k) == (48, WIDTH, "topk", K)
        assert metadata["model_name"] == "large" and metadata["transferred_from"] == "small"
        assert metadata["variant"] == name and metadata["hook_name"] == "blocks.2.hook_resid_pre"
    torch.testing.assert_close(found["normalized"][0].W_dec.norm(dim=1), torch.ones(WIDTH))
    source, metadata = read_sae(world.artifacts[source_label("pair", WIDTH)] / "sae")
    assert (source.d_in, source.d_sae) == (32, WIDTH) and metadata["hook_name"] == "blocks.1.hook_resid_pre"


def test_every_start_is_trained_on_and_a_carried_one_begins_higher(world: World):
    found = beginnings_of(world.artifacts, "pair", WIDTH)
    assert list(found) == ["random", "transferred", "repaired", "geometry"]
    starts = {arm: own.curve[0].explained_variance or 0 for arm, own in found.items()}
    assert starts["repaired"] > starts["transferred"] > starts["random"] + 0.1
    assert starts["transferred"] > starts["geometry"]
    steps = -(-60_000 // 256)
    for arm, own in found.items():
        rows = own.curve
        assert own.arm == arm and (own.steps, own.vectors, own.d_in, own.d_sae) == (steps, 256 * steps, 48, WIDTH)
        assert [row.step for row in rows] == sorted({row.step for row in rows}) and 15 < len(rows) <= 25
        assert rows[0].step == 0 and rows[1].step == 1 and rows[-1].step == steps
        assert rows[0].flops == rows[0].sparse_flops == 0 and own.flops == dense_flops(48, WIDTH, 256 * steps)
        assert own.sparse_flops == pytest.approx(sparse_flops(48, WIDTH, K, 256 * steps), rel=0.01)
        seconds = [row.seconds or 0 for row in rows]
        assert seconds == sorted(seconds) and own.seconds == seconds[-1] > seconds[0]
        assert own.explained_variance == rows[-1].explained_variance and (own.explained_variance or 0) > starts[arm]
        assert (rows[0].l0 or 0) <= K and own.l0 == rows[-1].l0
        sae, metadata = read_sae(world.artifacts[beginning_label("pair", WIDTH, arm)] / "sae")  # type: ignore[arg-type]
        assert metadata["model_name"] == "large" and metadata["training_tokens"] == own.vectors and sae.d_in == 48
        left = {path.name for path in world.artifacts[f"beginning/pair-{WIDTH}-{arm}"].folder.iterdir()}
        assert left == {"beginning.json", "config.json", "manifest.json", "sae", "training.json"}
    assert len({own.held_out for own in found.values()}) == 1
    assert found["random"].start_flops == found["random"].start_seconds == found["random"].revived == 0
    assert found["transferred"].start_flops == fold_flops(32, 48, WIDTH) < (found["repaired"].start_flops or 0)


def test_all_arms_read_the_same_vectors_in_the_same_order(world: World, tmp_path):
    stages = [world.stages[beginning_label("pair", WIDTH, arm)] for arm in ("random", "transferred", "repaired")]
    assert len({stage.config["seed"] for stage in stages}) == len({stage.config["held_out_seed"] for stage in stages})
    logs = [world.artifacts[stage.label].json("training.json") for stage in stages]
    assert logs[0] != logs[1] and len(logs[0]) == len(logs[1])


class Killer(Silent):
    """Ends the process, as it were, at a step of a stage."""

    def __init__(self, label: str, step: int) -> None:
        self.label, self.step = label, step

    def progress(self, stage: Stage, done: int, total: int) -> None:
        if (stage.label, done) == (self.label, self.step):
            raise KeyboardInterrupt


def test_a_killed_training_goes_on_with_the_same_curve(world: World, tmp_path, monkeypatch):
    import heredity.sae.train as room

    arm = "repaired"
    label = beginning_label("pair", WIDTH, arm)
    whole = world.artifacts[label].json(BEGINNING)
    store = Store(tmp_path / "runs")
    shutil.copytree(world.store.root, store.root, ignore=shutil.ignore_patterns(f"*pair-{WIDTH}-{arm}-*", ".lock"))
    monkeypatch.setattr(room, "train", partial(room.train, checkpoint_seconds=0))
    stop = [row["step"] for row in whole["curve"]][-4]
    with pytest.raises(KeyboardInterrupt):
        run(list(world.stages.values()), store, Killer(label, stop))
    (partial_,) = (store.root / "beginning").glob(f".partial-pair-{WIDTH}-{arm}-*")
    kept = json.loads((partial_ / "curve.json").read_text())
    assert kept[-1]["step"] == stop, "the row of a step after the checkpoint's, to be dropped"
    assert (partial_ / "clock").stat().st_size == 8 * (stop + 1)
    again = run(list(world.stages.values()), store)[label].json(BEGINNING)
    timed = ("seconds", "start_seconds")

    def untimed(told: dict[str, Any]) -> dict[str, Any]:
        rows = [{key: value for key, value in row.items() if key not in timed} for row in told["curve"]]
        return {key: value for key, value in told.items() if key not in timed} | {"curve": rows}

    assert untimed(again) == untimed(whole)
    seconds = [row["seconds"] for row in again["curve"]]
    assert seconds == sorted(seconds)
    before = [row for row in kept if row["step"] < stop]
    assert again["curve"][: len(before)] == before, "seconds before the kill are kept"
    assert [path.name for path in (store.root / "beginning").glob(f"*-{arm}-*/c*")] == ["config.json"]


def test_savings_count_the_maps_and_the_sources_sae(world: World):
    rows = savings_of(world.artifacts, "pair", world.config.model_copy(update={"thresholds": (0.5, 0.9999)}))
    assert [(row.arm, row.threshold) for row in rows] == [
        (arm, level) for arm in ("transferred", "repaired", "geometry") for level in (0.5, 0.9999)
    ]
    maps = maps_of(world.artifacts["stitch/pair"])
    source = dense_flops(32, WIDTH, 256 * (-(-60_000 // 256)))
    found = beginnings_of(world.artifacts, "pair", WIDTH)
    for row in rows:
        if row.threshold == 0.9999:
            assert row.never == (row.arm, "random") and row.saved_flops is row.flops is row.saved_seconds is None
            continue
        assert row.never == () and None not in row.model_dump().values()
        random = next(own.flops for own in found["random"].curve if (own.explained_variance or 0) >= 0.5)
        assert random is not None and (row.arm == "geometry" or (row.flops or 0) <= random)
    one, turned = rows[0], rows[4]
    spent = (one.saved_flops or 0) - (one.saved_flops_with_source or 0)
    start = found["transferred"].start_flops or 0
    other = source / spent
    assert 1 - ((one.flops or 0) + (maps.fits["joint"].flops or 0) + start) / other == pytest.approx(one.saved_flops)
    start = found["geometry"].start_flops or 0
    assert 1 - ((turned.flops or 0) + start) / other == pytest.approx(turned.saved_flops), "a turn needs no maps"


def test_an_sae_of_a_model_of_the_same_width_is_also_used_as_it_is(tmp_path):
    """B is A turned: unchanged the SAE is worth little there, through maps that only turn all of it."""
    normal = torch.randn(400, 12, generator=torch.Generator().manual_seed(0))
    a = normal * torch.linspace(0.2, 3, 12) + 1
    turn = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(1))).Q
    exact = Stitch(Affine(turn, torch.ones(12)), Affine(turn.T, -(torch.ones(12) @ turn.T)))
    exact.save(tmp_path / "procrustes")
    sae = new_sae(12, 48, "jumprelu", None, torch.Generator().manual_seed(2))
    sae.b_dec.copy_(a.mean(0))
    sae.W_enc *= 0.3
    assert sae.threshold is not None
    sae.threshold += 0.1
    weak = Stitch(exact.up, Affine(0.8 * exact.down.weight, 0.8 * exact.down.bias + 0.2 * a.mean(0)))
    b, density = exact.up(a), quality(sae, [a]).density
    sides = Sides(None, None, "", "", weak, [])
    work = Work(tmp_path, {"stitch": Artifact(tmp_path, "")}, {}, lambda *_: None, Here())
    made, left_out = _variants(_Given(sae, transfer_sae(sae, *weak), b, density), sides, work)
    assert left_out == {}
    found = {name: quality(each, [b]) for name, each in {**made, "source": sae}.items()}
    assert list(made) == ["transferred", "normalized", "bias", "decoder", "density", "unchanged", "aligned"]
    home = quality(sae, [a]).explained_variance
    ev = {name: own.explained_variance for name, own in found.items()}
    assert ev["aligned"] == pytest.approx(home, abs=1e-4) and ev["unchanged"] < home - 0.2
    assert ev["unchanged"] == ev["source"] and ev["decoder"] > ev["bias"] > ev["transferred"] < home
    np.testing.assert_allclose(found["density"].density, density, atol=1.5 / len(b))
    few, left_out = _variants(_Given(sae, transfer_sae(sae, *weak), b[:90], density), sides, work)
    assert left_out == {"decoder": "90 vectors are fewer than two a feature"} and "decoder" not in few
