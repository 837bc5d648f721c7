"""Gradients against autograd, sparse against dense, resumes against runs in one go, and planted worlds."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from heredity.kernels import step as kernels
from heredity.sae.model import SAE, new_sae
from heredity.sae.step import (
    BANDWIDTH,
    BETAS,
    NAMES,
    Outcome,
    Rule,
    Weights,
    adam_rows,
    dense_step,
    entry_step,
    sparse_step,
)
from heredity.sae.train import (
    TrainingState,
    geometric_median,
    learning_rate,
    normalizing_scale,
    resample,
    start,
    train,
    write_back,
)
from heredity.study import SAEConfig


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # problems of this size gain nothing from more
    yield
    torch.set_num_threads(before)


ACTIVATIONS = ("relu", "topk", "batchtopk", "jumprelu")
RULES = [Rule("relu", 0, 0.01), Rule("topk", 6, 0.0), Rule("batchtopk", 6, 0.0), Rule("batchtopk", 6, 0.0, 99.0)]
RULES += [Rule("jumprelu", l0=0.02)]


def some_weights(d_in: int = 48, d_sae: int = 200, bias: float = -1.0, seed: int = 0, jumps: bool = False) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(d_sae, d_in, generator=generator)
    w_dec = torch.randn(d_sae, d_in, generator=generator)
    return Weights(
        w_enc=rows / d_in**0.5,
        b_enc=torch.full((d_sae,), bias) + 0.1 * torch.randn(d_sae, generator=generator),
        w_dec=w_dec / w_dec.norm(dim=1, keepdim=True),
        b_dec=0.1 * torch.randn(d_in, generator=generator),
        log_threshold=torch.linspace(-4, 0.3, d_sae) if jumps else torch.zeros(0),
    )


def some_x(n: int = 160, d_in: int = 48, seed: int = 3) -> Tensor:
    return torch.randn(n, d_in, generator=torch.Generator().manual_seed(seed))


class Jump(torch.autograd.Function):
    """JumpReLU and its step with the derivatives that the source defines for a rectangle kernel."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        ctx.save_for_backward(z, threshold)
        return z * (z > threshold), (z > threshold).double()

    @staticmethod
    def backward(ctx: Any, by_value: Tensor, by_step: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        z, threshold = ctx.saved_tensors
        kernel = ((z - threshold).abs() < BANDWIDTH / 2) & (z > 0)
        by_threshold = -(threshold * by_value + by_step) * kernel / BANDWIDTH
        return by_value * (z > threshold), by_threshold.sum(0)


def autograd_gradients(weights: Weights, raw: Tensor, rule: Rule) -> dict[str, Tensor]:
    """Gradients of the written-out loss in float64; raw is not centered, so b_dec's both roles count."""
    trained = {name: getattr(weights, name).double().requires_grad_() for name in NAMES}
    pre_acts = (raw.double() - trained["b_dec"]) @ trained["w_enc"].T + trained["b_enc"]
    penalty = torch.zeros(())
    if rule.activation == "jumprelu":
        acts, steps = Jump.apply(pre_acts, trained["log_threshold"].exp())
        penalty = rule.l0 * steps.sum(1).mean()
    else:
        acts = pre_acts.relu() * (pre_acts >= least_kept(pre_acts.detach(), rule))
        penalty = rule.l1 * acts.sum(1).mean()
    x_hat = acts @ trained["w_dec"] + trained["b_dec"]
    loss = (x_hat - raw.double()).square().mean() + penalty
    loss.backward()
    return {name: tensor.grad for name, tensor in trained.items() if tensor.grad is not None}


def least_kept(pre_acts: Tensor, rule: Rule) -> Tensor:
    if rule.activation == "topk":
        return pre_acts.topk(rule.k, dim=1).values[:, -1:]
    if rule.activation == "batchtopk":
        return pre_acts.flatten().topk(rule.k * len(pre_acts)).values[-1]
    return torch.zeros(())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("step", [dense_step, sparse_step, entry_step])
def test_gradients_are_those_of_float64_autograd(rule: Rule, step: Callable[..., Outcome]):
    """Read off Adam's first moment after one step from zero, which is 1 - beta1 of the gradient it was given."""
    weights, raw = some_weights(jumps=rule.activation == "jumprelu"), some_x()
    first, second = Weights.zeros_like(weights), Weights.zeros_like(weights)
    ages = torch.ones(len(weights.w_enc), dtype=torch.int32)
    expected = autograd_gradients(weights, raw, rule)
    unit = weights.w_dec.double()
    expected["w_dec"] -= (expected["w_dec"] * unit).sum(1, keepdim=True) * unit
    step(weights, first, second, ages, raw - weights.b_dec, rule, 0.0, 1)
    for name, gradient in expected.items():
        found = getattr(first, name).double() / (1 - BETAS[0])
        error = float((found - gradient).abs().max() / gradient.abs().max())
        assert error <= 2e-6, (name, error)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("fast", [sparse_step, entry_step])
def test_sparse_and_dense_steps_agree(rule: Rule, fast: Callable[..., Outcome]):
    runs = []
    for step in (dense_step, fast):
        weights = some_weights(jumps=rule.activation == "jumprelu")
        first, second = Weights.zeros_like(weights), Weights.zeros_like(weights)
        ages = torch.zeros(200, dtype=torch.int32)
        ages[:7] = 50
        outcomes = []
        for number in range(1, 4):
            ages += 1
            outcomes.append(step(weights, first, second, ages, some_x(seed=number), rule, 1e-3, number))
        runs.append((weights, first, second, outcomes[-1]))
    (dense, *dense_moments, dense_outcome), (sparse, *sparse_moments, sparse_outcome) = runs
    for name in NAMES:
        torch.testing.assert_close(getattr(sparse, name), getattr(dense, name), rtol=1e-4, atol=2e-5)
        for moments, others in zip(sparse_moments, dense_moments, strict=True):
            torch.testing.assert_close(getattr(moments, name), getattr(others, name), rtol=1e-3, atol=1e-7)
    assert torch.equal(sparse_outcome.fired, dense_outcome.fired)
    for name in ("mse", "l1", "l0"):
        assert getattr(sparse_outcome, name) == pytest.approx(getattr(dense_outcome, name), rel=1e-4)
    torch.testing.assert_close(sparse.w_dec.norm(dim=1), torch.ones(200))


@pytest.mark.parametrize("unit_norm", [False, True])
def test_adam_is_torchs_adam_and_the_kernel_is_the_reference(unit_norm: bool):
    weight = some_weights().w_dec
    grads = [some_x(200, 48, seed) for seed in range(3)]
    expected = torch.nn.Parameter(weight.clone())
    optimizer = torch.optim.Adam([expected], lr=0.01, betas=(0.9, 0.9999), eps=1e-12)
    plain = (weight.clone(), torch.zeros_like(weight), torch.zeros_like(weight))
    fused = (weight.clone(), torch.zeros_like(weight), torch.zeros_like(weight))
    for step, grad in enumerate(grads, 1):
        ages = torch.full((200,), step, dtype=torch.int32)
        along = (grad * expected.data).sum(1, keepdim=True) * expected.data if unit_norm else 0
        expected.grad = grad - along
        optimizer.step()
        if unit_norm:
            expected.data /= expected.data.norm(dim=1, keepdim=True)
        adam_rows(*plain, grad, ages, 0.01, unit_norm)
        rows = (fused[0].numpy(), fused[1].numpy(), fused[2].numpy())
        kernels.adam_rows(rows, grad.clone().numpy(), 0.01, ages.numpy(), unit_norm)
    torch.testing.assert_close(plain[0], expected.data, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(fused[0], expected.data, rtol=1e-4, atol=1e-6)


def world(d_in: int = 32, features: int = 48, n: int = 40_000, scale: float = 0.01) -> tuple[Tensor, Tensor]:
    """Tokens with 4 of the planted unit directions each, tiny and far from the origin."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(features, d_in, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    active = torch.rand(n, features, generator=generator) < 4 / features
    size = torch.exp(0.3 * torch.randn(n, features, generator=generator))
    x = (active * size) @ directions + 3 * torch.randn(d_in, generator=generator)
    return scale * x, directions


def batches_of(x: Tensor, size: int = 512):
    count = len(x) // size
    return lambda step: x[step % count * size : (step % count + 1) * size]


def explained(sae: SAE, x: Tensor) -> float:
    return 1 - float((x - sae(x)).square().sum() / (x - x.mean(0)).square().sum())


def settings(activation, **changes) -> SAEConfig:
    return SAEConfig(**{"activation": activation, "lr": 5e-3, "k": 4, "l0": (3.0, 5.0), "decay": True} | changes)


def fresh(activation: Any, d_sae: int = 96) -> SAE:
    return new_sae(32, d_sae, activation, 4, torch.Generator().manual_seed(1))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_training_finds_planted_directions_in_tiny_activations_far_from_the_origin(activation):
    x, directions = world()
    sae = fresh(activation)
    rows = train(sae, batches_of(x), settings(activation), 600, seed=0)
    test = x[-4000:]
    assert explained(sae, test) > (0.55 if activation == "relu" else 0.8)  # L1 shrinks activations
    closest = (directions @ sae.W_dec.T).max(1).values
    assert float((closest > 0.9).float().mean()) > 0.8
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(96))
    l0 = float((sae.encode(test) > 0).sum(1).float().mean())
    assert 2.5 < l0 < 5.5
    assert rows[-1].mse == pytest.approx(float((test - sae(test)).square().mean()), rel=0.3)
    if activation == "relu":
        raw = rows[-1].l1_coefficient
        assert raw is not None and raw == rows[-100].l1_coefficient
        assert rows[-1].loss == pytest.approx(rows[-1].mse + raw * rows[-1].l1)


def test_a_resumed_training_has_the_bits_of_one_that_was_never_stopped(tmp_path: Path):
    x, _ = world()
    for activation in ("relu", "batchtopk", "jumprelu"):
        config = settings(activation, resample_every=12)

        def with_dead(activation: Any = activation) -> SAE:
            sae = fresh(activation, 400)
            sae.b_enc[:20] = -1e3  # dead until resampled
            return sae

        whole = with_dead()
        rows = train(whole, batches_of(x), config, 60, seed=3, continued=True)
        assert sum(row.resampled for row in rows) > 0, "the case should cover resampling"
        for stop in (1, 13, 24, 40):
            folder = tmp_path / f"{activation}-{stop}"

            def save_and_die(state: TrainingState, stop=stop, folder=folder) -> None:
                if state.step == stop:
                    state.save(folder)
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                killed = {"checkpoint": save_and_die, "checkpoint_seconds": 0}
                train(with_dead(), batches_of(x), config, 60, 3, continued=True, **killed)
            resumed = with_dead()
            again = train(resumed, batches_of(x), config, 60, 3, continued=True, state=TrainingState.load(folder))
            assert again == rows
            for name, tensor in whole.state_dict().items():
                assert torch.equal(tensor, resumed.state_dict()[name]), (activation, stop, name)


def test_watching_and_progress_see_every_step_and_change_no_bit():
    x, _ = world()
    alone, watched, spare = (fresh("topk", 64) for _ in range(3))
    steps, errors, seen = [], [], []

    def watch(state: TrainingState) -> None:
        steps.append(state.step)
        write_back(state, spare)
        errors.append(explained(spare, x))

    rows = train(alone, batches_of(x), settings("topk"), 40, seed=0)
    again = train(watched, batches_of(x), settings("topk"), 40, 0, watch=watch, progress=lambda *of: seen.append(of))
    assert again == rows and seen == [(step, 40) for step in range(1, 41)]
    assert steps == list(range(41)) and errors[-1] > errors[0] + 0.1
    for name, tensor in alone.state_dict().items():
        assert torch.equal(tensor, watched.state_dict()[name]) and torch.equal(tensor, spare.state_dict()[name]), name


def test_a_state_survives_the_disk_bit_for_bit(tmp_path: Path):
    x, _ = world()
    kept: list[TrainingState] = []

    def keep(state: TrainingState) -> None:
        kept[:] = [copy.deepcopy(state)]
        state.save(tmp_path)

    sae = fresh("relu", 64)
    train(sae, batches_of(x), settings("relu"), 7, 0, checkpoint=keep, checkpoint_seconds=0)
    loaded = TrainingState.load(tmp_path)
    assert loaded.rows == kept[0].rows and len(loaded.rows) == 6
    for name in ("identity", "scale", "log_l1", "l1_error", "l1_sum", "threshold", "l0"):
        assert getattr(loaded, name) == getattr(kept[0], name), name
    assert torch.equal(loaded.second.w_dec, kept[0].second.w_dec)
    assert torch.equal(loaded.ages, kept[0].ages) and torch.equal(loaded.last_fired, kept[0].last_fired)
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_a_damaged_state_is_refused_by_name(tmp_path: Path, damage: str):
    started().save(tmp_path)
    path = tmp_path / "state.safetensors"
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes({"flipped": content, "cut": content[:-100], "empty": b""}[damage])
    with pytest.raises(ValueError, match=r"state\.safetensors is damaged; delete it"):
        TrainingState.load(tmp_path)


def test_a_state_of_another_training_is_refused(tmp_path: Path):
    x, _ = world()
    sae = fresh("topk", 64)
    train(sae, batches_of(x), settings("topk"), 3, 0, checkpoint=lambda s: s.save(tmp_path), checkpoint_seconds=0)
    with pytest.raises(ValueError, match=r"another training \(lr, seed differ\)"):
        train(sae, batches_of(x), settings("topk", lr=0.1), 3, 1, state=TrainingState.load(tmp_path))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_scale_and_unit_of_the_activations_do_not_matter(activation):
    """Training on c x gives the SAE of x with biases times c: the fold is exact up to rounding."""
    x, _ = world(scale=1.0)
    saes = []
    for factor in (1.0, 1024.0):
        sae = fresh(activation)
        rows = train(sae, batches_of(factor * x), settings(activation), 40, seed=0)
        saes.append((sae, rows[-1]))
    (small, small_row), (large, large_row) = saes
    torch.testing.assert_close(large.W_dec, small.W_dec, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(large.b_dec, 1024 * small.b_dec, rtol=1e-4, atol=1e-2)
    assert large_row.mse == pytest.approx(1024**2 * small_row.mse, rel=1e-4)
    if activation == "relu":
        assert large_row.l1_coefficient == pytest.approx(1024 * small_row.l1_coefficient, rel=1e-4)
        assert large_row.normalized_l1_coefficient == pytest.approx(small_row.normalized_l1_coefficient, rel=1e-4)


def test_folding_there_and_back_keeps_a_parents_sae():
    """With a learning rate of next to nothing, a continued training gives back the SAE that it got."""
    x, _ = world()
    for activation in ACTIVATIONS:
        parent = fresh(activation)
        train(parent, batches_of(x), settings(activation), 30, seed=0)
        child = copy.deepcopy(parent)
        train(child, batches_of(x), settings(activation, lr=1e-20), 3, 0, continued=True, l1_coefficient=1e-4)
        for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
            torch.testing.assert_close(getattr(child, name), getattr(parent, name), rtol=1e-5, atol=1e-7)


def test_continuing_starts_from_the_parents_quality_and_l1_coefficient():
    x, _ = world()
    parent = fresh("relu")
    before = train(parent, batches_of(x), settings("relu"), 400, seed=0)
    child, raw = copy.deepcopy(parent), before[-1].l1_coefficient
    after = train(child, batches_of(x), settings("relu"), 50, 1, continued=True, l1_coefficient=raw)
    assert after[0].l1_coefficient == pytest.approx(before[-1].l1_coefficient)
    assert after[0].mse == pytest.approx(before[-1].mse, rel=0.2)
    assert float((child.W_dec * parent.W_dec).sum(1).median()) > 0.9


def test_a_given_l1_coefficient_is_kept():
    x, _ = world()
    sae = fresh("relu")
    rows = train(sae, batches_of(x), settings("relu", l1_coefficient=3e-4), 20, seed=0)
    assert {round(row.l1_coefficient or 0, 12) for row in rows} == {3e-4}


def test_the_threshold_of_batchtopk_keeps_about_k_features_at_inference():
    x, _ = world()
    sae = fresh("batchtopk")
    train(sae, batches_of(x), settings("batchtopk"), 300, seed=0)
    assert sae.threshold is not None and float(sae.threshold) > 0
    assert float((sae.encode(x[-4000:]) > 0).sum(1).float().mean()) == pytest.approx(4, rel=0.1)


def started(steps: int = 0) -> TrainingState:
    """A state that has taken some steps and changed nothing."""
    identity = {"activation": "topk", "k": 4, "steps": 100}
    state = start(fresh("topk", 64), batches_of(world()[0]), identity, continued=False)
    state.rows = [None] * steps  # type: ignore[list-item]
    return state


def test_dead_features_are_resampled_as_described():
    x, _ = world()
    state = started(20)
    state.second.w_dec += 1
    state.ages += 20
    dead = torch.zeros(64, dtype=torch.bool)
    dead[[3, 10]] = True
    before = copy.deepcopy(state.weights)
    rule = Rule("topk", 4, 0.0)
    assert resample(state, dead, batches_of(x), rule, 40, seed=0) == 2
    directions = state.weights.w_dec[dead]
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(2))
    norm = 0.2 * before.w_enc[~dead].norm(dim=1).mean()
    torch.testing.assert_close(state.weights.w_enc[dead], norm * directions)
    pool = torch.cat([batches_of(x)(step) for step in (18, 19)]) * state.scale - state.weights.b_dec
    closest = (directions @ (pool / pool.norm(dim=1, keepdim=True)).T).max(1).values
    torch.testing.assert_close(closest, torch.ones(2))
    assert state.weights.b_enc[dead].tolist() == [0, 0]
    assert float(state.second.w_dec[dead].abs().sum()) == 0 and state.ages[dead].tolist() == [0, 0]
    for name in ("w_enc", "w_dec"):
        assert torch.equal(getattr(state.weights, name)[~dead], getattr(before, name)[~dead])


def test_a_resampled_relu_feature_fires_on_inputs_of_its_direction_only():
    x, _ = world()
    state = started(20)
    dead = torch.zeros(64, dtype=torch.bool)
    dead[:30] = True
    assert resample(state, dead, batches_of(x), Rule("relu", None, 0.0), 40, seed=0) == 30
    pool = torch.cat([batches_of(x)(step) for step in (18, 19)]) * state.scale - state.weights.b_dec
    pre_acts = pool @ state.weights.w_enc[dead].T + state.weights.b_enc[dead]
    assert bool((pre_acts > 0).any(0).all()), "each fires somewhere"
    assert float((pre_acts > 0).float().mean()) < 0.25, "and seldom, where b_enc = 0 makes it about half"


def test_resampling_prefers_badly_reconstructed_inputs():
    state = started(1)
    easy = state.weights.b_dec.repeat(500, 1) / state.scale
    hard = torch.full((1, 32), 5.0)
    dead = torch.arange(64) == 7
    resample(state, dead, lambda step: torch.cat([easy, hard]), Rule("topk", 4, 0.0), 1, seed=0)
    expected = hard[0] * state.scale - state.weights.b_dec
    torch.testing.assert_close(state.weights.w_dec[7], expected / expected.norm())


def test_the_geometric_median_withstands_outliers():
    x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    x[:100] += 1000
    point = geometric_median(x)
    assert float(point.norm()) < 1.0
    cost = (x - point).norm(dim=1).sum()
    for shift in 0.05 * torch.eye(3):
        assert (x - point - shift).norm(dim=1).sum() > cost


def test_the_scale_makes_the_variance_of_a_vector_its_width():
    x = 0.003 * torch.randn(5000, 16, generator=torch.Generator().manual_seed(0)) + 2
    scaled = x * normalizing_scale(x)
    assert float((scaled - scaled.mean(0)).square().sum(1).mean()) == pytest.approx(16, rel=1e-4)


def test_the_learning_rate_is_constant_unless_asked():
    config = SAEConfig(lr=1e-3)
    assert {learning_rate(config, n, 100, continued=False) for n in (1, 50, 100)} == {1e-3}
    assert learning_rate(config, 1, 1000, continued=True) == pytest.approx(1e-3 / 20)
    decayed = SAEConfig(lr=1e-3, decay=True)
    assert learning_rate(decayed, 80, 100, continued=False) == 1e-3
    assert learning_rate(decayed, 100, 100, continued=False) == pytest.approx(1e-3 / 20)


def test_bad_input_is_refused_with_a_way_out():
    x, _ = world()
    config, sae, good = settings("topk"), fresh("topk", 64), batches_of(x)
    for batches, message in (
        (lambda step: torch.full((64, 32), math.nan), "NaN or infinite"),
        (lambda step: good(step) if step < 5 else good(step) * math.inf, "NaN or infinite"),
        (lambda step: torch.ones(64, 32), "constant"),
    ):
        with pytest.raises(ValueError, match=message):
            train(copy.deepcopy(sae), batches, config, 9, 0)
    sae.W_dec *= 2
    with pytest.raises(ValueError, match="decoder rows have norms"):
        train(sae, good, config, 3, 0, continued=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_takes_the_same_steps():
    x, _ = world()
    found = []
    for device in ("cpu", "cuda"):
        sae = fresh("topk").to(device)
        train(sae, batches_of(x.to(device)), settings("topk"), 20, 0)
        found.append(sae.W_dec.cpu())
    np.testing.assert_allclose(*found, rtol=1e-2, atol=1e-3)
