"""Maps between two models: what they are on disk, and that fits find the map that was planted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from heredity.metrics import explained_variance, mse
from heredity.stitch.adam import adam_flops, batch_loss, fit_by_adam
from heredity.stitch.affine import Affine, Stitch
from heredity.stitch.fit import fit
from heredity.stitch.map_quality import stitch_quality
from heredity.stitch.moments import ROWS, Moments, MomentStream


def tokens(d_a: int, d_b: int, n: int = 3000, noise: float = 0.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """a of a falling spectrum about a mean that is not 0, and b = an affine image of it plus white noise; float64."""
    rng = np.random.default_rng(seed)
    spectrum = np.arange(1, d_a + 1) ** -0.5
    a = rng.standard_normal((n, d_a)) * spectrum @ np.random.default_rng(1).standard_normal((d_a, d_a)) + 3
    b = a @ planted(d_a, d_b).numpy() + np.linspace(-2, 2, d_b) + noise * rng.standard_normal((n, d_b))
    return torch.from_numpy(a), torch.from_numpy(b)


def planted(d_a: int, d_b: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(2).standard_normal((d_a, d_b)))


def random_affine(d_in: int, d_out: int, seed: int) -> Affine:
    generator = torch.Generator().manual_seed(seed)
    return Affine(torch.randn(d_in, d_out, generator=generator), torch.randn(d_out, generator=generator))


def test_one_map_after_another_is_one_map():
    first, second = random_affine(5, 7, 0), random_affine(7, 3, 1)
    x = torch.randn(4, 2, 5, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(first.then(second)(x), second(first(x)))
    with pytest.raises(ValueError, match="width 7 cannot be followed by one from width 5"):
        first.then(first)


def test_maps_come_back_from_disk_bit_for_bit(tmp_path):
    stitch = Stitch(random_affine(5, 7, 0), random_affine(7, 5, 1))
    stitch.save(tmp_path / "stitch")
    back = Stitch.load(tmp_path / "stitch")
    assert all(
        torch.equal(x, y) for kept, read in zip(stitch, back, strict=True) for x, y in zip(kept, read, strict=True)
    )
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="is damaged"):
        Affine.load(tmp_path / "bad.safetensors")


def test_a_map_must_be_finite_and_fit():
    with pytest.raises(ValueError, match="do not fit"):
        Affine.of(np.ones((2, 3)), np.ones(2))
    with pytest.raises(ValueError, match="NaN or infinity"):
        Affine.of(np.full((2, 3), np.nan), np.ones(3))


def test_moments_of_a_stream_are_those_of_the_tokens(tmp_path):
    a, b = tokens(6, 9, ROWS + 500, noise=0.1)
    found = Moments.of([(a[:700], b[:700]), (a[700:], b[700:])])
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
    single, double = Moments.of([(a.float(), b.float())]), Moments.of([(a, b)])
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


@pytest.mark.parametrize("method", ["ridge", "joint"])
@pytest.mark.parametrize("d_b", [12, 20])
def test_an_exact_affine_image_is_recovered(method, d_b):
    a, b = tokens(12, d_b)
    found = fit(Moments.of([(a, b)]), method, ridge=1e-11)
    torch.testing.assert_close(found.stitch.up.weight, planted(12, d_b).float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.stitch.up(a.float()), b.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.stitch.down(b.float()), a.float(), rtol=1e-4, atol=1e-4)
    quality = stitch_quality(found.stitch, Moments.of([tokens(12, d_b, seed=5)]))
    for part in quality[:4]:
        assert part.r2 == pytest.approx(1, abs=1e-6)


def test_with_noise_r2_is_what_it_must_be():
    a, b = tokens(12, 20, 20_000, noise=2.0)
    noisy = fit(Moments.of([(a, b)]), "ridge").stitch
    quality = stitch_quality(noisy, Moments.of([tokens(12, 20, 20_000, noise=2.0, seed=9)]))
    spread = (a @ planted(12, 20)).var(0).numpy()
    np.testing.assert_allclose(quality.up.r2_by_dim, spread / (spread + 4), atol=0.01)
    assert quality.up.mse == pytest.approx(4, rel=0.02)


def test_procrustes_finds_a_rotation_and_its_scale():
    a, _ = tokens(8, 8)
    turn = torch.linalg.qr(torch.randn(13, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0][:8]
    b = 2.5 * a @ turn + 7
    moments = Moments.of([(a, b)])
    scaled, rigid = (fit(moments, "procrustes", scale=scale).stitch for scale in (True, False))
    torch.testing.assert_close(scaled.up.weight, 2.5 * turn.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rigid.up.weight @ rigid.up.weight.T, torch.eye(8), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scaled.down(scaled.up(a.float())), a.float(), rtol=1e-4, atol=1e-4)
    assert stitch_quality(scaled, moments).condition == pytest.approx((1, 1), rel=1e-4)
    with pytest.raises(ValueError, match="swap the models"):
        fit(moments.swapped(), "procrustes")


def test_held_out_tokens_choose_the_ridge():
    few, many = (Moments.of([tokens(30, 40, n, noise=20.0, seed=n)]) for n in (45, 4000))
    chosen = fit(few, held_out=many)
    assert chosen.ridge[0] == 1e-2
    tried = [stitch_quality(fit(few, ridge=ridge).stitch, many).up.mse for ridge in (1e-8, 1e-2)]
    assert stitch_quality(chosen.stitch, many).up.mse == pytest.approx(tried[1]) and tried[1] < tried[0]


def test_quality_from_moments_is_that_of_the_tokens():
    a, b = tokens(6, 9, noise=1.0)
    stitch = Stitch(random_affine(6, 9, 0), random_affine(9, 6, 1))
    exact = Stitch(*(Affine(part.weight.double(), part.bias.double()) for part in stitch))
    quality = stitch_quality(stitch, Moments.of([(a, b)]), alpha=0.7)
    images = (b, exact.up(a)), (a, exact.down(b)), (a, exact.down(exact.up(a))), (b, exact.up(exact.down(b)))
    for part, (x, x_hat) in zip(quality[:4], images, strict=True):
        assert part.r2 == pytest.approx(explained_variance(x, x_hat), rel=1e-9)
        assert part.mse == pytest.approx(mse(x, x_hat), rel=1e-9)
        dims = [explained_variance(x[:, [i]], x_hat[:, [i]]) for i in range(x.shape[1])]
        np.testing.assert_allclose(part.r2_by_dim, dims, rtol=1e-9)
    assert quality.loss == pytest.approx(float(batch_loss(exact, a, b, 0.7)), rel=1e-9)


def test_rank_and_condition_of_a_map():
    weight = torch.zeros(6, 9)
    weight[:4, :4] = torch.eye(4)
    stitch = Stitch(Affine(weight, torch.zeros(9)), Affine(torch.eye(9)[:, :6] * 3, torch.zeros(6)))
    quality = stitch_quality(stitch, Moments.of([tokens(6, 9)]))
    assert quality.effective_rank == pytest.approx((4, 6))
    assert quality.condition[0] == float("inf") and quality.condition[1] == pytest.approx(1)


def test_fits_say_what_they_cannot_fit():
    a, b = tokens(6, 9, 100)
    moments = Moments.of([(a, b)])
    with pytest.raises(ValueError, match="not known"):
        fit(moments, "least squares")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must not be negative"):
        fit(moments, ridge=-1.0)
    with pytest.raises(ValueError, match="activations of B are constant"):
        fit(Moments.of([(a, torch.ones_like(b))]))
    with pytest.raises(ValueError, match="raise ridge"):
        fit(moments, "joint", ridge=0.0)


def test_ten_products_a_row():
    a, b = (x.float() for x in tokens(6, 9, 64))
    with FlopCounterMode(display=False) as counter:
        fit_by_adam(lambda i: (a[32 * i : 32 * i + 32], b[32 * i : 32 * i + 32]), 2, epochs=3)
    assert counter.get_total_flops() == adam_flops(64 * 3, 6, 9)


def test_adam_finds_what_moments_find_given_time():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(512, 4, generator=generator)
    b = a @ planted(4, 6).float() + 0.3 * torch.randn(512, 6, generator=generator)
    found = fit_by_adam(lambda i: (a, b), 1, epochs=500, lr=3e-2)
    moments = Moments.of([(a, b)])
    least = stitch_quality(fit(moments, "joint").stitch, moments).loss
    assert found.tokens == 512 * 500
    assert found.losses[0] > 2 * least
    assert least * 0.9999 <= found.losses[-1] < least * 1.01


def test_a_folder_that_holds_no_pair_of_maps_is_refused_with_the_way_out(tmp_path):
    stitch = Stitch(Affine(torch.ones(3, 4), torch.zeros(4)), Affine(torch.ones(4, 3), torch.zeros(3)))
    stitch.save(str(tmp_path / "joint"))
    assert torch.equal(Stitch.load(str(tmp_path / "joint")).up.weight, stitch.up.weight)
    with pytest.raises(ValueError, match="several fits; give one of its folders: joint"):
        Stitch.load(tmp_path)
    with pytest.raises(ValueError, match=r"there is no map .*nowhere"):
        Stitch.load(tmp_path / "nowhere")
    Stitch(stitch.up, stitch.up).save(tmp_path / "twice")
    with pytest.raises(ValueError, match=r"\[3, 4\] and \[3, 4\], which do not lead back"):
        Stitch.load(tmp_path / "twice")
