"""Starts in the target: what a turn keeps, that dead features alone are revived, and that folding is exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from heredity.sae.evaluate import quality
from heredity.sae.model import SAE, Activation, new_sae
from heredity.stitch.affine import Affine, Stitch
from heredity.stitch.geometry import folding, revived, trainable, turned, unit_rows
from heredity.stitch.moments import Moments
from heredity.stitch.transfer import transfer_sae
from heredity.study import SAEConfig

SMALL, LARGE, FEATURES, K = 12, 20, 48, 5


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def world(large: int = LARGE) -> tuple[SAE, Tensor, Tensor]:
    """An SAE of A, activations of A, and unrelated ones of B on another scale and with another mean."""
    sae = new_sae(SMALL, FEATURES, "jumprelu", None, torch.Generator().manual_seed(5))
    sae.b_dec.copy_(random(SMALL, seed=6))
    sae.b_enc.copy_(0.3 * random(FEATURES, seed=7))
    assert sae.threshold is not None
    sae.threshold += 0.5
    a = 2 + random(4000, SMALL, seed=8) * torch.linspace(0.5, 2, SMALL)
    return sae, a, 7 - 9 * random(4000, large, seed=9)


@pytest.mark.parametrize("large", [LARGE, 8])
def test_a_turned_dictionary_keeps_what_it_can(large: int):
    sae, a, b = world(large)
    moments = Moments.of([(a, b)])
    made = turned(sae, moments, 3)
    assert made.W_dec.shape == (FEATURES, large)
    torch.testing.assert_close(made.W_dec.norm(dim=1), torch.ones(FEATURES))
    if large >= SMALL:
        torch.testing.assert_close(made.W_dec @ made.W_dec.T, sae.W_dec @ sae.W_dec.T, atol=1e-5, rtol=1e-4)
    pre_a, pre_b = sae.pre_acts(a), made.pre_acts(b)
    scale = (b.var(0).sum() / a.var(0).sum()).sqrt()
    torch.testing.assert_close(pre_b.var(0).sum(), scale**2 * pre_a.var(0).sum(), rtol=1e-3, atol=0)
    torch.testing.assert_close(pre_b.mean(0), scale * pre_a.mean(0), rtol=1e-3, atol=1e-3 * float(scale))
    torch.testing.assert_close(made.b_dec, b.mean(0), rtol=1e-4, atol=1e-4)
    assert sae.threshold is not None and made.threshold is not None
    torch.testing.assert_close(made.threshold, scale * sae.threshold, rtol=1e-3, atol=0)
    again, other = turned(sae, moments, 3), turned(sae, moments, 4)
    assert torch.equal(again.W_dec, made.W_dec) and not torch.allclose(other.W_dec, made.W_dec, atol=0.1)
    with pytest.raises(ValueError, match="the SAE reads width 12, the moments are of 5"):
        turned(sae, Moments.of([(random(9, 5, seed=1), random(9, 4, seed=2))]), 0)


@pytest.mark.parametrize("activation", ["relu", "topk", "batchtopk", "jumprelu"])
def test_only_dead_features_are_revived_and_explain_more(activation: Activation):
    x = random(2000, SMALL, seed=1) * torch.linspace(0.2, 3, SMALL) + 4
    sae = new_sae(SMALL, FEATURES, activation, K, torch.Generator().manual_seed(2))
    sae.b_dec.copy_(x.mean(0))
    if sae.threshold is not None:
        sae.threshold += 1.5
    sae.b_enc -= 1.0 if activation == "relu" else 0
    sae.W_enc[:, 10:] = 0
    sae.b_enc[10:] = -100
    before = quality(sae, [x])
    dead = before.density == 0
    assert dead[10:].all() and not dead.all()
    made, count = revived(sae, dead, x.split(250), 3)
    assert count == dead.sum()
    torch.testing.assert_close(made.W_dec.norm(dim=1), torch.ones(FEATURES))
    kept = torch.from_numpy(~dead)
    for name in ("W_enc", "W_dec"):
        old, new = (getattr(each, name) if name == "W_dec" else getattr(each, name).T for each in (sae, made))
        assert torch.equal(old[kept], new[kept]) and not torch.equal(old[~kept], new[~kept])
    after = quality(made, [x])
    assert after.dead_share < before.dead_share / 2
    if activation != "batchtopk":  # whose one threshold the new features reach only as they grow
        assert after.explained_variance > before.explained_variance
    same, none = revived(sae, np.zeros(FEATURES, bool), x.split(250), 3)
    assert none == 0 and torch.equal(same.W_enc, sae.W_enc)


def test_a_batchtopk_start_is_one_again_and_keeps_k():
    x = random(1000, SMALL, seed=1)
    sae = new_sae(SMALL, FEATURES, "batchtopk", K, torch.Generator().manual_seed(2))
    assert sae.threshold is not None
    sae.threshold += 0.8
    sae.W_dec *= 2
    rows = unit_rows(sae)
    assert rows.activation == "jumprelu"
    made = trainable(rows, SAEConfig(activation="batchtopk", k=K), x)
    assert (made.activation, made.k) == ("batchtopk", K) and torch.equal(made.W_enc, rows.W_enc)
    assert quality(made, [x]).l0 == pytest.approx(K, abs=0.01)
    assert trainable(rows, SAEConfig(activation="jumprelu"), x) is rows


def test_folding_is_exact_and_something_else_is_not():
    up = Affine(random(SMALL, LARGE, seed=1) / SMALL**0.5, random(LARGE, seed=2))
    stitch = Stitch(up, Affine(random(LARGE, SMALL, seed=3) / LARGE**0.5, random(SMALL, seed=4)))
    sae, _, x = world()
    folded = transfer_sae(sae, *stitch)
    found = folding(sae, folded, stitch, x)
    assert found.error < 1e-5 and found.other_features < 0.001
    folded.b_dec += float(x.square().mean().sqrt())
    folded.b_enc += folded.W_enc.sum(0) * float(x.square().mean().sqrt())
    assert folding(sae, folded, stitch, x).error == pytest.approx(1, abs=1e-3), "another center, the same codes"
    folded.W_enc *= -1
    assert folding(sae, folded, stitch, x).other_features > 0.5


def test_an_exact_affine_image_is_explained_as_the_source_is():
    """B is A turned, scaled and moved: explained variance is the same to rounding, and better than a new SAE's."""
    sae, a, _ = world()
    sae = turned(sae, Moments.of([(a, a)]), 1)
    turn = torch.linalg.qr(random(LARGE, SMALL, seed=1)).Q.T
    up = Affine(3 * turn, random(LARGE, seed=2))
    stitch = Stitch(up, Affine(turn.T / 3, -(up.bias @ turn.T) / 3))
    b = up(a)
    own, carried, rows = (
        quality(each, [x])
        for each, x in (
            (sae, a),
            (transfer_sae(sae, *stitch), b),
            (transfer_sae(sae, *stitch, normalize=True), b),
        )
    )
    assert carried.explained_variance == pytest.approx(own.explained_variance, abs=1e-4)
    assert rows.explained_variance == pytest.approx(own.explained_variance, abs=1e-4)
    assert carried.l0 == pytest.approx(own.l0, abs=1e-2) and 1 < own.l0 < FEATURES / 2
