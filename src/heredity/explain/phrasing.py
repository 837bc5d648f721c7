"""A rule in plain words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from heredity.explain.token_statistics import Rule, Statistics

_NAMED = 4  # tokens named at most
_ENOUGH = 0.9  # share of the activation after which no more are named
_MANY = 0.5  # share of the activation below which the tokens named are but examples
_STRONGEST = 0.2  # least share of the activation of a token before that is named beside
_CORPUS = 0.8  # least share of the activation in one corpus that is told


class Names(NamedTuple):
    """What the numbers of categories and corpora stand for."""

    categories: Sequence[str]
    """By number."""
    corpora: Sequence[str]
    """By number."""


def describe(statistics: Statistics, names: Names, rule: Rule, rows: np.ndarray, values: np.ndarray) -> str:
    """What a feature fires on, such as: fires on "=" and " =" (91 % of its activation); strongest after "self".

    Told from the half of the text that explains. rows, values: the feature's firings, as in `Statistics.fit`.
    """
    text = statistics.text
    own = text.explains[rows // text.ids.shape[1]]
    rows, values = rows[own], values[own]
    before = np.where(rows % text.ids.shape[1] > 0, text.ids.ravel()[rows - 1], len(text.vocabulary))
    token = text.ids.ravel()[rows]
    by = {
        "token": token,
        "previous": before,
        "category": statistics.categories[token],
        "position": rows % text.ids.shape[1],
        "corpus": statistics.corpora[rows // text.ids.shape[1]],
    }
    shares = {key: _shares(codes, values) for key, codes in by.items()}
    said = [_subject(rule, shares, text.vocabulary, names)]
    after, share = shares["previous"][0]
    if rule.form == "pair" and share >= _STRONGEST:
        said.append(f"strongest after {_quoted(text.vocabulary, after)}")
    corpus, share = shares["corpus"][0]
    if rule.form != "corpus" and len(names.corpora) > 1 and share >= _CORPUS:
        said.append(f"in {names.corpora[corpus]} ({_percent(share)})")
    return "; ".join(said)


def _subject(rule: Rule, shares: dict[str, list[tuple[int, float]]], vocabulary: Sequence[str], names: Names) -> str:
    tokens, total = _named(shares["token"], vocabulary)
    if rule.form == "constant":
        return f"follows no simple rule; fires most on {tokens} ({_percent(total)})"
    if rule.form == "corpus":
        corpus, share = shares["corpus"][0]
        return f"fires in {names.corpora[corpus]} ({_percent(share)}), most on {tokens}"
    if rule.form == "position":
        position, share = shares["position"][0]
        return f"fires at place {position + 1} of a block ({_percent(share)})"
    if rule.form == "previous":
        before, share = _named(shares["previous"], vocabulary)
        return f"fires after {before} ({_percent(share)})"
    category, share = shares["category"][0]
    if rule.form in ("category", "corpus_category", "after"):
        said = f"fires on tokens of the kind {names.categories[category]} ({_percent(share)}), most on {tokens}"
        if rule.form != "after":
            return said
        before, share = _named(shares["previous"], vocabulary)
        return f"{said}; after {before} ({_percent(share)})"
    if total < _MANY:
        kind = names.categories[category]
        return (
            f"fires on many tokens, most of the kind {kind} ({_percent(share)}), such as {tokens} ({_percent(total)})"
        )
    return f"fires on {tokens} ({_percent(total)})"


def _shares(codes: np.ndarray, values: np.ndarray) -> list[tuple[int, float]]:
    """Codes with their shares of the activation, the largest first."""
    keys, of = np.unique(codes, return_inverse=True)
    share = np.bincount(of, values) / values.sum()
    order = np.argsort(-share, kind="stable")[: _NAMED + 1]
    return list(zip(keys[order].tolist(), share[order].tolist(), strict=True))


def _named(shares: list[tuple[int, float]], vocabulary: Sequence[str]) -> tuple[str, float]:
    """The tokens that carry the activation, in words, and their share of it."""
    said, total = [], 0.0
    for token, share in shares[:_NAMED]:
        if said and (total >= _ENOUGH or share < (1 - _ENOUGH) / 2):
            break
        said.append(_quoted(vocabulary, token))
        total += share
    return (said[0] if len(said) == 1 else f"{', '.join(said[:-1])} and {said[-1]}"), total


def _quoted(vocabulary: Sequence[str], token: int) -> str:
    """A token in quotation marks, line breaks and the like as JSON writes them."""
    return json.dumps(vocabulary[token], ensure_ascii=False) if token < len(vocabulary) else "the start of a block"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} % of its activation"
