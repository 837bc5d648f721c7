"""Moments of a stream are those of the tokens, and tell which layers of two models are alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles

from heredity.stitch.moments import ROWS, Moments, MomentStream, all_layers, nested_moments, similarity
from stitch.test_affine import moments_of, tokens


def rows(n: int = 2000, d: int = 12, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_normal((n, d)) * np.arange(1, d + 1) ** -1.0 @ rng.standard_normal((d, d)) + 1)


def test_moments_of_a_stream_are_those_of_the_tokens(tmp_path):
    a, b = tokens(6, 9, ROWS + 500, noise=0.1)
    found = MomentStream().add([a[:700]], [b[:700]]).add([a[700:]], [b[700:]]).pair(0, 0)
    joined = np.cov(torch.cat([a, b], 1).T.numpy(), bias=True)
    for got, wanted in zip(found[3:], (joined[:6, :6], joined[:6, 6:], joined[6:, 6:]), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found.mean_a, a.mean(0))
    np.testing.assert_allclose(found.mean_b, b.mean(0))
    found.save(tmp_path / "moments.safetensors")
    for got, wanted in zip(Moments.load(tmp_path / "moments.safetensors"), found, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_products_in_float32_cost_little_even_far_from_zero():
    a, b = (x + 100 for x in tokens(6, 9, 3 * ROWS, noise=0.1))
    single, double = moments_of((a.float(), b.float())), moments_of((a, b))
    scale = np.sqrt(np.outer(np.diag(double.aa), np.diag(double.bb)))
    assert np.abs((single.ab - double.ab) / scale).max() < 2e-6


def test_shards_sum_to_the_whole():
    a, b = tokens(6, 9)
    shards = [MomentStream().add([a[part], a[part] ** 2], [b[part]]) for part in (slice(0, 10), slice(10, 3000))]
    merged = MomentStream().merge(shards[0]).merge(MomentStream()).merge(shards[1])
    whole = MomentStream().add([a, a**2], [b])
    for point in range(2):
        for got, wanted in zip(merged.pair(point, 0), whole.pair(point, 0), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match="wide after"):
        merged.merge(MomentStream().add([a], [b]))


def test_moments_refuse_what_is_not_aligned_or_finite():
    a, b = tokens(6, 9, 20)
    with pytest.raises(ValueError, match="same rows"):
        MomentStream().add([a], [b[1:]])
    with pytest.raises(ValueError, match="NaN or infinity"):
        MomentStream().add([a], [torch.where(b == b[3, 4], torch.inf, b)])
    with pytest.raises(ValueError, match="no activations"):
        MomentStream().pair(0, 0)


def svcca(a: torch.Tensor, b: torch.Tensor, kept: float = 0.99) -> float:
    return float(similarity(MomentStream().add([a], [b]), kept).svcca[0, 0])


def cka(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(similarity(MomentStream().add([a], [b])).cka[0, 0])


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
    assert svcca(a, b, 0.9) == pytest.approx(wanted, rel=1e-6)


def test_cka_is_that_of_gram_matrices_of_the_data():
    a, b = half_alike()
    left, right = ((x - x.mean(0)) @ (x - x.mean(0)).T for x in (a, b))
    wanted = float((left * right).sum() / (left.norm() * right.norm()))
    assert 0.1 < wanted < 0.9
    assert cka(a, b) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("alike", [svcca, cka])
def test_turning_and_scaling_change_nothing(alike):
    a, b = half_alike()
    turn = torch.linalg.qr(rows(16, 16, seed=3))[0]
    assert alike(a, 7 * b @ turn - 4) == pytest.approx(alike(a, b), rel=1e-6)
    assert alike(b, a) == pytest.approx(alike(a, b), rel=1e-6)
    assert alike(a, 3 * a + 1) == pytest.approx(1, abs=1e-6)
    assert alike(a, rows(seed=9)) < 0.2
    assert np.isnan(alike(a, torch.ones(2000, 3)))


def test_nothing_has_no_likeness():
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
            assert found.svcca[i, j] == pytest.approx(svcca(a, b), rel=1e-9)
            assert found.cka[i, j] == pytest.approx(cka(a, b), rel=1e-9)
    assert found.svcca.argmax(1).tolist() == found.cka.argmax(1).tolist() == [2, 0] and found.tokens == 2000


def test_deep_and_wide_models_are_compared_from_the_stitched_layer_alone():
    assert all_layers(128, 256, 2, 4) == (True, 8 * (2 * 128**2 + 4 * 256**2 + 8 * 128 * 256))
    assert all_layers(4096, 4096, 32, 32) == (False, 8 * (1 + 32 + 32) * 4096**2)


def nested(halvings: int = 5, count: int = 40) -> tuple[list[Moments], list[Moments]]:
    """Nested moments of blocks of 8 tokens, and those of the same tokens taken directly."""
    a, b = tokens(6, 9, 40 * 8)
    blocks = np.arange(count * 8).reshape(count, 8)
    parts = nested_moments(lambda some: [([a[some.ravel()]], [b[some.ravel()]])], blocks, halvings)
    return parts, [moments_of((a[: part.tokens], b[: part.tokens])) for part in parts]


def test_nested_moments_have_the_covariances_of_the_first_parts():
    parts, direct = nested(halvings=3)
    assert [part.tokens for part in parts] == [5 * 8, 10 * 8, 20 * 8, 40 * 8]
    for part, wanted in zip(parts, direct, strict=True):
        for got, expected in zip(part[3:], wanted[3:], strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)
    assert len(nested(count=2)[0]) == 2


def test_nested_moments_have_the_means_of_the_first_parts():
    for part, wanted in zip(*nested(halvings=3), strict=True):
        np.testing.assert_allclose(part.mean_a, wanted.mean_a)
