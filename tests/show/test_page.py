"""The page is one safe, self-contained file, and a browser draws it without an error."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from heredity.show import page
from show.runs import EVIL, run_of

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NODE = shutil.which("node")
PARTS = Path(page.__file__).parent / "page"
_LIMIT = 100_000


def _tags(text: str) -> list[tuple[str, dict[str, str | None]]]:
    """Every start tag with its attributes, as a browser would split them."""
    tags, parser = [], HTMLParser()
    parser.handle_starttag = lambda tag, attrs: tags.append((tag, dict(attrs)))
    parser.feed(text)
    return tags


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return page.page_data(run_of(tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    data = page.page_data(run_of(tmp_path_factory.mktemp("evil"), EVIL))
    for name in ("doc", "name"):
        data["tables"]["models"][name] += EVIL
    data["tables"]["models"]["values"]["parents"][0] = EVIL
    data["statements"][0] |= {"text": EVIL, "evidence": [EVIL]}
    return data | {"study": "<b>{{data}}</b>", "notes": [EVIL]}


def _data(text: str) -> dict:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert match
    return json.loads(match[1])


def test_data_comes_back_from_the_page_unchanged(made, hostile):
    for data in (made, hostile):
        assert _data(page.render(data)) == json.loads(json.dumps(data))


def test_text_cannot_leave_the_data(hostile):
    text = page.render(hostile)
    tags = [tag for tag, _ in _tags(text)]
    assert tags.count("script") == 2 and "img" not in tags
    assert "<b>{{data}}</b>" not in text and html.escape("<b>{{data}}</b>") in text
    assert _data(text)["inspector"]["blocks.0.mlp.hook_post"]["joint"]["cards"][0]["contexts"][0]["tokens"][1] == EVIL


def test_embedded_json_has_nothing_that_html_or_old_engines_act_on():
    value = {"k": ["</script>", "<!--", "]]>", "&lt;", "\u2028\u2029", "\ud83d", "🦆"]}
    text = page.embedded(value)
    assert not re.search("[<>&\u2028\u2029\ud800-\udfff]", text)
    assert json.loads(text) == value
    text.encode("utf-8")
    with pytest.raises(ValueError, match="not JSON compliant"):
        page.embedded({"r": float("nan")})


def test_the_page_makes_no_request_and_runs_no_script_but_its_own(made):
    text = page.render(made)
    tags = _tags(text)
    for tag, attributes in tags:
        assert tag not in ("link", "img", "iframe", "object", "embed") and "src" not in attributes
        assert not any(name.startswith("on") for name in attributes)
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style and "@import" not in style
    policy = next(a["content"] for _, a in tags if a.get("http-equiv") == "Content-Security-Policy") or ""
    script = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


def test_the_page_without_data_is_small_its_source_and_findings_readable(made):
    text = page.render(made)
    assert "sums kept 80 of 100" in text[text.index("<noscript>") : text.index("</noscript>")]
    assert len(re.sub(r'(id="data">).*?(</script>)', r"\1\2", text, flags=re.DOTALL).encode()) < _LIMIT
    for path in PARTS.iterdir():
        assert max(map(len, path.read_text().splitlines())) <= 120, path.name


@pytest.mark.skipif(NODE is None, reason="needs node")
@pytest.mark.parametrize("text", [page.render, lambda data: page.served(data)[0]], ids=["report", "served"])
def test_the_script_is_valid_javascript(text, made, tmp_path):
    (tmp_path / "page.js").write_text(re.findall(r"<script>(.*?)</script>", text(made), re.DOTALL)[0])
    subprocess.run([str(NODE), "--check", str(tmp_path / "page.js")], check=True, timeout=60)


def test_a_served_page_adds_one_part_and_may_ask_its_server_alone(made):
    report, (text, policy) = page.render(made), page.served(made)
    part = (PARTS / "served.js").read_text()
    assert part in text and part not in report and "connect-src" not in report
    digest = base64.b64encode(
        hashlib.sha256(re.findall(r"<script>(.*?)</script>", text, re.DOTALL)[0].encode()).digest()
    )
    assert f"script-src 'sha256-{digest.decode()}'" in policy and policy.endswith("; connect-src 'self'")
    assert html.escape(policy, quote=False) in text
    bare = text.replace(part + "\n", "").replace("\n" + (PARTS / "served.css").read_text(), "")
    assert len(bare) == len(report) + len("; connect-src 'self'"), "nothing else differs but the hash"


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("kind", ["all", "lineage", "hostile", "bare"])
def test_a_browser_draws_it_without_an_error(kind, made, hostile, tmp_path):
    if kind == "lineage":
        data = page.page_data(run_of(tmp_path / "run", whole=False))
    elif kind == "bare":  # one model and nothing measured
        empty = {"tables": {}, "sections": [], "statements": [], "notes": [], "graph": made["graph"][:1]}
        data = made | empty | {"inspector": {}}
    else:
        data = hostile if kind == "hostile" else made
    dom, log = _browse(page.render(data), tmp_path)
    assert [line for line in log.splitlines() if "CONSOLE" in line] == []
    sections = re.findall(r'<section id="([\w-]+)"', dom)
    assert sections[0] == "findings" and sections[-1] == "provenance"
    if kind == "bare":
        return
    assert {"graph", "flow", "match", "features"} <= set(sections)
    shown = html.unescape(re.sub("<[^>]*>", "", dom[dom.index("<main") : dom.index("</main>")]))
    shown = shown.replace("\u202f", " ").replace("\u2060", "")
    assert "90 70 %" in shown and "[87–93]" in shown, "a count, its share and its interval"
    if kind == "hostile":
        assert "alert(1)" in shown and "<img" not in dom[dom.index("<main") : dom.index("</main>")]
    charts = re.findall(r'<figure role="group" aria-label="([^"]*)">(.*?)</figure>', dom, re.DOTALL)
    assert charts and all("<svg" in drawn for _, drawn in charts)
    for title, drawn in charts:
        if "the table below holds the same" in title and "study graph" not in title:
            assert drawn.count('tabindex="0"') == 1, f"one tab stop per chart: {title}"
    if kind == "all":
        for name, table in made["tables"].items():
            assert html.escape(table["doc"].split(". ")[0].removesuffix("."), quote=False) in dom, name


DRIVE = """
const told = {};
const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
const labels = () => document.activeElement.getAttribute("aria-label");
setTimeout(() => {
  const figure = document.querySelector("#table-best_r figure");
  figure.querySelector('[tabindex="0"]').focus();
  told.keys = [labels()];
  for (const key of ["ArrowDown", "ArrowUp", "End"]) { press(key); told.keys.push(labels()); }
  told.tip = document.getElementById("tip").hidden;
  const slider = document.querySelector("#match input[type=range]");
  const counts = () => slider.closest("div").nextSibling.querySelector("tbody tr").innerText.split(/\\s+/);
  told.before = counts();
  slider.value = "0.8";
  slider.dispatchEvent(new Event("input"));
  told.after = counts();
  const sort = () => document.querySelector("#table-edges [data-column=persist]").click();
  const first = () => document.querySelector("#table-edges tbody tr td:nth-child(5)").innerText.split(/\\s/)[0];
  sort(); told.down = [first(), document.querySelector("#table-edges [aria-sort]").getAttribute("aria-sort")];
  sort(); told.up = [first(), document.querySelector("#table-edges [aria-sort]").getAttribute("aria-sort")];
  document.querySelector("#table-edges .more").click();
  told.columns = document.querySelectorAll("#table-edges thead th").length;
  const flowing = () => document.querySelector("#flow .legend").innerText;
  told.flow = [flowing()];
  [...document.querySelectorAll("#flow .choice button")].find((button) => button.innerText.includes("0.8")).click();
  told.flow.push(flowing());
  document.querySelectorAll("#contents .choice button")[1].click();
  told.pressed = document.querySelector("#contents [aria-pressed=true]").innerText;
  told.drawn = document.querySelectorAll("#table-best_r figure svg").length;
  document.body.setAttribute("data-told", JSON.stringify(told));
}, 500);
"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_keys_slider_sorting_and_instruments_work(made, tmp_path):
    """The page's policy allows no second script, so the driven copy goes without it."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.render(made))
    dom, log = _browse(text.replace("</body>", f"<script>{DRIVE}</script></body>"), tmp_path)
    assert [line for line in log.splitlines() if "CONSOLE" in line] == []
    match = re.search(r'data-told="([^"]*)"', dom)
    assert match
    told = json.loads(html.unescape(match[1]))
    first, second, back, last = told["keys"]
    assert len({first, second, last}) == 3 and back == first and "parent" in first and not told["tip"]
    assert told["before"][-6:-4] == ["90", "70\u202f%"] or "90" in told["before"]
    assert "26" in told["after"], "128 features evenly over r: a fifth above 0.8"
    assert told["down"] == ["90", "descending"] and told["up"] == ["63", "ascending"]
    assert told["columns"] > 15
    own, paper = told["flow"]
    assert "80 (63" in own and "50 (39" in paper and "61 (48" in paper, "from base and novel by both rules"
    assert told["pressed"] == "independent" and told["drawn"] == 4


def _browse(text: str, folder: Path) -> tuple[str, str]:
    """The document after its script ran, and the browser's log."""
    path = folder / "page.html"
    path.write_text(text, encoding="utf-8")
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
    command += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={folder / 'user'}"]
    command += ["--enable-logging=stderr", "--v=0", "--virtual-time-budget=2000", "--window-size=1300,900"]
    command += ["--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr
