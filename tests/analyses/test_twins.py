"""A model and a fine-tune trained a second time: siblings that are matched and judged, and enter no genealogy."""

from __future__ import annotations

from typing import Any

import pytest

import tiny
from heredity.results import Run
from heredity.results import open as open_run
from heredity.show.page import page_data

TWINS = ("base->twin", "sums->again")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("twins")
    off = dict.fromkeys(("unchanged", "edit", "sham", "removal", "codebook", "token_identity"), False)
    values = tiny.study_values(
        folder,
        case={},
        lineage={"tokens": 2_048},
        report={"tokens": 512, "features": 2, "contexts": 1},
        evaluation={"tokens": 512},
        controls={"newness": 0, "passes": 1, "resamples": 100},
        verdicts={"tokens": 2_000, "examine": 4, "texts": ["common"]},
        references=off,
    )
    values["model"] = {name: values["model"][name] for name in ("base", "sums")}
    values["model"]["sums"]["tokens"] = 2_000
    values["model"] |= {"twin": {"recipe_of": "base"}, "again": {"recipe_of": "sums"}}
    values["model"]["soup"] = {"merge": {"parents": ["sums", "again"], "t": 0.5}}
    values["sae"] |= {"expansion": 2, "tokens": 8_192, "evaluation_tokens": 512}
    tiny.run_study(tiny.toml(values, folder / "s.toml"), folder / "runs")
    return open_run(folder / "runs" / "s")


def rows(run: Run, table: str) -> list[dict[str, Any]]:
    return run[table].to_pylist()


def test_a_twin_is_trained_as_its_model_to_other_weights(run):
    models = {row["model"]: row for row in rows(run, "models")}
    records = {name: run.artifact(("model", {"model": name})).json("record.json") for name in models}
    for name, other in (("twin", "base"), ("again", "sums")):
        assert models[name] | {"model": other} == models[other], "kind, parents, parameters and tokens"
        assert records[name]["state"] != records[other]["state"]
    accuracy = {(row["model"], row["corpus"]): row for row in rows(run, "accuracy")}
    assert accuracy["twin", "code"]["accuracy"] == pytest.approx(accuracy["base", "code"]["accuracy"], rel=0.2)
    assert accuracy["twin", "code"]["accuracy"] > 1.2 * accuracy["twin", "code"]["unigram"]


def test_twins_are_matched_and_judged_and_enter_no_genealogy(run):
    edges = {"base->sums", "base->twin", "base->again", "sums->again", "sums->soup", "again->soup"}
    for table in ("edges", "verdicts"):
        assert {row["edge"] for row in rows(run, table)} == edges
    assert not {row["edge"] for row in rows(run, "examined")} & set(TWINS)
    for row in rows(run, "reach"):
        children = {part.split()[0] for part in row["children"].split(", ")}
        assert children == {"base": {"sums", "again"}, "sums": {"soup"}, "again": {"soup"}}[row["model"]]
    flow = {row["origin"]: row["features"] for row in rows(run, "flow") if row["rule"] == "evidence"}
    assert set(flow) == {"from_base", "emerged_in_sums", "emerged_in_again", "emerged_in_both", "novel"}
    nodes = {node["name"]: node for node in page_data(run)["graph"]}
    assert nodes["twin"]["parents"] == () and nodes["twin"]["recipe_of"] == "base"
    assert nodes["again"]["parents"] == ("base",) and nodes["base"]["recipe_of"] is None


def test_findings_call_nothing_of_a_twin_inherited_lost_or_new(run):
    about = [one for one in run.statements if one.about == "twin" and one.question != "note"]
    assert about and {one.question for one in about} <= {"sure", "matches", "density"}
    assert any("trained by the same recipe with another seed" in one.text for one in about)
    again = " ".join(one.text for one in run.statements if one.about == "again")
    assert "live features of base persist in again" in again and "features of sums have a match in again" in again
