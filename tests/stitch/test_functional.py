"""Planted null directions and planted head switches are found, in GPT-2, Mistral and a family with query norms."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from heredity.lm.hooks import capture
from heredity.lm.load import new_model
from heredity.lm.logit_attribution import logit_weights
from heredity.sae.model import SAE
from heredity.stitch.functional import head_scores, null_share, path_ablation

VOCAB, D, LAYERS, BOS, CONTEXT = 70, 32, 3, 0, 12
HOOK = "blocks.1.hook_resid_pre"

FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": dict(n_embd=D, n_layer=LAYERS, n_head=4, n_positions=32),
    "mistral": dict(
        hidden_size=D, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2
    ),
    "qwen3": dict(
        hidden_size=D, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2,
        head_dim=12,
    ),
    "gpt_neox": dict(hidden_size=D, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=4),
}  # fmt: skip


@cache
def model(family: str) -> Any:
    from transformers import AutoConfig

    config = AutoConfig.for_model(
        family, vocab_size=VOCAB, bos_token_id=BOS, eos_token_id=BOS, attn_implementation="eager", **FAMILIES[family]
    )
    made: Any = new_model(config, 3).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "norm" in name or "ln_" in name:
                parameter += 0.3 * torch.rand(parameter.shape, generator=generator)
            elif parameter.ndim == 2:
                parameter *= 8
    return made


def block(made: Any, layer: int) -> Any:
    return (made.transformer.h if hasattr(made, "transformer") else made.model.layers)[layer]


def blocks(number: int = 10) -> np.ndarray:
    return np.random.default_rng(0).integers(1, VOCAB, (number, CONTEXT))


def attention_of(made: Any, layer: int, ids: Tensor, less: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Plain reference: weights [batch, heads, query, key] and outputs z [batch, query, heads, d_head] of one layer,
    with `less` [batch, context, d_model] taken from the stream that queries are made of."""
    at, x = block(made, layer), capture(made, f"blocks.{layer}.hook_resid_pre", ids)
    less = torch.zeros_like(x) if less is None else less
    with torch.no_grad():
        if hasattr(at, "attn"):
            q = at.attn.c_attn(at.ln_1(x - less)).split(D, -1)[0]
            k, v = at.attn.c_attn(at.ln_1(x)).split(D, -1)[1:]
            q, k, v = (part.unflatten(-1, (4, -1)).transpose(1, 2) for part in (q, k, v))
        else:
            from transformers.models.mistral.modeling_mistral import apply_rotary_pos_emb

            attn, heads = at.self_attn, at.self_attn.head_dim
            normed, own = at.input_layernorm(x), at.input_layernorm(x - less)
            q, k, v = attn.q_proj(own), attn.k_proj(normed), attn.v_proj(normed)
            q, k, v = (part.unflatten(-1, (-1, heads)) for part in (q, k, v))
            if hasattr(attn, "q_norm"):
                q, k = attn.q_norm(q), attn.k_norm(k)
            q, k, v = (part.transpose(1, 2) for part in (q, k, v))
            q, k = apply_rotary_pos_emb(q, k, *made.model.rotary_emb(x, torch.arange(ids.shape[1])[None]))
            k, v = (part.repeat_interleave(2, 1) for part in (k, v))
        scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
        weights = scores.softmax(-1)
        return weights, (weights @ v).transpose(1, 2)


def switch(direction: Tensor, level: float) -> SAE:
    """One feature that reads and writes along a direction, and one that never fires."""
    sae = SAE(len(direction), 2, "relu")
    sae.W_enc[:, 0], sae.W_dec[0] = direction, direction
    sae.b_enc.copy_(torch.tensor([-level, -1e6]))
    return sae


def test_the_null_space_is_that_of_the_logits():
    for family in ("mistral", "gpt2"):
        made = model(family)
        effect = logit_weights(made, HOOK, torch.eye(D)).double()  # what each coordinate does, so U S V' with U over d
        left, values, _ = torch.linalg.svd(effect)
        assert bool((values[:-1] >= values[1:]).all())
        directions = torch.cat([left.T[[0, 5, -1, -2, -3]], left.T[-1:] + left.T[:1]]).float() * 3
        found = null_share(made, HOOK, directions, bottom=0.08)
        assert found.dimensions == 3 and found.by_chance == pytest.approx((3 / D) ** 0.5)
        np.testing.assert_allclose(found.share, [0, 0, 1, 1, 1, 0.5**0.5], atol=2e-3)
        np.testing.assert_allclose(found.norm, [3] * 5 + [3 * 2**0.5], rtol=1e-4)
    many = torch.randn(2000, D, generator=torch.Generator().manual_seed(1))
    found = null_share(model("mistral"), HOOK, many, bottom=0.08)
    assert np.sqrt(np.square(found.share).mean()) == pytest.approx(found.by_chance, rel=0.05)
    assert null_share(model("mistral"), HOOK, many[:1]).dimensions == 1
    assert np.isnan(null_share(model("mistral"), HOOK, torch.zeros(1, D)).share[0])


@pytest.mark.parametrize("family", ["gpt2", "mistral"])
def test_scores_are_how_a_push_moves_the_attention_logit(family: str):
    made, directions = model(family), torch.randn(4, D, generator=torch.Generator().manual_seed(5))
    found = head_scores(made, HOOK, directions, BOS, CONTEXT)
    assert found.layers == (1, 2) and found.scores.shape == (4, 2, 4)
    ids = torch.full((1, CONTEXT), BOS)
    for place, layer in enumerate(found.layers):
        at, x = block(made, layer), capture(made, f"blocks.{layer}.hook_resid_pre", ids)
        norm = at.ln_1 if family == "gpt2" else at.input_layernorm
        center = directions - directions.mean(1, keepdim=True) if family == "gpt2" else directions
        with torch.no_grad():
            if family == "gpt2":
                q = (center * norm.weight @ at.attn.c_attn.weight[:, :D]).view(4, 4, -1)
                keys = at.attn.c_attn(norm(x))[0, 0, D : 2 * D].view(4, -1)
                expected = (q * keys).sum(-1) / q.shape[-1] ** 0.5
            else:
                from transformers.models.mistral.modeling_mistral import apply_rotary_pos_emb

                q = at.self_attn.q_proj(center * norm.weight).view(4, 1, 4, -1).transpose(1, 2)
                k = at.self_attn.k_proj(norm(x))[:, :1].view(1, 1, 2, -1).transpose(1, 2)
                cos, sin = made.model.rotary_emb(x, torch.arange(CONTEXT)[None])
                k, _ = apply_rotary_pos_emb(k, k, cos[:, :1], sin[:, :1])
                turned, _ = apply_rotary_pos_emb(q.expand(-1, -1, CONTEXT, -1), q, cos, sin)
                keys = k[0].repeat_interleave(2, 0)
                expected = (turned * keys).sum(-1).mean(-1) / q.shape[-1] ** 0.5
        np.testing.assert_allclose(found.scores[:, place], expected.numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "mistral", "qwen3"])
def test_path_ablation_is_that_of_the_layer_computed_by_hand(family: str):
    made, ids = model(family), torch.from_numpy(blocks())
    x = capture(made, HOOK, ids)
    direction = torch.nn.functional.normalize(torch.randn(D, generator=torch.Generator().manual_seed(2)), dim=0)
    sae = switch(direction, float((x @ direction).quantile(0.7)))
    acts = sae.encode(x)[..., 0]
    fires = acts > 0
    fires[:, :2] = False
    assert 10 < int(fires.sum()) < 60
    for layer, head in ((1, 3), (2, 0)):
        activation, *effects = path_ablation(made, HOOK, sae, 0, layer, head, blocks(), skip=2)
        clean, changed = (attention_of(made, layer, ids, less) for less in (None, acts[..., None] * sae.W_dec[0]))
        np.testing.assert_allclose(activation, acts[fires].numpy(), rtol=1e-4, atol=1e-6)
        for (weights, z), attention, norm in zip((clean, changed), effects[:2], effects[2:], strict=True):
            np.testing.assert_allclose(attention, weights[:, head, :, 0][fires].numpy(), rtol=2e-4, atol=1e-6)
            np.testing.assert_allclose(norm, z[:, :, head].norm(dim=-1)[fires].numpy(), rtol=2e-4, atol=1e-6)
        assert np.abs(effects[0] - effects[1]).max() > 1e-3
    assert path_ablation(made, HOOK, sae, 1, 2, 0, blocks()).shape == (5, 0)


def test_a_planted_switch_stands_out_and_turns_its_head_to_the_first_token():
    """A direction made of one head's own query weights and first key."""
    made = model("gpt2")
    at = block(made, 2)
    tokens = blocks()
    tokens[:, 0] = BOS
    keys = capture(made, "transformer.h.2.attn.c_attn:output", torch.tensor([[BOS]]))[0, 0, D : 2 * D].view(4, -1)
    planted = (at.attn.c_attn.weight[:, :D].view(D, 4, -1)[:, 1] @ keys[1] / at.ln_1.weight).detach()
    planted = torch.nn.functional.normalize(planted, dim=0)
    others = torch.nn.functional.normalize(torch.randn(50, D, generator=torch.Generator().manual_seed(1)), dim=1)
    scores = head_scores(made, HOOK, torch.cat([planted[None], others]), BOS).scores
    assert scores[0].argmax() == 1 * 4 + 1  # layer 2, the second one meant; head 1
    assert scores[0, 1, 1] > 1.5 * scores[1:, 1, 1].max()
    x = capture(made, HOOK, torch.from_numpy(tokens))
    for sign in (1, -1):
        sae = switch(sign * planted, float((x @ (sign * planted)).quantile(0.5)))
        _, attention, ablated, *_ = path_ablation(made, HOOK, sae, 0, 2, 1, tokens)
        assert np.mean(sign * (attention - ablated) > 0) > 0.8 and len(attention) > 40


def test_what_is_not_known_is_refused():
    one = torch.ones(1, D)
    with pytest.raises(ValueError, match="attention of GPTNeoXLayer is not of a known kind; .*Llama"):
        head_scores(model("gpt_neox"), HOOK, one, BOS)
    with pytest.raises(ValueError, match="no attention follows blocks.2.hook_resid_post"):
        head_scores(model("gpt2"), "blocks.2.hook_resid_post", one, BOS)
    assert head_scores(model("gpt2"), "blocks.0.hook_resid_post", one, BOS).layers == (1, 2)
