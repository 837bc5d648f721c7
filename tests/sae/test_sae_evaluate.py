"""Quality figures against their plain formulas, and the cross-entropy recovered at its two fixed points."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from heredity.sae import evaluate as evaluation
from heredity.sae.evaluate import ce_loss_recovered, quality
from heredity.sae.model import SAE, new_sae


def some_sae() -> SAE:
    sae = new_sae(12, 40, "topk", 5, torch.Generator().manual_seed(0))
    sae.b_dec.fill_(3.0)
    sae.b_enc[:4] = -1e6
    return sae


def perfect_sae() -> SAE:
    sae, eye = SAE(12, 24, "relu"), torch.eye(12)
    sae.W_enc.copy_(torch.cat([eye, -eye], dim=1))
    sae.W_dec.copy_(torch.cat([eye, -eye]))
    return sae


def some_x() -> torch.Tensor:
    return 2 * torch.randn(1000, 12, generator=torch.Generator().manual_seed(1)) + 3


def test_quality_is_the_plain_formulas_pooled_over_batches_of_unequal_size():
    sae, x = some_sae(), some_x()
    figures = quality(sae, x.split(300))
    acts, x_hat, x = sae.encode(x).double(), sae(x).double(), x.double()
    assert figures.tokens == 1000 and figures.density.dtype == np.float64
    assert figures.l0 == pytest.approx(float((acts > 0).sum(1).double().mean()))
    assert figures.mse == pytest.approx(float((x - x_hat).square().mean()), rel=1e-6)
    fvu = (x - x_hat).square().sum() / (x - x.mean(0)).square().sum()
    assert figures.explained_variance == pytest.approx(1 - float(fvu), rel=1e-6)
    np.testing.assert_allclose(figures.density, (acts > 0).double().mean(0).numpy())
    assert figures.dead_share == pytest.approx(4 / 40)


def test_explained_variance_of_a_perfect_sae_is_one_and_of_the_mean_zero():
    x = some_x()
    assert quality(perfect_sae(), [x]).explained_variance == pytest.approx(1, abs=1e-9)
    silent = SAE(12, 24, "relu")
    silent.b_dec.copy_(x.mean(0))
    figures = quality(silent, [x])
    assert figures.explained_variance == pytest.approx(0, abs=1e-6)
    assert (figures.l0, figures.dead_share, figures.ultra_low_share) == (0, 1, 0)


def test_features_that_fire_twice_are_ultra_low_and_those_that_fire_thrice_are_not():
    x = torch.zeros(100, 12)
    x[:2, 0], x[:3, 1] = 1, 1
    figures = quality(perfect_sae(), [x])
    assert (figures.ultra_low_share, figures.dead_share) == pytest.approx((1 / 24, 22 / 24))


def test_quality_refuses_what_it_cannot_judge():
    narrow, nan = torch.zeros(5, 13), torch.full((5, 12), float("nan"))
    for batches, message in (([], "no vectors"), ([narrow], r"reads \[n, 12\]"), ([nan], "NaN or infinite")):
        with pytest.raises(ValueError, match=message):
            quality(some_sae(), batches)


class TinyModel(nn.Module):
    """Embedding, a layer to hook, and logits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.layer, self.head = nn.Embedding(20, 12), nn.Linear(12, 12), nn.Linear(12, 20, bias=False)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(self.embed(input_ids)))


def test_ce_loss_recovered_is_one_for_a_perfect_sae_and_zero_for_one_that_gives_zeros(monkeypatch):
    def stand_in(model: nn.Module, blocks: np.ndarray, **_: object):
        ids = torch.from_numpy(blocks)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            logits = model(ids)[:, :-1]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
        return type("Quality", (), {"ce_loss": float(loss)})

    monkeypatch.setattr(evaluation, "evaluate", stand_in)
    model, blocks = TinyModel(), np.random.default_rng(0).integers(0, 20, (8, 16))
    assert ce_loss_recovered(model, "layer:output", perfect_sae(), blocks) == pytest.approx(1, abs=0.01)
    assert ce_loss_recovered(model, "layer:output", SAE(12, 24, "relu"), blocks) == pytest.approx(0, abs=1e-6)
