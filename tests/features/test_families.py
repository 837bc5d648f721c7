"""A feature is followed to every model of the graph, and contexts show what every member does there."""

from __future__ import annotations

import numpy as np
import pytest

from heredity.features.acts import FeatureActs
from heredity.features.correlate import Matches, correlate
from heredity.features.examples import Columns, contexts, strongest
from heredity.features.families import family, persistence

EDGES = [("base", "left"), ("base", "right"), ("left", "merge"), ("right", "merge")]


def permuted(order: list[int], r: list[float]) -> Matches:
    """An edge in which parent feature i is child feature order[i], with r[i]; -1 for a lost one."""
    match = np.array(order, np.int32)[:, None]
    strength = np.where(match >= 0, np.array(r)[:, None], np.nan)
    back = np.full((len(order), 1), -1, np.int32)
    back_r = np.full((len(order), 1), np.nan)
    for i, j in enumerate(order):
        if j >= 0:
            back[j], back_r[j] = i, r[i]
    density = np.full(len(order), 0.1)
    return Matches(match, strength, back, back_r, density, density, 100)


@pytest.fixture
def graph() -> dict[tuple[str, str], Matches]:
    """Feature 0 of the base goes 0 -> 1 (left) and 0 -> 2 (right); the way through right into the merge is stronger."""
    return {
        EDGES[0]: permuted([1, 0, -1], [0.9, 0.8, 0.0]),
        EDGES[1]: permuted([2, 1, 0], [0.7, 0.6, 0.5]),
        EDGES[2]: permuted([0, 1, 2], [0.5, 0.4, 0.3]),
        EDGES[3]: permuted([2, 1, 0], [0.9, 0.9, 0.95]),
    }


def test_a_family_enters_a_merge_through_the_parent_with_the_higher_r(graph):
    found = {member.model: member for member in family("base", 0, EDGES, graph)}
    assert (found["left"].feature, found["right"].feature) == (1, 2)
    assert (found["merge"].feature, found["merge"].via, found["merge"].r) == (0, "right", 0.95)
    assert found["base"].r is None and found["base"].via is None


def test_a_family_that_starts_in_a_child_also_reaches_ancestors_and_siblings(graph):
    found = {member.model: member for member in family("left", 0, EDGES, graph)}
    assert found["base"].feature == 1 and found["base"].via == "left"
    assert found["right"].feature == 1 and found["right"].via == "base"


def test_a_family_ends_where_nothing_matches(graph):
    assert "left" not in {member.model for member in family("base", 2, EDGES, graph)}


def test_persistence_is_the_weakest_step_of_the_strongest_way(graph):
    assert persistence("base", EDGES, graph, 3).tolist() == pytest.approx([0.7, 0.6, 0.5])


def acts_with(values: dict[tuple[int, int], float], tokens: int = 8, d_sae: int = 3) -> FeatureActs:
    dense = np.zeros((tokens, d_sae), np.float32)
    for (token, feature), value in values.items():
        dense[token, feature] = value
    return FeatureActs.from_dense(dense)


def test_the_strongest_rows_come_strongest_first_and_one_a_block():
    acts = acts_with({(0, 1): 1.0, (1, 1): 3.0, (5, 1): 2.0, (7, 1): 0.5, (2, 0): 9.0})
    columns = Columns(*acts.to_columns())
    assert [strongest(*columns.of(i), 3, 4).tolist() for i in (1, 0)] == [[1, 5], [2]]


def test_a_context_shows_every_members_activation_at_every_position():
    parent, child = acts_with({(5, 1): 2.0}), acts_with({(5, 2): 4.0, (6, 2): 1.0})
    (found,) = contexts([5], {"base": (parent, 1), "left": (child, 2)}, context_size=4)
    assert (found.block, found.position) == (1, 1)
    assert found.values == {"base": [0.0, 2.0, 0.0, 0.0], "left": [0.0, 4.0, 1.0, 0.0]}


def test_the_edge_of_a_model_with_itself_is_the_identity():
    rng = np.random.default_rng(0)
    acts = FeatureActs.from_dense((rng.random((200, 6)) < 0.3) * rng.random((200, 6)))
    found = family("a", 4, [("a", "b")], {("a", "b"): correlate(acts, acts)})
    assert found[1].feature == 4 and found[1].r == pytest.approx(1.0)
