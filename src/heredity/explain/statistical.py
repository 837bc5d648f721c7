"""A judge without a language model: it explains by statistics of the text, in words, and predicts by the same rule.

A rule predicts a feature from its token, the token before, the category, the position, or the corpus. Every form of it
is a table of mean activations by a key of each position of the text, shrunk towards the table of a coarser key
(empirical Bayes): m(key) = (sum of activations + S m(coarser key)) / (positions + S). The form is chosen by its squared
error on held-out blocks of the explaining half of the sample.
"""

# ruff: noqa: ARG002 - a judge takes what the protocol gives
from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from heredity.explain.excerpts import Text
from heredity.explain.protocol import LEVELS, Excerpt, Failure, Levels

Form = Literal[
    "constant", "corpus", "position", "category", "previous", "corpus_category", "token", "after",
    "corpus_token", "pair",
]  # fmt: skip
"""From simple to complex. `category`: of the token; `after`: category, and token before; `pair`: both tokens."""
FORMS: tuple[Form, ...] = get_args(Form)
_COARSER: dict[Form, Form] = {"corpus_category": "category", "token": "category", "after": "category"}
_COARSER |= {"corpus_token": "token", "pair": "token"}
_STRENGTH = 1.0  # S, in positions
_MARGIN = 0.02  # share of the held-out variance a more complex form has to add
_FOLDS = 2
_PIECE = 17  # tokens of a piece of text, as many as of an excerpt
_NAMED = 4  # tokens named at most
_ENOUGH = 0.9  # share of the activation after which no more are named
_MANY = 0.5  # share of the activation below which the named tokens are examples only
_STRONGEST = 0.2  # least share of the activation of a preceding token that is named
_CORPUS = 0.8  # least share of the activation in one corpus that is named


class Rule(NamedTuple):
    """A predictor of one feature; on the same text it predicts matched features of other models as well."""

    form: Form
    mean: float  # activation on the explaining half of the text
    highest: float  # activation there
    gain: float  # share of the variance on held-out blocks it explains; 0 for `constant`
    cut: float  # level, 0 to 9, that best separates pieces of text that activate the feature from pieces that do not
    sums: tuple[Mapping[int, float], ...]  # activation by key, coarsest key first; keys without any are left out

    def to_json(self) -> str:
        """One line of JSON; sums have nine digits."""
        sums = [[[key, float(f"{value:.9g}")] for key, value in table.items()] for table in self.sums]
        return json.dumps({**self._asdict(), "sums": sums}, separators=(",", ":"), allow_nan=False)


class _Table(NamedTuple):
    keys: np.ndarray  # int64 [keys] of one form on the explaining half, rising
    counts: np.ndarray  # int64 [folds, keys], positions
    fitted: np.ndarray  # int64 [folds, keys], positions of all folds but one
    up: np.ndarray | None  # int64 [keys], index of the coarser key; None for a key right below the mean
    at: np.ndarray  # int64 [positions of the text], index of the key there; -1 where it is not among the keys


class Statistics:
    """The keys of all positions of a text, which every rule is fitted to and evaluated with.

    categories: int [vocab], of each token. corpora: int [blocks], of each block.
    """

    def __init__(self, text: Text, categories: np.ndarray, corpora: Sequence[int]):
        (blocks, context), vocab = text.ids.shape, len(text.vocabulary)
        categories, origin = np.asarray(categories, np.int64), np.asarray(corpora, np.int64)
        self.text, self.categories, self.corpora = text, categories, origin
        kinds, token, corpus = int(categories.max()) + 1, text.ids.ravel(), np.repeat(origin, context)
        self.before = np.concatenate([np.full((blocks, 1), vocab), text.ids[:, :-1]], axis=1).ravel()
        raw: dict[Form, np.ndarray] = {
            "corpus": corpus,
            "position": np.tile(np.arange(context), blocks),
            "category": categories[token],
            "previous": self.before,
            "corpus_category": corpus * kinds + categories[token],
            "token": token,
            "after": self.before * kinds + categories[token],
            "corpus_token": corpus * vocab + token,
            "pair": self.before * vocab + token,
        }
        fold = np.full(blocks, -1)
        explaining = np.flatnonzero(text.explains)
        fold[explaining] = np.arange(len(explaining)) % _FOLDS
        self.fold = np.repeat(fold, context)
        self.places = np.flatnonzero(self.fold >= 0)
        self._tables: dict[Form, _Table] = {}
        for form, key in raw.items():
            keys, first, of = np.unique(key[self.places], return_index=True, return_inverse=True)
            counts = np.bincount(self.fold[self.places] * len(keys) + of, minlength=_FOLDS * len(keys))
            up, coarser = None, _COARSER.get(form)
            if coarser:
                up = np.searchsorted(self._tables[coarser].keys, raw[coarser][self.places][first])
            at = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
            counts = counts.reshape(_FOLDS, -1)
            fitted = counts.sum(axis=0) - counts
            self._tables[form] = _Table(keys, counts, fitted, up, np.where(keys[at] == key, at, -1))

    def fit(self, rows: np.ndarray, values: np.ndarray) -> Rule:
        """Fit the rule of a feature to its firings on the explaining half.

        rows: int64 [n], rising. values: float64 [n]. Raises `ValueError` for a feature without firings there.
        """
        explaining = self.fold[rows] >= 0
        rows, values = rows[explaining], values[explaining]
        if not len(rows) or values.max() <= 0:
            raise ValueError("the feature does not fire on the explaining half of the sample; draw returns None for it")
        form, gain = self._best(rows, values)
        sums = []
        for level in chain(form):
            table = self._tables[level]
            total = np.bincount(table.at[rows], values, len(table.keys))
            seen = np.flatnonzero(total)
            sums.append(dict(zip(table.keys[seen].tolist(), total[seen].tolist(), strict=True)))
        mean, highest = float(values.sum() / len(self.places)), float(values.max())
        rule = Rule(form, mean, highest, gain, 0.0, tuple(sums))
        return rule._replace(cut=self._cut(rule, rows))

    def _best(self, rows: np.ndarray, values: np.ndarray) -> tuple[Form, float]:
        """The form with the highest held-out gain, and the gain; a more complex form must add `_MARGIN`."""
        error, fold = dict.fromkeys(FORMS, 0.0), self.fold[rows]
        size = np.bincount(self.fold[self.places], minlength=_FOLDS)
        keys = {form: table.at[rows] for form, table in self._tables.items()}
        for held in range(_FOLDS):
            fitting, testing = np.flatnonzero(fold != held), np.flatnonzero(fold == held)
            known, tested = values[fitting], values[testing]
            mean = known.sum() / max(size.sum() - size[held], 1)
            predicted: dict[Form, np.ndarray] = {}
            # Squared error without the sum of squares itself, which is the same for all forms.
            error["constant"] += size[held] * mean**2 - 2 * mean * tested.sum()
            for form, table in self._tables.items():
                key = keys[form]
                total = np.bincount(key[fitting], known, len(table.keys))
                prior = mean if table.up is None else predicted[_COARSER[form]][table.up]
                predicted[form] = (total + _STRENGTH * prior) / (table.fitted[held] + _STRENGTH)
                error[form] += float(table.counts[held] @ predicted[form] ** 2)
                error[form] -= 2 * float(tested @ predicted[form][key[testing]])
        square = float((values**2).sum()) + error["constant"]
        gains = {form: float((error["constant"] - error[form]) / square) for form in FORMS}
        best: Form = "constant"
        for form in FORMS:
            if gains[form] > gains[best] + _MARGIN:
                best = form
        return best, gains[best]

    def predict(self, rule: Rule, rows: np.ndarray) -> np.ndarray:
        """Expected activation at positions of the text, float64 [n]; unknown keys fall back to the coarser key."""
        expected, prior = np.full(len(rows), rule.mean), np.array([rule.mean])
        for level, sums in zip(chain(rule.form), rule.sums, strict=True):
            table = self._tables[level]
            total = np.zeros(len(table.keys))
            total[np.searchsorted(table.keys, list(sums))] = list(sums.values())
            coarser = prior[0] if table.up is None else prior[table.up]
            prior = (total + _STRENGTH * coarser) / (table.counts.sum(axis=0) + _STRENGTH)
            key = table.at[rows]
            expected = np.where(key >= 0, prior[key], expected)
        return expected

    def levels(self, rule: Rule, rows: np.ndarray) -> np.ndarray:
        """Expected level at positions of the text, 0 to 9, float64 [n], not rounded."""
        return np.minimum(LEVELS * self.predict(rule, rows) / rule.highest, LEVELS - 1)

    def _cut(self, rule: Rule, rows: np.ndarray) -> float:
        """The threshold on levels with the best informedness about which pieces of the text activate the feature."""
        starts = np.arange(0, len(self.places), _PIECE)
        strongest = np.maximum.reduceat(self.levels(rule, self.places), starts)
        active = np.zeros(len(starts), bool)
        active[np.searchsorted(self.places, rows) // _PIECE] = True
        if active.all():
            return float(strongest.min())
        order = np.argsort(-strongest, kind="stable")
        hits = np.cumsum(active[order]) / active.sum() - np.cumsum(~active[order]) / (~active).sum()
        ordered = strongest[order]
        last = np.append(ordered[:-1] != ordered[1:], False)  # one cut for all pieces of one level
        if not last.any():
            return float(ordered[0])
        at = int(np.argmax(np.where(last, hits, -np.inf)))
        return float((ordered[at] + ordered[at + 1]) / 2)


def chain(form: Form) -> tuple[Form, ...]:
    """Forms of the keys of a form, coarsest first; none for `constant`."""
    return () if form == "constant" else (*chain(_COARSER.get(form, "constant")), form)


class Explanation(str):
    """A description in words with the rule behind it, which `Offline` predicts by."""

    rule: Rule


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
        tokens, vocab = statistics.text.ids.ravel(), len(statistics.text.vocabulary)
        codes = ((tokens, vocab), (statistics.categories[tokens], 0), (statistics.before, vocab + 1))
        # -log of the share of positions with each token, category and token before (the last: none)
        counts = [np.bincount(code, minlength=n) for code, n in codes]
        self._rarity = [(-np.log((count + 0.5) / (len(tokens) + 1))).tolist() for count in counts]
        self._kinds = statistics.categories.tolist()

    def explain(self, feature: str, excerpts: Sequence[Excerpt]) -> Explanation | Failure:
        """The best predicting form in words, such as: fires on "=" and " =" (91 % of its activation)."""
        rows, values = self.firings(feature)
        rule = self.statistics.fit(rows, values)
        explanation = Explanation(self._words(rule, rows, values))
        explanation.rule = rule
        return explanation

    def simulate(self, feature: str, description: str, excerpts: Sequence[Excerpt]) -> Levels:
        """Expected level of every token, 0 to 9, not rounded."""
        return self._levels(description, excerpts)

    def detect(self, feature: str, description: str, excerpts: Sequence[Excerpt]) -> np.ndarray | Failure:
        """Highest expected level h of each excerpt against the rule's cut c: h / (h + c), which is 0.5 at the cut."""
        predicted = self._levels(description, excerpts)
        if isinstance(predicted, Failure):
            return predicted
        highest = np.array([levels.max() for levels in predicted])
        total = highest + description.rule.cut  # pyright: ignore[reportAttributeAccessIssue]
        return np.divide(highest, total, out=np.full(len(highest), 0.5), where=total > 0)

    def fuzz(
        self, feature: str, description: str, excerpts: Sequence[Excerpt], marked: Sequence[np.ndarray]
    ) -> np.ndarray | Failure:
        """Sum of the expected levels of the marked tokens over that of as many best ones."""
        predicted, answers = self._levels(description, excerpts), []
        if isinstance(predicted, Failure):
            return predicted
        for levels, marks in zip(predicted, marked, strict=True):
            best = np.sort(levels)[len(levels) - int(marks.sum()) :].sum()
            answers.append(levels[marks].sum() / best if best > 0 else 0.5)
        return np.array(answers)

    def intruder(self, feature: str, groups: Sequence[Sequence[Excerpt]]) -> np.ndarray | Failure:
        """The excerpt whose center lacks what the others' centers share, in token, category or token before: the rarer
        that is in the text and the more share it, the stronger."""
        places, start = [], len(self.statistics.text.vocabulary)
        # In plain Python, which for five excerpts is several times as fast as arrays.
        for group in groups:
            strength = [0.0] * len(group)
            tokens = [int(excerpt.ids[excerpt.center]) for excerpt in group]
            before = [int(excerpt.ids[excerpt.center - 1]) if excerpt.center else start for excerpt in group]
            kinds = [self._kinds[token] for token in tokens]
            for codes, rarity in zip((tokens, kinds, before), self._rarity, strict=True):
                for code in set(codes):
                    shared = codes.count(code)
                    if 1 < shared < len(group):
                        evidence = shared * rarity[code] / (len(group) - shared)
                        strength = [
                            max(own, evidence) if other != code else own
                            for own, other in zip(strength, codes, strict=True)
                        ]
            places.append(strength.index(max(strength)))
        return np.array(places, np.int64)

    def _levels(self, description: str, excerpts: Sequence[Excerpt]) -> Any:
        """Expected levels, float64 [n] for each excerpt; a `Failure` for a description without a rule."""
        if not isinstance(description, Explanation):
            return Failure("unparsed", f"{description[:80]!r} is not a description by this judge; it carries no rule")
        rows = [self._rows(excerpt) for excerpt in excerpts]
        levels = self.statistics.levels(description.rule, np.concatenate(rows))
        return np.split(levels, np.cumsum([len(own) for own in rows])[:-1])

    def _rows(self, excerpt: Excerpt) -> np.ndarray:
        """Positions of an excerpt's tokens in the text; the first of its block with these tokens in this order."""
        block = self.statistics.text.ids[excerpt.block]
        ids, width = np.asarray(excerpt.ids, block.dtype).tobytes(), block.itemsize
        at = (text := block.tobytes()).find(ids)
        while at >= 0:
            if at % width == 0:  # or it lies across tokens
                return excerpt.block * len(block) + at // width + np.arange(len(excerpt.ids))
            at = text.find(ids, at + 1)
        raise ValueError(f"block {excerpt.block} of the text does not hold the excerpt {''.join(excerpt.tokens)!r}")

    def _words(self, rule: Rule, rows: np.ndarray, values: np.ndarray) -> str:
        """A rule in plain words, with shares of the activation on the explaining half."""
        text, context = self.statistics.text, self.statistics.text.ids.shape[1]
        explaining = text.explains[rows // context]
        rows, values = rows[explaining], values[explaining]
        token = text.ids.ravel()[rows]
        tokens, total = _named(_shares(token, values), text.vocabulary)
        preceding = _shares(self.statistics.before[rows], values)
        category, category_share = _shares(self.statistics.categories[token], values)[0]
        corpus, corpus_share = _shares(self.statistics.corpora[rows // context], values)[0]
        position, position_share = _shares(rows % context, values)[0]
        kind = f"of the kind {self.categories[category]} ({_percent(category_share)})"
        in_corpus = f"in {self.corpora[corpus]} ({_percent(corpus_share)})"
        preceded, preceded_share = _named(preceding, text.vocabulary)
        after, most = f"after {preceded} ({_percent(preceded_share)})", f"{tokens} ({_percent(total)})"
        on_kind = f"fires on tokens {kind}, most on {tokens}"
        any_tokens = f"fires on many tokens, most {kind}, such as {most}" if total < _MANY else f"fires on {most}"
        forms = {
            "constant": f"follows no simple rule; fires most on {most}",
            "corpus": f"fires {in_corpus}, most on {tokens}",
            "position": f"fires at place {position + 1} of a block ({_percent(position_share)})",
            "previous": f"fires {after}",
            "category": on_kind,
            "corpus_category": on_kind,
            "after": f"{on_kind}; {after}",
        }
        words = forms.get(rule.form, any_tokens)
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
