"""Maps between two models: composition, files, and quality from moments."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from heredity.metrics import Variance
from heredity.stitch.affine import Affine, Stitch, stitch_quality
from heredity.stitch.fit import batch_loss
from heredity.stitch.moments import Moments, MomentStream


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


def moments_of(rows: tuple[torch.Tensor, torch.Tensor]) -> Moments:
    return MomentStream().add([rows[0]], [rows[1]]).pair(0, 0)


def test_one_map_after_another_is_one_map():
    first, second = random_affine(5, 7, 0), random_affine(7, 3, 1)
    x = torch.randn(4, 2, 5, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(first.then(second)(x), second(first(x)))


def test_maps_come_back_from_disk_bit_for_bit(tmp_path):
    stitch = Stitch(random_affine(5, 7, 0), random_affine(7, 5, 1))
    stitch.save(tmp_path / "stitch")
    back = Stitch.load(tmp_path / "stitch")
    assert all(
        torch.equal(x, y) for kept, read in zip(stitch, back, strict=True) for x, y in zip(kept, read, strict=True)
    )
    (tmp_path / "stitch" / "down.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="is damaged"):
        Stitch.load(tmp_path / "stitch")


def test_a_map_must_be_finite():
    with pytest.raises(ValueError, match="NaN or infinity"):
        Affine.of(np.full((2, 3), np.nan), np.ones(3))


def test_quality_from_moments_is_that_of_the_tokens():
    a, b = tokens(6, 9, noise=1.0)
    stitch = Stitch(random_affine(6, 9, 0), random_affine(9, 6, 1))
    exact = Stitch(*(Affine(part.weight.double(), part.bias.double()) for part in stitch))
    quality = stitch_quality(stitch, moments_of((a, b)), alpha=0.7)
    images = (b, exact.up(a)), (a, exact.down(b)), (a, exact.down(exact.up(a))), (b, exact.up(exact.down(b)))
    for part, (x, x_hat) in zip(quality[:4], images, strict=True):
        whole = Variance().update(x, x_hat).result()
        assert part.r2 == pytest.approx(whole.explained_variance, rel=1e-9)
        assert part.mse == pytest.approx(whole.mse, rel=1e-9)
        each = [Variance().update(x[:, [i]], x_hat[:, [i]]).result() for i in range(x.shape[1])]
        dims = [one.explained_variance for one in each]
        np.testing.assert_allclose(part.r2_by_dim, dims, rtol=1e-9)
    assert quality.loss == pytest.approx(float(batch_loss(exact, a, b, 0.7)), rel=1e-9)


def test_rank_and_condition_of_a_map():
    weight = torch.zeros(6, 9)
    weight[:4, :4] = torch.eye(4)
    stitch = Stitch(Affine(weight, torch.zeros(9)), Affine(torch.eye(9)[:, :6] * 3, torch.zeros(6)))
    quality = stitch_quality(stitch, moments_of(tokens(6, 9)))
    assert quality.effective_rank == pytest.approx((4, 6))
    assert quality.condition[0] == float("inf") and quality.condition[1] == pytest.approx(1)


def test_a_folder_that_holds_no_pair_of_maps_is_refused_with_the_way_out(tmp_path):
    stitch = Stitch(Affine(torch.ones(3, 4), torch.zeros(4)), Affine(torch.ones(4, 3), torch.zeros(3)))
    stitch.save(str(tmp_path / "joint"))
    assert torch.equal(Stitch.load(str(tmp_path / "joint")).up.weight, stitch.up.weight)
    with pytest.raises(ValueError, match="give one of its folders: joint"):
        Stitch.load(tmp_path)
    with pytest.raises(ValueError, match=r"there is no map .*nowhere"):
        Stitch.load(tmp_path / "nowhere")
    Stitch(stitch.up, stitch.up).save(tmp_path / "twice")
    with pytest.raises(ValueError, match=r"\[3, 4\] and \[3, 4\], which do not lead back"):
        Stitch.load(tmp_path / "twice")
