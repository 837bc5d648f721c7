"""Feature activations do not depend on how many processes collect them."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from heredity.engine.workers import shards
from heredity.features.collect import Reader, collect, collected
from heredity.sae.model import new_sae
from heredity.text.tokens import BlockSampler, PackedTokens
from tiny import HOOK, tiny_model

CONTEXT, TOKENS = 64, 40_000  # several forward passes, the last one short


def reader(width: int = 48) -> Reader:
    """A model and two SAEs that follow from nothing but this code."""
    generator = torch.Generator().manual_seed(2)
    saes = [new_sae(width, 200, "topk", 5, generator), new_sae(width, 96, "relu", None, generator)]
    return Reader(tiny_model(1), HOOK, saes)


def sampler() -> BlockSampler:
    tokens = np.random.default_rng(0).integers(0, 300, 80_000)
    return BlockSampler({"only": PackedTokens(tokens, np.array([0, len(tokens)]))}, CONTEXT, 3)


def test_one_two_and_three_processes_give_the_same_bits():
    found, calls = [], []
    for count in (1, 2, 3):
        with shards(count) as workers:
            report = lambda done, total: calls.append((done, total))  # noqa: E731
            found.append(collected(workers.job(partial(reader)), sampler(), TOKENS, report))
    for acts in found[1:]:
        for one, other in zip(found[0], acts, strict=True):
            assert one.tokens == TOKENS and one.n > TOKENS
            for name in ("indptr", "indices", "values"):
                assert np.array_equal(getattr(one, name), getattr(other, name)), name
    assert calls[: len(calls) // 3] == calls[len(calls) // 3 : 2 * len(calls) // 3]
    assert calls[-1] == (TOKENS // CONTEXT, TOKENS // CONTEXT)


def test_models_in_memory_are_read_the_same():
    plain = collect(*reader()[:3], sampler(), 5000)
    with shards(1) as workers:
        for one, other in zip(plain, collected(workers.job(reader), sampler(), 5000), strict=True):
            assert np.array_equal(one.values, other.values)
    assert plain[0].tokens == 5056, "rounded up to a block"


@pytest.mark.parametrize("count", [1, 2])
def test_an_sae_of_another_width_is_refused_by_any_worker(count):
    with pytest.raises(ValueError, match="width 40, but .* gives 48"), shards(count) as workers:
        collected(workers.job(partial(reader, 40)), sampler(), 1000)
