"""Intervals of verdicts against other training seeds."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tiny
from heredity import seed_proof
from heredity.seed_proof import Judged, Plan, compared, plan
from heredity.study import load_study


def study(folder: Any, **changes: Any) -> Any:
    return load_study(str(tiny.toml(tiny.study_values(folder, **changes), folder / "s.toml")))


class Ends(NamedTuple):
    """Shares of both ends of an edge under both SAEs of a pair: (lost, lost by the other SAE)."""

    parent: tuple[float, float]
    child: tuple[float, float]


def artifact(folder: Any, ends: Ends, **more: Any) -> Any:
    folder.mkdir()
    rows = []
    for end, (own, other) in ends._asdict().items():
        row = {"end": end, "stable": 100, "lost_share": own, "lost_share_low": 0.1, "lost_share_high": 0.2}
        row |= {"other_seed_lost": other, "kept_share": 0.5, "kept_share_low": 0.4, "kept_share_high": 0.6}
        rows.append(
            row | {"other_seed_kept": 0.55, "agreement": 0.98, "kappa": 0.9 if end == "parent" else None, **more}
        )
    pq.write_table(pa.Table.from_pylist(rows), folder / "verdicts.parquet")
    return folder


def test_shares_under_other_seeds_are_counted_inside_the_interval_of_the_study(tmp_path):
    again = {"lost_share_retrained_low": 0.05, "lost_share_retrained_high": 0.3}
    artifacts = {
        "said": artifact(tmp_path / "a", Ends((0.15, 0.15), (0.15, 0.15)), **again),
        "pair": artifact(tmp_path / "b", Ends((0.12, 0.21), (0.2, 0.1))),
        "tuned": artifact(tmp_path / "c", Ends((0.05, 0.25), (0.31, 0.2))),
    }
    edge = Judged("joint", "base->sums", "said", {"SAE seeds": ["pair"], "retrained": ["tuned"]})
    tables = compared(Plan([], [edge]), artifacts)
    for table in seed_proof.TABLES:
        table.check(tables[table.name])
    lost = {
        (row["others"], row["interval"], row["end"]): (row["inside"], row["lowest"], row["highest"])
        for row in tables["proof_of_seeds"]
        if row["share"] == "lost"
    }
    assert lost == {
        ("SAE seeds", "SAE seeds", "parent"): (1, 0.12, 0.21),
        ("SAE seeds", "SAE seeds", "child"): (2, 0.1, 0.2),
        ("retrained", "SAE seeds", "parent"): (0, 0.05, 0.25),
        ("retrained", "SAE seeds", "child"): (1, 0.2, 0.31),
        ("retrained", "retrained", "parent"): (2, 0.05, 0.25),
        ("retrained", "retrained", "child"): (1, 0.2, 0.31),
    }
    targets = {row["target"]: row for row in tables["proof_of_seeds_targets"]}
    inside = targets["shares under other SAE seeds inside the headline's interval"]
    assert (inside["value"], inside["counts"]) == (7 / 8, 8) and not inside["met"]
    assert targets["median width of the headline's interval"]["value"] == pytest.approx(0.15)
    assert targets["shares of retrained fine-tunes inside the interval over fine-tunes"]["value"] == 3 / 4
    assert targets["shares of retrained fine-tunes inside the headline's interval"]["met"] is None
    kappa = targets["lowest kappa of two SAEs, edges with 5% lost or more"]
    assert kappa["met"] and kappa["counts"] == 3, "an edge whose verdicts are all the same has no kappa"


@pytest.mark.parametrize("instrument", ["joint", "independent"])
def test_edges_are_judged_by_pairs_of_new_seeds_and_only_trained_children_are_trained_again(tmp_path, instrument):
    values = tiny.study_values(tmp_path)
    made = plan(study(tmp_path, sae=values["sae"] | {"instruments": [instrument]}), 4, 2)
    stages: dict[str, Any] = {stage.label: stage for stage in made.stages}
    edges = {one.edge: one for one in made.edges}
    assert {edge: [len(labels) for labels in one.others.values()] for edge, one in edges.items()} == {
        "base->sums": [2, 2], "base->stories": [2, 2], "sums->both": [2, 0], "stories->both": [2, 0],
    }  # fmt: skip
    one = edges["base->sums"]
    judges = [stages[label] for label in (one.headline, *one.others["SAE seeds"])]
    used = [
        {sae.key for end in ("parent", "child") for sae in stage.inputs[f"{end}_saes"].values()} for stage in judges
    ]
    assert len(set.union(*used)) == sum(map(len, used)), "no two pairs share an SAE"
    assert len({stage.inputs["child"].key for stage in judges}) == 1
    again = [stages[label] for label in one.others["retrained"]]
    assert len({stage.inputs["child"].key for stage in (judges[0], *again)}) == 3
    assert {stage.inputs["parent"].key for stage in again} == {judges[0].inputs["parent"].key}
    places = {stage.label: place for place, stage in enumerate(made.stages)}
    assert all(places[source.label] < places[stage.label] for stage in made.stages for _, source in stage.sources())


def test_a_proof_without_seeds_or_verdicts_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--sae-seeds 3: must be even"):
        plan(study(tmp_path), 3, 0)
    with pytest.raises(ValueError, match="--model-seeds 0"):
        plan(study(tmp_path), 0, 0)
    with pytest.raises(ValueError, match="judges no edge"):
        plan(study(tmp_path, verdicts={"tokens": 0}), 2, 0)


@pytest.mark.slow
def test_the_command_resumes_in_the_folder_of_the_run(tmp_path):
    values = tiny.study_values(tmp_path, verdicts={"tokens": 2000}, case={}, report={"tokens": 512, "features": 2})
    values["model"] = {name: values["model"][name] for name in ("base", "sums")}
    values["corpus"].pop("stories")
    values["sae"] |= {"tokens": 4_000}
    tiny.run_study(tiny.toml(values, tmp_path / "s.toml"), tmp_path / "runs")
    words = ("validate", "--retrain", tmp_path / "runs/s", "--sae-seeds", 2, "--model-seeds", 1, "--json")
    first, again = tiny.command(*words), tiny.command(*words)
    assert json.loads(first.stdout) == json.loads(again.stdout)
    assert "sae/joint-2" in first.stderr and "verdicts/base+sums@joint~1" in first.stderr
    assert " s\n" not in again.stderr, "all of it is in the run's folder"
    others = {(row["others"], row["counts"]) for row in json.loads(first.stdout)["proof_of_seeds"]}
    assert others == {("SAE seeds", 2), ("retrained", 2)}
