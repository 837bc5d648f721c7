"""Where the sources of a planted world fire in a block of documents: coins that depend on topic and document.

A source's draws are a Poisson process along the tokens, of rate −log(1 − p): a token is hit with probability p, and
tokens independently. The cost is that of the draws, whatever the number of sources and tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from heredity.kernels.sparse import compiled


class Rates(NamedTuple):
    """How often each source fires. `own` and `other` hold in documents that suit the source, one in `burst`."""

    topic: np.ndarray
    """int64 [sources]."""
    own: np.ndarray
    """float64 [sources]: draws a token, in documents of the source's topic."""
    other: np.ndarray
    """float64 [sources]: draws a token, in other documents."""
    burst: np.ndarray
    """float64 [sources]: 1 or more."""


def fire(rates: Rates, topic: np.ndarray, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(token, source) of every firing, int64 [n] each, by token and source.

    topic: int64 [documents]. size: tokens of a document. Which documents suit a source follows from the generator.
    """
    by_topic = np.argsort(topic, kind="stable")
    topics = int(max(rates.topic.max(initial=-1), topic.max(initial=-1))) + 1
    first = np.searchsorted(topic[by_topic], np.arange(topics + 1))
    salt = rng.integers(0, 2**64, dtype=np.uint64)
    token, source = draw(*rates, by_topic, first, size, salt, rng)
    token, source = np.divmod(np.sort(token * len(rates.topic) + source), len(rates.topic))
    return token, source


@compiled()
def coin(document: int, source: int, salt: np.uint64) -> float:
    """A uniform number of [0, 1), the same for the same arguments (splitmix64)."""
    mixed = np.uint64(salt) + (np.uint64(source) << np.uint64(32)) + np.uint64(document)
    mixed *= np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return np.float64(mixed >> np.uint64(11)) * 2.0**-53


@compiled()
def draw(topic, own, other, burst, by_topic, first, size, salt, rng):
    """Firings source by source: (token int64 [n], source int64 [n]).

    by_topic: documents in order of their topics; those of topic t are `by_topic[first[t]:first[t + 1]]`.
    """
    tokens, sources, n = np.empty(1024, np.int64), np.empty(1024, np.int64), 0
    for source in range(len(topic)):
        start, stop = first[topic[source]], first[topic[source] + 1]
        for rate, begin, span in (
            (own[source], start, (stop - start) * size),
            (other[source], stop, (len(by_topic) - stop + start) * size),
        ):
            if rate <= 0:
                continue
            place, last, seen, suits = 0.0, -1, -1, False
            while True:
                # 1 − u is never 0, of which there is no logarithm.
                place -= np.log(1.0 - rng.random()) / rate
                if place >= span:
                    break
                at = np.int64(place)
                if at == last:
                    continue
                last = at
                # Counted from the documents of the own topic on around the circle.
                number = at // size
                document = by_topic[(begin + number) % len(by_topic)]
                if number != seen:
                    seen, suits = number, coin(document, source, salt) * burst[source] < 1
                if not suits:
                    # The process has no memory, so it may start anew at the next document.
                    place = float((number + 1) * size)
                    continue
                if n == len(tokens):
                    tokens, sources = np.append(tokens, tokens), np.append(sources, sources)
                tokens[n], sources[n] = document * size + at % size, source
                n += 1
    return tokens[:n], sources[:n]
