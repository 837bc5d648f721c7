"""Training an SAE: from fresh weights or on from a parent's, killed and resumed without a trace.

The training runs in a normalized space, x times one scalar such that the mean of ‖x − mean x‖² is d_in, because
activations of small models can be tiny and a learning rate means nothing without a scale. Homogeneity takes the
result back exactly: with x' = c x, biases and thresholds are divided by c, the matrices stay, activations shrink by c,
and λ' in normalized units is λ = λ' / c in raw ones.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from heredity.kernels.processors import keep_large_buffers
from heredity.sae.checkpoint import Step, TrainingState
from heredity.sae.gradients import Outcome, Rule
from heredity.sae.initialize import start
from heredity.sae.model import SAE
from heredity.sae.penalty import calibrate, first_penalty
from heredity.sae.resample import POOL_BATCHES, resample
from heredity.sae.step import SPARSE_BELOW, SPARSE_BELOW_ON_GPU, dense_step, sparse_step
from heredity.study import SAEConfig

Batches = Callable[[int], Tensor]
"""The batch [n, d_in] of a step, counted from 0; the same step gives the same batch forever."""

WARM_UP = 0.02
"""Share of the steps of a continued training over which the learning rate rises, because Adam starts anew."""

DECAY = 0.2
"""Share of the steps over which the learning rate falls to 0 when the settings ask for it."""

RESAMPLE_UNTIL = 0.5
"""No feature is resampled after this share of the steps, so that the last ones have time to settle."""

WINDOW_VECTORS = 150_000
"""Least vectors on which a feature must have been silent to count as dead, unless the settings say how often to
resample: on fewer, a rare feature looks dead, and resampling throws away what it has learned."""

THRESHOLD_RATE = 0.01
"""batchtopk: weight of a new step in the running threshold."""


def train(
    sae: SAE,
    batches: Batches,
    config: SAEConfig,
    steps: int,
    seed: int,
    *,
    continued: bool = False,
    l1_coefficient: float | None = None,
    state: TrainingState | None = None,
    checkpoint: Callable[[TrainingState], None] | None = None,
    checkpoint_seconds: float = 60.0,
    progress: Callable[[int, int], None] | None = None,
    watch: Callable[[TrainingState], None] | None = None,
) -> list[Step]:
    """Train the SAE in place, on the device it is on; returns all steps, those before a resume included.

    batches: batches(step) for 0 <= step < steps, float [n, d_in], raw activations. The last few are kept, so a batch
        must not be overwritten by the next one.
    steps: in all, those before a resume included.
    config: lr, decay, l0, l1_coefficient, calibration and resample_every are used; sizes and the activation are the
        SAE's own.
    seed: of the resampling.
    continued: keep the weights of `sae` (a parent's, or an earlier run's) and warm the learning rate up, instead of
        setting b_dec to the geometric median of the first batches and, for relu, b_enc (see `start`).
    l1_coefficient: λ in raw units that calibration begins with, such as the parent's (relu: of L1, jumprelu: of L0).
        `config.l1_coefficient` wins over it and is not calibrated.
    state: go on from here; the weights of `sae` are then ignored. The result has the same bits as without the stop.
    checkpoint: called with the state between two steps, every `checkpoint_seconds`; the state is changed by the next
        step, so save it (`state.save`) or copy it.
    watch: reads the state before the first step and after every one; after a resume those since the checkpoint again.

    On Linux the process keeps the thresholds set by `keep_large_buffers` when the SAE is on a CPU.

    Raises ValueError for a state of another training, for decoder rows that are not of unit norm,
    and for activations or a loss that are not finite.
    """
    identity = _identity(sae, config, steps, seed, continued, l1_coefficient)
    recent = _Recent(batches)
    if sae.W_dec.device.type == "cpu":
        keep_large_buffers()
    if state is None:
        state = start(sae, recent, identity, continued)
        penalty = first_penalty(sae.activation, config, sae.d_in, state.scale, l1_coefficient)
        state.log_l1 = None if penalty is None else math.log(penalty)
    elif state.identity != identity:
        other = ", ".join(key for key in identity if state.identity.get(key) != identity[key])
        raise ValueError(f"the saved state is of another training ({other} differ); delete it or restore the settings")
    saved, watch = time.monotonic(), watch or (lambda _: None)
    watch(state)
    for step in range(state.step, steps):
        _take_step(state, recent, config, steps, seed, continued)
        watch(state)
        if progress is not None:
            progress(step + 1, steps)
        if checkpoint is not None and step + 1 < steps and time.monotonic() - saved >= checkpoint_seconds:
            checkpoint(state)
            saved = time.monotonic()
    write_back(state, sae)
    return list(state.rows)


class _Recent:
    """Batches by number, the latest of them kept: resampling looks back at them."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches
        self.kept: dict[int, Tensor] = {}

    def __call__(self, step: int) -> Tensor:
        if step not in self.kept:
            x = self.batches(step)
            while len(self.kept) > POOL_BATCHES:
                del self.kept[min(self.kept)]
            self.kept[step] = x
        return self.kept[step]


def write_back(state: TrainingState, sae: SAE) -> None:
    """Put the state's weights into the SAE, in the units of the raw activations."""
    weights = state.weights
    sae.W_enc.copy_(weights.w_enc.T)
    sae.W_dec.copy_(weights.w_dec)
    sae.b_enc.copy_(weights.b_enc / state.scale)
    sae.b_dec.copy_(weights.b_dec / state.scale)
    if sae.activation == "jumprelu" and sae.threshold is not None:
        sae.threshold.copy_(weights.log_threshold.exp() / state.scale)
    elif sae.threshold is not None:
        sae.threshold.fill_(state.threshold / state.scale)


def _take_step(
    state: TrainingState, batches: Batches, config: SAEConfig, steps: int, seed: int, continued: bool
) -> None:
    number = state.step + 1
    every = config.resample_every or max(1, steps // 10, -(-2 * WINDOW_VECTORS // len(batches(state.step))))
    window = max(1, every // 2)
    rule = _rule(state)
    resampled = 0
    if state.step > 0 and state.step % every == 0 and number <= RESAMPLE_UNTIL * steps:
        dead = number - state.last_fired > window
        resampled = resample(state, dead, batches, rule, every, seed)
    x = normalized(batches(state.step), state)
    state.ages += 1
    limit = SPARSE_BELOW if x.device.type == "cpu" else SPARSE_BELOW_ON_GPU
    take = sparse_step if _share_active(state, rule) < limit else dense_step
    lr = learning_rate(config, number, steps, continued)
    outcome = take(state.weights, state.first, state.second, state.ages, x, rule, lr, number)
    if not math.isfinite(outcome.mse):
        raise ValueError(
            f"the loss of step {number} is {outcome.mse}; lower lr={config.lr} or look for huge activations"
        )
    state.last_fired[outcome.fired] = number
    state.l0 = outcome.l0
    if rule.activation == "batchtopk" and math.isfinite(outcome.least):
        rate = THRESHOLD_RATE if state.threshold else 1.0
        state.threshold += rate * (outcome.least - state.threshold)
    dead_now = int((number - state.last_fired >= window).sum())
    state.rows.append(_raw_row(state, outcome, number, dead_now, resampled))
    calibrate(state, config, steps)


def normalized(x: Tensor, state: TrainingState) -> Tensor:
    """Raw x [n, d_in] in the training's space, centered by b_dec, contiguous float32."""
    b_dec = state.weights.b_dec
    return (x.detach().to(b_dec.device, torch.float32) * state.scale).sub_(b_dec).contiguous()


def learning_rate(config: SAEConfig, number: int, steps: int, continued: bool) -> float:
    """Learning rate of a step, counted from 1: constant, with the warm-up of a continued training and the decay."""
    rate = config.lr
    if continued:
        rate *= min(1.0, number / max(1.0, WARM_UP * steps))
    if config.decay:
        rate *= min(1.0, (steps - number + 1) / max(1.0, DECAY * steps))
    return rate


def _rule(state: TrainingState) -> Rule:
    penalty = 0.0 if state.log_l1 is None else math.exp(state.log_l1)
    activation, k = state.identity["activation"], state.identity["k"] or 0
    l1, l0 = (0.0, penalty) if activation == "jumprelu" else (penalty, 0.0)
    return Rule(activation, k, l1, state.threshold, l0)


def _share_active(state: TrainingState, rule: Rule) -> float:
    active = rule.k or state.l0
    return active / len(state.ages) if math.isfinite(active) else 1.0


def _raw_row(state: TrainingState, outcome: Outcome, number: int, dead: int, resampled: int) -> Step:
    mse, l1 = outcome.mse / state.scale**2, outcome.l1 / state.scale
    normalized_l1 = None if state.log_l1 is None else math.exp(state.log_l1)
    jumps = state.identity["activation"] == "jumprelu"
    coefficient = None if normalized_l1 is None else normalized_l1 / state.scale ** (2 if jumps else 1)
    loss = mse + (0.0 if coefficient is None else coefficient * (outcome.l0 if jumps else l1))
    return Step(number, loss, mse, l1, outcome.l0, dead, coefficient, normalized_l1, resampled)


def _identity(
    sae: SAE, config: SAEConfig, steps: int, seed: int, continued: bool, l1_coefficient: float | None
) -> dict[str, object]:
    sizes = {"d_in": sae.d_in, "d_sae": sae.d_sae, "activation": sae.activation, "k": sae.k}
    used = ("lr", "decay", "l0", "l1_coefficient", "calibration", "resample_every")
    settings = {name: value for name, value in config.model_dump(mode="json").items() if name in used}
    return (
        sizes
        | settings
        | {"steps": steps, "seed": seed, "continued": continued, "first_l1_coefficient": l1_coefficient}
    )
