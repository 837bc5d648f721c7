"""SAEs trained on both ends of a planted world, with the house's own trainer."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from heredity.features.acts import FeatureActs
from heredity.metrics import Variance
from heredity.sae.model import SAE, Activation, new_sae
from heredity.sae.train import train
from heredity.study import Init, SAEConfig
from heredity.synthetic.world import End, Sample, World

Protocol = Init
"""As in a study: one SAE for both ends, or how the child's starts: as the parent's, or anew."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How every SAE of a pair is trained. Raises `ValueError` for sizes below one."""

    tokens: int = 60_000
    """Distinct vectors of each model to train on."""
    epochs: int = 6
    """Times that a fresh SAE sees each of them."""
    continue_tokens: int | None = None
    """Vectors that a continued SAE sees, repeats counted; default half of what a fresh one sees."""
    activation: Activation = "topk"
    """Of the SAEs."""
    k: int = 8
    """Active features a token (topk, batchtopk); the middle of the range of L0 aimed at (relu, jumprelu)."""
    expansion: int = 4
    """d_sae / d."""
    lr: float = 4e-3
    """Adam's learning rate; it falls to 0 over the last fifth."""
    batch: int = 512
    """Vectors a step."""

    def __post_init__(self) -> None:
        for name in ("tokens", "epochs", "k", "expansion", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be 1 or more")
        if self.continued < 1:
            raise ValueError(f"continue_tokens={self.continue_tokens} must be 1 or more")

    @property
    def continued(self) -> int:
        """Vectors that a continued SAE sees."""
        return -(-self.tokens * self.epochs // 2) if self.continue_tokens is None else self.continue_tokens


class TrainedPair(NamedTuple):
    """Activations of a pair's SAEs on held-out aligned tokens, and the truth on the same tokens."""

    parent: FeatureActs
    """Parent's SAE."""
    child: FeatureActs
    """Child's SAE."""
    parent_control: FeatureActs | None
    """Another SAE of the parent, initialized as the child's is: what remains between two SAEs of one model. None for a
    joint SAE, which keeps everything."""
    saes: tuple[SAE, SAE]
    """Of the parent and of the child; the same one twice if it is joint."""
    sample: Sample
    """True activations of both ends, and the documents."""
    explained_variance: dict[str, float]
    """By field name, on these tokens."""


def train_pair(world: World, protocol: Protocol, training: Training, tokens_eval: int, seed: int) -> TrainedPair:
    """Train the SAEs of a planted world and encode `tokens_eval` tokens that none of them saw.

    independent: three start anew, each from a seed of its own, and see their model's vectors in an order of their own.
    parent: the parent's SAE starts anew; the child's goes on from it on the child's vectors, the parent's control goes
    on from it on the parent's vectors. joint: one SAE of twice the size, which has to hold the features of both, sees
    the vectors of both, as many of each as a fresh one. Both ends are trained on the same text. On a CPU; memory is
    that of both ends' vectors, tokens x d in float32.

    Raises `ValueError` for a protocol that is not known and whatever the trainer refuses.
    """
    if protocol not in get_args(Protocol):
        raise ValueError(f"protocol={protocol!r} is not known; choose one of {', '.join(get_args(Protocol))}")
    text, unseen = 2 * seed, 2 * seed + 1
    x = {end: _vectors(world, end, training.tokens, text) for end in get_args(End)}
    if protocol == "joint":
        both = torch.cat([x["parent"], x["child"]])
        one = _fresh(both, replace(training, expansion=2 * training.expansion), (seed, 0))
        saes = {"parent": one, "child": one}
    else:
        first = _fresh(x["parent"], training, (seed, 0))
        source = first if protocol == "parent" else None
        saes = {"parent": first, "child": _another(x["child"], source, training, (seed, 2))}
        saes["parent_control"] = _another(x["parent"], source, training, (seed, 1))
    acts: dict[str, FeatureActs] = {}
    explained: dict[str, float] = {}
    for end in get_args(End):
        x[end] = _vectors(world, end, tokens_eval, unseen)
        for name in (end, f"{end}_control"):
            if name in saes:
                acts[name], explained[name] = _encoded(saes[name], x[end])
    return TrainedPair(
        acts["parent"], acts["child"], acts.get("parent_control"), (saes["parent"], saes["child"]),
        world.draw(tokens_eval, unseen), explained,
    )  # fmt: skip


def _vectors(world: World, end: End, tokens: int, seed: int) -> Tensor:
    return torch.from_numpy(world.x(end, tokens, seed))


def _fresh(x: Tensor, training: Training, seed: tuple[int, int]) -> SAE:
    generator = torch.Generator().manual_seed(_seeds(seed)[0])
    sae = new_sae(x.shape[1], training.expansion * x.shape[1], training.activation, training.k, generator)
    _train(sae, x, training, len(x) * training.epochs, seed, continued=False)
    return sae


def _another(x: Tensor, source: SAE | None, training: Training, seed: tuple[int, int]) -> SAE:
    """One that goes on from the source, or without it a fresh one."""
    if source is None:
        return _fresh(x, training, seed)
    sae = deepcopy(source)
    _train(sae, x, training, training.continued, seed, continued=True)
    return sae


def _train(sae: SAE, x: Tensor, training: Training, tokens: int, seed: tuple[int, int], *, continued: bool) -> None:
    l0 = (0.9 * training.k, 1.1 * training.k)
    config = SAEConfig(activation=sae.activation, k=training.k, l0=l0, lr=training.lr, decay=True)
    _, order, resampling = _seeds(seed)
    batches = _batches(x, training.batch, order)
    train(sae, batches, config, max(1, tokens // training.batch), resampling, continued=continued)


def _seeds(seed: tuple[int, int]) -> list[int]:
    """Of the first weights, of the order of vectors, of the resampling."""
    return [int(number) for number in np.random.SeedSequence(seed).generate_state(3)]


def _batches(x: Tensor, size: int, seed: int) -> Callable[[int], Tensor]:
    """Batches of a pass over x in a random order, then of further passes in others; the last, short one is left out."""
    size = min(size, len(x))
    a_pass = len(x) // size
    order: dict[int, Tensor] = {}

    def batch(step: int) -> Tensor:
        number, place = divmod(step, a_pass)
        if number not in order:
            order.clear()
            order[number] = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed + number))
        return x[order[number][place * size : (place + 1) * size]]

    return batch


def _encoded(sae: SAE, x: Tensor) -> tuple[FeatureActs, float]:
    """Activations on x, and the explained variance."""
    parts, variance = [], Variance()
    for part in x.split(4096):
        indptr, indices, values = sae.encode_sparse(part)
        parts.append(FeatureActs(indptr, indices, values, sae.d_sae))
        variance.update(part, sae.decode_sparse(indptr, indices, values))
    return FeatureActs.concatenate(parts), variance.result().explained_variance
