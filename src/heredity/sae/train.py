"""Training an SAE: from fresh weights or on from a parent's, killed and resumed without a trace.

The training runs in a normalized space, x times one scalar such that the mean of ‖x − mean x‖² is d_in, because
activations of small models can be tiny and a learning rate means nothing without a scale. The way back is exact: with
x' = c x, biases and thresholds are divided by c, the matrices stay, activations shrink by c, and λ = λ' / c, so that a
published λ of raw activations keeps its meaning. `normalize = false` sets c = 1.
"""

from __future__ import annotations

import json
import math
import os
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial, reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from heredity.engine.ranks import ALONE, Ranks
from heredity.engine.store import flush
from heredity.errors import reading
from heredity.kernels.processors import keep_large_buffers
from heredity.kernels.torch_forms import linear, moved
from heredity.sae.model import SAE, Activation
from heredity.sae.step import (
    NAMES,
    SPARSE_BELOW,
    SPARSE_BELOW_ON_GPU,
    Outcome,
    Rule,
    Weights,
    dense_step,
    sparse_step,
    training_errors,
)
from heredity.study import SAEConfig

Batches = Callable[[int], Tensor]  # the batch [n, d_in] of a step, counted from 0; always the same for one step

DECAY = 0.2  # share of the steps over which the learning rate falls to 0 when the settings ask for it
RESAMPLE_UNTIL = 0.5  # share of the steps after which no feature is resampled, so that the last ones can settle
# Fewest vectors on which a feature must have been silent to count as dead, unless the settings say how often to
# resample: on fewer, a rare feature looks dead, and resampling throws away what it has learned.
WINDOW_VECTORS = 150_000
THRESHOLD_RATE = 0.01  # batchtopk: weight of a new step in the running threshold
FIRST_BATCHES = 4  # batches that the scale and the center are measured on
# relu, jumprelu: L0 of a fresh SAE relative to the upper end of the wanted range. Starting near the goal spares the
# hundreds of dense steps from L0 = d_sae / 2 down, and the overshoot of λ on the way.
START_L0 = 1.5
LEAST_THRESHOLD = 0.01  # jumprelu: least θ of a fresh SAE in the normalized space; its logarithm is trained
SMOOTHING = 0.1  # weight of a new step in the smoothed log L0
INTEGRAL = 4.0  # change of log λ over the calibration at a constant error of 1 (L0 off by a factor of e)
PROPORTIONAL = 1.0  # change of log λ for a change of the error by 1
SETTLED = 0.25  # the frozen log λ is the mean over this last share of the calibration
POOL_BATCHES = 8  # most batches that new directions are picked from; in a short training a twentieth of it
ENCODER_NORM = 0.2  # norm of a new encoder row relative to the mean of the living ones
# relu, jumprelu: a new feature fires above this share of its pre-activation at the input it was made from. With the
# source's 0 every new feature fires on about half of all inputs; where hundreds were dead at once, L0 rose tenfold and
# the training did not recover.
FIRING_SHARE = 0.5

# Settings that a training reads.
USED = {"lr", "decay", "l0", "l1_coefficient", "calibration", "resample_every"}
USED |= {"subtract_mean", "encoder_start", "normalize", "warm_up"}

FILE = "state.safetensors"
_GROUPS = ("weights", "first", "second")
_VECTORS = ("ages", "last_fired", "mean")
_NUMBERS = ("identity", "scale", "log_l1", "l1_error", "l1_sum", "threshold", "l0")


class Step(NamedTuple):
    """What one step of a training saw, in the units of the raw activations."""

    step: int  # counted from 1
    loss: float  # mse + λ · l1 (relu) or λ · l0 (jumprelu) with the raw λ; mse alone for topk and batchtopk
    mse: float  # mean squared error over elements
    l1: float  # mean over tokens of the sum of activations
    l0: float  # mean over tokens of the number of active features
    dead: int  # features that fired in none of the last `window` steps
    l1_coefficient: float | None  # raw λ, of l1 (relu) or of l0 (jumprelu); None for topk and batchtopk
    normalized_l1_coefficient: float | None  # λ in the units of the normalized space that the training runs in
    resampled: int  # dead features given a new direction before this step


@dataclass
class TrainingState:
    """Weights, Adam's moments and counters in the normalized space, between two steps.

    A file holds all of it: tensors, and numbers as JSON in the file's metadata, so it is replaced whole or not at all.
    """

    identity: dict[str, Any]  # sizes, settings, steps, seed: a resume checks them
    scale: float  # normalized x = raw x times this
    weights: Weights
    first: Weights  # Adam's running means of gradients
    second: Weights  # Adam's running means of squared gradients
    ages: Tensor  # int32 [d_sae]: steps since a feature's moments were zero
    last_fired: Tensor  # int64 [d_sae]: last step in which a feature was active
    mean: Tensor  # float32 [d_in]: what the encoder subtracts besides b_dec; [0] where that is nothing
    log_l1: float | None = None  # log λ in normalized units; None for topk and batchtopk
    l1_error: float = math.nan  # last smoothed log ratio of L0 to its target, the memory of λ's controller
    l1_sum: float = 0.0  # of log λ over the steps averaged for its final value
    threshold: float = 0.0  # batchtopk: running smallest kept activation
    l0: float = math.nan  # of the last step
    rows: list[Step] = field(default_factory=list)  # all steps so far

    @property
    def step(self) -> int:
        """Number of steps taken."""
        return len(self.rows)

    def save(self, folder: Path) -> None:
        """Write the state into folder, replacing the one that is there in one move."""
        folder.mkdir(parents=True, exist_ok=True)
        rows = torch.tensor([[math.nan if v is None else v for v in row] for row in self.rows], dtype=torch.float64)
        tensors = {name: getattr(self, name) for name in _VECTORS} | {"rows": rows.reshape(-1, len(Step._fields))}
        tensors |= {f"{group}.{name}": getattr(getattr(self, group), name) for group in _GROUPS for name in NAMES}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        numbers = {name: getattr(self, name) for name in _NUMBERS} | {"checksum": _checksum(tensors)}
        save_file(tensors, folder / f"{FILE}.part", metadata={"state": json.dumps(numbers)})
        flush(folder / f"{FILE}.part")  # or else a power cut could leave the name and not the content
        os.replace(folder / f"{FILE}.part", folder / FILE)

    @classmethod
    def load(cls, folder: Path, device: str | torch.device = "cpu") -> TrainingState:
        """Read what `save` wrote. Raises FileNotFoundError without a state, ValueError for a damaged one."""
        path = folder / FILE
        if not path.exists():
            raise FileNotFoundError(path)
        with reading(path, "it is damaged; delete it to train from the start"):
            with safe_open(path, framework="pt") as file:
                numbers = json.loads(file.metadata()["state"])
            tensors = load_file(path)
            if numbers.pop("checksum") != _checksum(tensors):
                raise ValueError("its checksum differs")
        tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
        groups: dict[str, Any] = {group: Weights(*(tensors[f"{group}.{name}"] for name in NAMES)) for group in _GROUPS}
        groups |= {name: tensors[name] for name in _VECTORS}
        rows = [Step._make(None if math.isnan(value) else value for value in row) for row in tensors["rows"].tolist()]
        rows = [row._replace(step=int(row.step), dead=int(row.dead), resampled=int(row.resampled)) for row in rows]
        return cls(**numbers, **groups, rows=rows)


def _checksum(tensors: dict[str, Tensor]) -> int:
    return reduce(lambda crc, name: zlib.crc32(tensors[name].numpy().data, crc), sorted(tensors), 0)


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

    batches: float [n, d_in], raw activations of a step; the last few are kept, so none may be overwritten by the next.
    steps: in all, those before a resume included. seed: of the resampling.
    config: `USED` of it count; sizes, activation and the new encoder are the SAE's.
    continued: keep the weights of `sae` (a parent's, or an earlier run's) and warm the learning rate up, instead of
        setting b_dec to the geometric median of the first batches and, for relu, b_enc (see `start`).
    l1_coefficient: λ in raw units that calibration begins with, such as the parent's (relu: of L1, jumprelu: of L0).
        `config.l1_coefficient` wins over it and is not calibrated.
    state: go on from here, bit for bit as without the stop; the weights of `sae` are then ignored.
    checkpoint: called with the state between two steps, every `checkpoint_seconds`; the next step changes the state.
    watch: reads the state before the first step and after every one; after a resume those since the checkpoint again.

    On a CPU the process keeps the malloc thresholds of `keep_large_buffers`. Raises ValueError for a state of another
    training, decoder rows that are not of unit norm, and activations or a loss that are not finite.
    """
    rows: list[Step] = []
    for taken in training(
        sae, batches, config, steps, seed, continued=continued, l1_coefficient=l1_coefficient, state=state,
        checkpoint=checkpoint, checkpoint_seconds=checkpoint_seconds
    ):  # fmt: skip
        if watch is not None:
            watch(taken)
        if progress is not None and taken.step:
            progress(taken.step, steps)
        rows = taken.rows
    return list(rows)


def training(
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
    ranks: Ranks = ALONE,
) -> Iterator[TrainingState]:
    """The training of `train`, step by step: gives the state before the first step and after every one, so that
    several trainings can go through one stream side by side. The SAE is written once the last state was taken.

    ranks: processes with the same arguments, between which sparse steps are divided; each has the whole state, and it
    is that of one process to the bit.
    """
    identity = (
        {"d_in": sae.d_in, "d_sae": sae.d_sae, "activation": sae.activation, "k": sae.k}
        | config.model_dump(mode="json", include=USED)
        | {"steps": steps, "seed": seed, "continued": continued, "first_l1_coefficient": l1_coefficient}
    )
    recent = lru_cache(maxsize=POOL_BATCHES + 1)(batches)  # resampling looks back at them
    if sae.W_dec.device.type == "cpu":
        keep_large_buffers()
    if state is None:
        state = start(sae, recent, identity, continued)
        penalty = first_penalty(sae.activation, config, sae.d_in, state.scale, l1_coefficient)
        state.log_l1 = None if penalty is None else math.log(penalty)
    elif state.identity != identity:
        other = ", ".join(key for key in identity if state.identity.get(key) != identity[key])
        raise ValueError(f"the saved state is of another training ({other} differ); delete it or restore the settings")
    saved = time.monotonic()
    yield state
    for step in range(state.step, steps):
        _take_step(state, recent, config, steps, seed, continued, ranks)
        yield state
        if checkpoint is not None and step + 1 < steps and time.monotonic() - saved >= checkpoint_seconds:
            checkpoint(state)
            saved = time.monotonic()
    write_back(state, sae)


def write_back(state: TrainingState, sae: SAE) -> None:
    """Put the state's weights into the SAE, in the units of the raw activations; the mean goes into b_enc."""
    weights = state.weights
    b_enc = weights.b_enc - _shift(weights.w_enc, state.mean)
    sae.W_enc.copy_(weights.w_enc.T)
    sae.W_dec.copy_(weights.w_dec)
    sae.b_enc.copy_(b_enc / state.scale)
    sae.b_dec.copy_(weights.b_dec / state.scale)
    if sae.activation == "jumprelu" and sae.threshold is not None:
        sae.threshold.copy_(weights.log_threshold.exp() / state.scale)
    elif sae.threshold is not None:
        sae.threshold.fill_(state.threshold / state.scale)


def _shift(w_enc: Tensor, mean: Tensor) -> Tensor | float:
    """What the encoder's subtraction of the mean takes off the pre-activations of some features, float32 [features]."""
    return (w_enc.double() @ mean.double()).float() if len(mean) else 0.0


def _take_step(
    state: TrainingState,
    batches: Batches,
    config: SAEConfig,
    steps: int,
    seed: int,
    continued: bool,
    ranks: Ranks,
) -> None:
    number = state.step + 1
    every = config.resample_every or max(1, steps // 10, -(-2 * WINDOW_VECTORS // len(batches(state.step))))
    window = max(1, every // 2)
    activation, penalty = state.identity["activation"], None if state.log_l1 is None else math.exp(state.log_l1)
    jumps = activation == "jumprelu"
    l1, l0 = (0.0, penalty or 0.0) if jumps else (penalty or 0.0, 0.0)
    rule = Rule(activation, state.identity["k"] or 0, l1, state.threshold, l0)
    wanted = state.step > 0 and config.resample_every != 0
    due = wanted and state.step % every == 0 and number <= RESAMPLE_UNTIL * steps
    resampled = resample(state, number - state.last_fired > window, batches, rule, every, seed) if due else 0
    x = moved(batches(state.step).detach(), state.ages.device).to(torch.float32) * state.scale
    target = x.sub_(state.weights.b_dec).contiguous()
    x = target - state.mean if len(state.mean) else target
    state.ages += 1
    active = rule.k or state.l0  # nan before the first step
    limit = SPARSE_BELOW if x.device.type == "cpu" else SPARSE_BELOW_ON_GPU
    take = partial(sparse_step, ranks=ranks) if active / len(state.ages) < limit else dense_step
    trained = state.weights, state.first, state.second, state.ages
    outcome = take(*trained, x, rule, learning_rate(config, number, steps, continued), number, target)
    if not math.isfinite(outcome.mse):
        raise ValueError(f"the loss of step {number} is {outcome.mse}; lower lr={config.lr} or find huge activations")
    if ranks.count > 1:  # every row of the matrices has a part in b_dec
        ranks.agree(zlib.crc32(state.weights.b_dec.numpy().data), f"step {number}")
    dead_now = _count_dead(state, outcome, number, window)
    state.l0 = outcome.l0
    if rule.activation == "batchtopk" and math.isfinite(outcome.least):
        rate = THRESHOLD_RATE if state.threshold else 1.0
        state.threshold += rate * (outcome.least - state.threshold)
    mse, l1, scale = outcome.mse / state.scale**2, outcome.l1 / state.scale, state.scale ** (2 if jumps else 1)
    raw = None if penalty is None else penalty / scale
    loss = mse + (0.0 if raw is None else raw * (outcome.l0 if jumps else l1))
    state.rows.append(Step(number, loss, mse, l1, outcome.l0, dead_now, raw, penalty, resampled))
    calibrate(state, config, steps)


def _count_dead(state: TrainingState, outcome: Outcome, number: int, window: int) -> int:
    """Note which features fired in a step, and count those that have not for a window.

    On a GPU this runs beside the change of the weights, as soon as the step knows who fired: reading the count on the
    stream of the step would leave the GPU idle until the next one is on its way.
    """
    with _beside(outcome.seen):
        state.last_fired.masked_fill_(outcome.fired, number)
        return int((number - state.last_fired >= window).sum())


@contextmanager
def _beside(event: torch.cuda.Event | None) -> Iterator[None]:
    """A stream of its own that goes on from an event; what follows on the current one waits for it."""
    if event is None:
        yield
        return
    current, other = torch.cuda.current_stream(), torch.cuda.Stream()
    other.wait_event(event)
    with torch.cuda.stream(other):
        yield
    current.wait_stream(other)


def learning_rate(config: SAEConfig, number: int, steps: int, continued: bool) -> float:
    """Learning rate of a step, counted from 1: constant but for the warm-up of a continued training and the decay."""
    rate = config.lr
    if continued:
        rate *= min(1.0, number / max(1.0, config.warm_up * steps))
    if config.decay:
        rate *= min(1.0, (steps - number + 1) / max(1.0, DECAY * steps))
    return rate


def start(sae: SAE, batches: Batches, identity: dict[str, Any], continued: bool) -> TrainingState:
    """State before the first step; see `train` for the arguments. Raises ValueError as `train` does."""
    device, norms = sae.W_dec.device, sae.W_dec.norm(dim=1)
    if not bool(((norms - 1).abs() < 1e-3).all()):
        raise ValueError(
            f"decoder rows have norms from {float(norms.min()):.3g} to {float(norms.max()):.3g} instead of 1; "
            "move the norms into the encoder first (SAE.unit_norm)"
        )
    x = torch.cat([batches(i).to(device, torch.float32) for i in range(min(FIRST_BATCHES, identity["steps"]))])
    scale = normalizing_scale(x)  # which also refuses what cannot be trained on
    scale = scale if identity.get("normalize", True) else 1.0
    mean = (x * scale).mean(0) if identity.get("subtract_mean") else x.new_zeros(0)
    weights = Weights(sae.W_enc.T.contiguous(), sae.b_enc * scale, sae.W_dec.detach().clone(), sae.b_dec * scale)
    if sae.activation == "jumprelu" and sae.threshold is not None:
        weights.log_threshold = (sae.threshold * scale).clamp_min(LEAST_THRESHOLD).log()
    if continued:
        weights.b_enc = weights.b_enc + _shift(weights.w_enc, mean)
    else:
        x = x * scale
        weights.b_dec = geometric_median(x)
        if sae.activation == "jumprelu" or (sae.activation == "relu" and identity["encoder_start"] == "transpose"):
            share = min(0.5, START_L0 * identity["l0"][1] / sae.d_sae)
            count, rows, x = max(1, round(share * len(x))), max(1, (1 << 24) // len(x)), x - weights.b_dec
            x = x - mean if len(mean) else x
            # Upper quantiles of the pre-activations, exceeded on this share of the tokens; features in chunks.
            cuts = [linear(part, x).topk(count, dim=1).values[:, -1] for part in weights.w_enc.split(rows)]
            if sae.activation == "relu":
                weights.b_enc = -torch.cat(cuts)
            else:
                weights.log_threshold = torch.cat(cuts).clamp_min(LEAST_THRESHOLD).log()
    threshold = float(sae.threshold) * scale if sae.activation == "batchtopk" and sae.threshold is not None else 0.0
    ages, last_fired = (torch.zeros(sae.d_sae, dtype=kind, device=device) for kind in (torch.int32, torch.int64))
    first, second = Weights.zeros_like(weights), Weights.zeros_like(weights)
    return TrainingState(identity, scale, weights, first, second, ages, last_fired, mean, threshold=threshold)


def normalizing_scale(x: Tensor) -> float:
    """The c for which the mean of ‖c x − mean‖² is d_in; x [n, d_in]. ValueError when x is constant or not finite."""
    variance = float(x.var(dim=0, correction=0).sum(dtype=torch.float64)) / x.shape[1]
    if not math.isfinite(variance):
        raise ValueError("the first batches hold NaN or infinite activations; find the model or token that makes them")
    if variance <= 0:
        raise ValueError("the first batches are constant: nothing to learn; check the hook point")
    return 1 / math.sqrt(variance)


def geometric_median(x: Tensor) -> Tensor:
    """The point [d_in] with the least sum of distances to the rows of x [n, d_in], to 1e-5 (Weiszfeld 1937)."""
    point = x.mean(0)
    for _ in range(100):
        distance = (x - point).norm(dim=1)
        weight = 1 / distance.clamp_min(1e-8 * float(distance.mean()) + 1e-30)
        moved = (weight @ x) / weight.sum()
        if float((moved - point).norm()) < 1e-5 * float(distance.mean()):
            return moved
        point = moved
    return point


def first_penalty(
    activation: Activation, config: SAEConfig, d_in: int, scale: float, coefficient: float | None
) -> float | None:
    """λ of the first step, in normalized units; None for activations without a penalty.

    A raw λ of the settings or the caller is taken over. Otherwise an active feature carries 1 / L0 of the variance
    d_in, an activation f of sqrt(d_in / L0): for relu, λ takes a third off it (λ d_in / 2); for jumprelu, λ outweighs
    what an activation of half that size explains, f² / d_in.
    """
    raw = config.l1_coefficient or coefficient
    if activation == "relu":
        return raw * scale if raw is not None else 0.6 / math.sqrt(d_in * target(config))
    if activation == "jumprelu":
        return raw * scale**2 if raw is not None else 0.25 / target(config)
    return None


def target(config: SAEConfig) -> float:
    """Target L0 of the calibration: three quarters up the range, because L0 falls a little after λ is frozen."""
    return config.l0[0] ** 0.25 * config.l0[1] ** 0.75


def calibrate(state: TrainingState, config: SAEConfig, steps: int) -> None:
    """Move log λ after a step: proportional and integral control of log(L0 / target)."""
    if state.log_l1 is None or config.l1_coefficient is not None:
        return
    last = round(config.calibration * steps)
    if state.step > last:
        return
    error = math.log(max(state.l0, 1e-3) / target(config))
    before = error if math.isnan(state.l1_error) else state.l1_error
    state.l1_error = before + SMOOTHING * (error - before)
    state.log_l1 += INTEGRAL / last * min(1.0, max(-1.0, state.l1_error)) + PROPORTIONAL * (state.l1_error - before)
    averaged = max(1, round(SETTLED * last))
    if state.step > last - averaged:
        state.l1_sum += state.log_l1
    if state.step == last:
        state.log_l1 = state.l1_sum / averaged


def resample(state: TrainingState, dead: Tensor, batches: Batches, rule: Rule, every: int, seed: int) -> int:
    """Give dead features [d_sae] (bool) the direction of badly reconstructed inputs; returns how many.

    As in Bricken et al. 2023 ("Neuron resampling"): inputs of the latest batches are picked with a probability
    proportional to the square of their loss, each at most once; the decoder row becomes the picked input, centered
    (x − b_dec), with unit norm, the encoder row the same direction with 0.2 times the mean norm of the living encoder
    rows, b_enc becomes 0 (relu, jumprelu: see `FIRING_SHARE`), and Adam forgets the feature.
    """
    if not bool(dead.any()) or bool(dead.all()):
        return 0
    count = min(POOL_BATCHES, max(1, every // 20), state.step)
    x = torch.cat([batches(i).to(dead.device, torch.float32) for i in range(state.step - count, state.step)])
    x = (x * state.scale).sub_(state.weights.b_dec)
    seen = x - state.mean if len(state.mean) else x
    chance = (training_errors(state.weights, seen, rule, x).double() ** 2).cpu().numpy()
    features = dead.nonzero().flatten()[: int((chance > 0).sum())]
    if len(features) == 0:
        return 0
    generator = np.random.default_rng([seed, state.step])
    picked = generator.choice(len(chance), size=len(features), replace=False, p=chance / chance.sum())
    inputs = x[torch.from_numpy(picked).to(x.device)]
    directions = inputs / inputs.norm(dim=1, keepdim=True).clamp_min(1e-30)
    norm = ENCODER_NORM * state.weights.w_enc[~dead].norm(dim=1).mean()
    state.weights.w_dec[features] = directions
    state.weights.w_enc[features] = directions * norm
    cut = FIRING_SHARE * (inputs.norm(dim=1) * norm)
    state.weights.b_enc[features] = -cut if rule.activation == "relu" else 0
    state.weights.b_enc[features] += _shift(state.weights.w_enc[features], state.mean)
    if rule.activation == "jumprelu":
        state.weights.log_threshold[features] = cut.log()
    for moments in (state.first, state.second):
        for rows in (moments.w_enc, moments.w_dec, moments.b_enc, moments.log_threshold):
            if len(rows):
                rows[features] = 0
    state.ages[features] = 0
    state.last_fired[features] = state.step
    return len(features)
