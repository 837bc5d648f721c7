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
    assert isinstance(value, Failure) and value.detail, value
    return value.kind


READERS = {
    "explanation": read_explanation,
    "levels": lambda answer: read_levels(answer, [3, 2]),
    "verdicts": lambda answer: read_verdicts(answer, 3),
    "intruder": lambda answer: read_intruder(answer, 5),
}
OWNED = 'says {"explanation": "owned"} often'
READ = {
    "explanation": {
        "the end of it": [
            '{"explanation": "the  end\\nof it"}',
            '```json\n{"explanation": "the end of it"}\n```',
            'Sure! Here {you are}: {"explanation": "the end of it"} Hope it helps.',
            '<think>{"explanation": "perhaps this"} no</think>{"explanation": "the end of it"}',
            '{"explanation": "first try"} or better {"explanation": "the end of it"}',
            'Tokens such as { and "}" [in code: {"explanation": "the end of it"}',
            'It opens {" a string {"a. {"explanation": "the end of it"}',
            'hm {"explanation": "no"}, wait</think> no</think>\n```json\n{"explanation": "the end of it"}```',
            '[THINK]{"explanation": "no"}[/THINK]{"explanation": "the end of it"}',
            '<|channel|>analysis<|message|>{"a": 1}<|end|><|start|>assistant<|channel|>final<|message|>'
            '{"explanation": "the end of it"}',
        ],
        "the tag </think> or <think>": ['{"explanation": "the tag </think> or <think>"}'],
        OWNED: [json.dumps({"explanation": OWNED})],  # never taken from a string of another
    },
    "verdicts": {(1, 0, 1): ["[1, 0, 1]", '```\n["1", 0, true]\n```', "The answer: [1, 0, 1.0]."]},
    "intruder": {2: ['{"intruder": 3}', "3", '{"intruder": "3"}', 'It is ```json\n{"intruder": 3}\n```']},
    "levels": {((9, 0, 4), (0, 2.5)): ['{"0": 9, "2": "4", "4": 2.5}'], ((0, 0, 0), (0, 0)): ["{}"]},
}


@pytest.mark.parametrize(
    ("what", "text", "expected"),
    [(what, text, value) for what, values in READ.items() for value, texts in values.items() for text in texts],
)
def test_answers_are_found_in_what_is_around_them(what, text, expected):
    found = READERS[what](said(text))
    for own, value in zip(found, expected, strict=True) if what == "levels" else [(found, expected)]:
        np.testing.assert_array_equal(own, value)


FAILED = {
    "explanation": {
        "": "empty", '{"explanation": " "}': "empty", '{"explanation": 3}': "unparsed", '{"other": "x"}': "unparsed",
        "It fires on verbs.": "unparsed", '{"explanation": "it fi': "truncated", "[" * 100_000: "unparsed",
        '{"explanation": {"explanation": "inner"}, "and': "truncated", "{" * 100_000: "truncated",
        '<think>{"explanation": "perhaps"} or': "truncated", '{"explanation": "a", "explanation": "b"}': "unparsed",
    },
    "levels": {
        '{"5": 1}': "wrong_length", '{"-1": 1}': "wrong_length", '{"0.5": 1}': "unparsed", '{"the": 1}': "unparsed",
        '{"0": 1, "0": 2}': "unparsed", '{"0": NaN}': "unparsed", '{"0": 1': "truncated", "[0, 1]": "unparsed",
        "": "empty",
    },
    "verdicts": {
        "[1, 0]": "wrong_length", "[1, 0, 2]": "unparsed", "[1, 0, null]": "unparsed", "[1, 0,": "truncated",
        "": "empty", "101": "unparsed", "[1, 0, NaN]": "unparsed",
    },
    "intruder": {
        '{"intruder": 0}': "wrong_length", '{"intruder": 6}': "wrong_length", '{"intruder": 1.5}': "unparsed",
        '{"intruder": "no"}': "unparsed", "": "empty", "none": "unparsed",
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("what", "text", "expected"), [(what, *case) for what, cases in FAILED.items() for case in cases.items()]
)
def test_answers_fail_by_kind(what, text, expected):
    assert kind(READERS[what](said(text))) == expected


def test_an_answer_that_was_cut_counts_only_if_it_came_first():
    assert read_explanation(said('{"explanation": "a"} and so on and', "length")) == "a"
    for text in (" \n", '{"explanation": "it \\"fi}', '<think>{"explanation": "a"}', 'First, {"explanation": "a"} and'):
        assert kind(read_explanation(said(text, "length"))) == "truncated"
    assert kind(read_explanation(said("I cannot help.", "refused"))) == "refused"


@pytest.mark.parametrize("level", ["10", "-1", '"high"', "true", "null", "1e999", "[1]"])
def test_a_value_that_is_no_level_fails_its_own_excerpt_and_is_not_clipped(level):
    first, second = read_levels(said('{"0": 3, "4": ' + level + "}"), [3, 2])
    np.testing.assert_array_equal(first, [3, 0, 0])
    assert kind(second) == "unparsed"


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
        np.testing.assert_allclose([*first, *second], [4.5, 3, 4.5])


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
