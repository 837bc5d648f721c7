"""Answers read as numbers and sentences. What cannot be read is a `Failure` of a kind, never a zero.

Tolerated: Markdown fences, prose and stray brackets around the JSON, thoughts before it, and numbers as strings.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from heredity.errors import short
from heredity.explain.protocol import LEVELS, Answer, Failure, FailureKind, Levels

if TYPE_CHECKING:
    from heredity.explain.language import EchoPrompt

_TRIES = 1000  # brackets tried as the beginning of JSON before an answer counts as unreadable
_SHOWN = 80
_NAME = r"(?:seed:)?(?:think|thinking|thoughts?|reasoning|reflection)"
_OPENED = re.compile(rf"[<\[◁]{_NAME}[>\]▷]|<\|(?:begin_of_thought|channel\|>analysis<\|message)\|>", re.IGNORECASE)
_CLOSED = re.compile(rf"[<\[◁]/{_NAME}[>\]▷]|<\|(?:end_of_thought|channel\|>final<\|message)\|>", re.IGNORECASE)
"""Tags around thoughts: DeepSeek, Qwen and most others; Magistral; Seed; Kimi; OpenThoughts; gpt-oss."""
LONGEST = 1000  # characters of an explanation at most: each goes into every prompt that scores it


def read_explanation(answer: Answer) -> str | Failure:
    """The sentence in `{"explanation": "..."}`, white space made single; `empty` without one."""
    value = _json(answer, dict)
    if isinstance(value, Failure):
        return value
    text = value.get("explanation")
    if not isinstance(text, str):
        return _failure("unparsed", 'no text under "explanation"', answer)
    # Half of a surrogate pair cannot be written down.
    text = " ".join(text.encode("utf-8", "replace").decode().split())
    if len(text) > LONGEST:
        return _failure("wrong_length", f"an explanation of {len(text):,} characters, more than {LONGEST:,}", answer)
    return text or _failure("empty", "the explanation is empty", answer)


def read_levels(answer: Answer, lengths: Sequence[int]) -> Levels:
    """Levels of the tokens of excerpts of these lengths from `{"number": level}`, numbers counted through all of them.

    Returns float64 [n] per excerpt; a number left out is level 0. The number of no token makes all a `wrong_length`; a
    value outside 0 to 9 makes its own excerpt `unparsed`.
    """
    value = _json(answer, dict)
    if isinstance(value, Failure):
        return value
    levels, wrong = np.zeros(sum(lengths)), {}
    for key, given in value.items():
        at, level = _number(key), _number(given)
        if at is None or at != int(at):
            return _failure("unparsed", f"{_short(key)} is not the number of a token", answer)
        if not 0 <= at < len(levels):
            return _failure("wrong_length", f"token {_short(key)} of {len(levels)} (from 0)", answer)
        if level is None or not 0 <= level <= LEVELS - 1:
            wrong[int(at)] = f"token {int(at)} has {_short(given)} for a level"
        else:
            levels[int(at)] = level
    read: list[np.ndarray | Failure] = []
    for part in np.split(np.arange(len(levels)), np.cumsum(lengths)[:-1]):
        why = next((why for at, why in wrong.items() if at in part), None)
        read.append(_failure("unparsed", why, answer) if why else levels[part])
    return read


def read_verdicts(answer: Answer, texts: int) -> np.ndarray | Failure:
    """A JSON list of 0 and 1, one per text, as float64 [texts]."""
    value = _json(answer, list)
    if isinstance(value, Failure):
        return value
    if len(value) != texts:
        return _failure("wrong_length", f"{len(value)} numbers for {texts} texts", answer)
    numbers = [float(given) if isinstance(given, bool) else _number(given) for given in value]
    if bad := [_short(given) for given, number in zip(value, numbers, strict=True) if number not in (0, 1)]:
        return _failure("unparsed", f"{bad[0]} is neither 0 nor 1", answer)
    return np.array(numbers, np.float64)


def read_intruder(answer: Answer, texts: int) -> int | Failure:
    """The index, from 0, in `{"intruder": number from 1}`; a bare number is accepted."""
    bare = _number(answer.text) if answer.finish == "stop" else None
    value: Any = {"intruder": bare} if bare is not None else _json(answer, dict)
    if isinstance(value, Failure):
        return value
    place = _number(value.get("intruder"))
    if place is None or place != int(place):
        return _failure("unparsed", 'no number under "intruder"', answer)
    if not 1 <= place <= texts:
        return _failure("wrong_length", f"text {int(place)} of {texts} (from 1)", answer)
    return int(place) - 1


def read_echo(answer: Answer, prompt: EchoPrompt, lengths: Sequence[int]) -> Levels:
    """Expected levels of the tokens of excerpts of these lengths: sum of p d over the digits d, p renormalized over
    them, at each unknown level (Bills et al. 2023). float64 [n] per excerpt.

    Each level shown in the prompt must have come back as one token, since a digit inside a longer token has no
    probability of its own. An excerpt with a level without any digit among the likely tokens is `unparsed`.
    """
    if not answer.tokens or len(answer.top) != len(answer.tokens):
        return _failure("empty", "no log-probabilities of the prompt; this endpoint cannot echo them", answer)
    offset = "".join(answer.tokens).find(prompt.text)
    if offset < 0:
        return _failure("unparsed", "the tokens that came back do not spell the prompt", answer)
    starts, at = {}, -offset
    for number, token in enumerate(answer.tokens):
        if token:
            starts.setdefault(at, number)
        at += len(token)
    for place, digit in prompt.shown:
        if place not in starts or answer.tokens[starts[place]] != digit:
            return _failure("unparsed", f"the digit {digit} is not one token for this model", answer)
    if any(place not in starts for place in prompt.unknown):
        return _failure("unparsed", "a level does not begin a token for this model", answer)
    weights = np.zeros((len(prompt.unknown), LEVELS))  # probabilities of the digits; 0 where not reported
    for row, place in zip(weights, prompt.unknown, strict=True):
        for token, logprob in answer.top[starts[place]].items():
            if len(token.strip()) == 1 and token.strip() in "0123456789":
                row[int(token)] += math.exp(min(logprob, 0.0))
    read: list[np.ndarray | Failure] = []
    for rows in np.split(weights, np.cumsum(lengths)[:-1]):
        total = rows.sum(1)
        expected = rows @ np.arange(LEVELS) / np.where(total > 0, total, 1.0)
        read.append(expected if (total > 0).all() else _failure("unparsed", "a token without any likely digit", answer))
    return read


def unbegun(answer: Answer) -> bool:
    """Whether the limit of tokens cut an answer before it began, as it does where a model thinks first."""
    text = _after_thoughts(answer.text, "{")
    return answer.finish == "length" and (not re.search(r"[{\[]", text) or _OPENED.match(text.lstrip()) is not None)


def _after_thoughts(text: str, opening: str) -> str:
    """An answer without the thoughts before it: what follows the last closing tag, unless an answer quotes that tag."""
    tags = list(_CLOSED.finditer(text))
    if not tags or (text.lstrip().startswith(opening) and _values(text.lstrip(), opening)[0][:1] == [0]):
        return text
    return text[tags[-1].end() :]


def _values(text: str, opening: str) -> tuple[list[int], list[Any], bool]:
    """Outermost JSON values that begin with a bracket: places, values, and whether the last one never ends.

    A bracket that begins no JSON is passed over, one whose JSON breaks off with the text ends the search.
    """
    decoder = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse)
    places, values, at = [], [], text.find(opening)
    for _ in range(_TRIES):
        if at < 0:
            break
        try:
            value, end = decoder.raw_decode(text, at)
            places.append(at)
            values.append(value)
        except json.JSONDecodeError as error:
            if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated"):
                return places, values, True
            end = at + 1
        except (ValueError, RecursionError):
            end = at + 1
        at = text.find(opening, end)
    return places, values, at >= 0 and not values


def _json(answer: Answer, kind: type[dict] | type[list]) -> Any | Failure:
    """The last outermost JSON value of a kind; the one the answer begins with, if the limit of tokens cut it."""
    if answer.finish == "refused":
        return _failure("refused", "the model or a filter of its endpoint declined", answer)
    cut, opening = answer.finish == "length", "{" if kind is dict else "["
    text = re.sub(r"^```\w*\s*", "", _after_thoughts(answer.text, opening).strip())
    if not text:
        return _failure("truncated" if cut else "empty", "nothing came", answer)
    places, values, unfinished = _values(text, opening)
    if cut:
        return values[0] if places[:1] == [0] else _failure("truncated", "broke off", answer)
    thought = _OPENED.search(text)
    if unfinished or (thought and thought.start() < min(places, default=len(text))):
        return _failure("truncated", "broke off", answer)
    return values[-1] if values else _failure("unparsed", f"no JSON {kind.__name__} in it", answer)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a duplicate key")
    return dict(pairs)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _number(value: object) -> float | None:
    """A finite number, given as one or as a string; None for all else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _short(value: object) -> str:
    return short(repr(value), _SHOWN)


def _failure(kind: FailureKind, why: str, answer: Answer) -> Failure:
    return Failure(kind, f"{why}: {_short(answer.text)}" if answer.text else why)
