"""An edge whose model has one SAE: a second of another seed is trained, or evidence is told without verdicts.

What one SAE has alone follows nothing as often as not; a second SAE of the same model tells which features are stable
(`features.verdicts`). It reads the same activations and has as many features and as many of them active. Without it
every feature has its evidence, and none a verdict.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from heredity import format
from heredity.analyses.aligned_ends import Sample
from heredity.engine.workers import Progress
from heredity.study import RANKED, SAEConfig

if TYPE_CHECKING:
    from torch import Tensor

    from heredity.features.collect import Reader
    from heredity.features.ends import End
    from heredity.sae.model import SAE, Activation
    from heredity.text.tokens import BlockSampler

UNKNOWN = "stability unknown"
"""In place of a verdict."""
ONE_SAE = (
    "One SAE: stability unknown. Every feature has its evidence (table evidence) and none a verdict, and no share is "
    "given: features that one SAE has alone look lost or new. Train a second SAE (--second-sae parent; in Python "
    "controls='train') or give one of another seed (--sae-control; controls)."
)

REGRESSED = 8192  # features that fire, above which their effects take longer than all else where nothing asks for them
_BATCH = 512  # vectors: many short steps make an SAE stabler between seeds than few long ones
_RATE, _RATE_AT = 6e-3, 1024  # learning rate of the built-in study, and its features; falls as 1/sqrt(d_sae) (Gao 2024)
_TIMED = 12  # steps behind the estimate, of batches that are in the buffer already


def train_second(
    reader: Reader,
    sampler: BlockSampler,
    tokens: int,
    seed: int,
    say: Callable[[str], object],
    name: str,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> SAE:
    """An SAE of another seed for a model that has one, `reader.saes[0]`; written into `folder`, if given.

    tokens: activations to train on; texts that hold fewer are read again. say: gets what it will cost before it is
    spent, from a few timed steps. A relu or jumprelu SAE gets a topk SAE of its measured L0 beside it, since the
    penalty that it was trained with is not known.
    """
    import torch

    from heredity.lm.activations import ActivationStore
    from heredity.lm.load import state_hash
    from heredity.lm.reading import reading_of
    from heredity.sae.formats import write_sae
    from heredity.sae.model import new_sae
    from heredity.sae.train import train

    like = reader.saes[0]
    blocks = max(1, _BATCH // sampler.context_size)
    store = ActivationStore(reader.model, reader.hook_point, sampler, blocks, seed, precision=reader.precision)
    steps = max(1, -(-tokens // store.batch_size))
    started = time.perf_counter()
    x = store.batch(0)
    read = (time.perf_counter() - started) / store.buffer
    if x.shape[1] != like.d_in:
        widths = f"the SAE reads vectors of width {like.d_in}, but {reader.hook_point} gives {x.shape[1]}"
        raise ValueError(f"{widths}; use an SAE trained at this hook point")
    activation, k = shape_beside(like, x)
    config = SAEConfig(activation=activation, k=k or 1, lr=_RATE * (_RATE_AT / like.d_sae) ** 0.5, decay=True)

    def fresh() -> SAE:
        made = new_sae(like.d_in, like.d_sae, activation, k, torch.Generator().manual_seed(seed))
        return made.to(like.W_enc.device)

    train(fresh(), store.batch, config, 2, seed)  # whatever is slow only once
    started = time.perf_counter()
    train(fresh(), store.batch, config, min(steps, _TIMED), seed)
    seconds = steps * (read + (time.perf_counter() - started) / min(steps, _TIMED))
    size = f"{like.d_sae:,} features, {activation} with k = {k}"
    there = sampler.blocks_per_pass * sampler.context_size
    again = f" (the texts hold {there:,}, which are read again and again)" if steps * store.batch_size > there else ""
    say(
        f"training a second SAE of {name} ({size}) on {steps * store.batch_size:,} activations{again}, so that "
        f"verdicts can be given: about {format.duration(seconds)}"
    )
    made = fresh()
    train(made, store.batch, config, steps, seed, progress=progress)
    if folder is not None:
        metadata = {"model_name": name, "model_state": state_hash(reader.model.state_dict()), "seed": seed}
        metadata |= {"hook_name": reader.hook_point, "context_size": sampler.context_size}
        metadata["prefix_token"] = reading_of(reader.model).prefix
        write_sae(made, folder, metadata | {"training_tokens": steps * store.batch_size})
    return made


def shape_beside(like: SAE, x: Tensor) -> tuple[Activation, int | None]:
    """Activation function and k of an SAE of another seed: its own, or topk of its L0 on vectors x [n, d_in] where the
    penalty that it was trained with is not known."""
    if like.activation in RANKED:
        return like.activation, like.k
    return "topk", max(1, round(float(np.diff(like.encode_sparse(x)[0]).mean())))


def evidence(
    ends: Mapping[str, End],
    sample: Sample,
    seed: int,
    told: Callable[[str], object],
    effects: bool | None = None,
    best: Mapping[str, np.ndarray] | None = None,
) -> tuple[dict[str, np.ndarray], bool]:
    """Columns of the table `evidence` for an edge whose parent has one SAE: no stability, and no verdicts. And whether
    the activations of both ends are equal to the bit.

    ends: parent and child, of which the first SAE of each counts. The child's features have rows where it has an SAE
    of its own. effects: whether they are made; None: unless more than `REGRESSED` features fire. told: gets a line
    where too many features fire for their effects, which are nan then. best: by end, the best partner of each feature
    at the other one, int [d_sae]; found here unless known.
    """
    from heredity.features.ends import judge_end
    from heredity.features.transmission import LEAST_FIRINGS, TooWideError
    from heredity.features.verdicts import same_r

    ends = {name: replace(end, saes=end.saes[:1], acts=end.acts[:1]) for name, end in ends.items()}
    own_child = ends["parent"].saes[0] is not ends["child"].saes[0]
    parts = []
    for end, other in (("parent", "child"), ("child", "parent"))[: 1 + own_child]:
        # Every feature counts as stable, and so has evidence; the verdicts mean nothing.
        given = ends[end], ends[other], 0, sample.documents, seed
        known = None if best is None else [best[end][:, None]]
        firing = int((ends[end].acts[0].firings() >= LEAST_FIRINGS).sum())
        made = firing <= REGRESSED if effects is None else effects
        if effects is None and not made:
            told(
                f"effects of features are left out: {firing:,} of {end} fire, and what it takes to tell them apart "
                "grows with their cube; --effects (in Python effects=True) makes them"
            )
        try:
            judged, columns = judge_end(*given, effects=made, best=known)
        except TooWideError as error:
            told(f"effects of features are left out: {error}")
            judged, columns = judge_end(*given, effects=False, best=known)
        size = len(judged.verdict)
        same = np.full(size, np.nan) if own_child else same_r(ends[end].acts[0], ends[other].acts[0])
        columns |= {"same_r": same, "p_lost": judged.p_lost, "stability": np.full(size, np.nan)}
        named = {"end": np.full(size, end, object), "verdict": np.full(size, UNKNOWN, object)}
        parts.append(named | {"feature": np.arange(size), **columns})
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return columns, np.array_equal(ends["parent"].x, ends["child"].x)
