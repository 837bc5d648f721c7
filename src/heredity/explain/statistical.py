"""A judge that needs no language model: it explains by statistics of the text, and predicts by what it found."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from heredity.explain.phrasing import Names, describe
from heredity.explain.protocol import Excerpt, Failure
from heredity.explain.token_statistics import Rule, Statistics


class Explanation(str):
    """A description in words that carries the rule behind it, which is what `Offline` predicts by."""

    rule: Rule

    def __new__(cls, words: str, rule: Rule) -> Explanation:
        """words: for people. rule: for simulations."""
        made = super().__new__(cls, words)
        made.rule = rule
        return made


class Offline:
    """A `Judge` of statistics.

    Where a language model would read the excerpts, it looks at all firings on the blocks that explain. It answers for
    descriptions of its own only: anything else it cannot read, which is a `Failure`.
    """

    name = "offline"

    def __init__(
        self, statistics: Statistics, names: Names, firings: Callable[[str], tuple[np.ndarray, np.ndarray]]
    ) -> None:
        """firings: places (int64, rising) and activations (float64) of a feature, by its name, such as `lua/123`."""
        self.statistics, self.names, self.firings = statistics, names, firings
        self._rarity = _rarity(statistics)

    def explain(self, feature: str, excerpts: Sequence[Excerpt]) -> Explanation | Failure:  # noqa: ARG002
        """The form that predicts the feature best, in words."""
        rows, values = self.firings(feature)
        rule = self.statistics.fit(rows, values)
        return Explanation(describe(self.statistics, self.names, rule, rows, values), rule)

    def simulate(
        self,
        feature: str,  # noqa: ARG002
        description: str,
        excerpts: Sequence[Excerpt],
    ) -> list[np.ndarray | Failure] | Failure:
        """Expected level of every token, 0 to 9, not rounded."""
        if not isinstance(description, Explanation):
            return _unread(description)
        return [*self._levels(description.rule, excerpts)]

    def detect(self, feature: str, description: str, excerpts: Sequence[Excerpt]) -> np.ndarray | Failure:  # noqa: ARG002
        """The highest expected level of each excerpt against the level that separates best; 0.5 at that level."""
        if not isinstance(description, Explanation):
            return _unread(description)
        highest = np.array([found.max() for found in self._levels(description.rule, excerpts)])
        total = highest + description.rule.cut
        return np.divide(highest, total, out=np.full(len(highest), 0.5), where=total > 0)

    def fuzz(
        self,
        feature: str,  # noqa: ARG002
        description: str,
        excerpts: Sequence[Excerpt],
        marked: Sequence[np.ndarray],
    ) -> np.ndarray | Failure:
        """Mean expected level of the marked tokens over that of as many best ones."""
        if not isinstance(description, Explanation):
            return _unread(description)
        answers = []
        for levels, marks in zip(self._levels(description.rule, excerpts), marked, strict=True):
            best = np.sort(levels)[len(levels) - int(marks.sum()) :].sum()
            answers.append(levels[marks].sum() / best if best > 0 else 0.5)
        return np.array(answers)

    def intruder(self, feature: str, groups: Sequence[Sequence[Excerpt]]) -> np.ndarray | Failure:  # noqa: ARG002
        """The excerpt whose center lacks what the others' centers share, in token, kind of token or token before: the
        rarer that is in the text and the more share it, the stronger."""
        return np.array([self._odd(group) for group in groups], np.int64)

    def _odd(self, group: Sequence[Excerpt]) -> int:
        start = len(self.statistics.text.vocabulary)
        strength = np.zeros(len(group))
        tokens = [int(excerpt.ids[excerpt.center]) for excerpt in group]
        before = [int(excerpt.ids[excerpt.center - 1]) if excerpt.center else start for excerpt in group]
        kinds = self.statistics.categories[tokens].tolist()
        for codes, rarity in zip((tokens, kinds, before), self._rarity, strict=True):
            for code in set(codes):
                others = np.array([other != code for other in codes])
                shared = len(group) - int(others.sum())
                if 1 < shared < len(group):
                    evidence = shared * rarity[code] / (len(group) - shared)
                    strength[others] = np.maximum(strength[others], evidence)
        return int(strength.argmax())

    def _levels(self, rule: Rule, excerpts: Sequence[Excerpt]) -> list[np.ndarray]:
        if not excerpts:
            return []
        rows = [self._rows(excerpt) for excerpt in excerpts]
        levels = self.statistics.levels(rule, np.concatenate(rows))
        return np.split(levels, np.cumsum([len(found) for found in rows])[:-1])

    def _rows(self, excerpt: Excerpt) -> np.ndarray:
        """Places of an excerpt's tokens in the text; the first of the block where they stand in this order."""
        ids, size = self.statistics.text.ids, len(excerpt.ids)
        if 0 <= excerpt.block < len(ids) and size:
            block = ids[excerpt.block]
            for start in np.flatnonzero(block[: len(block) - size + 1] == excerpt.ids[0]).tolist():
                if np.array_equal(block[start : start + size], excerpt.ids):
                    first = excerpt.block * len(block) + start
                    return np.arange(first, first + size)
        raise ValueError(f"block {excerpt.block} of the text does not hold the excerpt {''.join(excerpt.tokens)!r}")


def _rarity(statistics: Statistics) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """-log of the share of places with each token, kind of token and token before (the last: none), float64."""
    ids, vocab = statistics.text.ids, len(statistics.text.vocabulary)
    before = np.append(ids[:, :-1].ravel(), np.full(len(ids), vocab))
    kinds = statistics.categories[ids].ravel()
    counts = (np.bincount(ids.ravel(), minlength=vocab), np.bincount(kinds), np.bincount(before, minlength=vocab + 1))
    token, kind, previous = (-np.log((count + 0.5) / (ids.size + 1)) for count in counts)
    return token, kind, previous


def _unread(description: str) -> Failure:
    return Failure(
        "unparsed", f"{str(description)[:80]!r} is not a description of this judge's own; it carries no rule"
    )
