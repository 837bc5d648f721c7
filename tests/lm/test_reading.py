"""How a model is read: a token before every block that no sample sees, and positions that are no samples."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, MistralForCausalLM

import tiny
from heredity.analyses.sae import SAE_QUALITY, robust_figures
from heredity.features.acts import FeatureActs
from heredity.features.collect import Reader, encoded
from heredity.lm.activations import ActivationStore, activations, aligned, sampled
from heredity.lm.evaluate import evaluate
from heredity.lm.hooks import capture, replaced
from heredity.lm.reading import Reading, plainly, prefix_of, read_as, samples
from heredity.sae.evaluate import quality

IDS = torch.from_numpy(np.random.default_rng(0).integers(2, 60, (3, 10)))
PLACES = ("blocks.0.hook_resid_pre", "blocks.0.mlp.hook_post", "blocks.0.hook_resid_post")


def models() -> list[torch.nn.Module]:
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=2, n_head=4)).eval()
    return [tiny.tiny_model(), gpt2]


@pytest.mark.parametrize("kind", [0, 1])
def test_a_prefix_is_read_and_seen_by_nobody(kind):
    model, plain = models()[kind], models()[kind]
    read_as(model, Reading(prefix=1))
    longer = torch.cat([torch.ones(3, 1, dtype=torch.long), IDS], 1)
    for place in PLACES:  # the oracle: the same model given the token by hand
        assert torch.equal(capture(model, place, IDS), capture(plain, place, longer)[:, 1:]), place
    assert torch.allclose(model(input_ids=IDS).logits, plain(input_ids=longer).logits[:, 1:], atol=1e-6)
    expected = torch.nn.functional.cross_entropy(
        plain(input_ids=longer).logits[:, 1:-1].flatten(0, 1), IDS[:, 1:].flatten()
    )
    assert evaluate(model, IDS.numpy(), precision="float32").ce_loss == pytest.approx(expected.item(), rel=1e-5)
    edited = copy.deepcopy(model)
    assert torch.equal(capture(edited, PLACES[0], IDS), capture(model, PLACES[0], IDS))
    with plainly(model):
        assert torch.equal(capture(model, PLACES[1], IDS), capture(plain, PLACES[1], IDS))


def test_what_replaces_activations_never_touches_the_prefix():
    model, plain = models()[0], models()[0]
    read_as(model, Reading(prefix=1))
    longer = torch.cat([torch.ones(3, 1, dtype=torch.long), IDS], 1)

    def kept(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[:, :1], torch.zeros_like(x[:, 1:])], 1)

    with replaced(model, PLACES[1], torch.zeros_like), replaced(plain, PLACES[1], kept):
        assert torch.allclose(model(IDS).logits, plain(longer).logits[:, 1:], atol=1e-6)


def test_a_fine_tune_learns_behind_the_prefix():
    model, plain = models()[0], models()[0]
    read_as(model, Reading(prefix=1))
    longer = torch.cat([torch.ones(3, 1, dtype=torch.long), IDS], 1)
    for one, ids, first in ((model, IDS, 0), (plain, longer, 1)):
        assert isinstance(one, MistralForCausalLM)
        one.zero_grad()
        torch.nn.functional.cross_entropy(one(ids).logits[:, first:-1].flatten(0, 1), IDS[:, 1:].flatten()).backward()
    first, second = (dict(one.named_parameters())["model.layers.0.mlp.up_proj.weight"].grad for one in (model, plain))
    assert first is not None and second is not None and torch.allclose(first, second, atol=1e-7)


def test_the_tokenizers_own_habit_decides_what_stands_in_front():
    tokenizer = tiny.tiny_tokenizer()
    assert prefix_of(tokenizer) == tokenizer.eos_token_id and prefix_of(tokenizer, "none") is None
    begins = copy.deepcopy(tokenizer)
    from tokenizers.processors import TemplateProcessing

    begins.add_special_tokens({"bos_token": "<s>"})
    bos = begins.bos_token_id
    begins.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    assert prefix_of(begins) == bos != prefix_of(begins, "eos")
    begins.bos_token = None
    with pytest.raises(ValueError, match='prefix="bos": the tokenizer has no beginning-of-text token; choose eos'):
        prefix_of(begins, "bos")


def test_massive_and_first_positions_are_no_samples():
    model = models()[0]
    blocks = IDS.numpy()
    with torch.no_grad():
        model.get_input_embeddings().weight[blocks[1, 4]] *= 1000  # pyright: ignore
    (x,) = activations(model, PLACES[0], blocks)
    massive = (blocks == blocks[1, 4]).ravel()
    assert samples(model, x, blocks) is None
    read_as(model, Reading(outliers=10.0))
    kept = samples(model, x, blocks)
    assert kept is not None and np.array_equal(kept.numpy(), ~massive)
    read_as(model, Reading(skip=2))
    kept = samples(model, x, blocks)
    assert kept is not None and np.array_equal(kept.view(3, 10).numpy(), np.tile(np.arange(10) >= 2, (3, 1)))


def test_masked_tokens_are_read_and_are_no_samples():
    model, mask = models()[0], np.zeros(IDS.shape, bool)
    mask[0], mask[2, 7:] = True, True
    blocks = np.ma.masked_array(IDS.numpy(), mask)
    (x,) = activations(model, PLACES[1], blocks)
    assert torch.equal(x, capture(model, PLACES[1], IDS).flatten(0, 1)), "what is read is all of it"
    kept = ~mask.ravel()
    assert torch.equal(torch.cat(list(sampled(model, PLACES[1], blocks))), x[kept])
    sae = tiny.random_sae("relu", x.shape[1], 24)
    (acts,) = encoded(Reader(model, PLACES[1], [sae]), blocks)
    whole = FeatureActs(*sae.encode_sparse(x), sae.d_sae)
    assert acts.tokens == 30 and acts.counted == 17 and acts.samples is not None
    assert np.array_equal(acts.dense()[kept], whole.dense()[kept]) and not acts.dense()[~kept].any()
    assert np.array_equal(acts.density(), whole.where(kept).density())
    read_as(other := models()[0], Reading(skip=1))
    ((both, which),) = aligned([(model, PLACES[1], "float32"), (other, PLACES[1], "float32")], blocks)
    shared = kept & (np.arange(30) % 10 >= 1)
    assert np.array_equal(which.numpy(), shared) and all(torch.equal(side, x[shared]) for side in both)


def test_batches_for_training_hold_samples_alone():
    model, sampler = models()[0], tiny.sampler(IDS.numpy())
    with torch.no_grad():
        model.get_input_embeddings().weight[IDS[1, 4]] *= 1000  # pyright: ignore
    read_as(model, Reading(outliers=10.0))
    store = ActivationStore(model, PLACES[0], sampler, batch_blocks=1, seed=0, buffer=3)
    (x,) = activations(model, PLACES[0], sampler.take(0, 3))
    batches = torch.cat([store.batch(number) for number in range(3)])
    assert batches.shape == x.shape and float(batches.norm(dim=1).max()) < 100
    assert store.left_out == int((IDS[1, 4] == IDS).sum())


def test_quality_names_the_vectors_that_own_the_variance():
    """An SAE that is right on massive vectors alone looks perfect by the pooled figure, and by no other."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(400, 12)).astype(np.float32))
    blocks = np.tile(np.arange(20), (20, 1))
    first = np.flatnonzero(blocks.ravel() == 0)
    x[first] = 1000 * torch.eye(12)[0]
    sae = tiny.random_sae("relu", 12, 12)
    for name, value in (("W_enc", torch.eye(12)), ("W_dec", torch.diag(torch.eye(12)[0]))):
        getattr(sae, name).copy_(value)
    sae.b_enc.zero_(), sae.b_dec.zero_()
    found = quality(sae, [x])
    assert found.explained_variance > 0.999 > 0.3 > found.explained_variance_ordinary > 0
    assert -0.1 < found.explained_variance_token < 0.2 and found.massive_variance > 0.999
    assert np.array_equal(np.flatnonzero(found.massive), first)
    row = robust_figures(found, blocks)
    assert row["massive_share"] == 0.05 and row["massive_at"] == "100 % at position 0 of blocks"
    without = quality(sae, [x[torch.from_numpy(~found.massive)]])
    assert without.explained_variance == pytest.approx(found.explained_variance_ordinary)
    assert without.massive_variance == 0 and robust_figures(without, blocks)["left_out"] == pytest.approx(0.05)
    (note,) = SAE_QUALITY.say({"saes": [row | {"model": "m", "instrument": "joint", "explained_variance": 1.0}]})
    assert "5 % of the vectors own >99.9 % of the variance (100 % at position 0 of blocks)" in note.text
