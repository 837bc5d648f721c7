"""The state of a training: everything the next step depends on, stored whole and restored bit by bit."""

from __future__ import annotations

import json
import math
import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from heredity.sae.step import NAMES, Weights

FILE = "state.safetensors"


class Step(NamedTuple):
    """What one step of a training saw, in the units of the raw activations."""

    step: int  # counted from 1
    loss: float  # mse + λ · l1 (relu) or λ · l0 (jumprelu) with the raw λ; mse alone for topk and batchtopk
    mse: float  # mean squared error over elements
    l1: float  # mean over tokens of the sum of activations
    l0: float  # mean over tokens of the number of active features
    dead: int  # features that fired in none of the last `window` steps
    l1_coefficient: float | None  # raw λ, of l1 (relu) or of l0 (jumprelu); None for topk and batchtopk
    normalized_l1_coefficient: float | None  # λ in the units of the normalized space that the training runs in
    resampled: int  # dead features given a new direction before this step


@dataclass
class TrainingState:
    """Weights, Adam's moments and counters in the normalized space, between two steps.

    A file holds all of it: tensors, and numbers as JSON in the file's metadata, so it is replaced whole or not at all.
    """

    identity: dict[str, Any]  # sizes, settings, steps, seed: a resume checks them
    scale: float  # normalized x = raw x times this
    weights: Weights
    first: Weights  # Adam's running means of gradients
    second: Weights  # Adam's running means of squared gradients
    ages: Tensor  # int32 [d_sae]: steps since a feature's moments were zero
    last_fired: Tensor  # int64 [d_sae]: last step in which a feature was active
    log_l1: float | None = None  # log λ in normalized units; None for topk and batchtopk
    l1_error: float = math.nan  # last smoothed log ratio of L0 to its target, the memory of λ's controller
    l1_sum: float = 0.0  # of log λ over the steps averaged for its final value
    threshold: float = 0.0  # batchtopk: running smallest kept activation
    l0: float = math.nan  # of the last step
    rows: list[Step] = field(default_factory=list)  # all steps so far

    @property
    def step(self) -> int:
        """Number of steps taken."""
        return len(self.rows)

    def save(self, folder: Path) -> None:
        """Write the state into folder, replacing the one that is there in one move."""
        folder.mkdir(parents=True, exist_ok=True)
        rows = torch.tensor([[float("nan") if v is None else v for v in row] for row in self.rows], dtype=torch.float64)
        tensors = {"ages": self.ages, "last_fired": self.last_fired, "rows": rows.reshape(-1, len(Step._fields))}
        for group in _GROUPS:
            tensors |= {f"{group}.{name}": getattr(getattr(self, group), name) for name in NAMES}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        numbers = {name: getattr(self, name) for name in _NUMBERS} | {"checksum": _checksum(tensors)}
        save_file(tensors, folder / f"{FILE}.part", metadata={"state": json.dumps(numbers)})
        os.replace(folder / f"{FILE}.part", folder / FILE)

    @classmethod
    def load(cls, folder: Path, device: str | torch.device = "cpu") -> TrainingState:
        """Read what `save` wrote. Raises FileNotFoundError without a state, ValueError for a damaged one."""
        path = folder / FILE
        try:
            with safe_open(path, framework="pt") as file:
                numbers = json.loads(file.metadata()["state"])
            tensors = load_file(path)
            if numbers.pop("checksum") != _checksum(tensors):
                raise ValueError
        except (SafetensorError, KeyError, TypeError, ValueError):
            raise ValueError(f"{path} is damaged; delete it to train from the start") from None
        tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
        groups: dict[str, Any] = {group: Weights(*(tensors[f"{group}.{name}"] for name in NAMES)) for group in _GROUPS}
        rows = [Step._make(None if math.isnan(value) else value for value in row) for row in tensors["rows"].tolist()]
        rows = [row._replace(step=int(row.step), dead=int(row.dead), resampled=int(row.resampled)) for row in rows]
        return cls(**numbers, **groups, ages=tensors["ages"], last_fired=tensors["last_fired"], rows=rows)


_GROUPS = ("weights", "first", "second")
_NUMBERS = ("identity", "scale", "log_l1", "l1_error", "l1_sum", "threshold", "l0")


def _checksum(tensors: dict[str, Tensor]) -> int:
    checksum = 0
    for name in sorted(tensors):
        checksum = zlib.crc32(tensors[name].numpy().data, checksum)
    return checksum
