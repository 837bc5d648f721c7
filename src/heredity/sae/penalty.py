"""The penalty's coefficient (relu: of L1, jumprelu: of L0): moved towards an L0 target for a while, then frozen."""

from __future__ import annotations

import math

from heredity.sae.checkpoint import TrainingState
from heredity.sae.model import Activation
from heredity.study import SAEConfig

SMOOTHING = 0.1
"""Weight of a new step in the smoothed log L0."""

INTEGRAL = 4.0
"""Change of log λ over the calibration at a constant error of 1 (L0 off by a factor of e)."""

PROPORTIONAL = 1.0
"""Change of log λ for a change of the error by 1."""

SETTLED = 0.25
"""The frozen log λ is the mean over this last share of the calibration."""


def first_penalty(
    activation: Activation, config: SAEConfig, d_in: int, scale: float, coefficient: float | None
) -> float | None:
    """λ of the first step, in normalized units; None for activations without a penalty.

    Raw coefficients given by the settings or the caller are taken over. Otherwise, with an active feature that carries
    1 / L0 of the variance d_in and so has an activation of sqrt(d_in / L0): for relu the size at which the penalty
    takes about a third off it, which it lowers by λ d_in / 2; for jumprelu the size at which the penalty outweighs
    what an activation of half that size explains, f² / d_in.
    """
    raw = config.l1_coefficient or coefficient
    if activation == "relu":
        return raw * scale if raw is not None else 0.6 / math.sqrt(d_in * target(config))
    if activation == "jumprelu":
        return raw * scale**2 if raw is not None else 0.25 / target(config)
    return None


def target(config: SAEConfig) -> float:
    """L0 that λ is calibrated to: three quarters up the range, because L0 falls on a little after λ is frozen."""
    return config.l0[0] ** 0.25 * config.l0[1] ** 0.75


def calibrate(state: TrainingState, config: SAEConfig, steps: int) -> None:
    """Move log λ after a step: proportional and integral control of log(L0 / target)."""
    if state.log_l1 is None or config.l1_coefficient is not None:
        return
    last = round(config.calibration * steps)
    averaged = max(1, round(SETTLED * last))
    if state.step > last:
        return
    error = math.log(max(state.l0, 1e-3) / target(config))
    before = error if math.isnan(state.l1_error) else state.l1_error
    state.l1_error = before + SMOOTHING * (error - before)
    state.log_l1 += INTEGRAL / last * min(1.0, max(-1.0, state.l1_error)) + PROPORTIONAL * (state.l1_error - before)
    if state.step > last - averaged:
        state.l1_sum += state.log_l1
    if state.step == last:
        state.log_l1 = state.l1_sum / averaged
