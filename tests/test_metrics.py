"""Metrics against their written-out definitions, away from zero mean and unit scale; streams against one shot."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from heredity.metrics import Reconstruction, Variance, ce_loss_recovered


def reconstruction(x: torch.Tensor, x_hat: torch.Tensor, *cuts: int) -> Reconstruction:
    """Of a stream cut into batches of these sizes; of one batch without."""
    stream, sizes = Variance(), list(cuts) or [len(x)]
    for part, part_hat in zip(x.split(sizes), x_hat.split(sizes), strict=True):
        stream.update(part, part_hat)
    return stream.result()


def fvu(x: torch.Tensor, x_hat: torch.Tensor) -> float:
    return reconstruction(x, x_hat).fvu


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors of mean 5 to 12 and scale 3, and a reconstruction with an error of scale 0.7."""
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(1000, 8, generator=generator) + torch.arange(5.0, 13.0)
    return x, x + 0.7 * torch.randn(1000, 8, generator=generator)


@pytest.mark.parametrize("cuts", [(), (1, 0, 7, 492, 500)])
def test_a_reconstruction_is_its_written_out_definition_whole_and_in_batches(pair, cuts):
    x, x_hat = (tensor.double().numpy() for tensor in pair)
    expected = ((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
    assert expected == pytest.approx(0.49 / 9, rel=0.1)
    found = reconstruction(*pair, *cuts)
    assert found[:3] == pytest.approx((expected, 1 - expected, np.mean((x - x_hat) ** 2)), rel=1e-12)
    assert found.explained_variance == 1 - found.fvu and found.tokens == 1000


def test_predicting_the_mean_explains_nothing(pair):
    x, _ = pair
    assert fvu(x, x.double().mean(0).expand(x.shape)) == pytest.approx(1.0, abs=1e-9)
    assert reconstruction(x, x).explained_variance == 1.0
    assert math.isnan(fvu(torch.full((5, 2), 3.0), torch.zeros(5, 2))), "constant vectors"


def test_fvu_does_not_depend_on_shift_scale_and_shape(pair):
    x, x_hat = (tensor.double() for tensor in pair)
    assert fvu(40 * x - 1000, 40 * x_hat - 1000) == pytest.approx(fvu(x, x_hat), rel=1e-9)
    assert fvu(x.reshape(10, 100, 8), x_hat.reshape(10, 100, 8)) == fvu(x, x_hat)


def test_batches_with_means_of_their_own_are_pooled_and_not_averaged():
    x = torch.cat([torch.randn(50, 4), 100 + torch.randn(50, 4)])
    x_hat = x + 1
    batches = reconstruction(x, x_hat, 50, 50)
    assert batches.fvu == pytest.approx(fvu(x, x_hat), rel=1e-12)
    assert batches.fvu < 0.001 < 0.5 * (fvu(x[:50], x_hat[:50]) + fvu(x[50:], x_hat[50:]))


def test_a_large_mean_costs_no_precision():
    x = torch.randn(4096, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert reconstruction(x + 1e8, x + 1e8 + 1, *[128] * 32).fvu == pytest.approx(fvu(x, x + 1), rel=1e-6)


def test_half_precision_is_summed_in_float64():
    x = torch.full((100_000, 1), 2.0, dtype=torch.bfloat16)
    x[::2] = 4
    assert reconstruction(x, torch.zeros_like(x)).mse == 10.0
    assert fvu(x, x + 1) == 1.0


def test_a_reconstruction_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"x is \[3, 2\] and x_hat \[1, 2\]"):
        Variance().update(torch.zeros(3, 2), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="x is 3 wide after batches of 2"):
        Variance().update(torch.zeros(3, 2), torch.zeros(3, 2)).update(torch.zeros(3, 3), torch.zeros(3, 3))
    with pytest.raises(ValueError, match="no vectors"):
        Variance().result()


def test_ce_loss_recovered_is_1_for_a_free_splice_and_0_for_zeros():
    assert [ce_loss_recovered(2.0, ce_sae, 6.0) for ce_sae in (2.0, 3.0, 6.0)] == [1.0, 0.75, 0.0]
    assert ce_loss_recovered(2.0, 7.0, 6.0) < 0
    assert math.isnan(ce_loss_recovered(2.0, 2.0, 2.0))
