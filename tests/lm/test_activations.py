"""Activations are the model's own, come in well mixed batches, and in bf16 close to float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import tiny
from heredity.lm.activations import ActivationStore, activations, blocks_at_once
from heredity.lm.evaluate import arithmetic, blocks_that_fit
from heredity.lm.hooks import capture
from heredity.lm.load import mistral_config, new_model
from heredity.study import ArchitectureConfig
from heredity.text.tokens import BlockSampler, PackedTokens
from worlds import NO_GPU

CONTEXT, BATCH_BLOCKS, BUFFER = 24, 32, 16
GROUP = BATCH_BLOCKS * BUFFER  # blocks shuffled together
DOCUMENT = 8  # blocks a document


class Names(nn.Module):
    """A model whose activations are the token ids."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.embed = nn.Embedding.from_pretrained(torch.arange(vocab, dtype=torch.float32)[:, None])

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.embed(ids)


def origins(first: int, second: int, batches: int) -> tuple[np.ndarray, int]:
    """Block that each vector of a stream over two corpora of so many blocks comes from, [batches, batch size]."""
    total = first + second
    tokens, documents = np.repeat(np.arange(total), CONTEXT), np.arange(0, total + DOCUMENT, DOCUMENT) * CONTEXT
    parts = {"a": tokens[: first * CONTEXT], "b": tokens[first * CONTEXT :]}
    packs = {name: PackedTokens(part, documents) for name, part in parts.items()}
    store = ActivationStore(Names(total), "embed:output", BlockSampler(packs, CONTEXT, 5), BATCH_BLOCKS, 3, BUFFER)
    return np.stack([store.batch(number)[:, 0].numpy().astype(int) for number in range(batches)]), total


def same(labels: np.ndarray) -> float:
    """Mean share of the pairs of a batch that have the same label."""
    counts = [np.bincount(row) for row in labels]
    return float(np.mean([(n * (n - 1)).sum() / (n.sum() * (n.sum() - 1)) for n in counts]))


def test_a_batch_holds_as_few_vectors_of_one_block_as_its_group_allows_and_of_one_document_as_by_chance():
    found, total = origins(3000, 3000, 64)
    ideal, unshuffled = ((CONTEXT - 1) / (blocks * CONTEXT - 1) for blocks in (GROUP, BATCH_BLOCKS))
    assert same(found) == pytest.approx(ideal, rel=0.05)
    assert same(found) < unshuffled / 14
    touched = np.mean([len(np.unique(row)) for row in found])
    assert touched > 0.75 * GROUP, "a batch comes from most blocks of its group, not from BATCH_BLOCKS of them"
    chance = (DOCUMENT - 1) / (total - 1)  # of another block of the same document
    assert same(found // DOCUMENT) - same(found) == pytest.approx(chance, rel=0.15)


@pytest.mark.parametrize(("first", "second"), [(3000, 3000), (5400, 600)])
def test_corpora_are_mixed_as_if_their_blocks_were_drawn_at_random(first, second):
    found, total = origins(first, second, total_batches := 6000 // BATCH_BLOCKS)
    of_second = (found >= first).mean(1)
    p = second / total
    n = BATCH_BLOCKS * CONTEXT
    assert of_second.mean() == pytest.approx(p, abs=0.005)
    # A batch samples the vectors of a group of blocks: the spread of both draws, and no more.
    drawn = p * (1 - p) * (1 / n + 1 / GROUP)
    assert of_second.var() < 1.5 * drawn
    assert abs(np.corrcoef(np.arange(total_batches), of_second)[0, 1]) < 4 / np.sqrt(total_batches)


def test_every_vector_of_a_pass_comes_exactly_once():
    found, total = origins(GROUP, GROUP, 2 * BUFFER)
    assert np.array_equal(np.bincount(found.ravel()), np.full(total, CONTEXT))


def small_model(n_layers: int = 2):
    shape = ArchitectureConfig(d_model=64, d_mlp=96, n_layers=n_layers, n_heads=4)
    return new_model(mistral_config(shape, 300, 256, 0), 1).eval()


@pytest.fixture
def bf16_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16 even where the processor has to take it apart."""
    monkeypatch.setattr("heredity.lm.evaluate.native_bfloat16", lambda: True)


@pytest.mark.parametrize("hook_point", ["blocks.0.mlp.hook_post", "blocks.1.hook_resid_post", "blocks.1.attn.hook_z"])
def test_float32_activations_are_those_of_the_plain_model_and_bf16_within_two_percent(hook_point, bf16_anywhere):
    blocks = np.random.default_rng(0).integers(0, 300, (64, CONTEXT))
    exact, rounded = (torch.cat(list(activations(small_model(), hook_point, blocks, p))) for p in ("float32", "bf16"))
    error = (rounded - exact).norm(dim=1) / exact.norm(dim=1)
    plain = capture(small_model(), hook_point, torch.from_numpy(blocks)).flatten(0, 1)
    torch.testing.assert_close(exact, plain, rtol=1e-4, atol=1e-6)
    assert exact.dtype == rounded.dtype == torch.float32
    assert 1e-4 < float(error.mean()) < 0.02 and float(error.max()) < 0.05


def test_chunks_are_forward_passes_of_whole_blocks():
    assert blocks_at_once(CONTEXT) == 512 and blocks_at_once(100_000) == 1
    sizes = [len(x) for x in activations(Names(9), "embed:output", np.ones((1200, CONTEXT), np.int64))]
    assert sizes == [512 * CONTEXT, 512 * CONTEXT, 176 * CONTEXT]


def test_passes_are_as_large_as_memory_allows_and_chunks_stay_what_they_are(monkeypatch):
    blocks, whole = np.arange(1200 * CONTEXT).reshape(1200, CONTEXT) % 9, []
    for fit in (None, 100):
        monkeypatch.setattr("heredity.lm.activations.blocks_that_fit", lambda *of, fit=fit: fit)
        whole.append(list(activations(Names(9), "embed:output", blocks)))
    assert [len(x) for x in whole[1]] == [512 * CONTEXT, 512 * CONTEXT, 176 * CONTEXT]
    assert all(torch.equal(x, y) for x, y in zip(*whole, strict=True))


@pytest.mark.gpu
@NO_GPU
def test_float32_on_a_gpu_is_tf32_while_it_lasts_and_memory_sets_the_size_of_a_pass():
    model, before = small_model().to("cuda"), torch.get_float32_matmul_precision()
    with arithmetic(torch.device("cuda"), "float32"):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before
    fits = blocks_that_fit(model, CONTEXT)
    assert fits is not None and fits > blocks_that_fit(model, 100 * CONTEXT) > 0  # type: ignore[operator]


def test_arithmetic_ends_with_its_block(bf16_anywhere):
    layer, x = nn.Linear(8, 8), torch.randn(3, 8)
    before = layer(x)
    with torch.no_grad(), arithmetic(x.device, "bf16"):
        assert layer(x).dtype == torch.bfloat16
    with torch.no_grad(), arithmetic(x.device, "float32"):
        torch.testing.assert_close(layer(x), before.detach())
    assert layer(x).dtype == torch.float32 and layer(x).requires_grad


def test_one_forward_pass_serves_several_hook_points_and_gives_each_what_it_gets_alone():
    model, places = small_model(), ("blocks.1.attn.hook_z", "blocks.0.hook_resid_post", "blocks.0.mlp.hook_post")
    blocks = np.random.default_rng(0).integers(0, 40, (64, 8))
    passes: list[int] = []
    model.register_forward_pre_hook(lambda *_: passes.append(1))

    def store(places: str | tuple[str, ...]) -> ActivationStore:
        return ActivationStore(model, places, tiny.sampler(blocks), batch_blocks=4, seed=2, buffer=3)

    together = store(places)
    got = {place: [together.batch(step, place).clone() for step in range(3)] for place in places}
    read = len(passes)
    for place in places:
        alone = store(place)
        assert all(torch.equal(batch, alone.batch(step)) for step, batch in enumerate(got[place])), place
    assert read == 1 and len(passes) == 1 + len(places)
