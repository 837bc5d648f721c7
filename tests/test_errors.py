"""The door for what others wrote: any failure becomes one line with the place, the reason and the way out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from heredity.errors import read_json, reading, short
from heredity.study import StudyError

Panic = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda: json.loads("[" * 100_000), "nested too deeply"),
        (lambda: json.loads("9" * 5000), "more than 4,300 digits"),
        (lambda: b"a\xff".decode(), "byte 1 is not UTF-8"),
        (lambda: {}["k"], "it has no k"),
        (lambda: bytearray(2**62), "more memory than there is"),
        (lambda: Path("/nowhere/x").read_bytes(), "No such file"),
        (lambda: len(3), "TypeError: "),
        (lambda: (_ for _ in ()).throw(Panic("called `unwrap`")), "PanicException: called"),
        (lambda: (_ for _ in ()).throw(Exception("x" * 9999)), "Exception: xxx"),
    ],
)
def test_whatever_a_parser_raises_is_one_line_with_place_and_way_out(fault, words):
    with pytest.raises(StudyError) as told, reading("a/b.json", "copy it anew", StudyError):
        fault()
    line = str(told.value)
    assert line.startswith("a/b.json: cannot be read (") and words in line and line.endswith("; copy it anew")
    assert "\n" not in line and len(line) < 300


def test_own_errors_and_requests_to_stop_pass():
    for kind in (StudyError, KeyboardInterrupt, SystemExit):
        with pytest.raises(kind, match="^mine$"), reading("x", "y"):
            raise kind("mine")


@pytest.mark.parametrize("text", ["[1]", "\ufeff[1]", '{"a": "\\ud800"}', "", "null", "[" * 5000, "{" + '"a":{' * 3000])
def test_json_of_another_kind_or_with_half_a_character_names_its_file(text, tmp_path):
    file = tmp_path / "x.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(StudyError, match=r"x\.json: .*; copy it anew$"):
        read_json(file, "copy it anew", StudyError)
    file.write_text('\ufeff{"a": "\\ud83d\\ude00"}', encoding="utf-8")
    assert read_json(file, "copy it anew") == {"a": "😀"}


def test_values_are_cut_in_the_middle_whatever_they_are():
    assert short("a\n b") == "a b" and short([1]) == "[1]"
    assert short("x" * 500 + "end", 80).endswith("end") and len(short("x" * 500, 80)) == 80
    nest: list = []
    for _ in range(100_000):
        nest = [nest]
    assert short(nest) == "a list" and short(10**5000) == "a int"
