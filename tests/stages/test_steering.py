"""Texts of two joined models, steered towards each corpus, in a study that runs in seconds."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from heredity.engine.stage import Stage, run
from heredity.engine.store import Artifact, Store
from heredity.report.probing import SteeringRow
from heredity.stages.steering import STEERING, steering_of, steering_stage
from heredity.stitch.probe import proportion
from heredity.stitch.steer import transfer_gap
from heredity.study import StudyError
from stages.test_probes import Joined, joined

ARMS = ("none", "native", "carried", "random")
SMALL = {"prompts": 6, "prompt_tokens": 5, "max_tokens": 8, "vectors": 500}


def stage_of(made: Joined) -> Stage | None:
    return steering_stage(made.study, "pair", made.inputs, made.corpora)


def steered(made: Joined, runs: Path) -> Mapping[str, Artifact]:
    stage = stage_of(made)
    assert stage is not None
    return run([*made.stages, stage], Store(runs))


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[Joined, Mapping[str, Artifact], Path]:
    folder = tmp_path_factory.mktemp("steering")
    made = joined(folder, steering=SMALL)
    return made, steered(made, folder / "runs"), folder


def test_both_models_are_steered_to_every_corpus_by_every_arm(world):
    made, artifacts, _ = world
    found = steering_of(artifacts["steering/pair"])
    assert found.model_dump(mode="json") == artifacts["steering/pair"].json(STEERING)
    assert found.classes == ("words", "code", "sums") and found.reason == ""
    places = [(model, wanted) for model in ("small", "large") for wanted in found.classes]
    assert [(row.model, row.wanted, row.arm) for row in found.rows] == [(*at, arm) for at in places for arm in ARMS]
    assert [(gap.model, gap.wanted) for gap in found.gaps] == places
    assert found.accuracy is not None and found.accuracy[0] > 0.9, "the corpora differ in every character"
    assert found.fitted % 3 == found.tested % 3 == 0 and found.fitted > found.tested > 0
    of = {(row.model, row.wanted, row.arm): row for row in found.rows}
    for row in found.rows:
        assert row.n == 6 and row.share == pytest.approx(proportion(round(row.share[0] * 6), 6))
    for gap in found.gaps:
        shares = [of[gap.model, gap.wanted, arm].share[0] for arm in ("carried", "native")]
        assert gap.gap == transfer_gap(*shares) and -1 <= gap.cosine <= 1
        changes = [of[gap.model, gap.wanted, arm].change for arm in ARMS]
        assert changes[0] == 0 < changes[2] and changes[3] == pytest.approx(changes[1])


def examples(rows: list[SteeringRow]) -> set[tuple[str, str]]:
    return {(one.prompt, one.text) for row in rows for one in row.examples}


def test_models_go_on_from_held_out_beginnings_of_the_other_corpora(world):
    found, artifacts = steering_of(world[1]["steering/pair"]), world[1]
    held_out = {
        name: pq.read_table(artifacts[f"corpus/{name}"] / "validation.parquet")["text"].to_pylist()
        for name in found.classes
    }
    for wanted in found.classes:
        own = [row for row in found.rows if row.wanted == wanted]
        others = [text for name in found.classes if name != wanted for text in held_out[name]]
        for prompt, text in examples(own):
            assert prompt and any(other.startswith(prompt) for other in others)
            assert not any(other.startswith(prompt + text) for other in others) or len(text) < 40
        for model in ("small", "large"):
            texts = {row.arm: row.examples for row in own if row.model == model}
            assert len({one.prompt for one in texts["none"]}) == 2 and len({texts[arm] for arm in ARMS}) > 2


def test_the_same_seed_writes_the_same(world, tmp_path):
    _, artifacts, folder = world
    shutil.copytree(folder / "runs", tmp_path / "runs")
    shutil.rmtree(tmp_path / "runs" / "steering")
    again = steered(joined(folder, steering=SMALL), tmp_path / "runs")["steering/pair"]
    assert again.key == artifacts["steering/pair"].key and steering_of(again) == steering_of(artifacts["steering/pair"])
    fewer = stage_of(joined(folder, steering=SMALL | {"prompts": 5}))
    assert fewer is not None and fewer.key != again.key


def test_one_corpus_leaves_nothing_to_steer_between_and_says_so(tmp_path):
    made = joined(tmp_path, corpora=("words",), steering=SMALL)
    found = steering_of(steered(made, tmp_path / "runs")["steering/pair"])
    assert "both models have read words only" in found.reason
    assert found.classes == ("words",) and found.rows == found.gaps == () and found.accuracy is None


def test_a_text_longer_than_the_models_context_is_an_error_by_its_place(world, tmp_path):
    _, _, folder = world
    shutil.copytree(folder / "runs", tmp_path / "runs")
    long = joined(folder, steering=SMALL | {"max_tokens": 2045})
    with pytest.raises(StudyError, match=r"tiny: stitch.pair.steering: small to words: .*; lower max_tokens"):
        steered(long, tmp_path / "runs")


def test_no_prompts_need_no_stage_and_scikit_learn_is_asked_for_early(tmp_path, monkeypatch):
    made = joined(tmp_path, steering=SMALL)
    monkeypatch.setattr("heredity.stages.probes.find_spec", lambda name: None)
    with pytest.raises(StudyError, match=r"stitch.pair: needs scikit-learn.*or set steering.prompts = 0 to do without"):
        stage_of(made)
    assert stage_of(joined(tmp_path, steering=SMALL | {"prompts": 0})) is None
    assert stage_of(joined(tmp_path, corpora=("words",), steering=SMALL)) is not None
