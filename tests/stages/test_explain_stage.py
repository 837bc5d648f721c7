"""A study says what its features mean: labels, scores and the comparison of what persists with what does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import tiny
from heredity.engine.stage import run
from heredity.engine.store import Artifact, Store
from heredity.explain.token_statistics import Rule
from heredity.report.explained import ExplainedSummary
from heredity.stages import stages_of
from heredity.stages.explain import EXPLAINED, EXPLANATIONS
from heredity.study import Study

INIT = "joint"
LISTED = 3 * 6  # report.features of every list, and the families of each


def made(folder: Path) -> tuple[Study, Artifact, Artifact]:
    """A tiny study, its explanations, and the same made again elsewhere."""
    values = tiny.study_values(folder)
    values["sae"] |= {"init": [INIT], "tokens": 20_000}
    values["controls"] = {"seeds": 1, "newness": 0, "passes": 1, "resamples": 100}
    values["explain"] = {"features": 24, "drop": 0.05}
    study = Study.of(values, "s", folder)
    stages = {stage.label: stage for stage in stages_of(study)}
    explain = stages[f"explain/{INIT}"]
    wanted = needed(explain)
    upstream = [stage for stage in stages.values() if stage.label in wanted]
    store = Store(folder / "runs")
    first = run([*upstream, explain], store)[explain.label]
    before = {name: (first / name).read_bytes() for name in (EXPLANATIONS, EXPLAINED)}
    (folder / "again").mkdir()
    for name, content in before.items():
        (folder / "again" / name).write_bytes(content)
        (first / name).unlink()
    (first / "manifest.json").unlink()
    return study, run([*upstream, explain], store)[explain.label], Artifact(folder / "again", first.key)


def needed(stage) -> set[str]:
    """Labels of all that a stage rests on."""
    return {label for given in stage.inputs.values() for label in {given.label, *needed(given)}}


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Study, Artifact, Artifact]:
    return made(tmp_path_factory.mktemp("study"))


def test_every_row_says_what_a_feature_means_and_how_well_that_predicts_it(done):
    study, explained, _ = done
    rows = pq.read_table(explained / EXPLANATIONS).to_pylist()
    assert {row["model"] for row in rows} == set(study.order)
    for model in study.order:
        assert 0 < sum(row["model"] == model for row in rows) <= 24 + LISTED
    for row in rows:
        if row["failure"]:
            assert row["failure"] == "too_rare" and row["description"] is None and row["simulation"] is None
            continue
        assert row["by"] == "offline" and row["description"].startswith(("fires ", "follows no simple rule"))
        assert -1 <= row["simulation"] <= 1 and -1 <= row["detection"] <= 1 or np.isnan(row["detection"])
        own = (row["origin_model"], row["origin_feature"]) == (row["model"], row["feature"])
        assert own != row["carried"] and own == bool(row["rule"])
        assert not (row["carried"] and row["re_explained"])
    scores = [row["simulation"] for row in rows if not row["failure"]]
    assert np.nanmedian(scores) > 0.3, "features of tokens are told by their tokens"


def test_carried_labels_are_those_of_their_origins_and_fall_no_further_than_allowed(done):
    rows = {(row["model"], row["feature"]): row for row in pq.read_table(done[1] / EXPLANATIONS).to_pylist()}
    carried = [row for row in rows.values() if row["carried"]]
    assert len(carried) > 5
    for row in carried:
        origin = rows[row["origin_model"], row["origin_feature"]]
        assert origin["description"] == row["description"] and not origin["carried"]
        assert not row["simulation"] < origin["simulation"] - 0.05
        assert Rule.from_json(origin["rule"]).form


def test_the_summary_adds_up_and_every_edge_is_compared(done):
    study, explained, _ = done
    found = ExplainedSummary(**explained.json(EXPLAINED))
    rows = pq.read_table(explained / EXPLANATIONS).to_pylist()
    assert found.features + found.too_rare == len(rows)
    assert found.explained + found.kept == found.features and found.kept + found.re_explained == found.carried
    assert found.kept == found.saved == sum(row["carried"] for row in rows)
    assert set(found.edges) == {edge.name for edge in study.edges} and set(found.merges) == {"both"}
    for edge in found.edges.values():
        for group in (edge.persisting, edge.others):
            assert sum(group.histogram) == group.n
        assert edge.persisting.n > 0 and edge.persisting.median is not None
    into = [found.edges["sums->both"], found.edges["stories->both"]]
    assert found.merges["both"].persisting.n == sum(edge.persisting.n for edge in into)


def test_making_it_again_gives_the_same_bytes(done):
    _, explained, before = done
    for name in (EXPLANATIONS, EXPLAINED):
        assert (explained / name).read_bytes() == (before / name).read_bytes()
