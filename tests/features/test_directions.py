"""Matching by directions of the weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from heredity.features import directions
from heredity.features.directions import Turns, causes, cosine_matches, pw_mcc, quartiles, rotation, shared, turns
from worlds import best_of


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_matches_equal_all_pairs(monkeypatch):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((50, 12)), rng.standard_normal((33, 12)) * 7
    # Several chunks of both loops.
    monkeypatch.setattr(directions, "_ROWS", 7)
    monkeypatch.setattr(directions, "_PAIRS", 11)
    found = cosine_matches(a, torch.tensor(b), top=4)
    cosine = unit(a) @ unit(b).T
    for match, value, matrix in ((*found[:2], cosine), (*found[2:], cosine.T)):
        order, best = best_of(matrix, 4)
        np.testing.assert_array_equal(match, order)
        np.testing.assert_allclose(value, best, atol=1e-14)
    assert found.parent_match.dtype == np.int32 and found.child_cosine.dtype == np.float64


def test_a_permutation_is_found_and_scale_does_not_matter():
    rng = np.random.default_rng(1)
    a, order = rng.standard_normal((40, 16)).astype(np.float32), rng.permutation(40)
    found = cosine_matches(a, a[order] * rng.uniform(1e-30, 1e-28, (40, 1)).astype(np.float32), top=1)
    np.testing.assert_array_equal(order[found.parent_match[:, 0]], np.arange(40))
    np.testing.assert_array_equal(found.child_match[:, 0], order)
    np.testing.assert_allclose(found.parent_cosine, 1, atol=1e-6)


def test_pw_mcc_is_the_mean_cosine_of_the_planted_pairs():
    rng = np.random.default_rng(0)
    a = np.linalg.qr(rng.standard_normal((40, 40)))[0][:30]
    b = 0.6 * a + 0.8 * np.roll(a, 1, 0)  # its own row at 0.6, the one before it at 0.8
    scale = rng.uniform(0.5, 2, (30, 1))
    assert pw_mcc(a, (scale * a)[rng.permutation(30)]) == pytest.approx(1, abs=1e-6)
    assert pw_mcc(a, b) == pytest.approx(0.8, abs=1e-6) and pw_mcc(a[:10], b) == pytest.approx(0.8, abs=1e-6)
    assert pw_mcc(a, -a) == pytest.approx(0, abs=1e-6), "an opposite direction is another one"
    assert pw_mcc(np.zeros((directions._ASSIGNED + 1, 2)), a) is None
    with pytest.raises(ValueError, match="30 and 40 wide"):
        pw_mcc(a[:, :30], a)


def test_a_direction_of_zeros_has_no_partner_and_directions_that_cannot_be_compared_are_refused():
    found = cosine_matches(np.diag([1, 0, 1]), np.eye(3)[:2], top=3)
    assert found.parent_match.tolist() == [[0, 1, -1], [-1, -1, -1], [0, 1, -1]]
    assert found.child_match.tolist() == [[0, 2, -1], [0, 2, -1]]
    assert np.isnan(found.parent_cosine[1]).all() and found.parent_cosine[0, :2].tolist() == [1, 0]
    for other, top, message in (
        (np.eye(4), 5, "3 and 4 wide"),
        (np.diag([1, 1, np.nan]), 5, "row 2 of b holds NaN"),
        (np.eye(3), 0, "top=0"),
    ):
        with pytest.raises(ValueError, match=message):
            cosine_matches(np.eye(3), other, top)
    with pytest.raises(ValueError, match=r"\[3, 3\] and \[2, 3\]"):
        rotation(np.eye(3), np.eye(3)[:2])


def two_seeds(seed: int, d: int = 24) -> tuple[np.ndarray, ...]:
    """(enc, dec) of two SAEs of 60 features: 25 the same up to noise, 10 whose encoders differ, the rest unrelated, in
    another order; and the truth, the parent's partner or -1."""
    rng = np.random.default_rng(seed)
    dec = rng.standard_normal((60, d))
    enc = dec + 0.3 * rng.standard_normal((60, d))
    dec_b, enc_b = rng.standard_normal((60, d)), rng.standard_normal((60, d))
    dec_b[:35] = dec[:35] + 0.2 * rng.standard_normal((35, d))
    enc_b[:25] = enc[:25] + 0.2 * rng.standard_normal((25, d))
    order = rng.permutation(60)
    partner = np.where(np.arange(60) < 25, np.argsort(order), -1)
    return enc.T, dec, enc_b[order].T, dec_b[order], partner


@pytest.mark.parametrize("seed", range(5))
def test_planted_shared_features_are_found(seed):
    *weights, partner = two_seeds(seed)
    found = shared(*weights)
    np.testing.assert_array_equal(found.pairs[found.shared].T, [np.arange(25), partner[:25]])
    assert np.all(found.cosine[found.shared] >= 0.7) and np.all(found.cosine[~found.shared] < 0.7)
    assert 0 < shared(*weights, least=0.98).shared.sum() < 25


@pytest.mark.parametrize("seed", range(25))
def test_sharing_is_what_dense_assignments_give(seed):
    rng = np.random.default_rng(seed)
    d = int(rng.integers(8, 40))
    dec = rng.standard_normal((70, d))
    # Noise of every strength, so that many pairs lie near the threshold.
    dec_b = dec[rng.permutation(70)] + rng.uniform(0, 1.5, (70, 1)) * rng.standard_normal((70, d))
    enc, enc_b = (x + rng.uniform(0, 1, (70, 1)) * rng.standard_normal((70, d)) for x in (dec, dec_b))
    picked = []
    for a, b in ((enc, enc_b), (dec, dec_b)):
        cosine = unit(a) @ unit(b).T
        rows, columns = linear_sum_assignment(cosine, maximize=True)
        picked.append((columns, cosine[rows, columns]))
    truth = (picked[0][0] == picked[1][0]) & (picked[0][1] >= 0.7) & (picked[1][1] >= 0.7)
    found = shared(enc.T, dec, enc_b.T, dec_b, top=10)
    np.testing.assert_array_equal(found.pairs[found.shared].T, [np.flatnonzero(truth), picked[0][0][truth]])
    smaller = np.minimum(picked[0][1], picked[1][1])
    np.testing.assert_allclose(found.cosine[found.shared], smaller[truth], atol=1e-12)
    assert truth.sum() > 3


def test_rotation_is_the_planted_angle():
    rng = np.random.default_rng(2)
    angles = np.array([0.0, 1e-6, 0.5, 30, 90, 179.999, 180])
    a = unit(rng.standard_normal((7, 20)))
    other = rng.standard_normal((7, 20))
    other = unit(other - (other * a).sum(1, keepdims=True) * a)
    b = np.cos(np.deg2rad(angles))[:, None] * a + np.sin(np.deg2rad(angles))[:, None] * other
    np.testing.assert_allclose(rotation(3 * a, 0.1 * b), angles, rtol=1e-8, atol=1e-10)
    assert np.isnan(rotation(np.zeros((1, 3)), np.ones((1, 3)))).all()


# -- turns by data and by weights -----------------------------------------------------------------------------------


def turned(rows: torch.Tensor, degrees: list[float]) -> torch.Tensor:
    """Rows [m, 2] turned by an angle each."""
    angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    x, y = rows.double().T
    return torch.stack([x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()], dim=1)


def planted(data: list[float], model: list[float]) -> dict[str, torch.Tensor]:
    """Decoders whose rows turn by these angles, whichever step is first."""
    source = turned(torch.tensor([[1.0, 0.0]]).expand(len(data), 2), [10.0 * i for i in range(len(data))])
    both = turned(turned(source, data), model)
    alone = {"data": turned(source, data), "model": turned(source, model), "control": turned(source, [2.0] * len(data))}
    return alone | {"source": source, "data_model": both, "model_data": both}


def test_planted_turns_are_found():
    found = turns(planted(data=[4, 1, 3, 80], model=[20, 10, 5, 90]))
    expected = {"data": [4, 1, 3, 80], "model": [20, 10, 5, 90], "noise": [2] * 4, "weights": [18, 8, 3, 88]}
    expected |= dict.fromkeys(("data_first_total", "model_first_total"), [24, 11, 8, 170])
    for name, degrees in expected.items():
        np.testing.assert_allclose(getattr(found, name), degrees, atol=1e-9)


def test_every_live_feature_is_counted_once_and_dead_ones_never():
    # The third feature ties, the second is turned by the model only when that comes second, the last is dead.
    data, model = np.array([4.0, 1, 3, 9, 80]), np.array([20.0, 6, 3, 1, 90])
    found = Turns(data, model, data + model, np.array([20.0, 0, 3, 1, 90]), data, data + model, None, None)
    live = np.array([True, True, True, True, False])
    assert causes(found, live) == (2, 1, 1)
    assert causes(found, np.zeros(5, bool)) == (0, 0, 0)
    assert quartiles(data[live]) == (2.5, 3.5, 5.25) and quartiles(data[:0]) == (None, None, None)
    # A turn within the noise has neither cause.
    data, model = np.array([4.0, 1, 30]), np.array([9.0, 2, 3])
    found = Turns(data, model, data + model, model, data, data + model, np.array([5.0, 5, 5]), None)
    assert causes(found, np.ones(3, bool)) == (1, 1, 1)


def test_turns_need_no_control_but_decoders_of_one_shape():
    decoders = planted([1.0], [2.0])
    del decoders["control"]
    found = turns(decoders)
    assert found.noise is None and found.weights is None and causes(found, np.array([True])) == (1, 0, 0)
    with pytest.raises(ValueError, match="equal shapes"):
        turns(decoders | {"data": torch.ones(2, 2)})
