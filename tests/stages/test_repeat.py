"""A repeated study: the first repeat is the plain study, the others differ from it by their seeds alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import tiny
from heredity.cli import app
from heredity.engine.store import Store
from heredity.report.summary import Summary
from heredity.report.terminal import print_summary
from heredity.stages import stages_of
from heredity.stages.plan import plan
from heredity.stages.repeat import all_stages, between_seeds, plan_all, spread
from heredity.study import load_study
from report import sample


def heredity(*arguments: object, code: int = 0):
    """Run a command in this process and check how it ended."""
    result = CliRunner().invoke(app, [str(word) for word in arguments])
    assert result.exit_code == code, (result.output, result.stderr, result.exception)
    return result


def keys(stages) -> dict[str, str]:
    return {stage.label: stage.key for stage in stages}


def test_the_first_repeat_has_the_keys_of_the_plain_study():
    plain, repeated = load_study("demo"), load_study("demo", ["repeat.seeds=2"])
    assert keys(stages_of(repeated)) == keys(stages_of(plain)) == keys(all_stages(plain))
    found = keys(all_stages(repeated))
    assert {label: key for label, key in found.items() if "~" not in label} == keys(stages_of(plain))


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> Path:
    """The tiny study of four models and both instruments, not run."""
    folder = tmp_path_factory.mktemp("graph")
    values = tiny.study_values(folder, repeat={"seeds": 3})
    values["sae"]["init"] = ["parent", "independent"]
    return tiny.toml(values, folder / "s.toml")


def test_fine_tunes_saes_and_what_follows_from_them_are_made_anew_and_nothing_else(graph):
    stages = all_stages(load_study(str(graph)))
    again = {label.removesuffix("~2") for label in keys(stages) if label.endswith("~2")}
    once = set(keys(stages_of(load_study(str(graph))))) - again
    kinds = {"corpus", "tokenizer", "tokens", "acts", "features"}
    assert {label for label in once if label.partition("/")[0] not in kinds} == {"model/base", "quality/base"}
    assert again >= {"model/sums", "model/both", "sweep/both", "quality/both", "sae/base-scratch", "sae/sums-parent"}
    assert again >= {"sae/base-control1-from-base", "sae_quality/both-independent", "match/base-to-sums-independent"}
    assert not {label.partition("/")[0] for label in again} & kinds


def test_labels_are_unique_and_safe_as_names_of_folders(graph):
    stages = all_stages(load_study(str(graph)))
    assert len({stage.label for stage in stages}) == len(stages) == len({stage.key for stage in stages})
    assert all(set(stage.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_~") for stage in stages)


def test_inputs_come_before_what_is_made_from_them_and_belong_to_the_same_repeat(graph):
    before: set[str] = set()
    repeated = keys(all_stages(load_study(str(graph))))
    for stage in all_stages(load_study(str(graph))):
        _, _, number = stage.label.partition("~")
        for source in stage.inputs.values():
            assert source.label in before and source.key == repeated[source.label]
            if number:
                assert source.label.endswith(f"~{number}") or f"{source.label}~{number}" not in repeated
            else:
                assert "~" not in source.label
        before.add(stage.label)


def test_trainings_have_seeds_of_their_own_and_measurements_those_of_the_first_repeat(graph):
    stages = {stage.label: stage for stage in all_stages(load_study(str(graph)))}
    for label in ("model/sums", "sae/base-scratch", "sae/sums-parent", "sae/base-control1-from-base"):
        seeds = {stages[label + mark].config["seed"] for mark in ("", "~1", "~2")}
        assert len(seeds) == 3, label
        assert len({json.dumps({**stages[label + mark].config, "seed": 0}) for mark in ("", "~1", "~2")}) == 1
    for label in ("sweep/both", "sae_quality/sums-parent", "match/base-to-sums-parent", "model/both"):
        assert stages[label].config == stages[label + "~1"].config, label


def test_a_merge_that_draws_at_random_is_repeated_with_another_seed(tmp_path):
    values = tiny.study_values(tmp_path, repeat={"seeds": 2})
    merge = {"method": "dare_linear", "parents": ["sums", "stories"], "weights": [0.5, 0.5], "density": 0.5}
    values["model"]["both"] = {"merge": merge}
    stages = {stage.label: stage for stage in all_stages(load_study(str(tiny.toml(values, tmp_path / "s.toml"))))}
    assert stages["model/both"].config["seed"] != stages["model/both~1"].config["seed"]


def test_check_shows_the_repeats_at_what_the_first_costs(graph, tmp_path):
    study, store = load_study(str(graph)), Store(tmp_path)
    found, plain = plan_all(study, store), plan(study, store)
    rows = {row.stage: row for row in found.stages}
    assert set(rows) == set(keys(all_stages(study))) and not any(row.cached for row in rows.values())
    for label in ("model/sums", "sae/base-scratch", "match/base-to-sums-parent"):
        assert rows[label].flops == rows[f"{label}~2"].flops > 0 and rows[f"{label}~1"].seconds >= 1
    once = {row.stage for row in plain.stages if f"{row.stage}~1" not in rows}
    tokens = sum(row.tokens * (1 if row.stage in once else 3) for row in plain.stages)
    assert found.tokens == tokens > plain.tokens and found.seconds > plain.seconds


def test_a_spread_is_mean_standard_deviation_and_range():
    found = spread([1.0, 2.0, 6.0])
    assert (found.mean, found.minimum, found.maximum, found.n) == (3.0, 1.0, 6.0, 3)
    assert found.standard_deviation == pytest.approx(np.std([1, 2, 6], ddof=1))
    assert spread([4.0]).standard_deviation is None


def test_every_headline_number_is_spread_over_the_summaries_that_have_it():
    first = sample.sample_view().summary
    edge = first.edges["base->cpp"]
    changed = {"persist": edge.persist - 100, "disappear": edge.disappear + 100, "ceiling": None}
    merge = first.merges["cpp_stories"]
    other = first.model_copy(
        update={
            "edges": {**first.edges, "base->cpp": edge.model_copy(update=changed)},
            "merges": {"cpp_stories": merge.model_copy(update={"t": (merge.t or 0) + 0.1})},
        }
    )
    found = between_seeds([first, other])
    persist = found.edges["base->cpp"]["persist"]
    assert persist.n == 2 and persist.maximum == edge.persist / edge.parent_live
    assert persist.maximum - persist.minimum == pytest.approx(100 / edge.parent_live)
    assert found.edges["base->cpp"]["ceiling"].n == 1
    assert found.edges["base->stories"]["persist"].standard_deviation == 0
    assert set(found.edges["base->cpp"]) == {"persist", "emerge", "ceiling", "floor"}
    assert set(found.saes["base"]) == {"explained_variance", "l0", "ce_loss_recovered"}
    assert found.accuracy["cpp"]["cpp"].mean == first.models["cpp"].accuracy["cpp"]
    assert set(found.also) == {"independent"} and set(found.also["independent"].edges) == set(first.edges)
    whole = first.model_copy(update={"repeats": found})
    assert Summary.model_validate_json(whole.to_json()) == whole
    assert set(json.loads(whole.to_json())["repeats"]) == {"seeds", "accuracy", "merges", "saes", "edges", "also"}


def test_only_a_t_that_is_sought_varies():
    first = sample.sample_view().summary
    merge = first.merges["cpp_stories"]
    sought = {"t": 0.4, "crossed": True, "interval": (0.3, 0.5)}
    given = {"t": 0.4, "crossed": None, "interval": None}
    for change, names in ((sought, {"cpp_stories"}), (given, set())):
        one = first.model_copy(update={"merges": {"cpp_stories": merge.model_copy(update=change)}})
        assert set(between_seeds([one, one]).merges) == names


def test_a_study_that_is_not_repeated_says_so_with_null_and_prints_no_block(capsys):
    first = sample.sample_view().summary
    assert json.loads(first.to_json())["repeats"] is None
    print_summary(first, "page")
    assert "Between seeds" not in capsys.readouterr().out


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


def summary_in(folder: Path) -> Summary:
    return Summary.model_validate_json((folder / "runs/s/summary.json").read_text())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder, and the summaries before and after `[repeat] seeds = 2` was added; the printed end of the run."""
    folder = tmp_path_factory.mktemp("repeat")
    path = tiny.toml(small(folder), folder / "s.toml")
    heredity("run", path, "--runs", folder / "runs")
    before = summary_in(folder)
    tiny.toml({**small(folder), "repeat": {"seeds": 2}}, path)
    result = heredity("run", path, "--runs", folder / "runs")
    return folder, before, summary_in(folder), result


def test_the_numbers_of_the_first_repeat_are_those_of_the_plain_study_bit_for_bit(runs):
    _, before, after, result = runs
    clock = {"seconds", "repeats"}
    assert after.model_dump(exclude=clock) == before.model_dump(exclude=clock)
    made = [line.split()[1] for line in result.stderr.splitlines() if line.endswith(" s")]
    assert made and all(label.endswith("~1") for label in made), "a stage of the first repeat was made again"


def test_repeats_differ_and_their_spread_holds_the_first(runs):
    _, before, after, _ = runs
    found = after.repeats
    assert found is not None and found.seeds == 2
    assert set(found.accuracy) == {"sums"}, "the start model is trained once"
    assert found.accuracy["sums"]["sums"].minimum <= (before.models["sums"].accuracy["sums"] or 0)
    edge = before.edges["base->sums"]
    spreads = found.edges["base->sums"]
    assert spreads["persist"].minimum <= edge.persist / edge.parent_live <= spreads["persist"].maximum
    assert spreads["ceiling"].minimum <= (edge.ceiling or 0) <= spreads["ceiling"].maximum
    for name in ("base", "sums"):
        explained = found.saes[name]["explained_variance"]
        assert explained.n == 2 and (explained.standard_deviation or 0) > 0
        assert before.saes[name].explained_variance in (explained.minimum, explained.maximum)


def test_the_weights_of_repeats_differ_and_those_of_the_start_model_are_shared(runs):
    folder = runs[0]

    def states(name: str) -> list[str]:
        return [json.loads(path.read_text())["state"] for path in folder.glob(f"runs/s/model/{name}/record.json")]

    assert len(states("base-*")) == 1
    (first,), (second,) = states("sums-*"), states("sums~1-*")
    assert first != second


def test_the_end_of_the_run_shows_what_varies_between_seeds(runs):
    assert "Between seeds" in runs[3].stdout and "±" in runs[3].stdout


def test_status_and_check_know_that_the_repeats_are_done(runs):
    options = (runs[0] / "s.toml", "--runs", runs[0] / "runs", "--json")
    rows = json.loads(heredity("status", *options).stdout)["stages"]
    assert {row["state"] for row in rows} == {"done"} and any(row["stage"] == "model/sums~1" for row in rows)
    found = json.loads(heredity("check", *options).stdout)
    assert found["tokens"] == 0 and len(found["stages"]) == len(rows)


def test_the_gate_reads_the_summary_of_a_study_that_has_been_run(runs):
    folder, before, *_ = runs
    options = (folder / "s.toml", "--runs", folder / "runs", "--json")
    found = json.loads(heredity("gate", *options, "--max-lost", "100%").stdout)
    edge = before.edges["base->sums"]
    assert found["passed"] and found["edges"]["base->sums"]["lost"] == pytest.approx(edge.disappear / edge.parent_live)
    assert edge.disappear > 0
    heredity("gate", *options, "--max-lost", "0", code=1)


def test_the_gate_refuses_a_study_that_changed_or_was_not_run(runs, tmp_path):
    folder = runs[0]
    study = folder / "s.toml"
    result = heredity("gate", study, "--runs", tmp_path, "--max-lost", "5%", code=2)
    assert "is not done" in result.stderr and "heredity run" in result.stderr
    changed = ("--set", "sae.tokens=2049")
    result = heredity("gate", study, "--runs", folder / "runs", "--max-lost", "5%", *changed, code=2)
    assert "sae/joint" in result.stderr and "heredity run" in result.stderr


@pytest.mark.parametrize("state", ["missing", "broken", "another"])
def test_the_gate_refuses_a_summary_that_is_not_of_these_artifacts(runs, state):
    folder, before, *_ = runs
    path = folder / "runs/s/summary.json"
    text = path.read_text()
    try:
        if state == "missing":
            path.unlink()
        elif state == "broken":
            path.write_text("{}")
        else:
            edge = before.edges["base->sums"].model_copy(update={"tokens": 7})
            path.write_text(before.model_copy(update={"edges": {"base->sums": edge}}).to_json())
        result = heredity("gate", folder / "s.toml", "--runs", folder / "runs", "--max-lost", "5%", code=2)
    finally:
        path.write_text(text)
    message = {"missing": "no such file", "broken": "is no summary", "another": "an earlier state"}[state]
    assert message in result.stderr and "heredity run" in result.stderr
