"""What the command line prints: every count with its interval, in a width that terminals have."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from heredity.report import console, terminal
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
    assert "runs/demo/explanations/some-model" in text
    plain = _printed(monkeypatch, 120, terminal.print_explained, _FOUND | {"ledger": None, "complete": True})
    assert "$1.50" not in plain and "not complete" not in plain


def test_an_estimate_says_what_it_would_take_at_most(monkeypatch):
    most = {"requests": 1_200, "tokens_in": 500_000, "tokens_out": 60_000, "cost": 2.5}
    asked = {"study": "demo", "judge": "some-model", "features": 40, "at_most": most}
    text = _printed(monkeypatch, 120, terminal.print_explained, asked)
    assert "at most 1,200 requests, 500,000 tokens in, 60,000 out, $2.50" in text
