"""SAEs of planted worlds, and the true fate of each of their features.

Trained: with the package's own trainer. Untrained: codes, true activations with an SAE's errors added: a code is a·F at
the firings it does not miss, with a lognormal factor F of mean 1, and fires falsely elsewhere. Effects that depend on x
are absent from codes: directions, interference, and the higher miss rate of faint features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from heredity.features.acts import FeatureActs
from heredity.features.correlate import correlate
from heredity.metrics import Variance
from heredity.sae.model import SAE, Activation, new_sae
from heredity.sae.train import train
from heredity.study import Init, SAEConfig
from heredity.synthetic.world import FAINT, FATES, KEPT, LOST, NOISY, ROTATED, End, Sample, World

UNKNOWN = -1  # label of an SAE feature that follows no true feature
RECOVERED = 0.5  # least r of an SAE feature with the true feature it follows
KEPT_LIKE = (KEPT, ROTATED, FAINT, NOISY)
"""Fates with one partner at the other end, which a call should find. Splits and merges have two partners with a true r
of about .7 each, so neither answer is wrong: they are reported, not judged. Leave out `NOISY` where its r is low."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """Hyperparameters shared by all SAEs of a pair. Raises `ValueError` for sizes below one."""

    tokens: int = 60_000  # distinct training vectors per model
    epochs: int = 6  # passes of a new SAE over these vectors
    continue_tokens: int | None = None  # vectors for a continued SAE, repeats counted; None: half of a new one's
    activation: Activation = "topk"
    k: int = 8  # active features per token (topk, batchtopk); center of the target range of L0 (relu, jumprelu)
    expansion: int = 4  # d_sae / d
    lr: float = 4e-3  # of Adam; it decays to 0 over the last fifth
    batch: int = 512  # vectors per step

    def __post_init__(self) -> None:
        for name in ("tokens", "epochs", "continue_tokens", "k", "expansion", "batch"):
            if (size := getattr(self, name)) is not None and size < 1:
                raise ValueError(f"{name}={size} must be 1 or more")


class TrainedPair(NamedTuple):
    """Activations of a pair's SAEs on held-out aligned tokens, and the truth on the same tokens."""

    parent: FeatureActs
    child: FeatureActs
    parent_control: FeatureActs | None  # of another SAE of the parent, initialized as the child's is; None for joint
    saes: tuple[SAE, SAE]  # of the parent and of the child; the same one twice if it is joint
    sample: Sample  # true activations of both ends, and the documents
    explained_variance: dict[str, float]  # by field name, on these tokens


def train_pair(world: World, init: Init, training: Training, tokens_eval: int, seed: int) -> TrainedPair:
    """Train the SAEs of a planted world and encode `tokens_eval` held-out tokens.

    independent: three new SAEs, each with its own seed and order of its model's vectors. parent: a new SAE for the
    parent, continued on the child's vectors, and as control on the parent's. joint: one SAE of twice the size, because
    it holds the features of both, trained on the vectors of both. Both ends are trained on the same text. On a CPU;
    memory: tokens × d of both ends in float32. Raises `ValueError` for an unknown init and as the trainer does.
    """
    if init not in get_args(Init):
        raise ValueError(f"init={init!r} is unknown; choose one of {', '.join(get_args(Init))}")
    text, held_out = 2 * seed, 2 * seed + 1
    x = {end: torch.from_numpy(world.x(end, training.tokens, text)) for end in get_args(End)}
    if init == "joint":
        both = torch.cat([x["parent"], x["child"]])
        one = train_sae(both, replace(training, expansion=2 * training.expansion), (seed, 0))
        saes = {"parent": one, "child": one}
    else:
        first = train_sae(x["parent"], training, (seed, 0))
        source = first if init == "parent" else None
        saes = {"parent": first, "child": train_sae(x["child"], training, (seed, 2), source)}
        saes["parent_control"] = train_sae(x["parent"], training, (seed, 1), source)
    x = {end: torch.from_numpy(world.x(end, tokens_eval, held_out)) for end in get_args(End)}
    acts: dict[str, FeatureActs] = {}
    explained: dict[str, float] = {}
    for name, sae in saes.items():
        parts, variance = [], Variance()
        for part in x["child" if name == "child" else "parent"].split(4096):
            code = sae.encode_sparse(part)
            parts.append(FeatureActs(*code, sae.d_sae))
            variance.update(part, sae.decode_sparse(*code))
        acts[name], explained[name] = FeatureActs.concatenate(parts), variance.result().explained_variance
    sample, ends = world.draw(tokens_eval, held_out), (saes["parent"], saes["child"])
    return TrainedPair(acts["parent"], acts["child"], acts.get("parent_control"), ends, sample, explained)


def train_sae(
    x: Tensor,
    training: Training,
    seed: tuple[int, int],
    source: SAE | None = None,
    beside: tuple[int, int] | None = None,
) -> SAE:
    """A new SAE trained on x, float32 [tokens, d], or a copy of the source continued on it; on a CPU.

    beside: seed of an SAE whose order of the vectors this one shares, as the second SAE of a model does in studies.
    """
    weights, _, resampling = (int(number) for number in np.random.SeedSequence(seed).generate_state(3))
    order = int(np.random.SeedSequence(beside or seed).generate_state(3)[1])
    if source is None:
        d, generator = x.shape[1], torch.Generator().manual_seed(weights)
        sae = new_sae(d, training.expansion * d, training.activation, training.k, generator)
        tokens = len(x) * training.epochs
    else:
        sae = deepcopy(source)
        tokens = training.continue_tokens or -(-training.tokens * training.epochs // 2)
    l0 = (0.9 * training.k, 1.1 * training.k)
    config = SAEConfig(activation=sae.activation, k=training.k, l0=l0, lr=training.lr, decay=True)
    steps = max(1, tokens // training.batch)
    train(sae, _batches(x, training.batch, order), config, steps, resampling, continued=source is not None)
    return sae


def _batches(x: Tensor, size: int, seed: int) -> Callable[[int], Tensor]:
    """Batches of repeated passes over x, each in its own random order; a short last batch is left out."""
    size = min(size, len(x))

    @lru_cache(1)
    def order(number: int) -> Tensor:
        return torch.randperm(len(x), generator=torch.Generator().manual_seed(seed + number))

    def batch(step: int) -> Tensor:
        number, place = divmod(step, len(x) // size)
        return x[order(number)[place * size : (place + 1) * size]]

    return batch


class Code(NamedTuple):
    """Activations of one untrained SAE, with the truth."""

    acts: FeatureActs  # [tokens, d_sae]
    feature: np.ndarray  # int32 [d_sae]: the true feature behind each SAE feature


def noisy_code(
    acts: FeatureActs,
    rng: np.random.Generator,
    reliability: float = 0.9,
    miss: float | np.ndarray = 0.1,
    false_fire: float = 0.05,
) -> Code:
    """The code of an SAE whose features are the true ones, in random order.

    acts: true activations. reliability: r of the code with the truth due to the factor alone, for rare features:
    E F² = 1 / reliability². miss: share of firings left out at random, one number or float [d_sae]. false_fire: false
    firings as a share of the true ones, feature by feature, at uniform places and with the magnitudes of true ones;
    nothing is added where the feature fires anyway. Raises `ValueError` for shares out of range.

    A rare feature's code has r = reliability (1 − miss) / √(1 − miss + false_fire) with the true activation; two codes
    of one true feature with independent errors have the product of their values.
    """
    missed = np.broadcast_to(np.asarray(miss, np.float64), acts.d_sae)
    if not (0 < reliability <= 1 and ((missed >= 0) & (missed <= 1)).all() and false_fire >= 0):
        raise ValueError(
            f"reliability={reliability} must lie above 0 and up to 1, miss={miss} between 0 and 1, and "
            f"false_fire={false_fire} must not be negative"
        )
    order = rng.permutation(acts.d_sae)
    key = np.repeat(np.arange(acts.tokens), np.diff(acts.indptr)) * acts.d_sae + acts.indices
    kept = rng.random(acts.n) >= missed[acts.indices]
    copied = rng.integers(0, max(acts.n, 1), rng.poisson(false_fire * acts.n))
    false = rng.integers(0, max(acts.tokens, 1), len(copied)) * acts.d_sae + acts.indices[copied]
    every = np.concatenate([key, false])
    by_key = np.argsort(every, kind="stable")  # a true firing comes before the false ones at its place
    first = np.diff(every[by_key], prepend=-1) > 0
    chosen = by_key[first & np.concatenate([kept, np.ones(len(false), bool)])[by_key]]
    token, feature = np.divmod(every[chosen], acts.d_sae)
    variance = -2 * math.log(reliability)
    factor = np.exp(math.sqrt(variance) * rng.standard_normal(len(chosen)) - variance / 2)
    values = np.concatenate([acts.values, acts.values[copied]])[chosen] * factor
    indptr = np.concatenate([[0], np.cumsum(np.bincount(token, minlength=acts.tokens))])
    return Code(FeatureActs(indptr, np.argsort(order)[feature], values, acts.d_sae), order.astype(np.int32))


def noisy_codes(
    world: World, tokens: int, seed: int, reliability: float = 0.9, miss: float = 0.1, false_fire: float = 0.05
) -> tuple[Code, Code, Sample]:
    """Codes of parent and child on `world.draw(tokens, seed)`, with independent errors, and this sample."""
    sample = world.draw(tokens, seed)
    # The last number separates the errors from the draws of the text, which use the same seed.
    rngs = [np.random.default_rng((world.seed, seed, end, 99)) for end in (0, 1)]
    parent = noisy_code(sample.parent, rngs[0], reliability, miss, false_fire)
    return parent, noisy_code(sample.child, rngs[1], reliability, miss, false_fire), sample


class Labels(NamedTuple):
    """True features and fates of one SAE's features.

    An SAE feature follows the true feature of its model with which its activations correlate best, if that r exceeds
    `RECOVERED`. The fate of the others is unknown; they count neither for nor against a call.
    """

    feature: np.ndarray  # int32 [d_sae]: the true feature it follows; -1 for none
    fate: np.ndarray  # int8 [d_sae]: fate of that feature, or UNKNOWN
    r: np.ndarray  # float64 [d_sae]: r with the best true feature, whatever it is; nan for a constant feature
    true_r: np.ndarray  # float64 [true features]: best r with any SAE feature; nan for one that never fired

    @property
    def recovered(self) -> float:
        """Share of the true features that fired with an SAE feature whose r exceeds `RECOVERED`; nan if none fired."""
        return _share(int((self.true_r > RECOVERED).sum()), int(np.isfinite(self.true_r).sum()))

    @property
    def reliability(self) -> float:
        """Median r of the SAE features that follow a true feature with that feature; nan if none does."""
        follows = self.feature >= 0
        return float(np.median(self.r[follows])) if follows.any() else math.nan


class Judgment(NamedTuple):
    """A yes-no call on every SAE feature of one end, compared with the truth."""

    called: dict[str, float]  # share of features called, as `share_by_fate` gives it
    precision: float  # share of right calls among the judged features called; nan if none is called
    recall: float  # share of the features to be called that are called; nan if there are none


def label(acts: FeatureActs, true_acts: FeatureActs, fate: np.ndarray) -> Labels:
    """Label the features of one SAE.

    acts: of the SAE, and true_acts: of its model's true features, on the same tokens. fate: int8 [true features].
    Raises `ValueError` when samples differ in length or `fate` does not fit.
    """
    if fate.shape != (true_acts.d_sae,):
        raise ValueError(f"fate has shape {fate.shape}, not ({true_acts.d_sae},); give one fate per true feature")
    matches = correlate(acts, true_acts, top=1)
    best, r = matches.parent_match[:, 0], matches.parent_r[:, 0]
    follows = r > RECOVERED
    feature = np.where(follows, best, -1).astype(np.int32)
    return Labels(feature, np.where(follows, fate[best], UNKNOWN).astype(np.int8), r, matches.child_r[:, 0])


def judge(
    called: np.ndarray, fate: np.ndarray, right: Collection[int] = KEPT_LIKE, wrong: Collection[int] = (LOST,)
) -> Judgment:
    """Judge a call, bool [d_sae], by the features' fates: right on some of them, wrong on others.

    By default the call is that parent features persist; `right=(NEW,), wrong=KEPT_LIKE` judges that child features
    emerge. Raises `ValueError` for a call of another shape or type.
    """
    called = np.asarray(called)
    if called.shape != fate.shape or called.dtype != bool:
        raise ValueError(f"calls are {called.dtype} {called.shape}; give bool {fate.shape}, one per SAE feature")
    positive = np.isin(fate, list(right))
    hits, false = int((called & positive).sum()), int((called & np.isin(fate, list(wrong))).sum())
    return Judgment(share_by_fate(called, fate), _share(hits, hits + false), _share(hits, int(positive.sum())))


def share_by_fate(called: np.ndarray, fate: np.ndarray) -> dict[str, float]:
    """Share of features called (bool), by the name of their fate, `unknown` included; none for an absent fate."""
    groups = {name: called[fate == number] for number, name in [*enumerate(FATES), (UNKNOWN, "unknown")]}
    return {name: _share(int(group.sum()), len(group)) for name, group in groups.items() if len(group)}


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
