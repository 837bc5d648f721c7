"""Fits find a planted map; the minimum of the joint loss from moments is the minimum over tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch.utils.flop_counter import FlopCounterMode

from heredity.stitch.affine import Affine, Moments, Stitch, stitch_quality
from heredity.stitch.fit import (
    FEWEST,
    ROUNDS,
    adam_flops,
    batch_loss,
    block_batches,
    fit,
    fit_by_adam,
    joint_rounds,
    minimize_joint,
)
from stitch.test_affine import moments_of, planted, tokens

ALPHA = 0.8


@pytest.fixture(scope="module")
def rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Two views of latents they share in part, each with its own scales, means and an outlier dimension; float64."""
    rng = np.random.default_rng(0)
    latents = rng.laplace(size=(4000, 40)) * np.arange(1, 41) ** -0.4
    a = latents[:, :30] @ rng.standard_normal((30, 10)) + 2
    b = latents[:, 8:] @ rng.standard_normal((32, 16)) - 1
    a[:, 0] *= 20
    b[:, 3] *= 30
    return torch.from_numpy(a), torch.from_numpy(b)


def stitch_of(moments: Moments, up: np.ndarray, down: np.ndarray) -> Stitch:
    """Maps in float64 that send mean to mean."""
    means = (moments.mean_a, moments.mean_b), (moments.mean_b, moments.mean_a)
    parts = [(w, to - at @ w) for w, (at, to) in zip((up, down), means, strict=True)]
    return Stitch(*(Affine(torch.from_numpy(w.copy()), torch.from_numpy(c)) for w, c in parts))


def start(moments: Moments) -> tuple[np.ndarray, np.ndarray]:
    return np.linalg.solve(moments.aa, moments.ab), np.linalg.solve(moments.bb, moments.ab.T)


def test_the_loss_only_falls_and_ends_where_autograd_sees_no_slope(rows):
    moments = moments_of(rows)
    # Below a share of 2e-16 float64 does not tell losses apart: on some processors the descent ends before less is met.
    up, down, losses, converged = minimize_joint(moments, *start(moments), ALPHA, tolerance=1e-15)
    assert converged and len(losses) < 100
    assert np.all(np.diff(losses) <= 1e-13 * losses[0]) and losses[-1] < 0.95 * losses[0]
    for loss, maps in ((losses[0], start(moments)), (losses[-1], (up, down))):
        over_tokens = float(batch_loss(stitch_of(moments, *maps), *rows, ALPHA))
        assert loss == pytest.approx(over_tokens, rel=1e-10), "moments give the loss over tokens"
    stitch = stitch_of(moments, up, down)
    leaves = [part.requires_grad_() for each in stitch for part in each]
    slopes = torch.autograd.grad(batch_loss(stitch, *rows, ALPHA), leaves)
    zero = [torch.zeros_like(part).requires_grad_() for part in leaves]
    first = torch.autograd.grad(batch_loss(Stitch(Affine(*zero[:2]), Affine(*zero[2:])), *rows, ALPHA), zero)
    for slope, scale in zip(slopes, first, strict=True):
        assert float(slope.norm() / scale.norm()) < 1e-7


def test_a_loose_tolerance_ends_near_the_minimum_and_wide_models_get_no_more_rounds_than_they_can_pay(rows):
    moments = moments_of(rows)
    loose, exact = (minimize_joint(moments, *start(moments), ALPHA, each)[2] for each in (1e-6, 1e-17))
    assert len(loose) < len(exact) and exact[-1] <= loose[-1] <= exact[-1] * (1 + 1e-4)
    assert joint_rounds(576, 640) == ROUNDS and 50 < joint_rounds(2304, 2304) < ROUNDS
    assert joint_rounds(4096, 4096) < FEWEST


def test_in_units_of_its_spread_a_strong_model_does_not_own_the_loss(rows):
    """The loss of moments that are standardized; by itself only where spreads lie apart."""
    a, b = rows
    loud = moments_of((a, 100 * b))
    found, raw = (fit(loud, "joint", ridge=0.0, units=units) for units in ("auto", "raw"))
    scales = [np.sqrt(np.trace(square) / len(square)) for square in (loud.aa, loud.bb)]
    even = fit(moments_of((a / scales[0], 100 * b / scales[1])), "joint", ridge=0.0)
    weights = even.stitch.up.weight * scales[1] / scales[0], even.stitch.down.weight * scales[0] / scales[1]
    for map_, weight in zip(found.stitch, weights, strict=True):
        torch.testing.assert_close(map_.weight, weight.float(), rtol=1e-2, atol=1e-3 * float(weight.abs().max()))
    r2 = [stitch_quality(each.stitch, loud).down.r2 for each in (found, raw)]
    assert even.units == (1, 1) and raw.units == (1, 1) and r2[0] > r2[1] + 0.01


def test_another_minimizer_from_another_start_finds_no_less(rows):
    moments = moments_of(rows)
    _, _, losses, _ = minimize_joint(moments, *start(moments), ALPHA)

    def both(flat: np.ndarray) -> tuple[float, np.ndarray]:
        leaf = torch.from_numpy(flat.copy()).requires_grad_()
        up, down = leaf[:160].view(10, 16), leaf[160:].view(16, 10)
        mean_a, mean_b = torch.from_numpy(moments.mean_a), torch.from_numpy(moments.mean_b)
        stitch = Stitch(Affine(up, mean_b - mean_a @ up), Affine(down, mean_a - mean_b @ down))
        loss = batch_loss(stitch, *rows, ALPHA)
        return float(loss.detach()), torch.autograd.grad(loss, leaf)[0].numpy()

    first = np.random.default_rng(0).standard_normal(320) * 0.3
    other = minimize(both, first, jac=True, method="L-BFGS-B", options={"maxiter": 1500, "maxfun": 2000})
    assert losses[-1] <= other.fun * (1 + 1e-9)


def test_without_round_trips_least_squares_is_the_minimum(rows):
    moments = moments_of(rows)
    fitted = minimize_joint(moments, np.zeros((10, 16)), np.zeros((16, 10)), 0.0)
    for weight, wanted in zip(fitted[:2], start(moments), strict=True):
        np.testing.assert_allclose(weight, wanted, rtol=1e-6, atol=1e-9)


def test_weight_on_round_trips_buys_round_trips(rows):
    moments = moments_of(rows)
    figures = [stitch_quality(fit(moments, "joint", alpha=alpha).stitch, moments) for alpha in (0.0, 0.1, 1.0, 10.0)]
    for name, rises in (("there_and_back", True), ("up", False)):
        path = np.diff([getattr(each, name).mse for each in figures])
        assert np.all(path < 0) if rises else np.all(path > 0)


@pytest.mark.parametrize("method", ["ridge", "joint"])
@pytest.mark.parametrize("d_b", [12, 20])
def test_an_exact_affine_image_is_recovered(method, d_b):
    a, b = tokens(12, d_b)
    found = fit(moments_of((a, b)), method, ridge=1e-11)
    torch.testing.assert_close(found.stitch.up.weight, planted(12, d_b).float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.stitch.up(a.float()), b.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.stitch.down(b.float()), a.float(), rtol=1e-4, atol=1e-4)
    quality = stitch_quality(found.stitch, moments_of(tokens(12, d_b, seed=5)))
    assert [part.r2 for part in quality[:4]] == pytest.approx([1] * 4, abs=1e-6)


def test_with_noise_r2_is_what_it_must_be():
    a, b = tokens(12, 20, 20_000, noise=2.0)
    noisy = fit(moments_of((a, b)), "ridge").stitch
    quality = stitch_quality(noisy, moments_of(tokens(12, 20, 20_000, noise=2.0, seed=9)))
    spread = (a @ planted(12, 20)).var(0).numpy()
    np.testing.assert_allclose(quality.up.r2_by_dim, spread / (spread + 4), atol=0.01)
    assert quality.up.mse == pytest.approx(4, rel=0.02)


def test_procrustes_finds_a_rotation_and_its_scale():
    a, _ = tokens(8, 8)
    turn = torch.linalg.qr(torch.randn(13, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0][:8]
    b = 2.5 * a @ turn + 7
    moments = moments_of((a, b))
    stitch = fit(moments, "procrustes").stitch
    torch.testing.assert_close(stitch.up.weight, 2.5 * turn.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(stitch.down(stitch.up(a.float())), a.float(), rtol=1e-4, atol=1e-4)
    assert stitch_quality(stitch, moments).condition == pytest.approx((1, 1), rel=1e-4)
    with pytest.raises(ValueError, match="swap the models"):
        fit(moments.swapped(), "procrustes")


def test_held_out_tokens_choose_the_ridge():
    few, many = (moments_of(tokens(30, 40, n, noise=20.0, seed=n)) for n in (45, 4000))
    chosen = fit(few, held_out=many)
    assert chosen.ridge[0] == 1e-2
    tried = [stitch_quality(fit(few, ridge=ridge).stitch, many).up.mse for ridge in (1e-8, 1e-2)]
    assert stitch_quality(chosen.stitch, many).up.mse == pytest.approx(tried[1]) and tried[1] < tried[0]


@pytest.mark.parametrize(
    ("constant", "options", "message"),
    [
        (False, {"method": "least squares"}, "must be 'ridge', 'joint' or 'procrustes'"),
        (False, {"ridge": -1.0}, "must not be negative"),
        (True, {}, "activations of B are constant"),
        (False, {"method": "joint", "ridge": 0.0}, "raise ridge"),
    ],
)
def test_fits_say_what_they_cannot_fit(constant, options, message):
    a, b = tokens(6, 9, 100)
    with pytest.raises(ValueError, match=message):
        fit(moments_of((a, torch.ones_like(b) if constant else b)), **options)


def test_ten_products_per_row():
    a, b = (x.float() for x in tokens(6, 9, 64))
    with FlopCounterMode(display=False) as counter:
        fit_by_adam(lambda i: (a[32 * i : 32 * i + 32], b[32 * i : 32 * i + 32]), 2, epochs=3)
    assert counter.get_total_flops() == adam_flops(64 * 3, 6, 9)


def test_adam_finds_what_moments_find_given_time():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(512, 4, generator=generator)
    b = a @ planted(4, 6).float() + 0.3 * torch.randn(512, 6, generator=generator)
    _, losses, seen = fit_by_adam(lambda i: (a, b), 1, epochs=500, lr=3e-2)
    moments = moments_of((a, b))
    least, ridge = (stitch_quality(fit(moments, method).stitch, moments).loss for method in ("joint", "ridge"))
    assert least < ridge and seen == 512 * 500 and losses[0] > 2 * least
    assert least * 0.9999 <= losses[-1] < least * 1.01


@pytest.mark.parametrize("keep", [True, False])
def test_batches_are_the_activations_of_their_blocks_read_once_if_kept(keep: bool):
    blocks, calls = np.arange(24).reshape(6, 4), []

    def pairs(some: np.ndarray):
        calls.append(some)
        for block in some:
            x = torch.from_numpy(block).float()[:, None]
            yield [x], [2 * x]

    batch = block_batches(pairs, blocks, 4, keep)
    for _ in range(2):
        a, b = batch(1)
        assert a.flatten().tolist() == blocks[4:].ravel().tolist() and torch.equal(b, 2 * a)
    assert len(calls) == (1 if keep else 2) and batch(0)[0].shape == (16, 1)
