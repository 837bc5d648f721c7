"""Labeled texts from the corpora at hand, without any annotation."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import filterfalse
from typing import NamedTuple

import numpy as np

from heredity.study.stitch import ProbeTask

CHARACTERS = 2000  # length of the beginning of a document that is used
LOOKED_AT = 200  # documents by which a corpus counts as prose or code
_LEAST = 10  # texts of a class

_CODE_LINE = re.compile(
    r"[;{}]\s*$"  # statements and blocks of the C family
    r"|^\s*(?:def|class|import|from|return|local|function|end|elif|else|if|for|while|try|except|with)\b.*[:)(]?\s*$"
    r"|^\s*(?:#|--|//|/\*|\*|@)"
    r"|^\s*[\w.\[\]\"']+\s*(?:=|\+=|-=)[^=]"
    r"|^\s*[\w.:]+\(.*\)?,?\s*$"
    r"|^\s*[)\]}]+,?\s*$"
)
_TEST_MARK = re.compile(
    r"\bdef test_|\bimport (?:pytest|unittest)\b|\bfrom (?:pytest|unittest)\b|\bTestCase\b|\bassertEqual"
    r"|\b(?:describe|it)\s*\(\s*[\"']|\bluaunit\b|\bbusted\b|\bassert[._](?:are|is|equal|same|has|truthy|falsy)"
)


class LabelError(ValueError):
    """Texts give no labeled set; the message names the class and the way out."""


class LabeledTexts(NamedTuple):
    """Texts with a class each: equally many of every class, no text twice, in random order."""

    texts: list[str]
    y: np.ndarray  # int64 [n]: class of each
    names: tuple[str, ...]  # of the classes, by number
    test: np.ndarray  # bool [n]: whether the text is held out; equally many of every class


def binary_tasks(texts: LabeledTexts, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Each class against a random sample of the rest, by name; of two classes, the second one against the first.

    Indices of the texts in the set, int64 [n]; whether each is of the class, and whether it is held out, bool [n].
    """
    if len(texts.names) == 2:
        return {texts.names[1]: (np.arange(len(texts.texts)), texts.y == 1, texts.test)}
    tasks = {}
    for number, name in enumerate(texts.names):
        members, rng = texts.y == number, np.random.default_rng(seed)
        kept = members.copy()
        for part in (texts.test, ~texts.test):
            others = np.flatnonzero(part & ~members)
            kept[rng.choice(others, int((part & members).sum()), replace=False)] = True
        rows = np.flatnonzero(kept)
        tasks[name] = rows, members[rows], texts.test[rows]
    return tasks


def labeled(corpora: Mapping[str, Sequence[str]], task: ProbeTask, *, most: int = 1000, seed: int = 0) -> LabeledTexts:
    """The set of one task, from documents of corpora by name.

    Classes: `origin`, the corpora; `kind`, prose and code; `language`, corpora of code; `test`, tests among code. A
    corpus is of code when most of its documents look like it, and a file of code is a test when anything in it marks
    one: rules, not annotations. most: texts per class. Raises LabelError when a class is missing or too small.
    """
    if task == "origin":
        return balanced(corpora, most=most, seed=seed)
    code = {name: texts for name, texts in corpora.items() if mostly_code(texts)}
    files = [text for texts in code.values() for text in texts]
    groups: Mapping[str, Sequence[str]] = code
    if task == "kind":
        prose = [text for name, texts in corpora.items() if name not in code for text in texts]
        groups = {"prose": prose, "code": files}
    elif task == "test":
        groups = {"other": list(filterfalse(looks_like_a_test, files)), "test": list(filter(looks_like_a_test, files))}
    if len(groups) < 2:
        names = ", ".join(corpora) or "no corpora", ", ".join(groups) or "none"
        raise LabelError(f"task {task}: of {names[0]}, only {names[1]} look like code; give two corpora of it")
    return balanced(groups, most=most, seed=seed)


def balanced(
    groups: Mapping[str, Iterable[str]], *, most: int = 1000, held_out: float = 0.25, seed: int = 0
) -> LabeledTexts:
    """Equally many texts of every group, in random order, split into training and test texts.

    Texts are cut to their first `CHARACTERS`. One that occurs twice, up to white space and letter case, counts once;
    one that occurs in several groups is left out of all. most: texts per group. Raises LabelError for fewer than two
    groups, when a group has fewer than 10 texts left, or when nothing would be left to fit or to test.
    """
    owner: dict[str, str | None] = {}
    first: dict[str, str] = {}
    for name, some in groups.items():
        for text in some:
            text = text[:CHARACTERS]
            key = " ".join(text.lower().split())
            if key:
                first.setdefault(key, text)
                owner[key] = name if owner.get(key, name) == name else None
    kept = {name: [first[key] for key, of in owner.items() if of == name] for name in groups}
    rng = np.random.default_rng(seed)
    size = min([most, *map(len, kept.values())])
    tests = round(size * held_out)
    if len(kept) < 2:
        raise LabelError(f"only {', '.join(kept) or 'no class'} was given; a set needs two classes")
    if size < min(_LEAST, most):
        smallest = min(kept, key=lambda name: len(kept[name]))
        has = f"class {smallest!r} has {len(kept[smallest])} different texts of its own, {_LEAST} are needed"
        raise LabelError(f"{has}; give more documents, or leave the class out")
    if not 0 < tests < size:
        raise LabelError(f"held_out={held_out} of {size} texts per class leaves nothing to fit or to test; change it")
    texts = [group[chosen] for group in kept.values() for chosen in rng.permutation(len(group))[:size]]
    y, test = np.repeat(np.arange(len(kept)), size), np.tile(np.arange(size) < tests, len(kept))
    order = rng.permutation(len(texts))
    return LabeledTexts([texts[i] for i in order], y[order], tuple(kept), test[order])


def looks_like_code(text: str) -> bool:
    """Whether at least half of the lines that are not blank look like a line of a program."""
    lines = [line for line in text[: 4 * CHARACTERS].splitlines() if line.strip()]
    return bool(lines) and sum(bool(_CODE_LINE.search(line)) for line in lines) >= len(lines) / 2


def looks_like_a_test(text: str) -> bool:
    """Whether a file of code contains a test function, a test library, or an assertion of one."""
    return bool(_TEST_MARK.search(text))


def mostly_code(texts: Sequence[str]) -> bool:
    """Whether more than half of the first `LOOKED_AT` documents look like code."""
    some = texts[:LOOKED_AT]
    return sum(map(looks_like_code, some)) > len(some) / 2
