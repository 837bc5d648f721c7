"""The page is one safe, self-contained file, and it draws every kind of study without an error."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from functools import cache
from html.parser import HTMLParser

import pytest

from heredity.report.render import embedded, render
from heredity.report.shown import Context, FamilyMatch, FeatureView, Highlight
from heredity.report.squeeze import squeeze_script, squeeze_style
from report import sample

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NODE = shutil.which("node")
_LIMIT = 100_000


@cache
def _page(kind: str) -> str:
    return render(sample.KINDS[kind]())


class _Elements(HTMLParser):
    """Every start tag, and the text of every script, as a browser would split them."""

    def __init__(self, page: str):
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script":
            self.scripts.append(data)


def _data(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def _evil() -> str:
    text = "</script><script>alert(1)</script><!-- <img src=x onerror=alert(1)> \u2028 {{data}} {{script}} \udcff"
    context = Context(tokens=(text.replace("\udcff", ""), "x"), values=[1.0, 0.0], focus=0, corpus="c</script>")
    feature = FeatureView(id="base/1", model="base", index=1, density=0.1, max_act=1.0, contexts=(context,))
    view = sample.sample_view()
    summary = view.summary.model_copy(update={"study": "<b>{{data}}</b>"})
    return render(
        view.model_copy(update={"highlights": (Highlight(list="emerged", feature=feature),), "summary": summary})
    )


def test_data_comes_back_from_the_page_unchanged():
    view = sample.sample_view()
    expected = json.loads(view.model_dump_json())
    for highlight in expected["highlights"]:
        del highlight["family"]
    found = _data(render(view))["view"]
    for figures in (found["summary"], expected["summary"], *expected["summary"]["also"].values()):
        figures.pop("classes")
    for figures in found["summary"]["also"].values():
        figures.pop("classes")
    assert found == expected


def test_classes_are_sent_as_far_as_they_are_drawn():
    view = sample.sample_view()
    sent = _data(render(view))["view"]["summary"]["classes"]
    whole = json.loads(view.summary.model_dump_json())["classes"]
    assert sent["rules"] == whole["rules"] and list(sent["edges"]) == list(whole["edges"])
    for name, edge in sent["edges"].items():
        for fate in ("persist", "disappear", "emerge"):
            for kind, own in edge[fate]["classes"].items():
                assert own["count"] == whole["edges"][name][fate]["classes"][kind]["count"]
                assert own["share"] == pytest.approx(whole["edges"][name][fate]["classes"][kind]["share"], abs=1e-4)
    assert len(json.dumps(sent)) < 0.4 * len(json.dumps(whole))


def test_activations_of_a_family_are_sent_beside_the_text_they_belong_to():
    context = Context(tokens=("a", "b"), values=[1.0, 0.0], focus=0, corpus="c")
    seen = context.model_copy(update={"values": (0.5, 0.25)})
    feature, match = (
        FeatureView(id=f"{model}/1", model=model, index=1, density=0.1, max_act=top, contexts=(shown,))
        for model, top, shown in (("base", 1.0, context), ("cpp", 0.75, seen))
    )
    matches = (FamilyMatch(model="cpp", index=1, r=0.9, along="base->cpp"),)
    highlight = Highlight(list="most persistent", feature=feature, matches=matches, family=(match,))
    view = sample.sample_view().model_copy(update={"highlights": (highlight,)})
    shown = _data(render(view))["view"]["highlights"][0]
    assert shown["feature"]["contexts"][0]["others"] == {"cpp": [0.5, 0.25]}
    assert shown["matches"][0]["max_act"] == 0.75


def test_tokens_cannot_leave_the_data():
    page = _evil()
    elements = _Elements(page)
    assert [tag for tag, _ in elements.tags].count("script") == 2
    assert "img" not in [tag for tag, _ in elements.tags]
    assert _data(page)["view"]["highlights"][0]["feature"]["contexts"][0]["tokens"][0].startswith("</script>")


def test_markup_in_the_name_of_the_study_is_shown_not_run():
    page = _evil()
    assert "<b>{{data}}</b>" not in page
    assert html.escape("<b>{{data}}</b>") in page


def test_embedded_json_has_nothing_that_html_or_old_engines_act_on():
    value = {"k": ["</script>", "<!--", "]]>", "&lt;", "\u2028\u2029", "\ud83d", "🦆"]}
    text = embedded(value)
    assert not re.search("[<>&\u2028\u2029\ud800-\udfff]", text)
    assert json.loads(text) == value
    text.encode("utf-8")


def test_nan_is_refused_rather_than_written():
    with pytest.raises(ValueError, match="not JSON compliant"):
        embedded({"r": float("nan")})


def test_page_asks_nothing_of_the_network():
    page = _page("full")
    for tag, attributes in _Elements(page).tags:
        assert tag not in ("link", "img", "iframe", "object", "embed")
        assert "src" not in attributes
        assert not any(name.startswith("on") for name in attributes)
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_policy_allows_the_script_of_the_page_and_no_other():
    page = _page("full")
    policy = next(a["content"] for _, a in _Elements(page).tags if a.get("http-equiv") == "Content-Security-Policy")
    script = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy and f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_page_without_data_is_small():
    page = re.sub(r'(id="data">).*?(</script>)', r"\1\2", _page("single"), flags=re.DOTALL)
    assert len(page.encode()) < _LIMIT + 500  # the name of the study and the policy's hash


def test_findings_can_be_read_without_scripts():
    page = _page("full")
    plain = page[page.index("<noscript>") : page.index("</noscript>")]
    assert "58 % cpp / 42 % stories" in plain


def test_squeezing_leaves_strings_templates_and_expressions_alone():
    source = 'const a = "x  =  // y"; // note\nconst b = `p = ${ a ? `q : ${ {k: 1}.k } ` : "" } = r`;\n'
    squeezed = squeeze_script(source + "const c = /[/ ]  +/g; const d = a / b + +c - -d;\n")
    for kept in ('"x  =  // y"', "`p = ${", "`q : ${", "} = r`", "/[/ ]  +/g", "a/b + +c - -d"):
        assert kept in squeezed
    assert "note" not in squeezed


def test_squeezed_style_keeps_selectors():
    source = ".a > b:hover { color: red; }\n  .c .d, e { margin: 0 1px; } /* note */"
    assert squeeze_style(source).replace("\n", "") == ".a > b:hover{color:red}.c .d,e{margin:0 1px}"


@pytest.mark.skipif(NODE is None, reason="needs node")
def test_script_is_valid_javascript(tmp_path):
    script = re.findall(r"<script>(.*?)</script>", _page("full"), re.DOTALL)[0]
    path = tmp_path / "page.js"
    path.write_text(script, encoding="utf-8")
    subprocess.run([str(NODE), "--check", str(path)], check=True, timeout=60)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("kind", sample.KINDS)
def test_browser_draws_every_kind_of_study_without_an_error(kind: str, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(_page(kind), encoding="utf-8")
    dom, log = _browse(page, tmp_path)
    errors = [line for line in log.splitlines() if "CONSOLE" in line]
    assert errors == []
    sections = re.findall(r'<section id="(\w+)"', dom)
    assert sections[0] == "findings"
    assert sections[-1] == "method"
    assert ("edges" in sections) == (kind != "single")
    assert ("merge" in sections) == (kind in ("full", "joint", "two-merges"))
    if kind == "full":
        assert sections == [
            "findings",
            "graph",
            "flow",
            "merge",
            "edges",
            "meaning",
            "saes",
            "models",
            "features",
            "cases",
            "method",
        ]
        persist = sample.sample_view().summary.edges["base->cpp"].persist
        assert f"{persist:,}" in dom
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in dom
        cases = re.sub("<[^>]*>", "", dom[dom.index('id="cases"') : dom.index('id="method"')])
        assert "cpp/101, r = 0.41 (threshold 0.60), LLR 8.59, 7.0× as active on other tokens" in cases
        assert "cpp/77" in cases and "match of a miss" in cases and "highest possible" in cases
        _check_meaning(dom)
    assert ("meaning" in sections) == (kind in ("full", "joint", "two-merges"))
    assert ("repeats" in sections) == (kind == "joint")
    if kind == "joint":
        edge = sample.joint_view().summary.edges["base->cpp"]
        low, high = edge.intervals["persist"]
        shown = re.sub("<[^>]*>", "", dom[dom.index("<main") : dom.index("</main>")])
        assert f"[{low:,.0f}–{high:,.0f}]" in shown
        for words in ("At the paper’s threshold", "by construction", "More than chance", "⚠ token types", "Really new"):
            assert words in shown
        assert "median best match between two SAEs" not in shown
        assert "decoder cosine" not in shown[: shown.index("Between seeds")]


def _check_meaning(dom: str) -> None:
    """Every chart has a table that says the same, and what is drawn is what the summary holds."""
    part = dom[dom.index('<section id="meaning"') : dom.index('<section id="saes"')]
    shown = re.sub("<[^>]*>", "", part).replace("\u202f", " ").replace("\u2060", "").replace("\u00a0", " ")
    summary = sample.sample_view().summary
    assert summary.classes is not None and summary.explained is not None
    edges = list(summary.classes.edges)
    charts = re.findall(r'<figure role="group" aria-label="([^"]*)">(.*?)</figure>', part, re.DOTALL)
    assert len(charts) == 2 * len(edges) + len(summary.explained.merges)
    assert all("a table below holds the same" in title and "<svg" in drawn for title, drawn in charts)
    assert all(drawn.count('tabindex="0"') == 1 for _, drawn in charts), "one tab stop a chart"
    assert len(re.findall(r'aria-label="Kinds of features: ', part)) == len(edges)
    group = summary.classes.edges["base->cpp"]
    for fate in (group.persist, group.disappear, group.emerge):
        share = fate.classes["punctuation"].share
        assert share is not None and f"{100 * share:.1f} %" in shown
        assert f"{fate.judged:,} of {fate.features:,} judged" in shown
    assert "the paper, grouped by hand" in shown and "20 %" in shown and "2410.12391" in shown
    better, same = (summary.explained.edges[name] for name in (edges[0], edges[-1]))
    for found, words in ((better, "Those that persist are explained better"), (same, "No difference is shown")):
        assert words in shown and f"n {found.persisting.n}, median {found.persisting.median:.2f}" in shown
    assert "no language model" in shown and "710" in shown and "Languages, base rates and rules" in shown
    _check_cards(dom)


def _check_cards(dom: str) -> None:
    part = dom[dom.index('<section id="features"') : dom.index('<section id="cases"')]
    shown = re.sub("<[^>]*>", "", part).replace("\u202f", " ")
    first = sample.sample_view().highlights[0].feature
    assert first.card is not None and first.label is not None
    assert html.escape(first.label.description or "", quote=False) in part, "descriptions are text"
    assert f"score {first.label.simulation:.2f}" in shown and "detection 0.50" in shown and "fuzzing" not in shown
    assert "from base/123" in shown, "a label that was handed down says where it comes from"
    assert f"{first.card.firings:,} firings by activation" in shown and "Weaker firings" in shown
    for level in first.card.weaker:
        assert f"Activation {level.low:.2f} to {level.high:.2f}" in shown
    assert (
        f"+{first.card.promoted[0].weight:.2f}" in shown and f"−{-(first.card.suppressed[0].weight or 0):.2f}" in shown
    )
    assert re.search(r'aria-label="Firings of base/\d+ by activation, logarithmic"><svg', part)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_keys_move_through_a_chart_and_a_reason_stands_where_nothing_is_predicted(tmp_path):
    """The page's own policy allows no second script, so the copy that is driven goes without it."""
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", _page("full"))
    drive = """
    const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
    const told = [];
    setTimeout(() => {
      const chart = document.querySelector("#meaning figure");
      chart.querySelector('[tabindex="0"]').focus();
      told.push(document.activeElement.getAttribute("aria-label"));
      for (const key of ["ArrowDown", "ArrowDown", "ArrowUp", "End"]) {
        press(key);
        told.push(document.activeElement.getAttribute("aria-label"));
      }
      told.push(chart.querySelectorAll('[tabindex="0"]').length, document.getElementById("tip").hidden);
      for (const card of document.querySelectorAll("#features details")) card.open = true;
      setTimeout(() => document.body.setAttribute("data-told", JSON.stringify(told)), 300);
    }, 500);
    """
    path = tmp_path / "page.html"
    path.write_text(page.replace("</body>", f"<script>{drive}</script></body>"), encoding="utf-8")
    dom, log = _browse(path, tmp_path)
    assert [line for line in log.splitlines() if "CONSOLE" in line] == []
    found = re.search(r'data-told="([^"]*)"', dom)
    assert found
    first, second, third, back, last, stops, hidden = json.loads(html.unescape(found[1]))
    assert len({first, second, third, last}) == 4 and back == second
    assert "punctuation" in " ".join((first, second)) and "persist: " in first and "lost: " in first
    assert (stops, hidden) == (1, False)
    assert "Not known: hook point blocks.0.mlp.hook_pre: no linear map" in dom


def _browse(page, folder) -> tuple[str, str]:
    """The document after its script ran, and the browser's log."""
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
    command += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={folder / 'user'}"]
    command += ["--enable-logging=stderr", "--v=0", "--virtual-time-budget=2000", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr
