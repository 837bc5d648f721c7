"""Compute saved by a start in the target: FLOPs of SAE trainings, their curves, and the cost of reaching a level.

Chen et al. 2025 (arXiv 2506.06609), section 3.2 and appendix D. As there, only matrix products of the SAE are counted,
not those of the language model whose activations it reads.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from heredity.engine.store import write_json
from heredity.errors import reading
from heredity.sae.evaluate import quality
from heredity.sae.model import SAE
from heredity.sae.step import SPARSE_BELOW
from heredity.sae.train import TrainingState, write_back

POINTS = 24  # of a training's curve besides the start


def dense_flops(d_in: int, d_sae: int, vectors: float) -> float:
    """FLOPs of a plain dense module's training: five products of 2 d_in d_sae per vector (appendix D.1)."""
    return 10.0 * d_in * d_sae * vectors


def sparse_flops(d_in: int, d_sae: int, l0: float, vectors: float) -> float:
    """FLOPs of a training step that works on active entries alone: vectors times (2 d_in d_sae + 8 d_in L0).

    Only the encoder's product is dense. The reconstruction, the gradients of the activations and those of both matrices
    take 2 d_in each per active entry. Work once per step, by Adam and for b_dec, is left out of both counts.
    """
    return 2.0 * d_in * (d_sae + 4 * l0) * vectors


def fold_flops(d_source: int, d_target: int, d_sae: int) -> float:
    """FLOPs of transferring an SAE's two matrices through a map each (eq. 6)."""
    return 4.0 * d_source * d_target * d_sae


def refit_flops(d_in: int, d_sae: int, l0: float, vectors: float, decoder: bool) -> float:
    """Approximate FLOPs of `transfer.calibrate`: codes; for the decoder sparse moments and a Cholesky solution too."""
    solving = 2 * l0 * (l0 + d_in) * vectors + d_sae**3 / 3 + 2.0 * d_in * d_sae**2
    return 2.0 * d_in * d_sae * vectors + (solving if decoder else 0)


def reached(costs: Sequence[float], values: Sequence[float | None], level: float) -> float | None:
    """The cost at which a curve first reaches a level; None when it never does.

    costs: ascending, from 0 on. Between two points the value is interpolated linearly in the logarithm of the cost, and
    linearly in the cost itself after a point of cost 0. A value that is None or not finite reaches nothing.
    """
    cost, value = np.array([costs, values], np.float64)
    cost, value = cost[np.isfinite(value)], value[np.isfinite(value)]
    if not (value >= level).any():
        return None
    at = int(np.argmax(value >= level))
    if at == 0:
        return float(cost[0])
    low, part = cost[at - 1], (level - value[at - 1]) / (value[at] - value[at - 1])
    return float(part * cost[at] if low == 0 else low * (cost[at] / low) ** part)


def saving_row(
    arm: Sequence[Mapping[str, Any]],
    random: Sequence[Mapping[str, Any]],
    level: float,
    extra: tuple[float, float],
    source: tuple[float, float],
) -> dict[str, float | None]:
    """Cost of an explained variance from one start and the share saved over the random start; None where never reached.

    arm, random: rows of both trainings' `Curve`. extra: FLOPs and seconds of making the start, source: of training the
    source's SAE. Keys: `flops` of the arm, `random_flops`, `saved_flops` with `extra` counted, and with both
    `saved_flops_with_source`; the same of `seconds`. Shares are negative where the arm costs more.
    """
    row: dict[str, float | None] = {}
    for cost, start, trained in zip(("flops", "seconds"), extra, source, strict=True):
        of_arm, of_random = (
            reached([point[cost] for point in curve], [point["explained_variance"] for point in curve], level)
            for curve in (arm, random)
        )
        row |= {cost: of_arm, f"random_{cost}": of_random}
        for name, paid in ((f"saved_{cost}", start), (f"saved_{cost}_with_source", start + trained)):
            row[name] = None if of_arm is None or not of_random else 1 - (of_arm + paid) / of_random
    return row


class Curve:
    """Explained variance on fixed vectors, and costs, at some steps of a training; `watch` of `train`.

    Rows and the seconds of each step lie beside the checkpoint, so that after a kill both continue from its step.
    """

    def __init__(self, folder: Path, batch_size: int, steps: int, spare: SAE, held: Tensor) -> None:
        """spare: an SAE of the training's shape, overwritten here. held: held-out vectors [n, d_in]."""
        self.rows: list[dict[str, Any]] = []
        """By step: vectors read; flops, dense; sparse_flops, of the training as it was done; seconds of training,
        forward passes of the model included; explained_variance (None where not finite), l0, dead_share, held out."""
        self._curve, self._clock = folder / "curve.json", folder / "clock"
        self._size, self._spare, self._held = batch_size, spare, held
        self._steps = {0, *np.rint(np.geomspace(1, steps, POINTS)).astype(int).tolist()}
        self._seconds, self._begun, self._mark = 0.0, False, time.monotonic()

    def __call__(self, state: TrainingState) -> None:
        """Take in the state after a step, or before the first one."""
        self._seconds += time.monotonic() - self._mark
        if not self._begun:
            self._resume(state.step)
        with open(self._clock, "ab") as file:
            file.write(np.float64(self._seconds).tobytes())
        if state.step in self._steps and (not self.rows or self.rows[-1]["step"] < state.step):
            self.rows.append(self._row(state))
            write_json(self._curve, self.rows)
        self._mark = time.monotonic()

    def forget(self) -> None:
        """Delete the files kept for a resume."""
        self._curve.unlink(missing_ok=True)
        self._clock.unlink(missing_ok=True)

    def _resume(self, step: int) -> None:
        """Continue from the files, up to a step."""
        self._begun = True
        known = np.fromfile(self._clock, np.float64)[: step + 1] if step and self._clock.exists() else np.zeros(0)
        # A step that was not written down takes no time; that of the step itself is written again.
        known = np.append(known, np.full(step + 1 - len(known), known[-1] if len(known) else self._seconds))
        self._seconds = float(known[-1])
        known[:step].tofile(self._clock)
        if step and self._curve.exists():
            with reading(self._curve, "delete its folder and run again"):
                self.rows = [row for row in json.loads(self._curve.read_text()) if row["step"] <= step]

    def _row(self, state: TrainingState) -> dict[str, Any]:
        write_back(state, self._spare)
        figures = quality(self._spare, [self._held])
        d_in, d_sae, vectors, done = self._spare.d_in, self._spare.d_sae, state.step * self._size, 0.0
        for row in state.rows:
            few = row.l0 / d_sae < SPARSE_BELOW
            done += sparse_flops(d_in, d_sae, row.l0, self._size) if few else dense_flops(d_in, d_sae, self._size)
        return {
            "step": state.step,
            "vectors": vectors,
            "flops": dense_flops(d_in, d_sae, vectors),
            "sparse_flops": done,
            "seconds": round(self._seconds, 6),
            "explained_variance": figures.explained_variance if math.isfinite(figures.explained_variance) else None,
            "l0": figures.l0,
            "dead_share": figures.dead_share,
        }
