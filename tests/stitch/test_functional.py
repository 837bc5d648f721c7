"""Features that fire alike, and that push the same next tokens, correlate; planted null directions and planted head
switches are found, in GPT-2, Mistral and a family with query norms."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from torch import Tensor, nn

from heredity.lm.hooks import capture
from heredity.lm.load import mistral_config, new_model
from heredity.lm.logit_attribution import logit_weights
from heredity.sae.model import SAE, new_sae
from heredity.stitch.affine import Affine
from heredity.stitch.functional import (
    Paired,
    Side,
    activation_correlation,
    attribution_correlation,
    firing_blocks,
    head_scores,
    mean_over_blocks,
    moved_heads,
    null_share,
    paired_pearson,
    path_ablation,
    random_baseline,
)
from heredity.stitch.transfer import transfer_sae
from heredity.study import ArchitectureConfig
from stitch.test_affine import random

HOOK = "blocks.1.hook_resid_pre"
TOKENS, D_MODEL, FEATURES, K = 90, 16, 40, 6


@cache
def reader(seed: int) -> Any:
    shape = ArchitectureConfig(d_model=D_MODEL, d_mlp=32, n_layers=2, n_heads=4)
    made = new_model(mistral_config(shape, TOKENS, 64, 0), seed).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter *= 4 if parameter.ndim == 2 else 1
        made.model.norm.weight.copy_(1 + 0.5 * torch.rand(D_MODEL, generator=torch.Generator().manual_seed(seed)))
    return made


def sae() -> SAE:
    return new_sae(D_MODEL, FEATURES, "topk", K, torch.Generator().manual_seed(1))


def text() -> np.ndarray:
    return np.random.default_rng(0).integers(0, TOKENS, (40, 16))


def activations_of(side: Side) -> np.ndarray:
    """The plain reference: all activations, [tokens, d_sae]."""
    x = capture(side.model, side.hook_point, torch.from_numpy(text()))
    return side.sae.encode(x.flatten(0, 1)).double().numpy()


def attributions_of(side: Side) -> np.ndarray:
    """All activations times all logit weights of the next token."""
    ids = torch.from_numpy(text())
    acts = side.sae.encode(capture(side.model, side.hook_point, ids)[:, :-1].flatten(0, 1)).double()
    weights = logit_weights(side.model, side.hook_point, side.sae.W_dec).double()
    return (acts * weights[:, ids[:, 1:].flatten()].T).numpy()


@pytest.mark.parametrize(
    ("correlation", "reference"), [(attribution_correlation, attributions_of), (activation_correlation, activations_of)]
)
def test_r_firings_and_peaks_are_those_of_numpy_whatever_the_parts(monkeypatch, correlation, reference):
    monkeypatch.setattr("heredity.lm.activations._CHUNK_TOKENS", 7 * 16)  # several parts, the last one short
    monkeypatch.setattr("heredity.stitch.functional._CHUNK", 100 * D_MODEL)
    wide = new_sae(32, FEATURES, "relu")
    wide.W_enc.copy_(random(32, FEATURES, seed=3))
    wide.W_dec.copy_(wide.W_enc.T)
    wide.b_enc[7] = -1e6
    sides = Side(reader(1), HOOK, sae()), Side(reader(2), "blocks.0.mlp.hook_post", wide)
    found: Paired = correlation(*sides, text())
    a, b = map(reference, sides)
    live = np.flatnonzero((a.std(0) > 0) & (b.std(0) > 0))
    assert len(live) > FEATURES / 2 and 7 not in live and found.tokens == len(a)
    expected = [np.corrcoef(a[:, i], b[:, i])[0, 1] for i in live]
    np.testing.assert_allclose(found.r[live], expected, atol=1e-5)
    assert np.isnan(np.delete(found.r, live)).all()
    for values, firings, peak in zip((a, b), found[1:3], found[3:5], strict=True):
        assert np.array_equal(firings, (values != 0).sum(0))
        np.testing.assert_allclose(peak, np.maximum(values.max(0), 0), rtol=1e-4, atol=1e-6)


def test_kept_flipped_exchanged_and_dead_features_are_told_apart():
    parent, child = sae(), sae()
    child.W_dec[3] *= -1
    child.W_dec[5], child.W_enc[:, 5] = parent.W_dec[11], parent.W_enc[:, 11]
    child.b_enc[7] = -1e6
    found = attribution_correlation(Side(reader(1), HOOK, parent), Side(reader(1), HOOK, child), text())
    assert found.r[3] < -0.95  # which k are the largest changes a little with the other changes
    assert abs(found.r[5]) < 0.5 and np.isnan(found.r[7]) and found.target_firings[7] == 0 < found.source_firings[7]
    rest = np.delete(found.r, [3, 5, 7, 11])
    assert np.nanmin(rest) > 0.95 and np.nanmedian(rest) > 0.98


def test_random_features_are_as_alike_as_the_maps_make_them():
    """Through the identity any feature keeps its attribution; through a map that mixes models up, none does."""
    same, own = Affine(torch.eye(D_MODEL), torch.zeros(D_MODEL)), Side(reader(1), HOOK, sae())
    found, other, again, more = (
        random_baseline(own, (reader(model), HOOK), same, same, text(), K, seed)
        for model, seed in ((1, 4), (2, 4), (2, 4), (2, 5))
    )
    assert found.source_firings.sum() == pytest.approx(K * found.tokens, rel=0.02)
    assert np.nanmin(found.r) > 0.999 and abs(np.nanmedian(other.r)) < 0.1
    assert np.array_equal(again.r, other.r, equal_nan=True) and not np.array_equal(more.r, other.r, equal_nan=True)


def test_a_rotated_model_is_understood_through_its_maps():
    """B is A in a rotated space: transferred features push as before, the untransferred ones do not."""
    turn = torch.linalg.qr(random(D_MODEL, D_MODEL, seed=9)).Q
    a = copy.deepcopy(reader(1))
    with torch.no_grad():
        # A gain of 1 lets the final norm commute with a rotation.
        a.model.norm.weight.fill_(1)
    b = copy.deepcopy(a)
    with torch.no_grad():
        reads, writes = [b.model.embed_tokens, b.lm_head], []
        for layer in b.model.layers:
            # Their norms have a gain of 1 too.
            attn, mlp = layer.self_attn, layer.mlp
            reads += [attn.q_proj, attn.k_proj, attn.v_proj, mlp.gate_proj, mlp.up_proj]
            writes += [attn.o_proj, mlp.down_proj]
        for module in reads:
            module.weight.copy_(module.weight @ turn)
        for module in writes:
            module.weight.copy_(turn.T @ module.weight)
    zero = torch.zeros(D_MODEL)
    up, down = Affine(turn, zero), Affine(turn.T.contiguous(), zero)
    moved = attribution_correlation(Side(a, HOOK, sae()), Side(b, HOOK, transfer_sae(sae(), up, down)), text())
    assert np.nanmin(moved.r) > 0.99
    unmoved = attribution_correlation(Side(a, HOOK, sae()), Side(b, HOOK, sae()), text())
    assert np.nanmedian(unmoved.r) < 0.3


def test_a_transferred_sae_fires_alike_on_the_image_of_the_source():
    """The maps are inverse to each other, and the target is the source seen through them."""
    turn, shift = torch.linalg.qr(random(D_MODEL, D_MODEL, seed=4)).Q.contiguous(), torch.linspace(-1, 1, D_MODEL)
    up, down = Affine(turn, shift), Affine(turn.T.contiguous(), -(shift @ turn.T))
    x = capture(reader(1), HOOK, torch.from_numpy(text())).flatten(0, 1)

    def r(target: SAE) -> np.ndarray:
        pairs = ((sae().encode(part), target.encode(up(part))) for part in x.split(100))
        return paired_pearson(((csr_array(a.numpy()), csr_array(b.numpy())) for a, b in pairs), FEATURES).r

    moved = r(transfer_sae(sae(), up, down))
    assert np.nanmin(moved) > 0.999 and np.isfinite(moved).sum() > 20 and np.nanmedian(r(sae())) < 0.5


def test_what_cannot_be_compared_is_refused():
    own = Side(reader(1), HOOK, sae())
    with pytest.raises(ValueError, match=r"\[600, 40\] and \[600, 8\] for 40 features"):
        attribution_correlation(own, own._replace(sae=new_sae(D_MODEL, 8, "topk", 2)), text())
    with pytest.raises(ValueError, match=r"activations are \[3, 4\] and \[2, 4\] for 4 features"):
        paired_pearson([(csr_array((3, 4)), csr_array((2, 4)))], 4)


# -- functional features ----------------------------------------------------------------------------------------------

VOCAB, D, LAYERS, BOS, CONTEXT = 70, 32, 3, 0, 12
DECODER = dict(hidden_size=D, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=4)
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": dict(n_embd=D, n_layer=LAYERS, n_head=4, n_positions=32),
    "mistral": dict(DECODER, num_key_value_heads=2),
    "qwen3": dict(DECODER, num_key_value_heads=2, head_dim=12),
    "gpt_neox": DECODER,
}


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


def block(made: Any, layer: int) -> tuple[Any, Any]:
    """A layer and the norm before its attention."""
    at = (made.transformer.h if hasattr(made, "transformer") else made.model.layers)[layer]
    return at, at.ln_1 if hasattr(at, "ln_1") else at.input_layernorm


def blocks() -> np.ndarray:
    return np.random.default_rng(0).integers(1, VOCAB, (10, CONTEXT))


def heads_of(at: Any, normed: Tensor) -> list[Tensor]:
    """Queries, keys and values of a layer, [batch, context, heads, d_head]."""
    if hasattr(at, "attn"):
        return [part.unflatten(-1, (4, -1)) for part in at.attn.c_attn(normed).split(D, -1)]
    own, found = at.self_attn, []
    for name in "qkv":
        part = getattr(own, f"{name}_proj")(normed).unflatten(-1, (-1, own.head_dim))
        found.append(getattr(own, f"{name}_norm", nn.Identity())(part))
    return found


def rotated(made: Any, x: Tensor) -> Tensor:
    """Queries or keys [batch, context, heads, d_head] turned by their positions, where the family does."""
    from transformers.models.mistral.modeling_mistral import apply_rotary_pos_emb

    if hasattr(made, "transformer"):
        return x
    cos, sin = made.model.rotary_emb(x, torch.arange(x.shape[1])[None])
    return apply_rotary_pos_emb(x, x, cos, sin, unsqueeze_dim=2)[0]


def attention_of(made: Any, layer: int, ids: Tensor, less: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
    """Plain reference: weights [batch, heads, query, key] and outputs z [batch, query, heads, d_head] of one layer,
    with `less` [batch, context, d_model] taken from the stream that queries are made of."""
    (at, norm), x = block(made, layer), capture(made, f"blocks.{layer}.hook_resid_pre", ids)
    with torch.no_grad():
        q, (_, k, v) = heads_of(at, norm(x - less))[0], heads_of(at, norm(x))
        q, k = rotated(made, q), rotated(made, k)
        k, v = (part.repeat_interleave(q.shape[2] // part.shape[2], 2) for part in (k, v))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
        weights = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf).softmax(-1)
        return weights, torch.einsum("bhqk,bkhd->bqhd", weights, v)


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
    many = random(2000, D, seed=1)
    found = null_share(model("mistral"), HOOK, many, bottom=0.08)
    assert np.sqrt(np.square(found.share).mean()) == pytest.approx(found.by_chance, rel=0.05)
    assert null_share(model("mistral"), HOOK, many[:1]).dimensions == 1
    assert np.isnan(null_share(model("mistral"), HOOK, torch.zeros(1, D)).share[0])


@pytest.mark.parametrize("family", ["gpt2", "mistral"])
def test_scores_are_how_a_push_moves_the_attention_logit(family: str):
    made, directions = model(family), random(4, D, seed=5)
    found, layers = head_scores(made, HOOK, directions, BOS, CONTEXT)
    assert layers == (1, 2) and found.shape == (4, 2, 4)
    ids = torch.full((1, CONTEXT), BOS)
    for place, layer in enumerate(layers):
        (at, norm), x = block(made, layer), capture(made, f"blocks.{layer}.hook_resid_pre", ids)
        center = directions - directions.mean(1, keepdim=True) if family == "gpt2" else directions
        with torch.no_grad():
            push, none, k = center * norm.weight, torch.zeros(1, D), heads_of(at, norm(x))[1][0, 0]
            q = heads_of(at, push[:, None])[0] - heads_of(at, none[:, None])[0]
            q = rotated(made, q.expand(-1, CONTEXT, -1, -1))
            expected = (q * k.repeat_interleave(4 // len(k), 0)).sum(-1).mean(1) / q.shape[-1] ** 0.5
        np.testing.assert_allclose(found[:, place], expected.numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "mistral", "qwen3"])
def test_path_ablation_is_that_of_the_layer_computed_by_hand(family: str):
    made, ids = model(family), torch.from_numpy(blocks())
    x = capture(made, HOOK, ids)
    direction = torch.nn.functional.normalize(random(D, seed=2), dim=0)
    sae = switch(direction, float((x @ direction).quantile(0.7)))
    acts = sae.encode(x)[..., 0]
    fires = acts > 0
    fires[:, :2] = False
    assert 10 < int(fires.sum()) < 60
    for layer, head in ((1, 3), (2, 0)):
        found = path_ablation(made, HOOK, sae, 0, layer, blocks(), skip=2)
        clean, changed = (attention_of(made, layer, ids, less) for less in (0.0, acts[..., None] * sae.W_dec[0]))
        np.testing.assert_allclose(found.acts, acts[fires].numpy(), rtol=1e-4, atol=1e-6)
        assert np.array_equal(found.blocks, fires.nonzero()[:, 0])
        for (weights, z), attention, norm in zip((clean, changed), found.attention, found.norm, strict=True):
            expected = weights[:, head, :, 0][fires], z[:, :, head].norm(dim=-1)[fires]
            np.testing.assert_allclose(attention[:, head], expected[0].numpy(), rtol=2e-4, atol=1e-6)
            np.testing.assert_allclose(norm[:, head], expected[1].numpy(), rtol=2e-4, atol=1e-6)
        assert np.abs(found.attention[0] - found.attention[1]).max() > 1e-3
    none = path_ablation(made, HOOK, sae, 1, 2, blocks())
    assert none.acts.shape == (0,) and none.attention.shape == none.norm.shape == (2, 0, 4)


def turning(made: Any, direction: Tensor, heads: dict[tuple[int, int], float]) -> Any:
    """A copy of GPT-2 whose heads (layer, head) read a direction and turn to the first token, or, below 0, away."""
    made = copy.deepcopy(made)
    for (layer, head), by in heads.items():
        key = capture(made, f"transformer.h.{layer}.attn.c_attn:output", torch.tensor([[BOS]]))[0, 0, D : 2 * D]
        at, _ = block(made, layer)
        with torch.no_grad():
            query = at.attn.c_attn.weight[:, :D].view(D, 4, -1)[:, head]
            query += by * torch.outer(
                direction / at.ln_1.weight, torch.nn.functional.normalize(key.view(4, -1)[head], dim=0)
            )
    return made


def test_a_planted_switch_turns_one_head_off_and_another_on():
    tokens = np.random.default_rng(0).integers(1, VOCAB, (60, CONTEXT))
    tokens[:, 0] = BOS
    direction = random(D, seed=2)
    planted = torch.nn.functional.normalize(direction - direction.mean(), dim=0)
    made = turning(model("gpt2"), planted, {(2, 1): 8.0, (1, 2): -8.0})
    scores, layers = head_scores(made, HOOK, torch.cat([planted[None], random(50, D, seed=1)]), BOS)
    assert layers == (1, 2)
    assert scores[0].argmax() == 1 * 4 + 1 and scores[0].argmin() == 2, "layer 2 is the second, layer 1 the first one"
    x = capture(made, HOOK, torch.from_numpy(tokens))
    for sign, names in ((1, ("off", "on")), (-1, ("on", "off"))):
        sae = switch(sign * planted, float((x @ (sign * planted)).quantile(0.5)))
        side = Side(made, HOOK, sae)
        found = moved_heads(side, 0, layers, tokens)
        assert [found[name][:2] for name in names] == [(2, 1), (1, 2)]
        fires = firing_blocks(side, [0, 1], tokens)
        assert fires[:, 0].mean() > 0.8 and not fires[:, 1].any() and not moved_heads(side, 1, layers, tokens)
        for name, effect in found.items():
            own = effect.effect
            whole = path_ablation(made, HOOK, sae, 0, effect.layer, np.delete(tokens, np.s_[::5], 0))
            np.testing.assert_allclose(own.attention, whole.attention[..., effect.head])
            drop, low, high = mean_over_blocks(own.attention[0] - own.attention[1], own.blocks)
            assert drop == pytest.approx(np.mean(own.attention[0] - own.attention[1]))
            assert low > 0 if name == "off" else high < 0, "beyond what blocks vary by"


def test_the_interval_of_a_mean_is_over_blocks():
    """Tokens that repeat within blocks are as many draws as there are blocks."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(400):
        values, blocks = np.repeat(rng.normal(1, 2, 12), 30), np.repeat(np.arange(12), 30)
        _, low, high = mean_over_blocks(values, blocks)
        covered += low <= 1 <= high
    assert 0.92 < covered / 400 < 0.98
    assert np.isnan(mean_over_blocks(np.ones(3), np.zeros(3))[1])


def test_what_is_not_known_is_refused():
    one = torch.ones(1, D)
    with pytest.raises(ValueError, match="attention of GPTNeoXLayer is not of a known kind; .*Llama"):
        head_scores(model("gpt_neox"), HOOK, one, BOS)
    with pytest.raises(ValueError, match="no attention follows blocks.2.hook_resid_post"):
        head_scores(model("gpt2"), "blocks.2.hook_resid_post", one, BOS)
    assert head_scores(model("gpt2"), "blocks.0.hook_resid_post", one, BOS)[1] == (1, 2)
