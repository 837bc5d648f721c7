"""What was read of models lately, so that the same text is read once in a model and not once for every edge."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

V = TypeVar("V")

BUDGET = 2**30
"""Bytes that are held at most."""


class Held:
    """Values by key; the ones used least lately go where the budget of bytes is spent."""

    def __init__(self, budget: int = BUDGET) -> None:
        self.budget, self.bytes = budget, 0
        self._values: OrderedDict[Any, tuple[Any, int]] = OrderedDict()

    def __contains__(self, key: Any) -> bool:
        return key in self._values

    def put(self, key: Any, value: Any, size: int) -> None:
        """Hold a value of so many bytes; one that alone exceeds the budget is not held."""
        if key in self._values or size > self.budget:
            return
        while self.bytes + size > self.budget:
            _, (_, freed) = self._values.popitem(last=False)
            self.bytes -= freed
        self._values[key] = value, size
        self.bytes += size

    def get(self, key: Any, make: Callable[[], tuple[V, int]]) -> V:
        """The value of a key, made with its size in bytes where it is not held."""
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key][0]
        value, size = make()
        self.put(key, value, size)
        return value


HELD = Held()
"""That of this process."""
