"""Does a feature mean a set of tokens? Positions where a hypothesis holds, and how well every feature fits them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from heredity.features.acts import FeatureActs
from heredity.kernels.sparse import moments
from heredity.text.letters import BYTE, letters
from heredity.text.patterns import matching

# (ids int64 [blocks, context], texts of the vocabulary) -> bool [blocks, context]
Predicate = Callable[[np.ndarray, list[str]], np.ndarray]


class Hypothesis(NamedTuple):
    """Tokens that a feature may respond to; exactly one field is given."""

    tokens: Sequence[str] | None = None  # texts of tokens
    strings: Sequence[str] | None = None  # texts of one or more tokens in a row, at whose last token it holds
    regex: str | None = None  # pattern of the whole text of a token (`re.fullmatch`)
    script: str | None = None  # Unicode script of all its letters (Bricken et al., appendix "Feature Proxies")
    predicate: Predicate | None = None  # a function of the blocks, and so of position and context as well


class Hits(NamedTuple):
    """Where a hypothesis holds."""

    mask: np.ndarray  # bool [blocks * context]: at which positions
    vocabulary: np.ndarray | None  # bool [d_vocab]: for which tokens; None where positions were chosen
    # strings: P(s), the product of the unigram probabilities of their tokens (Horn & Elliott, appendix D), summed over
    # the ways in which they are written in tokens; None for others, whose P(s) is their share of the positions
    unigram: float | None = None

    def at(self, kept: np.ndarray | None) -> Hits:
        """The same among some positions, bool [blocks * context]; None for all."""
        return self if kept is None else self._replace(mask=self.mask[kept])


def hits(hypothesis: Hypothesis, ids: np.ndarray, texts: Sequence[str]) -> Hits:
    """The positions where a hypothesis holds.

    ids: int [blocks, context], tokens. texts [d_vocab]: the text of every token, with bytes that are no whole
    character by their value (`text.tokens.token_texts`); a script holds at all tokens that make up a letter of it.
    Raises `ValueError` unless exactly one field of the hypothesis is given, and for a predicate that does not return
    one bool per position, and for a regex that does not end (`patterns.matching`).
    """
    given = {name: value for name, value in hypothesis._asdict().items() if value is not None}
    if len(given) != 1:
        names = " and ".join(given) or "nothing"
        raise ValueError(f"the hypothesis gives {names}; give one of {', '.join(Hypothesis._fields)}")
    if hypothesis.predicate is not None:
        # Copies, so that it cannot change the sample.
        mask = hypothesis.predicate(np.array(ids, np.int64), list(texts))
        if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.shape != ids.shape:
            name = getattr(hypothesis.predicate, "__qualname__", "predicate")
            what = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, np.ndarray) else type(mask).__name__
            raise ValueError(f"predicate {name} returned {what}; return a numpy array of bool {list(ids.shape)}")
        return Hits(mask.ravel(), None)
    if hypothesis.strings is not None:
        return _occurrences(hypothesis.strings, np.asarray(ids), texts)
    if hypothesis.tokens is not None:
        chosen = [text in hypothesis.tokens for text in texts]
    elif hypothesis.regex is not None:
        chosen = matching(hypothesis.regex, texts)
    else:
        chosen = [of_script(text, str(hypothesis.script)) for text in texts]
    vocabulary = np.array(chosen, bool)
    if hypothesis.script is not None and any(BYTE.search(str(texts[token])) for token in np.unique(ids).tolist()):
        script = str(hypothesis.script)
        return Hits(np.array([_of_script(_pieces(block, texts), script) for block in ids.tolist()]).ravel(), None)
    return Hits(vocabulary[ids].ravel(), vocabulary)


def _pieces(block: Sequence[int], texts: Sequence[str]) -> list[str]:
    """Texts of the tokens of a block, which joined are its text."""
    return letters([str(texts[token]) for token in block])


def _of_script(pieces: Sequence[str], script: str) -> list[bool]:
    """Whether each token is, or is a part of, letters of a script; those before the last of a letter are empty."""
    found, held = list[bool](), False
    for piece in reversed(pieces):
        held = of_script(piece, script) if piece else held
        found.append(held)
    return found[::-1]


def _occurrences(strings: Sequence[str], ids: np.ndarray, texts: Sequence[str]) -> Hits:
    """The last tokens of strings, within blocks. An occurrence ends where a token ends and begins where one begins, or
    after the space that its first token begins with."""
    mask, spelled = np.zeros(ids.shape, bool), set[tuple[int, ...]]()
    for row, block in enumerate(ids.tolist()):
        pieces = _pieces(block, texts)
        joined = "".join(pieces)
        found = [match for string in strings for match in re.finditer(f"(?=({re.escape(string)}))", joined)]
        ends = np.cumsum([len(piece) for piece in pieces]) if found else np.zeros(0)
        for match in found:
            start, end = match.span(1)
            first, last = int(np.searchsorted(ends, start, "right")), int(np.searchsorted(ends, end))
            before = joined[ends[first] - len(pieces[first]) : start]
            while first and not pieces[first - 1]:  # the other tokens of its first letter
                first -= 1
            if ends[last] == end and before in ("", " "):
                mask[row, last] = True
                spelled.add(tuple(block[first : last + 1]))
    share = np.bincount(ids.ravel(), minlength=len(texts)) / max(ids.size, 1)
    return Hits(mask.ravel(), None, float(sum(share[list(tokens)].prod() for tokens in spelled)))


def of_script(text: str, script: str) -> bool:
    """Whether a text has letters, and the Unicode names of all of them begin with a script such as `Greek` or `CJK`.

    A letter is a character of a Unicode category L*. Signs, digits, marks and bytes of a character do not count.
    """
    found = [character for character in BYTE.sub("", text) if unicodedata.category(character).startswith("L")]
    prefix = f"{script.upper()} "
    return bool(found) and all(unicodedata.name(letter, "").startswith(prefix) for letter in found)


MINIMUM_FIRINGS = 20  # firings on the set below which `ranked` leaves a feature out
# Key of a ranking: Pearson r with the set, LLR weighted by activation, or LLR by count.
Ranking = Literal["sensitivity", "llr", "counted"]


class LLR(NamedTuple):
    """How well each feature fits the hypothesis "it fires on these tokens"; nan for a feature that never fires.

    Arrays are float64 [d_sae] unless another type is named.
    """

    weighted: np.ndarray  # log(P_act(t in set) / P(t in set)) in nats, by activation; -inf if it never fires on the set
    counted: np.ndarray  # the same with every firing counted once
    base_rate: float  # P(t in set): share of the tokens that are in the set. No LLR exceeds -log(base_rate)
    sensitivity: np.ndarray  # Pearson r of the activation and the indicator of the set, silent positions included
    firings: np.ndarray  # int64: tokens on which the feature fires
    hits: np.ndarray  # int64: those of them that are in the set
    elsewhere: np.ndarray
    """Total activation on all other tokens over total activation on the set, the specificity as the paper reports it
    ("7x more active on other tokens", section 4.2.2): 0 for a feature that fires on the set alone, inf for one that
    never does. The weighted LLR is -log(base_rate (1 + elsewhere))."""
    elsewhere_mean: np.ndarray  # mean activation of its firings on other tokens over that on the set; nan without both
    unigram: np.ndarray  # the weighted LLR with P(s) as the product of unigrams; for sets of tokens the same


def llr(acts: FeatureActs, hit: np.ndarray, unigram: float | None = None) -> LLR:
    """Log-likelihood ratios of all features under a token-set hypothesis (Horn & Elliott, appendix D).

    P(t in set) is the unigram probability of the set on the sample; P_act is the distribution of tokens a feature
    fires on. (The paper leaves open how its one number per feature is weighted: both ways are given.) Activations are
    taken to be positive; a feature whose activations sum to 0 or less, everywhere, on the set or off it, has nan where
    that sum is weighed, but for the plain 0 of one that does not fire there.

    hit: bool [tokens], whether the token at each position is in the set. unigram: P(s) as `Hits` has it.
    Raises `ValueError` when no token or every token is in the set.
    """
    hit = np.asarray(hit, bool)
    base_rate = float(hit.mean()) if hit.shape == (acts.tokens,) and acts.tokens else float("nan")
    if not 0 < base_rate < 1:
        marked = f"hit of shape {hit.shape} marks {int(hit.sum())} of {acts.tokens} tokens"
        raise ValueError(f"{marked}; one bool per token is needed, some tokens in the set and some not")
    everywhere = moments(acts.sparse)
    inside, outside = moments(acts.where(hit).sparse), moments(acts.where(~hit).sparse)
    # The indicator has mean p and centered norm sqrt(T p (1 - p)).
    covariance = inside.total - everywhere.total * base_rate
    norm = np.sqrt(everywhere.square * acts.tokens * base_rate * (1 - base_rate))
    both = (inside.stored > 0) & (outside.stored > 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return LLR(
            weighted=_log_ratio(inside.total, everywhere.total, base_rate),
            unigram=_log_ratio(inside.total, everywhere.total, unigram or base_rate),
            counted=_log_ratio(inside.stored, everywhere.stored, base_rate),
            base_rate=base_rate,
            sensitivity=np.where(norm > 0, np.clip(covariance / norm, -1, 1), np.nan),
            firings=everywhere.stored,
            hits=inside.stored,
            elsewhere=_times(outside.total, inside.total),
            elsewhere_mean=np.where(both, _times(outside.total / outside.stored, inside.total / inside.stored), np.nan),
        )


def _log_ratio(inside: np.ndarray, everywhere: np.ndarray, base_rate: float) -> np.ndarray:
    """log(inside / everywhere / base_rate); nan where a sum that should be positive is not."""
    return np.log(np.where((everywhere > 0) & (inside >= 0), inside / everywhere, np.nan) / base_rate)


def _times(outside: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """outside / inside of what should not be negative; inf where only `inside` is 0, nan where both are."""
    return np.where((outside >= 0) & (inside >= 0), outside / inside, np.nan)


def fitting(ratios: LLR, minimum_firings: int = MINIMUM_FIRINGS) -> np.ndarray:
    """Features that may stand for the hypothesis, bool [d_sae]: they fire at least `minimum_firings` times on the set
    and more on it than by chance (both LLRs above 0)."""
    return (ratios.hits >= minimum_firings) & (ratios.weighted > 0) & (ratios.counted > 0)


def ranked(
    ratios: LLR, by: Ranking = "sensitivity", top: int | None = None, minimum_firings: int = MINIMUM_FIRINGS
) -> np.ndarray:
    """The fitting features, best first; int64 [at most top].

    Every feature that fires on the set alone reaches the same highest LLR, however rarely it fires: among equals the
    higher sensitivity comes first, then the lower index.
    """
    score = {"sensitivity": ratios.sensitivity, "llr": ratios.weighted, "counted": ratios.counted}[by]
    known = np.flatnonzero(fitting(ratios, minimum_firings) & np.isfinite(score) & np.isfinite(ratios.sensitivity))
    return known[np.lexsort((known, -ratios.sensitivity[known], -score[known]))][:top]


def best_feature(ratios: LLR, minimum_firings: int = MINIMUM_FIRINGS) -> int | None:
    """The feature that stands for the hypothesis: the fitting one with the highest sensitivity, ties to the lower
    index; None when none fits. (The highest LLR does not require that it fires whenever the tokens occur.)"""
    best = ranked(ratios, top=1, minimum_firings=minimum_firings)
    return int(best[0]) if len(best) else None


def token_shares(
    acts: FeatureActs, feature: int, ids: np.ndarray, top: int = 10
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(tokens, share, llr, firings) of the tokens with most of a feature's activation; ties to the lower token.

    share: of its total activation, falling. llr: log(share / P(token)), the weighted LLR of the hypothesis "it fires on
    this token". firings: on the token. ids: int [tokens], the token at each position. Activations are taken to be
    positive; a feature that never fires gets empty arrays.
    """
    rows, values = acts.of(feature)
    fired_on = ids[rows]
    total, firings = np.bincount(fired_on, values.astype(np.float64)), np.bincount(fired_on)
    chosen = np.flatnonzero(firings)
    chosen = chosen[np.argsort(-total[chosen], kind="stable")][:top]
    share = total[chosen] / total.sum()
    ratio = share * len(ids) / np.maximum(np.bincount(ids, minlength=len(total))[chosen], 1)
    weighted = np.log(ratio, out=np.full(len(chosen), np.nan), where=ratio > 0)
    return chosen, share, weighted, firings[chosen]


def agreement(acts: FeatureActs, feature: int, other: int, others: FeatureActs | None = None) -> float:
    """Pearson r of two features over all tokens, silent ones included; nan where one is constant.

    others: activations of the second one's SAE on the same tokens, by default the same SAE's.
    """
    x, y = np.zeros((2, acts.tokens))
    for values, own, index in ((x, acts, feature), (y, others or acts, other)):
        rows, activations = own.of(index)
        values[rows] = activations
        values -= values.mean()
    norm = float(np.sqrt((x @ x) * (y @ y)))
    return float(np.clip(x @ y / norm, -1, 1)) if norm > 0 else float("nan")
