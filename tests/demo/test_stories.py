from __future__ import annotations

import random
import re
import time

import pytest

from heredity.demo import stories as module
from heredity.demo.stories import stories, story


@pytest.fixture(scope="module")
def tales() -> list[str]:
    return list(stories(5000, 0))


def test_stories_are_distinct_of_the_promised_length_and_well_formed(tales):
    assert len(set(tales)) == 5000
    for text in tales:
        assert 80 <= len(text.split()) <= 250
        assert not re.search(r"[{}\[\]|]|  | \n|\n\n", text), text  # a slot, a choice, a blank too many
        assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", text), text
        assert not re.search(r'[.!?] "?[a-z]', re.sub(r'[.!?,]" [a-z]', "", text)), text
        assert text[0].isupper() and text[-1] in '.!?"'


def test_the_same_seed_tells_the_same_and_a_prefix_is_a_prefix():
    assert list(stories(20, 3)) == list(stories(30, 3))[:20]
    assert list(stories(20, 3)) != list(stories(20, 4))
    endless = stories(None, 3)
    assert [next(endless) for _ in range(20)] == list(stories(20, 3))
    assert story(random.Random(5)) == story(random.Random(5))


def test_pronouns_agree_with_the_name_of_the_hero(tales):
    girls = set(module.grammar().girls)
    checked = 0
    for text in tales:
        match = re.match(r"(?:Once upon a time, there was|It was).*? named (\w+)\. (He|She) (?:was|lived)", text)
        if match:
            checked += 1
            assert (match[2] == "She") == (match[1] in girls), text
    assert checked > 300


def test_every_row_of_the_cast_is_used_and_the_plots_use_no_slot_that_it_lacks(tales):
    whole, words = "\n".join(tales), module.grammar()
    for row in (row for rows in words.tables for row in rows):
        assert any(value in whole or value.capitalize() in whole for value in row.values()), row
    assert len(words.plots) >= 15
    assert all(len(plot) >= 5 and min(map(len, plot)) >= 2 for plot in words.plots)
    ways = [*words.opening, *words.aside, *words.middle, *words.ending]
    ways += [way for plot in words.plots for beat in plot for way in beat]
    used = {name[0].lower() + name[1:] for way in ways for name in re.findall(r"\{(\w+)\}", way)}
    assert used <= set(module._slots(random.Random(0)))


def test_a_grammar_that_is_used_up_is_an_error(monkeypatch):
    monkeypatch.setattr(module, "story", lambda _: "always the same")
    with pytest.raises(ValueError, match="no new story after 1; lower max_bytes"):
        list(stories(2, 0))


def test_stories_are_quick_to_tell():
    start = time.process_time()
    list(stories(800, 1))
    assert time.process_time() - start < 1.5
