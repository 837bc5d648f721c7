"""The page and the findings of a stitch: all parts are drawn, say what the summary says, and run nothing."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from functools import cache

import pytest

from heredity.report.headline import headline
from heredity.report.render import render
from heredity.report.stitch import StitchSummary
from heredity.report.stitch_findings import stitch_findings
from heredity.report.view import View
from report import sample, sample_stitch
from report.test_page import CHROMIUM, _browse, _data, _Elements

NODE = shutil.which("node")
_PARTS = 45_000  # bytes that the scripts of stitches may add


def _bare() -> View:
    """A stitch whose maps alone were asked for."""
    view = sample_stitch.stitch_view()
    own = StitchSummary(maps=sample_stitch.maps(), carried={}, beginnings={}, savings=(), probes={})
    return view.model_copy(update={"summary": view.summary.model_copy(update={"stitches": {"pair": own}})})


def _mixed() -> View:
    """A study of a lineage, one of whose edges is a stitch too."""
    view = sample.sample_view()
    own = sample_stitch.stitch()
    joined = own.maps.model_copy(update={"source": "base", "target": "cpp"})
    stitches = {"edge": own.model_copy(update={"maps": joined, "steering": None, "kept": None})}
    return view.model_copy(update={"summary": view.summary.model_copy(update={"stitches": stitches})})


KINDS = {"whole": sample_stitch.stitch_view, "bare": _bare, "mixed": _mixed}


@cache
def _page(kind: str) -> str:
    return render(KINDS[kind]())


@cache
def _drawn(kind: str, folder) -> tuple[str, str]:
    path = folder / f"{kind}.html"
    path.write_text(_page(kind), encoding="utf-8")
    return _browse(path, folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pages")


def _section(dom: str, name: str) -> str:
    start = dom.index(f'<section id="{name}"')
    return dom[start : dom.index("<section id=", start + 1)]


def _text(part: str) -> str:
    return re.sub("<[^>]*>", "", part).replace("\u202f", " ").replace("\u2060", "").replace("\u00a0", " ")


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("kind", KINDS)
def test_browser_draws_every_kind_of_stitch_without_an_error(kind: str, folder):
    dom, log = _drawn(kind, folder)
    assert [line for line in log.splitlines() if "CONSOLE" in line] == []
    sections = re.findall(r'<section id="(\w+)"', dom)
    if kind != "mixed":
        assert sections == ["findings", "graph", "stitches", "models", "method"]
    else:
        assert {"flow", "edges", "stitches", "saes"} <= set(sections)
    part = _section(dom, "stitches")
    charts = re.findall(r'<figure role="group" aria-label="([^"]*)">(.*?)</figure>', part, re.DOTALL)
    assert len(charts) == {"whole": 8, "bare": 2, "mixed": 4}[kind]
    assert all("<svg" in drawn and "NaN" not in drawn for _, drawn in charts)
    assert all(drawn.count('tabindex="0"') == 1 for _, drawn in charts), "one tab stop a chart"
    assert all("a table below holds" in title for title, _ in charts)
    assert "undefined" not in _text(part) and "NaN" not in _text(part)
    graph = _section(dom, "graph")
    assert 'stroke-dasharray="5 4"' in graph and f"stitch {'edge' if kind == 'mixed' else 'pair'}" in _text(graph)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_every_part_of_the_summary_is_on_the_page(folder):
    dom, _ = _drawn("whole", folder)
    part = _text(_section(dom, "stitches"))
    for words in (
        "joint in use",
        "small → large → small4.050+0.8 %30.0 %",
        "folded through the maps2,04832.00.412",
        "thresholds set anew (2,048 features): topk has no thresholds",
        "carried over2,0480.853.1 TFLOP+31 %",
        "turned at random2,0480.93.1 TFLOP−4 %",
        "neverrandom start",
        "neverboth",
        "language: one corpus of code; two are needed",
        "towards python: carried over native 0.82",
        "accuracy of 97.0 %, 95 % interval 95.0 % to 98.0 %",
        "87 % are above 95 % of the random ones; 2.1 % push the other way",
        "structural300",
        "1203small1, 3",
        "carried by the maps1,1601,140",
        "read as it is1,311",
    ):
        assert words in part, words
    assert part.count("→") and "0.91 0.81" in part, "SVCCA beside CKA"


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_what_a_model_wrote_is_text_and_nothing_else(folder):
    dom, _ = _drawn("whole", folder)
    assert html.escape(sample_stitch.EVIL, quote=False) in dom
    assert "img" not in [tag for tag, _ in _Elements(_page("whole")).tags]
    assert "<img" not in dom[: dom.index('id="data"')]
    assert "was\n\there" in dom


@pytest.mark.skipif(NODE is None, reason="needs node")
def test_script_with_stitches_is_valid_javascript(tmp_path):
    path = tmp_path / "page.js"
    path.write_text(re.findall(r"<script>(.*?)</script>", _page("whole"), re.DOTALL)[0], encoding="utf-8")
    subprocess.run([str(NODE), "--check", str(path)], check=True, timeout=60)


def test_a_study_without_stitches_carries_none_of_their_script():
    without = re.findall(r"<script>(.*?)</script>", render(sample.single_view()), re.DOTALL)[0]
    whole = re.findall(r"<script>(.*?)</script>", _page("whole"), re.DOTALL)[0]
    assert "function stitchSection" not in without and "function stitchSection" in whole
    assert 0 < len(whole) - len(without) < _PARTS


def test_figures_are_sent_with_four_digits():
    view = sample_stitch.stitch_view()
    sent = _data(_page("whole"))["view"]["summary"]["stitches"]["pair"]
    whole = json.loads(view.summary.model_dump_json())["stitches"]["pair"]
    assert sent["maps"]["fits"]["joint"]["flops"] == whole["maps"]["fits"]["joint"]["flops"]
    curve, exact = (found["beginnings"]["2048"]["random"]["curve"] for found in (sent, whole))
    for mine, true in zip(curve, exact, strict=True):
        assert mine["explained_variance"] == pytest.approx(true["explained_variance"], rel=1e-3)
        assert mine["vectors"] == true["vectors"]
    assert len(json.dumps(sent)) < 0.9 * len(json.dumps(whole))


def test_findings_say_what_each_part_found():
    found = headline(sample_stitch.stitch_view().summary)
    assert {one.about for one in found} == {"stitch pair"} and {one.instrument for one in found} == {None}
    said = {one.question: one.text for one in found}
    assert "70 % of the variance of large from small" in said["maps"] and "rises by 19 %" in said["maps"]
    assert "41 % of the variance unexplained in large" in said["SAEs"] and "decoder refitted 23 %" in said["SAEs"]
    assert "repaired, takes 42 % fewer FLOPs" in said["training"] and "explain 90 %" in said["training"]
    assert "10 features" in said["probes"] and "82 % as they are and 89 % refitted" in said["probes"]
    assert "Steered by a direction of small, large" in said["steering"] and "61 %" in said["steering"]
    assert "1,711 judged features" in said["features"] and "87 % push" in said["features"]
    assert "1,160 of 2,000" in said["lineage"]
    evidence = {one.question: " ".join(one.evidence) for one in found}
    assert "counted too: 48 % more" in evidence["training"]
    assert "geometry to 0.9: 4 % more" in evidence["training"]


def test_findings_of_what_was_not_asked_for_are_left_out():
    own = _bare().summary.stitches["pair"]
    assert [one.topic for one in stitch_findings(own)] == ["maps"]


def test_findings_say_when_no_level_was_reached():
    own = sample_stitch.stitch()
    never = tuple(row for row in own.savings if row.threshold == 0.94 and row.arm in ("random", "repaired"))
    assert never
    training = next(
        one for one in stitch_findings(own.model_copy(update={"savings": never})) if one.topic == "training"
    )
    assert "the random start never reached 0.94" in training.text


def test_findings_of_a_stitch_can_be_read_without_scripts():
    page = _page("whole")
    plain = page[page.index("<noscript>") : page.index("</noscript>")]
    assert "Affine maps give 70 %" in plain and html.escape("large's own features") in plain
