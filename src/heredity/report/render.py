"""The page: one HTML file with its style, its script and its data inside, that asks nothing of the network."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from functools import cache
from importlib import resources
from typing import Any

from heredity.report.headline import Statement, headline
from heredity.report.method import DEFINITIONS, STITCHES
from heredity.report.shown import Highlight
from heredity.report.squeeze import squeeze_script, squeeze_style
from heredity.report.view import BINS, DENSITY_BINS, THRESHOLDS, View

_SCRIPTS = ("dom.js", "axes.js", "flow.js", "charts.js", "edges.js", "features.js", "cases.js", "meaning.js")
_STITCHES = ("stitch.js", "carried.js")  # for studies that have any
# Inside a script element the browser looks for an end tag or a comment before JSON is ever parsed, and older engines
# end a line at U+2028 and U+2029; as escapes all of these are the same JSON.
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def render(view: View) -> str:
    """The page of a study as the text of one HTML file.

    Everything that a corpus, a tokenizer or a study file can put into it travels as JSON and is shown as text; the
    page forbids itself every script but its own, by hash, and every request.
    """
    statements = headline(view.summary)
    shown = view.model_dump(mode="json")
    for figures in (shown["summary"], *shown["summary"]["also"].values()):
        figures["classes"] = _classes(figures["classes"])
    shown["summary"]["stitches"] = _rounded(shown["summary"]["stitches"])
    data = {
        "view": {**shown, "highlights": [_shown(one) for one in view.highlights]},
        "headline": [statement.model_dump(mode="json") for statement in statements],
        "definitions": DEFINITIONS + (STITCHES if view.summary.stitches else ()),
        "bins": BINS.tolist(),
        "density_bins": DENSITY_BINS.tolist(),
        "thresholds": THRESHOLDS.tolist(),
    }
    script = _script(bool(view.summary.stitches))
    parts = {
        "title": html.escape(view.summary.study),
        "policy": f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{_digest(script)}'",
        "style": squeeze_style(_file("page.css")),
        "script": script,
        "findings": _plain(view, statements),
        "data": embedded(data),
    }
    # one pass, so that nothing that is put in can be taken for a place to put something
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _file("template.html"))


_DRAWN = ("threshold", "persist", "disappear", "emerge", "class_gaps", "group_gaps")


def _classes(found: dict[str, Any] | None) -> dict[str, Any] | None:
    """Classes as far as they are drawn, in few digits: whole they are as long as all else of the summary."""
    if found is None:
        return None
    edges = {name: {key: edge[key] for key in _DRAWN} for name, edge in found["edges"].items()}
    return _rounded({**found, "models": {}, "edges": edges})


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _shown(highlight: Highlight) -> dict[str, Any]:
    """A highlight with the activations of its family beside its own, so that no text is sent twice."""
    shown = highlight.model_dump(mode="json", exclude={"family"})
    for place, context in enumerate(highlight.feature.contexts):
        others = shown["feature"]["contexts"][place]["others"]
        for member in highlight.family:
            candidates = (*member.contexts[place : place + 1], *member.contexts)
            same = next((found for found in candidates if found.tokens == context.tokens), None)
            if same is not None:
                others.setdefault(member.model, same.values)
    tops = {member.model: member.max_act for member in highlight.family}
    for match in shown["matches"]:
        match["max_act"] = tops.get(match["model"]) if match["max_act"] is None else match["max_act"]
    return shown


def embedded(value: object) -> str:
    """JSON that can stand inside a script element, whatever strings it holds.

    Raises ValueError for nan or infinity.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    text = re.sub("[<>&\u2028\u2029]", lambda match: _ESCAPES[match[0]], text)
    # a lone surrogate cannot be written as UTF-8; a token cut inside a character may hold one
    return re.sub("[\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)


def _plain(view: View, statements: tuple[Statement, ...]) -> str:
    """The findings for a reader without scripts."""
    mine = [statement for statement in statements if statement.instrument in (view.summary.instrument, None)]
    notes = "".join(f"<p>Note: {html.escape(note)}</p>\n" for note in view.summary.notes)
    return notes + "\n".join(
        f"<p>{html.escape(statement.text)} <small>{html.escape('; '.join(statement.evidence))}</small></p>"
        for statement in mine
    )


@cache
def _script(stitches: bool) -> str:
    names = (*_SCRIPTS, *(_STITCHES if stitches else ()), "page.js")
    text = squeeze_script("\n".join(_file(name) for name in names))
    return f'(() => {{\n"use strict";\n{text}\n}})();\n'


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


@cache
def _file(name: str) -> str:
    return (resources.files("heredity.report") / "page" / name).read_text(encoding="utf-8")
