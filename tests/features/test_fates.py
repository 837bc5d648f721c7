"""Fates and the accounting of a merge."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heredity.features.fates import DEAD, EMERGED, EMERGED_IN_BOTH, FROM_BASE, NOVEL, THRESHOLDS, curve, fates
from heredity.features.fates import flow as flow_of_matches
from worlds import matches_of


def pairs(d_parent: int, d_child: int, matched: dict[tuple[int, int], float]) -> np.ndarray:
    """r of 0 but for the given pairs."""
    r = np.zeros((d_parent, d_child))
    for pair, value in matched.items():
        r[pair] = value
    return r


def flow(base: dict[str, np.ndarray], into: dict[str, np.ndarray], threshold: float = 0.8, top: int = 5, **options):
    """The flow of full matrices of r."""
    ends = ({name: matches_of(r, top) for name, r in side.items()} for side in (base, into))
    return flow_of_matches(*ends, threshold, **options)


def random_r(rng: np.random.Generator, d_parent: int, d_child: int) -> np.ndarray:
    r = rng.uniform(-0.2, 1, (d_parent, d_child)) ** rng.integers(1, 6)
    r[rng.random(d_parent) < 0.2] = np.nan
    r[:, rng.random(d_child) < 0.2] = np.nan
    return r


def test_fates_of_a_planted_edge():
    # 0 persists alone, 1 splits into two, 2 and 3 become one, 4 is lost, 5 is dead; child 4 is new, child 5 dead.
    r = pairs(6, 6, {(0, 0): 0.9, (1, 1): 0.95, (1, 2): 0.85, (2, 3): 0.82, (3, 3): 0.93, (4, 4): 0.8})
    r[5], r[:, 5] = np.nan, np.nan
    found = fates(matches_of(r), 0.8)
    assert found.persist.tolist() == [True, True, True, True, False, False]
    assert found.disappear.tolist() == [False, False, False, False, True, False]
    assert found.emerge.tolist() == [False, False, False, False, True, False]
    assert found.inherited.tolist() == [True, True, True, True, False, False]
    assert found.mutual.tolist() == [[0, 0], [1, 1], [3, 3]] and found.mutual.dtype == np.int32


def test_a_live_feature_without_any_partner_disappears():
    found = fates(matches_of(np.full((2, 3), np.nan), density=(np.array([0.1, 0.0]), np.zeros(3))), 0.5)
    assert found.disappear.tolist() == [True, False] and not found.emerge.any() and found.mutual.shape == (0, 2)


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 10**6), st.floats(-0.2, 0.99))
def test_every_live_feature_has_exactly_one_fate(seed, threshold):
    rng = np.random.default_rng(seed)
    r = random_r(rng, *rng.integers(1, 12, 2))
    matches = matches_of(r, top=int(rng.integers(1, 4)))
    found = fates(matches, threshold)
    np.testing.assert_array_equal(found.persist | found.disappear, matches.parent_density > 0)
    np.testing.assert_array_equal(found.inherited | found.emerge, matches.child_density > 0)
    assert not (found.persist & found.disappear).any() and not (found.inherited & found.emerge).any()
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(found.persist, (r > threshold).any(1))
        np.testing.assert_array_equal(found.inherited, (r > threshold).any(0))
    assert len(set(found.mutual[:, 0].tolist())) == len(set(found.mutual[:, 1].tolist())) == len(found.mutual)
    assert len(found.mutual) <= min(found.persist.sum(), found.inherited.sum())
    assert all(r[i, j] > threshold for i, j in found.mutual)


def test_the_curve_runs_from_a_half_to_95_percent_and_falls():
    r = random_r(np.random.default_rng(0), 200, 150)
    counts = curve(matches_of(r), THRESHOLDS)
    assert list(counts) == [f"{at / 100:.2f}" for at in range(50, 100, 5)]
    assert list(counts.values()) == sorted(counts.values(), reverse=True)
    assert all(count == fates(matches_of(r), float(key)).persist.sum() for key, count in counts.items())


def test_a_planted_merge_is_accounted_for():
    # Base has 2 features. lua 0 and stories 0 come from it; the other four emerged.
    base = {"lua": pairs(2, 3, {(0, 0): 0.9}), "stories": pairs(2, 3, {(1, 0): 0.85})}
    # Merge: 0 from base through lua, 1 through both, 2 emerged in lua, 3 in stories, 4 in both, 5 novel, 6 dead,
    # 7 emerged in lua and, through stories, comes from the base.
    into = {
        "lua": pairs(3, 8, {(0, 0): 0.9, (0, 1): 0.9, (1, 2): 0.9, (2, 4): 0.9, (1, 7): 0.99}),
        "stories": pairs(3, 8, {(0, 1): 0.9, (1, 3): 0.9, (2, 4): 0.9, (0, 7): 0.81}),
    }
    for r in into.values():
        r[:, 6] = np.nan
    found = flow(base, into)
    expected = [FROM_BASE, FROM_BASE, EMERGED, EMERGED + 1, EMERGED_IN_BOTH, NOVEL, DEAD, FROM_BASE]
    assert found.labels.tolist() == expected
    assert (found.from_base, found.emerged, found.emerged_in_both) == (3, {"lua": 1, "stories": 1}, 1)
    assert (found.novel, found.live, found.undecided) == (1, 7, 0)
    assert np.flatnonzero(found.from_base_through["lua"]).tolist() == [0, 1]
    assert np.flatnonzero(found.from_base_through["stories"]).tolist() == [1, 7]
    assert np.flatnonzero(found.inherited_through["lua"]).tolist() == [0, 1, 2, 4, 7]


def test_the_published_accounting_1210_is_729_emerged_and_481_from_the_base():
    # 481 of the merge's features come from 481 of the base's 959 kept ones, through one parent or both; 729 emerged.
    rng = np.random.default_rng(0)
    base = {"lua": np.zeros((959, 900)), "stories": np.zeros((959, 900))}
    for i in range(959):
        base[("lua", "stories")[i % 2]][i, i // 2] = 0.9
    into = {"lua": np.zeros((900, 1500)), "stories": np.zeros((900, 1500))}
    merge = rng.permutation(1500)
    for count, parents, children in ((481, 0, merge), (729, 500, merge[481:])):
        for number in range(count):
            for name in (("lua",), ("stories",), ("lua", "stories"))[number % 3]:
                into[name][parents + number % 400, children[number]] = 0.85
    found = flow(base, into)
    emerged = sum(found.emerged.values()) + found.emerged_in_both
    assert (found.live - found.novel, emerged, found.from_base) == (1210, 729, 481)
    assert found.live == 1500 and found.undecided == 0


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 10**6), st.floats(-0.2, 0.99), st.integers(1, 4))
def test_the_flow_adds_up_at_any_threshold_and_any_number_of_parents(seed, threshold, parents):
    rng = np.random.default_rng(seed)
    d_base, d_merge, *sizes = rng.integers(1, 9, 2 + parents).tolist()
    names = [f"parent{i}" for i in range(parents)]
    base = {name: random_r(rng, d_base, d) for name, d in zip(names, sizes, strict=True) if rng.random() < 0.8}
    into = {name: random_r(rng, d, d_merge) for name, d in zip(names, sizes, strict=True)}
    top = int(rng.integers(1, 9))
    found = flow(base, into, threshold, top)
    assert found.from_base + sum(found.emerged.values()) + found.emerged_in_both + found.novel == found.live
    assert list(found.emerged) == names
    with np.errstate(invalid="ignore"):
        through = {name: (r > threshold).any(0) for name, r in into.items()}
        based = {name: ((into[name] > threshold) & (r > threshold).any(0)[:, None]).any(0) for name, r in base.items()}
    for name in names:
        np.testing.assert_array_equal(found.inherited_through[name], through[name])
        assert not (found.from_base_through[name] & ~based.get(name, np.zeros(d_merge, bool))).any()
    exact = np.any(list(based.values()), axis=0) if based else np.zeros(d_merge, bool)
    missed = (exact & (found.labels != FROM_BASE)).sum()
    assert missed <= found.undecided
    if top == 8:
        assert missed == 0 and found.undecided == 0


def test_a_match_to_the_base_below_the_lists_is_found_from_the_other_end_or_undecided():
    # The merge feature keeps one match only, but the base-derived parent feature 1 lists it as its best.
    base, into = {"lua": pairs(1, 2, {(0, 1): 0.9})}, {"lua": pairs(2, 1, {(0, 0): 0.95, (1, 0): 0.9})}
    found = flow(base, into, top=1)
    assert (found.from_base, found.undecided) == (1, 0)
    into = {"lua": pairs(2, 2, {(0, 0): 0.95, (1, 0): 0.9, (1, 1): 0.92})}
    for top, expected in ((1, (1, 1, 1)), (5, (2, 0, 0))):
        found = flow(base, into, top=top)
        assert (found.from_base, found.emerged["lua"], found.undecided) == expected


def test_several_edges_into_a_parent_are_all_bases_and_what_a_merge_takes_from_the_base_itself_is_from_it():
    first, second = (matches_of(pairs(*of)) for of in ((1, 2, {(0, 0): 0.9}), (3, 2, {(2, 1): 0.9})))
    into = matches_of(pairs(2, 2, {(0, 0): 0.9, (1, 1): 0.9}))
    assert flow_of_matches({"lua": [first, second]}, {"lua": into}, 0.8).from_base == 2
    # A fine-tune merged back into its base: one feature through both, one through each, one new.
    into = {"base": pairs(2, 4, {(0, 0): 0.9, (1, 1): 0.9}), "tune": pairs(2, 4, {(0, 0): 0.9, (1, 2): 0.9})}
    found = flow({"tune": pairs(2, 2, {(0, 0): 0.9})}, into, bases=["base"])
    assert (found.from_base, found.emerged, found.emerged_in_both, found.novel) == (2, {"base": 0, "tune": 1}, 0, 1)
    # A merge feature that fires on one edge's tokens only is live.
    into = {"lua": pairs(1, 2, {}), "stories": pairs(1, 2, {(0, 1): 0.9})}
    into["lua"][:, 1] = np.nan
    found = flow({}, into)
    assert (found.live, found.novel, found.emerged) == (2, 1, {"lua": 0, "stories": 1})


@pytest.mark.parametrize(
    ("base", "into", "message"),
    [
        ({"luna": (2, 2)}, {"lua": (2, 3)}, "luna leads to no edge"),
        ({"lua": (2, 4)}, {"lua": (2, 3)}, "lua has 4 features on the edge from the base and 2"),
        ({}, {"lua": (2, 3), "stories": (2, 5)}, "one SAE of the merge"),
        ({}, {}, "at least one parent"),
    ],
)
def test_edges_that_do_not_fit_are_refused(base, into, message):
    sides = ({name: np.zeros(shape) for name, shape in side.items()} for side in (base, into))
    with pytest.raises(ValueError, match=message):
        flow(*sides)
