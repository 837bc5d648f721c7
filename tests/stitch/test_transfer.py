"""A transferred SAE is the source's seen through the maps, number for number; calibrated, it fits the target better."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from heredity.sae.evaluate import quality
from heredity.sae.formats import read_sae, write_sae
from heredity.sae.model import SAE, Activation, new_sae
from heredity.stitch.affine import Affine, Stitch
from heredity.stitch.transfer import (
    SILENT,
    calibrate,
    folding,
    match_density,
    repaired,
    revived,
    same_selection,
    trainable,
    transfer_direction,
    transfer_probe,
    transfer_sae,
    turned,
)
from heredity.study import SAEConfig
from stitch.test_affine import moments_of, random

SMALL, LARGE, FEATURES, K = 12, 20, 48, 5
EVERY: list[Activation] = ["relu", "topk", "batchtopk", "jumprelu"]


def maps() -> tuple[Affine, Affine]:
    """Two unrelated maps: the identity does not need them to invert each other."""
    up = Affine(random(SMALL, LARGE, seed=1) / SMALL**0.5, random(LARGE, seed=2))
    return up, Affine(random(LARGE, SMALL, seed=3) / LARGE**0.5, random(SMALL, seed=4))


def source(activation: Activation) -> SAE:
    sae = new_sae(SMALL, FEATURES, activation, K, torch.Generator().manual_seed(5))
    sae.b_dec.copy_(3 + random(SMALL, seed=6))
    sae.b_enc.copy_(0.3 * random(FEATURES, seed=7))
    sae.W_dec *= 0.5 + torch.rand(FEATURES, 1, generator=torch.Generator().manual_seed(8))
    if sae.threshold is not None:
        sae.threshold += 0.8 if activation == "batchtopk" else torch.linspace(0.2, 1.5, FEATURES)
    return sae


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert float((found - expected).norm() / expected.norm()) < tolerance


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("activation", EVERY)
def test_the_transferred_sae_is_up_of_sae_of_down(activation: Activation, normalize: bool, tmp_path: Path):
    sae, (up, down), x = source(activation), maps(), 2 * random(300, LARGE, seed=9)
    made = transfer_sae(sae, up, down, normalize)
    acts = sae.encode(down(x))
    assert 1 < float((acts > 0).sum(1).float().mean()) < FEATURES / 2 + 2
    if normalize:
        torch.testing.assert_close(made.W_dec.norm(dim=1), torch.ones(FEATURES))
        if activation == "topk":
            return  # others may be the largest, see below
        assert made.activation == ("relu" if activation == "relu" else "jumprelu")
        assert same_selection(made, transfer_sae(sae, up, down), [x]) == 1
    else:
        assert made.activation == activation
        close(made.encode(x), acts)
    close(made(x), up(sae(down(x))))
    write_sae(made, tmp_path, {})
    read, _ = read_sae(tmp_path)
    assert read.activation == made.activation
    close(read(x), up(sae(down(x))))


def test_unit_rows_change_what_topk_selects_unless_all_rows_are_alike():
    sae, (up, down), x = source("topk"), maps(), 2 * random(300, LARGE, seed=9)
    plain, made = transfer_sae(sae, up, down), transfer_sae(sae, up, down, normalize=True)
    assert made.k == K
    share = same_selection(plain, made, [x[:100], x[100:]])
    dense = [each.encode(x) > 0 for each in (plain, made)]
    assert share == pytest.approx(float((dense[0] & dense[1]).sum() / dense[0].sum()))
    assert 0.5 < share < 0.99
    # The features that both keep have the same part in the reconstruction.
    parts = [each.encode(x)[:, :, None] * each.W_dec for each in (plain, made)]
    both = dense[0] & dense[1]
    torch.testing.assert_close(parts[0][both], parts[1][both], rtol=1e-4, atol=1e-4)
    even = Affine(torch.eye(SMALL, LARGE), torch.zeros(LARGE))
    sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
    plain, made = (transfer_sae(sae, even, down, normalize) for normalize in (False, True))
    assert same_selection(plain, made, [x]) > 0.999


def test_directions_and_probes_read_through_the_map_and_maps_of_the_wrong_width_are_refused():
    up, down = maps()
    for wrong in ((down, up), (up, up)):
        with pytest.raises(ValueError, match=r"the SAE reads width 12, up is .* give up \[12, d_target\]"):
            transfer_sae(source("topk"), *wrong)
    v, x = random(3, SMALL, seed=1), random(50, LARGE, seed=2)
    moved = transfer_direction(v, up)
    torch.testing.assert_close(moved.norm(dim=1), torch.ones(3))
    pushed = up(random(1, SMALL, seed=3) + v) - up(random(1, SMALL, seed=3))
    torch.testing.assert_close(moved, pushed / pushed.norm(dim=1, keepdim=True), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="sends a direction to 0"):
        transfer_direction(torch.zeros(SMALL), up)
    w, c = transfer_probe(v[0], 0.7, down)
    torch.testing.assert_close(x @ w + c, down(x) @ v[0] + 0.7, rtol=1e-4, atol=1e-5)


def planted() -> tuple[SAE, Affine, Affine, Tensor, Tensor]:
    """A perfect SAE of A, and a B that lies in more dimensions than A and elsewhere than the maps say."""
    rng = np.random.default_rng(0)
    fired = rng.random((4000, FEATURES)) < 0.05
    acts = torch.from_numpy((fired * (1 + rng.random(fired.shape))).astype(np.float32))
    sae = new_sae(40, FEATURES, "jumprelu", None, torch.Generator().manual_seed(1))
    basis = torch.linalg.qr(random(FEATURES, FEATURES, seed=2)).Q[:, :40]
    sae.W_dec.copy_(basis / basis.norm(dim=1, keepdim=True))
    sae.W_enc.copy_(sae.W_dec.T)
    assert sae.threshold is not None
    sae.threshold += 0.6
    a = acts @ sae.W_dec
    truth = torch.linalg.qr(random(60, FEATURES, seed=3)).Q.T  # B's own directions fill 48 dimensions, A's 40
    b = acts @ truth + 5 + 0.05 * random(4000, 60, seed=4)
    up, down = least_squares(a, b), least_squares(b, a)
    # A bias that was fitted on other text.
    return sae, Affine(up.weight, up.bias + 0.2), down, a, b


def least_squares(x: Tensor, y: Tensor) -> Affine:
    """In float64: in float32 the solver drops directions as it sees fit."""
    solution = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1)], 1).double(), y.double()).solution.float()
    return Affine(solution[:-1], solution[-1])


def folded(silent: int | None = None) -> tuple[SAE, Tensor]:
    """That SAE as the maps carry it, a feature of it silenced, and the activations of B."""
    sae, up, down, _, b = planted()
    made = transfer_sae(sae, up, down)
    if silent is not None and made.threshold is not None:
        made.threshold[silent] = 1e6
    return made, b


def test_calibration_raises_explained_variance_without_a_change_of_codes():
    plain, b = folded()
    fit, held = b[:3000], b[3000:]
    found = [calibrate(plain, fit.split(700), refit) for refit in ("bias", "decoder")]
    before, bias, decoder = (quality(each, [held]) for each in (plain, *found))
    for each in found:
        close(each.encode(held), plain.encode(held))
    residual = (fit - found[0](fit)).mean(0)
    assert float(residual.abs().max()) < 1e-4
    assert before.explained_variance + 0.1 < bias.explained_variance < 0.95 < decoder.explained_variance


def test_the_refitted_decoder_is_the_least_squares_one_and_dead_features_keep_their_direction():
    plain, b = folded(silent=7)
    made = calibrate(plain, [b], "decoder", ridge=1e-9)
    acts = torch.cat([plain.encode(b), torch.ones(len(b), 1)], 1).double()
    live = torch.arange(FEATURES + 1) != 7
    expected = torch.linalg.lstsq(acts[:, live], b.double()).solution
    torch.testing.assert_close(made.W_dec[live[:-1]].double(), expected[:-1], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(made.b_dec.double(), expected[-1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(made.W_dec[7], plain.W_dec[7])
    with pytest.raises(ValueError, match="no vectors"):
        calibrate(plain, [])


@pytest.mark.parametrize("activation", ["relu", "batchtopk", "jumprelu"])
def test_densities_are_matched_and_weakened_features_live_again(activation: Activation):
    sae, up, down, a, b = planted()
    wanted = quality(sae, [a]).density
    made = SAE(40, FEATURES, activation, K)
    made.load_state_dict({name: part for name, part in sae.state_dict().items() if name != "threshold"}, strict=False)
    if made.threshold is not None:
        made.threshold += 0.6
    weak = transfer_sae(made, up, Affine(0.05 * down.weight, 0.05 * down.bias))
    weak.b_enc -= 0.3 if activation == "relu" else 0
    assert quality(weak, [b]).dead_share > 0.9
    repaired = match_density(weak, b, wanted)
    np.testing.assert_allclose(quality(repaired, [b]).density, wanted, atol=1.5 / len(b))
    fires = repaired.encode(b) > 0
    true = sae.encode(a) > 0
    assert float((fires & true).sum() / true.sum()) > 0.95
    with pytest.raises(ValueError, match="no thresholds"):
        match_density(transfer_sae(source("topk"), *maps()), b, wanted)


def world(large: int = LARGE) -> tuple[SAE, Tensor, Tensor]:
    """An SAE of A, activations of A, and unrelated ones of B on another scale and with another mean."""
    a = 2 + random(4000, SMALL, seed=8) * torch.linspace(0.5, 2, SMALL)
    return source("jumprelu").unit_norm(), a, 7 - 9 * random(4000, large, seed=9)


@pytest.mark.parametrize("large", [LARGE, 8])
def test_a_turned_dictionary_keeps_what_it_can(large: int):
    sae, a, b = world(large)
    moments = moments_of((a, b))
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
    torch.testing.assert_close(made.threshold, scale * sae.threshold, rtol=1e-3, atol=0)  # type: ignore[operator]
    again, other = turned(sae, moments, 3), turned(sae, moments, 4)
    assert torch.equal(again.W_dec, made.W_dec) and not torch.allclose(other.W_dec, made.W_dec, atol=0.1)


@pytest.mark.parametrize("activation", EVERY)
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
    same = Affine(torch.eye(SMALL), torch.zeros(SMALL))
    rows = transfer_sae(sae, same, same, normalize=True)
    assert rows.activation == "jumprelu"
    made = trainable(rows, SAEConfig(activation="batchtopk", k=K), x)
    assert (made.activation, made.k) == ("batchtopk", K) and torch.equal(made.W_enc, rows.W_enc)
    assert quality(made, [x]).l0 == pytest.approx(K, abs=0.01)
    assert trainable(rows, SAEConfig(activation="jumprelu"), x) is rows


def test_folding_is_exact_and_something_else_is_not():
    stitch, (sae, _, x) = Stitch(*maps()), world()
    made, rms = transfer_sae(sae, *stitch), float(x.square().mean().sqrt())
    error, other = folding(sae, made, stitch, x)
    assert error < 1e-5 and other < 0.001
    made.b_dec += rms
    made.b_enc += made.W_enc.sum(0) * rms
    assert folding(sae, made, stitch, x)[0] == pytest.approx(1, abs=1e-3), "another center, the same codes"
    made.W_enc *= -1
    assert folding(sae, made, stitch, x)[1] > 0.5


def test_an_exact_affine_image_is_explained_as_the_source_is():
    """B is A turned, scaled and moved: explained variance is the same to rounding, and better than a new SAE's."""
    sae, a, _ = world()
    sae = turned(sae, moments_of((a, a)), 1)
    turn = torch.linalg.qr(random(LARGE, SMALL, seed=1)).Q.T
    up = Affine(3 * turn, random(LARGE, seed=2))
    stitch = Stitch(up, Affine(turn.T / 3, -(up.bias @ turn.T) / 3))
    own = quality(sae, [a])
    carried, rows = (quality(transfer_sae(sae, *stitch, unit), [up(a)]) for unit in (False, True))
    assert carried.explained_variance == pytest.approx(own.explained_variance, abs=1e-4)
    assert rows.explained_variance == pytest.approx(own.explained_variance, abs=1e-4)
    assert carried.l0 == pytest.approx(own.l0, abs=1e-2) and 1 < own.l0 < FEATURES / 2


def test_a_repaired_start_explains_more_and_has_no_dead_features():
    plain, b = folded(silent=7)
    asked = []

    def batch(step: int) -> Tensor:
        asked.append(step)
        return b[(400 * step) % len(b) :][:400]

    ready, given, flops = repaired(plain, batch, 400, 300, 0)
    assert asked == list(range(SILENT // 400)) and given == 1 and flops > 0
    torch.testing.assert_close(ready.W_dec.norm(dim=1), torch.ones(FEATURES))
    before, after = (quality(each, [b]) for each in (plain, ready))
    assert after.explained_variance > before.explained_variance + 0.1 and before.density[7] == 0 < after.density[7]
    few, given, _ = repaired(plain, batch, 400, 3, 0)
    assert given == 0 and quality(few, [b]).density[7] == 0, "on few vectors a rare feature looks dead"
