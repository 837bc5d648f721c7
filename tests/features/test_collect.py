"""Feature activations do not depend on how many processes collect them."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from heredity.engine.workers import Progress, shards
from heredity.features.collect import Reader, collect, collected
from heredity.lm.load import mistral_config, new_model
from heredity.sae.model import new_sae
from heredity.study import ArchitectureConfig
from heredity.text.tokens import BlockSampler, PackedTokens

HOOK, CONTEXT = "blocks.0.mlp.hook_post", 64
TOKENS = 40_000  # several forward passes, the last one short


def reader(width: int = 48) -> Reader:
    """A model and two SAEs that follow from nothing but this code."""
    shape = ArchitectureConfig(d_model=32, d_mlp=48, n_layers=1, n_heads=4)
    model = new_model(mistral_config(shape, 300, 256, 0), 1).eval()
    generator = torch.Generator().manual_seed(2)
    return Reader(model, HOOK, [new_sae(width, 200, "topk", 5, generator), new_sae(width, 96, "relu", None, generator)])


def sampler() -> BlockSampler:
    tokens = np.random.default_rng(0).integers(0, 300, 80_000)
    return BlockSampler({"only": PackedTokens(tokens, np.array([0, len(tokens)]))}, CONTEXT, 3)


def test_one_two_and_three_processes_give_the_same_bits():
    found, calls = [], []
    for count in (1, 2, 3):
        report: Progress = lambda done, total: calls.append((done, total))  # noqa: E731
        with shards(count) as workers:
            found.append(collected(workers.job(partial(reader)), sampler(), TOKENS, report))
    for acts in found[1:]:
        for one, other in zip(found[0], acts, strict=True):
            assert one.tokens == TOKENS and one.n > TOKENS
            for name in ("indptr", "indices", "values"):
                assert np.array_equal(getattr(one, name), getattr(other, name)), name
    assert calls[: len(calls) // 3] == calls[len(calls) // 3 : 2 * len(calls) // 3]
    assert calls[-1] == (TOKENS // CONTEXT, TOKENS // CONTEXT)


def test_models_in_memory_are_read_the_same():
    model, hook_point, saes, _ = reader()
    plain = collect(model, hook_point, saes, sampler(), 5000)
    with shards(1) as workers:
        for one, other in zip(plain, collected(workers.job(reader), sampler(), 5000), strict=True):
            assert np.array_equal(one.values, other.values)
    assert plain[0].tokens == 5056, "rounded up to a block"


@pytest.mark.parametrize("count", [1, 2])
def test_an_sae_of_another_width_is_refused_by_any_worker(count):
    with pytest.raises(ValueError, match="width 40, but .* gives 48"), shards(count) as workers:
        collected(workers.job(partial(reader, 40)), sampler(), 1000)
