"""A repeated study: the first repeat is the plain study, the others differ from it by their seeds alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import tiny
from heredity.analyses import Pipeline
from heredity.analyses.plan import plan
from heredity.cli import app
from heredity.engine.stage import Stage
from heredity.engine.store import Store
from heredity.study import Study, load_study


def heredity(*arguments: object, code: int = 0):
    """Run a command in this process and check how it ended."""
    result = CliRunner().invoke(app, [str(word) for word in arguments])
    assert result.exit_code == code, (result.output, result.stderr, result.exception)
    return result


def stages_in(study: Study) -> dict[str, Stage]:
    return Pipeline(study).stages


def keys(study: Study) -> dict[str, str]:
    return {label: stage.key for label, stage in stages_in(study).items()}


def test_the_first_repeat_has_the_keys_of_the_plain_study():
    plain, repeated = keys(load_study("demo")), keys(load_study("demo", ["repeat.seeds=2"]))
    assert {label: key for label, key in repeated.items() if "~" not in label and label != "repeats/study"} == plain
    assert any("~1" in label for label in repeated) and not any("~2" in label for label in repeated)


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> Study:
    """The tiny study of four models and two instruments, three times, not run."""
    folder = tmp_path_factory.mktemp("graph")
    values = tiny.study_values(folder, repeat={"seeds": 3}, controls={"shifts": True})
    values["sae"]["instruments"] = ["parent", "independent"]
    return load_study(str(tiny.toml(values, folder / "s.toml")))


def test_fine_tunes_saes_and_what_follows_from_them_are_made_anew_and_nothing_else(graph):
    labels = stages_in(graph)
    again = {label.removesuffix("~2") for label in labels if label.endswith("~2")}
    assert again >= {"model/sums", "model/both", "sweep/both", "quality/both", "sae/base@scratch", "sae/sums@parent"}
    assert again >= {"sae/base@control1-from-base", "sae_quality/both@independent", "match/base+sums@independent"}
    kinds = {label.partition("/")[0] for label in again}
    assert not kinds & {"corpus", "tokenizer", "tokens", "acts", "features", "classes", "explain", "newness", "repeats"}
    assert not {"model/base", "quality/base"} & again


def test_labels_are_unique_and_safe_as_names_of_folders(graph):
    stages = stages_in(graph)
    assert len({stage.key for stage in stages.values()}) == len(stages)
    assert all(set(stage.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_~@+") for stage in stages.values())


def test_inputs_come_before_what_is_made_from_them_and_belong_to_the_same_repeat(graph):
    before: set[str] = set()
    stages = stages_in(graph)
    for label, stage in stages.items():
        number = label.partition("~")[2]
        for _, source in stage.sources():
            assert source.label in before and source.key == stages[source.label].key
            if number:
                assert source.label.endswith(f"~{number}") or f"{source.label}~{number}" not in stages
            else:
                assert "~" not in source.label or stage.kind == "repeats"
        before.add(label)


def test_trainings_have_seeds_of_their_own_and_measurements_those_of_the_first_repeat(graph):
    stages = stages_in(graph)
    for label in ("model/sums", "sae/base@scratch", "sae/sums@parent", "sae/base@control1-from-base"):
        settings = [stages[label + mark].config for mark in ("", "~1", "~2")]
        assert len({json.dumps(one) for one in settings}) == 3, label
        assert len({json.dumps({**one, "seed": 0}) for one in settings}) == 1, "nothing but the seed differs"
    for label in ("sweep/both", "sae_quality/sums@parent", "match/base+sums@parent", "model/both"):
        assert stages[label].config == stages[label + "~1"].config, label


def test_a_merge_that_draws_at_random_is_repeated_with_another_seed(tmp_path, monkeypatch):
    monkeypatch.setattr("heredity.lm.recipe.find_spec", lambda name: name)  # mergekit need not be installed
    values = tiny.study_values(tmp_path, repeat={"seeds": 2})
    merge = {"method": "dare_linear", "parents": ["sums", "stories"], "weights": [0.5, 0.5], "density": 0.5}
    values["model"]["both"] = {"merge": merge}
    stages = stages_in(load_study(str(tiny.toml(values, tmp_path / "s.toml"))))
    assert stages["model/both"].config != stages["model/both~1"].config


def test_check_shows_the_repeats_at_what_the_first_costs(graph, tmp_path):
    report = plan(Pipeline(graph), Store(tmp_path))
    rows = {row["stage"]: row for row in report["plan_stages"]}
    assert set(rows) == set(stages_in(graph)) and not any(row["cached"] for row in rows.values())
    for label in ("model/sums", "sae/base@scratch", "match/base+sums@parent"):
        assert rows[label]["flops"] == rows[f"{label}~2"]["flops"] > 0 and rows[f"{label}~1"]["seconds"] >= 1
    assert report["tokens"] == sum(row["tokens"] for row in rows.values())


# -- a study that is run, then repeated ---------------------------------------------------------------------------


def small(folder: Path) -> dict:
    """Two models, as little work as shows a difference."""
    values = tiny.study_values(folder)
    values["model"] = {name: values["model"][name] for name in ("base", "sums")}
    values["model"]["base"]["train"] |= {"tokens": 2_000}
    values["model"]["sums"] |= {"tokens": 1_000}
    values["corpus"] = {name: values["corpus"][name] for name in ("words", "code", "sums")}
    values["sae"] |= {"expansion": 2, "tokens": 2_048, "continue_tokens": 1_024, "evaluation_tokens": 512}
    values["lineage"] = {"tokens": 1_024}
    values["report"] = {"tokens": 512, "features": 2, "contexts": 1}
    values["evaluation"] = {"tokens": 512}
    values["case"] = {}
    return values


def tables_in(folder: Path) -> dict[str, list[dict]]:
    tables = json.loads((folder / "runs/s/summary.json").read_text())["tables"]
    return {name: table["rows"] for name, table in tables.items()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder, and the tables before and after `[repeat] seeds = 2` was added; the printed end of the run."""
    folder = tmp_path_factory.mktemp("repeat")
    path = tiny.toml(small(folder), folder / "s.toml")
    heredity("run", path, "--runs", folder / "runs")
    before = tables_in(folder)
    tiny.toml({**small(folder), "repeat": {"seeds": 2}}, path)
    result = heredity("run", path, "--runs", folder / "runs")
    return folder, before, tables_in(folder), result


def test_the_numbers_of_the_first_repeat_are_those_of_the_plain_study_bit_for_bit(runs):
    _, before, after, result = runs
    assert {name: rows for name, rows in after.items() if name != "repeats"} == before
    made = [line.split()[1] for line in result.stderr.splitlines() if line.endswith(" s")]
    assert made and all(label.endswith("~1") for label in made if label != "repeats/study"), "made again"


def test_repeats_differ_and_their_spread_holds_the_first(runs):
    _, before, after, _ = runs
    rows = {(row["about"], row["figure"]): row for row in after["repeats"]}
    assert all(row["seeds"] == 2 or row["mean"] is None for row in rows.values())
    (edge,) = [row for row in before["edges"] if row["rule"] == "evidence"]
    values = {"persist": edge["persist"] / edge["parent_live"], "ceiling": edge["ceiling"]}
    for name, value in values.items():
        row = rows["base->sums", name]
        assert row["minimum"] <= value <= row["maximum"]
    explained = {row["model"]: row["explained_variance"] for row in before["saes"] if row["seed"] == 0}
    for name in ("base", "sums"):
        row = rows[name, "explained_variance"]
        assert row["standard_deviation"] > 0 and explained[name] in (row["minimum"], row["maximum"])


def test_the_weights_of_repeats_differ_and_those_of_the_start_model_are_shared(runs):
    folder = runs[0]

    def states(name: str) -> list[str]:
        return [json.loads(path.read_text())["state"] for path in folder.glob(f"runs/s/model/{name}/record.json")]

    assert len(states("base-*")) == 1
    (first,), (second,) = states("sums-*"), states("sums~1-*")
    assert first != second


def test_the_end_of_the_run_shows_what_varies_between_seeds(runs):
    assert "Between training seeds" in runs[3].stdout and "standard deviation" in runs[3].stdout


def test_status_and_check_know_that_the_repeats_are_done(runs):
    options = (runs[0] / "s.toml", "--runs", runs[0] / "runs", "--json")
    rows = json.loads(heredity("status", *options).stdout)["stages"]
    assert {row["state"] for row in rows} == {"done"} and any(row["stage"] == "model/sums~1" for row in rows)
    report = json.loads(heredity("check", *options).stdout)
    assert report["tokens"] == 0 and len(report["plan_stages"]) == len(rows)
