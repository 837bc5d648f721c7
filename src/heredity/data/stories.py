"""`generated:stories`: short children's stories from a seeded grammar, endless for practical purposes.

A story has an opening, a plot of several beats with asides, and an ending. What recurs in it (names, animals, places, colors) is
drawn once, so that a language model has something to keep track of.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator
from functools import cache

from heredity.data.story_cast import BOYS, CREATURES, GIRLS, HELPERS, PRONOUNS, TABLES
from heredity.data.story_plots import ASIDE, ENDING, MIDDLE, OPENING, PLOTS

VERSION = 1
"""Raised whenever the grammar changes, so that cached corpora are made anew."""

_WORDS = range(80, 251)
_PATIENCE = 1000
_CHOICE = re.compile(r"\[([^]]*)\]")
_SLOT = re.compile(r"\{(\w)(\w*)\}")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiouAEIOU])")
_NEW_PARAGRAPH = 0.4
_ASIDE = 0.6
_MIDDLE = 0.15


def story(rng: random.Random) -> str:
    """One story of 80 to 250 words."""
    while True:
        cast = _cast(rng)
        told = [rng.choice(_beats(OPENING)[0])]
        if rng.random() < _ASIDE:
            told += [" ", rng.choice(_beats(ASIDE)[0])]
        for ways in _beats(rng.choice(PLOTS)):
            told += ["\n" if rng.random() < _NEW_PARAGRAPH else " ", rng.choice(ways)]
            if rng.random() < _MIDDLE:
                told += [" ", rng.choice(_beats(MIDDLE)[0])]
        told += [" ", rng.choice(_beats(ENDING)[0])]
        text = _tell("".join(told), cast, rng)
        if len(text.split()) in _WORDS:
            return text


def stories(count: int | None, seed: int) -> Iterator[str]:
    """`count` distinct stories, or without end when `count` is `None`; a prefix of them is the same for any `count`.

    Raises:
        ValueError: the grammar has no further story, or hardly any.
    """
    rng = random.Random(seed)
    told: set[bytes] = set()
    while count is None or len(told) < count:
        for _ in range(_PATIENCE):
            text = story(rng)
            digest = hashlib.sha256(text.encode()).digest()
            if digest not in told:
                break
        else:
            raise ValueError(f"generated:stories: no new story after {len(told)}; lower max_bytes")
        told.add(digest)
        yield text


def _tell(text: str, cast: dict[str, str], rng: random.Random) -> str:
    """Resolve choices, then slots, then `a` before a vowel."""

    def value(match: re.Match[str]) -> str:
        first, rest = match.groups()
        if first.islower():
            return cast[first + rest]
        filled = cast[first.lower() + rest]
        return filled[0].upper() + filled[1:]

    text = _CHOICE.sub(lambda match: rng.choice(match[1].split("|")), text)
    return _ARTICLE.sub(r"\1n ", _SLOT.sub(value, text))


def _cast(rng: random.Random) -> dict[str, str]:
    """A value for every slot of the plots."""
    cast: dict[str, str] = {}
    for rows in _rows():
        cast |= rng.choice(rows)
    names = GIRLS + BOYS
    hero, friend = rng.sample(names, 2)
    helper, pronoun = rng.choice(HELPERS)
    cast |= {"hero": hero, "friend": friend, "helper": helper}
    cast["kind"] = rng.choice(CREATURES) if rng.random() < 0.25 else _child(hero)
    cast["friend_kind"] = _child(friend)
    cast |= _pronoun(hero)
    cast |= {f"f{slot}": word for slot, word in _pronoun(friend).items()}
    cast |= {f"h{slot}": word for slot, word in PRONOUNS[pronoun].items()}
    return cast


def _child(name: str) -> str:
    return "girl" if name in GIRLS else "boy"


def _pronoun(name: str) -> dict[str, str]:
    return PRONOUNS["she" if name in GIRLS else "he"]


@cache
def _beats(text: str) -> tuple[tuple[str, ...], ...]:
    """Ways to tell each beat of a plot written as in `story_plots`."""
    beats = (re.split(r"^- ", beat, flags=re.MULTILINE)[1:] for beat in text.strip().split("\n\n"))
    return tuple(tuple(" ".join(way.split()) for way in ways) for ways in beats)


@cache
def _rows() -> tuple[tuple[dict[str, str], ...], ...]:
    """The tables of the cast, each as rows of slot and value."""
    tables = []
    for table in TABLES:
        head, *rows = ([cell.strip() for cell in line.split("|")] for line in table.strip().splitlines())
        tables.append(tuple(dict(zip(head, row, strict=True)) for row in rows))
    return tuple(tables)
