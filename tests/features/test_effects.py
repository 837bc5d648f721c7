"""What features do is found where it was planted: in weights that were turned around, in units that were changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from heredity.features import effects
from heredity.features.collect import Reader
from heredity.features.effects import (
    Splice,
    attribution_similarity,
    attributions,
    differing,
    logit_similarity,
    logit_weights,
    splice,
    splice_figures,
)
from heredity.lm.hooks import HookPointError, replaced
from heredity.lm.load import new_model
from heredity.sae.model import SAE, new_sae
from tiny import HOOK, tiny_model

VOCAB, D_MODEL, D_MLP, LAST = 90, 24, 32, "blocks.1.mlp.hook_post"


def model(seed: int = 0) -> Any:
    made = tiny_model(seed, VOCAB, D_MODEL, D_MLP, 2)
    with torch.no_grad():
        for parameter in made.parameters():
            # Fresh weights are too small to have an effect.
            parameter *= 4 if parameter.ndim == 2 else 1
        made.model.norm.weight.copy_(1 + 0.5 * torch.rand(D_MODEL, generator=torch.Generator().manual_seed(seed)))
    return made


def top_k() -> SAE:
    return new_sae(D_MLP, 64, "topk", 5, torch.Generator().manual_seed(2))


def units(d_in: int = D_MLP) -> SAE:
    """A perfect SAE: feature i is the positive part of coordinate i, feature d_in + i the negative part."""
    sae = SAE(d_in, 2 * d_in, "relu")
    eye = torch.eye(d_in)
    sae.W_enc.copy_(torch.cat([eye, -eye], 1))
    sae.W_dec.copy_(torch.cat([eye, -eye], 0))
    return sae


def blocks(number: int = 12, context: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCAB, (number, context))


def centered(logits: Tensor) -> Tensor:
    return logits - logits.mean(1, keepdim=True)


STREAM = ("blocks.1.hook_resid_post", "blocks.0.hook_resid_pre", "blocks.1.hook_mlp_out", "hook_embed")
INTO_STREAM = {LAST: "layers.1.mlp.down_proj.weight", "blocks.0.attn.hook_z": "layers.0.self_attn.o_proj.weight"}


@pytest.mark.parametrize("name", [*STREAM, *INTO_STREAM])
def test_logit_weights_are_the_product_of_the_weights(name):
    made = model()
    into = made.model.get_parameter(INTO_STREAM[name]).T if name in INTO_STREAM else torch.eye(D_MODEL)
    directions = torch.randn(5, len(into), generator=torch.Generator().manual_seed(1))
    expected = centered((directions @ into * made.model.norm.weight) @ made.lm_head.weight.T)
    torch.testing.assert_close(logit_weights(made, name, directions), expected, rtol=1e-4, atol=1e-4)


NEOX = dict(hidden_size=24, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4)
FAMILIES = {
    "gpt2": dict(n_embd=24, n_layer=1, n_head=4, n_positions=32),
    "gpt_neox": NEOX,
    "gemma2": dict(NEOX, num_key_value_heads=2, head_dim=8, pad_token_id=None),
}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_logit_weights_say_how_the_logits_move_in_every_family(family: str):
    """Small pushes move the logits by the logit weights, but for the one direction that the norm's scale absorbs."""
    from transformers import AutoConfig

    config = AutoConfig.for_model(family, vocab_size=VOCAB, bos_token_id=0, eos_token_id=0, **FAMILIES[family])
    made: Any = new_model(config, 3).eval().double()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "norm" in name or "ln_" in name:
                parameter += 0.3 * torch.rand(parameter.shape, generator=torch.Generator().manual_seed(7)).double()
    ids = torch.arange(6)[None]
    push = torch.randn(1, 96, generator=torch.Generator().manual_seed(4)).double()
    moved = []
    for size in (1e-4, -1e-4):
        with torch.no_grad(), replaced(made, HOOK, lambda x, size=size: x + size * push):
            moved.append(made(input_ids=ids, use_cache=False).logits[0])
    slope, weights = centered((moved[0] - moved[1]) / 2e-4), logit_weights(made, HOOK, push).double()
    r = torch.corrcoef(torch.cat([weights, slope]))[0, 1:].tolist()
    assert min(r) > 0.7 and np.median(r) > 0.85, r


def test_other_hook_points_are_refused_with_those_there_are():
    there_are = "no linear map into the residual stream .* blocks.L., for mlp.hook_post"
    for name in ("blocks.1.mlp.hook_pre", "model.layers.1.mlp.down_proj:input"):
        with pytest.raises(HookPointError, match=there_are):
            logit_weights(model(), name, torch.zeros(1, D_MLP))
    with pytest.raises(ValueError, match="directions are 7 wide"):
        logit_weights(model(), LAST, torch.zeros(1, 7))


def test_features_that_fire_alike_and_act_opposite_are_told_apart():
    """One unit of the child's last MLP writes the opposite."""
    parent, child = (Reader(model(), LAST, [units()]) for _ in range(2))
    with torch.no_grad():
        child.model.model.layers[1].mlp.down_proj.weight[:, 3] *= -1
    pairs = np.array([[3, 3], [4, 4], [4, 5], [35, 35]])
    r = logit_similarity(parent, child, pairs)
    np.testing.assert_allclose(r[[0, 1, 3]], [-1, 1, -1], atol=1e-5)
    assert abs(r[2]) < 0.8
    attributed = attribution_similarity(parent, child, pairs, blocks(40))
    assert attributed[0] < -0.7 and attributed[3] < -0.7, "they fire alike in both models, to the opposite effect"
    assert attributed[1] > 0.7 and abs(attributed[2]) < 0.5
    itself = attribution_similarity(parent, parent, pairs, blocks(40))
    np.testing.assert_allclose(itself[[0, 1, 3]], 1, atol=1e-9)


def test_attribution_is_the_slope_of_the_loss():
    """The plain reference: push along the feature at one token, and look at the loss."""
    made, sae, token = model(1), top_k(), blocks(1)
    [found] = attributions(Reader(made, HOOK, [sae]), token, np.arange(64))
    dense = found.toarray()
    assert dense.shape == (15, 64)

    def loss(at: int, feature: int, size: float) -> float:
        push = torch.zeros(1, 16, D_MLP)
        push[0, at] = size * sae.W_dec[feature]
        ids = torch.from_numpy(token)
        with torch.no_grad(), replaced(made, HOOK, lambda x: x + push):
            logits = made(input_ids=ids, use_cache=False).logits[0, :-1].double()
        return float(nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))

    largest = np.argsort(-np.abs(dense), axis=None)[:4]
    for at, feature in zip(*np.unravel_index(largest, dense.shape), strict=True):
        acts: list[Tensor] = []
        with torch.no_grad(), replaced(made, HOOK, lambda x, acts=acts: acts.append(x) or x):
            made(input_ids=torch.from_numpy(token), use_cache=False)
        size = float(sae.encode(acts[0][0, at])[feature])
        slope = (loss(int(at), int(feature), 1e-2) - loss(int(at), int(feature), -1e-2)) / 2e-2
        assert dense[at, feature] == pytest.approx(size * slope, rel=0.02)


def test_attribution_similarity_is_pearson_over_all_tokens_of_all_batches(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(effects, "chunk_rows", lambda *_: 160)
    parent, child = (Reader(model(seed), LAST, [top_k()]) for seed in (0, 1))
    many = blocks(45)  # in batches of ten
    dense = []
    for reader in (parent, child):
        parts = [part.toarray() for part in attributions(reader, many, np.arange(64))]
        assert len(parts) == 5
        dense.append(np.concatenate(parts))
    live = np.flatnonzero((dense[0] != 0).any(0) & (dense[1] != 0).any(0))[:6]
    pairs = np.stack([live, live[::-1]], 1)
    for (a, b), found in zip(pairs, attribution_similarity(parent, child, pairs, many), strict=True):
        assert found == pytest.approx(np.corrcoef(dense[0][:, a], dense[1][:, b])[0, 1], abs=1e-9)
    dead = new_sae(D_MLP, 64, "relu")
    dead.b_enc.fill_(-1e6)
    assert np.isnan(attribution_similarity(Reader(parent.model, LAST, [dead]), child, pairs, blocks())).all()


SOME = [2, 5, 11]
BOTH = np.array(SOME + [D_MLP + unit for unit in SOME])


def changed(some: list[int], sae: SAE | None = None) -> Reader:
    """The same model, but some units of the last MLP compute something else."""
    made = model()
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        made.model.layers[1].mlp.gate_proj.weight[some] = 2 * torch.randn(len(some), D_MODEL, generator=generator)
    return Reader(made, LAST, [sae or units()])


def test_moving_the_changed_features_makes_the_parent_the_child():
    parent, child = model(), changed(SOME)
    found = splice(parent, child, BOTH, blocks(), controls=0)
    assert found.before.mean() > 0.01 and found.tokens == 12 * 16
    np.testing.assert_allclose(found.all, 0, atol=1e-5)
    np.testing.assert_allclose(found.patched, 0, atol=1e-5)
    assert (splice_figures(found, 0)["recovered"], found.moved, found.reach) == pytest.approx((1, 1, 1), abs=1e-3)
    assert found.live == 6
    part = splice(parent, child, BOTH[[0, 3]], blocks(), controls=4)
    recovered = splice_figures(part, 0)["recovered"]
    assert recovered is not None and 0 < recovered < 1 and 0 < part.moved < 1, "one of three units"
    assert part.controls.shape == (4, 12) and (part.controls_moved < 1).all()


def test_controls_of_features_without_a_role_recover_nothing():
    """Units that changed but whose output is not read: moving them has no effect."""
    idle = [20, 21, 22]
    parent, child = model(), changed([*SOME, *idle])
    with torch.no_grad():
        for each in (parent, child.model):
            each.model.layers[1].mlp.down_proj.weight[:, idle] = 0
    found, again = (splice(parent, child, BOTH, blocks(), controls=2, seed=1) for _ in range(2))
    figures = splice_figures(found, 0)
    assert (figures["recovered"], figures["control_recovered"]) == pytest.approx((1, 0), abs=1e-3)
    assert np.array_equal(found.controls, again.controls)


def test_controls_move_as_far_as_the_chosen_features_which_move_less_than_most():
    changed_units = list(range(24))
    parent, child = model(), changed(changed_units)
    with torch.no_grad():  # from small changes to large ones
        weight, was = child.model.model.layers[1].mlp.gate_proj.weight, parent.model.layers[1].mlp.gate_proj.weight
        for unit in changed_units:
            weight[unit] = was[unit] + (weight[unit] - was[unit]) * 1.15 ** (unit - 23)
    chosen = np.array([0, 3, 6, 9, 12, 15])
    found = splice(parent, child, chosen, blocks(30), controls=3)
    ratio = found.controls_moved / found.moved
    assert found.live > 40 and (abs(ratio - 1) < 0.15).all() and found.moved < 0.1
    assert len({tuple(row) for row in found.controls}) > 1, "three draws, not one"


def test_only_the_difference_is_moved_and_the_sae_limits_it():
    same = splice(model(), Reader(model(), LAST, [units()]), np.array([0]), blocks(), controls=0)
    assert same.live == 0 and splice_figures(same, 0)["recovered"] is None and same.before.max() < 1e-6
    rough = new_sae(D_MLP, 16, "topk", 2, torch.Generator().manual_seed(0))
    found = splice(model(), changed(SOME, rough), np.array([0]), blocks(), controls=0)
    assert found.reach < 0.9 and found.patched.max() < 1e-5


def test_features_that_differ_are_those_of_the_changed_units():
    ends = changed([]), changed([2, 5])
    assert np.flatnonzero(differing(*ends, blocks())).tolist() == [2, 5, D_MLP + 2, D_MLP + 5]
    assert not differing(ends[0], ends[0], blocks()).any()


def test_figures_of_a_splice_have_intervals_over_its_blocks():
    rng = np.random.default_rng(0)
    before = 1 + 0.1 * rng.standard_normal(60)
    shares, controls, moved = np.outer([0.5, 0.1, 0], before), np.outer([0.9, 0.7], before), np.array([0.2, 0.4])
    found = Splice(before, shares[0], controls, *shares[1:], 0.5, moved, 9, 600)
    figures: dict[str, Any] = splice_figures(found, 1)
    expected = {"recovered": 0.5 / 0.9, "control_recovered": 0.2 / 0.9, "excess": 0.3 / 0.9, "reach": 0.9}
    expected |= {"moved": 0.5, "control_moved": 0.3}
    assert {name: figures[name] for name in expected} == pytest.approx(expected)
    # ± 1.96 standard errors of a mean
    half = (figures["before_high"] - figures["before_low"]) / 2
    assert half == pytest.approx(1.96 * before.std() / np.sqrt(60), rel=0.15)
    width = figures["recovered_high"] - figures["recovered_low"]
    assert width < 1e-9, "shares do not vary where every block has the same"
    assert figures == splice_figures(found, 1) != splice_figures(found, 2)
    alone = splice_figures(found._replace(controls=np.empty((0, 60)), controls_moved=np.empty(0)), 1)
    assert alone["control"] is alone["excess"] is alone["control_moved"] is None
    assert alone["recovered"] == figures["recovered"]
    with_interval = {name.removesuffix("_low") for name, end in alone.items() if name.endswith("_low") and end}
    assert with_interval == {"before", "spliced", "all", "recovered"}


def test_wrong_arguments_are_refused_by_name():
    parent, child, one = model(), changed([1]), np.array([1])
    with pytest.raises(ValueError, match="has 2 SAEs"):
        logit_similarity(Reader(parent, LAST, [units(), units()]), child, np.array([[0, 0]]))
    for given, message in (
        ((parent, child, np.array([1, 2, 3]), blocks()), "only 1 others are live"),
        ((parent, child, one, blocks() + 1), "blocks hold token 90"),
        ((parent, Reader(child.model, LAST, [units(D_MODEL)]), one, blocks()), "width 24, but .* gives 32"),
        (
            (tiny_model(0, VOCAB + 1, D_MODEL, D_MLP, 2), child, one, blocks()),
            "parent knows 91 tokens and the child 90",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            splice(*given)
