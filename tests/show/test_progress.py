"""Progress is bars in a terminal, lines in a log, and JSON lines for a program."""

from __future__ import annotations

import io
import json
import re
from types import SimpleNamespace

import pytest
from rich.console import Console

from heredity.show.progress import Bars, Events, Lines, watcher_of


def console(terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=100)


def followed(watcher) -> str:
    """What is written of two stages, of which one is done already."""
    now = [0.0]
    watcher.clock, watcher.stages = lambda: now[0], 2
    first, second = SimpleNamespace(label="sae/base"), SimpleNamespace(label="match/a\x1b[0m")
    with watcher:
        watcher.start(first)
        for done in range(0, 101, 10):
            watcher.progress(first, 50 + done // 2, 100)  # half was done by an earlier try
            now[0] += 6
        watcher.end(first, 66.0, False)
        watcher.start(second)
        watcher.end(second, 0.1, True)
    assert watcher.worked == ["sae/base"]
    return watcher.console.file.getvalue()


def test_the_form_follows_the_terminal_unless_it_is_named():
    assert isinstance(watcher_of("auto", console(True)), Bars) and isinstance(watcher_of("auto", console()), Lines)
    assert isinstance(watcher_of("json", console(True)), Events)
    with pytest.raises(ValueError, match="--progress x: must be auto, bars, lines or json"):
        watcher_of("x", console())


def test_a_log_gets_a_line_now_and_then_and_one_for_every_stage_done():
    lines = followed(Lines(console())).splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "1/2 sae/base 75 % after 30 s, about 30 s left",
        "1/2 sae/base 100 % after 60 s",
        "1/2 sae/base 66.0 s",
    ]


def test_a_program_gets_one_object_a_line():
    events = [json.loads(line) for line in followed(Events(console())).splitlines()]
    assert [one["event"] for one in events] == ["start", *["progress"] * 10, "end", "start", "end"]
    assert events[0] == {"event": "start", "stage": "sae/base", "number": 1, "stages": 2}
    assert events[5] | {"done": 75, "total": 100, "seconds": 30.0, "left": 30.0} == events[5]
    assert events[-1]["stage"] == "match/a\x1b[0m" and events[-1]["cached"] and events[-1]["seconds"] == 0.1


def test_a_terminal_gets_a_line_for_every_stage_done():
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", followed(Bars(console(True))))
    assert "1/2  sae/base" in shown


@pytest.mark.parametrize("form", ["bars", "lines", "json"])
def test_stages_at_work_at_once_are_each_followed(form):
    watcher = watcher_of(form, console(form == "bars"))
    watcher.stages = 3
    first, second = SimpleNamespace(label="model/a"), SimpleNamespace(label="model/b")
    with watcher:
        watcher.start(first)
        assert watcher.stage == "model/a"
        watcher.start(second)
        assert watcher.stage == ""  # an error may be of either
        watcher.progress(first, 1, 2)
        watcher.again(second)
        watcher.end(second, 1.0, False)
        watcher.progress(first, 2, 2)
        watcher.end(first, 2.0, False)
    assert watcher.worked == ["model/b", "model/a"] and watcher.stage == ""
    written = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", watcher.console.file.getvalue())
    if form == "json":
        ends = [json.loads(line) for line in written.splitlines() if '"end"' in line]
        assert [(one["stage"], one["number"]) for one in ends] == [("model/b", 2), ("model/a", 1)]
        assert '"event": "again", "stage": "model/b"' in written
    else:
        order = "2/3  model/b +its worker was lost, another one goes on.*2/3  model/b +1.0 s.*1/3  model/a +2.0 s"
        assert re.search(order, written, re.DOTALL)


def test_one_piece_of_work_is_followed_too():
    watcher = Events(console())
    watcher.clock = iter([0.0, 2.0, 4.0]).__next__
    say = watcher.plain("export")
    say(1, 4)
    say(2, 4)
    assert [json.loads(line)["event"] for line in watcher.console.file.getvalue().splitlines()] == [
        "start",
        "progress",
        "progress",
    ]
