"""The gradient step of an SAE when few features are active: work proportional to the active entries.

Only the encoder's product is dense (see `encode`). Then come reconstruction and error of each token, gradients of each
feature, and Adam with unit-norm decoder rows, where every weight and moment is read and written once. Weights are
row-major by feature, [d_sae, d_in], for encoder and decoder alike. The plain references are
`heredity.sae.step.dense_step` and `heredity.sae.step.adam_rows`.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np

from heredity.kernels.sparse import AHEAD, FAST, Sparse, compiled, in_ranges, load_ahead, transpose

BETAS = (0.9, 0.9999)  # Adam's decay rates (Horn & Elliott 2024, appendix B)
# Adam's ε. Gradients of a mean over d_in elements are of order 1 / (n d_in); the usual 1e-8 would hold back features
# that fire on few tokens.
EPSILON = 1e-12
CENTER_PIECES = 16  # stretches of rows that b_dec's gradient is summed over, whatever the number of threads
COST_OF_ADAM = 6  # time of Adam on one feature's rows, in entries of the gradient


class Errors(NamedTuple):
    """Reconstruction errors of a batch and what follows from them."""

    output_grad: np.ndarray  # float32 [n, d_in]: derivative of the loss by the reconstruction
    act_grad: np.ndarray  # float32 [nnz]: derivative of the loss by each active entry, L1 penalty included
    squared: np.ndarray  # float64 [n]: ‖x − x̂‖² of each token


# Encoder or decoder rows, Adam's running means of their gradients, and of the squares: float32 [d_sae, d_in] each.
AdamRows = tuple[np.ndarray, np.ndarray, np.ndarray]


def errors(
    acts: Sparse, x: np.ndarray, w_dec: np.ndarray, l1_per_entry: float, rows: tuple[int, int] | None = None
) -> Errors:
    """Reconstruct, compare and go back to the active entries.

    x: float32 [n, d_in], centered; w_dec: float32 [d_sae, d_in]; l1_per_entry: the L1 term's derivative, λ / n. rows:
    from and up to which token, by default all; what belongs to the others is left open.
    """
    n, d_in = x.shape
    first, stop = rows or (0, n)
    made = Errors(np.empty_like(x), np.empty(len(acts.values), np.float32), np.empty(n, np.float64))
    scale, l1 = np.float32(2 / (n * d_in)), np.float32(l1_per_entry)
    operations = 2 * int(acts.indptr[stop] - acts.indptr[first]) * d_in
    work = partial(_errors, *acts[:3], x, w_dec, scale, l1, *made)
    in_ranges(lambda a, b: work(first + a, first + b), stop - first, operations, pieces_per_thread=4)
    return made


def update_features(
    acts: Sparse, made: Errors, x: np.ndarray, enc: AdamRows, dec: AdamRows, lr: float, ages: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One step of `sae.step.adam_rows` for all rows; the gradients of b_enc, float32 [d_sae], and b_dec [d_in]."""
    d_sae, d_in = enc[0].shape
    nnz = len(acts.values)
    b_enc = np.bincount(acts.indices, made.act_grad, d_sae).astype(np.float32)
    pieces = np.zeros((CENTER_PIECES, d_in))

    def center(a: int, b: int) -> None:
        """Σ G − b_enc's gradient @ w_enc, in float64 because the two nearly cancel."""
        for piece in range(a, b):
            for weights, rows in ((np.ones(len(x), np.float32), made.output_grad), (-b_enc, enc[0])):
                part = slice(*(len(rows) * edge // CENTER_PIECES for edge in (piece, piece + 1)))
                _add_weighted(weights[part], rows[part], pieces[piece])

    in_ranges(center, CENTER_PIECES, enc[0].size)
    # The entries by feature: where each feature starts; the token and the place in `acts` of each entry.
    columns = transpose(acts._replace(values=np.arange(nnz, dtype=np.int32)))[:3]

    given = *columns, acts.values, made.act_grad, x, made.output_grad
    update = partial(_update, *given, *enc, *dec, lr, *BETAS, EPSILON, ages)
    # What a feature costs: its entries, and its share of reading and writing all weights and moments.
    cost = columns[0] + COST_OF_ADAM * np.arange(d_sae + 1)
    in_ranges(update, d_sae, 2 * nnz * d_in + 4 * enc[0].size, 8, cost)
    return b_enc, pieces.sum(0).astype(np.float32)


class Figures(NamedTuple):
    """What the active entries of a batch amount to; entries of 0 are not active."""

    l1: float  # sum of the activations
    active: int  # number of entries
    least: float  # smallest activation; nan when there is none
    fired: np.ndarray  # bool [d_sae]: features active on at least one token


def figures(acts: Sparse) -> Figures:
    """Sums over all tokens, in float64."""
    fired = np.zeros(acts.width, np.bool_)
    l1, active, least = _figures(acts.indices, acts.values, fired)
    return Figures(l1, active, least, fired)


def adam_rows(rows: AdamRows, grad: np.ndarray, lr: float, ages: np.ndarray, unit_norm: bool) -> None:
    """Adam on all rows with gradients [d_sae, d_in] made elsewhere; a gradient of unit-norm rows is overwritten."""

    in_ranges(partial(_adam, *rows, grad, ages, lr, *BETAS, EPSILON, unit_norm), len(grad), 4 * grad.size)


@compiled()
def _figures(indices, values, fired):
    total, active, least = 0.0, 0, np.float32(np.inf)
    for p in range(len(values)):
        if values[p] > 0:
            total += np.float64(values[p])
            active += 1
            least = min(least, values[p])
            fired[indices[p]] = True
    return total, active, float(least) if active > 0 else np.nan


@compiled(FAST)
def _errors(indptr, indices, values, x, w_dec, scale, l1, output_grad, act_grad, squared, start, stop):
    d_in, flat = x.shape[1], w_dec.reshape(-1)
    for i in range(start, stop):
        out = output_grad[i]
        # b_dec cancels: x̂ − x = Σ f W_dec − (x − b_dec).
        for c in range(d_in):
            out[c] = -x[i, c]
        for p in range(indptr[i], indptr[i + 1]):
            if p + AHEAD < indptr[i + 1]:
                load_ahead(flat, indices[p + AHEAD], d_in)
            act = values[p]
            row = w_dec[indices[p]]
            for c in range(d_in):
                out[c] += act * row[c]
        total = np.float32(0)
        for c in range(d_in):
            total += out[c] * out[c]
            out[c] *= scale
        squared[i] = total
        for p in range(indptr[i], indptr[i + 1]):
            row = w_dec[indices[p]]
            dot = np.float32(0)
            for c in range(d_in):
                dot += out[c] * row[c]
            act_grad[p] = dot + l1


@compiled()
def _add_weighted(weights, rows, total):
    for j in range(len(rows)):
        weight = np.float64(weights[j])
        if weight != 0:
            for c in range(len(total)):
                total[c] += weight * rows[j, c]


@compiled(FAST)
def _add_entries(j, column_ptr, tokens, entries, values, act_grad, x, output_grad, enc, dec):
    for q in range(column_ptr[j], column_ptr[j + 1]):
        act, back = values[entries[q]], act_grad[entries[q]]
        given, out = x[tokens[q]], output_grad[tokens[q]]
        for c in range(len(enc)):
            enc[c] += back * given[c]
            dec[c] += act * out[c]


@compiled(FAST)
def _update(
    column_ptr, tokens, entries, values, act_grad, x, output_grad,
    enc_w, enc_m, enc_v, dec_w, dec_m, dec_v, lr, beta1, beta2, epsilon, ages, start, stop
):  # fmt: skip
    """Gradients and Adam feature by feature: the gradients never leave the first cache."""
    enc, dec = np.empty(x.shape[1], np.float32), np.empty(x.shape[1], np.float32)
    rates, age = _rates(1, lr, beta1, beta2), 1
    for j in range(start, stop):
        if ages[j] != age:
            age = ages[j]
            rates = _rates(age, lr, beta1, beta2)
        enc[:] = 0
        dec[:] = 0
        _add_entries(j, column_ptr, tokens, entries, values, act_grad, x, output_grad, enc, dec)
        _adam_row(enc_w[j], enc_m[j], enc_v[j], enc, rates, beta1, beta2, epsilon, False)
        _adam_row(dec_w[j], dec_m[j], dec_v[j], dec, rates, beta1, beta2, epsilon, True)


@compiled(FAST)
def _adam(weight, first, second, grad, ages, lr, beta1, beta2, epsilon, unit_norm, start, stop):
    rates, age = _rates(1, lr, beta1, beta2), 1
    for j in range(start, stop):
        if ages[j] != age:
            age = ages[j]
            rates = _rates(age, lr, beta1, beta2)
        _adam_row(weight[j], first[j], second[j], grad[j], rates, beta1, beta2, epsilon, unit_norm)


@compiled()
def _rates(age, lr, beta1, beta2):
    """Learning rate and factor of the mean square, both corrected for moments that began at zero `age` steps ago."""
    return np.float32(lr / (1 - beta1**age)), np.float32(1 / (1 - beta2**age))


@compiled()
def _ordered_dot(a, b):
    """a·b in one order, whatever compiles it: eight sums, each of every eighth product, then these from the first."""
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = np.float32(0)
    whole = len(a) - len(a) % 8
    for c in range(0, whole, 8):
        s0 += a[c] * b[c]
        s1 += a[c + 1] * b[c + 1]
        s2 += a[c + 2] * b[c + 2]
        s3 += a[c + 3] * b[c + 3]
        s4 += a[c + 4] * b[c + 4]
        s5 += a[c + 5] * b[c + 5]
        s6 += a[c + 6] * b[c + 6]
        s7 += a[c + 7] * b[c + 7]
    total = s0 + s1 + s2 + s3 + s4 + s5 + s6 + s7
    for c in range(whole, len(a)):
        total += a[c] * b[c]
    return total


# Without liberties: of two products that are added either may be fused, and sums have no order of their own, so that a
# process that compiles this came to other bits than one that loads it from the cache.
@compiled()
def _adam_row(w, m, v, g, rates, beta1, beta2, epsilon, unit_norm):
    b1, b2, eps = np.float32(beta1), np.float32(beta2), np.float32(epsilon)
    a1, a2, one = np.float32(1 - beta1), np.float32(1 - beta2), np.float32(1)
    d_in = len(w)
    if unit_norm:
        parallel = _ordered_dot(g, w)
        for c in range(d_in):
            g[c] -= parallel * w[c]
    rate, correction = rates
    for c in range(d_in):
        m[c] = b1 * m[c] + a1 * g[c]
        v[c] = b2 * v[c] + a2 * g[c] * g[c]
        w[c] -= rate * m[c] / (np.sqrt(v[c] * correction) + eps)
    norm = _ordered_dot(w, w) if unit_norm else np.float32(0)
    if norm > 0:
        inverse = one / np.sqrt(norm)
        for c in range(d_in):
            w[c] *= inverse
