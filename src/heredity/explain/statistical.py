"""A judge without a language model: it explains by statistics of the text, in words, and predicts by the same rule."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import numpy as np

from heredity.explain.protocol import Excerpt, Failure, Levels
from heredity.explain.token_statistics import Rule, Statistics

_NAMED = 4  # tokens named at most
_ENOUGH = 0.9  # share of the activation after which no more are named
_MANY = 0.5  # share of the activation below which the named tokens are examples only
_STRONGEST = 0.2  # least share of the activation of a preceding token that is named
_CORPUS = 0.8  # least share of the activation in one corpus that is named


class Explanation(str):
    """A description in words with the rule behind it, which `Offline` predicts by."""

    rule: Rule

    def __new__(cls, words: str, rule: Rule) -> Explanation:
        made = super().__new__(cls, words)
        made.rule = rule
        return made


class Offline:
    """A `Judge` of statistics, fitted to all firings on the explaining blocks rather than to excerpts.

    categories, corpora: names of those of `statistics`, by number. firings: rows (int64, rising) and activations
    (float64) of a feature by its name, such as `lua/123`. Descriptions other than its `Explanation`s are a `Failure`.
    """

    name = "offline"

    def __init__(
        self,
        statistics: Statistics,
        categories: Sequence[str],
        corpora: Sequence[str],
        firings: Callable[[str], tuple[np.ndarray, np.ndarray]],
    ):
        self.statistics, self.categories, self.corpora, self.firings = statistics, categories, corpora, firings
        ids, vocab = statistics.text.ids, len(statistics.text.vocabulary)
        before = np.append(ids[:, :-1].ravel(), np.full(len(ids), vocab))
        codes = (ids.ravel(), vocab), (statistics.categories[ids].ravel(), 0), (before, vocab + 1)
        # -log of the share of positions with each token, category and token before (the last: none), float64
        self._rarity = [-np.log((np.bincount(code, minlength=n) + 0.5) / (ids.size + 1)) for code, n in codes]

    def explain(self, feature: str, excerpts: Sequence[Excerpt]) -> Explanation | Failure:  # noqa: ARG002
        """The best predicting form in words, such as: fires on "=" and " =" (91 % of its activation)."""
        rows, values = self.firings(feature)
        rule = self.statistics.fit(rows, values)
        return Explanation(self._words(rule, rows, values), rule)

    def simulate(self, feature: str, description: str, excerpts: Sequence[Excerpt]) -> Levels:  # noqa: ARG002
        """Expected level of every token, 0 to 9, not rounded."""
        return (
            [*self._levels(description.rule, excerpts)]
            if isinstance(description, Explanation)
            else _unread(description)
        )

    def detect(self, feature: str, description: str, excerpts: Sequence[Excerpt]) -> np.ndarray | Failure:  # noqa: ARG002
        """Highest expected level h of each excerpt against the rule's cut c: h / (h + c), which is 0.5 at the cut."""
        if not isinstance(description, Explanation):
            return _unread(description)
        highest = np.array([levels.max() for levels in self._levels(description.rule, excerpts)])
        total = highest + description.rule.cut
        return np.divide(highest, total, out=np.full(len(highest), 0.5), where=total > 0)

    def fuzz(
        self,
        feature: str,  # noqa: ARG002
        description: str,
        excerpts: Sequence[Excerpt],
        marked: Sequence[np.ndarray],
    ) -> np.ndarray | Failure:
        """Sum of the expected levels of the marked tokens over that of as many best ones."""
        if not isinstance(description, Explanation):
            return _unread(description)
        answers = []
        for levels, marks in zip(self._levels(description.rule, excerpts), marked, strict=True):
            best = np.sort(levels)[len(levels) - int(marks.sum()) :].sum()
            answers.append(levels[marks].sum() / best if best > 0 else 0.5)
        return np.array(answers)

    def intruder(self, feature: str, groups: Sequence[Sequence[Excerpt]]) -> np.ndarray | Failure:  # noqa: ARG002
        """The excerpt whose center lacks what the others' centers share, in token, category or token before: the rarer
        that is in the text and the more share it, the stronger."""
        text, places = self.statistics.text, []
        for group in groups:
            strength = np.zeros(len(group))
            tokens = [int(excerpt.ids[excerpt.center]) for excerpt in group]
            before = [
                int(excerpt.ids[excerpt.center - 1]) if excerpt.center else len(text.vocabulary) for excerpt in group
            ]
            kinds = self.statistics.categories[tokens].tolist()
            for codes, rarity in zip((tokens, kinds, before), self._rarity, strict=True):
                for code in set(codes):
                    others = np.array([other != code for other in codes])
                    shared = len(group) - int(others.sum())
                    if 1 < shared < len(group):
                        evidence = shared * rarity[code] / (len(group) - shared)
                        strength[others] = np.maximum(strength[others], evidence)
            places.append(int(strength.argmax()))
        return np.array(places, np.int64)

    def _levels(self, rule: Rule, excerpts: Sequence[Excerpt]) -> list[np.ndarray]:
        if not excerpts:
            return []
        levels = self.statistics.levels(rule, np.concatenate([self._rows(excerpt) for excerpt in excerpts]))
        return np.split(levels, np.cumsum([len(excerpt.ids) for excerpt in excerpts])[:-1])

    def _rows(self, excerpt: Excerpt) -> np.ndarray:
        """Positions of an excerpt's tokens in the text; the first of its block with these tokens in this order."""
        ids, size = self.statistics.text.ids, len(excerpt.ids)
        if 0 <= excerpt.block < len(ids) and size:
            block = ids[excerpt.block]
            for start in np.flatnonzero(block[: len(block) - size + 1] == excerpt.ids[0]).tolist():
                if np.array_equal(block[start : start + size], excerpt.ids):
                    return excerpt.block * len(block) + start + np.arange(size)
        raise ValueError(f"block {excerpt.block} of the text does not hold the excerpt {''.join(excerpt.tokens)!r}")

    def _words(self, rule: Rule, rows: np.ndarray, values: np.ndarray) -> str:
        """A rule in plain words, with shares of the activation on the explaining half."""
        text, context = self.statistics.text, self.statistics.text.ids.shape[1]
        explaining = text.explains[rows // context]
        rows, values = rows[explaining], values[explaining]
        token = text.ids.ravel()[rows]
        before = np.where(rows % context > 0, text.ids.ravel()[rows - 1], len(text.vocabulary))
        tokens, total = _named(_shares(token, values), text.vocabulary)
        preceding = _shares(before, values)
        category, category_share = _shares(self.statistics.categories[token], values)[0]
        corpus, corpus_share = _shares(self.statistics.corpora[rows // context], values)[0]
        kind = f"of the kind {self.categories[category]} ({_percent(category_share)})"
        in_corpus = f"in {self.corpora[corpus]} ({_percent(corpus_share)})"
        preceded, preceded_share = _named(preceding, text.vocabulary)
        after = f"after {preceded} ({_percent(preceded_share)})"
        match rule.form:
            case "constant":
                words = f"follows no simple rule; fires most on {tokens} ({_percent(total)})"
            case "corpus":
                words = f"fires {in_corpus}, most on {tokens}"
            case "position":
                position, share = _shares(rows % context, values)[0]
                words = f"fires at place {position + 1} of a block ({_percent(share)})"
            case "previous":
                words = f"fires {after}"
            case "category" | "corpus_category":
                words = f"fires on tokens {kind}, most on {tokens}"
            case "after":
                words = f"fires on tokens {kind}, most on {tokens}; {after}"
            case _ if total < _MANY:
                words = f"fires on many tokens, most {kind}, such as {tokens} ({_percent(total)})"
            case _:
                words = f"fires on {tokens} ({_percent(total)})"
        if rule.form == "pair" and preceding[0][1] >= _STRONGEST:
            words += f"; strongest after {_quoted(text.vocabulary, preceding[0][0])}"
        if rule.form != "corpus" and len(self.corpora) > 1 and corpus_share >= _CORPUS:
            words += f"; {in_corpus}"
        return words


def _shares(codes: np.ndarray, values: np.ndarray) -> list[tuple[int, float]]:
    """Codes with their shares of the activation, the largest first."""
    keys, of = np.unique(codes, return_inverse=True)
    share = np.bincount(of, values) / values.sum()
    order = np.argsort(-share, kind="stable")[: _NAMED + 1]
    return list(zip(keys[order].tolist(), share[order].tolist(), strict=True))


def _named(shares: list[tuple[int, float]], vocabulary: Sequence[str]) -> tuple[str, float]:
    """The tokens that carry the activation, in words, and their share of it."""
    names, total = [], 0.0
    for token, share in shares[:_NAMED]:
        if names and (total >= _ENOUGH or share < (1 - _ENOUGH) / 2):
            break
        names.append(_quoted(vocabulary, token))
        total += share
    return (names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"), total


def _quoted(vocabulary: Sequence[str], token: int) -> str:
    """A token in quotation marks, line breaks and the like as JSON writes them."""
    return json.dumps(vocabulary[token], ensure_ascii=False) if token < len(vocabulary) else "the start of a block"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} % of its activation"


def _unread(description: str) -> Failure:
    return Failure("unparsed", f"{str(description)[:80]!r} is not a description by this judge; it carries no rule")
