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
from heredity.show.gate import Gate, Verdict, limit_of
from heredity.show.gate import judge as judge_rows


def edge(persist: int, live: int = 100, ceiling: float | None = 0.9, **intervals: Any) -> dict[str, Any]:
    row = {"parent_live": live, "persist": persist, "ceiling": ceiling}
    for name, (low, high) in intervals.items():
        name = "persist" if name == "interval" else name
        row |= {f"{name}_low": low, f"{name}_high": high}
    return row


def summary(**edges: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of a study with an edge from `base` to each model named."""
    return [{"instrument": "parent", "rule": "evidence", "edge": f"base->{name}", **row} for name, row in edges.items()]


def judge(rows: list[dict[str, Any]], *arguments: Any, **options: Any) -> Gate:
    return judge_rows("s", rows, *arguments, **options)


@pytest.mark.parametrize(
    ("text", "share"),
    [("5%", 0.05), ("5 %", 0.05), ("0.05", 0.05), (" 3.3% ", 0.033), ("0", 0), ("1", 1), ("100%", 1), ("1e-3", 0.001)],
)
def test_a_limit_is_a_percentage_or_a_share(text: str, share: float):
    assert limit_of(text) == share


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("five", "is no number"),
        ("", "is no number"),
        ("%", "is no number"),
        ("5%%", "is no number"),
        ("nan", "is not finite"),
        ("nan%", "is not finite"),
        ("inf", "is not finite"),
        ("-1%", "is negative"),
        ("-0.01", "is negative"),
        ("101 %", "is more than 100 %; "),
        ("5", r"is more than 100 % \(for 5 percent write 5%\)"),
    ],
)
def test_other_limits_are_refused_by_name(text: str, reason: str):
    with pytest.raises(ValueError, match=rf"^--max-lost {text}: {reason}"):
        limit_of(text)


def test_an_edge_passes_up_to_the_limit_and_fails_beyond_it():
    found = judge(summary(less=edge(96), just=edge(95), more=edge(94)), 0.05)
    assert [(row.edge, row.lost, row.passed) for row in found.verdicts] == [
        ("base->less", 0.04, True),
        ("base->just", 0.05, True),
        ("base->more", 0.06, False),
    ]
    assert not found.passed
    assert judge(summary(just=edge(95)), 0.05).passed


@pytest.mark.parametrize("live", [3, 7, 49, 1000, 4096])
def test_a_loss_of_exactly_the_limit_passes_whatever_the_rounding(live: int):
    for lost in range(0, live + 1, max(1, live // 50)):
        for ceiling in (1.0, 0.9, 0.7):
            found = summary(a=edge(live - lost, live, ceiling))
            assert judge(found, lost / live).passed
            limit = max(0.0, 1 - (1 - lost / live) / ceiling)
            assert judge(found, limit, relative_to_ceiling=True).passed
            assert lost == 0 or not judge(found, (lost - 0.5) / live).passed


def test_relative_to_the_ceiling_only_what_two_saes_would_keep_is_lost():
    found = judge(summary(a=edge(72, ceiling=0.9), b=edge(95, ceiling=0.9)), 0.1, relative_to_ceiling=True)
    assert found.verdicts[0].lost == pytest.approx(0.2) and not found.verdicts[0].passed
    assert found.verdicts[1].lost == 0 and found.verdicts[1].passed, "more than the ceiling is no gain"


def test_only_the_edges_that_are_asked_for_are_judged_and_each_once():
    found = judge(summary(a=edge(50), b=edge(99)), 0.05, ["base->b", "base->b"])
    assert [row.edge for row in found.verdicts] == ["base->b"] and found.passed


def test_what_cannot_be_judged_is_refused_with_a_way_out():
    some = summary(a=edge(50), b=edge(99, ceiling=None), c=edge(0, ceiling=0.0), d=edge(0, live=0))
    with pytest.raises(ValueError, match="--edge base->x: is no edge of study s; edges are base->a, base->b, base->c"):
        judge(some, 0.05, ["base->x"])
    with pytest.raises(ValueError, match="edge base->b: has no ceiling, .* controls.seeds = 2"):
        judge(some, 0.05, ["base->b"], relative_to_ceiling=True)
    with pytest.raises(ValueError, match="edge base->c: has a ceiling of 0"):
        judge(some, 0.05, ["base->c"], relative_to_ceiling=True)
    with pytest.raises(ValueError, match="edge base->d: no feature of the parent fired"):
        judge(some, 0.05)
    with pytest.raises(ValueError, match="edge base->a: has no interval of persist.* leave --sure out"):
        judge(some, 0.05, ["base->a"], only_sure=True)
    with pytest.raises(ValueError, match="study s has no parent -> child edge"):
        judge(summary(), 0.05)


INTERVALS = summary(
    good=edge(98, interval=(96, 99)),
    doubtful=edge(96, interval=(93, 98)),
    bad=edge(94, interval=(91, 97)),
    worse=edge(80, interval=(75, 85)),
)


def test_a_verdict_is_sure_when_the_whole_interval_stands_on_its_side_of_the_limit():
    found = {row.edge.removeprefix("base->"): row for row in judge(INTERVALS, 0.05).verdicts}
    assert {name: (row.passed, row.sure) for name, row in found.items()} == {
        "good": (True, True),
        "doubtful": (True, False),
        "bad": (False, False),
        "worse": (False, True),
    }
    assert found["worse"].interval == pytest.approx((0.15, 0.25))
    assert [found[name].words for name in ("good", "bad", "worse")] == ["passes (sure)", "FAILS (not sure)"] + [
        "FAILS (sure)"
    ]


def test_under_sure_only_a_sure_failure_fails():
    found = judge(INTERVALS, 0.05, only_sure=True)
    assert [row.passed for row in found.verdicts] == [True, True, True, False]
    assert found.verdicts[2].words == "passes: over the limit (not sure)"
    assert judge(INTERVALS, 0.05, ["base->good", "base->bad"], only_sure=True).passed


def test_the_interval_is_taken_relative_to_the_ceiling_too():
    found = judge(summary(a=edge(72, ceiling=0.9, interval=(63, 81))), 0.05, relative_to_ceiling=True).verdicts[0]
    assert found.interval == pytest.approx((0.1, 0.3)) and found.sure


def test_an_interval_of_the_relative_share_itself_goes_first_where_the_loss_is_relative():
    found = summary(a=edge(72, ceiling=0.9, interval=(63, 81), relative=(0.6, 1.02)))
    assert judge(found, 0.05, relative_to_ceiling=True).verdicts[0].interval == pytest.approx((0.0, 0.4))
    assert judge(found, 0.05).verdicts[0].interval == pytest.approx((0.19, 0.37))


def test_an_interval_with_an_open_end_is_none():
    assert judge(summary(a=edge(72, interval=(None, 81))), 0.05).verdicts[0].interval is None


def test_verdict_without_interval_has_plain_words():
    assert Verdict("a->b", 0.1, 0.05, None, False, None).words == "FAILS"


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
    assert found["edges"]["base->bad"] == {
        "lost": pytest.approx(0.06),
        "limit": 0.05,
        "interval": pytest.approx([0.03, 0.09]),
        "passed": True,
        "sure": False,
    }
