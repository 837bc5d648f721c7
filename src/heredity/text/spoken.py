"""Who speaks in a dialogue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

Roles = Literal["all", "assistant"]
"""Whose words are samples."""


class Spoken(NamedTuple):
    """A dialogue as text, and what the assistant says in it."""

    text: str
    spans: Sequence[int]  # start, end, start, end ..., characters
