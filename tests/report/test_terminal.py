"""What the command line prints: every count with its interval, in a width that terminals have."""

from __future__ import annotations

import re
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from heredity.report import console, said, terminal
from report import sample


@pytest.fixture(scope="module")
def joint():
    return sample.joint_view().summary


def _printed(monkeypatch: pytest.MonkeyPatch, width: int, show, *what) -> str:
    out = StringIO()
    monkeypatch.setattr(console, "out", Console(highlight=False, width=width, file=out))
    show(*what)
    return out.getvalue()


def test_edges_fit_a_hundred_columns_with_intervals_and_the_papers_count(monkeypatch, joint):
    text = _printed(monkeypatch, 100, terminal.print_summary, joint, "page")
    edge = joint.edges["stories->cpp_stories"]
    low, high = edge.intervals["persist"]
    (line,) = [line for line in text.splitlines() if "stories->cpp_stories" in line and f"{edge.persist:,}" in line]
    assert f"{edge.persist:,} ({edge.persist / edge.parent_live:.0%}) [{low:,.0f}–{high:,.0f}]" in line
    assert f"{edge.paper.persist / edge.parent_live:.0%}" in line
    assert f"{edge.threshold:.2f}" in line and f"{edge.disappear:,}" in line and f"{edge.emerge:,}" in line
    assert "between chance and 1; one SAE reads all models" in text
    assert "between chance and two SAEs of one model" in text
    assert "Between seeds" in text


def test_a_narrow_terminal_folds_rather_than_cuts(monkeypatch, joint):
    text = _printed(monkeypatch, 80, terminal.print_summary, joint, "page")
    edge = joint.edges["base->cpp"]
    assert f"{edge.persist:,}" in text and f"[{edge.intervals['persist'][0]:,.0f}–" in text
    assert "…" not in text


def test_a_study_without_edges_prints_no_table_of_them(monkeypatch):
    text = _printed(monkeypatch, 100, terminal.print_summary, sample.single_view().summary, "page")
    assert "along every edge" not in text


def test_track_prints_both_thresholds_both_denominators_and_the_warning(monkeypatch):
    edge = sample.sample_view().summary.edges["base->cpp"]
    text = _printed(monkeypatch, 120, terminal.print_edge, edge.model_dump())
    (line,) = [line for line in text.splitlines() if line.strip().startswith("persist ") and "[" in line]
    assert edge.paper is not None and edge.parent_features is not None
    for shown in (edge.persist, edge.paper.persist):
        assert f"{shown:,}" in line
    for whole in (edge.parent_live, edge.parent_features):
        assert f"{edge.persist / whole:.1%}" in line
    assert "beware of token types" in text and "better than chance" in text
    without = _printed(monkeypatch, 120, terminal.print_edge, edge.model_dump() | {"ceiling": None, "relative": None})
    assert "ceiling not measured" in without


def test_one_sae_for_all_is_not_compared_with_itself(monkeypatch, joint):
    edge = joint.edges["base->cpp"].model_dump()
    assert "decoder cosine" not in _printed(monkeypatch, 120, terminal.print_edge, edge)
    other = sample.sample_view().summary.edges["base->cpp"].model_dump()
    assert "decoder cosine" in _printed(monkeypatch, 120, terminal.print_edge, other)


def test_kinds_of_features_and_scores_of_explanations_fit_a_hundred_columns(monkeypatch):
    summary = sample.sample_view().summary
    text = _printed(monkeypatch, 100, terminal.print_summary, summary, "page")
    assert summary.classes is not None and summary.explained is not None
    edge = summary.classes.edges["base->cpp"]
    fates = (edge.persist, edge.disappear, edge.emerge)
    shares = " / ".join(f"{100 * (fate.groups['punctuation'].share or 0):.0f}" for fate in fates)
    kinds = text[text.index("Kinds of features") : text.index("Simulation scores")]
    (line,) = [line for line in kinds.splitlines() if line.strip().startswith("base->cpp ")]
    assert shares in line and " / ".join(f"{fate.judged:,}" for fate in fates) in line
    found = summary.explained.edges["base->cpp"]
    scores = text[text.index("Simulation scores") :]
    (line,) = [line for line in scores.splitlines() if line.strip().startswith("base->cpp ")][:1]
    assert f"{found.persisting.median:.3f}" in line and f"{found.effect:.0%}" in line and "<0.001" in line
    assert "by statistics of the text" in scores and "into cpp_stories" in scores
    assert "710 keep it, 90 explained anew; 710 explanations saved" in scores
    tables = (kinds.partition("case ")[0], scores[: scores.index("medians of")])
    assert max(len(line) for table in tables for line in table.splitlines()) <= 100 and "…" not in text


_FOUND = {
    "study": "demo",
    "judge": "some-model",
    "out": "runs/demo/explanations/some-model",
    "features": 12,
    "explained": 7,
    "carried": 6,
    "kept": 5,
    "re_explained": 1,
    "failed": 1,
    "too_rare": 2,
    "saved": 5,
    "saved_cost": 0.25,
    "failures": {"no_json": 1},
    "median_simulation": 0.4321,
    "ledger": {
        "requests": 90,
        "cached": 3,
        "failures": {},
        "tokens_in": 12_345,
        "tokens_out": 678,
        "cost": 1.5,
        "cost_by_feature": {},
        "reasons": {"refused": "HTTP 401: bad\x1bkey"},
        "by_question": {},
        "cost_by_question": {},
    },
    "complete": False,
    "examples": [
        {
            "feature": "cpp/7",
            "description": "the token [bold]=[/bold]",
            "origin": "base/12",
            "carried": True,
            "simulation": 0.5,
            "failure": "",
        },
        {
            "feature": "cpp/8",
            "description": None,
            "origin": "cpp/8",
            "carried": False,
            "simulation": None,
            "failure": "no_json",
        },
    ],
}


def test_explanations_are_printed_with_their_origin_and_what_they_cost(monkeypatch):
    text = _printed(monkeypatch, 120, terminal.print_explained, _FOUND)
    (line,) = [line for line in text.splitlines() if line.strip().startswith("cpp/7")]
    assert "0.500" in line and "from base/12" in line
    assert "the token [bold]=[/bold]" in line, "descriptions are text, not markup"
    assert "none: no json" in text and "5 explanations saved ($0.25)" in text and "no json 1" in text
    assert "12,345 tokens in" in text and "$1.50" in text and "run the same command to go on" in text
    assert "refused: HTTP 401: bad␛key" in text
    assert "runs/demo/explanations/some-model" in text
    plain = _printed(monkeypatch, 120, terminal.print_explained, _FOUND | {"ledger": None, "complete": True})
    assert "$1.50" not in plain and "not complete" not in plain


def test_an_estimate_says_what_it_would_take_at_most(monkeypatch):
    most = {"requests": 1_200, "tokens_in": 500_000, "tokens_out": 60_000, "cost": 2.5}
    asked = {"study": "demo", "judge": "some-model", "features": 40, "at_most": most}
    text = _printed(monkeypatch, 120, terminal.print_explained, asked)
    assert "at most 1,200 requests; about 500,000 tokens in and 60,000 out for all of them, $2.50" in text


def _shown() -> dict[str, Any]:
    """A feature of ` =` as `heredity show --json` gives it: it fires twice in every block but one."""
    words = ["int", "       ", " [bold]x[/bold]", "\t", " =", "\n", "\x1b[2J", "1"]
    tokens = [*("so" for _ in range(40)), *words, *("on" for _ in range(40))]
    values = [4.5 * (place == 44) + 0.5 * (place == 47) for place in range(len(tokens))]
    example = {"corpus": "cpp", "tokens": tokens, "position": 44, "values": values}
    quiet = {"corpus": "stories", "tokens": ["Once", " upon", "\n"] * 29}
    return {
        "study": "demo",
        "model": "base",
        "feature": 7,
        "positions": 10_000,
        "class": {"class": "operator", "single_token": True, "domain": "cpp", "domain_share": 0.98, "top_token": " ="},
        "explanation": {
            "description": 'the token " [b]=[/b]\x1b"',
            "by": "offline",
            "origin_model": "old",
            "origin_feature": 3,
            "carried": True,
            "re_explained": False,
            "simulation": 0.876,
            "detection": 0.9,
            "fuzzing": None,
            "intruder": 0.25,
            "failure": "",
            "on_the_spot": False,
        },
        "firings": 1_234,
        "density": 0.1234,
        "max": 4.5,
        "histogram": [800, 400, 0, 1, 33],
        "tokens": [{"token": " =", "share": 0.975, "firings": 1_200, "mean": 2.25, "fired": 0.5}],
        "promoted": [{"token": "\n\n", "weight": 1.5}],
        "suppressed": [{"token": " the", "weight": -0.75}],
        "no_logits": "",
        "matches": [
            {"edge": "base->cpp", "model": "cpp", "feature": 9, "r": 0.91, "threshold": 0.5, "persists": True},
            {"edge": "base->lua", "model": "lua", "feature": None, "r": None, "threshold": 0.5, "persists": False},
        ],
        "family": [
            {"model": "base", "feature": 7, "r": None, "via": None, "density": 0.1234, "max": 4.5},
            {"model": "cpp", "feature": 9, "r": 0.91, "via": "base", "density": 0.2, "max": 3.75},
        ],
        "top": [example | {"family": {"cpp": [0.0] * 44 + [3.125] + [0.0] * 43}}] * 8,
        "levels": [{"low": place / 2, "high": place / 2 + 0.5, "examples": [example] * 3} for place in range(9)],
        "drawn": [example] * 8,
        "silent": [quiet] * 8,
    }


def test_a_feature_is_shown_whole_in_a_hundred_columns(monkeypatch):
    text = _printed(monkeypatch, 160, said.print_shown, _shown(), 5)
    assert max(map(len, text.splitlines())) <= 100
    for shown in (
        "base/7  operator, nearly all on ␣=, 98% in cpp",
        'the token " [b]=[/b]␛"',
        "simulation 0.88, detection 0.90, intruder 0.25, by offline, handed down from old/3",
        "fires on 12.340% of 10,000 tokens of the sample (1,234), at most 4.50",
        "0 █▄ ▁▁ 4.50  fullest bin 800",
    ):
        assert shown in text
    (line,) = [line for line in text.splitlines() if line.strip().startswith("␣=")]
    assert line.split() == ["␣=", "97.5%", "1,200", "2.25", "50%", "↵↵", "+1.50", "␣the", "-0.750"]
    rows = {line.split()[0]: line for line in text.splitlines() if "->" in line}
    assert "cpp/9" in rows["base->cpp"] and "0.910" in rows["base->cpp"] and "does not" not in rows["base->cpp"]
    assert "none" in rows["base->lua"] and "does not persist" in rows["base->lua"]
    assert [line.split()[2:] for line in text.splitlines() if line.strip().startswith("cpp/9 ")] == [
        ["base", "20.000%", "3.75"]
    ]


def test_examples_line_up_show_what_is_active_and_never_act_on_the_terminal(monkeypatch):
    text = _printed(monkeypatch, 100, said.print_shown, _shown(), 5)
    lines = [line for line in text.splitlines() if "«␣=»" in line]
    assert len(lines) == 5 + 9 + 5, "of the nine intervals one each"
    assert len({line.index("«␣=»") for line in lines}) == 1
    assert all("int␣×7 [bold]x[/bold]→«␣=»↵␛[2J«1»on" in line and line.count("…") == 2 for line in lines)
    assert "\x1b" not in text and text.count("cpp 3.12") == 5
    assert sum("Once upon↵Once" in line for line in text.splitlines()) == 5
    more = _printed(monkeypatch, 100, said.print_shown, _shown(), 8)
    assert more.count("«␣=»") == 8 + 9 + 8
    assert _printed(monkeypatch, 100, said.print_shown, _shown(), 20).count("«␣=»") == 8 + 3 * 9 + 8


def test_color_sets_off_active_tokens_the_strongest_most(monkeypatch):
    out = StringIO()
    colored = Console(highlight=False, width=100, file=out, force_terminal=True, color_system="truecolor")
    monkeypatch.setattr(console, "out", colored)
    said.print_shown(_shown(), 1)
    text = out.getvalue()
    assert "«" not in text and "\x1b[2J" not in text
    strong, weak = (
        re.findall(r"\x1b\[([0-9;]+)m" + token + r"\x1b", text[text.index("Where") :]) for token in ("␣=", "1")
    )
    assert strong and weak and len(set(strong)) == len(set(weak)) == 1 and set(strong) != set(weak)


def test_a_feature_that_never_fires_says_so_and_what_is_not_known_too(monkeypatch):
    silent = {"class": "silent", "single_token": False, "domain": None, "domain_share": None, "top_token": None}
    unexplained = {"description": None, "failure": "too_rare", "on_the_spot": True, "carried": False}
    found = _shown() | {
        "class": silent,
        "explanation": _shown()["explanation"] | unexplained,
        "firings": 0,
        "max": 0.0,
        "no_logits": "the model has no head",
        **{name: [] for name in ("tokens", "promoted", "suppressed", "matches", "family", "top", "drawn")},
        "levels": [{"low": 0.0, "high": 0.0, "examples": []}] * 10,
    }
    text = _printed(monkeypatch, 100, said.print_shown, found, 5)
    assert "base/7  silent" in text and "no description: too rare" in text and "never fires on 10,000" in text
    assert "not known: the model has no head" in text and "Text where it is silent" in text
    assert "Where it is strongest" not in text and "Best match" not in text
    assert "run the study until classes" in _printed(monkeypatch, 100, said.print_shown, found | {"class": None}, 5)
