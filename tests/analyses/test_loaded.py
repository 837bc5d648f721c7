"""Loaded models of a study: told apart by content, found again where a project was moved, looked at before any work."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

import tiny
from heredity import results
from heredity.analyses import Pipeline, statements_of
from heredity.analyses.loaded import check_loaded
from heredity.analyses.model import MODELS
from heredity.analyses.plan import check_inputs
from heredity.analyses.reading import load
from heredity.engine.stage import run
from heredity.engine.store import Store
from heredity.lm.checkpoint import ModelError
from heredity.lm.load import load_model, save_model, state_hash
from heredity.study import Study, StudyError
from heredity.text.readers import CorpusError


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A study's folder with two models, `models/a` and its child `models/b`, whose end token is another."""
    folder = tmp_path / "project"
    tiny.write_corpora(folder)
    tiny.save_tiny_model(folder / "models" / "a")
    shutil.copytree(folder / "models" / "a", folder / "models" / "b")
    change(folder / "models" / "b")
    tokenizer = AutoTokenizer.from_pretrained(folder / "models" / "b")
    tokenizer.add_tokens(["<|end|>"], special_tokens=True)
    tokenizer.eos_token = "<|end|>"
    tokenizer.save_pretrained(folder / "models" / "b")
    return folder


def change(folder: Path, by: float = 0.1) -> None:
    model = load_model(folder)
    with torch.no_grad():
        model.lm_head.weight += by
    model.save_pretrained(folder)


def study(root: Path, prefix: str = "models", **keys: Any) -> Study:
    values = tiny.study_values(root)
    del values["tokenizer"], values["case"]
    models = {name: {"load": f"{prefix}/{name}", "corpora": ["words"]} for name in ("a", "b")}
    models["b"]["parent"] = "a"
    values["model"], values["corpus"] = models, {"words": {"source": "local:words"}}
    return Study.of(values | keys, name="s", root=root)


def test_a_moved_project_has_nothing_to_do_again_and_its_models_are_found(project: Path, tmp_path: Path):
    pipeline = Pipeline(study(project))
    done = run(list(pipeline.stages.values()), Store(project / "runs"), until="model")
    assert "tokens that the other lacks ('<|end|>')" in done["model/b"].json("record.json")["tokenizer"]
    moved = project.rename(tmp_path / "elsewhere")
    again = Pipeline(study(moved))
    assert {label: stage.key for label, stage in again.stages.items()} == {
        label: stage.key for label, stage in pipeline.stages.items()
    }
    artifact = Store(moved / "runs").find("model", "b", again.stages["model/b"].key)
    assert artifact is not None
    assert state_hash(load(artifact).state_dict()) == artifact.json("record.json")["state"]
    shutil.rmtree(moved / "models" / "b")
    with pytest.raises(StudyError, match="the model that the run read is no longer there"):
        load(artifact)


def test_results_are_looked_at_without_models_and_text(project: Path):
    pipeline = Pipeline(study(project))
    run(list(pipeline.stages.values()), Store(project / "runs"), until="tokens")
    results.record(pipeline.study, project / "runs")
    done = results.Run(study(project), project / "runs").artifacts.keys()
    shutil.rmtree(project / "models"), shutil.rmtree(project / "words")
    seen = results.open(project / "runs")
    assert seen.artifacts.keys() == done == {"corpus/words", "tokenizer/a", "tokens/words"}
    assert seen.table("corpora").num_rows == 1
    with pytest.raises(CorpusError, match="words"):  # what is to be made anew needs them
        Pipeline(Study.of(tomllib.loads(seen.study.config.to_toml()), "s", project))


def test_changed_weights_are_other_weights(project: Path):
    before = Pipeline(study(project))
    done = run(list(before.stages.values()), Store(project / "runs"), until="model")
    change(project / "models" / "b", 0.2)
    after = Pipeline(study(project))
    assert after.stages["model/b"].key != before.stages["model/b"].key
    assert after.stages["model/a"].key == before.stages["model/a"].key
    with pytest.raises(StudyError, match="its weights have changed since the run read them"):
        load(done["model/b"])


def test_code_beside_the_weights_is_part_of_what_a_model_is(project: Path):
    before = Pipeline(study(project)).stages
    (project / "models" / "b" / "modeling.py").write_text("LAYERS = 1\n")
    after = Pipeline(study(project)).stages
    assert after["model/b"].key != before["model/b"].key and after["model/a"].key == before["model/a"].key


def test_a_path_that_only_the_working_folder_explains_is_refused_with_the_right_one(project: Path, monkeypatch):
    studies = project / "studies"
    studies.mkdir()
    monkeypatch.chdir(project)
    with pytest.raises(
        StudyError, match=r'model.a.load: models/a: relative paths start .* write "\.\./models/a" for that'
    ):
        Pipeline(study(studies))
    assert Pipeline(study(studies, "../models")).stages["model/a"].key == Pipeline(study(project)).stages["model/a"].key


def test_weights_that_are_not_finite_are_refused_by_tensor_before_anything_runs(project: Path):
    change(project / "models" / "b", float("nan"))
    words = r"s: model\.b\.load: .*b: tensor lm_head\.weight of its weights is not finite \(it holds NaN or infinity\)"
    with pytest.raises(StudyError, match=words):
        check_inputs(study(project))
    with pytest.raises(ModelError, match=r"tensor lm_head\.weight of its weights is not finite"):
        load_model(project / "models" / "b")


def test_text_that_fills_no_two_splits_is_refused_before_anything_runs(project: Path):
    for content, words in (("\n \n", "local:x.txt holds no text"), ("a", "holds one document, and both splits need")):
        (project / "x.txt").write_text(content)
        with pytest.raises(StudyError, match=rf"s: corpus\.words: .*{words}"):
            check_inputs(study(project, corpus={"words": {"source": "local:x.txt"}}))


def test_what_cannot_be_compared_is_said_before_weights_are_read(project: Path, monkeypatch):
    from heredity.lm import load as loading

    def no_weights(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(loading, "load_model", no_weights)
    assert check_loaded(study(project)) == {(name, tiny.HOOK): 32 for name in "ab"}
    sites = ["blocks.0.hook_resid_pre", tiny.HOOK]
    widths = {(name, site): width for name in "ab" for site, width in zip(sites, (16, 32), strict=True)}
    assert check_inputs(study(project, hook_point=sites)) == widths
    with pytest.raises(StudyError, match=r"s: hook_point: .* no module 'model.layer.0'; did you mean .* \(model a\)"):
        check_loaded(study(project, hook_point="model.layer.0:output"))
    config = project / "models" / "b" / "config.json"
    written = config.read_text()
    size = r"tensor model.layers.0.mlp.down_proj.weight is \[\d+, 32\] in its weights"
    gone = r"\d tensors that config.json tells of are not in its weights"
    for key, words in (("intermediate_size", size), ("num_hidden_layers", gone)):
        config.write_text(json.dumps(json.loads(written) | {key: 2 * json.loads(written)[key]}))
        with pytest.raises(StudyError, match=f"s: model.b.load: .*{words}"):
            check_loaded(study(project))
    config.write_text(written)
    child = project / "models" / "b"
    other = AutoTokenizer.from_pretrained(
        tiny.save_tiny_model(project / "other", text="zwei andere Worte, viel laenger\n")
    )
    shutil.rmtree(child)
    shutil.copytree(project / "models" / "a", child)
    other.save_pretrained(child)
    with pytest.raises(StudyError, match=r"s: model.b.load: the tokenizer of .* id 25\d is '.*' in the one and '.*'"):
        check_loaded(study(project))
    for file in child.glob("token*"):
        file.unlink()
    with pytest.raises(StudyError, match="s: model.b.load: tokenizer .*none of tokenizer.json"):
        check_loaded(study(project))
    (child / "model.safetensors").unlink()
    with pytest.raises(StudyError, match="s: model.b.load: .* no .*safetensors there"):
        check_loaded(study(project))


def test_blocks_longer_than_a_models_learned_positions_are_refused_by_check(project: Path):
    tokenizer = AutoTokenizer.from_pretrained(project / "models" / "a")
    shape = {"n_positions": 100, "n_embd": 16, "n_layer": 1, "n_head": 2}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **shape)).save_pretrained(project / "gpt2")
    tokenizer.save_pretrained(project / "gpt2")
    gpt2 = {"load": "gpt2", "corpora": ["words"]}
    models = {"a": gpt2, "b": gpt2 | {"parent": "a"}}
    with pytest.raises(StudyError, match="s: model.a.context_size: 256: model a has 100 positions, .* to 99"):
        check_loaded(study(project, model=models))
    models["a"] = gpt2 | {"context_size": 99}
    assert check_loaded(study(project, model=models)) == {("a", tiny.HOOK): 64, ("b", tiny.HOOK): 64}


def test_the_wider_child_of_a_module_path_is_refused_by_check(project: Path):
    save_model(
        tiny.tiny_model(1, 300, 24), AutoTokenizer.from_pretrained(project / "models" / "a"), project / "models" / "b"
    )
    from heredity.analyses.plan import check_shapes

    made = study(project, hook_point="model.layers.0:output")
    with pytest.raises(
        StudyError, match="edge a->b: model.layers.0:output is 16 wide in the parent and 24 in the child"
    ):
        check_shapes(made, check_inputs(made))


def test_differences_of_a_tokenizer_are_said():
    row = dict.fromkeys(MODELS.schema.names) | {
        "model": "b",
        "parents": "a",
        "tokenizer": "its end token is 'x', the parent's 'y'",
    }
    [note] = statements_of({"models": [row]})
    assert (
        note.question == "note" and "gives the ids of the study's" in note.text and "its end token is 'x'" in note.text
    )
