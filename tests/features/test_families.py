"""A feature, and a hypothesis, followed to every model of the graph."""

from __future__ import annotations

import numpy as np
import pytest

from heredity.features.acts import FeatureActs
from heredity.features.correlate import Matches, correlate
from heredity.features.families import Course, family, follow, persistence
from heredity.features.hypothesis import llr
from worlds import matches_of

EDGES = [("base", "left"), ("base", "right"), ("left", "merge"), ("right", "merge")]


def permuted(order: list[int], r: list[float]) -> Matches:
    """An edge in which parent feature i is child feature order[i], with r[i]; -1 for a lost one."""
    matrix = np.full((len(order), len(order)), np.nan)
    for i, j in enumerate(order):
        if j >= 0:
            matrix[i, j] = r[i]
    return matches_of(matrix, 1)


# Feature 0 of the base goes 0 -> 1 (left) and 0 -> 2 (right); the way through right into the merge is stronger.
GRAPH = {
    EDGES[0]: permuted([1, 0, -1], [0.9, 0.8, 0.0]),
    EDGES[1]: permuted([2, 1, 0], [0.7, 0.6, 0.5]),
    EDGES[2]: permuted([0, 1, 2], [0.5, 0.4, 0.3]),
    EDGES[3]: permuted([2, 1, 0], [0.9, 0.9, 0.95]),
}


def members(model: str, feature: int):
    return {member.model: member for member in family(model, feature, EDGES, GRAPH)}


def test_a_family_enters_a_merge_through_the_parent_with_the_higher_r():
    found = members("base", 0)
    assert (found["left"].feature, found["right"].feature) == (1, 2)
    assert (found["merge"].feature, found["merge"].via, found["merge"].r) == (0, "right", 0.95)
    assert found["base"].r is None and found["base"].via is None
    assert "left" not in members("base", 2), "nothing matches there"
    # One that starts in a child also reaches ancestors and siblings.
    found = members("left", 0)
    assert found["base"].feature == 1 and found["base"].via == "left"
    assert found["right"].feature == 1 and found["right"].via == "base"


def test_persistence_is_the_weakest_step_of_the_strongest_way_and_a_model_with_itself_the_identity():
    assert persistence("base", EDGES, GRAPH, 3).tolist() == pytest.approx([0.7, 0.6, 0.5])
    apart = EDGES[:2]  # without the merge, it is the weakest of both children
    weakest = np.min([GRAPH[edge].parent_r[:, 0] for edge in apart], axis=0)
    assert persistence("base", apart, GRAPH, 3).tolist() == pytest.approx(np.nan_to_num(weakest).tolist())
    rng = np.random.default_rng(0)
    acts = FeatureActs.from_dense((rng.random((200, 6)) < 0.3) * rng.random((200, 6)))
    found = family("a", 4, [("a", "b")], {("a", "b"): correlate(acts, acts)})
    assert found[1].feature == 4 and found[1].r == pytest.approx(1.0)


# -- a hypothesis through the graph -----------------------------------------------------------------------------------


TOKENS = 4000
LINEAGE = [("base", "lua"), ("base", "prose"), ("lua", "both"), ("prose", "both")]
ORDER = ("base", "lua", "prose", "both")
RNG = np.random.default_rng(0)
HIT = RNG.random(TOKENS) < 0.05
CONCEPT = HIT * RNG.lognormal(0, 0.3, TOKENS)
NOISE = [RNG.random(TOKENS) * (RNG.random(TOKENS) < 0.1) for _ in range(6)]
BLURRED = CONCEPT + 1.2 * NOISE[0] + 3 * NOISE[5]


def course(columns: dict[str, list[np.ndarray]], edges=LINEAGE, threshold: float = 0.6) -> Course:
    """Follow the hypothesis through models of these features."""
    acts = {model: FeatureActs.from_dense(np.stack(own, 1)) for model, own in columns.items()}
    matches = {edge: correlate(*(acts[end] for end in edge), workers=1) for edge in edges}
    found = {model: llr(own, HIT) for model, own in acts.items()}
    return follow(tuple(columns), edges, matches, dict.fromkeys(edges, threshold), found)


def test_a_feature_kept_by_every_model_persists():
    found = course({model: [NOISE[i], CONCEPT * (1 + 0.1 * NOISE[i])] for i, model in enumerate(ORDER)})
    assert found.verdict == "persists" and found.start == "base" and not found.emerges
    assert [place.status for place in found.places.values()] == ["start", "kept", "kept", "kept"]
    assert found.best == dict.fromkeys(ORDER, 1) and found.mean_r == pytest.approx(1, abs=0.02)


def test_a_family_starts_in_a_root_with_children_before_another_training_of_its_recipe():
    blurred = CONCEPT + 0.3 * NOISE[0]
    columns = {"base": [NOISE[1], blurred], "again": [NOISE[2], CONCEPT]}
    found = course(columns | {model: [NOISE[3], CONCEPT] for model in ORDER[1:]})
    assert (found.start, found.verdict) == ("base", "persists") and found.best["again"] == 1


def test_a_lost_feature_has_its_nearest_miss_and_is_found_again_through_the_other_parent():
    kept = [NOISE[2], CONCEPT]
    found = course({"base": kept, "lua": [NOISE[3], BLURRED], "prose": kept, "both": kept})
    assert found.verdict == "disappears on base->lua"
    place = found.places["lua"]
    assert (place.feature, place.via, place.status) == (1, "base", "lost")
    assert place.r == pytest.approx(np.corrcoef(CONCEPT, BLURRED)[0, 1], abs=1e-6) and 0.2 < place.r < 0.6
    assert found.places["both"].status == "kept" and found.places["both"].via == "prose"


def test_a_concept_that_has_another_feature_is_seen_though_the_match_is_lost():
    """In lua one feature is nearest to the base's, another one fits the hypothesis better."""
    first = CONCEPT * (np.arange(TOKENS) < TOKENS // 2)
    found = course({"base": [first, NOISE[1]], "lua": [first + 0.6 * NOISE[0], HIT * 1.0]}, [("base", "lua")], 0.9)
    assert found.verdict == "disappears on base->lua"
    assert found.places["lua"].feature == 0 and found.best["lua"] == 1


def test_what_is_reached_from_a_miss_is_beyond():
    chain = [("base", "lua"), ("lua", "both")]
    found = course({"base": [CONCEPT], "lua": [BLURRED], "both": [BLURRED + 0.01 * NOISE[3]]}, chain)
    assert [place.status for place in found.places.values()] == ["start", "lost", "beyond"]
    assert found.verdict == "disappears on base->lua"


def test_a_feature_that_only_a_later_model_has_emerges_there():
    other = [NOISE[0], NOISE[1]]
    found = course({"base": other, "lua": other, "prose": [NOISE[2], CONCEPT], "both": [NOISE[3], CONCEPT]})
    assert found.verdict == "emerges in prose" and found.emerges and found.start == "prose"
    assert found.places["both"].status == "kept" and found.places["base"].status == "absent"
    assert found.best == {"base": None, "lua": None, "prose": 1, "both": 1}


def test_of_several_start_models_the_most_sensitive_one_leads():
    edges = [("one", "both"), ("two", "both")]
    found = course({"one": [BLURRED], "two": [CONCEPT], "both": [CONCEPT + 0.1 * NOISE[1]]}, edges)
    assert found.start == "two" and found.places["one"].status == "absent"
    assert found.verdict == "persists; starts in two, has no match in one"


def test_no_feature_of_any_model_is_no_course():
    found = course({"base": [NOISE[0]], "lua": [NOISE[1]]}, [("base", "lua")])
    assert found == Course(None, False, {}, {"base": None, "lua": None}, None, "no feature of any model fits")
