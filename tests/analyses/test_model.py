"""What a merge does with the t that its sweep yields, and corpora that change while a study runs."""

from __future__ import annotations

from typing import Any

import pytest

import tiny
from heredity.analyses import Pipeline
from heredity.analyses.model import _equilibrium as equilibrium
from heredity.analyses.reading import folder_of, load
from heredity.engine.stage import run
from heredity.engine.store import Store
from heredity.lm.load import load_model, state_hash
from heredity.lm.quantize import quantize
from heredity.lm.reading import Reading, reading_of
from heredity.study import QuantizeConfig, Study, StudyError
from heredity.text.sources import CorpusError
from heredity.text.tokens import load_tokenizer

POINTS = [{"t": 0.0, "accuracy": {"lua": 0.29, "stories": 0.3}}, {"t": 1.0, "accuracy": {"lua": 0.24, "stories": 0.34}}]


def sweep(t: float) -> dict:
    return {"t": t, "first": "lua", "second": "stories", "points": POINTS}


def test_a_merge_lies_where_its_sweep_says():
    assert equilibrium("study: model.merge.merge.t", sweep(0.3)) == 0.3


@pytest.mark.parametrize(("t", "parent"), [(0.0, "lua"), (1.0, "stories")])
def test_a_merge_that_would_be_a_parent_again_is_refused(t, parent):
    words = (
        rf"study: model\.merge\.merge\.t: .* lua's goes from 29\.0% to 24\.0% and stories's goes from 30\.0% to 34\.0%"
        rf".* t = {t:g}, which is {parent} itself\. Give t, such as t = 0\.5"
    )
    with pytest.raises(StudyError, match=words):
        equilibrium("study: model.merge.merge.t", sweep(t))


def test_a_quantized_child_has_the_rounded_weights_of_its_parent_and_an_edge(tmp_path):
    values = tiny.study_values(tmp_path)
    values["model"] = {"base": values["model"]["base"], "int4": {"parent": "base", "quantize": {"bits": 4}}}
    values["model"]["base"]["train"]["tokens"] = 2_000
    study = Study.of(values, root=tmp_path)
    assert [edge.name for edge in study.edges] == ["base->int4"]
    assert study.trace("int4") == study.trace("base") == study.common_trace(study.edges[0])
    pipeline, store = Pipeline(study), Store(tmp_path / "runs")
    run(list(pipeline.stages.values()), store, until="model")
    base, child = (
        load_model(folder_of(store.find("model", name, pipeline.stages[f"model/{name}"].key)))
        for name in ("base", "int4")
    )
    quantize(base, QuantizeConfig(bits=4))
    assert state_hash(child.state_dict()) == state_hash(base.state_dict())


def test_a_corpus_that_changes_while_the_study_runs_is_refused_by_name(tmp_path):
    study = Study.of(tiny.study_values(tmp_path), root=tmp_path)

    def stage():
        return Pipeline(study).stages["corpus/words"]

    planned = stage()
    file = next(path for path in sorted((tmp_path / "words").rglob("*")) if path.is_file())
    before = file.read_text()
    file.write_text(before + " and more")
    with pytest.raises(CorpusError, match="corpus words: local:.* changed while the study ran"):
        run([planned], Store(tmp_path / "runs"))
    assert stage().key != planned.key
    file.write_text(before)
    run([stage()], Store(tmp_path / "runs"))


def test_models_for_reference_are_trained_once_per_recipe_and_where_there_is_one(tmp_path):
    values = tiny.study_values(tmp_path, references={"twin": True})
    models = values["model"]

    def references() -> dict[str, str]:
        stages = Pipeline(Study.of(values, root=tmp_path)).stages
        edges = {label: stage for label, stage in stages.items() if stage.kind == "verdicts"}
        names = {
            f"{label.partition('/')[2].partition('@')[0]} {role}": source.name
            for label, stage in edges.items()
            for role, source in stage.sources()
            if source.kind == "reference_model"
        }
        assert set(names.values()) == {stage.name for stage in stages.values() if stage.kind == "reference_model"}
        return names

    twins = {"base+sums twin": "sums@twin", "base+stories twin": "stories@twin"}
    one = {"base+sums sham": "sums@sham", "base+stories sham": "sums@sham"}
    assert references() == twins | one, "none into the merge; children of one recipe share a sham"
    two = one | {"base+stories sham": "stories@sham"}
    models["stories"]["lr"] = 1e-3
    assert references() == twins | two
    del models["stories"]["lr"], models["sums"]["lr"], models["stories"]["tokens"], models["sums"]["tokens"]
    assert references() == twins | two, "one pass over other corpora is not as long"
    models |= {"loaded": {"load": "nowhere", "parent": "base"}, "tuned": {"parent": "loaded", "corpora": ["sums"]}}
    assert references() == twins | two | {"loaded+tuned twin": "tuned@twin"}, "of unknown training"
    values["verdicts"] = {"tokens": 0}
    assert references() == {}


def test_a_sham_and_a_twin_are_trained_as_long_as_the_child_to_other_weights(tmp_path):
    values = tiny.study_values(tmp_path, references={"twin": True})
    values["model"] = {name: values["model"][name] for name in ("base", "sums")}
    values["model"]["base"]["train"]["tokens"] = 2_000
    del values["model"]["sums"]["tokens"]  # by passes over its corpora, of which the sham reads none
    values["model"]["sums"]["epochs"] = 0.2
    pipeline, labels = (
        Pipeline(Study.of(values, root=tmp_path)),
        ["reference_model/sums@sham", "reference_model/sums@twin"],
    )
    made = run(pipeline.closure(["model/sums", *labels]), Store(tmp_path / "runs"))
    records = [made[label].json("record.json") for label in ("model/base", "model/sums", *labels)]
    assert len({record["state"] for record in records}) == 4
    assert len({record["tokens"] for record in records[1:]}) == 1 and records[1]["tokens"] > 0
    read = {label: set(made[label].manifest["inputs"]) for label in labels}
    assert {"tokens:words", "tokens:code"} < read[labels[0]] and "tokens:sums" in read[labels[1]]


def test_a_loaded_model_and_what_is_made_from_it_are_read_behind_the_same_token(tmp_path):
    values = tiny.study_values(tmp_path)
    model = tiny.save_tiny_model(tmp_path / "base")
    values["model"] = {
        "base": {"load": str(model), "corpora": ["words", "code"]},
        "sums": values["model"]["sums"] | {"tokens": 1_000},
        "int8": {"parent": "sums", "quantize": {"bits": 8}},
    }

    def readings(**changes: Any) -> dict[str, Reading]:
        study = Study.of(values | changes, root=tmp_path)
        pipeline, store = Pipeline(study), Store(tmp_path / "runs")
        made = run(list(pipeline.stages.values()), store, until="model")
        return {name: reading_of(load(made[f"model/{name}"])) for name in values["model"]}

    end = load_tokenizer(str(model)).eos_token_id
    assert set(readings().values()) == {Reading(end, 0, 10.0)}
    assert set(readings(reading={"prefix": "none", "outliers": 0, "skip_positions": 1}).values()) == {Reading(None, 1)}
    with pytest.raises(StudyError, match='model.base.load: prefix="bos": the tokenizer has no beginning-of-text token'):
        tokenizer = load_tokenizer(str(model))
        tokenizer.bos_token = None
        tokenizer.save_pretrained(model)
        readings(reading={"prefix": "bos"})
