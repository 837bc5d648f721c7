"""Structural and semantic features, by texts of one structure and different content words.

A text is rewritten with other content words in the same structure (Chen et al. 2025, section 5.1, where a language
model rewrites). A feature that fires in every version is structural, one that fires in some of them is semantic. The
rewriter follows rules for prose: a word's kind is guessed from its ending and the words around it.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Literal, NamedTuple

import numpy as np

_FUNCTION_WORDS = """
a an the this that these those such same other another each every either neither both all any some no none few many much
more most less least several enough own one two three four five six seven eight nine ten first second last i me my mine
myself you your yours yourself yourselves he him his himself she her hers herself it its itself we us our ours ourselves
they them their theirs themselves who whom whose which what whatever whoever whichever someone somebody something anyone
anybody anything everyone everybody everything nobody nothing of in on at by for with about against between among into
through during before after above below to from up down out off over under again further near beside behind beyond
within without along across around upon onto toward towards until till since despite except per via inside outside and
or but nor so yet if then else because as while although though unless whether than when whenever where wherever why how
once am is are was were be been being have has had having do does did doing done will would shall should can could may
might must ought need dare used let lets get gets got not never always often also too very just only even still already
almost quite rather perhaps maybe here there now however therefore thus hence instead together ever away back yes oh
hello please mr mrs ms dr s t d ll re ve m don isn aren wasn weren doesn didn won wouldn couldn shouldn hasn haven hadn
cannot
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
"""Words that carry structure and stay."""

Kind = Literal["noun", "nouns", "verb", "verbs", "past", "ing", "ed", "adjective", "adverb", "name"]
"""Guessed kind of a word; `nouns` are plural, `verbs` of the third person."""
_ENDS_SENTENCE = frozenset('.!?:"“”')
_PIECES = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?|\d+|[\W_]")
_VOWELS = frozenset("aeiou")
_AROUND = {
    name: frozenset(words.split())
    for name, words in {
        "determiner": "a an the this that these those my your his her its our their each every another some no",
        "verb": "to will would shall should can could may might must cannot let did do does don didn",
        "adjective": "very so too quite more most rather is was am are were be",
        "third": "he she it who which that",
    }.items()
}
_ENDS: tuple[tuple[Kind, tuple[str, ...]], ...] = (
    ("adverb", ("ly",)),
    ("ing", ("ing",)),
    ("ed", ("ed",)),
    ("adjective", ("ous", "ful", "less", "able", "ible", "ish", "ive")),
    ("noun", ("tion", "sion", "ment", "ness", "ity", "ance", "ence", "ship", "hood", "ism", "ist", "ss", "us", "is")),
)
_SURE = ("adverb", "ing", "ed")
_SHORTEST_STEM = 3
_TRIES = 64
_WORDS = 5, 60  # of a snippet: at least, at most
_SENTENCE_ENDS = re.compile(r"(?<=[.!?])\s+|\n\s*\n")


class Lexicon(NamedTuple):
    """Content words of a corpus by their guessed kind."""

    kind: dict[str, Kind]  # of each word, in lower case
    words: dict[Kind, list[str]]  # by kind, in alphabetical order
    chance: dict[Kind, np.ndarray]  # float64: frequency of each of these words among its kind
    documents: dict[str, frozenset[int]]  # numbers of the documents that contain a word


class Split(NamedTuple):
    """Structural and semantic features, arrays [d_sae]. A feature that fires in no version of any prompt is neither."""

    share: np.ndarray  # float64: share of the prompts with a firing version in which all versions fire; nan for none
    prompts: np.ndarray  # int64: prompts with a firing version
    by_chance: np.ndarray
    """float64: the share expected if versions of a prompt were as unlike as those of different prompts; high for a
    feature that fires nearly everywhere, which is structural for that reason alone."""
    structural: np.ndarray  # bool: the share is at least the threshold
    semantic: np.ndarray  # bool: the share is below it
    threshold: float


def read_lexicon(texts: Iterable[str], least: int = 2) -> Lexicon:
    """Words of the texts that occur at least `least` times, without function words.

    The kind of a word is the majority vote of its places: by a capital letter inside a sentence, by its ending, by the
    words before and after it. Raises ValueError when no word is left.
    """
    votes: dict[str, Counter[Kind]] = defaultdict(Counter)
    seen, places, words = Counter[str](), defaultdict[str, set[int]](set), defaultdict[Kind, list[str]](list)
    for number, text in enumerate(texts):
        for place in _content(_PIECES.findall(text)).values():
            lower = place.word.lower()
            seen[lower] += 1
            places[lower].add(number)
            if (guess := _guess(place)) is not None:
                votes[lower][guess] += 1
    kinds: dict[str, Kind] = {}
    for word in sorted(word for word, count in seen.items() if count >= least):
        kinds[word], _ = min(votes[word].items(), key=lambda vote: (-vote[1], vote[0]), default=(_by_end(word), 0))
        words[kinds[word]].append(word)
    if not kinds:
        raise ValueError(f"no content word occurs {least} times in the texts; give more text")
    counts: dict[Kind, np.ndarray] = {kind: np.array([seen[word] for word in some]) for kind, some in words.items()}
    chance: dict[Kind, np.ndarray] = {kind: count / count.sum() for kind, count in counts.items()}
    return Lexicon(kinds, dict(words), chance, {word: frozenset(places[word]) for word in kinds})


def rewrites(text: str, lexicon: Lexicon, k: int = 5, seed: int = 0) -> list[str]:
    """k versions of a text with other content words of the same kind, if possible from unrelated documents.

    All but content words and digits stays: also capitals, endings such as 's, and the length of a number. A word has
    one stand-in throughout a version, which fits an "a" or "an" before it and does not occur in the text, or stays
    where there is none. Seeded by `seed` and the number of the version.
    """
    pieces, versions = _PIECES.findall(text), []
    content = _content(pieces)
    present = {place.word.lower() for place in content.values()}
    # After "a" and "an", the stand-in must begin alike. Such words choose first, since they have the least choice.
    bound = {place.word.lower() for place in content.values() if place.before in ("a", "an")}
    order = sorted(content.items(), key=lambda item: item[1].word.lower() not in bound)
    for version in range(k):
        rng = np.random.default_rng([seed, version])
        stands: dict[str, str] = {}
        written = [_digits(piece, rng) if piece.isdecimal() else piece for piece in pieces]
        for at, place in order:
            lower, like = place.word.lower(), place.word
            if lower not in stands:
                kind = lexicon.kind.get(lower) or _guess(place) or _by_end(lower)
                stands[lower] = _other(lower, kind, lexicon, present.union(stands.values()), lower in bound, rng)
            other = stands[lower]
            if like[0].isupper():
                other = other.upper() if like.isupper() and len(like) > 1 else other[0].upper() + other[1:]
            written[at] = other + pieces[at][len(like) :]
        versions.append("".join(written))
    return versions


def snippets(texts: Iterable[str], count: int, seed: int) -> list[str]:
    """Up to `count` distinct sentences of the texts, drawn at random; at least 5 words each, cut after 60."""
    least, most = _WORDS
    sentences = (re.finditer(r"\S+", sentence) for text in texts for sentence in _SENTENCE_ENDS.split(text))
    cut = (words[:most] for words in map(list, sentences) if len(words) >= least)
    distinct = list(dict.fromkeys(words[0].string[words[0].start() : words[-1].end()] for words in cut))
    if not distinct:
        raise ValueError(f"no held-out text has a sentence of {least} words; give more prose")
    return [distinct[place] for place in np.random.default_rng(seed).permutation(len(distinct))[:count]]


def split_features(fired: np.ndarray, threshold: float = 0.5) -> Split:
    """Structural and semantic features, given where they fire on any token: bool [prompts, versions, d_sae].

    In a prompt, a feature is structural when it fires in all versions (the text itself is one), semantic when in some.
    The paper leaves open how prompts are combined; here by the share of prompts, at a threshold.
    """
    prompts, rate = fired.any(1).sum(0), fired.mean(0, dtype=np.float64)
    share, by_chance = (
        np.divide(part, whole, out=np.full(fired.shape[2], np.nan), where=prompts > 0)
        for part, whole in ((fired.all(1).sum(0), prompts), (rate.prod(0), 1 - (1 - rate).prod(0)))
    )
    return Split(share, prompts, by_chance, share >= threshold, share < threshold, threshold)


class _Place(NamedTuple):
    word: str
    before: str  # the word before in lower case, empty where more than white space lies between
    after: str
    inside: bool  # whether its sentence began before it


def _content(pieces: list[str]) -> dict[int, _Place]:
    """Content words of a text by the number of their piece."""
    # A word counts without its ending after an apostrophe; only white space may separate neighbors.
    tokens = [(at, re.split(r"(?<=\w)['’]", piece)[0]) for at, piece in enumerate(pieces) if not piece.isspace()]
    lower = ["", *(word.lower() if word[0].isalpha() else "" for _, word in tokens), ""]
    content, inside = {}, False
    for number, (at, word) in enumerate(tokens, 1):
        if word[0].isalpha():
            if lower[number] not in FUNCTION_WORDS and len(word) > 1:
                content[at] = _Place(word, lower[number - 1], lower[number + 1], inside)
            inside = True
        elif word in _ENDS_SENTENCE:
            inside = False
    return content


def _guess(place: _Place) -> Kind | None:
    """Kind of a word by one of its places; None if undecided."""
    word, before, after, inside = place
    if inside and word[0].isupper():
        return "name"
    end = _by_end(word.lower())
    if end in _SURE:
        return end
    plural = end == "nouns"
    if before in _AROUND["determiner"]:
        # "the old house", but "the house is", "the house stayed" and "the house."
        leads = bool(after) and after not in FUNCTION_WORDS and _by_end(after) not in _SURE
        return "adjective" if leads and not plural else "nouns" if plural else "noun"
    if before in _AROUND["verb"]:
        return "verb"
    if before in _AROUND["adjective"]:
        return "adjective"
    if before in _AROUND["third"] or (before and after in _AROUND["determiner"]):
        return "verbs" if plural else "past"
    return end if end != "noun" else None


def _by_end(word: str) -> Kind:
    """Kind of a word in lower case by how it ends; most are nouns."""
    for kind, ends in _ENDS:
        if any(word.endswith(end) and len(word) >= len(end) + _SHORTEST_STEM for end in ends):
            return kind
    return "nouns" if word.endswith("s") and len(word) > _SHORTEST_STEM else "noun"


def _other(word: str, kind: Kind, lexicon: Lexicon, taken: set[str], bound: bool, rng: np.random.Generator) -> str:
    """An untaken word of the kind, bound to begin with a vowel as the word does or not: the least related of a few."""
    words, vowel = lexicon.words.get(kind, []), word[0] in _VOWELS
    fits = np.array([other not in taken and (not bound or (other[0] in _VOWELS) == vowel) for other in words], bool)
    if not fits.any():
        return word
    chance = np.where(fits, lexicon.chance[kind], 0.0)
    drawn = [words[at] for at in rng.choice(len(words), _TRIES, p=chance / chance.sum())]
    documents = lexicon.documents.get(word, frozenset())
    return min(drawn, key=lambda other: len(documents & lexicon.documents[other]))  # the first of the best


def _digits(number: str, rng: np.random.Generator) -> str:
    """Equally many random digits, the first of them 0 only if it was."""
    drawn = "".join(str(digit) for digit in rng.integers(0, 10, len(number)))
    return (number[0] if number[0] == "0" else str(rng.integers(1, 10))) + drawn[1:]
