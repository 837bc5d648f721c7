"""The gate lets through what the evidence shows to be within the limit, stops what it shows to be beyond it, and says
where it cannot tell."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from heredity.analyses.analysis import Statement
from heredity.analyses.verdict_findings import FEW_STABLE
from heredity.cli import app, study
from heredity.show.gate import doubts_of, judge, judge_matches, limit_of, line_of
from heredity.study import StudyConfig

Row = dict[str, Any]


def judged_edge(name: str, lost: float, low: float, high: float, **counts: int) -> Row:
    """A row of the table `verdicts` of an edge from `base`, of its parent."""
    row = {"instrument": "parent", "edge": f"base->{name}", "text": "common", "end": "parent"}
    row |= {"live": 1000, "stable": 600, "undecided": 6} | counts
    return row | {"lost_share": lost, "lost_share_low": low, "lost_share_high": high}


VERDICTS = [
    judged_edge("good", 0.01, 0.004, 0.02),
    judged_edge("doubtful", 0.04, 0.03, 0.06),
    judged_edge("bad", 0.09, 0.07, 0.12),
]


def verdict(row: Row, limit: float = 0.05) -> Row:
    """Of one edge."""
    (found,) = judge("s", [row], [row["edge"]], limit)["edges"].values()
    return found


def edge(name: str, persist: int, live: int = 100, ceiling: float | None = 0.9, **intervals: Any) -> Row:
    """A row of the table `edges` of an edge from `base`; intervals: of `persist` or `relative`."""
    row = {"instrument": "parent", "rule": "evidence", "edge": f"base->{name}"}
    row |= {"parent_live": live, "persist": persist, "ceiling": ceiling}
    for column, (low, high) in intervals.items():
        row |= {f"{column.rstrip('_')}_low": low, f"{column.rstrip('_')}_high": high}
    return row


def by_matches(row: Row, limit: float = 0.05, **options: Any) -> Row:
    """Of one edge, by matches."""
    (found,) = judge_matches("s", [row], limit, **options)["edges"].values()
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


@pytest.mark.parametrize(("limit", "words"), [(0.05, ("pass", "undecided", "fail")), (0.2, ("pass",) * 3)])
def test_the_whole_interval_decides(limit: float, words: tuple[str, ...]):
    found = judge("s", VERDICTS, [row["edge"] for row in VERDICTS], limit)
    assert tuple(one["verdict"] for one in found["edges"].values()) == words
    assert found["verdict"] == ("fail" if "fail" in words else "pass") and found["passed"] == (words[-1] == "pass")
    some = judge("s", VERDICTS, [row["edge"] for row in VERDICTS], limit, ["base->doubtful", "base->doubtful"])
    assert list(some["edges"]) == ["base->doubtful"] and some["verdict"] == words[1]


def test_an_interval_that_ends_at_the_limit_passes_and_one_that_begins_there_is_undecided():
    assert verdict(judged_edge("a", 0.03, 0.01, 0.1 + 0.2), 0.3)["verdict"] == "pass", "whatever the rounding"
    assert verdict(judged_edge("a", 0.4, 0.1 + 0.2, 0.5), 0.3)["verdict"] == "undecided"
    assert verdict(judged_edge("a", 0.0, -1e-19, 0.01))["interval"] == (0.0, 0.01)


@pytest.mark.parametrize(
    ("row", "why", "mend"),
    [
        (judged_edge("a", 0.04, 0.03, 0.06), "the interval includes the limit", "sae.tokens"),
        (judged_edge("a", 0.0, 0.0, 0.06), "none is lost, but 600 features cannot show less than 6 %", "above it"),
        (judged_edge("a", 0.04, 0.03, 0.06, undecided=100), "the interval includes the limit", "verdicts.tokens"),
        (
            judged_edge("a", 0.01, 0.0, 0.02, undecided=25),
            "if the 25 undecided features are lost too, it is 5.2 %",
            "verdicts.tokens",
        ),
        (
            judged_edge("a", 0.5, 0.4, 0.6, stable=299),
            "only 299 of 1,000 (30 %) live features are stable",
            "sae.tokens",
        ),
        (judged_edge("a", 0.0, 0.0, 0.01, stable=299), "only 299 of 1,000", "sae.tokens"),
        (
            judged_edge("a", 0.9, 0.8, 1.0, live=40, stable=29),
            "only 29 features are stable, fewer than 30",
            "sae.tokens",
        ),
    ],
)
def test_what_the_evidence_does_not_carry_is_undecided_and_says_what_would_help(row: Row, why: str, mend: str):
    found = verdict(row)
    assert found["verdict"] == "undecided" and found["why"].startswith(why) and mend in found["mend"]
    line = line_of("base->a", found)
    assert line.startswith("base->a: cannot tell; lost ") and "limit 5 %" in line
    assert line.endswith(f"{found['why']}; {found['mend']}")


def test_an_edge_whose_planted_losses_are_not_found_cannot_pass_but_can_fail():
    rows, names = VERDICTS, [row["edge"] for row in VERDICTS]
    blind = judge("s", rows, names, 0.05, removals=dict.fromkeys(names, (8, 3)))["edges"]
    assert [one["verdict"] for one in blind.values()] == ["undecided", "undecided", "fail"]
    assert blind["base->good"]["why"] == "of 8 features taken out of the parent on purpose, only 3 are called lost"
    seeing = judge("s", rows, names, 0.05, removals=dict.fromkeys(names, (8, 4)))["edges"]
    assert [one["verdict"] for one in seeing.values()] == ["pass", "undecided", "fail"]


def test_an_edge_without_verdicts_or_stable_features_is_undecided():
    found = judge("s", [], ["base->a"], 0.05)
    assert found["verdict"] == "undecided" and not found["passed"]
    assert "loss not measured" in line_of("base->a", found["edges"]["base->a"])
    nan = float("nan")
    none = verdict(judged_edge("a", 0.0, nan, nan, stable=0, undecided=0))
    assert none["interval"] is None and none["verdict"] == "undecided"
    few = judged_edge("a", 0.0, 0.0, 0.01, stable=round(FEW_STABLE * 1000))
    assert verdict(few)["verdict"] == "pass", "at the share from which on notes are silent"


def test_a_line_says_loss_interval_limit_and_verdict():
    lines = [line_of(row["edge"], verdict(row)) for row in VERDICTS]
    assert lines[0] == "base->good: passes; lost 1 % (95 % CI 0.4–2 %) of 600 stable features, 6 undecided; limit 5 %"
    assert lines[2] == "base->bad: FAILS; lost 9 % (95 % CI 7–12 %) of 600 stable features, 6 undecided; limit 5 %"


def test_by_matches_an_edge_passes_up_to_the_limit_and_fails_beyond_it():
    rows = [edge("less", 96), edge("just", 95), edge("more", 94)]
    found = judge_matches("s", rows, 0.05)
    lost = {"base->less": (0.04, True), "base->just": (0.05, True), "base->more": (0.06, False)}
    assert {name: (one["lost"], one["verdict"] == "pass") for name, one in found["edges"].items()} == lost
    assert found["verdict"] == "fail" and judge_matches("s", rows[:2], 0.05)["verdict"] == "pass"
    some = judge_matches("s", rows, 0.05, ["base->just", "base->just"])
    assert list(some["edges"]) == ["base->just"] and some["verdict"] == "pass", (
        "only those that are asked for, and each once"
    )


@pytest.mark.parametrize("live", [3, 7, 49, 1000, 4096])
def test_a_loss_of_exactly_the_limit_passes_whatever_the_rounding(live: int):
    for lost in range(0, live + 1, max(1, live // 50)):
        for ceiling in (1.0, 0.9, 0.7):
            row = edge("a", live - lost, live, ceiling)
            assert by_matches(row, lost / live)["verdict"] == "pass"
            assert by_matches(row, max(0.0, 1 - (1 - lost / live) / ceiling), relative=True)["verdict"] == "pass"
            assert lost == 0 or by_matches(row, (lost - 0.5) / live)["verdict"] == "fail"


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
        by_matches(row, **options)
    with pytest.raises(ValueError, match="study s has no parent -> child edge"):
        judge("s", [], [], 0.05)


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
    found = by_matches(row, relative=relative)
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
def test_by_matches_a_verdict_is_sure_when_the_whole_interval_stands_on_its_side_of_the_limit(only_sure, words):
    found = judge_matches("s", INTERVALS, 0.05, only_sure=only_sure)["edges"]
    lines = [line_of(name, one) for name, one in found.items()]
    assert [line.split(": ", 1)[1].split("; ")[0] for line in lines] == list(words)
    assert [one["verdict"] == "pass" for one in found.values()] == [word.startswith("passes") for word in words]
    assert line_of("a", by_matches(edge("a", 90))) == "a: FAILS; lost 10 % of live features; limit 5 %"


def test_by_matches_nothing_is_sure_where_the_saes_are_unusable():
    judged = [judged_edge("good", 0, 0, 0), judged_edge("worse", 0, 0, 0, stable=200), judged_edge("bad", 0, 0, 0)]
    doubts = doubts_of([judged, [{"model": "bad", "explained_variance": 0.5}]])
    assert set(doubts) == {"base->worse", "base->bad"}
    found = judge_matches("s", INTERVALS, 0.05, only_sure=True, doubts=doubts)["edges"]
    assert [found[f"base->{name}"]["sure"] for name in ("good", "worse", "bad")] == [True, False, False]
    assert found["base->worse"]["verdict"] == "pass", "a failure that is not sure"
    line = line_of("base->worse", found["base->worse"])
    assert "(not sure)" in line and "only 200 of 1,000 (20 %) live features are stable; train the SAEs longer" in line
    assert "the SAE of bad explains only 0.50" in line_of("base->bad", found["base->bad"])


@pytest.fixture
def command(monkeypatch):
    """The command on made-up edges, as if that study had been run."""
    paper = [row | {"rule": "paper", "persist": 0} for row in INTERVALS]
    joint = [row | {"instrument": "joint", "persist": 0} for row in INTERVALS]
    other = [row | {"end": "child", "lost_share_low": 0.9} for row in VERDICTS]
    own = [judged_edge("good", 0.3, 0.2, 0.4) | {"text": "own"}]
    tables = {"edges": [*INTERVALS, *paper, *joint], "verdicts": [*VERDICTS, *other, *own]}
    edges = [SimpleNamespace(name=row["edge"]) for row in VERDICTS]
    said = [Statement("base", "note", "train longer"), Statement("base", "lost", "much")]
    run = SimpleNamespace(
        name="s",
        tables={name: pa.Table.from_pylist([row | {"site": SITE} for row in rows]) for name, rows in tables.items()},
        study=SimpleNamespace(
            instrument="parent",
            site=SITE,
            descent=edges,
            edges=edges,
            config=StudyConfig(hook_point=SITE, corpus={}, model={}),
            text_corpora=lambda edge, text: text == "common" or edge.name == "base->good",
        ),
        statements=said,
    )
    monkeypatch.setattr(study, "complete", lambda *_: run)
    environment = {"COLUMNS": "120", "TERM": "dumb", "NO_COLOR": "1"}
    return lambda *words: CliRunner().invoke(app, ["gate", "s.toml", *words], env=environment)


SITE = "blocks.0.mlp.hook_post"
DOUBTFUL = ("--max-lost", "5%", "--edge", "base->doubtful")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--max-lost", "25%"), 0),
        (("--max-lost", "10%", "--text", "own", "--edge", "base->good"), 1),
        (("--max-lost", "40%", "--text", "own"), 0),
        (("--max-lost", "5%"), 1),
        (("--max-lost", "5%", "--undecided", "pass"), 1),
        (DOUBTFUL, 3),
        ((*DOUBTFUL, "--undecided", "pass"), 0),
        ((*DOUBTFUL, "--undecided", "fail"), 1),
        ((*DOUBTFUL, "--by", "matches"), 0),
        (("--by", "matches", "--max-lost", "5%"), 1),
        (("--by", "matches", "--max-lost", "5%", "--sure", "--edge", "base->bad"), 0),
    ],
)
def test_exit_codes(command, words, code):
    assert command(*words).exit_code == code
    result = command(*words, "--json")
    assert result.exit_code == code and json.loads(result.stdout)["passed"] == (code == 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--max-lost", "-5%"), "--max-lost -5%: is negative"),
        ((*DOUBTFUL, "--by", "energy"), "--by energy: must be verdicts or matches"),
        ((*DOUBTFUL, "--undecided", "maybe"), "--undecided maybe: must be pass or fail"),
        ((*DOUBTFUL, "--sure"), "--sure: by verdicts an edge fails only when the whole interval is over the limit"),
        ((*DOUBTFUL, "--relative-to-ceiling"), "--relative-to-ceiling: verdicts judge stable features only"),
        ((*DOUBTFUL, "--by", "matches", "--undecided", "pass"), "--undecided: by matches no edge is undecided"),
        ((*DOUBTFUL, "--by", "matches", "--text", "own"), "--text: matches are counted on the common text"),
        ((*DOUBTFUL, "--text", "lua"), "--text lua: is none of common, own"),
        ((*DOUBTFUL, "--text", "own"), "--edge base->doubtful: has no text own; edges that have one are base->good"),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name_with_what_replaces_them(command, words, message):
    wrong = command(*words)
    assert wrong.exit_code == 2 and message in wrong.stderr and not wrong.stdout


def test_every_edge_has_a_line_and_notes_go_to_stderr_but_not_beside_json(command):
    result = command("--max-lost", "5%")
    lines = result.stdout.splitlines()
    assert lines[0] == "Stable features of the parent, by verdicts (instrument parent, at blocks.0.mlp.hook_post)"
    assert [line.partition(":")[0] for line in lines[1:4]] == [row["edge"] for row in VERDICTS]
    assert not lines[4:] and result.stderr == "Note: train longer\n"
    assert command("--max-lost", "5%", "--json").stderr == ""


def test_json_is_one_object(command):
    found = json.loads(command(*DOUBTFUL, "--json").stdout)
    assert {name: value for name, value in found.items() if name != "edges"} == {
        "study": "s",
        "instrument": "parent",
        "site": SITE,
        "by": "verdicts",
        "text": "common",
        "verdict": "undecided",
        "passed": False,
        "max_lost": 0.05,
        "undecided": None,
        "notes": ["train longer"],
    }
    numbers = {"lost": 0.04, "interval": [0.03, 0.06], "limit": 0.05, "stable": 600, "undecided": 6}
    words = {"verdict": "undecided", "why": "the interval includes the limit"}
    edge = found["edges"]["base->doubtful"]
    assert edge == {**numbers, **words, "mend": edge["mend"]}
