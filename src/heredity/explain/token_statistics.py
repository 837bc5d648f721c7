"""Prediction of a feature from token statistics: its token, the token before, the category, the position, the corpus.

Every form is a table of mean activations by a key of each position of the text, shrunk towards the table of a coarser
key (empirical Bayes): m(key) = (sum of activations + S m(coarser key)) / (positions + S). The form is chosen by its
squared error on held-out blocks of the explaining half of the sample.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np

from heredity.explain.excerpts import Text
from heredity.explain.protocol import LEVELS

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

    @staticmethod
    def from_json(line: str) -> Rule:
        """Parse what `to_json` wrote. Raises `ValueError` for anything else."""
        try:
            fields = json.loads(line)
            sums = tuple({int(key): float(value) for key, value in table} for table in fields.pop("sums"))
            rule = Rule(**fields, sums=sums)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{line[:80]!r} is no rule ({error}); give what Rule.to_json wrote") from error
        if rule.form not in FORMS or len(sums) != len(chain(rule.form)):
            raise ValueError(f"a rule of form {rule.form!r} with {len(sums)} tables: forms are {', '.join(FORMS)}")
        return rule


class _Table(NamedTuple):
    keys: np.ndarray  # int64 [keys], rising
    counts: np.ndarray  # int64 [folds, keys], positions
    up: np.ndarray | None  # int64 [keys], index of the coarser key; None for a key right below the mean


class Statistics:
    """The keys of all positions of a text, which every rule is fitted to and evaluated with.

    categories: int [vocab], of each token. corpora: int [blocks], of each block. Raises `ValueError` where their
    lengths differ from those of the text.
    """

    def __init__(self, text: Text, categories: np.ndarray, corpora: Sequence[int]):
        blocks, context = text.ids.shape
        categories, origin = np.asarray(categories, np.int64), np.asarray(corpora, np.int64)
        if categories.shape != (len(text.vocabulary),) or origin.shape != (blocks,):
            shapes = f"categories {categories.shape} and corpora {origin.shape}"
            raise ValueError(
                f"{shapes} do not fit {len(text.vocabulary)} tokens and {blocks} blocks; give one number each"
            )
        self.text, self.categories, self.corpora = text, categories, origin
        vocab, kinds = len(text.vocabulary), int(categories.max()) + 1
        before = np.concatenate([np.full((blocks, 1), vocab), text.ids[:, :-1]], axis=1).ravel()
        token, corpus = text.ids.ravel(), np.repeat(origin, context)
        raw: dict[Form, np.ndarray] = {
            "corpus": corpus,
            "position": np.tile(np.arange(context), blocks),
            "category": categories[token],
            "previous": before,
            "corpus_category": corpus * kinds + categories[token],
            "token": token,
            "after": before * kinds + categories[token],
            "corpus_token": corpus * vocab + token,
            "pair": before * vocab + token,
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
            self._tables[form] = _Table(keys, counts.reshape(_FOLDS, -1), up)
        self._keys = {form: _numbered(table.keys, raw[form]) for form, table in self._tables.items()}

    def fit(self, rows: np.ndarray, values: np.ndarray) -> Rule:
        """Fit the rule of a feature to its firings on the explaining half.

        rows: int64 [n], rising. values: float64 [n]. Raises `ValueError` for a feature without firings there.
        """
        explaining = self.fold[rows] >= 0
        rows, values = rows[explaining], values[explaining]
        if not len(rows) or values.max() <= 0:
            raise ValueError("the feature does not fire on the explaining half of the sample; draw returns None for it")
        form, gain = self._best(rows, values)
        mean, highest = float(values.sum() / len(self.places)), float(values.max())
        sums = []
        for level in chain(form):
            table = self._tables[level]
            total = np.bincount(self._keys[level][rows], values, len(table.keys))
            seen = np.flatnonzero(total)
            sums.append(dict(zip(table.keys[seen].tolist(), total[seen].tolist(), strict=True)))
        rule = Rule(form, mean, highest, gain, 0.0, tuple(sums))
        return rule._replace(cut=self._cut(rule, rows))

    def _best(self, rows: np.ndarray, values: np.ndarray) -> tuple[Form, float]:
        """The form with the highest held-out gain, and the gain; a more complex form must add `_MARGIN`."""
        error = dict.fromkeys(FORMS, 0.0)
        fold = self.fold[rows]
        size = np.bincount(self.fold[self.places], minlength=_FOLDS)
        for held in range(_FOLDS):
            fitting, testing = fold != held, fold == held
            mean = values[fitting].sum() / max(size.sum() - size[held], 1)
            predicted: dict[Form, np.ndarray] = {}
            # Squared error without the sum of squares itself, which is the same for all forms.
            error["constant"] += size[held] * mean**2 - 2 * mean * values[testing].sum()
            for form, table in self._tables.items():
                key = self._keys[form][rows]
                total = np.bincount(key[fitting], values[fitting], len(table.keys))
                prior = mean if table.up is None else predicted[_COARSER[form]][table.up]
                count = table.counts.sum(axis=0) - table.counts[held]
                predicted[form] = (total + _STRENGTH * prior) / (count + _STRENGTH)
                error[form] += float(table.counts[held] @ predicted[form] ** 2)
                error[form] -= 2 * float(values[testing] @ predicted[form][key[testing]])
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
            keys = np.fromiter(sums, np.int64, len(sums))
            at = _numbered(table.keys, keys)  # -1 for the keys of a rule from another text
            total = np.zeros(len(table.keys))
            total[at[at >= 0]] = np.fromiter(sums.values(), np.float64, len(sums))[at >= 0]
            coarser = prior[0] if table.up is None else prior[table.up]
            prior = (total + _STRENGTH * coarser) / (table.counts.sum(axis=0) + _STRENGTH)
            key = self._keys[level][rows]
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
    if form == "constant":
        return ()
    return (*chain(_COARSER.get(form, "constant")), form)


def _numbered(keys: np.ndarray, raw: np.ndarray) -> np.ndarray:
    """Index of each raw key among the keys (rising, one or more), int64; -1 where absent."""
    at = np.minimum(np.searchsorted(keys, raw), len(keys) - 1)
    return np.where(keys[at] == raw, at, -1)
