"""The unit every source of text yields, and the error every source raises."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

Split = Literal["train", "validation"]


class CorpusError(ValueError):
    """A corpus that cannot be read; the message names the value, the place and the way out."""


class Document(NamedTuple):
    """One text of a corpus."""

    text: str
    source: str
    """File, package or data set the text came from."""
    licence: str
    """Licence of this document, as stated where it came from."""


class Found(NamedTuple):
    """A document as its source yields it."""

    document: Document
    split: Split | None
    """Split that the source itself puts the document in; `None` leaves it to the hash of the text."""


def shuffled(found: Iterable[Found], seed: int, capacity: int) -> Iterator[Found]:
    """Yield everything in a seeded random order, holding at most about `capacity` characters at once.

    A source that fits into `capacity` is shuffled uniformly. Of a larger one, the order is random among the
    documents held: each newcomer takes the place of a random one, which is yielded.
    """
    rng = random.Random(seed)
    held: list[Found] = []
    size = 0
    for newcomer in found:
        held.append(newcomer)
        size += len(newcomer.document.text)
        while size > capacity:
            chosen = rng.randrange(len(held))
            held[chosen], held[-1] = held[-1], held[chosen]
            size -= len(held[-1].document.text)
            yield held.pop()
    rng.shuffle(held)
    yield from held
