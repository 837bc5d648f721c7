"""Classes of features by fixed rules on where they fire: no language model, nothing by hand.

A feature belongs to one class by how its activation is spread over token categories, token texts, neighbors, positions
and corpora.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from keyword import kwlist
from typing import Literal, NamedTuple

import numpy as np
from scipy.sparse import csr_array
from scipy.stats import binomtest

from heredity.features.acts import FeatureActs
from heredity.text.letters import BYTE

Language = Literal["python", "lua", "cpp", "javascript", "prose"]  # of a corpus; decides which words are keywords

# Categories of tokens by number: marks, words (an identifier has an underscore, a digit or a capital inside), others.
# `non-ascii` holds fragments of bytes too.
MARKS = ("punctuation", "operator", "whitespace", "line break", "number", "keyword", "non-ascii", "special")
WORDS = ("single letter", "identifier", "capitalized", "upper-case", "lower-case")
CATEGORIES = (*MARKS, *WORDS, "other")
# All classes of features, by number: a feature has the first that fits. Rare ones fire too seldom to be judged, silent
# ones never.
CLASSES = (
    "position", *MARKS, "single-token", "previous-token", "next-token", *WORDS, "domain", "mixed", "rare", "silent"
)  # fmt: skip
# Classes taken together: punctuation, and formatting (indentation and line breaks), as Horn & Elliott, section 4.1.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "punctuation": ("punctuation",),
    "formatting": ("whitespace", "line break"),
    "code": ("operator", "keyword", "identifier"),
}
# Thresholds of the classes, on shares of a feature's activation.
SINGLE = 0.9  # least share on one token text for `single-token`
SHARE = 0.6  # least share on a token category, after or before one token text, or at one position of the block
LIFT = 2.0  # that share is also at least this many times the share of the sample's positions
DOMAIN = 0.9  # least share in one corpus
FIRINGS = 20  # below it a feature is rare

_KEYWORDS: Mapping[Language, str] = {
    "python": " ".join(kwlist),
    "lua": "and break do else elseif end false for function goto if in local nil not or repeat return then true until "
    "while",
    "cpp": "alignas alignof auto bool break case catch char class co_await co_return co_yield concept const const_cast "
    "consteval constexpr constinit continue decltype default delete do double dynamic_cast else enum explicit export "
    "extern false float for friend goto if inline int long mutable namespace new noexcept nullptr operator private "
    "protected public register reinterpret_cast requires return short signed sizeof static static_assert static_cast "
    "struct switch template this thread_local throw true try typedef typeid typename union unsigned using virtual void "
    "volatile while include define ifdef ifndef endif pragma undef",
    "javascript": "async await break case catch class const continue debugger default delete do else export extends "
    "false finally for function if import in instanceof let new null of return static super switch this throw true try "
    "typeof undefined var void while with yield",
    "prose": "",
}
# Words that neither prose nor the other languages use much.
_TYPICAL: Mapping[Language, str] = {
    "python": "def elif self None lambda isinstance __init__ import except len",
    "lua": "local nil elseif function ipairs pairs",
    "cpp": "const void int template typename namespace struct std include static auto inline bool",
    "javascript": "const var let function undefined typeof require null exports prototype",
}
_CODE = 0.02  # least share of typical words in code; prose about programming has some of them too

_PUNCTUATION = re.compile(r"""[.,;:!?'"()\[\]{}…]+""")
_DASHES = re.compile(r"-+")
_NUMBER = re.compile(r"\d[\d_.,]*|0[xX][0-9a-fA-F]+")
_SYMBOLS = re.compile(r"[^\w\s]+|_+")
_WORD = re.compile(r"'?([a-zA-Z]+)")
_IDENTIFIER = re.compile(r"\w*[a-zA-Z]\w*")


def language_of(text: str) -> Language:
    """The language that typical words (such as `elif`, `nil`, `typename`) make up the largest share of a text's words
    for, if at least one in 50; otherwise prose."""
    words = re.findall(r"[A-Za-z_]+", text)
    vocabularies = {name: frozenset(typical.split()) for name, typical in _TYPICAL.items()}
    hits = {name: sum(word in vocabulary for word in words) for name, vocabulary in vocabularies.items()}
    best = max(_TYPICAL, key=lambda name: hits[name])
    return best if words and hits[best] >= _CODE * len(words) else "prose"


def token_categories(texts: Sequence[str], language: Language = "prose", special: Collection[int] = ()) -> np.ndarray:
    """Category of every token, int8 [vocab], by its text up to surrounding spaces: numbers of `CATEGORIES`.

    texts: the vocabulary, as `text.tokens.token_texts` gives it. special: numbers of tokens that stand for no text,
    such as the end of text. A dash is an operator in code and punctuation in prose, and only code has keywords.
    """
    keywords = frozenset(_KEYWORDS[language].split())
    names = [_category(text, keywords, language == "prose") for text in texts]
    categories = np.array([CATEGORIES.index(name) for name in names], np.int8)
    categories[list(special)] = CATEGORIES.index("special")
    return categories


def _category(text: str, keywords: Collection[str], prose: bool) -> str:
    if not text.isascii() or BYTE.search(text):
        return "non-ascii"
    word = text.strip()
    if not word:
        return "line break" if "\n" in text or "\r" in text else "whitespace" if text else "special"
    if word in keywords:
        return "keyword"
    if _PUNCTUATION.fullmatch(word) or (prose and _DASHES.fullmatch(word)):
        return "punctuation"
    if _NUMBER.fullmatch(word):
        return "number"
    if _SYMBOLS.fullmatch(word):
        return "operator"
    plain = _WORD.fullmatch(word)
    if not plain:
        return "identifier" if _IDENTIFIER.fullmatch(word) else "other"
    letters = plain[1]
    if len(letters) == 1:
        return "single letter"
    if letters.islower():
        return "lower-case"
    if letters.isupper():
        return "upper-case"
    return "capitalized" if letters[1:].islower() else "identifier"


def spellings(texts: Sequence[str]) -> np.ndarray:
    """For each token the first one with the same text up to a leading space, int64 [vocab]; blanks are kept apart."""
    first: dict[str, int] = {}
    return np.array([first.setdefault(text.lstrip(" ") or text, number) for number, text in enumerate(texts)], np.int64)


class Text(NamedTuple):
    """The sample that features are classed on."""

    ids: np.ndarray  # int [blocks, context]: tokens
    corpus: np.ndarray  # int [blocks]: number of the corpus each block is from
    categories: np.ndarray  # int8 [corpora, vocab]: `token_categories` in the language of each corpus
    spelling: np.ndarray  # int64 [vocab]: `spellings`


class Most(NamedTuple):
    """The key that most of each feature's activation falls on."""

    key: np.ndarray  # int64 [d_sae]: a number, the lowest at a tie; -1 for a feature without one
    share: np.ndarray  # float64 [d_sae]: of its activation; 0 without one
    base: np.ndarray  # float64 [d_sae]: share of the sample's positions that it holds; 0 without one


class FeatureClasses(NamedTuple):
    """The class of every feature of an SAE, and the shares it rests on."""

    primary: np.ndarray  # int8 [d_sae]: number in `CLASSES`
    single_token: np.ndarray  # bool [d_sae]: one token text has nearly all of its activation, whatever its class
    domain: np.ndarray  # int64 [d_sae]: the corpus with nearly all of it, -1 for none or where there is but one corpus
    firings: np.ndarray  # int64 [d_sae]: positions on which it fires
    token: Most  # token text, by the numbers of `spellings`
    category: Most  # token category
    previous: Most  # text of the token before, in the same block
    following: Most  # text of the token after, in the same block
    position: Most  # position in the block
    corpus: Most

    @property
    def judged(self) -> np.ndarray:
        """bool [d_sae]: neither rare nor silent."""
        return self.primary < CLASSES.index("rare")


def classify(acts: FeatureActs, text: Text) -> FeatureClasses:
    """The class of every feature: the first of `CLASSES` that fits.

    In order: one position; a category of `MARKS`; one token text; what follows one token text, or precedes one; a
    category of `WORDS`; one corpus; else mixed. So a feature of commas is `punctuation`, with the flag `single_token`,
    and one of a single word is `single-token`. Negative activations count by their size. Raises `ValueError` when the
    sample is not that of the activations.
    """
    ids = text.ids
    if ids.size != acts.tokens or len(text.corpus) != len(ids):
        sizes = f"ids {list(ids.shape)} of {len(text.corpus)} blocks do not fit {acts.tokens} positions"
        raise ValueError(f"{sizes} of activations; give the tokens that were encoded")
    indptr, rows, values = acts.to_columns()
    weights = csr_array((np.abs(values.astype(np.float64)), rows, indptr), (acts.d_sae, acts.tokens))
    spelled, edge = text.spelling[ids], np.full((len(ids), 1), -1)
    corpus = np.repeat(np.asarray(text.corpus, np.int64)[:, None], ids.shape[1], 1)
    keys = {
        "token": spelled,
        "category": text.categories[corpus, ids].astype(np.int64),
        "previous": np.hstack([edge, spelled[:, :-1]]),
        "following": np.hstack([spelled[:, 1:], edge]),
        "position": np.broadcast_to(np.arange(ids.shape[1]), ids.shape),
        "corpus": corpus,
    }
    most = {name: _most(weights, key.ravel()) for name, key in keys.items()}
    one = most["corpus"].share >= DOMAIN if len(text.categories) > 1 else np.zeros(acts.d_sae, bool)
    domain = np.where(one, most["corpus"].key, -1)
    single, firings = most["token"].share >= SINGLE, np.diff(indptr)
    fits = {name: (own.share >= SHARE) & (own.share >= LIFT * own.base) for name, own in most.items()}
    of_category = {name: fits["category"] & (most["category"].key == n) for n, name in enumerate(CATEGORIES)}
    fit = {"silent": firings == 0, "rare": firings < FIRINGS, "position": fits["position"]}
    fit |= {name: of_category[name] for name in MARKS}
    fit |= {"single-token": single, "previous-token": fits["previous"], "next-token": fits["following"]}
    fit |= {name: of_category[name] for name in WORDS}
    fit |= {"domain": domain >= 0}
    primary = np.select(list(fit.values()), [CLASSES.index(name) for name in fit], CLASSES.index("mixed"))
    return FeatureClasses(primary.astype(np.int8), single, domain, firings, **most)


def _most(weights: csr_array, key: np.ndarray) -> Most:
    """weights: [d_sae, tokens]. key: int64 [tokens], -1 where there is none."""
    known, width = key >= 0, int(key.max(initial=0)) + 1
    one_hot = csr_array((known.astype(np.float64), np.maximum(key, 0), np.arange(len(key) + 1)), (len(key), width))
    sums = csr_array(weights @ one_hot)
    totals, best, lowest = weights.sum(1), sums.max(axis=1).toarray(), np.asarray(sums.argmax(axis=1))
    lowest[best == 0] = -1
    base = np.bincount(key[known], minlength=width) / max(1, len(key))
    share = np.divide(best, totals, out=np.zeros_like(best), where=totals > 0)
    return Most(lowest, share, np.where(lowest >= 0, base[lowest], 0.0))


def memberships(
    classes: FeatureClasses, languages: Mapping[str, Language]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(classes, groups, domains): the judged features that belong to each, by name, bool [d_sae].

    Each judged feature has exactly one class. Groups overlap: those of `GROUPS`, where `code` also holds features with
    the domain of a corpus of code, and `single-token`, whatever the class. Domains are corpora, empty for a single one.
    languages: by corpus, in the order of their numbers.
    """
    judged = CLASSES[: CLASSES.index("rare")]
    of_class = {name: classes.primary == number for number, name in enumerate(judged)}
    groups = {name: np.any([of_class[part] for part in parts], axis=0) for name, parts in GROUPS.items()}
    of_code = [number for number, language in enumerate(languages.values()) if language != "prose"]
    groups["code"] |= classes.judged & np.isin(classes.domain, of_code)
    groups["single-token"] = classes.single_token & classes.judged
    domains = {name: (classes.domain == number) & classes.judged for number, name in enumerate(languages)}
    return of_class, groups, domains if len(languages) > 1 else {}


def class_shares(
    members: Mapping[str, np.ndarray], judged: np.ndarray, level: float = 0.95
) -> list[tuple[str, int, float, float, float]]:
    """(name, count, share, low, high) of each of `members` (see `memberships`) among judged features, bool [d_sae],
    with Wilson's interval (1927); nan without any."""
    n, rows = int(judged.sum()), []
    for name, member in members.items():
        count, ends = int((member & judged).sum()), (float("nan"), float("nan"))
        if n:
            interval = binomtest(count, n).proportion_ci(level, method="wilson")
            ends = float(interval.low), float(interval.high)
        rows.append((name, count, count / n if n else float("nan"), *ends))
    return rows


def class_gaps(
    members: Mapping[str, np.ndarray], first: np.ndarray, second: np.ndarray, level: float = 0.95
) -> list[tuple[str, float, float, float]]:
    """(name, value, low, high) of each of `members` (see `memberships`): share among the first judged features, bool
    [d_sae], less share among the second; nan where one is empty.

    Newcombe's interval of a difference of shares, from Wilson's of both (1998, Statistics in Medicine 17:873, method
    10): unlike a bootstrap it knows that none of 51 may still be several in a hundred.
    """
    rows = []
    for (name, _, p, *a), (_, _, q, *b) in zip(
        class_shares(members, first, level), class_shares(members, second, level), strict=True
    ):
        low, high = p - q - math.hypot(p - a[0], b[1] - q), p - q + math.hypot(a[1] - p, q - b[0])
        rows.append((name, p - q, low, high))
    return rows
