"""Gradients against autograd, sparse against dense, resumes against runs in one go, and planted worlds."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from heredity.kernels import paths, screens
from heredity.kernels import step as kernels
from heredity.sae.model import SAE, new_sae
from heredity.sae.step import BANDWIDTH, BETAS, NAMES, Rule, Weights, adam_rows, dense_step, entry_step, sparse_step
from heredity.sae.train import (
    Step,
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
from worlds import NO_GPU


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # problems of this size gain nothing from more
    yield
    torch.set_num_threads(before)


ACTIVATIONS = ("relu", "topk", "batchtopk", "jumprelu")
RULES = [Rule("relu", 0, 0.01), Rule("topk", 6, 0.0), Rule("batchtopk", 6, 0.0), Rule("batchtopk", 6, 0.0, 99.0)]
RULES += [Rule("jumprelu", l0=0.02)]


def started_weights(jumps: bool = False) -> tuple[Weights, Weights, Weights, Tensor]:
    """Weights of 200 features that read 48 coordinates, moments of zero and ages of zero."""
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    w_enc, w_dec = draw(200, 48) / 48**0.5, torch.nn.functional.normalize(draw(200, 48))
    log_threshold = torch.linspace(-4, 0.3, 200) if jumps else torch.zeros(0)
    weights = Weights(w_enc, 0.1 * draw(200) - 1, w_dec, 0.1 * draw(48), log_threshold)
    return weights, Weights.zeros_like(weights), Weights.zeros_like(weights), torch.zeros(200, dtype=torch.int32)


def some_x(n: int = 160, seed: int = 3) -> Tensor:
    return torch.randn(n, 48, generator=torch.Generator().manual_seed(seed))


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


def autograd_gradients(weights: Weights, raw: Tensor, rule: Rule, mean: Tensor) -> dict[str, Tensor]:
    """Gradients of the written-out loss in float64; raw is not centered, so b_dec's both roles count."""
    trained = {name: getattr(weights, name).double().requires_grad_() for name in NAMES}
    pre_acts = (raw.double() - mean.double() - trained["b_dec"]) @ trained["w_enc"].T + trained["b_enc"]
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
@pytest.mark.parametrize("subtract_mean", [False, True])
def test_gradients_are_those_of_float64_autograd(rule, step, subtract_mean):
    """Read off Adam's first moment after one step from zero, which is 1 - beta1 of the gradient it was given."""
    weights, first, second, ages = started_weights(rule.activation == "jumprelu")
    mean = torch.linspace(-0.5, 0.5, 48) if subtract_mean else torch.zeros(48)
    expected, unit = autograd_gradients(weights, some_x(), rule, mean), weights.w_dec.double()
    expected["w_dec"] -= (expected["w_dec"] * unit).sum(1, keepdim=True) * unit
    target = some_x() - weights.b_dec
    given = (target - mean, rule, 0.0, 1, target) if subtract_mean else (target, rule, 0.0, 1)
    step(weights, first, second, ages + 1, *given)
    for name, gradient in expected.items():
        found = getattr(first, name).double() / (1 - BETAS[0])
        error = float((found - gradient).abs().max() / gradient.abs().max())
        assert error <= 2e-6, (name, error)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("fast", [sparse_step, entry_step])
def test_sparse_and_dense_steps_agree(rule, fast):
    runs = []
    for step in (dense_step, fast):
        *trained, ages = started_weights(rule.activation == "jumprelu")
        ages[:7] = 50
        for number in range(1, 4):
            ages += 1
            outcome = step(*trained, ages, some_x(seed=number), rule, 1e-3, number)
        runs.append((*trained, outcome))
    (dense, *dense_moments, dense_outcome), (sparse, *sparse_moments, sparse_outcome) = runs
    for name in NAMES:
        torch.testing.assert_close(getattr(sparse, name), getattr(dense, name), rtol=1e-4, atol=2e-5)
        for moments, others in zip(sparse_moments, dense_moments, strict=True):
            torch.testing.assert_close(getattr(moments, name), getattr(others, name), rtol=1e-3, atol=1e-7)
    assert torch.equal(sparse_outcome.fired, dense_outcome.fired)
    assert sparse_outcome[:3] == pytest.approx(dense_outcome[:3], rel=1e-4)
    torch.testing.assert_close(sparse.w_dec.norm(dim=1), torch.ones(200))


@pytest.mark.parametrize("rule", RULES)
def test_steps_have_the_same_bits_whichever_product_screened_them(rule, monkeypatch):
    """So a training that was begun on one machine goes on with another's fastest product as if nothing had happened."""
    costs, runs = paths.costs_of(48, len(started_weights()[0].b_enc)), []
    for kind in get_args(screens.Kind):
        if getattr(costs, kind) == np.inf:
            continue
        monkeypatch.setenv(paths.FORCE, kind)
        *trained, ages = started_weights(rule.activation == "jumprelu")
        for number in range(1, 4):
            ages += 1
            outcome = sparse_step(*trained, ages, some_x(seed=number), rule, 1e-3, number)
        runs.append((trained, outcome))
    for trained, outcome in runs:
        assert torch.equal(outcome.fired, runs[0][1].fired) and outcome[:3] == runs[0][1][:3]
        for tensors, others in zip(trained, runs[0][0], strict=True):
            assert all(torch.equal(getattr(tensors, name), getattr(others, name)) for name in NAMES)


@pytest.mark.parametrize("unit_norm", [False, True])
def test_adam_is_torchs_adam_and_the_kernel_is_the_reference(unit_norm):
    weight = started_weights()[0].w_dec
    expected = torch.nn.Parameter(weight.clone())
    optimizer = torch.optim.Adam([expected], lr=0.01, betas=(0.9, 0.9999), eps=1e-12)
    plain, fused = ((weight.clone(), torch.zeros_like(weight), torch.zeros_like(weight)) for _ in range(2))
    for step in range(1, 4):
        grad, ages = some_x(200, step), torch.full((200,), step, dtype=torch.int32)
        expected.grad = grad - ((grad * expected.data).sum(1, keepdim=True) * expected.data if unit_norm else 0)
        optimizer.step()
        if unit_norm:
            expected.data /= expected.data.norm(dim=1, keepdim=True)
        adam_rows(*plain, grad, ages, 0.01, unit_norm)
        rows: Any = tuple(part.numpy() for part in fused)
        kernels.adam_rows(rows, grad.clone().numpy(), 0.01, ages.numpy(), unit_norm)
    for found in (plain, fused):
        torch.testing.assert_close(found[0], expected.data, rtol=1e-4, atol=1e-6)


def world(scale: float = 0.01) -> tuple[Tensor, Tensor]:
    """Tokens with 4 of the 48 planted unit directions each, tiny and far from the origin."""
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    directions = torch.nn.functional.normalize(draw(48, 32))
    active = torch.rand(40_000, 48, generator=torch.Generator().manual_seed(1)) < 4 / 48
    return scale * ((active * torch.exp(0.3 * draw(40_000, 48))) @ directions + 3 * draw(32)), directions


X, DIRECTIONS = world()


def batch(step: int) -> Tensor:
    return X[step % 78 * 512 : (step % 78 + 1) * 512]


def explained(sae: SAE) -> float:
    return 1 - float((X - sae(X)).square().sum() / (X - X.mean(0)).square().sum())


def settings(activation, **changes) -> SAEConfig:
    return SAEConfig(**{"activation": activation, "lr": 5e-3, "k": 4, "l0": (3.0, 5.0), "decay": True} | changes)


def fresh(activation: Any, d_sae: int = 96) -> SAE:
    return new_sae(32, d_sae, activation, 4, torch.Generator().manual_seed(1))


def trained(sae: SAE, steps: int, seed: int = 0, given: dict[str, Any] | None = None, batches=batch, **options):
    """The rows of a training; given: settings."""
    return train(sae, batches, settings(sae.activation, **(given or {})), steps, seed, **options)


def assert_equal_saes(one: SAE, other: SAE) -> None:
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_training_finds_planted_directions_in_tiny_activations_far_from_the_origin(activation):
    sae = fresh(activation)
    rows = trained(sae, 600)
    assert explained(sae) > (0.55 if activation == "relu" else 0.8)  # L1 shrinks activations
    closest = (DIRECTIONS @ sae.W_dec.T).max(1).values
    assert float((closest > 0.9).float().mean()) > 0.8
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(96))
    l0 = float((sae.encode(X) > 0).sum(1).float().mean())
    assert 2.5 < l0 < 5.5
    assert rows[-1].mse == pytest.approx(float((X - sae(X)).square().mean()), rel=0.3)
    if activation == "relu":
        raw = rows[-1].l1_coefficient
        assert raw == rows[-100].l1_coefficient
        assert rows[-1].loss == pytest.approx(rows[-1].mse + raw * rows[-1].l1)
    if activation == "batchtopk":
        assert float(sae.threshold) > 0 and l0 == pytest.approx(4, rel=0.1), "the threshold keeps about k features"


@pytest.mark.parametrize("activation", ["relu", "batchtopk", "jumprelu"])
def test_a_resumed_training_has_the_bits_of_one_that_was_never_stopped(tmp_path: Path, activation):
    def run(**options: Any) -> tuple[SAE, list[Step]]:
        sae = fresh(activation, 400)
        sae.b_enc[:20] = -1e3  # dead until resampled
        given = {"resample_every": 12, "subtract_mean": activation == "relu"}
        return sae, trained(sae, 60, 3, given, continued=True, **options)

    whole, rows = run()
    assert sum(row.resampled for row in rows) > 0, "the case should cover resampling"
    for stop in (1, 13, 24, 40):

        def save_and_die(state: TrainingState, stop=stop) -> None:
            if state.step == stop:
                state.save(tmp_path)
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(checkpoint=save_and_die, checkpoint_seconds=0)
        resumed, again = run(state=TrainingState.load(tmp_path))
        assert again == rows
        assert_equal_saes(whole, resumed)


def test_watching_and_progress_see_every_step_and_change_no_bit():
    alone, watched, spare = (fresh("topk", 64) for _ in range(3))
    steps, errors, seen = [], [], []

    def watch(state: TrainingState) -> None:
        steps.append(state.step)
        write_back(state, spare)
        errors.append(explained(spare))

    rows = trained(alone, 40)
    assert trained(watched, 40, watch=watch, progress=lambda *of: seen.append(of)) == rows
    assert seen == [(step, 40) for step in range(1, 41)]
    assert steps == list(range(41)) and errors[-1] > errors[0] + 0.1
    assert_equal_saes(alone, watched)
    assert_equal_saes(alone, spare)


def test_a_state_survives_the_disk_bit_for_bit_and_serves_its_own_training_only(tmp_path: Path):
    kept: list[TrainingState] = []

    def keep(state: TrainingState) -> None:
        kept[:] = [copy.deepcopy(state)]
        state.save(tmp_path)

    sae = fresh("relu", 64)
    trained(sae, 7, checkpoint=keep, checkpoint_seconds=0)
    loaded = TrainingState.load(tmp_path)
    assert loaded.rows == kept[0].rows and len(loaded.rows) == 6
    for name in ("identity", "scale", "log_l1", "l1_error", "l1_sum", "threshold", "l0"):
        assert getattr(loaded, name) == getattr(kept[0], name), name
    assert torch.equal(loaded.second.w_dec, kept[0].second.w_dec)
    assert torch.equal(loaded.ages, kept[0].ages) and torch.equal(loaded.last_fired, kept[0].last_fired)
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]
    with pytest.raises(ValueError, match=r"another training \(lr, seed differ\)"):
        trained(sae, 7, 1, {"lr": 0.1}, state=loaded)


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_a_damaged_state_is_refused_by_name(tmp_path: Path, damage):
    started().save(tmp_path)
    path = tmp_path / "state.safetensors"
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes({"flipped": content, "cut": content[:-100], "empty": b""}[damage])
    with pytest.raises(ValueError, match=r"state\.safetensors: .* is damaged; delete it"):
        TrainingState.load(tmp_path)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_scale_and_unit_of_the_activations_do_not_matter(activation):
    """Training on c x gives the SAE of x with biases times c: the fold is exact up to rounding."""
    made = []
    for factor in (1.0, 1024.0):
        sae = fresh(activation)
        made.append((sae, trained(sae, 40, batches=lambda step, factor=factor: 100 * factor * batch(step))[-1]))
    (small, small_row), (large, large_row) = made
    torch.testing.assert_close(large.W_dec, small.W_dec, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(large.b_dec, 1024 * small.b_dec, rtol=1e-4, atol=1e-2)
    assert large_row.mse == pytest.approx(1024**2 * small_row.mse, rel=1e-4)
    if activation == "relu":
        assert large_row.l1_coefficient == pytest.approx(1024 * small_row.l1_coefficient, rel=1e-4)
        assert large_row.normalized_l1_coefficient == pytest.approx(small_row.normalized_l1_coefficient, rel=1e-4)


@pytest.mark.parametrize("subtract_mean", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_folding_there_and_back_keeps_a_parents_sae(activation, subtract_mean):
    """With a learning rate of next to nothing, a continued training gives back the SAE that it got."""
    parent = fresh(activation)
    trained(parent, 30)
    child = copy.deepcopy(parent)
    trained(child, 3, 0, {"lr": 1e-20, "subtract_mean": subtract_mean}, continued=True, l1_coefficient=1e-4)
    for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
        torch.testing.assert_close(getattr(child, name), getattr(parent, name), rtol=1e-5, atol=1e-7)


def test_continuing_starts_from_the_parents_quality_and_a_given_l1_coefficient_is_kept():
    parent = fresh("relu")
    before = trained(parent, 400)[-1]
    child = copy.deepcopy(parent)
    after = trained(child, 50, 1, continued=True, l1_coefficient=before.l1_coefficient)
    assert after[0].l1_coefficient == pytest.approx(before.l1_coefficient)
    assert after[0].mse == pytest.approx(before.mse, rel=0.2)
    assert float((child.W_dec * parent.W_dec).sum(1).median()) > 0.9
    rows = trained(fresh("relu"), 20, 0, {"l1_coefficient": 3e-4})
    assert {round(row.l1_coefficient or 0, 12) for row in rows} == {3e-4}


PUBLISHED = {"l1_coefficient": 3e-4, "subtract_mean": True, "encoder_start": "kaiming", "normalize": False}
PUBLISHED |= {"resample_every": 0, "lr": 1e-4, "decay": False}


def published_steps(sae: SAE, x: np.ndarray, mean: np.ndarray, steps: int) -> dict[str, np.ndarray]:
    """Steps of the first paper's SAE on raw x in numpy: its equation 1, λ on raw activations, Adam with .9 and .9999,
    unit rows of W_dec whose gradient along themselves is taken out."""
    own = {name: tensor.double().numpy().copy() for name, tensor in sae.state_dict().items()}
    moments = {name: [np.zeros_like(value), np.zeros_like(value)] for name, value in own.items()}
    n, d_in = x.shape
    for step in range(1, steps + 1):
        centered = x - mean - own["b_dec"]
        f = np.maximum(centered @ own["W_enc"] + own["b_enc"], 0)
        output = 2 * (f @ own["W_dec"] + own["b_dec"] - x) / (n * d_in)
        pre = (output @ own["W_dec"].T + 3e-4 / n) * (f > 0)
        gradients = {"W_enc": centered.T @ pre, "b_enc": pre.sum(0), "W_dec": f.T @ output}
        gradients["b_dec"] = output.sum(0) - own["W_enc"] @ pre.sum(0)
        gradients["W_dec"] -= (gradients["W_dec"] * own["W_dec"]).sum(1, keepdims=True) * own["W_dec"]
        for name, gradient in gradients.items():
            first, second = moments[name]
            first += 0.1 * (gradient - first)
            second += 0.0001 * (gradient**2 - second)
            scaled = first / (1 - 0.9**step), np.sqrt(second / (1 - 0.9999**step)) + 1e-12
            own[name] -= 1e-4 * scaled[0] / scaled[1]
        own["W_dec"] /= np.linalg.norm(own["W_dec"], axis=1, keepdims=True)
    return own


def test_the_sae_as_published_takes_the_steps_of_a_plain_reference():
    sae = new_sae(32, 96, "relu", None, torch.Generator().manual_seed(1), "kaiming")
    assert float(sae.W_enc.abs().max()) == pytest.approx(32**-0.5, rel=0.01) and not bool(sae.b_enc.any())
    assert float((sae.W_enc.T * sae.W_dec).sum(1).abs().max()) < 0.5, "drawn apart from the decoder"
    x, reference = 100 * X[:512], copy.deepcopy(sae)  # of the size that a model's activations have
    rows = trained(sae, 3, 0, PUBLISHED, batches=lambda step: x)
    reference.b_dec.copy_(geometric_median(torch.cat([x] * 3)))
    expected, mean = published_steps(reference, x.double().numpy(), x.double().mean(0).numpy(), 3), x.mean(0)
    for name in ("W_enc", "W_dec", "b_dec"):
        error = np.abs(getattr(sae, name).numpy() - expected[name])
        assert np.quantile(error, 0.999) < 1e-6, (name, error.max())
    f = np.maximum((x.double() - mean.double()).numpy() - expected["b_dec"], -np.inf) @ expected["W_enc"]
    x_hat = np.maximum(f + expected["b_enc"], 0) @ expected["W_dec"] + expected["b_dec"]
    np.testing.assert_allclose(sae(x).numpy(), x_hat, rtol=1e-3, atol=1e-3)  # the mean is folded into b_enc
    assert rows[0].l0 > 96 / 4, "b_enc starts at 0"
    assert rows[0].loss == pytest.approx(rows[0].mse + 3e-4 * rows[0].l1)
    normalized = trained(copy.deepcopy(reference), 1, 0, PUBLISHED | {"normalize": True}, batches=lambda step: x)[0]
    assert normalized.l1_coefficient == pytest.approx(3e-4), "the same loss of raw activations, scaled or not"
    assert normalized.loss == pytest.approx(rows[0].loss, rel=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_subtracted_mean_and_an_untied_encoder_find_the_planted_directions_too(activation):
    """Near the origin: twice the mean of a world far from it, once by itself and once as b_dec, leaves nothing else."""
    start = "transpose" if activation == "relu" else "kaiming"
    sae, far = new_sae(32, 96, activation, 4, torch.Generator().manual_seed(1), start), 0.97 * X.mean(0)
    given = {"subtract_mean": True, "encoder_start": start}
    trained(sae, 600, 0, given, batches=lambda step: batch(step) - far)
    sae.b_dec.add_(far)
    assert explained(sae) > (0.55 if activation == "relu" else 0.8)


def test_no_feature_is_resampled_where_none_shall_be():
    for every, resampled in ((12, True), (0, False)):
        sae = fresh("relu", 400)
        sae.b_enc[:20] = -1e3
        rows = trained(sae, 60, 3, {"resample_every": every}, continued=True)
        assert any(row.resampled for row in rows) == resampled


@pytest.mark.parametrize(("activation", "message"), [("jumprelu", "jumprelu's window"), ("relu", "l1_coefficient")])
def test_raw_activations_are_refused_where_a_constant_needs_their_unit(activation, message):
    with pytest.raises(ValueError, match=message):
        SAEConfig(activation=activation, normalize=False)


def started(steps: int = 0) -> TrainingState:
    """A state that has taken some steps and changed nothing."""
    identity = {"activation": "topk", "k": 4, "steps": 100}
    state = start(fresh("topk", 64), batch, identity, continued=False)
    state.rows = [None] * steps  # type: ignore[list-item]
    return state


def pool_of(state: TrainingState) -> Tensor:
    """What resampling picks from after 20 steps, every 40."""
    return torch.cat([batch(18), batch(19)]) * state.scale - state.weights.b_dec


def test_dead_features_are_resampled_as_described():
    state, dead = started(20), torch.isin(torch.arange(64), torch.tensor([3, 10]))
    state.second.w_dec += 1
    state.ages += 20
    before = copy.deepcopy(state.weights)
    assert resample(state, dead, batch, Rule("topk", 4), 40, seed=0) == 2
    directions, pool = state.weights.w_dec[dead], torch.nn.functional.normalize(pool_of(state))
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(2))
    norm = 0.2 * before.w_enc[~dead].norm(dim=1).mean()
    torch.testing.assert_close(state.weights.w_enc[dead], norm * directions)
    torch.testing.assert_close((directions @ pool.T).max(1).values, torch.ones(2))
    assert state.weights.b_enc[dead].tolist() == [0, 0]
    assert float(state.second.w_dec[dead].abs().sum()) == 0 and state.ages[dead].tolist() == [0, 0]
    for name in ("w_enc", "w_dec"):
        assert torch.equal(getattr(state.weights, name)[~dead], getattr(before, name)[~dead])


def test_a_resampled_relu_feature_fires_on_inputs_of_its_direction_only():
    state, dead = started(20), torch.arange(64) < 30
    assert resample(state, dead, batch, Rule("relu"), 40, seed=0) == 30
    active = pool_of(state) @ state.weights.w_enc[dead].T + state.weights.b_enc[dead] > 0
    assert bool(active.any(0).all()), "each fires somewhere"
    assert float(active.float().mean()) < 0.25, "and seldom, where b_enc = 0 makes it about half"


def test_resampling_prefers_badly_reconstructed_inputs():
    state, hard = started(1), torch.full((1, 32), 5.0)
    easy = state.weights.b_dec.repeat(500, 1) / state.scale
    resample(state, torch.arange(64) == 7, lambda step: torch.cat([easy, hard]), Rule("topk", 4), 1, seed=0)
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


@pytest.mark.parametrize(
    ("step", "steps", "decay", "continued", "share"),
    [
        *((step, 100, False, False, 1) for step in (1, 50, 100)),
        (1, 1000, False, True, 1 / 20),
        (80, 100, True, False, 1),
        (100, 100, True, False, 1 / 20),
    ],
)
def test_the_learning_rate_is_constant_unless_asked(step, steps, decay, continued, share):
    assert learning_rate(SAEConfig(lr=1e-3, decay=decay), step, steps, continued) == pytest.approx(1e-3 * share)


def test_bad_input_is_refused_with_a_way_out():
    sae = fresh("topk", 64)
    for batches, message in (
        (lambda step: torch.full((64, 32), math.nan), "NaN or infinite"),
        (lambda step: batch(step) if step < 5 else batch(step) * math.inf, "NaN or infinite"),
        (lambda step: torch.ones(64, 32), "constant"),
    ):
        with pytest.raises(ValueError, match=message):
            trained(copy.deepcopy(sae), 9, batches=batches)
    sae.W_dec *= 2
    with pytest.raises(ValueError, match="decoder rows have norms"):
        trained(sae, 3, continued=True)


@pytest.mark.gpu
@NO_GPU
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_gpu_trains_the_same_sae(activation):
    """But for near ties, which part after a few steps."""
    found = []
    for device in ("cpu", "cuda"):
        sae = fresh(activation, 400).to(device)
        rows = trained(sae, 20, batches=lambda step, device=device: batch(step).to(device))
        found.append((sae.W_dec.cpu(), rows[-1]))
    (rows, last), (others, other) = found
    assert float((rows * others).sum(1).median()) > 0.9999
    assert (last.mse, last.l0) == pytest.approx((other.mse, other.l0), rel=0.01)
    assert last.dead == pytest.approx(other.dead, abs=4)
