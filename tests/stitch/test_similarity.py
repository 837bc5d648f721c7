"""Which layers of two models are alike, by definition and from one pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles

import tiny
from heredity.lm.hooks import HookPointError, capture
from heredity.lm.load import load_model
from heredity.stitch.aligned import Points, aligned
from heredity.stitch.moments import Moments, MomentStream, all_layers
from heredity.stitch.similarity import linear_cka, similarity, svcca


def rows(n: int = 2000, d: int = 12, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_normal((n, d)) * np.arange(1, d + 1) ** -1.0 @ rng.standard_normal((d, d)) + 1)


def of(a: torch.Tensor, b: torch.Tensor) -> Moments:
    return Moments.of([(a, b)])


def half_alike() -> tuple[torch.Tensor, torch.Tensor]:
    a = rows()
    return a, torch.cat([a[:, :6] + 0.5 * rows(seed=1)[:, :6], rows(seed=2)[:, :10]], 1)


def test_svcca_is_that_of_singular_vectors_of_the_data():
    a, b = half_alike()
    kept = []
    for x in (a, b):
        left, values, _ = np.linalg.svd((x - x.mean(0)).numpy(), full_matrices=False)
        kept.append(left[:, : 1 + np.searchsorted(np.cumsum(values**2) / np.sum(values**2), 0.9)])
    wanted = np.cos(subspace_angles(*kept)).mean()
    assert 0.2 < wanted < 0.9 and kept[0].shape != kept[1].shape
    assert svcca(of(a, b), 0.9) == pytest.approx(wanted, rel=1e-6)


def test_cka_is_that_of_gram_matrices_of_the_data():
    a, b = half_alike()
    left, right = ((x - x.mean(0)) @ (x - x.mean(0)).T for x in (a, b))
    wanted = float((left * right).sum() / (left.norm() * right.norm()))
    assert 0.1 < wanted < 0.9
    assert linear_cka(of(a, b)) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("alike", [svcca, linear_cka])
def test_turning_and_scaling_change_nothing(alike):
    a, b = half_alike()
    turn = torch.linalg.qr(rows(16, 16, seed=3))[0]
    assert alike(of(a, 7 * b @ turn - 4)) == pytest.approx(alike(of(a, b)), rel=1e-6)
    assert alike(of(b, a)) == pytest.approx(alike(of(a, b)), rel=1e-6)
    assert alike(of(a, 3 * a + 1)) == pytest.approx(1, abs=1e-6)
    assert alike(of(a, rows(seed=9))) < 0.2
    assert np.isnan(alike(of(a, torch.ones(2000, 3))))


def test_a_share_must_be_one():
    with pytest.raises(ValueError, match="no share"):
        svcca(of(*half_alike()), 0.0)
    with pytest.raises(ValueError, match="no activations"):
        similarity(MomentStream())


def test_one_pass_compares_all_points():
    layers_a, layers_b = [rows(seed=1), rows(seed=2)], [rows(seed=2) * 2, rows(d=5, seed=3), rows(seed=1)]
    stream = MomentStream()
    for part in (slice(0, 300), slice(300, 2000)):
        stream.add([x[part] for x in layers_a], [x[part] for x in layers_b])
    found = similarity(stream)
    for i, a in enumerate(layers_a):
        for j, b in enumerate(layers_b):
            assert found.svcca[i, j] == pytest.approx(svcca(of(a, b)), rel=1e-9)
            assert found.cka[i, j] == pytest.approx(linear_cka(of(a, b)), rel=1e-9)
    assert found.svcca.argmax(1).tolist() == found.cka.argmax(1).tolist() == [2, 0] and found.tokens == 2000


def test_both_models_are_read_at_all_points_in_one_pass(tmp_path: Path):
    small, large = (load_model(tiny.save_tiny_model(tmp_path / str(seed), seed=seed)) for seed in (0, 1))
    known = min(model.get_input_embeddings().num_embeddings for model in (small, large))
    blocks = np.random.default_rng(0).integers(1, known, (40, 16))
    blocks[:, 0] = 0
    places = ["blocks.0.hook_resid_post", "blocks.0.hook_resid_pre"]
    chunks = list(aligned(Points(small, places), Points(large, places[:1]), blocks, masked=[0]))
    kept = torch.from_numpy(blocks.ravel() != 0)
    for side, (model, names) in enumerate(((small, places), (large, places[:1]))):
        for point, name in enumerate(names):
            wanted = capture(model, name, torch.from_numpy(blocks)).flatten(0, 1)[kept]
            torch.testing.assert_close(torch.cat([chunk[side][point] for chunk in chunks]), wanted)
    stream = MomentStream()
    for a, b in aligned(Points(small, places), Points(small, places), blocks):
        stream.add(a, b)
    np.testing.assert_allclose(np.diag(similarity(stream).svcca), 1, atol=1e-4)
    with pytest.raises(HookPointError, match="unknown"):
        next(aligned(Points(small, ["blocks.0.nothing"]), Points(large, places), blocks))


def test_deep_and_wide_models_are_compared_from_the_stitched_layer_alone():
    assert all_layers(128, 256, 2, 4) == (True, 8 * (2 * 128**2 + 4 * 256**2 + 8 * 128 * 256))
    assert all_layers(4096, 4096, 32, 32) == (False, 8 * (1 + 32 + 32) * 4096**2)
