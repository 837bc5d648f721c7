"""A study of two sites whose child was changed behind the first of them only."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import artifacts
import tiny
from conftest import Done
from heredity.analyses import Pipeline, stages_of
from heredity.engine.stage import inputs_of
from heredity.engine.stage import run as run_stages
from heredity.engine.store import Store
from heredity.lm.load import load_model, save_model
from heredity.results import open as open_run
from heredity.study import Study, StudyError
from heredity.text.tokens import load_tokenizer

FIRST, SECOND = "blocks.0.hook_resid_post", "blocks.1.mlp.hook_post"


def values_of(folder: Path) -> dict[str, Any]:
    """Two models of two layers; of the child's second MLP, all units but the first four are silent."""
    values = tiny.study_values(folder, hook_point=[FIRST, SECOND], case={}, lineage={"tokens": 4_000})
    parent = tiny.save_tiny_model(folder / "parent", layers=2)
    child, tokenizer = load_model(str(parent)), load_tokenizer(str(parent))
    with torch.no_grad():
        child.model.layers[1].mlp.up_proj.weight[4:] = 0
    save_model(child, tokenizer, folder / "child")
    del values["tokenizer"]
    values["model"] = {name: {"load": name, "corpora": ["words"]} for name in ("parent", "child")}
    values["model"]["child"]["parent"] = "parent"
    values["corpus"] = {"words": {"source": "local:words"}}
    values["controls"] = {"newness": 2_000, "passes": 1, "resamples": 100}
    values["verdicts"] = {"tokens": 12_000, "examine": 4}
    values["sae"] |= {"tokens": 60_000}
    values["explain"] = {"features": 4}
    return values


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp("two")
    path = tiny.toml(values_of(folder), folder / "s.toml")
    tiny.run_study(path, folder / "runs")
    return Done(path, folder / "runs", open_run(folder / "runs" / "s"))


def test_what_changed_behind_the_first_site_shows_at_the_second_alone(two: Done):
    judged = {site: two.rows("verdicts", site=site, end="parent", text="common")[0] for site in (FIRST, SECOND)}
    first, second = judged[FIRST], judged[SECOND]
    assert first["same_activations"] and first["stable"] > 20
    assert not second["same_activations"] and second["stable"] > 20
    assert first["kept"] > 10 and not first["lost"] and not first["changed"], "undecided at most: tiny SAEs say little"
    assert second["lost"] > 2 * second["kept"] and second["lost_share_low"] > 0.05
    edges = {site: two.rows("edges", site=site, rule="evidence")[0] for site in (FIRST, SECOND)}
    assert edges[FIRST]["persist"] == edges[FIRST]["parent_live"] and not edges[FIRST]["emerge"]
    assert edges[SECOND]["persist"] < 0.5 * edges[SECOND]["parent_live"]
    layers = {(row["site"], row["verdict"]): row["features"] for row in two.rows("layers", end="parent")}
    assert layers[FIRST, "kept"] == first["kept"] and layers[SECOND, "lost"] == second["lost"]


def test_findings_say_their_site_and_that_nothing_before_the_first_changed(two: Done):
    said = two.run.statements
    for site in (FIRST, SECOND):
        own = [one for one in said if one.site == site]
        assert {"inherited", "lost", "new"} <= {one.question for one in own}
        assert all(one.text.startswith(f"{site}: ") for one in own)
    behind = "all persists because nothing before this hook point changed"
    assert [one.site for one in said if one.question == "note" and behind in one.text] == [FIRST]
    inherited = {one.site: one.text for one in said if one.question == "inherited"}
    same = "Nothing before this hook point changed, so that all of them persist."
    assert same in inherited[FIRST] and same not in inherited[SECOND]
    [compared] = [one for one in said if one.question == "sites"]
    assert f"all persist at {FIRST}, because nothing before it changed; at {SECOND}, " in compared.text
    assert compared.site == "", "it is about both"
    page = (two.runs / "s" / "report.html").read_text()
    assert compared.text in page


def test_each_site_has_the_saes_that_it_has_in_a_study_of_its_own(two: Done):
    for site in (FIRST, SECOND):
        values = two.run.study.config.model_dump(exclude_defaults=True) | {
            "hook_point": site,
            "verdicts": {"tokens": 0},
        }
        alone = Study.of(values, name="alone", root=two.path.parent)
        store, pipeline = Store(two.runs / "alone"), Pipeline(alone)
        assert "sae/joint" in pipeline.stages and not any(site in label for label in pipeline.stages)
        assert "sae_stream/joint" not in pipeline.stages, "without a second seed either"
        run_stages(pipeline.closure(["sae/joint"]), store)
        from heredity.results import Run

        mine, other = Run(alone, store.root).sae("child"), two.run.sae("child", site=site)
        for name, value in mine.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), (site, name)


def test_trainings_at_two_sites_go_on_after_kills_as_if_nothing_had_been(two: Done, monkeypatch, tmp_path):
    """Killed three times, each time when one site has been saved later than the other."""
    from heredity.sae import train

    monkeypatch.setattr(train, "train", partial(train.train, checkpoint_seconds=0.0))
    monkeypatch.setattr(train, "training", partial(train.training, checkpoint_seconds=0.0))
    study = two.run.study
    pipeline = Pipeline(study)
    stage = next(stage for stage in pipeline.stages.values() if stage.kind == "sae_stream")
    store = Store(two.runs / study.name)
    made, inputs = store.find(stage.kind, stage.name, stage.key), inputs_of(stage, store)
    analysis, item, _ = pipeline.items[stage.label]
    steps: list[int] = []

    def killed(done: int, total: int) -> None:
        steps.append(done)
        if len(steps) in (3, 10, 21):
            raise KeyboardInterrupt

    work = artifacts.work_of(tmp_path, inputs, killed)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            analysis.run(work, analysis.settings(study, item))
    analysis.run(work, analysis.settings(study, item))
    assert len(steps) < 2 * max(steps), "no training began anew"
    trained = analysis.settings(study, item).trainings
    assert [one.hook_point for one in trained.values()] == 2 * [FIRST, SECOND], "of two seeds each"
    for name in trained:
        whole, parts = (
            load_file(folder / name / "sae" / "sae_weights.safetensors") for folder in (made.folder, tmp_path)
        )
        assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)


def test_stages_of_several_sites_say_theirs_whichever_is_the_main_one(two: Done):
    labels = {stage.label: stage.key for stage in stages_of(two.run.study)}
    assert {"sae_stream/joint", f"sae/joint@{SECOND}", f"match/parent+child@joint@{FIRST}"} <= set(labels)
    assert labels == {stage.label: stage.key for stage in stages_of(two.run.study.at(SECOND))}


def test_commands_ask_the_site_that_is_named(two: Done):
    opened, limit = ("--runs", two.runs, "--json"), ("--max-lost", "5%", "--by", "matches")
    gates = [json.loads(tiny.command("gate", two.path, *limit, *site, *opened, code=code).stdout)
             for site, code in (((), 0), (("--site", SECOND), 1))]  # fmt: skip
    assert [gate["site"] for gate in gates] == [FIRST, SECOND]
    shown = json.loads(tiny.command("show", two.path, "child/3", "--site", SECOND, *opened).stdout)
    assert shown["site"] == SECOND and shown["firings"] == two.run.feature("child", 3, SECOND).values["firings"]
    found = json.loads(tiny.command("find", two.path, "--tokens", " the", "--site", SECOND, *opened).stdout)
    assert found["site"] == SECOND
    assert (
        two.run.matches("parent->child", site=FIRST).parent_r.shape
        != two.run.matches("parent->child", site=SECOND).parent_r.shape
    )
    refused = tiny.command("show", two.path, "child/3", "--site", "blocks.7.hook_resid_post", *opened, code=2)
    assert "blocks.7.hook_resid_post" in refused.stderr and SECOND in refused.stderr


def test_check_counts_one_pass_to_the_last_site(two: Done):
    from heredity.analyses.plan import Shapes, check_shapes

    study = two.run.study
    shapes = Shapes(study)
    of_layers = 2 * shapes.passed("parent", FIRST)
    assert shapes.passed("parent", SECOND) == shapes.passed("parent", FIRST, SECOND) == of_layers
    assert of_layers < shapes.parameters("parent")
    with pytest.raises(StudyError, match=r"hook_point 'blocks\.2\.hook_resid_post': layer 2 is out of range"):
        values = study.config.model_dump(exclude_defaults=True) | {"hook_point": [FIRST, "blocks.2.hook_resid_post"]}
        check_shapes(Study.of(values, root=two.path.parent))


def test_a_model_takes_its_weights_in_float32_and_the_file_that_they_are_read_from(two: Done, tmp_path: Path):
    from heredity.analyses.plan import Shapes

    folder = tiny.save_tiny_model(tmp_path / "parent")
    values = two.run.study.config.model_dump(exclude_defaults=True)
    values["model"]["parent"]["load"] = str(folder)
    weights = Shapes(Study.of(values, root=tmp_path)).read_gib("parent") * 2**30
    file = folder / "model.safetensors"
    half = load_file(file)
    save_file({name: tensor.bfloat16() for name, tensor in half.items()}, file, {"format": "pt"})
    saved = sum(2 * tensor.numel() for tensor in half.values())
    assert weights - Shapes(Study.of(values, root=tmp_path)).read_gib("parent") * 2**30 == pytest.approx(
        saved, rel=0.02
    )


def test_a_stitching_study_has_one_site(tmp_path: Path):
    import stitches

    with pytest.raises(StudyError, match=r"hook_point: names 2 places, and a study with a stitch \(.+\) has one"):
        Study.of(stitches.stitch_values(tmp_path) | {"hook_point": [FIRST, SECOND]}, root=tmp_path)
