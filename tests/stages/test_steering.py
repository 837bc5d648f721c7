"""Texts of two joined models, steered towards each corpus, in a study that runs in seconds."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from heredity.engine.stage import Stage, run
from heredity.engine.store import Artifact, Store
from heredity.report.probing import SteeringRow
from heredity.stages.steering import STEERING, _arms, _in_turn, _pieces, steering_of, steering_stage
from heredity.stitch.affine import Affine
from heredity.stitch.intervals import proportion
from heredity.stitch.moments import Moments
from heredity.stitch.steer import change, transfer_gap
from heredity.study import StudyError
from heredity.text.tokenizer import train_tokenizer
from heredity.text.tokens import PackedTokens
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


# -- parts ------------------------------------------------------------------------------------------------------------


def moments(mean_a: np.ndarray, mean_b: np.ndarray) -> Moments:
    a, b = len(mean_a), len(mean_b)
    return Moments(100, mean_a, mean_b, np.eye(a) / 4, np.zeros((a, b)), np.eye(b))


def test_arms_are_those_of_two_models_that_a_map_joins_exactly():
    """B has what A has, through a map with an offset: the carried direction and its level are the native ones."""
    rng = np.random.default_rng(0)
    weight, offset = np.linalg.qr(rng.standard_normal((6, 4)))[0], rng.standard_normal(4)
    b = rng.standard_normal((2, 6))
    own, others = (moments(mean @ weight + offset, mean) for mean in b)
    arriving = Affine(torch.from_numpy(weight).float(), torch.from_numpy(offset).float())
    arms: Any = _arms(own, others, arriving, np.random.default_rng(1))
    assert tuple(arms) == ARMS and arms["none"] is None
    np.testing.assert_allclose(arms["carried"].direction, arms["native"].direction, atol=1e-6)
    assert arms["carried"].level == pytest.approx(arms["native"].level, abs=1e-6)
    assert arms["native"].level == pytest.approx(own.mean_a @ arms["native"].direction)
    moved = [change(arms[arm], others.mean_a, others.aa) for arm in ("native", "random")]
    assert moved[0] == pytest.approx(moved[1]) and abs(arms["random"].direction @ arms["native"].direction) < 0.95
    distance = np.linalg.norm(own.mean_a - others.mean_a)
    assert moved[0] == pytest.approx(np.hypot(distance, 0.5))


def test_prompts_are_taken_from_the_corpora_in_turn():
    assert _in_turn([["a", "b", "c"], ["x"], ["u", "v"]]) == ["a", "x", "u", "b", "v", "c"]


def test_pieces_are_of_one_document_each():
    texts = ["one two", "three four five six seven eight", "nine"]
    tokenizer = train_tokenizer(texts * 20, 320)
    eos = tokenizer.eos_token_id
    tokens = np.array([id for text in texts for id in (*tokenizer(text)["input_ids"], eos)], np.uint16)
    pack = PackedTokens(tokens, np.array([0, len(tokens)]))
    found = _pieces(pack, tokenizer, [eos], 5, 100, 0)
    assert len(found) == len(tokens) // 5
    assert all(any(piece in text for text in texts) for piece in found)
    assert _pieces(pack, tokenizer, [eos], 999, 100, 0) == ["three four five six seven eight"]
