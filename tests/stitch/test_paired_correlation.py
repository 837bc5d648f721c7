"""Activations of the same feature in two models are correlated as numpy does it, in parts or at once."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from heredity.lm.hooks import capture
from heredity.lm.load import mistral_config, new_model
from heredity.sae.model import SAE, new_sae
from heredity.stitch.affine import Affine
from heredity.stitch.attribution import Side, activation_correlation
from heredity.stitch.paired_correlation import PairedPearson
from heredity.stitch.transfer import transfer_sae
from heredity.study import ArchitectureConfig

VOCAB, D_MODEL, FEATURES, HOOK = 60, 16, 40, "blocks.1.hook_resid_pre"


@cache
def model(seed: int) -> Any:
    shape = ArchitectureConfig(d_model=D_MODEL, d_mlp=32, n_layers=2, n_heads=4)
    return new_model(mistral_config(shape, VOCAB, 64, 0), seed).eval()


def sae(seed: int = 1) -> SAE:
    return new_sae(D_MODEL, FEATURES, "topk", 6, torch.Generator().manual_seed(seed))


def blocks() -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCAB, (40, 16))


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
    moved, found, unmoved = transfer_sae(sae(), up, down), PairedPearson(FEATURES), PairedPearson(FEATURES)
    for part in x.split(100):
        codes = [csr_array(one.encode(z).numpy()) for one, z in ((sae(), part), (moved, up(part)), (sae(), up(part)))]
        found.add(codes[0], codes[1])
        unmoved.add(codes[0], codes[2])
    r = found.result().r
    assert np.nanmin(r) > 0.999 and np.isfinite(r).sum() > 20
    assert np.nanmedian(unmoved.result().r) < 0.5


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"activations are \[3, 4\] and \[2, 4\] for 4 features"):
        PairedPearson(4).add(csr_array((3, 4)), csr_array((2, 4)))
    with pytest.raises(ValueError, match="no activations were given"):
        PairedPearson(4).result()
