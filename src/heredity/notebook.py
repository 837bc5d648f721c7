"""What a notebook shows of a run and of a feature: HTML without scripts, requests or styles of its own page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from heredity import format
from heredity.tables import Table

_EXAMPLES, _REACH = 6, 12  # texts of a feature, and tokens on either side of the firing
_SHAPES = {"\n": "↵", "\r": "␍", "\t": "→"}


def overview(
    name: str,
    statements: Iterable[tuple[str, str, Sequence[str]]],
    notes: Sequence[str],
    tables: Mapping[str, tuple[Table, Sequence[Mapping[str, Any]]]],
) -> str:
    """A run: its findings, each with what it rests on, its notes, and its brief tables, folded.

    statements: what a finding is about, its sentence, its evidence. tables: declaration and rows, by name.
    """
    found = "".join(
        f"<li><b>{_seen(about)}</b>: {_seen(text)} <small>{_seen('; '.join(evidence))}</small></li>"
        for about, text, evidence in statements
    )
    warned = "".join(f"<li>{_seen(note)}</li>" for note in notes)
    parts = [f"<h3>{_seen(name)}</h3>", f"<ul>{found}</ul>" if found else "<p>No findings yet.</p>"]
    parts += (
        [f"<details><summary>Before relying on these figures</summary><ul>{warned}</ul></details>"] if warned else []
    )
    for table, rows in tables.values():
        if table.brief and rows:
            layout = format.laid_out(table, rows)
            heads = [column.name.replace("_", " ") for column in layout.columns]
            parts.append(f"<details><summary>{_seen(layout.title)}</summary>{_table(heads, layout.cells)}</details>")
    return "".join(parts)


def feature(values: Mapping[str, Any]) -> str:
    """A feature as `heredity show --json` prints it: meaning, notes, matches, verdicts, tokens and strongest texts."""
    kind, highest = values["class"], values["max"] or 1.0
    often = (
        f"fires on {values['density']:.3%} of {values['positions']:,} tokens" if values["firings"] else "never fires"
    )
    parts = [
        f"<h4>{_seen(_id(values))}</h4>",
        f"<p>{_seen(values['explanation']['description'] or 'not explained')}</p>",
    ]
    parts.append(f"<p><small>{_seen(kind['class'] if kind else 'class not known')}; {often}</small></p>")
    for note in values["notes"]:
        said = " ".join([note["text"], *(f"#{tag}" for tag in note["tags"])])
        parts.append(f"<p><b>note{_seen(' by ' + note['by'] if note['by'] else '')}:</b> {_seen(said)}</p>")
    matches = []
    for match in values["matches"]:
        r, persists = format.value("r", match["r"]), "persists" if match["persists"] else ""
        matches.append((match["edge"], "none" if match["feature"] is None else _id(match), r, persists))
    judged = [
        (row["verdict"], f"{'in' if row['end'] == 'parent' else 'compared with'} {row['model']}", row["reason"])
        for row in values["verdicts"]
    ]
    tokens = [(row["token"], format.percent(row["share"]), f"{row['llr']:.2f}") for row in values["tokens"][:10]]
    parts += [_table(("edge", "match", "r", ""), matches), _table(("verdict", "", "because"), judged)]
    parts.append(_table(("token", "of its activation", "LLR"), tokens))
    for example in values["top"][:_EXAMPLES]:
        start, end = max(0, example["position"] - _REACH), example["position"] + _REACH + 1
        spans = ""
        for token, value in zip(example["tokens"][start:end], example["values"][start:end], strict=True):
            shade = f"rgba(255,140,0,{min(1.0, max(0.0, value / highest)):.2f})"
            spans += f"<span style='background:{shade}' title='{value:.3g}'>{_seen(token)}</span>"
        parts.append(f"<p dir='ltr' style='font-family:monospace;white-space:pre-wrap'>{spans}</p>")
    return "".join(parts)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    body = "".join(f"<tr>{''.join(f'<td>{_seen(cell)}</td>' for cell in row)}</tr>" for row in rows)
    head = "".join(f"<th>{_seen(one)}</th>" for one in heads)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if body else ""


def _id(row: Mapping[str, Any]) -> str:
    return f"{row['model']}/{row['feature']}"


def _seen(text: str) -> str:
    """Text as HTML, in which what cannot be seen, or would turn the text around it, is named."""

    def shown(character: str) -> str:
        if character.isprintable() or character in _SHAPES:
            return _SHAPES.get(character, character)
        return f"⟨{ord(character):04X}⟩"

    return escape("".join(map(shown, text)))
