"""`generated:stories`: short children's stories from a seeded grammar, endless for practical purposes.

A story has an opening, a plot of several beats with asides, and an ending. What recurs in it (names, animals, places,
colors) is drawn once, so that a language model has something to keep track of. The words are in `story_plots.txt` and
`story_cast.txt`, which describe their format.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import NamedTuple

VERSION = 1  # raised whenever the grammar changes, so that no cached corpus is reused
_WORDS = range(80, 251)
_PATIENCE = 1000
_NEW_PARAGRAPH = 0.4
_ASIDE = 0.6
_MIDDLE = 0.15
_CREATURE = 0.25

_CHOICE = re.compile(r"\[([^]]*)\]")
_SLOT = re.compile(r"\{(\w)(\w*)\}")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiouAEIOU])")
_PRONOUNS = {
    "she": {"he": "she", "him": "her", "his": "her", "himself": "herself"},
    "he": {"he": "he", "him": "him", "his": "his", "himself": "himself"},
}

Ways = tuple[str, ...]  # wordings of one beat
Row = dict[str, str]


class Grammar(NamedTuple):
    """The words of `story_plots.txt` and `story_cast.txt`."""

    opening: Ways
    aside: Ways
    middle: Ways
    ending: Ways
    plots: tuple[tuple[Ways, ...], ...]
    girls: tuple[str, ...]
    boys: tuple[str, ...]
    creatures: tuple[str, ...]
    helpers: tuple[Row, ...]
    tables: tuple[tuple[Row, ...], ...]


def stories(count: int | None, seed: int) -> Iterator[str]:
    """`count` distinct stories, or without end when `count` is `None`; a prefix of them is the same for any `count`.

    Raises ValueError when the grammar has no further story, or hardly any.
    """
    rng = random.Random(seed)
    earlier: set[bytes] = set()
    while count is None or len(earlier) < count:
        for _ in range(_PATIENCE):
            text = story(rng)
            digest = hashlib.sha256(text.encode()).digest()
            if digest not in earlier:
                break
        else:
            raise ValueError(f"generated:stories: no new story after {len(earlier)}; lower max_bytes")
        earlier.add(digest)
        yield text


def story(rng: random.Random) -> str:
    """One story of 80 to 250 words, in one or more paragraphs."""
    words = grammar()
    slots: Row = {}

    def value(match: re.Match[str]) -> str:
        first, rest = match.groups()
        word = slots[first.lower() + rest]
        return word if first.islower() else word[0].upper() + word[1:]

    while True:
        slots = _slots(rng)
        parts = [rng.choice(words.opening)]
        if rng.random() < _ASIDE:
            parts += [" ", rng.choice(words.aside)]
        for ways in rng.choice(words.plots):
            parts += ["\n" if rng.random() < _NEW_PARAGRAPH else " ", rng.choice(ways)]
            if rng.random() < _MIDDLE:
                parts += [" ", rng.choice(words.middle)]
        parts += [" ", rng.choice(words.ending)]
        text = _CHOICE.sub(lambda match: rng.choice(match[1].split("|")), "".join(parts))
        text = _ARTICLE.sub(r"\1n ", _SLOT.sub(value, text))  # `an` before a vowel
        if len(text.split()) in _WORDS:
            return text


def _slots(rng: random.Random) -> Row:
    """A value for every slot of the plots."""
    words = grammar()
    slots: Row = {}
    for rows in words.tables:
        slots |= rng.choice(rows)
    hero, friend = rng.sample(words.girls + words.boys, 2)
    helper = rng.choice(words.helpers)
    slots |= {"hero": hero, "friend": friend, "helper": helper["helper"]}
    pronouns = {"": "he", "f": "he", "h": helper["pronoun"]}
    pronouns |= {prefix: "she" for prefix, name in (("", hero), ("f", friend)) if name in words.girls}
    for prefix, pronoun in pronouns.items():
        slots |= {prefix + slot: word for slot, word in _PRONOUNS[pronoun].items()}
    kinds = {"she": "girl", "he": "boy"}
    slots["kind"] = rng.choice(words.creatures) if rng.random() < _CREATURE else kinds[pronouns[""]]
    slots["friend_kind"] = kinds[pronouns["f"]]
    return slots


@cache
def grammar() -> Grammar:
    """Everything that stories are made from, read once."""
    sections: dict[str, str] = {}
    for file in ("story_plots.txt", "story_cast.txt"):
        text = resources.files("heredity.demo").joinpath(file).read_text(encoding="utf-8")
        _, *parts = re.split(r"^== (.+)\n", text, flags=re.MULTILINE)
        sections |= {title: body.strip() for title, body in zip(parts[::2], parts[1::2], strict=True)}
    opening, aside, middle, ending = (_beats(sections[title])[0] for title in ("opening", "aside", "middle", "ending"))
    girls, boys, creatures = (tuple(sections[title].split()) for title in ("girls", "boys", "creatures"))
    plots = tuple(_beats(text) for title, text in sections.items() if title.startswith("plot "))
    tables = tuple(_rows(text) for title, text in sections.items() if title.startswith("table "))
    helpers = _rows(sections["helpers"])
    return Grammar(opening, aside, middle, ending, plots, girls, boys, creatures, helpers, tables)


def _beats(text: str) -> tuple[Ways, ...]:
    """Ways to tell each beat."""
    beats = (re.split(r"^- ", beat, flags=re.MULTILINE)[1:] for beat in text.split("\n\n"))
    return tuple(tuple(" ".join(way.split()) for way in ways) for ways in beats)


def _rows(text: str) -> tuple[Row, ...]:
    """Rows of a table, each as slot and value."""
    head, *rows = ([cell.strip() for cell in line.split("|")] for line in text.splitlines())
    return tuple(dict(zip(head, row, strict=True)) for row in rows)
