"""A repeated study: the spread of its figures over training seeds, and a first repeat that is the plain study."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest

import examples
import tiny
from artifacts import acts_artifact, artifact, match_artifact, work_of
from heredity.analyses import Pipeline, repeats, stages_of, write_tables
from heredity.analyses.match import EDGES
from heredity.analyses.model import MERGES
from heredity.analyses.quality import ACCURACY
from heredity.analyses.sae import SAES
from heredity.analyses.verdicts import VERDICTS
from heredity.engine.store import Artifact
from heredity.features.acts import FeatureActs
from heredity.results import open as open_run
from heredity.study import Edge, Study, load_study

rng = np.random.default_rng(3)
EXAMPLES = {
    table: examples.example(table, rng, 1).to_pylist()[0] for table in (EDGES, ACCURACY, MERGES, SAES, VERDICTS)
}


def made(folder: Path, table: Any, **values: Any) -> Artifact:
    """An artifact with one row of a table: an example with some values of its own."""
    artifact(folder)
    write_tables([table], {table.name: [EXAMPLES[table] | values]}, folder, {})
    return Artifact(folder, str(folder))


def spread(folder: Path, inputs: dict[str, dict[str, Artifact]]) -> dict[tuple[str, str, str], dict[str, Any]]:
    rows = repeats.ANALYSIS.run(work_of(folder / "work", inputs), repeats.RepeatsSettings(2))["repeats"]
    repeats.REPEATS.check(rows)
    return {(row["instrument"], row["about"], row["figure"]): row for row in rows}


def test_every_headline_figure_is_spread_over_the_repeats_that_have_it(tmp_path):
    edge = {"rule": "evidence", "parent_live": 1000, "child_live": 500, "persist": 600, "disappear": 400, "emerge": 50}
    counts = {"stable": 100, "kept": 80, "changed": 10, "lost": 6, "undecided": 4, "end": "parent", "live": 200}
    inputs = {
        "verdicts|joint|base->cpp|": {
            "0": made(tmp_path / "v0", VERDICTS, **counts),
            "1": made(tmp_path / "v1", VERDICTS, **counts | {"kept": 84, "lost": 2}),
        },
        "match|joint|base->cpp|": {
            "0": made(tmp_path / "a", EDGES, **edge, ceiling=0.8, floor=0.01),
            "1": made(tmp_path / "b", EDGES, **edge | {"persist": 500, "disappear": 500}, ceiling=None, floor=0.03),
        },
        "quality|||cpp": {
            str(number): made(tmp_path / f"q{number}", ACCURACY, corpus="words", accuracy=0.5 + number / 10)
            for number in range(3)
        },
        "sae_quality|joint||cpp": {str(n): made(tmp_path / f"s{n}", SAES, l0=8.0 + n) for n in range(2)},
        "model|||both": {str(n): made(tmp_path / f"m{n}", MERGES, t=0.4 + n / 10) for n in range(2)},
    }
    rows = spread(tmp_path, inputs)
    persist = rows["joint", "base->cpp", "persist"]
    assert (persist["minimum"], persist["maximum"], persist["seeds"]) == (0.5, 0.6, 2)
    assert persist["standard_deviation"] == pytest.approx(np.std([0.5, 0.6], ddof=1))
    assert rows["joint", "base->cpp", "emerge"]["mean"] == 0.1
    assert rows["joint", "base->cpp", "ceiling"]["seeds"] == 1
    assert rows["joint", "base->cpp", "ceiling"]["standard_deviation"] is None
    assert {figure for _, about, figure in rows if about == "base->cpp"} == {"persist", "emerge", "ceiling", "floor"}
    assert rows["", "cpp on words", "accuracy"]["mean"] == pytest.approx(0.6)
    assert rows["", "cpp on words", "accuracy"]["seeds"] == 3
    assert {figure for _, about, figure in rows if about == "cpp"} == {"explained_variance", "l0", "ce_loss_recovered"}
    assert rows["joint", "cpp", "l0"]["mean"] == 8.5 and rows["", "both", "t"]["maximum"] == 0.5
    figures = {figure: row["mean"] for (_, about, figure), row in rows.items() if about == "base->cpp, parent"}
    means = {"stable_share": 0.5, "kept_share": 0.82, "changed_share": 0.1, "lost_share": 0.04}
    assert figures == pytest.approx(means)
    texts = [statement.text for statement in repeats.ANALYSIS.say({"repeats": list(rows.values())})]
    assert texts == [
        "Between 2 training seeds, the share of stable features of base that cpp lost varies by 2.8 % (standard "
        "deviation; mean 4 %).",
        "Between 2 training seeds, the share of base->cpp that persists varies by 7.1 % (standard deviation; "
        "mean 55 %).",
    ]


def test_what_is_not_trained_again_does_not_vary(tmp_path):
    same = made(tmp_path / "a", MERGES, t=0.4)
    assert spread(tmp_path, {"model|||both": {"0": same, "1": same}}) == {}


def test_the_same_features_are_followed_through_sae_seeds_and_those_that_persist_in_all_are_counted(tmp_path):
    """The second SAE has 30 of 40 features in another order; 0 to 19 persist at first, then 5 to 19 and lost ones."""
    firing = (rng.random((3000, 80)) < 0.03).astype(np.float32)
    order = rng.permutation(40)
    saes = [firing[:, :40], np.where(np.arange(40) < 30, firing[:, :40], firing[:, 40:])[:, order]]
    kept = [
        firing[:, :20],
        firing[:, [*range(5, 20), *range(70, 80)]],
    ]  # what follows nothing in the first is not asked
    parents, children = ([FeatureActs.from_dense(one) for one in many] for many in (saes, kept))
    edge, ends = Edge("base", "sums"), list(zip(parents, children, strict=True))
    matches = {str(n): match_artifact(tmp_path / f"m{n}", edge, *ends[n], 0.5) for n in (0, 1)}
    acts = {str(n): acts_artifact(tmp_path / f"a{n}", one) for n, one in enumerate(parents)}
    work = work_of(tmp_path / "work", {"match|joint|base->sums|": matches, "acts|joint||base": acts})
    rows = repeats.ANALYSIS.run(work, repeats.RepeatsSettings(2, (edge.name,)))["repeats_same"]
    own, paper = repeats.SAME.check(rows).to_pylist()
    assert (own["rule"], paper["rule"]) == ("study", "paper") and own | {"rule": "paper"} == paper
    assert [own[name] for name in ("live", "followed", "in_all", "in_some", "in_none")] == [40, 30, 15, 5, 10]
    assert [own[f"expected_{name}"] for name in ("all", "some", "none")] == pytest.approx([10, 15, 5])
    (said,) = repeats.ANALYSIS.say({"repeats_same": [own, paper]})
    assert said.text == (
        "Of 30 features of base that SAEs of all 2 training seeds have, 15 of 30 (50 %) persist in every training of "
        "sums and 10 in none; if trainings were independent, these would be 10 and 5."
    )


def test_features_of_models_that_are_trained_again_are_not_followed(tmp_path):
    study = Study.of(tiny.study_values(tmp_path, repeat={"seeds": 2}), root=tmp_path)
    assert repeats.ANALYSIS.settings(study, {"site": study.site}).edges == ("base->sums", "base->stories")


def test_only_a_t_that_is_sought_is_repeated(tmp_path):
    def roles(t: Any) -> set[str]:
        values = tiny.study_values(tmp_path, repeat={"seeds": 2})
        values["model"]["both"]["merge"]["t"] = t
        stage = Pipeline(load_study(str(tiny.toml(values, tmp_path / "s.toml")))).stages["repeats/study"]
        return {role.partition("|")[0] for role in stage.inputs}

    assert "model" in roles("equilibrium") and "model" not in roles(0.5)


def test_a_study_that_is_not_repeated_has_no_spread(tmp_path):
    path = tiny.toml(tiny.study_values(tmp_path), tmp_path / "s.toml")
    assert not [stage for stage in stages_of(load_study(str(path))) if stage.kind == "repeats"]


# -- a study that is run, then repeated ---------------------------------------------------------------------------


class Repeated(NamedTuple):
    """A study that is run, then run again with a second repeat."""

    plain: dict[str, Artifact]
    both: dict[str, Artifact]
    printed: Any
    """What the second run printed."""


@pytest.fixture(scope="module")
def repeated(tmp_path_factory) -> Repeated:
    folder = tmp_path_factory.mktemp("repeat")
    values = tiny.study_values(folder)
    values["model"] = {name: values["model"][name] for name in ("base", "sums")}
    values["model"]["base"]["train"] |= {"tokens": 2_000}
    values["model"]["sums"] |= {"tokens": 1_000}
    values["corpus"] = {name: values["corpus"][name] for name in ("words", "code", "sums")}
    values["sae"] |= {"expansion": 2, "tokens": 2_048, "continue_tokens": 1_024, "evaluation_tokens": 512}
    values |= {"lineage": {"tokens": 1_024}, "report": {"tokens": 512, "features": 2, "contexts": 1}, "case": {}}
    values |= {"evaluation": {"tokens": 512}, "controls": {"newness": 0, "passes": 1, "resamples": 100}}
    path = tiny.toml(values, folder / "s.toml")

    def run() -> tuple[dict[str, Artifact], Any]:
        printed = tiny.command("run", path, "--runs", folder / "runs")
        return open_run(folder / "runs/s").artifacts, printed

    plain, _ = run()
    tiny.toml({**values, "repeat": {"seeds": 2}}, path)
    return Repeated(plain, *run())


def test_the_second_run_makes_the_repeats_alone(repeated):
    assert {label: one.folder for label, one in repeated.both.items() if label in repeated.plain} == {
        label: one.folder for label, one in repeated.plain.items()
    }
    made = [label for label in repeated.both if label not in repeated.plain]
    assert made and all(label.endswith("~1") or label == "repeats/study" for label in made)
    bars = {line.split()[1] for line in repeated.printed.stderr.splitlines() if line.endswith(" s")}
    assert bars == set(made), "a stage of the first repeat was made again"
    assert "Between training seeds" in repeated.printed.stdout
    same = pq.read_table(repeated.both["repeats/study"] / "repeats_same.parquet").to_pylist()
    assert [(row["edge"], row["rule"]) for row in same] == [("base->sums", "evidence"), ("base->sums", "paper")]


def test_repeats_differ_and_their_spread_holds_the_first(repeated):
    table = pq.read_table(repeated.both["repeats/study"] / "repeats.parquet").to_pylist()
    rows = {(row["about"], row["figure"]): row for row in table}
    accuracies = {about for about, figure in rows if figure == "accuracy"}
    assert accuracies == {"sums on words", "sums on code", "sums on sums"}, "the start model is trained once"
    first = pq.read_table(repeated.plain["match/base+sums@joint"] / "edges.parquet").to_pylist()
    edge = next(row for row in first if row["rule"] == "evidence")
    persist = rows["base->sums", "persist"]
    assert persist["minimum"] <= edge["persist"] / edge["parent_live"] <= persist["maximum"]
    (judged,) = (
        row
        for row in pq.read_table(repeated.plain["verdicts/base+sums@common@joint"] / "verdicts.parquet").to_pylist()
        if row["end"] == "child"
    )
    stable = rows["base->sums, child", "stable_share"]
    assert judged["stable"] / judged["live"] in (stable["minimum"], stable["maximum"]) and stable["seeds"] == 2
    assert ("base->sums, child", "lost_share") in rows or not judged["stable"]
    for model in ("base", "sums"):
        explained = rows[model, "explained_variance"]
        assert explained["seeds"] == 2 and explained["standard_deviation"] > 0
        own = pq.read_table(repeated.plain[f"sae_quality/{model}@joint"] / "saes.parquet").to_pylist()[0]
        assert own["explained_variance"] in (explained["minimum"], explained["maximum"])


def test_the_weights_of_repeats_differ_and_those_of_the_start_model_are_shared(repeated):
    states = {label: one.json("record.json")["state"] for label, one in repeated.both.items() if "model/" in label}
    assert set(states) == {"model/base", "model/sums", "reference_model/sums@sham", "model/sums~1"}
    assert len(set(states.values())) == 4
