"""Where the features of a merge come from, planted: at each edge's own threshold and at the paper's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import artifacts
from heredity.analyses import flow
from heredity.features.acts import FeatureActs
from heredity.study import Edge

FEATURES = {
    "base": ("a", "b", "c", "d", "e", "dead"),
    "sums": ("a", "b~", "s", "noise 1", "dead"),
    "stories": ("c", "a", "t", "noise 2", "dead"),
    "both": ("a", "b", "c", "s", "t~", "noise 3", "dead"),
}
"""What the features of every model follow; with a ~ they fire on as many other tokens too, so that r is about 0.7."""
EDGES = (Edge("base", "sums"), Edge("base", "stories"), Edge("sums", "both"), Edge("stories", "both"))


def fires(name: str) -> np.ndarray:
    if name.endswith("~"):
        return np.maximum(fires(name[:-1]), fires(f"not {name[:-1]}"))
    return np.random.default_rng(list(name.encode())).random(4000) < (0 if name == "dead" else 0.03)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("flow")
    acts = {
        model: FeatureActs.from_dense(np.stack([fires(name) for name in names], 1).astype(np.float32))
        for model, names in FEATURES.items()
    }
    found = {
        edge.name: artifacts.match_artifact(
            folder / f"{edge.parent}+{edge.child}", edge, acts[edge.parent], acts[edge.child], 0.5
        )
        for edge in EDGES
    }
    rows = flow.ANALYSIS.run(
        artifacts.work_of(folder / "work", {"match": found}), flow.FlowSettings({"both": ((), EDGES)})
    )
    return {one.name: one.check(rows[one.name], **artifacts.SITE).to_pylist() for one in flow.ANALYSIS.tables}


@pytest.mark.parametrize(
    ("rule", "counts"),
    [
        ("study", {"from_base": 3, "emerged_in_sums": 1, "emerged_in_stories": 1, "emerged_in_both": 0, "novel": 1}),
        ("paper", {"from_base": 2, "emerged_in_sums": 1, "emerged_in_stories": 0, "emerged_in_both": 0, "novel": 3}),
    ],
)
def test_what_a_merge_inherits_is_counted_by_both_rules(tables, rule, counts):
    rows = [row for row in tables["flow"] if row["rule"] == rule]
    assert {row["origin"]: row["features"] for row in rows} == counts and {row["live"] for row in rows} == {6}
    links = [row for row in tables["flow_links"] if row["rule"] == rule and row["origin"] == "base"]
    assert sum(2 * row["features"] - row["shared"] for row in links) == 2 * counts["from_base"]


def test_features_that_persist_into_any_child_are_counted_once_with_both_denominators(tables):
    reach = {(row["rule"], row["model"]): (row["features"], row["children"]) for row in tables["reach"]}
    assert reach["study", "base"] == (3, "sums 2, stories 2") and reach["paper", "base"] == (2, "sums 1, stories 2")
    assert reach["study", "sums"] == (3, "both 3") and reach["paper", "sums"] == (2, "both 2")
    assert {(row["live"], row["total"]) for row in tables["reach"] if row["model"] == "base"} == {(5, 6)}


def test_a_finding_is_read_at_the_own_threshold_with_the_papers_beside_it(tables):
    parents = {"base": "", "sums": "base", "stories": "base", "both": "sums, stories"}
    models = [{"model": name, "parents": of} for name, of in parents.items()]
    inherited, new = flow.ANALYSIS.say({**tables, "models": models})
    assert inherited.text == (
        "By matches alone, both inherited 5 of 6 (83 %) of its live features: 3 go back to base, 1 emerged in sums and "
        "1 emerged in stories."
    )
    assert inherited.evidence[1].startswith("at the paper's r > 0.8: 3 = 2 from_base + 1 emerged_in_sums + 0 ")
    assert "1 of 6 (17 %) live features of both match nothing" in new.text
