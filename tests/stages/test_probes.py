"""Probes of a stitch on the corpora at hand and on sets with labels of their own, in a study that runs in seconds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest

import tiny
from heredity.engine.stage import Stage, run
from heredity.engine.store import Artifact, Store
from heredity.report.probing import ProbeSummary
from heredity.stages.models import model_stage
from heredity.stages.probes import PROBES, PROBES_TABLE, probe_stages, probes_of
from heredity.stages.saes import training_stage
from heredity.stages.stitch import maps_stage, stitch_inputs
from heredity.stages.text import corpus_stage, tokenizer_stage, tokens_stage
from heredity.study import Study, StudyError

SIZES = (1, 2, 5)
SPARSE = {"source", "unchanged", "refitted", "native", "random"}
DENSE = {"dense_source": 32, "dense_unchanged": 32, "dense_native": 48}


class Joined(NamedTuple):
    """The stages of a study with one stitch, up to its maps."""

    study: Study
    stages: list[Stage]
    inputs: dict[str, Stage]
    corpora: dict[str, Stage]
    saes: dict[str, Stage]

    def probes(self, native: bool = True) -> list[Stage]:
        saes = self.saes["small"], self.saes["large"] if native else None
        return probe_stages(self.study, "pair", self.inputs, self.corpora, *saes)


def joined(folder: Path, corpora: tuple[str, ...] = ("words", "code", "sums"), **changes: Any) -> Joined:
    """Two models of different width and depth, trained on the same corpora, and the maps between them."""
    values = tiny.study_values(folder, hook_point="blocks.1.hook_resid_pre")
    values["corpus"] = {name: {"source": values["corpus"][name]["source"]} for name in corpora}
    shape = {"d_mlp": 32, "n_heads": 4, "corpora": list(corpora), "tokens": 20_000}
    shape |= {"batch_size": 8, "context_size": 32, "lr": 5e-3, "precision": "float32"}
    values["model"] = {
        "small": {"train": {"d_model": 32, "n_layers": 2} | shape},
        "large": {"train": {"d_model": 48, "n_layers": 3} | shape},
    }
    pair = {"source": "small", "target": "large", "target_hook_point": "blocks.1.hook_resid_pre", "adam": {"epochs": 0}}
    pair |= {"tokens": 4_000, "held_out": 1_000, "evaluation": 500, "context_size": 16}
    values["stitch"] = {"pair": pair | changes}
    del values["case"]
    study = Study.of(values, name="tiny", root=folder)
    texts = {name: corpus_stage(study, name) for name in corpora}
    tokenizer = tokenizer_stage(study, texts)
    tokens = {name: tokens_stage(name, corpus, tokenizer) for name, corpus in texts.items()}
    models: dict[str, Stage] = {}
    for name in study.order:
        models[name] = model_stage(study, name, models, tokens, tokenizer, None)
    maps = maps_stage(study, "pair", models, tokens, tokenizer)
    saes = {name: training_stage(study, name, name, models[name], None, tokens) for name in models}
    stages = [*texts.values(), tokenizer, *tokens.values(), *models.values(), maps]
    return Joined(study, stages, stitch_inputs(study, "pair", models, maps, tokens, tokenizer), texts, saes)


def asked(**changes: Any) -> dict[str, Any]:
    return {"tasks": ["origin", "kind", "test"], "texts": 40, "sizes": list(SIZES), "context_size": 24} | changes


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[Joined, Mapping[str, Artifact], Path]:
    """Everything was run once."""
    folder = tmp_path_factory.mktemp("probes")
    topics = folder / "topics"
    topics.mkdir()
    rows = [{"body": f"the cat {i} " + ("sat on = " if i % 2 else "ran; ") * 4, "topic": i % 2} for i in range(60)]
    (topics / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    hub = {"topics": {"dataset": "topics", "text": "body", "label": "topic"}}
    made = joined(folder, probes=asked(hub=hub))
    stages = [*made.stages, *made.saes.values(), *made.probes()]
    return made, run(stages, Store(folder / "runs")), folder


def probe(world: tuple[Joined, Mapping[str, Artifact], Path], task: str) -> ProbeSummary:
    return probes_of(world[1][f"probes/pair-{task}"])


def test_every_task_is_a_stage_and_its_record_is_read_as_it_was_written(world):
    made, artifacts, _ = world
    assert [stage.label for stage in made.probes()] == [
        f"probes/pair-{task}" for task in ("origin", "kind", "test", "topics")
    ]
    for stage in made.probes():
        found = probes_of(artifacts[stage.label])
        assert found.model_dump(mode="json") == artifacts[stage.label].json(PROBES)
        assert found.task == stage.name.removeprefix("pair-")


def test_each_class_is_told_from_the_rest_by_every_arm_at_every_size(world):
    found = probe(world, "origin")
    assert found.classes == ("words", "code", "sums") and found.reason == "" and found.left_out == ()
    assert (found.fitted, found.tested, found.least_share) == (90, 30, pytest.approx(1 / 3))
    expected = [(arm, k) for k in SIZES for arm in SPARSE] + list(DENSE.items())
    for label in found.classes:
        assert sorted((row.arm, row.k) for row in found.rows if row.label == label) == sorted(expected)
    assert len(found.rows) == 3 * len(expected)
    for row in found.rows:
        for value, low, high in (row.accuracy, row.balanced_accuracy, row.auc):
            assert 0 <= low <= value <= high <= 1 and low < high
        assert (row.draws, row.spread is None) == ((5, False) if row.arm == "random" else (1, True))
    # The corpora differ in every character, which whole vectors hardly miss.
    assert all(row.accuracy[0] > 0.85 for row in found.rows if row.arm in ("dense_source", "dense_native"))


def test_means_are_those_of_the_classes_and_draws_those_of_the_table(world):
    found = probe(world, "origin")
    rows = pq.read_table(world[1]["probes/pair-origin"] / PROBES_TABLE).to_pylist()
    assert len(rows) == 3 * (len(SIZES) * (4 + 5) + 3)
    for row in found.rows:
        own = [one for one in rows if (one["label"], one["arm"], one["k"]) == (row.label, row.arm, row.k)]
        assert [one["draw"] for one in own] == list(range(row.draws))
        values = [one["balanced_accuracy"] for one in own]
        assert row.balanced_accuracy[0] == pytest.approx(np.mean(values))
        assert row.auc[1:] == pytest.approx([np.mean([one[f"auc_{end}"] for one in own]) for end in ("low", "high")])
        if row.spread is not None:
            assert row.spread == pytest.approx(np.std(values, ddof=1))
    assert len(found.means) == len(SPARSE) * len(SIZES) + len(DENSE)
    for mean in found.means:
        own = [row.balanced_accuracy[0] for row in found.rows if (row.arm, row.k) == (mean.arm, mean.k)]
        assert mean.balanced_accuracy == pytest.approx(np.mean(own)) and mean.classes == len(own) == 3


def test_two_classes_are_told_apart_once(world):
    found = probe(world, "kind")
    assert found.classes == ("prose", "code") and {row.label for row in found.rows} == {"code"}
    assert all(mean.classes == 1 for mean in found.means) and found.least_share == 0.5


def test_texts_are_held_out_ones_if_there_are_enough_and_the_record_says_so(world):
    from heredity.stages.probes import _of_corpora

    made, artifacts, _ = world
    assert probe(world, "origin").origin == "validation and train"

    class Inputs:
        inputs = {f"corpus:{name}": artifacts[f"corpus/{name}"] for name in made.corpora}

    work: Any = Inputs()
    held_out = {
        text
        for name in made.corpora
        for text in pq.read_table(artifacts[f"corpus/{name}"] / "validation.parquet")["text"].to_pylist()
    }
    found, origin = _of_corpora(made.study, "pair", "origin", 3, 0, work)
    assert origin == "validation" and len(found.texts) == 9 and set(found.texts) <= held_out


def test_a_task_that_the_corpora_do_not_give_is_left_out_with_a_reason(world):
    found = probe(world, "test")
    assert "class 'test' has 0 different texts of its own" in found.reason
    assert found.rows == found.means == found.classes == () and found.least_share is None
    assert pq.read_table(world[1]["probes/pair-test"] / PROBES_TABLE).num_rows == 0


def test_a_set_with_labels_of_its_own_is_read_and_a_change_of_it_is_seen(world):
    made, _, folder = world
    found = probe(world, "topics")
    assert found.origin == "hub: topics" and found.classes == ("0", "1") and (found.fitted, found.tested) == (44, 16)
    key = made.probes()[-1].key
    assert made.probes()[-1].key == key
    file = folder / "topics" / "train.jsonl"
    before = file.read_text()
    file.write_text(before + '\n{"body": "one more", "topic": 1}')
    assert made.probes()[-1].key != key
    file.write_text(before)


def test_a_set_that_cannot_be_read_is_an_error_by_its_name(world, tmp_path):
    made, _, folder = world
    hub = {"topics": {"dataset": "topics", "text": "no_such", "label": "topic"}}
    wrong = joined(folder, probes=asked(tasks=[], hub=hub))
    shutil.copytree(folder / "runs", tmp_path / "runs")
    with pytest.raises(StudyError, match=r"tiny: stitch.pair.probes.hub.topics: .* no column 'no_such' or 'topic'"):
        run([*wrong.stages, *wrong.saes.values(), *wrong.probes()], Store(tmp_path / "runs"))


def test_sizes_beyond_the_features_that_fire_are_left_out_and_the_same_is_found_again(world, tmp_path):
    _, artifacts, folder = world
    shutil.copytree(folder / "runs", tmp_path / "runs")
    made = joined(folder, probes=asked(tasks=["origin"], sizes=[*SIZES, 129]))
    found = run([*made.stages, *made.saes.values(), *made.probes()], Store(tmp_path / "runs"))["probes/pair-origin"]
    again, first = probes_of(found), probe(world, "origin")
    assert found.key != artifacts["probes/pair-origin"].key and again.left_out == (129,)
    assert again.rows == first.rows and again.means == first.means


def test_what_is_missing_is_said_before_anything_runs(tmp_path, monkeypatch):
    made = joined(tmp_path, probes=asked())
    with pytest.raises(StudyError, match=r"stitch.pair.probes: there is no SAE of the target .*; add random to arms"):
        made.probes(native=False)
    named = joined(tmp_path, probes=asked(hub={"kind": {"dataset": "x/y"}}))
    with pytest.raises(StudyError, match=r"probes.hub.kind: .*; rename the set"):
        named.probes()
    monkeypatch.setattr("heredity.stages.probes.find_spec", lambda name: None)
    with pytest.raises(StudyError, match=r"stitch.pair: needs scikit-learn.*pip install 'heredity\[stitch\]', or set"):
        made.probes()
    assert joined(tmp_path, probes=asked(tasks=[])).probes(native=False) == []
