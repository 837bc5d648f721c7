"""Whatever tokens, explanations, notes and names hold is shown as text: nothing of it runs, is asked for, or moves."""

from __future__ import annotations

import csv
import io
import json
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest

from browser.visit import ACTING, listening, written
from heredity.analyses.feature_columns import packed
from heredity.show import page
from show.runs import all_columns, run_of

pytestmark = pytest.mark.browser
RUN = "window.owned=1;document.title='owned';alert(1)"
TOKENS = [
    f"</script><script>{RUN}</script>",
    f"<!--<script>{RUN}</script>-->",
    f"]]><script>{RUN}</script><![CDATA[",
    f'<img src=x onerror="{RUN}">',
    f'"><img src=x onerror="{RUN}">',
    f"' onmouseover='{RUN}' tabindex='0' autofocus onfocus='{RUN}",
    f'<svg/onload="{RUN}"><animate onbegin="{RUN}" attributeName=x dur=1s>',
    '<iframe srcdoc="<script>parent.owned=1</script>"></iframe>',
    f'<a href="javascript:{RUN}">x</a>',
    f"javascript:{RUN}",
    f'<details open ontoggle="{RUN}">',
    f'<input autofocus onfocus="{RUN}">',
    '<meta http-equiv="refresh" content="0;url=https://evil.invalid/">',
    '<base href="https://evil.invalid/">',
    '<link rel=stylesheet href="https://evil.invalid/x.css">',
    "<style>*{background:url(https://evil.invalid/x)}</style>",
    "}*{display:none}",
    "url(https://evil.invalid/x)",
    '<form action="https://evil.invalid/"><button>find</button></form>',
    "{{data}} {{script}} {title} ${alert(1)} {@html x}",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "\u202e>tpircs/<\u202c",
    "\u2066\u2067zero\u200bwidth\ufeff\u2069",
    "\u2028\u2029",
    "\x00\x1b[31m\x7f",
    "\ud83d",
    "👩‍👩‍👧‍👦🏴‍☠️",
    "Z̸̢̛͖a̷͇͠l̶̯̈́g̷̲̈́o̶̘͠" * 20,
    "=cmd|'/c calc'!A1",
    "@SUM(1+1)",
    "__proto__",
    "constructor",
    "<0xE7>",
    "'; DROP TABLE feature; --",
    "../../etc/passwd",
    "%00%0d%0aSet-Cookie:x",
    "#/feature?id=base/1",
    "w" * 5_000,
    " \n\t\r ",
]

WORDS = ("description", "text", "tokens", "hypothesis", "failure", "licenses", "source", "examples", "example", "note")
"""Columns of tables that hold text from outside."""


def _columns() -> dict[str, Any]:
    """Columns of which every text is hostile."""
    found = all_columns("x")
    for places in found.values():
        for columns in places.values():
            columns |= {
                "tokens": TOKENS,
                "classes": [TOKENS[0]],
                "domains": [TOKENS[3]],
                "models": dict(columns["models"]),
            }
            for number, name in enumerate(columns["models"]):
                top = [(one + 7 * number) % len(TOKENS) for one in range(24)]
                text = [TOKENS[(5 * one + number) % len(TOKENS)] for one in range(8)]
                columns["models"][name] = columns["models"][name] | {"top": top, "text": text, "score": [50] * 8}
            columns["audits"] = {
                key: [
                    one | {"tokens": TOKENS, "values": [1.0] * len(TOKENS), "predicted": [0.5] * len(TOKENS)}
                    for one in rows
                ]
                for key, rows in columns["audits"].items()
            }
            columns["said"] = {key: _said() for key in columns["said"]}
    return found


def _said() -> list[dict[str, Any]]:
    """What language models of these names say."""
    scores = dict.fromkeys(("simulation", "detection", "fuzzing", "intruder"), 0.5)
    own = {"failure": "", "carried": True, "re_explained": False, "origin_feature": 1, "cost": 1e-5, **scores}
    names = [own | {"folder": f"{at}", "by": one, "origin_model": one} for at, one in enumerate(TOKENS)]
    return [one | {"description": token} for one, token in zip(names, TOKENS[::-1], strict=True)]


def _poisoned(value: Any, at: int = 0) -> Any:
    """Cards of which every list of tokens is the whole corpus."""
    if isinstance(value, list):
        return [_poisoned(one, at + number) for number, one in enumerate(value)]
    if not isinstance(value, dict):
        return value
    made = {key: _poisoned(own, at + number) for number, (key, own) in enumerate(value.items())}
    if "tokens" in made and all(isinstance(one, str) for one in made["tokens"]):
        size = len(TOKENS)
        made |= {"tokens": TOKENS, "position": 3}
        if isinstance(made.get("values"), dict):
            made["values"] = {model: [1.0] * size for model in made["values"]}
        elif "values" in made:
            made["values"] = [1.0] * size
    for key in ("token", "corpus", "no_logits"):
        if made.get(key):
            made[key] = TOKENS[at % len(TOKENS)]
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The page's data with hostile text wherever data can put text."""
    data = page.page_data(run_of(tmp_path_factory.mktemp("evil"), TOKENS[3]), _columns())
    tables = {}
    for number, (name, table) in enumerate(data["tables"].items()):
        evil = TOKENS[number % len(TOKENS)]
        names = [name for name in table["values"] if name in WORDS]
        values = table["values"] | {one: [evil] * table["rows"] for one in names}
        text = {key: own for key, own in table["text"].items() if key not in names}
        tables[name] = table | {"doc": f"{table['doc']} {evil}", "values": values, "text": text}
    statements = [
        row | {"text": TOKENS[at % 21], "evidence": [TOKENS[(at + 1) % 21]]}
        for at, row in enumerate(data["statements"])
    ]
    sections = [
        part | {"title": TOKENS[at % 21], "doc": "\n\n".join(TOKENS[:4])} for at, part in enumerate(data["sections"])
    ]
    changed = {
        "tables": tables,
        "statements": statements,
        "sections": sections,
        "inspector": _poisoned(data["inspector"]),
    }
    changed |= {
        "study": TOKENS[0][:60],
        "notes": TOKENS,
        "toml": "\n".join(TOKENS),
        "limits": TOKENS,
        "versions": {TOKENS[3]: TOKENS[0]},
    }
    return data | changed


HANDLERS = """main => [...main.querySelectorAll('*')].flatMap((one) => [...one.attributes])
  .filter(({ name, value }) => /^on/.test(name) || (/^javascript:/i.test(value) && /href|src|action/.test(name)))
  .map(({ name, value }) => `${name}=${value}`)"""


def _held(there: Any) -> None:
    """Nothing ran or went anywhere."""
    assert there.page.evaluate("window.owned") is None
    assert there.page.title().endswith("· heredity") and not there.page.title().startswith("owned")
    assert there.main.evaluate(HANDLERS) == []


def _read(there: Any) -> None:
    """All pages, with all that can be opened and pointed at."""
    addresses = [address for _, address in there.pages()]
    addresses += [
        "#/feature?id=base/1",
        "#/feature?id=both/3",
        "#/family?id=base/1",
        "#/lost?edge=sums->both&verdict=lost",
    ]
    for address in addresses:
        there.go(address)
        folds = there.main.locator("details:not([open]) > summary").all()[:6]
        for folded in reversed(folds):  # an open one no longer counts
            folded.click()
        for token in there.main.locator(".t, .chip").all()[:8]:
            if token.is_visible():
                token.hover(force=True)
        _held(there)
        assert there.main.locator(ACTING).count() == 0


@pytest.mark.parametrize("policy", ["its policy", "no policy"])
def test_a_file_of_hostile_text_runs_none_of_it(policy, visit, data, tmp_path):
    """Without the policy too: it is the second line, not the first."""
    there = visit(written(data, tmp_path), bypass_csp=policy == "no policy")
    _read(there)
    shown = there.go("#/feature?id=base/1")
    assert RUN in shown and "<iframe srcdoc" in shown
    field_at = "#/features"
    there.go(field_at)
    field = there.main.get_by_label("A token, words of an explanation, or an id")
    for token in TOKENS[:20]:
        field.fill(token)
        field.press("Enter")
        there.drawn()
    _held(there)


def test_saved_rows_hold_no_formula(visit, data, tmp_path):
    there = visit(written(data, tmp_path), "#/features")
    _, content = there.save(there.main.locator(".bar button.save"))
    cells = [cell for row in csv.reader(io.StringIO(content.decode())) for cell in row]
    assert any("SUM(1+1)" in cell for cell in cells)
    assert not any(cell[:1] in ("=", "+", "-", "@", "\t", "\r") for cell in cells)


def test_an_address_of_hostile_text_is_a_choice_and_no_more(visit, homes):
    there = visit(homes["file"])
    for token in TOKENS[:20]:
        text = quote(token, safe="")
        for address in (f"#/features?words={text}&model={text}", f"#/feature?id={text}", f"#/{text}"):
            there.page.evaluate("address => { location.hash = address }", address)
            there.drawn()
    there.go("#/flow?t=x&rule=__proto__&sae=constructor&site=__proto__")
    _held(there)
    there.page.evaluate("location.hash = '#/%E0%A4%A'")  # no text in UTF-8
    there.drawn()


def test_a_server_of_hostile_answers_runs_none_of_them(visit, data, monkeypatch):
    """The same text in answers to the page, and in refusals."""
    pytest.importorskip("fastapi")
    from heredity.analyses.raters import Compared
    from heredity.serve.app import create_app
    from heredity.serve.guard import hosts_of

    (site,) = data["inspector"]
    columns = _columns()
    html, policy = page.served({**data, "features": {}})
    card = data["inspector"][site]["joint"]["cards"][0]
    example = {"corpus": TOKENS[3], "tokens": TOKENS, "position": 3, "values": [1.0] * len(TOKENS)}
    family = card["family"]

    def feature(model: str, index: int, instrument: Any, site_: Any) -> dict[str, Any]:
        if index == 7:
            raise ValueError(TOKENS[3])
        top = example | {"family": {one["model"]: example["values"] for one in family if one["model"] != model}}
        verdicts = [{"edge": "base->sums", "end": "parent", "model": "sums", "verdict": "kept", "reason": TOKENS[4]}]
        known = {"instrument": "joint", "site": site, "model": model, "feature": index, "family": family, "top": [top]}
        known |= {
            "density": 0.1,
            "max": 2.0,
            "firings": 40,
            "histogram": [1, 2],
            "tokens": [
                {"token": token, "share": 0.1, "firings": 3, "mean": 1.0, "fired": 0.5, "llr": 1.0} for token in TOKENS
            ],
        }
        known |= {"class": {"class": TOKENS[0], "domain": TOKENS[3]}, "verdicts": verdicts}
        known |= {
            "levels": [{"low": 0, "high": 1, "examples": [example]}],
            "drawn": [example],
            "silent": [example],
        }
        return known | {"notes": [{"text": token, "by": token, "tags": [token]} for token in TOKENS], "said": _said()}

    def explained(*_: Any) -> dict[str, Any]:
        explanation = {"description": TOKENS[0], "by": TOKENS[3], "failure": "", "carried": False, "simulation": 0.5}
        explanation |= {"detection": None, "fuzzing": None, "origin_model": "", "origin_feature": 0}
        return {"explanation": explanation, "audit": [example | {"predicted": example["values"]}]}

    def asked(*_: Any) -> list[dict[str, Any]]:
        none = {"tokens_in": 1, "tokens_out": None, "cost": 0.0, "seconds": 0.1, "attempts": 2, "time": TOKENS[3]}
        own = {"feature": TOKENS[0], "question": TOKENS[1], "provider": TOKENS[4], "model": TOKENS[5], "echoed": 0}
        texts = [{"prompt": token, "answer": token, "failure": token, "detail": token} for token in TOKENS]
        audit = [example | {"predicted": example["values"]}]
        return [{"requests": [own | none | one for one in texts], "others": 2, "audit": audit} for _ in TOKENS]

    at = {"instrument": "joint", "site": site, "model": TOKENS[3], "feature": 1}
    notes = [at | {"by": one, "text": one, "tags": f"{one} {one}x", "current": True} for one in TOKENS]
    agreed = {"features": 5, "both": 1, "first_only": 1, "second_only": 1, "agreement": 0.6, "kappa": -0.1}
    ends = {"instrument": "joint", "site": site, "kappa_low": -0.5, "kappa_high": 0.4}
    rows = [{**ends, **agreed, "first": one, "second": one, "tag": one} for one in TOKENS]
    apart = [at | {"tag": one, "by": one, "beside": one} for one in TOKENS]
    for name, answer in (("read_notes", []), ("rows_of_notes", notes), ("compared", Compared(rows, apart))):
        monkeypatch.setattr(f"heredity.serve.app.{name}", lambda *_, answer=answer: answer)

    def tried(text: str, instrument: Any) -> dict[str, Any]:
        members = [one | {"values": [1.0] * len(TOKENS), "strength": 0.5} for one in family]
        one = {"model": "base", "feature": 1, "members": members, "verdicts": []}
        return {"tokens": TOKENS, "cut": False, "sites": {site: {"families": [one]}}}

    words = [{"token": token, "weight": 0.3} for token in TOKENS]
    explorer = SimpleNamespace(
        database=SimpleNamespace(
            meta={"page": html, "policy": policy, "place": json.dumps(["joint", site])}.__getitem__,
            columns=lambda instrument, site: packed(columns[instrument][site]),
        ),
        warm=lambda: None,
        run=None,
        feature=feature,
        explained=explained,
        asked=asked,
        logits=lambda *asked: {"promoted": words, "suppressed": words, "no_logits": ""},
        tried=tried,
        family=lambda *asked: {
            "members": family,
            "pairs": [],
            "near": [],
        },
    )
    with listening(create_app(explorer, hosts_of("127.0.0.1"))) as url:  # pyright: ignore[reportArgumentType]
        there = visit(url)
        _read(there)
        shown = there.go("#/feature?id=base/2")
        assert RUN in shown
        there.main.get_by_role("button", name="ask its model").click()
        there.expect(there.main.get_by_role("table", name="Tokens it makes likelier")).to_be_visible()
        there.main.get_by_role("button", name="show prompts and answers").click()
        said = there.main.locator(".said").first
        for folds in (said.locator(":scope > details > summary"), said.locator("details details > summary")):
            there.expect(folds.first).to_be_visible()
            for folded in folds.all():
                folded.click()
        there.expect(said.get_by_role("region", name="Answer")).to_have_count(len(TOKENS))
        there.expect(said.get_by_role("region", name="Answer").first).to_contain_text(RUN)
        _held(there)
        there.go("#/try")
        there.main.get_by_label("Your text").fill(TOKENS[0])
        there.page.keyboard.press("Control+Enter")
        there.sees("families", "main [role=status]")
        there.go("#/feature?id=base/7")
        there.expect(there.main.get_by_role("alert")).to_contain_text("onerror")
        _held(there)
        there.logged = [line for line in there.logged if "404" not in line]
        there.is_clean()
