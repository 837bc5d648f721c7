"""The sparse autoencoder: one class, whose activation function is a field."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from heredity.kernels.encode import sparse_encode, weight_screen
from heredity.kernels.screens import Screen
from heredity.kernels.torch_forms import dense_encode, sums
from heredity.study import RANKED

Activation = Literal["relu", "topk", "batchtopk", "jumprelu"]


class SAE(nn.Module):
    """x̄ = x − b_dec;  pre_acts = x̄ W_enc + b_enc;  acts = activation(pre_acts);  x̂ = acts W_dec + b_dec.

    W_enc [d_in, d_sae], b_enc [d_sae], W_dec [d_sae, d_in], b_dec [d_in]; a row of W_dec is a feature's direction.

    activation:
        relu       max(pre_acts, 0) (Bricken et al. 2023).
        topk       the k largest positive pre_acts of each token (Gao et al. 2024).
        batchtopk  pre_acts above one learned threshold, which in training stands for the k · n largest of a batch of n
                   tokens (Bussmann et al. 2024). `threshold` is a scalar.
        jumprelu   pre_acts above a learned threshold of each feature (Rajamanoharan et al. 2024). `threshold` [d_sae].

    `centered` says that the SAE was made on a stream without its mean over d_in: `bypass` is what x̂ needs besides.
    Parameters need no gradient: `sae.train` computes its own.
    """

    activation: Activation
    threshold: Tensor | None

    def extra_repr(self) -> str:
        k = "" if self.k is None else f", k={self.k}"
        return f"d_in={self.d_in}, d_sae={self.d_sae}, activation={self.activation!r}{k}"

    def __init__(self, d_in: int, d_sae: int, activation: Activation, k: int | None = None) -> None:
        """Zero weights; k is needed by topk and batchtopk, and ignored otherwise.

        Raises ValueError for an unknown activation and for a k that is missing or larger than d_sae.
        """
        super().__init__()
        if activation not in get_args(Activation):
            raise ValueError(f"activation={activation!r} is not known; choose one of {', '.join(get_args(Activation))}")
        if activation in RANKED and (not isinstance(k, int) or not 0 < k <= d_sae):
            raise ValueError(f"k={k} must be a whole number from 1 to d_sae={d_sae}; lower k or raise expansion")
        self.d_in, self.d_sae, self.activation, self.k = d_in, d_sae, activation, k if activation in RANKED else None
        self.centered = False
        self._rows: tuple[Tensor, int, Tensor, Screen | None] | None = None
        self.W_enc = nn.Parameter(torch.zeros(d_in, d_sae), requires_grad=False)
        self.b_enc = nn.Parameter(torch.zeros(d_sae), requires_grad=False)
        self.W_dec = nn.Parameter(torch.zeros(d_sae, d_in), requires_grad=False)
        self.b_dec = nn.Parameter(torch.zeros(d_in), requires_grad=False)
        shapes = {"batchtopk": torch.zeros(()), "jumprelu": torch.zeros(d_sae)}
        self.register_buffer("threshold", shapes.get(activation))

    def pre_acts(self, x: Tensor) -> Tensor:
        """x [..., d_in] -> [..., d_sae]: before the activation function."""
        return (x - self.b_dec) @ self.W_enc + self.b_enc

    def encode(self, x: Tensor) -> Tensor:
        """x [..., d_in] -> dense acts [..., d_sae] >= 0."""
        return dense_encode(self.pre_acts(x), self._per_token_k, self.threshold)

    def encode_sparse(self, x: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x [..., d_in] -> (indptr int64 [n + 1], indices int32 [nnz], values float32 [nnz]): `encode` without zeros.

        n counts the vectors of all leading dimensions in order. Raises ValueError when x is not as wide as the SAE, not
        of its type, or holds NaN or infinity, and when the encoder's weights do.
        """
        if not isinstance(x, Tensor) or x.shape[-1:] != (self.d_in,) or x.dtype != self.W_enc.dtype:
            given = f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"x is {given}; give a tensor {self.W_enc.dtype} [..., {self.d_in}]")
        x = x.reshape(-1, self.d_in)
        # W_enc by features, and its screen on a CPU are kept until W_enc changes. The parameter
        # itself is held and compared: an address may be used again.
        if self._rows is None or self._rows[0] is not self.W_enc or self._rows[1] != self.W_enc._version:
            weight = self.W_enc.detach().T.contiguous()
            if not torch.isfinite(weight.sum(dtype=torch.float64)):
                raise ValueError("W_enc holds NaN or infinity; read or train the SAE again")
            screens = weight.device.type == "cpu" and weight.dtype == torch.float32
            self._rows = (self.W_enc, self.W_enc._version, weight, weight_screen(weight) if screens else None)
        _, _, weight, screen = self._rows
        return sparse_encode(x - self.b_dec, weight, self.b_enc, self._per_token_k, self.threshold, screen)[:3]

    def decode(self, acts: Tensor) -> Tensor:
        """acts [..., d_sae] -> x̂ [..., d_in]."""
        return acts @ self.W_dec + self.b_dec

    def decode_sparse(self, indptr: np.ndarray, indices: np.ndarray, values: np.ndarray) -> Tensor:
        """The CSR arrays of `encode_sparse` -> x̂ [n, d_in]."""
        arrays = (indices.astype(np.int64), np.ascontiguousarray(indptr), np.ascontiguousarray(values))
        features, offsets, weights = (torch.from_numpy(array).to(self.W_dec.device) for array in arrays)
        return sums(offsets, features, self.W_dec, weights.to(self.W_dec.dtype)) + self.b_dec

    def bypass(self, x: Tensor) -> Tensor:
        """x [..., d_in] -> [..., 1]: what x̂ has besides what is decoded, zero unless the SAE is `centered`."""
        mean = x.mean(dim=-1, keepdim=True)
        return mean if self.centered else torch.zeros_like(mean)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., d_in] -> x̂ [..., d_in]."""
        return self.decode(self.encode(x)) + self.bypass(x)

    def reconstruct(self, x: Tensor) -> Tensor:
        """x [n, d_in] -> x̂ [n, d_in]: `forward` by way of sparse activations."""
        return self.decode_sparse(*self.encode_sparse(x)) + self.bypass(x)

    def unit_norm(self) -> SAE:
        """Move the norms of W_dec's rows into the encoder, in place; x̂ stays the same. Returns itself.

        A row of zeros stays one. Raises ValueError for topk and batchtopk, whose selection the norms would change.
        """
        if self.activation in RANKED:
            raise ValueError(f"moving the norms of a {self.activation} SAE would change which features are kept")
        norms = self.W_dec.norm(dim=1)
        norms[norms == 0] = 1
        self.W_dec /= norms[:, None]
        self.W_enc *= norms
        self.b_enc *= norms
        if self.threshold is not None:
            self.threshold *= norms
        return self

    @property
    def _per_token_k(self) -> int | None:
        return self.k if self.activation == "topk" else None


def new_sae(
    d_in: int,
    d_sae: int,
    activation: Activation,
    k: int | None = None,
    generator: torch.Generator | None = None,
    encoder_start: Literal["transpose", "kaiming"] = "transpose",
) -> SAE:
    """A fresh SAE: directions uniform on the sphere, biases 0. Seeded by the generator.

    encoder_start: the directions' transpose, or entries uniform within ±1 / √d_in, which is what torch calls
        Kaiming-uniform for a linear layer (Bricken et al. 2023).
    """
    sae = SAE(d_in, d_sae, activation, k)
    directions = torch.randn(d_sae, d_in, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    sae.W_dec.copy_(directions)
    untied = encoder_start == "kaiming"
    sae.W_enc.copy_((2 * torch.rand(d_in, d_sae, generator=generator) - 1) / d_in**0.5 if untied else directions.T)
    return sae
