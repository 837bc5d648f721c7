"""Edits of weights do to a model what they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

import tiny
from heredity.lm.hooks import capture
from heredity.lm.load import load_model, save_model
from heredity.synthetic.surgery import permuted, projected, quantized, rotated, shaken

IDS = torch.arange(24).reshape(2, 12)
GPT2: dict = dict(vocab_size=64, n_embd=16, n_layer=2, n_head=4, n_positions=32)
STREAM = "blocks.0.hook_resid_post"


@pytest.fixture(scope="module")
def model():
    made = tiny.tiny_model(0).eval()
    with torch.no_grad():  # gains that are not 1, as trained norms have
        for name, weight in made.named_parameters():
            if "norm" in name:
                weight.copy_(torch.linspace(0.5, 1.5, len(weight)))
    return made


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("edit", [permuted, rotated])
def test_a_change_of_basis_changes_no_logit(model, edit):
    before, made = logits(model).clone(), edit(model)
    torch.testing.assert_close(logits(made), before, rtol=1e-3, atol=1e-4)
    assert torch.equal(logits(model), before), "the model itself stays as it is"
    place = STREAM if edit is rotated else "blocks.0.mlp.hook_post"
    assert not torch.allclose(capture(made, place, IDS), capture(model, place, IDS), atol=1e-2)


def test_a_direction_that_is_projected_out_is_gone_from_the_stream(model):
    d = model.config.hidden_size
    directions = np.random.default_rng(0).normal(size=(2, d))
    turned = torch.from_numpy(directions).float()
    assert capture(projected(model, directions), STREAM, IDS).matmul(turned.T).abs().max() < 1e-4
    assert capture(model, STREAM, IDS).matmul(turned.T).abs().max() > 1e-2
    with torch.no_grad():
        torch.testing.assert_close(logits(projected(model, directions, keep=1.0)), logits(model))


def test_rounded_and_shaken_weights_differ_by_as_much_as_they_should(model):
    weight = "model.layers.0.mlp.up_proj.weight"
    before, rounded = model.state_dict()[weight], quantized(model, 4).state_dict()[weight]
    assert all(len(row.unique()) <= 15 for row in rounded)
    assert (rounded - before).abs().max() <= before.abs().amax() / 7 / 2 + 1e-6
    other = quantized(model, 3)
    for name, tensor in shaken(model, other).state_dict().items():
        own = model.state_dict()[name]
        torch.testing.assert_close((tensor - own).norm(), (other.state_dict()[name] - own).norm(), rtol=1e-3, atol=1e-6)


def test_shared_weights_are_shaken_once_and_parted_before_a_direction_is_taken_from_one_of_them(tmp_path):
    made = transformers.AutoModelForCausalLM.from_config(transformers.GPT2Config(**GPT2)).eval()  # tied
    with torch.no_grad():
        for name, weight in made.named_parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name)))  # biases too
    other = quantized(made, 3)
    own, theirs, shaken_ = (one.lm_head.weight for one in (made, other, shaken(made, other)))
    torch.testing.assert_close((shaken_ - own).norm(), (theirs - own).norm(), rtol=1e-3, atol=1e-6)
    u = np.random.default_rng(0).normal(size=(1, GPT2["n_embd"]))
    gone, turned = projected(made, u), permuted(made)
    save_model(gone, None, tmp_path)
    gone = load_model(tmp_path)
    assert torch.equal(gone.lm_head.weight, own)
    turn = torch.from_numpy(u[0]).float()
    assert (capture(gone, "blocks.1.hook_resid_post", IDS) @ turn).abs().max() < 1e-4
    torch.testing.assert_close(logits(turned), logits(made), rtol=1e-3, atol=1e-4)


def test_a_family_whose_blocks_do_more_than_their_matrices_is_refused():
    config = dict(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4)
    gemma = transformers.AutoModelForCausalLM.from_config(transformers.Gemma2Config(**config, head_dim=4)).eval()
    with torch.no_grad():
        for name, weight in gemma.named_parameters():
            if "norm" in name:
                weight.copy_(torch.linspace(-0.5, 0.5, len(weight)))
    for keep in (0.0, 0.5):
        with pytest.raises(ValueError, match="blocks.1.hook_resid_post still has the direction"):
            projected(gemma, np.random.default_rng(0).normal(size=(1, 16)), keep)


def test_other_families_are_refused():
    with pytest.raises(ValueError, match="Linear is no decoder of the Llama family"):
        rotated(torch.nn.Linear(2, 2))
