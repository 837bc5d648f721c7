"""The gate lets through what stays within the limit, and says how sure it is of what does not."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from heredity.analyses.analysis import Statement
from heredity.cli import app, study
from heredity.show.gate import judge, limit_of, row_of

Row = dict[str, Any]


def edge(name: str, persist: int, live: int = 100, ceiling: float | None = 0.9, **intervals: Any) -> Row:
    """A row of an edge from `base`; intervals: of `persist` or `relative`."""
    row = {"instrument": "parent", "rule": "evidence", "edge": f"base->{name}"}
    row |= {"parent_live": live, "persist": persist, "ceiling": ceiling}
    for column, (low, high) in intervals.items():
        row |= {f"{column.rstrip('_')}_low": low, f"{column.rstrip('_')}_high": high}
    return row


def verdict(row: Row, limit: float = 0.05, **options: Any) -> Row:
    """Of one edge."""
    (found,) = judge("s", [row], limit, **options)["edges"].values()
    return found


@pytest.mark.parametrize(
    ("text", "share"),
    [("5%", 0.05), ("5 %", 0.05), ("0.05", 0.05), (" 3.3% ", 0.033), ("0", 0), ("1", 1), ("100%", 1), ("1e-3", 0.001)],
)
def test_a_limit_is_a_percentage_or_a_share(text: str, share: float):
    assert limit_of(text) == share


@pytest.mark.parametrize(
    ("reason", "texts"),
    [
        ("is no number", ("five", "", "%", "5%%")),
        ("is not finite", ("nan", "nan%", "inf")),
        ("is negative", ("-1%", "-0.01")),
        ("is more than 100 %; ", ("101 %",)),
        (r"is more than 100 % \(for 5 percent write 5%\)", ("5",)),
    ],
)
def test_other_limits_are_refused_by_name(texts: tuple[str, ...], reason: str):
    for text in texts:
        with pytest.raises(ValueError, match=rf"^--max-lost {text}: {reason}"):
            limit_of(text)


def test_an_edge_passes_up_to_the_limit_and_fails_beyond_it():
    rows = [edge("less", 96), edge("just", 95), edge("more", 94)]
    found = judge("s", rows, 0.05)
    lost = {"base->less": (0.04, True), "base->just": (0.05, True), "base->more": (0.06, False)}
    assert {name: (one["lost"], one["passed"]) for name, one in found["edges"].items()} == lost
    assert not found["passed"] and judge("s", rows[:2], 0.05)["passed"]
    some = judge("s", rows, 0.05, ["base->just", "base->just"])
    assert list(some["edges"]) == ["base->just"] and some["passed"], "only those that are asked for, and each once"


@pytest.mark.parametrize("live", [3, 7, 49, 1000, 4096])
def test_a_loss_of_exactly_the_limit_passes_whatever_the_rounding(live: int):
    for lost in range(0, live + 1, max(1, live // 50)):
        for ceiling in (1.0, 0.9, 0.7):
            row = edge("a", live - lost, live, ceiling)
            assert verdict(row, lost / live)["passed"]
            assert verdict(row, max(0.0, 1 - (1 - lost / live) / ceiling), relative=True)["passed"]
            assert lost == 0 or not verdict(row, (lost - 0.5) / live)["passed"]


@pytest.mark.parametrize(
    ("row", "options", "words"),
    [
        (edge("a", 50), {"edges": ["base->x"]}, "--edge base->x: is no edge of study s; edges are base->a"),
        (edge("a", 99, ceiling=None), {"relative": True}, "edge base->a: has no ceiling, .* controls.seeds = 2"),
        (edge("a", 0, ceiling=0.0), {"relative": True}, "edge base->a: has a ceiling of 0"),
        (edge("a", 0, live=0), {}, "edge base->a: no feature of the parent fired"),
        (edge("a", 50), {"only_sure": True}, "edge base->a: has no interval of persist.* leave --sure out"),
    ],
)
def test_what_cannot_be_judged_is_refused_with_a_way_out(row: Row, options: Row, words: str):
    with pytest.raises(ValueError, match=words):
        verdict(row, **options)
    with pytest.raises(ValueError, match="study s has no parent -> child edge"):
        judge("s", [], 0.05)


@pytest.mark.parametrize(
    ("row", "relative", "lost", "interval"),
    [
        (edge("a", 80, persist_=(75, 85)), False, 0.2, (0.15, 0.25)),
        (edge("a", 72, persist_=(None, 81)), False, 0.28, None),
        (edge("a", 72), True, 0.2, None),
        (edge("a", 95), True, 0, None),  # more than the ceiling is no gain
        (edge("a", 72, persist_=(63, 81)), True, 0.2, (0.1, 0.3)),
        (edge("a", 72, persist_=(63, 81), relative=(0.6, 1.02)), True, 0.2, (0.0, 0.4)),
        (edge("a", 72, persist_=(63, 81), relative=(0.6, 1.02)), False, 0.28, (0.19, 0.37)),
    ],
)
def test_the_loss_and_its_interval_are_of_all_live_features_or_of_the_ceiling(row, relative, lost, interval):
    found = verdict(row, relative=relative)
    assert found["lost"] == pytest.approx(lost) and found["interval"] == (interval and pytest.approx(interval))


INTERVALS = [
    edge("good", 98, persist_=(96, 99)),
    edge("doubtful", 96, persist_=(93, 98)),
    edge("bad", 94, persist_=(91, 97)),
    edge("worse", 80, persist_=(75, 85)),
]


@pytest.mark.parametrize(
    ("only_sure", "words"),
    [
        (False, ("passes (sure)", "passes (not sure)", "FAILS (not sure)", "FAILS (sure)")),
        (True, ("passes (sure)", "passes (not sure)", "passes: over the limit (not sure)", "FAILS (sure)")),
    ],
)
def test_a_verdict_is_sure_when_the_whole_interval_stands_on_its_side_of_the_limit(only_sure, words):
    found = judge("s", INTERVALS, 0.05, only_sure=only_sure)["edges"]
    assert [row_of(name, one)["verdict"] for name, one in found.items()] == list(words)
    assert [one["passed"] for one in found.values()] == [word.startswith("passes") for word in words]
    assert row_of("a", verdict(edge("a", 90)))["verdict"] == "FAILS", "without an interval"


@pytest.fixture
def command(monkeypatch):
    """The command on made-up edges, as if that study had been run."""
    paper = [row | {"rule": "paper", "persist": 0} for row in INTERVALS]
    other = [row | {"instrument": "joint", "persist": 0} for row in INTERVALS]
    table = pa.Table.from_pylist([*INTERVALS, *paper, *other])
    said = [Statement("base", "note", "train longer"), Statement("base", "lost", "much")]
    run = SimpleNamespace(
        name="s", tables={"edges": table}, study=SimpleNamespace(instrument="parent"), statements=said
    )
    monkeypatch.setattr(study, "complete", lambda *_: run)
    environment = {"COLUMNS": "120", "TERM": "dumb", "NO_COLOR": "1"}
    return lambda *words: CliRunner().invoke(app, ["gate", "s.toml", *words], env=environment)


def test_exit_codes_are_0_1_and_2(command):
    assert command("--max-lost", "25%").exit_code == 0
    assert command("--max-lost", "5%").exit_code == 1
    assert command("--max-lost", "5 %", "--edge", "base->good", "--edge", "base->doubtful").exit_code == 0
    assert command("--max-lost", "5%", "--sure", "--edge", "base->bad").exit_code == 0
    wrong = command("--max-lost", "-5%")
    assert wrong.exit_code == 2 and "--max-lost -5%: is negative" in wrong.stderr and not wrong.stdout


def test_the_table_names_edge_loss_limit_and_verdict(command):
    rows = command("--max-lost", "5%").stdout.splitlines()
    (worse,) = [row.split("  ") for row in rows if "base->worse" in row]
    assert "(instrument parent)" in rows[0] and rows[-1] == "Note: train longer"
    words = [word.strip() for word in worse if word.strip()]
    assert words == ["base->worse", "20 % [15–25 %]", "5 %", "FAILS (sure)"]


def test_json_is_one_object(command):
    result = command("--max-lost", "0.05", "--sure", "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 1
    assert {name: value for name, value in found.items() if name != "edges"} == {
        "study": "s",
        "instrument": "parent",
        "notes": ["train longer"],
        "passed": False,
        "max_lost": 0.05,
        "relative_to_ceiling": False,
        "only_sure": True,
    }
    numbers = {"lost": pytest.approx(0.06), "limit": 0.05, "interval": pytest.approx([0.03, 0.09])}
    assert found["edges"]["base->bad"] == numbers | {"passed": True, "sure": False}
