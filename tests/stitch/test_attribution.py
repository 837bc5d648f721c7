"""Features that fire alike, and that push the same next tokens, correlate; flipped and exchanged ones are found."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from heredity.lm.hooks import capture
from heredity.lm.load import mistral_config, new_model
from heredity.lm.logit_attribution import logit_weights
from heredity.sae.model import SAE, new_sae
from heredity.stitch.affine import Affine
from heredity.stitch.attribution import (
    Side,
    activation_correlation,
    attribution_correlation,
    paired_pearson,
    random_baseline,
)
from heredity.stitch.transfer import transfer_sae
from heredity.study import ArchitectureConfig

VOCAB, D_MODEL, FEATURES, K = 90, 16, 40, 6
HOOK = "blocks.1.hook_resid_pre"


@cache
def model(seed: int) -> Any:
    shape = ArchitectureConfig(d_model=D_MODEL, d_mlp=32, n_layers=2, n_heads=4)
    made = new_model(mistral_config(shape, VOCAB, 64, 0), seed).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter *= 4 if parameter.ndim == 2 else 1
        made.model.norm.weight.copy_(1 + 0.5 * torch.rand(D_MODEL, generator=torch.Generator().manual_seed(seed)))
    return made


def sae() -> SAE:
    return new_sae(D_MODEL, FEATURES, "topk", K, torch.Generator().manual_seed(1))


def blocks(number: int = 40, context: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCAB, (number, context))


def dense(side: Side, tokens: np.ndarray) -> np.ndarray:
    """The plain reference: all activations times all logit weights of the next token, [tokens, d_sae]."""
    ids = torch.from_numpy(tokens)
    acts = side.sae.encode(capture(side.model, side.hook_point, ids)[:, :-1].flatten(0, 1)).double()
    weights = logit_weights(side.model, side.hook_point, side.sae.W_dec).double()
    return (acts * weights[:, ids[:, 1:].flatten()].T).numpy()


def test_r_is_pearson_over_all_tokens(monkeypatch):
    monkeypatch.setattr("heredity.lm.activations._FORWARD_TOKENS", 7 * 16)  # several chunks, the last one short
    monkeypatch.setattr("heredity.stitch.attribution._CHUNK", 100 * D_MODEL)
    sides = Side(model(1), HOOK, sae()), Side(model(2), "blocks.0.mlp.hook_post", new_sae(32, FEATURES, "relu"))
    sides[1].sae.W_enc.copy_(torch.randn(32, FEATURES, generator=torch.Generator().manual_seed(3)))
    sides[1].sae.W_dec.copy_(sides[1].sae.W_enc.T)
    found = attribution_correlation(*sides, blocks())
    a, b = (dense(side, blocks()) for side in sides)
    live = np.flatnonzero((a.std(0) > 0) & (b.std(0) > 0))
    assert len(live) > FEATURES / 2
    expected = [np.corrcoef(a[:, i], b[:, i])[0, 1] for i in live]
    np.testing.assert_allclose(found.r[live], expected, atol=1e-5)
    assert np.isnan(np.delete(found.r, live)).all()
    assert found.tokens == len(a) and np.array_equal(found.source_firings, (a != 0).sum(0))
    assert np.array_equal(found.target_firings, (b != 0).sum(0))


def test_kept_flipped_exchanged_and_dead_features_are_told_apart():
    parent, child = sae(), sae()
    child.W_dec[3] *= -1
    child.W_dec[5], child.W_enc[:, 5] = parent.W_dec[11], parent.W_enc[:, 11]
    child.b_enc[7] = -1e6
    found = attribution_correlation(Side(model(1), HOOK, parent), Side(model(1), HOOK, child), blocks())
    assert found.r[3] < -0.95  # which k are the largest changes a little with the other changes
    assert abs(found.r[5]) < 0.5 and np.isnan(found.r[7]) and found.target_firings[7] == 0 < found.source_firings[7]
    rest = np.delete(found.r, [3, 5, 7, 11])
    assert np.nanmin(rest) > 0.95 and np.nanmedian(rest) > 0.98


def test_random_features_are_as_alike_as_the_maps_make_them():
    """Through the identity any feature keeps its attribution; through a map that mixes models up, none does."""
    same, own = Affine(torch.eye(D_MODEL), torch.zeros(D_MODEL)), Side(model(1), HOOK, sae())
    found = random_baseline(own, (model(1), HOOK), same, same, blocks(), K, seed=4)
    assert found.source_firings.sum() == pytest.approx(K * found.tokens, rel=0.02)
    assert np.nanmin(found.r) > 0.999
    other = random_baseline(own, (model(2), HOOK), same, same, blocks(), K, seed=4)
    assert abs(np.nanmedian(other.r)) < 0.1
    again = random_baseline(own, (model(2), HOOK), same, same, blocks(), K, seed=4)
    assert np.array_equal(again.r, other.r, equal_nan=True)
    more = random_baseline(own, (model(2), HOOK), same, same, blocks(), K, seed=5)
    assert not np.array_equal(more.r, other.r, equal_nan=True)


def test_a_rotated_model_is_understood_through_its_maps():
    """B is A in a rotated space: transferred features push as before, the untransferred ones do not."""
    turn = torch.linalg.qr(torch.randn(D_MODEL, D_MODEL, generator=torch.Generator().manual_seed(9))).Q
    a = copy.deepcopy(model(1))
    with torch.no_grad():
        # A gain of 1 lets the final norm commute with a rotation.
        a.model.norm.weight.fill_(1)
    b = copy.deepcopy(a)
    with torch.no_grad():
        reads, writes = [b.model.embed_tokens, b.lm_head], []
        for layer in b.model.layers:
            # Their norms have a gain of 1 too.
            attn, mlp = layer.self_attn, layer.mlp
            reads += [attn.q_proj, attn.k_proj, attn.v_proj, mlp.gate_proj, mlp.up_proj]
            writes += [attn.o_proj, mlp.down_proj]
        for module in reads:
            module.weight.copy_(module.weight @ turn)
        for module in writes:
            module.weight.copy_(turn.T @ module.weight)
    zero = torch.zeros(D_MODEL)
    up, down = Affine(turn, zero), Affine(turn.T.contiguous(), zero)
    moved = attribution_correlation(Side(a, HOOK, sae()), Side(b, HOOK, transfer_sae(sae(), up, down)), blocks())
    assert np.nanmin(moved.r) > 0.99
    unmoved = attribution_correlation(Side(a, HOOK, sae()), Side(b, HOOK, sae()), blocks())
    assert np.nanmedian(unmoved.r) < 0.3


def test_what_cannot_be_compared_is_refused():
    own = Side(model(1), HOOK, sae())
    with pytest.raises(ValueError, match=r"\[600, 40\] and \[600, 8\] for 40 features"):
        attribution_correlation(own, own._replace(sae=new_sae(D_MODEL, 8, "topk", 2)), blocks())


def test_r_firings_and_peaks_are_those_of_numpy_whatever_the_parts(monkeypatch):
    monkeypatch.setattr("heredity.lm.activations._FORWARD_TOKENS", 7 * 16)  # several parts, the last one short
    silent, ids = sae(), torch.from_numpy(blocks())
    silent.b_enc[7] = -1e6
    sides = Side(model(1), HOOK, sae()), Side(model(2), "blocks.0.hook_resid_post", silent)
    a, b = (side.sae.encode(capture(side.model, side.hook_point, ids).flatten(0, 1)).double().numpy() for side in sides)
    found = activation_correlation(*sides, blocks())
    live = np.flatnonzero((a.std(0) > 0) & (b.std(0) > 0))
    assert len(live) > FEATURES / 2 and 7 not in live
    expected = [np.corrcoef(a[:, i], b[:, i])[0, 1] for i in live]
    np.testing.assert_allclose(found.r[live], expected, atol=1e-6)
    assert np.isnan(np.delete(found.r, live)).all() and found.tokens == 40 * 16
    for acts, firings, peak in (
        (a, found.source_firings, found.source_peak),
        (b, found.target_firings, found.target_peak),
    ):
        assert np.array_equal(firings, (acts > 0).sum(0))
        np.testing.assert_allclose(peak, acts.max(0), rtol=1e-5)


def test_a_transferred_sae_fires_alike_on_the_image_of_the_source():
    """The maps are inverse to each other, and the target is the source seen through them."""
    turn = torch.linalg.qr(torch.randn(D_MODEL, D_MODEL, generator=torch.Generator().manual_seed(4))).Q.contiguous()
    shift = torch.linspace(-1, 1, D_MODEL)
    up, down = Affine(turn, shift), Affine(turn.T.contiguous(), -(shift @ turn.T))
    x = capture(model(1), HOOK, torch.from_numpy(blocks())).flatten(0, 1)
    moved = transfer_sae(sae(), up, down)

    def r(target: SAE) -> np.ndarray:
        pairs = ((sae().encode(part), target.encode(up(part))) for part in x.split(100))
        return paired_pearson(((csr_array(a.numpy()), csr_array(b.numpy())) for a, b in pairs), FEATURES).r

    assert np.nanmin(r(moved)) > 0.999 and np.isfinite(r(moved)).sum() > 20
    assert np.nanmedian(r(sae())) < 0.5


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"activations are \[3, 4\] and \[2, 4\] for 4 features"):
        paired_pearson([(csr_array((3, 4)), csr_array((2, 4)))], 4)
