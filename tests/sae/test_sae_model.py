"""The SAE's definition, its sparse encoding and its homogeneity."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from heredity.kernels.sparse import Sparse
from heredity.sae.model import SAE, new_sae
from tiny import random_sae
from worlds import dense_of

ACTIVATIONS = ("relu", "topk", "batchtopk", "jumprelu")


def some_x() -> torch.Tensor:
    return 2 * torch.randn(30, 12, generator=torch.Generator().manual_seed(5)) + 1


def test_relu_acts_are_written_out_as_in_the_definition():
    sae, x = random_sae("relu"), some_x()
    acts = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc).clamp(min=0)
    torch.testing.assert_close(sae.encode(x), acts)
    torch.testing.assert_close(sae(x), acts @ sae.W_dec + sae.b_dec)


def test_topk_keeps_k_and_thresholds_cut():
    x = some_x()
    assert ((random_sae("topk").encode(x) > 0).sum(1) == 5).all()
    for activation in ("batchtopk", "jumprelu"):
        sae = random_sae(activation)
        assert torch.equal(sae.encode(x) > 0, sae.pre_acts(x) > sae.threshold)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_sparse_encoding_is_the_dense_one_without_zeros(activation):
    sae, x = random_sae(activation), some_x()
    indptr, indices, values = sae.encode_sparse(x)
    assert (indptr.dtype, indices.dtype, values.dtype) == (np.int64, np.int32, np.float32)
    dense = dense_of(Sparse(indptr, indices, values, sae.d_sae))
    np.testing.assert_allclose(dense, sae.encode(x).numpy(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sae.decode_sparse(indptr, indices, values), sae(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_scaling_input_and_biases_scales_the_reconstruction(activation):
    sae, x, scale = random_sae(activation), some_x(), 7.3
    before = sae(x)
    for tensor in (sae.b_enc, sae.b_dec, sae.threshold):
        if tensor is not None:
            tensor.mul_(scale)
    torch.testing.assert_close(sae(scale * x), scale * before, rtol=1e-4, atol=1e-4)


def test_leading_dimensions_are_kept_and_taken_in_order():
    sae, x = random_sae("topk"), some_x()
    torch.testing.assert_close(sae(x.view(5, 6, 12)), sae(x).view(5, 6, 12))
    for whole, leading in zip(sae.encode_sparse(x), sae.encode_sparse(x.view(5, 6, 12)), strict=True):
        np.testing.assert_array_equal(whole, leading)


def test_what_cannot_be_encoded_is_refused_by_name():
    sae, x = random_sae("relu"), some_x()
    for wrong in (x[:, :11], x.double(), x.numpy()):
        with pytest.raises(ValueError, match=r"give a tensor torch\.float32 \[\.\.\., 12\]"):
            sae.encode_sparse(wrong)
    sae.W_enc[0, 0] = float("nan")
    with pytest.raises(ValueError, match="W_enc holds NaN"):
        sae.encode_sparse(x)


def test_a_fresh_sae_is_seeded_and_has_unit_rows():
    first, again, other = (new_sae(12, 40, "relu", None, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first.W_enc, again.W_enc) and not torch.equal(first.W_enc, other.W_enc)
    torch.testing.assert_close(first.W_dec.norm(dim=1), torch.ones(40))


@pytest.mark.parametrize("activation", ["relu", "jumprelu"])
def test_moving_norms_into_the_encoder_keeps_the_reconstruction(activation):
    sae, x = random_sae(activation), some_x()
    sae.W_dec *= torch.linspace(0.5, 3, 40)[:, None]
    before = sae(x)
    torch.testing.assert_close(sae.unit_norm()(x), before, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(40))
    with pytest.raises(ValueError, match="which features are kept"):
        random_sae("topk").unit_norm()


@pytest.mark.parametrize(
    ("activation", "k", "message"),
    [("topk", None, "d_sae=40"), ("topk", 0, "d_sae=40"), ("topk", 41, "d_sae=40"), ("gelu", None, "relu, topk")],
)
def test_a_k_that_does_not_fit_and_an_unknown_activation_are_refused(activation, k, message):
    with pytest.raises(ValueError, match=message):
        SAE(12, 40, activation, k)
