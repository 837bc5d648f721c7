"""Values are written by the kind of their column, the same everywhere."""

from __future__ import annotations

import math

import pytest

from heredity import format
from heredity.tables import Column


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        ("count", 1517, "1,517"), ("count", None, ""), ("count", math.nan, ""),
        ("share", 0.7412, "74 %"), ("share", 0.0432, "4.3 %"), ("share", 0.05, "5 %"), ("share", 0.0004, "<0.1 %"),
        ("share", 0, "0 %"), ("share", 1, "100 %"), ("share", -0.031, "-3.1 %"),
        ("share", 0.9953, "99.5 %"), ("share", 0.9999, ">99.9 %"), ("share", -4e-19, "0 %"),
        ("r", 0.81249, "0.812"), ("nats", 2.5, "2.500"), ("degrees", 12.34, "12.3°"),
        ("number", 0.123456, "0.1235"), ("number", 12_345.6, "12,346"), ("number", 3.0, "3"), ("number", 2e-7, "2e-07"),
        ("seconds", 0.25, "0.2 s"), ("seconds", 0, "0 s"), ("seconds", 42.4, "42 s"), ("seconds", 600, "10 min"),
        ("seconds", 7200, "2.0 h"),
        ("flops", 2.5e12, "2.5 TFLOP"), ("flops", 1234e15, "1.23e+03 PFLOP"), ("flops", 17e6, "17 MFLOP"),
        ("flops", 12, "12 FLOP"),
        ("text", "base->lua", "base->lua"), ("feature", 12_345, "12345"), ("flag", True, "yes"), ("flag", False, "no"),
        ("flag", None, ""), ("text", None, ""),
    ],
)  # fmt: skip
def test_a_value_is_written_by_its_kind(kind, value, text):
    assert format.value(kind, value) == text


def test_a_share_below_a_limit_is_written_in_digits_that_tell_it_from_the_limit():
    for share, text in ((0.1, "10 %"), (76 / 256, "29.7 %"), (0.2997, "29.97 %"), (0.0004, "<0.1 %"), (-0.5, "-50 %")):
        assert format.below(share, 0.3) == text


def test_a_cell_holds_the_share_of_its_whole_and_its_interval():
    column = Column("persist", "count", "Persisting.", of="live", ci=True)
    row = {"persist": 1517, "live": 2048, "persist_low": 1506.0, "persist_high": 1542.0}
    assert format.cell(column, row) == "1,517 (74 %) [1,506–1,542]"
    assert format.cell(column, row | {"persist_low": None}) == "1,517 (74 %)"
    assert format.cell(column, row | {"live": 0}) == "1,517 [1,506–1,542]"
    assert format.cell(column, row | {"persist": None}) == "" == format.cell(column, {})
    share = Column("share", "share", "Share.", ci=True)
    assert format.cell(share, {"share": 0.74, "share_low": 0.72, "share_high": 0.75}) == "74 % [72–75 %]"


@pytest.mark.parametrize(
    ("kind", "low", "high", "text"),
    [("share", 0.72, 0.75, "72–75 %"), ("share", 0.721, 0.722, "72 %"), ("count", 1506, 1542, "1,506–1,542"),
     ("r", 0.1, 0.25, "0.100–0.250"), ("share", 0.0001, 0.02, "<0.1–2 %"), ("share", -0.12, -0.07, "-12 to -7 %")],
)  # fmt: skip
def test_an_interval_has_its_unit_once(kind, low, high, text):
    assert format.interval(kind, low, high) == text


def test_counts_in_prose():
    assert format.of(1517, 2048) == "1,517 of 2,048 (74 %)"
    assert format.of(1517, 2048, 1506, 1542) == "1,517 of 2,048 (74 %, 95 % CI 1,506–1,542)"
    assert format.of(1517, 2048, 1506, 1542, 0.9) == "1,517 of 2,048 (74 %, 90 % CI 1,506–1,542)"
    assert format.of(0, 0) == "0 of none"


def test_lists_in_prose():
    lists = {"": [], "a": ["a"], "a and b": ["a", "b"], "a, b and c": ["a", "b", "c"]}
    assert {format.listed(words): words for words in lists.values()} == lists
