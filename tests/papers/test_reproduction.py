"""Figures beside the papers': words on agreement and claims follow from planted numbers, pictures from planted rows."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from heredity.papers.beside import BESIDE, CLAIMS, SCALE, Range, figure
from heredity.papers.claims import _joined
from heredity.papers.pictures import draw
from heredity.papers.reproduction import reproduction
from heredity.show.reproduce import write
from heredity.study import Study

TRACKING = Study.of(
    {
        "hook_point": "blocks.0.mlp.hook_post",
        "corpus": {name: {"source": "installed:python-stdlib"} for name in ("english", "lua", "stories")},
        "model": {
            "base": {"train": {"corpora": ["english"]}},
            "lua": {"parent": "base", "corpora": ["lua"]},
            "stories": {"parent": "base", "corpora": ["stories"]},
            "merge": {"merge": {"parents": ["lua", "stories"]}},
        },
        "sae": {"instruments": ["joint", "independent"]},
        "case": {"assignment": {"tokens": ["="]}, "exception": {"tokens": ["except"]}},
    },
    "planted",
)
STITCHING = Study.of(
    {
        "hook_point": "blocks.1.hook_resid_pre",
        "corpus": {"english": {"source": "installed:python-stdlib"}},
        "model": {name: {"train": {"corpora": ["english"], "n_layers": 2}} for name in ("small", "large")},
        "stitch": {"pair": {"source": "small", "target": "large"}},
    },
    "planted",
)
OWN = {"instrument": "independent"}


def edge(name: str, persist: int, ceiling: float | None = 0.9, instrument: str = "independent") -> dict[str, Any]:
    """A row of `edges` by the paper's rule, with 1,000 live features at both ends and ends of intervals 20 away."""
    row = {"instrument": instrument, "edge": name, "rule": "paper", "parent_live": 1000, "child_live": 1000}
    row |= {"ceiling": ceiling, "relative_low": persist / 900 - 0.02, "relative_high": persist / 900 + 0.02}
    for column, count in (("persist", persist), ("disappear", 1000 - persist), ("emerge", 1000 - persist)):
        row |= {column: count, f"{column}_low": count - 20, f"{column}_high": count + 20}
    return row


def verdict(name: str, end: str, lost: int) -> dict[str, Any]:
    """A row of `verdicts` with 400 stable features of 1,000."""
    row = {**OWN, "edge": name, "text": "common", "end": end, "live": 1000, "stable": 400, "changed": 5, "undecided": 5}
    return row | {"lost": lost, "lost_share_low": lost / 400 - 0.02, "lost_share_high": lost / 400 + 0.02}


LINEAGE = {
    "saes": [
        {**OWN, "seed": 0, "model": name, "d_sae": 16_384, "tokens": 15_000_000, "l0": 40.0 if name == "lua" else 30.0}
        | {"mse": 0.005, "ce_loss_recovered": 0.9, "dead_share": 0.01, "l1_coefficient": 3e-4}
        for name in ("base", "lua", "stories", "merge")
    ],
    "edges": [edge("base->lua", 60), edge("base->stories", 60), edge("lua->merge", 900), edge("stories->merge", 500)],
    "verdicts": [verdict("base->lua", "parent", 300), verdict("base->lua", "child", 0)],
    "references": [{**OWN, "edge": "base->lua", "text": "common", "reference": "sham", "lost": 1, "stable": 400}],
    "reach": [{**OWN, "model": "base", "rule": "paper", "features": 959}],
    "merge_accuracy": [
        {
            "model": "merge",
            "corpus": "lua",
            "beside": beside,
            "relative": value,
            "relative_low": low,
            "relative_high": high,
        }
        for beside, value, low, high in (("specialist", -0.16, -0.25, -0.08), ("base", 0.6, 0.5, 0.7))
    ],
    "merge_methods": [
        {"model": "merge", "method": name, "corpus": "lua", "taken": name == "slerp", "points": points}
        for name, points in (("slerp", 0.0), ("ties", -3.0), ("linear", 0.5))
    ],
    "flow": [
        {**OWN, "model": "merge", "rule": "paper", "origin": origin, "features": count, "live": 2000}
        for origin, count in (("from_base", 481), ("emerged_in_lua", 700), ("emerged_in_stories", 29), ("novel", 790))
    ],
    "flow_links": [
        {**OWN, "source": source, "model": "merge", "rule": "paper", "origin": origin, "features": count, "shared": 0}
        for source, origin, count in (("lua", "base", 481), ("lua", "lua", 419), ("stories", "stories", 310))
    ],
    "merges": [{"model": "merge", "t": 0.4, "t_low": 0.39, "t_high": 0.41}],
    "sweeps": [
        {"model": "merge", "t": t, "parent": parent, "accuracy": a, "accuracy_low": a - 0.01, "accuracy_high": a + 0.01}
        for t, one, two in ((0.0, 0.5, 0.1), (0.5, 0.3, 0.3), (1.0, 0.1, 0.5))
        for parent, a in (("lua", one), ("stories", two))
    ],
    "cases": [{**OWN, "case": "assignment", "model": "base", "llr": 7.0, "base_rate": 0.01}],
}


def told(found: list[dict[str, Any]], what: str, about: str) -> list[dict[str, Any]]:
    """Rows of one figure by the paper's instrument."""
    return [row for row in found if (row["what"], row["about"]) == (what, about) and row["instrument"] != "joint"]


@pytest.mark.parametrize(
    ("published", "here", "ends", "factor", "word"),
    [
        (0.5, 0.52, (None, None), 1.04, "agrees"),
        (0.5, 0.7, (0.4, 0.9), 1.4, "agrees"),
        (0.5, 0.7, (0.6, 0.8), 1.4, "near"),
        (0.5, 0.1, (None, None), 0.2, "differs"),
        (-0.2, 0.2, (None, None), None, "differs"),
        (0.0, 0.2, (None, None), None, "differs"),
        (Range(25, 35), 30, (None, None), None, "inside"),
        (Range(25, 35), 70, (None, None), 2.0, "above"),
        (Range(0.88, None), 0.44, (None, None), 0.5, "not met"),
        ("drawn", 0.4, (None, None), None, ""),
        (Range(None, 0.0), -0.1, (-0.5, 0.2), None, "cannot tell"),
        (Range(None, 0.0), -0.1, (-0.5, -0.01), None, "met"),
        (0.5, None, (None, None), None, "not measured"),
    ],
)
def test_words_on_agreement_follow_from_the_numbers(published, here, ends, factor, word):
    row = figure(1, "T 1", "what", "about", "number", published, here, ends)
    assert row["agreement"] == word
    assert row["factor"] == (None if factor is None else pytest.approx(factor))


def test_the_first_papers_own_counts_agree_with_themselves():
    found = reproduction(TRACKING, LINEAGE)
    assert found.paper == "tracking"
    for table, own in ((SCALE, found.scale), (BESIDE, found.beside_paper), (CLAIMS, found.claims)):
        table.check(own)
    for what, about, here in (
        ("base's features that persist into a fine-tune", "base in lua or stories", "5.9 % (959)"),
        ("merge's features that trace to a fine-tune", "merge", "7.4 % (1,210)"),
        ("of these, emerged in a fine-tune", "merge", "4.4 % (729)"),
        ("of these, from the base", "merge", "2.9 % (481)"),
    ):
        (row,) = told(found.beside_paper, what, about)
        assert (row["here"], row["agreement"]) == (here, "agrees")
    assert [row["agreement"] for row in told(found.beside_paper, "mean L0", "lua")] == ["above"]
    (llr,) = told(found.beside_paper, "LLR of assignment", "base")
    assert llr["agreement"] == "agrees" and llr["remark"] == "at most 4.6 in this text"
    words = {(row["element"], row["about"]): row["agreement"] for row in found.beside_paper}
    assert (words[33, "lua"], words[34, "lua"], words[34, "stories"]) == ("agrees", "differs", "not measured")
    assert (words[35, "ties on lua"], words[35, "linear on lua"]) == ("met", "not met") and (
        35,
        "slerp on lua",
    ) not in words
    lacking = [row for row in found.beside_paper if row["instrument"] == "joint"]
    assert lacking and {row["agreement"] for row in lacking} == {"not measured"}


def test_claims_stand_or_fall_with_whole_intervals_and_name_their_reference():
    claims = {(row["claim"], row["about"]): row for row in reproduction(TRACKING, LINEAGE).claims}
    lost = "most features disappear in fine-tuning"
    row = claims[lost, "r > 0.8, independent"]
    assert row["stands"] == "yes (beyond the ceiling: yes)"
    assert row["reference"] == "10 % in another seed's SAE"
    assert claims[lost, "verdicts, independent"]["stands"] == "yes"
    assert "0.2 % in sham" in claims[lost, "verdicts, independent"]["reference"]
    new = "few features emerge in fine-tuning"
    assert claims[new, "r > 0.8, independent"]["stands"] == "no"
    assert claims[new, "verdicts, independent"]["stands"] == "yes"
    more = "more of the merge's features emerged in a fine-tune than come from the base"
    assert claims[more, "r > 0.8, independent"]["stands"] == "yes"
    undecided = {**LINEAGE, "verdicts": [verdict("base->lua", "child", 0) | {"undecided": 210}]}
    doubted = {(row["claim"], row["about"]): row for row in reproduction(TRACKING, undecided).claims}
    assert doubted[new, "verdicts, independent"]["stands"] == "cannot tell", "half of the features are undecided"
    half = reproduction(TRACKING, {**LINEAGE, "edges": [edge("base->lua", 500, ceiling=0.5)]}).claims
    assert {row["stands"] for row in half if row["claim"] == lost and row["about"].startswith("r")} == {"cannot tell"}


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (["no", "no"], "no"),
        (["no", "yes"], "lua no; stories yes"),
        (
            ["82 % [81–83 %] of the live", "9 % [8–9.9 %] of the live"],
            "lua 82 % [81–83 %]; stories 9 % [8–9.9 %] of the live",
        ),
        (["0 % [0–0.6 %] lost, 1 % changed", "1 % lost"], "lua 0 % [0–0.6 %] lost, 1 % changed; stories 1 % lost"),
        (["74 %", "73 %"], "lua 74 %; stories 73 %"),
    ],
)
def test_a_claim_asked_of_two_edges_is_one_row(values, told):
    assert _joined(list(zip(("lua", "stories"), values, strict=True))) == told


def test_the_second_papers_figures_are_held_to_the_range_of_its_pairs():
    key = {"stitch": "pair"}
    tables = {
        "stitch_maps": [{**key, "source_width": 128, "target_width": 256}],
        "stitched_models": [{**key, "way": "up", "increase": 0.2}, {**key, "way": "down", "increase": 0.5}],
        "savings_by_level": [
            {**key, "arm": "transferred", "d_sae": 2048, "level": 0.9, "saved_flops": 0.4, "saved_seconds": -0.1}
            | {"saved_flops_with_source": -1.0, "never": ""}
        ],
    }
    found = reproduction(STITCHING, tables)
    assert found.paper == "stitching"
    for table, own in ((SCALE, found.scale), (BESIDE, found.beside_paper), (CLAIMS, found.claims)):
        table.check(own)
    words = {row["what"]: row["agreement"] for row in found.beside_paper}
    assert words["loss added: small to large"] == "inside" and words["loss added: large to small"] == "above"
    assert words["FLOPs saved at a variance of 0.90"] == "inside"
    assert [row["stands"] for row in found.claims] == ["yes in FLOPs, no in seconds"] and "-100 %" in found.claims[0][
        "limit"
    ]


def test_a_paper_that_the_study_does_not_follow_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"--paper nature: must be tracking or stitching"):
        reproduction(TRACKING, LINEAGE, "nature")
    with pytest.raises(ValueError, match=r"no merge of two fine-tunes.*--paper stitching"):
        reproduction(STITCHING, {}, "tracking")
    with pytest.raises(ValueError, match=r"no stitch that has been run.*--paper tracking"):
        reproduction(TRACKING, LINEAGE, "stitching")


def test_a_text_goes_nowhere_but_into_a_file_of_its_kind_and_can_do_without_pictures(tmp_path: Path, monkeypatch):
    run = SimpleNamespace(study=TRACKING, name="planted", seconds=1.0, peak_memory_gib=1.0, tables={})
    found = reproduction(TRACKING, LINEAGE)
    (tmp_path / "folder.md").mkdir()
    for name, fault in (("beside.toml", "is no .md file"), ("folder.md", "is a folder")):
        with pytest.raises(ValueError, match=fault):
            write(run, found, tmp_path / name)  # pyright: ignore[reportArgumentType]
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install" in write(run, found, tmp_path / "my study (1).md")  # pyright: ignore[reportArgumentType]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.md", "my study (1).md"]
    monkeypatch.undo()
    pytest.importorskip("matplotlib")
    run.tables = {name: pa.Table.from_pylist(rows) for name, rows in LINEAGE.items()}
    assert write(run, found, tmp_path / "my study (1).md") == ""  # pyright: ignore[reportArgumentType]
    assert "](my%20study%20%281%29_pictures/01.svg)" in (tmp_path / "my study (1).md").read_text()
    assert (tmp_path / "my study (1)_pictures" / "01.svg").is_file()


def test_pictures_are_drawn_of_what_there_is_and_the_same_each_time(tmp_path: Path):
    pytest.importorskip("matplotlib")
    drawn = draw(TRACKING, "tracking", LINEAGE, tmp_path / "a")
    assert list(drawn) == ["Flow of what persists, independent SAEs, r > 0.8 (Figure 2)", "Accuracy along t (Figure 5)"]
    flow, sweep = (file.read_text(encoding="utf-8") for file in drawn.values())
    assert "60 (6 %)" in flow and "merge" in flow and "paper: t = 0.58" in sweep
    again = draw(TRACKING, "tracking", LINEAGE, tmp_path / "b")
    assert [file.read_bytes() for file in again.values()] == [file.read_bytes() for file in drawn.values()]
