"""A world whose dictionary is known: vectors that are sparse sums of random unit directions, made from a seed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from heredity.kernels.torch_forms import linear
from heredity.sae.step import Weights

NOISE = 0.05
"""Length of the noise relative to the signal's."""


class World(NamedTuple):
    """Latents with their directions and rates."""

    directions: Tensor
    """float32 [latents, d_in], unit rows."""
    density: np.ndarray
    """float64 [latents]: share of vectors a latent fires on, like a Zipf law in its rank."""


def world(d_in: int, latents: int, l0: float, seed: int = 0) -> World:
    """A world in which `l0` latents fire on a vector on average."""
    directions = torch.randn(latents, d_in, generator=torch.Generator().manual_seed(seed))
    density = (np.arange(latents) + 10.0) ** -0.9
    density *= l0 / density.sum()
    return World(directions / directions.norm(dim=1, keepdim=True), np.minimum(density, 1.0))


def vectors(planted: World, n: int, seed: int) -> Tensor:
    """float32 [n, d_in]: latents that fire at random with lognormal magnitudes (sigma 0.5), and noise."""
    rng = np.random.default_rng(seed)
    latents = len(planted.density)
    counts = rng.binomial(n, planted.density)
    rows = rng.integers(0, n, counts.sum())
    # A latent drawn twice for one vector fires once.
    entries = np.unique(rows * latents + np.repeat(np.arange(latents), counts))
    offsets = np.searchsorted(entries, np.arange(n + 1) * latents)
    x = torch.nn.functional.embedding_bag(
        torch.from_numpy(entries % latents),
        planted.directions,
        torch.from_numpy(offsets),
        mode="sum",
        per_sample_weights=torch.from_numpy(rng.lognormal(0, 0.5, len(entries)).astype(np.float32)),
        include_last_offset=True,
    )
    generator = torch.Generator().manual_seed(seed)
    return x + torch.randn(x.shape, generator=generator) * (NOISE * float(x.square().mean()) ** 0.5)


def oracle(planted: World, x: Tensor, l0: float | None) -> Weights:
    """Weights of an SAE that has learned the world: its directions both ways and one threshold, at this L0 on x.

    None: no threshold, for activation functions that choose by rank.
    """
    directions = planted.directions
    b_dec = x.mean(0)
    if l0 is None:
        return Weights(directions.clone(), torch.zeros(len(directions)), directions.clone(), b_dec)
    sample = linear(x[:512] - b_dec, directions).flatten()
    cut = float(sample.topk(max(1, round(l0 * min(512, len(x))))).values[-1])
    b_enc = torch.full((len(directions),), -max(cut, 0.0))
    return Weights(directions.clone(), b_enc, directions.clone(), b_dec)
