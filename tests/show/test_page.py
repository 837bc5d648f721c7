"""The page is one safe, self-contained file, and a browser draws it without an error."""

from __future__ import annotations

import base64
import gzip
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
from show.runs import EVIL, all_columns, run_of

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NODE = shutil.which("node")
PARTS = Path(page.__file__).parent / "page"
WEB = Path(__file__).parents[2] / "web"
_LIMIT = 520_000  # of which Plot is about 200,000


def _tags(text: str) -> list[tuple[str, dict[str, str | None]]]:
    """Every start tag with its attributes, as a browser would split them."""
    tags, parser = [], HTMLParser()
    parser.handle_starttag = lambda tag, attrs: tags.append((tag, dict(attrs)))
    parser.feed(text)
    return tags


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return page.page_data(run_of(tmp_path_factory.mktemp("run")), all_columns())


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    data = page.page_data(run_of(tmp_path_factory.mktemp("evil"), EVIL), all_columns(EVIL))
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


def test_the_page_without_data_is_small_and_its_findings_can_be_read_without_scripts(made):
    text = page.render(made)
    assert "sums kept 80 of 100" in text[text.index("<noscript>") : text.index("</noscript>")]
    assert len(re.sub(r'(id="data">).*?(</script>)', r"\1\2", text, flags=re.DOTALL).encode()) < _LIMIT


def test_the_script_evaluates_nothing_and_names_what_it_contains():
    script = (PARTS / "page.js").read_text(encoding="utf-8")
    assert "</script" not in script and "<!--" not in script
    assert not re.search(r"\beval\(|new Function\(", script)
    for name in ("svelte", "d3-sankey", "@observablehq/plot", "@tanstack/svelte-virtual"):
        assert re.search(rf"^ \* {re.escape(name)} [\d.]+ \(", script, re.MULTILINE), name
    source = [path.read_text(encoding="utf-8") for path in (WEB / "src").rglob("*") if path.is_file()]
    assert source and not any("{@html" in text or "innerHTML" in text for text in source)


@pytest.mark.skipif(NODE is None, reason="needs node")
def test_the_script_is_valid_javascript(tmp_path, made):
    (tmp_path / "page.js").write_text(re.findall(r"<script>(.*?)</script>", page.render(made), re.DOTALL)[0])
    subprocess.run([str(NODE), "--check", str(tmp_path / "page.js")], check=True, timeout=60)


@pytest.mark.skipif(
    not (WEB / "node_modules").is_dir() or NODE is None, reason="needs node, and what `make page` installs"
)
def test_what_is_checked_in_is_built_from_the_source(tmp_path):
    vite = WEB / "node_modules" / "vite" / "bin" / "vite.js"
    words = [str(NODE), str(vite), "build", "--outDir", str(tmp_path), "--logLevel", "error"]
    subprocess.run(words, cwd=WEB, check=True, timeout=120)
    for name in ("page.js", "page.css"):
        built = (tmp_path / name).read_text(encoding="utf-8")
        assert built == (PARTS / name).read_text(encoding="utf-8"), f"{name}: run `make page`"


def test_a_served_page_is_the_same_and_may_ask_its_server_alone(made):
    report, (text, policy) = page.render(made), page.served(made)
    scripts = [re.findall(r"<script>(.*?)</script>", one, re.DOTALL)[0] for one in (report, text)]
    assert scripts[0] == scripts[1]
    digest = base64.b64encode(hashlib.sha256(scripts[1].encode()).digest())
    assert f"script-src 'sha256-{digest.decode()}'" in policy and policy.endswith("; connect-src 'self'")
    assert html.escape(policy, quote=False) in text and "connect-src" not in report.replace(scripts[0], "")
    assert _data(text) == {**_data(report), "served": True}


def test_columns_come_back_from_the_page(made):
    (held,) = made["features"]["joint"].values()
    assert json.loads(gzip.decompress(base64.b64decode(held))) == all_columns()["joint"]["blocks.0.mlp.hook_post"]


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("kind", ["all", "lineage", "hostile", "bare"])
def test_a_browser_draws_it_without_an_error(kind, made, hostile, tmp_path):
    if kind == "lineage":
        data = page.page_data(run_of(tmp_path / "run", whole=False), all_columns())
    elif kind == "bare":  # one model and nothing measured
        empty = {"tables": {}, "sections": [], "statements": [], "notes": [], "graph": made["graph"][:1]}
        data = made | empty | {"inspector": {}, "features": {}}
    else:
        data = hostile if kind == "hostile" else made
    text = page.render(data)
    (shown,) = _shown(text, tmp_path, [])  # under its policy
    if kind == "bare":
        assert "This study has no parent and child" in shown
        return
    assert "sums kept 80 of 100" in shown or kind == "hostile"
    assert "80 % kept" in shown, "the share on the band"
    parts = [f"#/results?part={part['kind']}" for part in data["sections"]] if kind == "all" else []
    addresses = ["#/results?part=match", "#/features?model=base&verdict=kept", "#/feature?id=base/1", "#/flow?t=0.8"]
    table, features, one, flow = _shown(text, tmp_path, addresses)
    results = [drawn for at in range(0, len(parts), 8) for drawn in _shown(text, tmp_path, parts[at : at + 8])]
    assert "90 70 %" in table and "[87–93]" in table, "a count, its share and its interval"
    assert "4 of 32 features" in features and "base/3" in features and "base/4" not in features
    assert "What became of it, and why" in one and "predicted" in one
    assert "from base" in flow and "0.80" in flow
    if kind == "hostile":
        assert all("alert(1)" in part for part in (shown, features, one))
    for part, drawn in zip(data["sections"], results, strict=False):
        for name in part["tables"]:
            head = data["tables"][name]["doc"].split(". ")[0].removesuffix(".")
            assert re.split("->| %", head)[0] in drawn, name


VISIT = """
(async () => {
  const wait = (time) => new Promise((done) => setTimeout(done, time));
  await wait(300);
  const shown = [];
  for (const address of ADDRESSES) {
    location.hash = address;
    await wait(250);
    for (let more = 0; more < 40 && /eading the features/.test(document.body.textContent); more++) await wait(50);
    const main = document.querySelector("main");
    if (main.querySelector("img, script")) throw new Error("made of data");
    shown.push(main.textContent);
  }
  document.body.setAttribute("data-told", JSON.stringify(shown));
})();
"""


def _shown(text: str, folder: Path, addresses: list[str]) -> list[str]:
    """The text of pages of the file, or without addresses of its first one, drawn by a browser that logs nothing."""
    if addresses:  # the policy allows no second script, so the driven copy goes without it
        script = VISIT.replace("ADDRESSES", json.dumps(addresses))
        text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
        text = text.replace("</body>", f"<script>{script}</script></body>")
    dom, log = _browse(text, folder, "#/", 60_000 if addresses else 3_000)
    assert [line for line in log.splitlines() if "CONSOLE" in line] == []
    if addresses:
        match = re.search(r'data-told="([^"]*)"', dom)
        assert match, "not all pages were drawn in time"
        found = json.loads(html.unescape(match[1]))
    else:
        main = dom[dom.index("<main") : dom.index("</main>")]
        assert "<img" not in main and "<script" not in main
        found = [html.unescape(re.sub("<[^>]*>", "", re.sub("<!--.*?-->", "", main)))]
    plain = (one.replace("\u202f", " ").replace("\u2060", "").replace("\u00a0", " ") for one in found)
    return [re.sub(r"\s+", " ", one).strip() for one in plain]


DRIVE = """
const told = {};
const wait = (time = 120) => new Promise((done) => setTimeout(done, time));
const all = (selector) => [...document.querySelectorAll(selector)];
const texts = (selector) => all(selector).map((one) => one.textContent.replace(/\\s+/g, " ").trim());
const press = (selector, words) => all(selector).find((one) => one.textContent.includes(words)).click();
const go = async (hash) => {
  location.hash = hash;
  await wait(300);
  for (let more = 0; more < 40 && /eading the features/.test(document.body.textContent); more++) await wait(50);
};
(async () => {
  await wait(300);
  const band = document.querySelector("#page figure a.band");
  band.focus();
  await wait();
  told.said = texts(".said")[0];
  told.lit = [document.querySelectorAll("a.band.lit").length, document.querySelectorAll("a.band").length];
  told.href = band.getAttribute("href");
  await go("#/flow");
  told.before = texts("main tbody tr")[0];
  const slider = document.querySelector("input[type=range]");
  slider.value = "0.85";
  slider.dispatchEvent(new Event("input", { bubbles: true }));
  await wait(20);
  told.after = texts("main tbody tr")[0];
  await wait(400);
  told.address = location.hash;
  await go("#/features");
  told.all = texts(".total")[0];
  press(".facet button", "changed");
  await wait();
  told.changed = [texts(".total")[0], location.hash, texts(".chosen")];
  history.back();
  await wait();
  told.back = texts(".total")[0];
  await go("#/features?token=+%3D");
  told.token = texts(".chosen");
  await go("#/results?part=match");
  const sort = () => document.querySelector("#table-edges [data-column=persist]").click();
  const first = () => document.querySelector("#table-edges tbody tr td:nth-child(5)").innerText.split(/\\s/)[0];
  const way = () => document.querySelector("#table-edges [aria-sort]").getAttribute("aria-sort");
  sort(); await wait(); told.down = [first(), way()];
  sort(); await wait(); told.up = [first(), way()];
  document.querySelector("#table-edges .more").click();
  await wait();
  told.columns = document.querySelectorAll("#table-edges thead th").length;
  press(".switches button", "dark");
  await wait();
  told.theme = document.documentElement.dataset.theme;
  document.body.setAttribute("data-told", JSON.stringify(told));
})();
"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_keys_slider_filters_sorting_and_back_work(made, tmp_path):
    """The page's policy allows no second script, so the driven copy goes without it."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.render(made))
    dom, log = _browse(text.replace("</body>", f"<script>{DRIVE}</script></body>"), tmp_path, "#/", 60_000)
    assert [line for line in log.splitlines() if "CONSOLE" in line] == []
    match = re.search(r'data-told="([^"]*)"', dom)
    assert match
    told = json.loads(html.unescape(match[1]))
    assert "80 of 100 stable features of base are kept" in told["said"]
    assert 0 < told["lit"][0] < told["lit"][1] and told["href"].startswith("#/features?model=base&edge=base-")
    assert "0.504 50" in told["before"] and "0.851 13" in told["after"], "of r from 0.2 to 0.9, above the threshold"
    assert told["address"] == "#/flow?t=0.85"
    assert told["all"] == "32 of 32 features" == told["back"]
    assert told["changed"] == ["8 of 32 features", "#/features?verdict=changed", ["changed ×"]]
    assert told["token"] == ["token ␣= ×"]
    assert told["down"] == ["90", "descending"] and told["up"] == ["63", "ascending"]
    assert told["columns"] > 15 and told["theme"] == "dark"


def _browse(text: str, folder: Path, address: str, budget: int = 2500) -> tuple[str, str]:
    """The document after its script ran, and the browser's log."""
    path = folder / "page.html"
    path.write_text(text, encoding="utf-8")
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
    command += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={folder / 'user'}"]
    command += ["--enable-logging=stderr", "--v=0", f"--virtual-time-budget={budget}", "--window-size=1300,900"]
    command += ["--dump-dom", path.as_uri() + address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr
