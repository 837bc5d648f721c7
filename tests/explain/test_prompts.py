"""Prompts: what is asked, and that no text can leave the JSON string it stands in."""

from __future__ import annotations

import json

import numpy as np
import pytest

from explain.server import HOSTILE, excerpt
from heredity.explain.language import (
    DETECT,
    detect_prompt,
    echo_prompt,
    explain_prompt,
    fuzz_prompt,
    intruder_prompt,
    marks,
    quoted,
    simulate_prompt,
)


def data(prompt: str):
    return json.loads(prompt.splitlines()[-1])


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_in_its_string(text):
    line = quoted({"text": text, text: [text]})
    assert json.loads(line) == {"text": text, text: [text]}
    assert line.isprintable() and len(line.splitlines()) == 1
    line.encode()
    for special in ("</s>", "<s>", "<|im", "[INST]", "[/INST]"):
        assert special not in line
    prompt = detect_prompt(text, [excerpt(text), excerpt(text, "b")])
    assert prompt.startswith(DETECT) and prompt.count("\n") == DETECT.count("\n") + 1
    assert data(prompt) == {"explanation": text, "texts": [[1, text], [2, text + "b"]]}


def test_common_text_is_left_readable():
    assert quoted("if a < b and c[0] == 'é日':") == "\"if a < b and c[0] == 'é日':\""


def test_explaining_tells_active_tokens_with_levels_of_the_strongest():
    shown = data(explain_prompt([excerpt("a", " b", "\n", active={1: 5.0, 2: 0.01}), excerpt("c", active={0: 10.0})]))
    assert shown == [{"text": "a b\n", "active": [[" b", 5], ["\n", 1]]}, {"text": "c", "active": [["c", 9]]}]
    assert data(explain_prompt([excerpt("a")])) == [{"text": "a", "active": []}]


def test_simulation_numbers_tokens_through_all_excerpts_and_shows_no_activation():
    near, far = (simulate_prompt("x", [excerpt("a", "b", active={0: v}), excerpt("c", active={0: v})]) for v in (1, 7))
    assert near == far
    assert data(near)["excerpts"] == [[[0, "a"], [1, "b"]], [[2, "c"]]]


def test_fuzzing_marks_with_signs_that_no_text_holds():
    texts = [excerpt("a", "b", "c"), excerpt("d", "e")]
    shown = data(fuzz_prompt("x", texts, [np.array([0, 1, 1], bool), np.array([0, 0], bool)]))
    assert shown["marks"] == ["«", "»"] and shown["texts"] == [[1, "a«b»«c»"], [2, "de"]]
    assert marks(["«"]) == ("⟦", "⟧")
    start, end = marks([*HOSTILE, "2"])
    joined = "".join((*HOSTILE, "2"))
    assert start not in joined and end not in joined and start != end


def test_intruders_are_numbered_from_one():
    assert data(intruder_prompt([excerpt("a"), excerpt("b", "c")])) == [[1, "a"], [2, "bc"]]


def test_the_echo_prompt_is_ascii_and_its_places_are_its_levels():
    prompt = echo_prompt(HOSTILE[0], [excerpt(*HOSTILE), excerpt("a")])
    assert prompt.text.isascii() and len(prompt.unknown) == len(HOSTILE) + 1
    assert {digit for _, digit in prompt.shown} == set("0123456789")
    for place, digit in prompt.shown:
        assert prompt.text[place - 1 : place + 2] == f"\t{digit}\n"
    for place, token in zip(prompt.unknown, (*HOSTILE, "a"), strict=True):
        assert prompt.text[place:].startswith("unknown\n")
        line = prompt.text[:place].rsplit("\n", 1)[1]
        assert json.loads(line.rstrip("\t")) == token
