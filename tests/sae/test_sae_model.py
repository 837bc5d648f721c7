"""The SAE's definition, its sparse encoding and its homogeneity."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from heredity.sae.model import SAE, new_sae

ACTIVATIONS = ("relu", "topk", "batchtopk", "jumprelu")


def some_sae(activation, d_in: int = 12, d_sae: int = 40, seed: int = 0) -> SAE:
    generator = torch.Generator().manual_seed(seed)
    sae = new_sae(d_in, d_sae, activation, 5, generator)
    sae.b_enc.copy_(0.1 * torch.randn(d_sae, generator=generator))
    sae.b_dec.copy_(torch.randn(d_in, generator=generator))
    if sae.threshold is not None and activation == "batchtopk":
        sae.threshold.fill_(0.4)
    elif sae.threshold is not None:
        sae.threshold.copy_(torch.rand(d_sae, generator=generator))
    return sae


def some_x(n: int = 30, d_in: int = 12, seed: int = 5) -> torch.Tensor:
    return 2 * torch.randn(n, d_in, generator=torch.Generator().manual_seed(seed)) + 1


def test_relu_acts_are_written_out_as_in_the_definition():
    sae, x = some_sae("relu"), some_x()
    acts = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc).clamp(min=0)
    torch.testing.assert_close(sae.encode(x), acts)
    torch.testing.assert_close(sae(x), acts @ sae.W_dec + sae.b_dec)


def test_topk_keeps_k_and_thresholds_cut():
    x = some_x()
    assert ((some_sae("topk").encode(x) > 0).sum(1) == 5).all()
    acts = some_sae("batchtopk").encode(x)
    assert acts[acts > 0].min() > 0.4
    sae = some_sae("jumprelu")
    acts, pre_acts = sae.encode(x), sae.pre_acts(x)
    assert sae.threshold is not None
    assert torch.equal(acts > 0, pre_acts > sae.threshold)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_sparse_encoding_is_the_dense_one_without_zeros(activation):
    sae, x = some_sae(activation), some_x()
    indptr, indices, values = sae.encode_sparse(x)
    assert (indptr.dtype, indices.dtype, values.dtype) == (np.int64, np.int32, np.float32)
    dense = np.zeros((len(x), sae.d_sae), np.float32)
    dense[np.repeat(np.arange(len(x)), np.diff(indptr)), indices] = values
    np.testing.assert_allclose(dense, sae.encode(x).numpy(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sae.decode_sparse(indptr, indices, values), sae(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_scaling_input_and_biases_scales_the_reconstruction(activation):
    sae, x, scale = some_sae(activation), some_x(), 7.3
    before = sae(x)
    for tensor in (sae.b_enc, sae.b_dec, sae.threshold):
        if tensor is not None:
            tensor.mul_(scale)
    torch.testing.assert_close(sae(scale * x), scale * before, rtol=1e-4, atol=1e-4)


def test_leading_dimensions_are_kept_and_taken_in_order():
    sae, x = some_sae("topk"), some_x()
    torch.testing.assert_close(sae(x.view(5, 6, 12)), sae(x).view(5, 6, 12))
    for whole, leading in zip(sae.encode_sparse(x), sae.encode_sparse(x.view(5, 6, 12)), strict=True):
        np.testing.assert_array_equal(whole, leading)


def test_what_cannot_be_encoded_is_refused_by_name():
    sae, x = some_sae("relu"), some_x()
    for wrong in (x[:, :11], x.double(), x.numpy()):
        with pytest.raises(ValueError, match=r"give a tensor torch\.float32 \[\.\.\., 12\]"):
            sae.encode_sparse(wrong)
    sae.W_enc[0, 0] = float("nan")
    with pytest.raises(ValueError, match="W_enc holds NaN"):
        sae.encode_sparse(x)


def test_a_fresh_sae_is_seeded_and_has_unit_rows():
    first, again = some_sae("relu"), some_sae("relu")
    assert torch.equal(first.W_enc, again.W_enc)
    assert not torch.equal(first.W_enc, some_sae("relu", seed=1).W_enc)
    torch.testing.assert_close(first.W_dec.norm(dim=1), torch.ones(40))


@pytest.mark.parametrize("activation", ["relu", "jumprelu"])
def test_moving_norms_into_the_encoder_keeps_the_reconstruction(activation):
    sae, x = some_sae(activation), some_x()
    sae.W_dec *= torch.linspace(0.5, 3, 40)[:, None]
    before = sae(x)
    torch.testing.assert_close(sae.unit_norm()(x), before, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(40))


def test_norms_of_a_topk_sae_are_not_moved():
    with pytest.raises(ValueError, match="which features are kept"):
        some_sae("topk").unit_norm()


@pytest.mark.parametrize(
    ("activation", "k", "message"),
    [("topk", None, "d_sae=40"), ("topk", 0, "d_sae=40"), ("topk", 41, "d_sae=40"), ("gelu", None, "relu, topk")],
)
def test_a_k_that_does_not_fit_and_an_unknown_activation_are_refused(activation, k, message):
    with pytest.raises(ValueError, match=message):
        SAE(12, 40, activation, k)
