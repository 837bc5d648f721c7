"""The stages that a study makes: their order, their names, their repeats, and which settings each of them reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import artifacts
import tiny
from heredity import analyses
from heredity.analyses import ANALYSES, TABLES, Pipeline, stages_of
from heredity.analyses.analysis import Aside, Cost, Passes, plain, seed_of
from heredity.analyses.plan import Rates, plan
from heredity.analyses.reading import RECORD
from heredity.engine.stage import inputs_of, run
from heredity.engine.store import Store
from heredity.study import Study, StudyError, load_study

STEPS = ("data", "data-then-model", "model", "model-then-data")
AFTER_MATCH = "match flow newness shift features classes explain"
AFTER_SAES = f"sae sae_quality shift_sae acts {AFTER_MATCH}"
BESIDE = "quality merge_accuracy merge_methods"
AFTER_MERGE = f"model {BESIDE} sae sae_quality match flow newness acts features classes explain"
AFTER_MODELS = f"model sweep {BESIDE} {AFTER_SAES}"
ALL = f"corpus tokenizer tokens {AFTER_MODELS}"

# Settings that are changed, by the kinds of stages that this makes anew; none has a space.
ANEW = {
    ALL: "seed=2",
    f"tokenizer tokens {AFTER_MODELS}": "tokenizer.vocab_size=330",
    f"corpus tokens {AFTER_MODELS}": "corpus.sums.max_bytes=1000 corpus.sums.validation=0.1",
    AFTER_MODELS: "model.base.train.lr=0.004 model.base.train.d_mlp=40 model.sums.tokens=8001",
    f"sweep {AFTER_MERGE}": "model.both.merge.sweep_points=4 model.both.merge.tolerance=0.2 evaluation.tokens=1000",
    AFTER_MERGE: "model.both.merge.t=0.5",
    AFTER_SAES: "hook_point='blocks.0.hook_resid_post' precision='bf16' sae.k=7 sae.expansion=3 sae.tokens=16_001 "
    "sae.continue_tokens=5001 sae.lr=0.003 sae.decay=true sae.batch_blocks=8 sae.context_size=8 sae.resample_every=50 "
    "sae.mix='equal' sae.subtract_mean=true sae.encoder_start='kaiming' sae.normalize=false sae.warm_up=0.0",
    "sae_quality": "sae.evaluation_tokens=1000",
    "": "sae.l0=[5,13] sae.calibration=0.5 sae.l1_coefficient=0.1",  # of relu and jumprelu
    AFTER_MATCH: "lineage.tokens=4001 lineage.top=4 lineage.threshold=0.7 controls.passes=2 controls.rate=0.02 "
    "controls.resamples=200 controls.level=0.9",
    "newness": "controls.newness=2000",
    "acts features classes explain": "report.tokens=5000",
    "features explain": "report.features=2 report.contexts=1 report.case_tokens=4000 report.case_corpora=['sums'] "
    "case.assignment.tokens=['=']",
    "explain": "explain.features=20 explain.drop=0.2 explain.radius=4",
}
SETTINGS = [(override, kinds) for kinds, overrides in ANEW.items() for override in overrides.split()]


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> Path:
    """The study of four models and every analysis of a lineage, not run."""
    folder = tmp_path_factory.mktemp("graph")
    return tiny.toml(tiny.lineage_values(folder), folder / "s.toml")


def keys(path: object, *overrides: str) -> dict[str, str]:
    return {stage.label: stage.key for stage in stages_of(load_study(str(path), overrides))}


def changed(path: Path, *overrides: str) -> set[str]:
    """Labels of the stages that changed settings make anew."""
    before, after = keys(path), keys(path, *overrides)
    return {label for label, key in before.items() if after[label] != key}


@pytest.mark.parametrize(("override", "kinds"), SETTINGS, ids=[setting for setting, _ in SETTINGS])
def test_a_setting_makes_anew_what_reads_it_and_what_follows_and_nothing_else(graph, override, kinds):
    again = changed(graph, override)
    assert {label.partition("/")[0] for label in again} & set(ALL.split()) == set(kinds.split()) & set(analyses.BY_KIND)
    for stage in stages_of(load_study(str(graph))):
        sources = {source.label for _, source in stage.sources()}
        assert stage.label in again or not sources & again, "what is made from something new is made anew"


def test_a_merge_at_a_given_t_is_swept_only_where_the_study_asks_for_points(tmp_path):
    for more, swept in ({}, True), ({"t": 0.5}, False), ({"t": 0.5, "sweep_points": 3}, True):
        values = tiny.study_values(tmp_path)
        values["model"]["both"]["merge"] = {"parents": ["sums", "stories"], **more}
        labels = {stage.label for stage in stages_of(Study.of(values, root=tmp_path))}
        assert ("sweep/both" in labels) == swept and "model/both" in labels


def test_every_number_of_a_study_file_is_in_the_table_above(graph):
    config = load_study(str(graph)).config
    settings = {override.partition("=")[0] for override, _ in SETTINGS}
    further = {"sae.activation", "sae.instruments", "controls.seeds", "controls.models", "controls.shifts"}
    further.add("evaluation.merge_methods")  # all of these: stages
    for name in ("sae", "lineage", "controls", "report", "evaluation", "explain"):
        fields = {f"{name}.{field}" for field in type(getattr(config, name)).model_fields}
        assert fields <= settings | further, fields - settings - further


def test_a_setting_makes_anew_only_the_saes_that_read_it(graph):
    longer = {label for label in changed(graph, "sae.continue_tokens=12_000") if label.startswith("sae/")}
    assert longer and not any("scratch" in label for label in longer)
    assert "sae/base@scratch" in changed(graph, "sae.tokens=31_000", "sae.continue_tokens=5_000")
    below = changed(graph, "model.stories.tokens=9_000")
    assert "match/stories+both@parent" in below and not {"sae/sums@parent", "match/base+sums@parent"} & below


@pytest.mark.parametrize("kind", ["match", "acts", "sae"])
def test_a_new_version_makes_anew_its_stages_and_what_follows(graph, monkeypatch, kind):
    before = keys(graph)
    newer = {name: one._replace(version=one.version + (name == kind)) for name, one in analyses.BY_KIND.items()}
    monkeypatch.setattr(analyses, "BY_KIND", newer)
    after = keys(graph)
    again = {label for label in before if before[label] != after[label]}
    follows = {stage.label for stage in stages_of(load_study(str(graph))) if needs(stage, kind)}
    assert again == follows and {f"{kind}/joint", f"{kind}/base+sums@joint", f"{kind}/base@joint"} & again


def needs(stage, kind: str) -> bool:
    return stage.kind == kind or any(needs(source, kind) for _, source in stage.sources())


@pytest.mark.parametrize("seeds", [1, 3])
def test_labels_are_unique_and_safe_as_names_of_folders(graph, seeds):
    stages = stages_of(load_study(str(graph), [f"repeat.seeds={seeds}"]))
    assert len({stage.label for stage in stages}) == len(stages) == len({stage.key for stage in stages})
    assert all(set(stage.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_~@+") for stage in stages)


def test_edges_whose_names_run_together_have_folders_of_their_own(tmp_path):
    values = tiny.study_values(tmp_path)
    base = values["model"]["base"]
    fine = {name: values["model"]["sums"][name] for name in ("corpora", "tokens", "batch_size", "context_size", "lr")}
    fine = {name: {"parent": parent, **fine} for name, parent in (("base-to-b", "base"), ("b-to-c", "base"))}
    values["model"] = {"base": base, **fine, "c": {**fine["b-to-c"], "parent": "base-to-b"}}
    stages = stages_of(load_study(str(tiny.toml(values, tmp_path / "s.toml"))))
    edges = [stage.name for stage in stages if stage.kind == "match"]
    assert len(set(edges)) == len(edges) == 3
    assert {"base+b-to-c@joint", "base-to-b+c@joint"} < set(edges)


@pytest.mark.parametrize("seeds", [1, 3])
def test_inputs_come_before_what_is_made_from_them_and_belong_to_the_same_repeat(graph, seeds):
    before: dict[str, str] = {}
    stages = stages_of(load_study(str(graph), [f"repeat.seeds={seeds}"]))
    labels = {stage.label for stage in stages}
    for stage in stages:
        _, _, number = stage.label.partition("~")
        for role, source in stage.sources():
            assert before[source.label] == source.key
            if number:
                assert source.label.endswith(f"~{number}") or f"{source.label}~{number}" not in labels
            elif stage.kind == "repeats":
                assert source.label.endswith(f"~{role[-1]}") or f"{source.label}~{role[-1]}" not in labels
            else:
                assert "~" not in source.label
        before[stage.label] = stage.key


def test_what_cannot_be_made_is_refused_before_anything_runs(graph):
    pipeline = Pipeline(load_study(str(graph)))
    with pytest.raises(StudyError, match="s: has no match/base.nowhere@joint"):
        pipeline.stage(("match", {"instrument": "joint", "site": tiny.HOOK, "edge": "base->nowhere"}))
    with pytest.raises(StudyError, match="sae.k: 200 is more than the 128 features"):
        stages_of(load_study(str(graph), ["sae.k=200"]))


def test_the_closure_of_a_stage_is_all_that_it_is_made_from_in_order(graph):
    pipeline = Pipeline(load_study(str(graph)))
    closure = [stage.label for stage in pipeline.closure(["match/base+sums@joint"])]
    kinds = [label.partition("/")[0] for label in closure]
    assert closure[-1] == "match/base+sums@joint" and kinds.count("match") == 1 and "sae/joint" in closure
    assert "model/both" in closure and not {"acts", "shift", "sae_quality"} & set(kinds)


def test_settings_as_json_hold_everything_but_asides_and_names_are_given_once():
    assert plain({"a": (1, {"b": Aside("/home")}), "c": Aside(3)}) == {"a": [1, {"b": None}], "c": None}
    assert len(TABLES) == sum(len(analysis.tables) for analysis in ANALYSES)
    assert len({analysis.kind for analysis in ANALYSES}) == len(ANALYSES)


def test_cases_have_a_sample_of_their_own_only_where_it_differs_and_every_instrument_has_cases(graph):
    def stages(*overrides: str) -> dict[str, Any]:
        return {stage.label: stage for stage in stages_of(load_study(str(graph), overrides))}

    plain_study, same = stages(), stages("report.case_tokens=3_000")
    assert not [label for label in (*plain_study, *same) if label.startswith("acts/") and label.endswith("@cases")]
    own = stages("report.case_tokens=9_000", 'report.case_corpora=["sums", "code"]')
    for name in ("parent", "independent", "joint"):
        assert set(own[f"features/{name}"].inputs["case_acts"]) == {"base", "sums", "stories", "both"}
        acts = own[f"acts/base@{name}@cases"]
        assert acts.config["tokens"] == 9_000 and list(acts.inputs["tokens"]) == ["code", "sums"]
        assert own[f"acts/base@{name}"].key == plain_study[f"acts/base@{name}"].key
        assert {f"{kind}/{name}" for kind in ("classes", "explain")} <= set(own)
    assert {f"flow/{name}" for name in ("parent", "independent", "joint")} <= set(own)
    with pytest.raises(StudyError, match="report.case_corpora"):
        stages('report.case_corpora=["nowhere"]')


def test_edges_read_the_text_of_the_trace_that_both_ends_share(graph):
    stages = {stage.label: stage for stage in stages_of(load_study(str(graph)))}
    assert set(stages["match/sums+both@joint"].inputs["tokens"]) == {"words", "code", "sums"}
    assert "explain" not in {stage.kind for stage in stages_of(load_study(str(graph), ["explain.features=0"]))}


# -- repeats ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def repeated(graph) -> Study:
    return load_study(str(graph), ["repeat.seeds=3"])


def test_the_first_repeat_has_the_keys_of_the_plain_study(graph, repeated):
    plain_study = keys(graph)
    stages = {stage.label: stage.key for stage in stages_of(repeated)}
    assert {label: key for label, key in stages.items() if label in plain_study} == plain_study
    assert all("~" in label for label in set(stages) - set(plain_study) - {"repeats/study"})


def test_fine_tunes_saes_and_what_follows_from_them_are_made_anew_and_nothing_else(graph, repeated):
    again = {stage.label.removesuffix("~2") for stage in stages_of(repeated) if stage.label.endswith("~2")}
    once = set(keys(graph)) - again
    assert {label for label in again if label.partition("/")[0] in ("model", "quality", "sae")} >= {
        "model/sums", "model/both", "quality/both", "sae/base@scratch", "sae/sums@parent", "sae/base@control1-from-base"
    }  # fmt: skip
    assert again >= {"sweep/both", "sae_quality/both@independent", "match/base+sums@independent"}
    kinds = {"model", "sweep", "quality", "sae", "sae_stream", "sae_quality", "match", "verdicts"}
    assert {label for label in again if label.startswith("acts/")} == {
        f"acts/base@{one}" for one in ("joint", "parent", "independent")
    }
    left = {label for label in once if label.partition("/")[0] in kinds and "@own@" not in label}
    assert left == {"model/base", "quality/base"}, "verdicts are repeated on the common text alone"
    assert {label.partition("/")[0] for label in again} == kinds | {"acts"}


def test_trainings_have_seeds_of_their_own_and_measurements_those_of_the_first_repeat(repeated):
    stages = {stage.label: stage for stage in stages_of(repeated)}
    for label in ("model/sums", "sae/base@scratch", "sae/sums@parent", "sae/base@control1-from-base"):
        seeds = {stages[label + mark].config["seed"] for mark in ("", "~1", "~2")}
        assert len(seeds) == 3, label
        assert len({json.dumps({**stages[label + mark].config, "seed": 0}) for mark in ("", "~1", "~2")}) == 1
    for label in ("sweep/both", "sae_quality/sums@parent", "match/base+sums@parent", "model/both"):
        assert stages[label].config == stages[label + "~1"].config, label


def test_a_merge_that_draws_at_random_is_repeated_with_another_seed(tmp_path, monkeypatch):
    monkeypatch.setattr("heredity.lm.recipe.require_mergekit", lambda place: None)
    values = tiny.study_values(tmp_path, repeat={"seeds": 2})
    merge = {"method": "dare_linear", "parents": ["sums", "stories"], "weights": [0.5, 0.5], "density": 0.5}
    values["model"]["both"] = {"merge": merge}
    stages = {stage.label: stage for stage in stages_of(load_study(str(tiny.toml(values, tmp_path / "s.toml"))))}
    assert stages["model/both"].config["seed"] != stages["model/both~1"].config["seed"]


def test_the_plan_counts_repeats_at_what_the_first_costs(graph, repeated, tmp_path):
    store = Store(tmp_path)
    whole, once = plan(Pipeline(repeated), store), plan(Pipeline(load_study(str(graph))), store)
    rows = {row["stage"]: row for row in whole["plan_stages"]}
    assert set(rows) == {stage.label for stage in stages_of(repeated)} and not any(r["cached"] for r in rows.values())
    for label in ("model/sums", "sae_stream/base@scratch", "sae/sums@parent", "match/base+sums@parent"):
        assert rows[label]["flops"] == rows[f"{label}~2"]["flops"] > 0 and rows[f"{label}~1"]["seconds"] >= 1
    tokens = sum(row["tokens"] * (3 if f"{row['stage']}~1" in rows else 1) for row in once["plan_stages"])
    assert whole["tokens"] == tokens > once["tokens"] and whole["seconds"] > once["seconds"]


def test_packing_tokens_tells_how_far_it_is(graph, tmp_path):
    pipeline, store = Pipeline(load_study(str(graph))), Store(tmp_path / "runs")
    label = "tokens/words"
    done, stage = run(pipeline.closure([label]), store), pipeline.stages[label]
    (analysis, item, _), seen = pipeline.items[label], list[tuple[int, int]]()
    work = artifacts.work_of(tmp_path / "again", inputs_of(stage, store), lambda *step: seen.append(step))
    analysis.run(work, analysis.settings(pipeline.study, item))
    record = done["corpus/words"].json(RECORD)
    documents = record["documents_train"] + record["documents_validation"]
    assert seen == [(number, documents) for number in range(100, documents + 1, 100)] != []


def test_the_plan_sets_beside_the_estimate_what_a_stage_took(graph, tmp_path):
    pipeline, store = Pipeline(load_study(str(graph))), Store(tmp_path)
    before = plan(pipeline, store)
    run(pipeline.closure(["corpus/words"]), store)
    after = {row["stage"]: row for row in plan(pipeline, store)["plan_stages"]}
    done = after["corpus/words"]
    assert (
        done["cached"]
        and done["took"] == store.find("corpus", "words", pipeline.stages["corpus/words"].key).manifest["seconds"]
    )
    assert 0.05 < done["took_gib"] < 4 and not after["tokens/words"]["cached"] and after["tokens/words"]["took"] is None
    assert {row["stage"] for row in before["plan_stages"]} == set(after)


def test_training_too_few_vectors_for_stable_features_is_noted_with_the_figures(graph, tmp_path):
    def notes(*overrides: str) -> list[str]:
        return plan(Pipeline(load_study(str(graph), overrides)), Store(tmp_path))["notes"]

    (note,) = notes("sae.tokens=12_800", "sae.expansion=4")
    assert note.startswith("SAEs of 128 features are trained on 12,800 vectors, 100 per feature: with 130 per feature")
    assert notes("sae.tokens=30_000", "sae.expansion=4") == []


def test_passes_have_the_rate_of_their_precision():
    rates = Rates()
    plain, half = (rates.seconds(Cost(passes=Passes(1e12, precision))) for precision in ("float32", "bf16"))
    assert rates.seconds(Cost()) == 1 < half <= plain * 1.5
    assert rates.seconds(Cost(passes=Passes(1e12, "float32", True))) > plain
    assert rates.seconds(Cost(flops=1e12, efficiency=0.5)) == pytest.approx(1 + 2e12 / rates.of("float32"))


def test_the_plan_counts_the_saes_of_shifts(graph, tmp_path):
    study = load_study(str(graph))
    rows = {row["stage"]: row for row in plan(Pipeline(study), Store(tmp_path))["plan_stages"]}
    assert {rows[f"shift_sae/base+sums@{step}"]["tokens"] for step in STEPS} == {5_000}
    assert rows["shift/base+sums"]["tokens"] == 2 * study.config.lineage.tokens
    assert rows["shift/base+sums"]["flops"] > rows["match/base+sums@joint"]["flops"]


# -- other data or other weights -------------------------------------------------------------------------------------


def added(*overrides: str) -> set[str]:
    """Labels of the built-in study's stages that `shifts` adds."""
    plain_study, with_shifts = keys("demo", *overrides), keys("demo", *overrides, "controls.shifts=true")
    assert {label: with_shifts[label] for label in plain_study} == plain_study, "what is there is not made anew"
    return set(with_shifts) - set(plain_study)


@pytest.mark.parametrize("init", ['"joint"', '"parent"', '"independent"', '["joint", "parent"]'])
def test_an_edge_to_a_trained_child_gets_four_saes_and_a_merge_gets_none(init):
    labels = {label for label in added(f"sae.init={init}") if label.startswith("shift")}
    children = {label.partition("+")[2] for label in labels if label.startswith("shift/")}
    assert labels == {f"shift_sae/base+{child}@{step}" for child in children for step in STEPS} | {
        f"shift/base+{child}" for child in children
    }
    study = load_study("demo")
    assert children == {name for name in study.order if study.config.model[name].kind == "finetune"}


def test_the_sae_to_start_from_and_the_noise_are_made_only_where_the_study_has_none():
    def others(*overrides: str) -> set[str]:
        return {label for label in added(*overrides) if not label.startswith("shift")}

    assert others('sae.init="joint"', "controls.seeds=2") == {"sae/base@scratch", "sae/base@control1-from-base"}
    assert others('sae.init="independent"', "controls.seeds=2") == {"sae/base@control1-from-base"}
    assert others('sae.init=["joint", "parent"]', "controls.seeds=2") == set()
    assert others('sae.init="joint"', "controls.seeds=1") == {"sae/base@scratch"}


def test_each_step_changes_one_thing(graph):
    study = load_study(str(graph))
    stages = {stage.label: stage for stage in stages_of(study)}

    def recipe(step: str) -> tuple[list[str], str, set[str]]:
        inputs = stages[f"shift_sae/base+sums@{step}"].inputs
        return list(inputs["model"]), inputs["source"].label, set(inputs["tokens"])

    old = {"words", "code"}
    assert recipe("data") == (["base"], "sae/base@scratch", old | {"sums"})
    assert recipe("data-then-model") == (["sums"], "shift_sae/base+sums@data", old | {"sums"})
    assert recipe("model") == (["sums"], "sae/base@scratch", old)
    assert recipe("model-then-data") == (["sums"], "shift_sae/base+sums@model", old | {"sums"})
    assert stages["sae/sums@parent"].config["seed"] == seed_of(study, "sae", "sums-parent")
    control = stages["sae/base@control1-from-base"].config["seed"]  # the noise has the token order of the other weights
    assert stages["shift_sae/base+sums@model"].config["seed"] == control
    assert stages["shift_sae/base+sums@data"].config["seed"] != control
