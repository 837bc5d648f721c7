"""Answers are read, or fail with a kind."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from explain.server import excerpt
from heredity.explain.language import echo_prompt
from heredity.explain.parse import read_echo, read_explanation, read_intruder, read_levels, read_verdicts
from heredity.explain.protocol import Answer, Failure


def said(text, finish="stop", **rest):
    return Answer(text, finish, 1, 1, **rest)


def kind(value):
    assert isinstance(value, Failure), value
    assert value.detail
    return value.kind


@pytest.mark.parametrize(
    "text",
    [
        '{"explanation": "the  end\\nof it"}',
        '```json\n{"explanation": "the end of it"}\n```',
        'Sure! Here {you are}: {"explanation": "the end of it"} Hope it helps.',
        '<think>{"explanation": "perhaps this"} no</think>{"explanation": "the end of it"}',
        '{"explanation": "first try"} or better {"explanation": "the end of it"}',
    ],
)
def test_explanations_are_found_in_what_is_around_them(text):
    assert read_explanation(said(text)) == "the end of it"


@pytest.mark.parametrize(
    ("text", "finish", "expected"),
    [
        ("", "stop", "empty"),
        (" \n", "length", "truncated"),
        ('{"explanation": " "}', "stop", "empty"),
        ('{"explanation": 3}', "stop", "unparsed"),
        ('{"other": "x"}', "stop", "unparsed"),
        ("It fires on verbs.", "stop", "unparsed"),
        ('{"explanation": "it fi', "stop", "truncated"),
        ('{"explanation": "it \\"fi}', "length", "truncated"),
        ('{"explanation": {"explanation": "inner"}, "and', "stop", "truncated"),
        ('<think>{"explanation": "perhaps"} or', "length", "truncated"),
        ('<think>{"explanation": "perhaps"} or', "stop", "truncated"),
        ("[" * 100_000, "stop", "unparsed"),
        ("{" * 100_000, "stop", "truncated"),
        ('{"explanation": "a", "explanation": "b"}', "stop", "unparsed"),
        ("I cannot help.", "refused", "refused"),
    ],
)
def test_explanations_fail_by_kind(text, finish, expected):
    assert kind(read_explanation(said(text, finish))) == expected


def test_an_answer_that_goes_on_until_it_is_cut_counts_only_if_it_came_first():
    assert read_explanation(said('{"explanation": "a"} and so on and', "length")) == "a"
    assert kind(read_explanation(said('First, {"explanation": "a"} and so', "length"))) == "truncated"


def test_levels_that_are_left_out_are_silent():
    first, second = read_levels(said('{"0": 9, "2": "4", "4": 2.5}'), [3, 2])
    np.testing.assert_array_equal(first, [9, 0, 4])
    np.testing.assert_array_equal(second, [0, 2.5])
    assert [own.tolist() for own in read_levels(said("{}"), [1, 1])] == [[0], [0]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"5": 1}', "wrong_length"),
        ('{"-1": 1}', "wrong_length"),
        ('{"0.5": 1}', "unparsed"),
        ('{"the": 1}', "unparsed"),
        ('{"0": 1, "0": 2}', "unparsed"),
        ('{"0": NaN}', "unparsed"),
        ('{"0": 1', "truncated"),
        ("[0, 1]", "unparsed"),
        ("", "empty"),
    ],
)
def test_levels_fail_by_kind(text, expected):
    assert kind(read_levels(said(text), [3, 2])) == expected


@pytest.mark.parametrize("level", ["10", "-1", '"high"', "true", "null", "1e999", "[1]"])
def test_a_value_that_is_no_level_fails_its_own_excerpt_and_is_not_clipped(level):
    first, second = read_levels(said('{"0": 3, "4": ' + level + "}"), [3, 2])
    np.testing.assert_array_equal(first, [3, 0, 0])
    assert kind(second) == "unparsed"


def test_verdicts():
    for text in ("[1, 0, 1]", '```\n["1", 0, true]\n```', "The answer: [1, 0, 1.0]."):
        np.testing.assert_array_equal(read_verdicts(said(text), 3), [1, 0, 1])
    wrong = {"[1, 0]": "wrong_length", "[1, 0, 2]": "unparsed", "[1, 0, null]": "unparsed", "[1, 0,": "truncated"}
    for text, expected in (wrong | {"": "empty", "101": "unparsed", "[1, 0, NaN]": "unparsed"}).items():
        assert kind(read_verdicts(said(text), 3)) == expected


def test_intruders():
    for text in ('{"intruder": 3}', "3", '{"intruder": "3"}', 'It is ```json\n{"intruder": 3}\n```'):
        assert read_intruder(said(text), 5) == 2
    wrong = {'{"intruder": 0}': "wrong_length", '{"intruder": 6}': "wrong_length", '{"intruder": 1.5}': "unparsed"}
    for text, expected in (wrong | {'{"intruder": "no"}': "unparsed", "": "empty", "none": "unparsed"}).items():
        assert kind(read_intruder(said(text), 5)) == expected


def echoed(prompt, likely, lead=""):
    """A prompt split at every character, with these likely tokens at each unknown level, in order."""
    tokens, top = list(lead), [{} for _ in lead]
    for place, char in enumerate(prompt.text):
        tokens.append(char)
        top.append(likely[prompt.unknown.index(place)] if place in prompt.unknown else {"x": -1.0})
    return said("", tokens=(*tokens, "7"), top=(*top, {"7": -0.1}))


def test_echoed_prompts_give_expected_levels():
    prompt = echo_prompt("x", [excerpt("a", "é"), excerpt('"')])
    likely = [
        {"9": math.log(0.2), "0": math.log(0.2), "unknown": math.log(0.6)},
        {"3": -5.0},
        {str(digit): -2.0 for digit in range(10)} | {"10": -0.1},
    ]
    for lead in ("", "<s> "):
        first, second = read_echo(echoed(prompt, likely, lead), prompt, [2, 1])
        np.testing.assert_allclose(first, [4.5, 3])
        np.testing.assert_allclose(second, [4.5])


def test_echoed_prompts_fail_where_digits_cannot_be_read():
    prompt = echo_prompt("x", [excerpt("a"), excerpt("b")])
    good = echoed(prompt, [{"1": -1.0}, {"unknown": -0.1}])
    first, second = read_echo(good, prompt, [1, 1])
    assert first.tolist() == [1] and kind(second) == "unparsed"
    place, digit = prompt.shown[3]
    joined = (*good.tokens[:place], digit + "\n", *good.tokens[place + 2 :])
    failure = read_echo(good._replace(tokens=joined, top=good.top[1:]), prompt, [1, 1])
    assert kind(failure) == "unparsed" and f"digit {digit} " in failure.detail
    assert kind(read_echo(good._replace(tokens=(), top=()), prompt, [1, 1])) == "empty"
    assert kind(read_echo(good._replace(tokens=("x", *good.tokens[1:])), prompt, [1, 1])) == "unparsed"


def test_an_answer_is_never_taken_from_a_string_of_another():
    owned = json.dumps({"explanation": 'says {"explanation": "owned"} often'})
    assert read_explanation(said(owned)) == 'says {"explanation": "owned"} often'
