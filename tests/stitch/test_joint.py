"""The minimum of the joint loss from moments is the minimum over tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from heredity.stitch.adam import batch_loss, fit_by_adam
from heredity.stitch.affine import Affine, Stitch
from heredity.stitch.fit import fit
from heredity.stitch.joint import joint_gradient, joint_loss, minimize_joint
from heredity.stitch.map_quality import stitch_quality
from heredity.stitch.moments import Moments

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


def test_loss_and_gradient_are_those_of_autograd_over_tokens(rows):
    moments, rng = Moments.of([rows]), np.random.default_rng(1)
    up, down = rng.standard_normal((10, 16)), rng.standard_normal((16, 10))
    stitch = stitch_of(moments, up, down)
    leaves = [part.requires_grad_() for each in stitch for part in each]
    loss = batch_loss(stitch, *rows, ALPHA)
    assert joint_loss(moments, up, down, ALPHA) == pytest.approx(float(loss.detach()), rel=1e-10)
    by_up, bias_up, by_down, bias_down = torch.autograd.grad(loss, leaves)
    # Weights of centered maps move the biases along: mean_a stays on mean_b.
    of_up = by_up - torch.outer(rows[0].mean(0), bias_up)
    of_down = by_down - torch.outer(rows[1].mean(0), bias_down)
    for got, wanted in zip(joint_gradient(moments, up, down, ALPHA), (of_up, of_down), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-8, atol=1e-8 * float(wanted.abs().max()))


def test_the_loss_only_falls_and_ends_where_autograd_sees_no_slope(rows):
    moments = Moments.of([rows])
    found = minimize_joint(moments, *start(moments), ALPHA, tolerance=1e-10)
    assert found.converged and len(found.losses) < 100
    assert np.all(np.diff(found.losses) <= 1e-13 * found.losses[0]) and found.losses[-1] < 0.95 * found.losses[0]
    assert found.losses[-1] == pytest.approx(joint_loss(moments, found.up, found.down, ALPHA), rel=1e-10)
    stitch = stitch_of(moments, found.up, found.down)
    leaves = [part.requires_grad_() for each in stitch for part in each]
    slopes = torch.autograd.grad(batch_loss(stitch, *rows, ALPHA), leaves)
    zero = [torch.zeros_like(part).requires_grad_() for part in leaves]
    first = torch.autograd.grad(batch_loss(Stitch(Affine(*zero[:2]), Affine(*zero[2:])), *rows, ALPHA), zero)
    for slope, scale in zip(slopes, first, strict=True):
        assert float(slope.norm() / scale.norm()) < 1e-7


def test_another_minimizer_from_another_start_finds_no_less(rows):
    moments = Moments.of([rows])
    found = minimize_joint(moments, *start(moments), ALPHA)

    def both(flat: np.ndarray) -> tuple[float, np.ndarray]:
        up, down = flat[:160].reshape(10, 16), flat[160:].reshape(16, 10)
        slopes = joint_gradient(moments, up, down, ALPHA)
        return joint_loss(moments, up, down, ALPHA), np.concatenate([slope.ravel() for slope in slopes])

    first = np.random.default_rng(0).standard_normal(320) * 0.3
    other = minimize(both, first, jac=True, method="L-BFGS-B", options={"maxiter": 1500, "maxfun": 2000})
    assert found.losses[-1] <= other.fun * (1 + 1e-9)


def test_without_round_trips_least_squares_is_the_minimum(rows):
    moments = Moments.of([rows])
    found = minimize_joint(moments, np.zeros((10, 16)), np.zeros((16, 10)), 0.0)
    up, down = start(moments)
    np.testing.assert_allclose(found.up, up, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.down, down, rtol=1e-6, atol=1e-9)


def test_weight_on_round_trips_buys_round_trips(rows):
    moments = Moments.of([rows])
    figures = [stitch_quality(fit(moments, "joint", alpha=alpha).stitch, moments) for alpha in (0.0, 0.1, 1.0, 10.0)]
    for name, rises in (("there_and_back", True), ("up", False)):
        path = np.diff([getattr(each, name).mse for each in figures])
        assert np.all(path < 0) if rises else np.all(path > 0)


def test_joint_beats_ridge_beats_the_published_recipe(rows):
    a, b = (x.float() for x in rows)
    moments = Moments.of([(a, b)])
    adam = fit_by_adam(lambda i: (a[i * 200 : i * 200 + 200], b[i * 200 : i * 200 + 200]), 20)
    stitches = fit(moments, "joint").stitch, fit(moments, "ridge").stitch, adam.stitch
    joint, ridge, descent = (stitch_quality(stitch, moments).loss for stitch in stitches)
    assert joint < ridge < descent
