"""The fit of a stitch as it was published, by gradient descent over tokens: the baseline of the fits by moments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from heredity.stitch.affine import Affine, Stitch


class AdamFit(NamedTuple):
    """A stitch and its training."""

    stitch: Stitch
    """The maps, float32, on the device of the batches."""
    losses: np.ndarray
    """float64 [steps]: joint loss of each batch before its step."""
    tokens: int
    """Rows seen, repeats counted."""


def fit_by_adam(
    batches: Callable[[int], tuple[Tensor, Tensor]],
    count: int,
    epochs: int = 2,
    alpha: float = 1.0,
    lr: float = 1e-4,
    clip: float = 1.0,
    seed: int = 0,
) -> AdamFit:
    """Train both maps on the joint loss: Adam, gradient norm clipped, cosine learning rate, several epochs.

    The recipe of Chen et al. 2025 (arXiv 2506.06609, appendix A); weights start as those of `nn.Linear`, biases at 0.

    batches: batches(i) for 0 <= i < count, aligned float32 rows a [n, d_a] and b [n, d_b]; asked again each epoch.
    Raises ValueError when there are no batches or the loss is not finite.
    """
    if count < 1 or epochs < 1:
        raise ValueError(f"count={count} batches in epochs={epochs} leave nothing to train on; give at least one")
    a, b = batches(0)
    generator = torch.Generator().manual_seed(seed)
    up, down = (_new(x.shape[1], y.shape[1], generator, x.device) for x, y in ((a, b), (b, a)))
    parameters = [*up, *down]
    optimizer = torch.optim.Adam(parameters, lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, count * epochs)
    losses, tokens = [], 0
    for step in range(count * epochs):
        a, b = batches(step % count)
        loss = batch_loss(Stitch(up, down), a, b, alpha)
        if not bool(torch.isfinite(loss)):
            raise ValueError(
                f"the loss of step {step + 1} is {float(loss)}; lower lr={lr} or look for huge activations"
            )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        tokens += len(a)
    stitch = Stitch(*(Affine(*(part.detach() for part in each)) for each in (up, down)))
    return AdamFit(stitch, np.array(losses), tokens)


def block_batches(
    pairs: Callable[[np.ndarray], Iterable[tuple[Sequence[Tensor], Sequence[Tensor]]]],
    blocks: np.ndarray,
    each: int,
    keep: bool,
) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Batches for `fit_by_adam`: number -> aligned activations of `each` token blocks.

    pairs: gives chunks of aligned activations of token blocks [n, context], one point of each model (see `aligned`).
    keep: hold batches in memory after the first epoch; otherwise the models compute them anew.
    """
    kept: dict[int, tuple[Tensor, Tensor]] = {}

    def batch(number: int) -> tuple[Tensor, Tensor]:
        if number in kept:
            return kept[number]
        chunks = list(pairs(blocks[number * each : (number + 1) * each]))
        rows = torch.cat([of_a for (of_a,), _ in chunks]), torch.cat([of_b for _, (of_b,) in chunks])
        if keep:
            kept[number] = rows
        return rows

    return batch


def batch_loss(stitch: Stitch, a: Tensor, b: Tensor, alpha: float) -> Tensor:
    """The joint loss of a batch a [n, d_a], b [n, d_b], mean over rows and elements (Chen et al. 2025, eq. 3)."""
    mse, above, below = nn.functional.mse_loss, stitch.up(a), stitch.down(b)
    trips = mse(stitch.down(above), a) + mse(stitch.up(below), b)
    return mse(above, b) + mse(below, a) + alpha * trips


def adam_flops(tokens: int, d_a: int, d_b: int) -> float:
    """Floating-point operations of the matrix products of `fit_by_adam` over so many rows, repeats counted.

    Ten products a row: four forward, four for the weights' gradients, two for those of the round trips' inputs.
    """
    return 20.0 * tokens * d_a * d_b


def _new(d_in: int, d_out: int, generator: torch.Generator, device: torch.device) -> Affine:
    bound = d_in**-0.5
    weight = torch.empty(d_in, d_out).uniform_(-bound, bound, generator=generator)
    return Affine(weight.to(device).requires_grad_(), torch.zeros(d_out, device=device, requires_grad=True))
