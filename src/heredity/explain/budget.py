"""What requests cost: prices, estimates before they are asked, and a limit that concurrency cannot overrun."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from typing import NamedTuple

from heredity.explain.completer import Answer, Request
from heredity.explain.protocol import Failure

TYPICAL = 1 / 3
"""Tokens a byte of a prompt that are expected before any answer told better."""
MARGIN = 1.25
"""A reservation is for this many times the most tokens a byte that were seen."""
FRAME = 64
"""Tokens that a chat template may add."""


class Prices(NamedTuple):
    """USD for a million tokens."""

    tokens_in: float = 0.0
    """Of prompts."""
    tokens_out: float = 0.0
    """Of answers."""

    def cost(self, tokens_in: float, tokens_out: float) -> float:
        """USD."""
        return (tokens_in * self.tokens_in + tokens_out * self.tokens_out) / 1e6


class Estimate(NamedTuple):
    """What a set of requests will take."""

    requests: int
    """How many."""
    tokens_in: int
    """Of their prompts."""
    tokens_out: int
    """Of their answers: as much as is allowed until answers have shown what share of it they use."""
    cost: float
    """USD."""


class Spent(NamedTuple):
    """What has been asked so far: sums over answered requests, and the extreme that a reservation goes by."""

    requests: int = 0
    """Answered."""
    cost: float = 0.0
    """USD."""
    told: int = 0
    """Answers that told their tokens; the rest of the fields are about these."""
    prompt_bytes: int = 0
    """UTF-8 bytes of their prompts."""
    tokens_in: int = 0
    """Tokens of their prompts."""
    tokens_out: int = 0
    """Tokens of their answers."""
    allowed: int = 0
    """Tokens their answers could have had."""
    highest: float = 0.0
    """Most tokens a byte of one prompt."""


class Reservation(NamedTuple):
    """Room for one request under the limits."""

    prompt_bytes: int
    """UTF-8 bytes of the prompt."""
    max_tokens: int
    """Tokens its answer may have."""
    cost: float
    """USD it will cost at most."""


class Budget:
    """Limits on the cost and the number of all answered requests of one ledger, those of earlier runs included.

    Before a request is asked its highest cost is reserved: no more tokens than bytes in the prompt (once answers told
    their tokens, `MARGIN` times the most tokens a byte that was seen), and as many in the answer as it may have. A
    request that does not fit waits while others are under way, since they may turn out cheaper, and is refused when
    none is. An endpoint that gives longer answers than allowed, or bills a request that timed out, can go past it.

    Raises `ValueError` for limits or prices that are negative or no numbers, and for `max_cost` without prices.
    """

    def __init__(self, prices: Prices | None = None, max_cost: float | None = None, max_requests: int | None = None):
        self.prices = prices or Prices()
        self.max_cost = max_cost
        self.max_requests = max_requests
        self.spent = Spent()
        self._held: list[Reservation] = []
        self._settled = threading.Condition()
        for name, value in (("price in", self.prices[0]), ("price out", self.prices[1]), ("max_cost", max_cost)):
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name}={value}: must be a number of USD, 0 or more")
        if max_requests is not None and max_requests < 0:
            raise ValueError(f"max_requests={max_requests}: must be 0 or more")
        if max_cost is not None and not any(self.prices):
            raise ValueError(
                f"max_cost={max_cost}: has no effect at prices of 0; give USD for a million tokens in and out"
            )

    def reserve(self, request: Request) -> Reservation | Failure:
        """Room for a request; `Failure("budget")` when a limit is met. Waits while others may still free some."""
        with self._settled:
            while True:
                held = self._reservation(request)
                over = self._over(held)
                if over is None:
                    self._held.append(held)
                    return held
                if not self._held:
                    return Failure("budget", over)
                self._settled.wait()

    def settle(self, held: Reservation, answer: Answer | None) -> float:
        """Give a reservation back, and count what its answer cost in USD (what was reserved, if it does not tell)."""
        with self._settled:
            self._held.remove(held)
            self._settled.notify_all()
            if answer is None:
                return 0.0
            told = answer.tokens_in is not None and answer.tokens_out is not None
            tokens_in, tokens_out = answer.tokens_in or 0, answer.tokens_out or 0
            cost = self.prices.cost(tokens_in, tokens_out) if told else held.cost
            spent = self.spent._replace(requests=self.spent.requests + 1, cost=self.spent.cost + cost)
            if told:
                spent = spent._replace(
                    told=spent.told + 1,
                    prompt_bytes=spent.prompt_bytes + held.prompt_bytes,
                    tokens_in=spent.tokens_in + tokens_in,
                    tokens_out=spent.tokens_out + tokens_out,
                    allowed=spent.allowed + held.max_tokens,
                    highest=max(spent.highest, tokens_in / max(held.prompt_bytes, 1)),
                )
            self.spent = spent
            return cost

    def estimate(self, requests: Iterable[Request]) -> Estimate:
        """What requests will take if they go as those before."""
        spent = self.spent
        ratio = spent.tokens_in / spent.prompt_bytes if spent.prompt_bytes else TYPICAL
        used = spent.tokens_out / spent.allowed if spent.allowed else 1.0
        sizes = [(_size(request), request.max_tokens) for request in requests]
        tokens_in = math.ceil(ratio * sum(size for size, _ in sizes))
        tokens_out = math.ceil(used * sum(limit for _, limit in sizes))
        return Estimate(len(sizes), tokens_in, tokens_out, self.prices.cost(tokens_in, tokens_out))

    def _reservation(self, request: Request) -> Reservation:
        size = _size(request)
        ratio = MARGIN * self.spent.highest if self.spent.told else 1.0
        return Reservation(size, request.max_tokens, self.prices.cost(ratio * size + FRAME, request.max_tokens))

    def _over(self, held: Reservation) -> str | None:
        spent = self.spent
        if self.max_requests is not None and spent.requests + len(self._held) >= self.max_requests:
            return f"max_requests={self.max_requests} is met; raise it and run again to go on"
        cost = spent.cost + sum(other.cost for other in self._held) + held.cost
        if self.max_cost is not None and cost > self.max_cost:
            return (
                f"{spent.cost:.4f} USD of max_cost={self.max_cost} are spent and the next request may cost "
                f"{held.cost:.4f}; raise it and run again to go on"
            )
        return None


def _size(request: Request) -> int:
    return len(request.prompt.encode())
