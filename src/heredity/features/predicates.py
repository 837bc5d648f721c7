"""Which positions of a sample a hypothesis is about: tokens by text, by pattern, by script, or by a function."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Predicate = Callable[[np.ndarray, list[str]], np.ndarray]
"""(ids int64 [blocks, context], texts of the vocabulary) -> bool [blocks, context]."""


class Hypothesis(NamedTuple):
    """What a feature is asked to respond to; exactly one field is given."""

    tokens: Sequence[str] | None = None
    """Texts of tokens."""
    regex: str | None = None
    """Pattern that the whole text of a token matches (`re.fullmatch`)."""
    script: str | None = None
    """Unicode script of all of a token's letters, by the word that their names begin with (Bricken et al., appendix
    "Feature Proxies")."""
    predicate: Predicate | None = None
    """A function that looks at the blocks themselves, and so at place and context as well."""


class Hits(NamedTuple):
    """Where a hypothesis holds."""

    mask: np.ndarray
    """bool [blocks * context]: at which positions."""
    vocabulary: np.ndarray | None
    """bool [d_vocab]: for which tokens; None where a predicate chose positions."""


def hits(hypothesis: Hypothesis, ids: np.ndarray, texts: Sequence[str]) -> Hits:
    """The positions that a hypothesis is about.

    ids: int [blocks, context], tokens. texts [d_vocab]: the text of every token, decoded alone.
    Raises `ValueError` unless exactly one field of the hypothesis is given, and for a predicate that does not return
    one bool a position.
    """
    given = [name for name, value in hypothesis._asdict().items() if value is not None]
    if len(given) != 1:
        raise ValueError(f"the hypothesis gives {' and '.join(given) or 'nothing'}; give one of {_FIELDS}")
    if hypothesis.predicate is not None:
        return Hits(_asked(hypothesis.predicate, ids, texts), None)
    chosen = np.array([_fits(hypothesis, text) for text in texts], bool)
    return Hits(chosen[ids].ravel(), chosen)


_FIELDS = ", ".join(Hypothesis._fields)


def _fits(hypothesis: Hypothesis, text: str) -> bool:
    if hypothesis.tokens is not None:
        return text in hypothesis.tokens
    if hypothesis.regex is not None:
        return re.fullmatch(hypothesis.regex, text) is not None
    return hypothesis.script is not None and of_script(text, hypothesis.script)


def of_script(text: str, script: str) -> bool:
    """Whether a text has letters, and all of them belong to a script such as `Greek` or `CJK`.

    A letter is a character of a Unicode category L*; it belongs to the script that its Unicode name begins with. Signs,
    digits and marks do not count, nor does a byte that is only part of a character.
    """
    letters = [character for character in text if unicodedata.category(character).startswith("L")]
    prefix = f"{script.upper()} "
    return bool(letters) and all(unicodedata.name(letter, "").startswith(prefix) for letter in letters)


def _asked(predicate: Predicate, ids: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """What a predicate says, checked; it gets copies, so that it cannot change the sample."""
    found = predicate(np.array(ids, np.int64), list(texts))
    name = getattr(predicate, "__qualname__", "predicate")
    if not isinstance(found, np.ndarray) or found.dtype != bool or found.shape != ids.shape:
        what = f"{found.dtype} {list(found.shape)}" if isinstance(found, np.ndarray) else type(found).__name__
        raise ValueError(f"predicate {name} returned {what}; return a numpy array of bool {list(ids.shape)}")
    return found.ravel()
