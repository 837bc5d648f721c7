"""The merge of two parents at any t, in memory, and how well it predicts there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from heredity.lm.merge import MergeError, Method, linear, merge_states, slerp


class Judged(Protocol):
    """What an `evaluate` returns: see `heredity.lm.evaluate.Quality`."""

    @property
    def ce_loss(self) -> float:
        """Mean cross-entropy, nats a token."""
        ...

    @property
    def tokens(self) -> int:
        """Predicted tokens."""
        ...

    @property
    def hits(self) -> np.ndarray:
        """Right predictions of each block, int [n]."""
        ...


class Place(NamedTuple):
    """One measurement of a sweep: what can be done apart from all others."""

    t: float
    """Position between the parents."""
    parent: str
    """Whose validation set."""
    corpus: str
    """Which corpus of it."""


class Bench:
    """The merge of two parents in memory, ready to be measured at any place."""

    def __init__(
        self,
        model: nn.Module,
        first_state: Mapping[str, Tensor],
        second_state: Mapping[str, Tensor],
        method: Method,
        blocks: Mapping[str, Mapping[str, np.ndarray]],
        precision: str = "bf16",
        evaluate: Callable[..., Judged] | None = None,
        batch_size: int = 32,
    ) -> None:
        """Arguments and errors as in `sweep`."""
        self.blend = Blend(model, first_state, second_state, method)
        self._model, self._blocks = model, blocks
        self._judge = _evaluator(evaluate, batch_size, precision)
        self._t: float | None = None

    @property
    def corpora(self) -> dict[str, list[str]]:
        """Corpora with blocks, by parent."""
        return {parent: [name for name, b in own.items() if len(b)] for parent, own in self._blocks.items()}

    def measure(self, place: Place) -> Judged:
        """Evaluate one place; the model stays at its t."""
        if place.t != self._t:
            self.blend.into(place.t)
            self._t = place.t
        return self._judge(self._model, self._blocks[place.parent][place.corpus])


class Blend:
    """The merge of two state dicts at any t, written into a model in memory.

    Angles are computed once. Raises `MergeError` for methods other than slerp and linear, states that do not fit each
    other, and states that lack one of the model's tensors or have one that it lacks.
    """

    def __init__(
        self, model: nn.Module, first: Mapping[str, Tensor], second: Mapping[str, Tensor], method: Method
    ) -> None:
        """Check the states against each other and the model, and place them on the model's device."""
        if method not in ("slerp", "linear"):
            raise MergeError(f"{method} has no t to sweep; use slerp or linear, or give weights instead of t")
        reports = merge_states([first, second], method, 0.5)[1]
        targets = model.state_dict()
        _check_targets(targets, first)
        self._method = method
        self._parts = []
        for report in reports:
            target = targets[report.name]
            a, b = (state[report.name].to(target.device) for state in (first, second))
            self._parts.append((target, a, b, report))

    @torch.no_grad()
    def into(self, t: float) -> None:
        """Write the merge at t into the model."""
        for target, a, b, report in self._parts:
            if report.method == "copied":
                target.copy_(a)
            elif self._method == "slerp":
                target.copy_(slerp(a, b, t, report.cosine))
            else:
                target.copy_(linear([a, b], [1 - t, t]))


def _check_targets(targets: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Refuse states that leave a tensor of the model unset, unless it is the same memory as one that is set."""
    unknown = sorted(set(state) - set(targets))
    if unknown:
        raise MergeError(f"{unknown[0]} is in the parents but not in the model; give a model of their architecture")
    memory = {targets[name].data_ptr() for name in state}
    for name, target in targets.items():
        if target.data_ptr() not in memory:
            raise MergeError(f"{name} is in the model but not in the parents; give a model of their architecture")
        if name in state and target.shape != state[name].shape:
            shapes = f"{list(target.shape)} in the model but {list(state[name].shape)} in the parents"
            raise MergeError(f"{name} is {shapes}; give a model of their architecture")


def _evaluator(
    evaluate: Callable[..., Judged] | None, batch_size: int, precision: str
) -> Callable[[nn.Module, np.ndarray], Judged]:
    judge: Callable[..., Any]
    if evaluate is None:
        from heredity.lm.evaluate import evaluate as judge
    else:
        judge = evaluate
    return lambda model, blocks: judge(model, blocks, batch_size, precision)
