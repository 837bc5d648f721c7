"""Planted edges have the densities, structures and fates that they promise."""

from __future__ import annotations

import numpy as np
import pytest

from heredity.synthetic.planted_edges import ABSORBED, FAINT, PLANTED, STRUCTURES, EdgeConfig, PlantedEdge

TOKENS = 20_000


def edge(**changes: object) -> PlantedEdge:
    return PlantedEdge(EdgeConfig(**{"features": 200, "d": 32, "l0": 6, **changes}), 3)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_structure_has_its_l0_and_the_same_text_twice(structure):
    planted = edge(structure=structure)
    first, second = planted.draw(TOKENS, 1), planted.draw(TOKENS, 1)
    assert first.acts[0].l0 == pytest.approx(6, rel=0.1)
    for one, other in zip(first.x, second.x, strict=True):
        np.testing.assert_array_equal(one, other)
    assert (first.x[0][:1000] != planted.draw(TOKENS, 2).x[0][:1000]).all()
    assert first.x[0].shape == (TOKENS, 32) and first.document[-1] == (TOKENS - 1) // 64


def test_vectors_are_features_and_noise():
    planted = edge(noise=0.0)
    sample = planted.draw(2000, 1)
    for acts, x, end in zip(sample.acts, sample.x, (planted.parent, planted.child), strict=True):
        np.testing.assert_allclose(acts.dense() @ end.directions, x, atol=1e-4)
    noisy = edge(noise=0.2).draw(TOKENS, 1)
    rest = noisy.x[0] - noisy.acts[0].dense() @ edge(noise=0.2).parent.directions
    assert rest.var(0).sum() / noisy.x[0].var(0).sum() == pytest.approx(0.2, abs=0.03)


def test_fates_do_what_they_say():
    planted = edge(rotated=0.1, turned=0.1, faint=0.1, narrowed=0.1, split=0.1, absorbed=0.1, lost=0.1, new=0.2)
    sample = planted.draw(TOKENS, 1)
    parent, child = (acts.dense() for acts in sample.acts)
    fates = [np.array(PLANTED)[end.fate] for end in (planted.parent, planted.child)]
    assert {name: int((fates[0] == name).sum()) for name in PLANTED[:8]} == {
        "kept": 60,
        **dict.fromkeys(PLANTED[1:8], 20),
    }
    assert (fates[1] == "new").sum() == 40 and (fates[1] == "split").sum() == 40 and "lost" not in fates[1]
    common = len(fates[1]) - 20  # without the second halves of the splits
    assert (fates[0][fates[0] != "lost"] == fates[1][:common][fates[1][:common] != "new"]).all()
    before, after = parent[:, fates[0] != "lost"], child[:, :common][:, fates[1][:common] != "new"]
    rows = planted.parent.directions[fates[0] != "lost"], planted.child.directions[:common][fates[1][:common] != "new"]
    cosine, fate = (rows[0] * rows[1]).sum(1), fates[0][fates[0] != "lost"]
    firing = (after > 0).sum(0) / (before > 0).sum(0)
    for name in ("kept", "rotated", "turned"):
        np.testing.assert_array_equal(after[:, fate == name], before[:, fate == name])
    np.testing.assert_allclose(cosine[np.isin(fate, ("kept", "faint", "narrowed", "split", "absorbed"))], 1, atol=1e-5)
    np.testing.assert_allclose(cosine[fate == "turned"], 0.5, atol=1e-5)
    assert np.abs(cosine[fate == "rotated"]).mean() < 0.3
    np.testing.assert_allclose(after[:, fate == "faint"], FAINT * before[:, fate == "faint"], rtol=1e-5)
    assert firing[fate == "narrowed"].mean() == pytest.approx(0.5, abs=0.03)
    assert firing[fate == "absorbed"].mean() == pytest.approx(1 - ABSORBED, abs=0.03)
    halves = child[:, common:] + after[:, fate == "split"]
    np.testing.assert_array_equal(halves, before[:, fate == "split"])


def test_children_of_trees_exclude_each_other_and_need_their_root():
    planted = edge(structure="trees", new=0.0)
    acts = planted.draw(TOKENS, 1).acts[0].dense() > 0
    roots = np.flatnonzero(planted._below[:, 0] >= 0)
    assert len(roots) == 40
    for root in roots:
        children = planted._below[root]
        assert acts[:, children].sum(1).max() <= 1
        assert not acts[~acts[:, root]][:, children].any()
        assert acts[:, children].sum() == pytest.approx(0.8 * acts[:, root].sum(), rel=0.2)


def test_absorption_silences_a_feature_where_one_below_it_fires():
    planted = edge(structure="chains", new=0.0, lost=0.0, absorbed=0.5)
    sample = planted.draw(TOKENS, 1)
    parent, child = (acts.dense() > 0 for acts in sample.acts)
    absorbed = [
        i for i in np.flatnonzero(planted.parent.fate == PLANTED.index("absorbed")) if planted._below[i, 0] >= 0
    ]
    for i in absorbed:
        below = planted._below[i, 0]
        np.testing.assert_array_equal(child[:, i], parent[:, i] & ~parent[:, below])
        assert not parent[~parent[:, i], below].any()


def test_a_rotated_space_keeps_every_length_and_angle():
    plain, turned = (edge(rotate_space=rotated, noise=0.0) for rotated in (False, True))
    rows = [planted.child.directions @ planted.child.directions.T for planted in (plain, turned)]
    np.testing.assert_allclose(*rows, atol=1e-5)
    assert np.abs(plain.child.directions - turned.child.directions).max() > 0.1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lost": 1.5}, "lost=1.5"),
        ({"lost": 0.9}, "fates take"),
        ({"lost": 1, "new": 0} | dict.fromkeys(PLANTED[1:7], 0), "no feature"),
        ({"d": 1}, "d=1"),
        ({"l0": 0}, "l0=0"),
        ({"l0": 190}, "out of reach"),
        ({"structure": "ring"}, "choose one of flat"),
        ({"noise": 1.0}, "noise=1.0"),
    ],
)
def test_impossible_edges_are_refused_by_name(changes, words):
    with pytest.raises(ValueError, match=words):
        edge(**changes)


def test_a_sample_has_a_token():
    with pytest.raises(ValueError, match="tokens=0"):
        edge().draw(0, 1)
