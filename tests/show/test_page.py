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
from show.runs import EVIL, all_columns, data_of, run_of, script_of, unpacked

NODE = shutil.which("node")
PARTS = Path(page.__file__).parent / "page"
WEB = Path(__file__).parents[2] / "web"
_LIMIT = 620_000  # of which Plot is about 200,000


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


def test_data_comes_back_from_the_page_unchanged(made, hostile):
    for data in (made, hostile):
        assert data_of(page.render(data)) == json.loads(json.dumps(data))


def test_text_cannot_leave_the_data(hostile):
    text = page.render(hostile)
    tags = [tag for tag, _ in _tags(text)]
    assert tags.count("script") == 2 and "img" not in tags
    assert "<b>{{data}}</b>" not in text and html.escape("<b>{{data}}</b>") in text
    assert data_of(text)["inspector"]["blocks.0.mlp.hook_post"]["joint"]["cards"][0]["contexts"][0]["tokens"][1] == EVIL


def test_embedded_data_are_the_same_whatever_text_they_hold():
    value = {"k": ["</script>", "<!--", "]]>", "&lt;", "\u2028\u2029", "\ud83d", "🦆"]}
    text = page.embedded(value)
    assert re.fullmatch("[A-Za-z0-9+/]+=*", text) and unpacked(text) == value
    assert page.embedded(value) == text
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
    script = script_of(text)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    assert "img-src blob:;" in f"{policy};" and policy.count("blob:") == 1, "pictures of its own, to be saved"


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
    (tmp_path / "page.mjs").write_text(script_of(page.render(made)))
    subprocess.run([str(NODE), "--check", str(tmp_path / "page.mjs")], check=True, timeout=60)


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
    scripts = [script_of(one) for one in (report, text)]
    assert scripts[0] == scripts[1]
    digest = base64.b64encode(hashlib.sha256(scripts[1].encode()).digest())
    assert f"script-src 'sha256-{digest.decode()}'" in policy and policy.endswith("; connect-src 'self'")
    assert html.escape(policy, quote=False) in text and "connect-src" not in report.replace(scripts[0], "")
    assert data_of(text) == {**data_of(report), "served": True}


def test_columns_come_back_from_the_page(made):
    (held,) = made["features"]["joint"].values()
    assert unpacked(held) == all_columns()["joint"]["blocks.0.mlp.hook_post"]
