"""A label is made once, follows its matches, and is given up only where it does not fit."""

from __future__ import annotations

import numpy as np

from heredity.explain.propagate import TOO_RARE, counts_of, failures_of, hand_down
from heredity.explain.protocol import Failure
from heredity.explain.scores import Scores
from heredity.features.correlate import Matches

EDGES = [("base", "left"), ("base", "right"), ("left", "merge"), ("right", "merge")]
NAN = float("nan")


def matches(child: list[int], r: list[float]) -> Matches:
    """By the child's features; nothing else is looked at."""
    match, value = np.array(child)[:, None], np.where(np.array(child) < 0, np.nan, r)[:, None]
    density = np.ones(len(child))
    return Matches(match, value, match, value, density, density, 100)


# Every model has four features. base 0 goes everywhere; base 1 into left 1 and from there into merge 1; merge 2 has a
# partner in both parents, a stronger one in right; 3 is nobody's match.
COUNTING = {
    ("base", "left"): matches([0, 1, -1, -1], [0.9, 0.9, 0, 0]),
    ("base", "right"): matches([0, -1, -1, -1], [0.9, 0, 0, 0]),
    ("left", "merge"): matches([0, 1, 2, -1], [0.9, 0.9, 0.7, 0]),
    ("right", "merge"): matches([0, -1, 2, -1], [0.8, 0, 0.8, 0]),
}


class Asked:
    """Explains by the feature's own name; scores come from a table, 0.9 without an entry."""

    def __init__(self, scores: dict[tuple[str, int, str], float] | None = None, rare=(), refused=()):
        self.scores, self.rare, self.refused, self.explained = scores or {}, rare, refused, []

    def explain(self, model: str, feature: int) -> str | Failure | None:
        if (model, feature) in self.rare:
            return None
        self.explained.append((model, feature))
        return Failure("refused", "") if (model, feature) in self.refused else f"{model}/{feature}"

    def score(self, model: str, feature: int, description: str) -> Scores | None:
        if (model, feature) in self.rare:
            return None
        score = self.scores.get((model, feature, description), 0.9)
        return Scores({"simulation": score}, {"truncated": 1})


def label(asked: Asked, selected: dict[str, list[int]], drop: float = 0.1):
    """Labels by feature."""
    found = hand_down(selected, EDGES, COUNTING, asked.explain, asked.score, drop)
    return {(one.model, one.feature): one for one in found}


EVERYTHING = {name: [0, 1, 2, 3] for name in ("base", "left", "right", "merge")}


def test_each_label_is_made_at_its_origin_and_follows_the_matches():
    asked = Asked()
    found = label(asked, EVERYTHING)
    assert asked.explained == [
        *[("base", n) for n in range(4)], ("left", 2), ("left", 3),
        ("right", 1), ("right", 2), ("right", 3), ("merge", 3),
    ]  # fmt: skip
    assert found["merge", 0].description == "base/0" and found["merge", 0].origin == ("base", 0)
    assert found["merge", 1].description == "base/1" and found["merge", 1].carried
    assert found["merge", 2].origin == ("right", 2), "the parent with the higher r"
    assert found["merge", 3].origin == ("merge", 3) and not found["merge", 3].carried
    counts = counts_of(list(found.values()), cost=0.11)
    assert [*counts.values()] == [16, 10, 6, 6, 0, 0, 0, 6, 0.66]


def test_a_label_is_given_up_only_where_its_score_falls_by_more_than_the_drop():
    scores = {("left", 0, "base/0"): 0.79, ("left", 1, "base/1"): 0.81, ("merge", 0, "left/0"): 0.85}
    found = label(Asked(scores), EVERYTHING)
    assert found["left", 0].description == "left/0" and found["left", 0].re_explained
    assert found["left", 1].description == "base/1" and not found["left", 1].re_explained
    assert found["merge", 0].description == "left/0", "the new label is what goes on"
    assert found["right", 0].description == "base/0"
    assert [*counts_of(list(found.values())).values()][1:5] == [11, 6, 5, 1]
    assert not label(Asked(scores), EVERYTHING, drop=0.2)["left", 0].re_explained


def test_the_score_at_the_origin_is_what_a_label_is_measured_by():
    slowly = {("left", 1, "base/1"): 0.82, ("merge", 1, "base/1"): 0.75}
    found = label(Asked(slowly), EVERYTHING)
    assert found["left", 1].carried and found["merge", 1].re_explained


def test_an_undefined_score_gives_no_label_up():
    for model in ("left", "base"):
        found = label(Asked({(model, 0, "base/0"): NAN}), EVERYTHING)
        assert found["left", 0].carried and np.isnan(found[model, 0].scores.columns["simulation"])


def test_a_label_passes_through_models_where_the_feature_was_not_selected():
    found = label(asked := Asked(), {"base": [1], "left": [], "right": [], "merge": [1]})
    assert found["merge", 1].origin == ("base", 1) and asked.explained == [("base", 1)]


def test_failures_and_rare_features_are_counted_apart_and_hand_nothing_down():
    found = label(Asked(rare={("base", 0), ("merge", 3)}, refused={("base", 1)}), EVERYTHING)
    assert found["base", 0].failure == TOO_RARE and found["base", 0].scores is None
    assert found["base", 1].failure == "refused" and found["base", 1].description is None
    assert found["left", 0].origin == ("left", 0) and found["left", 1].origin == ("left", 1)
    counts = counts_of(list(found.values()))
    assert (counts["features"], counts["failed"], counts["too_rare"]) == (14, 1, 2)
    assert failures_of(list(found.values())) == {"refused": 1, "truncated": 13}


def test_progress_is_told():
    told, asked = [], Asked()
    hand_down(EVERYTHING, EDGES, COUNTING, asked.explain, asked.score, 0.1, lambda *at: told.append(at))
    assert told == [(n, 16) for n in range(1, 17)]
