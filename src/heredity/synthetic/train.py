"""SAEs trained on both ends of a planted world with the package's own trainer."""

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


@dataclass(frozen=True, kw_only=True)
class Training:
    """Hyperparameters shared by all SAEs of a pair. Raises `ValueError` for sizes below one."""

    tokens: int = 60_000
    """Distinct training vectors per model."""
    epochs: int = 6
    """Passes of a new SAE over these vectors."""
    continue_tokens: int | None = None
    """Vectors a continued SAE is trained on, repeats counted; default: half of what a new one sees."""
    activation: Activation = "topk"
    """Activation function of the SAEs."""
    k: int = 8
    """Active features per token (topk, batchtopk); center of the target range of L0 (relu, jumprelu)."""
    expansion: int = 4
    """d_sae / d."""
    lr: float = 4e-3
    """Adam's learning rate; it decays to 0 over the last fifth."""
    batch: int = 512
    """Vectors per step."""

    def __post_init__(self) -> None:
        for name in ("tokens", "epochs", "k", "expansion", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be 1 or more")
        if self.continue_tokens is not None and self.continue_tokens < 1:
            raise ValueError(f"continue_tokens={self.continue_tokens} must be 1 or more")


class TrainedPair(NamedTuple):
    """Activations of a pair's SAEs on held-out aligned tokens, and the truth on the same tokens."""

    parent: FeatureActs
    """Parent's SAE."""
    child: FeatureActs
    """Child's SAE."""
    parent_control: FeatureActs | None
    """Another SAE of the parent, initialized as the child's is: the agreement between two SAEs of one model. None for a
    joint SAE, which keeps everything."""
    saes: tuple[SAE, SAE]
    """Of the parent and of the child; the same one twice if it is joint."""
    sample: Sample
    """True activations of both ends, and the documents."""
    explained_variance: dict[str, float]
    """By field name, on these tokens."""


def train_pair(world: World, init: Init, training: Training, tokens_eval: int, seed: int) -> TrainedPair:
    """Train the SAEs of a planted world and encode `tokens_eval` held-out tokens.

    independent: three new SAEs, each with its own seed and order of its model's vectors. parent: a new SAE for the
    parent; from it the child's continues on the child's vectors, and the parent's control on the parent's vectors.
    joint: one SAE of twice the size, because it holds the features of both, trained on the vectors of both, as many of
    each as a new SAE sees. Both ends are trained on the same text. On a CPU; memory is that of both ends' vectors,
    tokens × d in float32.

    Raises `ValueError` for an unknown init and whatever the trainer refuses.
    """
    if init not in get_args(Init):
        raise ValueError(f"init={init!r} is unknown; choose one of {', '.join(get_args(Init))}")
    text, held_out = 2 * seed, 2 * seed + 1
    x = {end: torch.from_numpy(world.x(end, training.tokens, text)) for end in get_args(End)}
    if init == "joint":
        both = torch.cat([x["parent"], x["child"]])
        one = _trained(both, replace(training, expansion=2 * training.expansion), (seed, 0))
        saes = {"parent": one, "child": one}
    else:
        first = _trained(x["parent"], training, (seed, 0))
        source = first if init == "parent" else None
        saes = {"parent": first, "child": _trained(x["child"], training, (seed, 2), source)}
        saes["parent_control"] = _trained(x["parent"], training, (seed, 1), source)
    x = {end: torch.from_numpy(world.x(end, tokens_eval, held_out)) for end in get_args(End)}
    acts: dict[str, FeatureActs] = {}
    explained: dict[str, float] = {}
    for name, sae in saes.items():
        parts, variance = [], Variance()
        for part in x["child" if name == "child" else "parent"].split(4096):
            indptr, indices, values = sae.encode_sparse(part)
            parts.append(FeatureActs(indptr, indices, values, sae.d_sae))
            variance.update(part, sae.decode_sparse(indptr, indices, values))
        acts[name], explained[name] = FeatureActs.concatenate(parts), variance.result().explained_variance
    return TrainedPair(
        acts["parent"], acts["child"], acts.get("parent_control"), (saes["parent"], saes["child"]),
        world.draw(tokens_eval, held_out), explained,
    )  # fmt: skip


def _trained(x: Tensor, training: Training, seed: tuple[int, int], source: SAE | None = None) -> SAE:
    """A new SAE, or a copy of the source continued."""
    weights, order, resampling = (int(number) for number in np.random.SeedSequence(seed).generate_state(3))
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
    per_pass = len(x) // size
    order: dict[int, Tensor] = {}

    def batch(step: int) -> Tensor:
        number, place = divmod(step, per_pass)
        if number not in order:
            order.clear()
            order[number] = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed + number))
        return x[order[number][place * size : (place + 1) * size]]

    return batch
