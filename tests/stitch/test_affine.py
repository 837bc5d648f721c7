"""Maps between two models and their files; moments of a stream are those of the tokens, and tell which are alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from torch import Tensor

from heredity.metrics import Variance
from heredity.stitch.affine import (
    ROWS,
    Affine,
    Moments,
    MomentStream,
    Stitch,
    all_layers,
    nested_moments,
    pooled,
    similarity,
    stitch_quality,
)
from heredity.stitch.fit import batch_loss


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_affine(d_in: int, d_out: int, seed: int) -> Affine:
    return Affine(random(d_in, d_out, seed=seed), random(d_out, seed=seed + 100))


def planted(d_a: int, d_b: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(2).standard_normal((d_a, d_b)))


def tokens(d_a: int, d_b: int, n: int = 3000, noise: float = 0.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """a of a falling spectrum about a mean that is not 0, and b = an affine image of it plus white noise; float64."""
    rng = np.random.default_rng(seed)
    spectrum = np.arange(1, d_a + 1) ** -0.5
    a = rng.standard_normal((n, d_a)) * spectrum @ np.random.default_rng(1).standard_normal((d_a, d_a)) + 3
    b = a @ planted(d_a, d_b).numpy() + np.linspace(-2, 2, d_b) + noise * rng.standard_normal((n, d_b))
    return torch.from_numpy(a), torch.from_numpy(b)


def moments_of(rows: tuple[Tensor, Tensor]) -> Moments:
    return MomentStream().add([rows[0]], [rows[1]]).pair()


def same(found: Moments, wanted: Moments) -> None:
    for got, expected in zip(found, wanted, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


# -- maps -------------------------------------------------------------------------------------------------------------


def test_one_map_after_another_is_one_map():
    first, second, x = random_affine(5, 7, 0), random_affine(7, 3, 1), random(4, 2, 5, seed=2)
    torch.testing.assert_close(first.then(second)(x), second(first(x)))
    with pytest.raises(ValueError, match="NaN or infinity"):
        Affine.of(np.full((2, 3), np.nan), np.ones(3))


def test_maps_come_back_from_disk_bit_for_bit_or_are_refused_with_the_way_out(tmp_path):
    stitch = Stitch(random_affine(3, 4, 0), random_affine(4, 3, 1))
    stitch.save(str(tmp_path / "joint"))
    for kept, read in zip(stitch, Stitch.load(str(tmp_path / "joint")), strict=True):
        assert torch.equal(kept.weight, read.weight) and torch.equal(kept.bias, read.bias)
    with pytest.raises(ValueError, match="give one of its folders: joint"):
        Stitch.load(tmp_path)
    with pytest.raises(ValueError, match=r"there is no map .*nowhere"):
        Stitch.load(tmp_path / "nowhere")
    Stitch(stitch.up, stitch.up).save(tmp_path / "twice")
    with pytest.raises(ValueError, match=r"\[3, 4\] and \[3, 4\], which do not lead back"):
        Stitch.load(tmp_path / "twice")
    (tmp_path / "joint" / "down.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="is damaged"):
        Stitch.load(tmp_path / "joint")


def test_quality_from_moments_is_that_of_the_tokens():
    a, b = tokens(6, 9, noise=1.0)
    stitch = Stitch(random_affine(6, 9, 0), random_affine(9, 6, 1))
    exact = Stitch(*(Affine(part.weight.double(), part.bias.double()) for part in stitch))
    quality = stitch_quality(stitch, moments_of((a, b)), alpha=0.7)
    images = (b, exact.up(a)), (a, exact.down(b)), (a, exact.down(exact.up(a))), (b, exact.up(exact.down(b)))
    for part, (x, x_hat) in zip(quality[:4], images, strict=True):
        whole = Variance().update(x, x_hat).result()
        assert (part.r2, part.mse) == pytest.approx((whole.explained_variance, whole.mse), rel=1e-9)
        each = [Variance().update(x[:, [i]], x_hat[:, [i]]).result() for i in range(x.shape[1])]
        np.testing.assert_allclose(part.r2_by_dim, [one.explained_variance for one in each], rtol=1e-9)
    assert quality.loss == pytest.approx(float(batch_loss(exact, a, b, 0.7)), rel=1e-9)


def test_rank_and_condition_of_a_map():
    weight = torch.zeros(6, 9)
    weight[:4, :4] = torch.eye(4)
    stitch = Stitch(Affine(weight, torch.zeros(9)), Affine(torch.eye(9)[:, :6] * 3, torch.zeros(6)))
    quality = stitch_quality(stitch, moments_of(tokens(6, 9)))
    assert quality.effective_rank == pytest.approx((4, 6)) and quality.condition == (np.inf, pytest.approx(1))


# -- moments ----------------------------------------------------------------------------------------------------------


def test_moments_of_a_stream_are_those_of_the_tokens(tmp_path):
    a, b = tokens(6, 9, ROWS + 500, noise=0.1)
    found = MomentStream().extend([([a[:700]], [b[:700]]), ([a[700:]], [b[700:]])]).pair()
    joined = np.cov(torch.cat([a, b], 1).T.numpy(), bias=True)
    same(found, Moments(len(a), a.mean(0).numpy(), b.mean(0).numpy(), joined[:6, :6], joined[:6, 6:], joined[6:, 6:]))
    found.save(tmp_path / "moments.safetensors")
    for got, wanted in zip(Moments.load(tmp_path / "moments.safetensors"), found, strict=True):
        np.testing.assert_array_equal(got, wanted)
    same(pooled([moments_of((a[part], b[part])) for part in (slice(0, 10), slice(10, 3000), slice(3000, None))]), found)


def test_products_in_float32_cost_little_even_far_from_zero():
    a, b = (x + 100 for x in tokens(6, 9, 3 * ROWS, noise=0.1))
    single, double = moments_of((a.float(), b.float())), moments_of((a, b))
    scale = np.sqrt(np.outer(np.diag(double.aa), np.diag(double.bb)))
    assert np.abs((single.ab - double.ab) / scale).max() < 2e-6


def test_moments_refuse_what_is_not_aligned_or_finite():
    a, b = tokens(6, 9, 20)
    with pytest.raises(ValueError, match="same rows"):
        MomentStream().add([a], [b[1:]])
    with pytest.raises(ValueError, match="NaN or infinity"):
        MomentStream().add([a], [torch.where(b == b[3, 4], torch.inf, b)])
    with pytest.raises(ValueError, match="wide after"):
        MomentStream().add([a, a], [b]).add([a], [b])
    for ask in (MomentStream.pair, similarity):
        with pytest.raises(ValueError, match="no activations"):
            ask(MomentStream())


def test_nested_moments_are_those_of_the_first_parts():
    a, b = tokens(6, 9, 40 * 8)

    def nested(count: int, halvings: int) -> list[Moments]:
        blocks = np.arange(count * 8).reshape(count, 8)
        return nested_moments(lambda some: [([a[some.ravel()]], [b[some.ravel()]])], blocks, halvings)

    parts = nested(40, 3)
    assert [part.tokens for part in parts] == [5 * 8, 10 * 8, 20 * 8, 40 * 8] and len(nested(2, 5)) == 2
    for part in parts:
        same(part, moments_of((a[: part.tokens], b[: part.tokens])))


# -- similarity -------------------------------------------------------------------------------------------------------


def rows(n: int = 2000, d: int = 12, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_normal((n, d)) * np.arange(1, d + 1) ** -1.0 @ rng.standard_normal((d, d)) + 1)


def alike(a: Tensor, b: Tensor, kept: float = 0.99) -> np.ndarray:
    """SVCCA and CKA."""
    return np.array(similarity(MomentStream().add([a], [b]), kept))[:, 0, 0]


def half_alike() -> tuple[Tensor, Tensor]:
    a = rows()
    return a, torch.cat([a[:, :6] + 0.5 * rows(seed=1)[:, :6], rows(seed=2)[:, :10]], 1)


def test_similarities_are_those_of_singular_vectors_and_gram_matrices_of_the_data():
    a, b = half_alike()
    kept = []
    for x in (a, b):
        left, values, _ = np.linalg.svd((x - x.mean(0)).numpy(), full_matrices=False)
        kept.append(left[:, : 1 + np.searchsorted(np.cumsum(values**2) / np.sum(values**2), 0.9)])
    left, right = ((x - x.mean(0)) @ (x - x.mean(0)).T for x in (a, b))
    svcca, cka = np.cos(subspace_angles(*kept)).mean(), float((left * right).sum() / (left.norm() * right.norm()))
    assert 0.2 < svcca < 0.9 and 0.1 < cka < 0.9 and kept[0].shape != kept[1].shape
    np.testing.assert_allclose(alike(a, b, 0.9), [svcca, cka], rtol=1e-6)


def test_turning_and_scaling_change_nothing():
    a, b = half_alike()
    turn, found = torch.linalg.qr(rows(16, 16, seed=3))[0], alike(a, b)
    np.testing.assert_allclose(alike(a, 7 * b @ turn - 4), found, rtol=1e-6)
    np.testing.assert_allclose(alike(b, a), found, rtol=1e-6)
    np.testing.assert_allclose(alike(a, 3 * a + 1), 1, atol=1e-6)
    assert (alike(a, rows(seed=9)) < 0.2).all() and np.isnan(alike(a, torch.ones(2000, 3))).all()


def test_one_pass_compares_all_points():
    layers_a, layers_b = [rows(seed=1), rows(seed=2)], [rows(seed=2) * 2, rows(d=5, seed=3), rows(seed=1)]
    stream = MomentStream()
    for part in (slice(0, 300), slice(300, 2000)):
        stream.add([x[part] for x in layers_a], [x[part] for x in layers_b])
    found = np.array(similarity(stream))
    for i, a in enumerate(layers_a):
        for j, b in enumerate(layers_b):
            np.testing.assert_allclose(found[:, i, j], alike(a, b), rtol=1e-9)
    assert found.argmax(2).tolist() == [[2, 0], [2, 0]] and stream.tokens == 2000


def test_deep_and_wide_models_are_compared_from_the_stitched_layer_alone():
    assert all_layers(128, 256, 2, 4) == (True, 8 * (2 * 128**2 + 4 * 256**2 + 8 * 128 * 256))
    assert all_layers(4096, 4096, 32, 32) == (False, 8 * (1 + 32 + 32) * 4096**2)
