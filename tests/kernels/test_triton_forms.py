"""The Triton kernels against the plain definitions: under Triton's interpreter on a CPU, or compiled on a GPU."""

from __future__ import annotations

import os
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from heredity.features.acts import FeatureActs
from heredity.kernels.pearson import top_pearson
from heredity.kernels.torch_forms import dense_encode, top_pearson_torch
from heredity.sae.step import NAMES, Outcome, Rule, Weights, dense_step, fused_step
from worlds import NO_GPU, random_acts

pytest.importorskip("triton", reason="Triton is not installed; `make test-triton` runs these tests with it")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when the kernels are imported
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

from heredity.kernels import triton_forms, triton_pearson, triton_step  # noqa: E402
from heredity.kernels.triton_forms import chosen_entries, weight_screen  # noqa: E402

_OLD = pytest.mark.skipif(
    np.lib.NumpyVersion(np.__version__) >= "2.4.0", reason="Triton's interpreter needs numpy < 2.4 for its loops"
)
_COMPILED = pytest.mark.skipif(not INTERPRETED, reason="there is a GPU: the kernels are compiled for it")
_GPU = pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET=1: no kernel is compiled")
PLACES = [pytest.param("cpu", marks=[_OLD, _COMPILED]), pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU, _GPU])]

RULES = [Rule("relu", l1=0.01), Rule("topk", 5), Rule("topk", 1), Rule("batchtopk", 5), Rule("batchtopk", 5, 0.0, 99.0)]
RULES += [Rule("jumprelu", l0=0.02)]


def sizes(device: str) -> tuple[int, int, int]:
    """Tokens, d_in, d_sae: no power of two among them."""
    return (21, 20, 90) if device == "cpu" else (777, 300, 5000)


def encoder(device: str, seed: int = 0, ties: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """x [n, d_in], weight [d_sae, d_in] and bias: an empty row, a tiny one, one with an outlier; equal features."""
    n, d_in, d_sae = sizes(device)
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(seed))
    x, weight, bias = draw(n, d_in), draw(d_sae, d_in) / d_in**0.5, 0.1 * draw(d_sae) - 1
    if ties:
        weight[40:44], bias[40:44] = weight[10], bias[10] + 1
    x[2], x[3], x[4, 5] = 0, x[3] * 1e-20, 300
    return x.to(device), weight.to(device), bias.to(device)


def assert_chosen(found: Tensor, pre_acts: Tensor, expected: Tensor) -> None:
    """Dense activations [n, d_sae] that agree, but where rounding may have decided."""
    scale = pre_acts.abs().amax(1, keepdim=True).clamp(min=1e-30)
    differ = (found > 0) != (expected > 0)
    assert int(differ.sum()) <= 0.001 * int((expected > 0).sum())
    torch.testing.assert_close((found / scale)[~differ], (expected / scale)[~differ], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("device", PLACES)
@pytest.mark.parametrize(("k", "floors"), [(1, None), (7, None), (80, None), (None, "one"), (None, "each")])
def test_encoding_is_that_of_the_definition(device, k, floors):
    x, weight, bias = encoder(device)
    pre_acts = x.double() @ weight.double().T + bias.double()
    floor = torch.full((1,), 0.3 if floors else 0.0, device=device)
    floor = torch.linspace(0, 1, len(weight), device=device) if floors == "each" else floor
    entries = chosen_entries(x, weight, bias, weight_screen(weight), k, floor)
    assert entries is not None
    found = torch.zeros_like(pre_acts).index_put_((entries.tokens, entries.features), entries.values.double())
    order = entries.tokens * len(weight) + entries.features
    assert bool((order.diff() > 0).all()), "by tokens, then features"
    expected = dense_encode(pre_acts, None, floor)
    if k is not None:
        ranks = pre_acts.argsort(dim=1, descending=True, stable=True)[:, :k]  # of equal ones the lower features
        expected = torch.zeros_like(pre_acts).scatter(1, ranks, pre_acts.gather(1, ranks).relu())
    assert_chosen(found, pre_acts, expected)


@pytest.mark.parametrize("device", PLACES)
def test_of_equal_features_the_lower_ones_are_kept(device):
    weight = torch.ones(90, 20, device=device)
    bias = torch.ones(90, device=device)
    bias[70] = 2
    x, floor = weight[:3], bias.new_zeros(1)
    entries = chosen_entries(x, weight, bias, weight_screen(weight), 4, floor)
    assert entries is not None
    assert entries.features.view(3, 4).tolist() == [[0, 1, 2, 70]] * 3


class Case(NamedTuple):
    """What a few steps start from."""

    weights: Weights
    x: Tensor


def case(device: str, jumps: bool = False) -> Case:
    """One feature is active on nearly all tokens."""
    n, d_in, d_sae = sizes(device)
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(1))
    x, w_enc, b_enc = encoder(device, 1, ties=False)
    w_dec, b_dec = torch.nn.functional.normalize(draw(d_sae, d_in)).to(device), 0.1 * draw(d_in).to(device)
    b_enc[7] = 6.0
    log_threshold = torch.linspace(-4, 0.3, d_sae, device=device) if jumps else torch.zeros(0, device=device)
    return Case(Weights(w_enc, b_enc, w_dec, b_dec, log_threshold), x)


def steps(take: Any, given: Case, rule: Rule, number: int = 2) -> tuple[list[Weights], Outcome]:
    """Weights and moments after some steps, and what the last one saw; features differ in age."""
    weights, x, outcome = deepcopy(given.weights), given.x, None
    first, second = Weights.zeros_like(weights), Weights.zeros_like(weights)
    ages = torch.zeros(len(weights.b_enc), dtype=torch.int32, device=x.device)
    ages[:7] = 50
    for step in range(1, number + 1):
        ages += 1
        centered = (x.roll(step - 1, 1) - weights.b_dec).contiguous()
        target = centered + 0.25 if step == number else None
        outcome = take(weights, first, second, ages, centered, rule, 1e-3, step, target)
        if step == 1:  # as resampling does: the rounded encoder no longer holds
            weights.w_enc[3] = weights.w_dec[3]
    assert outcome is not None
    return [weights, first, second], outcome


def assert_same_steps(found: tuple[list[Weights], Outcome], expected: tuple[list[Weights], Outcome]) -> None:
    for part, other in zip(found[0], expected[0], strict=True):
        for name in NAMES:
            one, two = getattr(part, name), getattr(other, name)
            if len(two):
                error = float((one - two).abs().max() / two.abs().max())
                assert error <= 1e-5, (name, error)
    assert found[1][:3] == pytest.approx(expected[1][:3], rel=1e-5)
    assert torch.equal(found[1].fired, expected[1].fired)


@pytest.mark.parametrize("device", PLACES)
@pytest.mark.parametrize("rule", RULES)
def test_steps_are_those_of_the_dense_form(device, rule, monkeypatch):
    monkeypatch.setattr(triton_step, "PIECE", 8)  # the popular feature is split
    given = case(device, rule.activation == "jumprelu")
    assert_same_steps(steps(fused_step, given, rule), steps(dense_step, given, rule))


@pytest.mark.parametrize("device", PLACES)
@pytest.mark.parametrize("rule", [Rule("topk", 5), Rule("relu", l1=0.01)])
def test_tokens_without_room_are_done_densely_in_the_same_step(device, rule, monkeypatch):
    given, done = case(device), []
    given.weights.b_enc[:] = -2.0
    given.x[4] = 0
    given.x[5] *= 30  # more active features than there is room for
    if rule.k:
        given.x[5] = given.weights.b_dec  # pre-activations that bfloat16 cannot tell apart
        given.weights.b_enc[:] = torch.linspace(0.5, 0.5005, len(given.weights.b_enc))
    monkeypatch.setattr(triton_forms, "ROOM", 16 if device == "cpu" else 128)
    monkeypatch.setattr(triton_forms, "RANKED_ROOM", 1)

    def put_dense(*of: Any) -> bool:
        done.append(triton_forms.put_dense(*of))
        return done[-1]

    monkeypatch.setattr(triton_step, "put_dense", put_dense)
    found, expected = steps(fused_step, given, rule, 1), steps(dense_step, given, rule, 1)
    assert len(done) == 1
    if rule.activation == "topk":
        assert done == [True]
    assert_same_steps(found, expected)


@pytest.mark.parametrize("device", PLACES)
def test_a_batch_without_room_is_done_densely_and_the_next_has_more(device, monkeypatch):
    given, rule = case(device), Rule("relu", l1=0.01)
    given.weights.b_enc[:] = 5.0  # all active
    monkeypatch.setattr(triton_forms, "ROOM", 2)
    monkeypatch.setattr(triton_step, "CAPACITY", 1.0)
    found, expected = steps(fused_step, given, rule, 1), steps(dense_step, given, rule, 1)
    for part, other in zip(found[0], expected[0], strict=True):
        assert all(torch.equal(getattr(part, name), getattr(other, name)) for name in NAMES)
    work = triton_step._WORK[found[0][0].w_enc]
    assert work.room == 4 and work.steps == 0


@pytest.mark.parametrize("device", PLACES)
def test_steps_have_the_same_bits_every_time(device):
    given, rule = case(device), Rule("topk", 5)
    (one, _), (two, _) = (steps(fused_step, given, rule, 1 if device == "cpu" else 6) for _ in range(2))
    for part, other in zip(one, two, strict=True):
        assert all(torch.equal(getattr(part, name), getattr(other, name)) for name in NAMES)


@pytest.mark.parametrize("device", PLACES)
@pytest.mark.parametrize(("tight", "top", "bins"), [(False, 3, 200), (True, 5, 9)])
def test_matching_is_that_of_the_compiled_kernel(device, tight, top, bins):
    tokens, widths = (150, (30, 40)) if device == "cpu" else (5000, (500, 700))
    memory = (6_000 if device == "cpu" else 2_000_000) if tight else 1 << 28  # tight: several tiles and blocks
    ends = [random_acts(seed, tokens, width, None) for seed, width in enumerate(widths)]
    ends[1][:, 10:25] += ends[0][:, 10:25]
    ends[0][30:50], ends[1][40:60] = 0, 0  # silent at one end or at both
    parent, child = (FeatureActs.from_dense(acts).sparse for acts in ends)
    seen: list[tuple[int, int]] = []
    found = top_pearson_torch(
        parent, child, top, device, lambda *of: seen.append(of), memory=memory, bins=bins, form=triton_pearson.FORM
    )
    expected = top_pearson(parent, child, top, bins=bins)
    for end in ("parent", "child"):
        r, wanted = getattr(found, f"{end}_r"), getattr(expected, f"{end}_r")
        np.testing.assert_allclose(r, wanted, rtol=0, atol=4e-15)
        apart = np.pad(np.abs(np.diff(wanted)) > 1e-12, ((0, 0), (1, 1)), constant_values=False)
        sure = apart[:, :-1] & apart[:, 1:] | np.isnan(wanted)
        np.testing.assert_array_equal(getattr(found, f"{end}_match")[sure], getattr(expected, f"{end}_match")[sure])
    np.testing.assert_array_equal(found.pairs_over, expected.pairs_over)
    np.testing.assert_array_equal(found.histogram, expected.histogram)
    assert seen[-1] == (widths[0], widths[0]) and (len(seen) > 1) == tight
