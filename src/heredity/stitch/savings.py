"""What a start in the target is worth: floating-point operations of SAE trainings, and the cost of reaching a level.

Chen et al. 2025 (arXiv 2506.06609), section 3.2 and appendix D. Matrix products of the SAE alone are counted, as there:
not those of the language model whose activations it reads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def dense_flops(d_in: int, d_sae: int, vectors: float) -> float:
    """Of a plain dense module's training on so many vectors: five products of 2 d_in d_sae each a vector.

    Encoder and decoder forward; back, the gradients of both matrices and of the activations. The input needs none.
    What `torch.utils.flop_counter` counts (appendix D.1).
    """
    return 10.0 * d_in * d_sae * vectors


def sparse_flops(d_in: int, d_sae: int, l0: float, vectors: float) -> float:
    """Of a training step that works on active entries alone: vectors times (2 d_in d_sae + 8 d_in L0).

    Only the encoder's product is dense. The reconstruction, the gradients of the activations and those of both matrices
    take 2 d_in each for every active entry (`sae.step.sparse_step`). What is done once a step and not for every vector,
    Adam and the gradient of b_dec, is left out, as it is from `dense_flops`.
    """
    return 2.0 * d_in * (d_sae + 4 * l0) * vectors


def fold_flops(d_source: int, d_target: int, d_sae: int) -> float:
    """Of carrying an SAE's two matrices through a map each (eq. 6)."""
    return 4.0 * d_source * d_target * d_sae


def refit_flops(d_in: int, d_sae: int, l0: float, vectors: float, decoder: bool) -> float:
    """About those of `transfer.calibrate`: codes, and for the decoder the sparse moments and a Cholesky solution."""
    encoding = 2.0 * d_in * d_sae * vectors
    if not decoder:
        return encoding
    return encoding + 2 * l0 * (l0 + d_in) * vectors + d_sae**3 / 3 + 2.0 * d_in * d_sae**2


def reached(costs: Sequence[float], values: Sequence[float], level: float) -> float | None:
    """The cost at which a curve first reaches a level; None when it never does.

    costs: ascending, from 0 on; values: of the same points, such as explained variances. Between two points the value
    is taken to be linear in the logarithm of the cost, and linear in the cost itself after a point that cost nothing.
    A value that is not finite reaches nothing. Raises ValueError when costs do not ascend or there are none.
    """
    if not costs or len(costs) != len(values) or any(b <= a for a, b in zip(costs, costs[1:], strict=False)):
        raise ValueError(f"{len(costs)} costs of {len(values)} values; give as many, at least one, in ascending order")
    if costs[0] < 0:
        raise ValueError(f"the first cost is {costs[0]:g}; costs begin at 0 or above")
    before: tuple[float, float] | None = None
    for cost, value in zip(costs, values, strict=True):
        if not math.isfinite(value):
            continue
        if value >= level:
            if before is None or value == level:
                return float(cost)
            low, least = before
            part = (level - least) / (value - least)
            return low + part * (cost - low) if low == 0 else float(low * (cost / low) ** part)
        before = cost, value
    return None


def saving(arm: float | None, other: float | None, extra: float = 0.0) -> float | None:
    """1 - (arm + extra) / other: the share saved by an arm that has to pay `extra` first; negative when it costs more.

    arm, other: as from `reached`. None when either never got there, or when the other was there at no cost.
    """
    return None if arm is None or not other else 1 - (arm + extra) / other
