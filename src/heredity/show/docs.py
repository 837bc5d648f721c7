"""Documents: tables made from recorded summaries, and pages made from declarations, settings and signatures.

A part of a document between `<!-- TABLE FILE.json [COLUMN=VALUE ...] -->` and `<!-- end -->` is a table of a recorded
summary, brief columns unless `columns=a,b,c` names others; `COLUMN=VALUE` keeps the rows with that value.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from heredity.format import laid_out
from heredity.show import summary
from heredity.tables import Table

MARKED = re.compile(r"<!-- (\w+) ([\w./-]+\.json)((?: \S+?=\S+)*) -->\n(.*?)<!-- end -->", re.DOTALL)


def markdown(table: Table, rows: Sequence[Mapping[str, Any]], names: Sequence[str] = ()) -> str:
    """A Markdown table; text columns to the left."""
    layout = laid_out(table, rows, names)
    lines = [
        [column.name.replace("_", " ") for column in layout.columns],
        ["---" if column.kind in ("text", "flag") else "--:" for column in layout.columns],
        *([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in layout.cells),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def refreshed(text: str, folder: Path, others: Mapping[str, Callable[[Any], str]] | None = None) -> str:
    """The document with every marked part made anew from the summaries in `folder`.

    others: parts that are no table of a summary, by name, each a function of the file's JSON. Raises ValueError for a
    table or column that the file does not have.
    """

    def made(match: re.Match[str]) -> str:
        name, file, options = match[1], match[2], dict(part.split("=", 1) for part in match[3].split())
        if others and name in others:
            part = others[name](json.loads((folder / file).read_text(encoding="utf-8")))
        else:
            part = _recorded(name, summary.read(folder / file), file, options)
        return f"<!-- {name} {file}{match[3]} -->\n{part}\n<!-- end -->"

    return MARKED.sub(made, text)


def _recorded(name: str, recorded: Mapping[str, Any], file: str, options: dict[str, str]) -> str:
    if name not in recorded["tables"]:
        raise ValueError(f"{file}: has no table {name}; tables are {', '.join(recorded['tables'])}")
    table = summary.declared(name, recorded["tables"][name])
    names = [column for column in options.pop("columns", "").split(",") if column]
    known = {column.name: column for column in table.all_columns}
    if wrong := [column for column in (*names, *options) if column not in known]:
        raise ValueError(f"{file}: table {name} has no column {wrong[0]}; columns are {', '.join(known)}")
    rows = recorded["tables"][name]["rows"]
    return markdown(table, [row for row in rows if all(str(row[key]) == text for key, text in options.items())], names)


def method() -> str:
    """docs/method.md: definitions of every result, from the analyses' docstrings and table declarations."""
    from heredity.analyses import ANALYSES

    parts, defined = [], set()
    for analysis in ANALYSES:
        module = analysis.run.__module__
        parts.append(f"\n## {analysis.title}\n")
        if module not in defined:
            parts.append(f"\n{inspect.cleandoc(sys.modules[module].__doc__ or '')}\n")
        defined.add(module)
        parts += [f"\n{_table_page(table)}\n" for table in analysis.tables]
    return "".join(parts)


def _table_page(table: Table) -> str:
    where = " Exported only: one row per feature or more." if table.large else ""
    head = f"**`{table.name}`** {table.doc}{where}\n\n| column | kind | meaning |\n|---|---|---|\n"
    rows = []
    for column in table.all_columns:
        of = f" Shown as a share of `{column.of}`." if column.of else ""
        ci = f" With its interval: `{column.name}_low`, `{column.name}_high`." if column.ci else ""
        bold = "**" if column.name in table.key else ""
        rows.append(f"| {bold}`{column.name}`{bold} | {column.kind} | {column.doc}{of}{ci} |")
    return head + "\n".join(rows)


def settings(tables: Iterable[tuple[str, Any]]) -> str:
    """docs/study.md: every key of the study file with its default; tables: titles and settings classes."""
    parts = []
    for title, config in tables:
        rows = []
        for name, field in config.model_fields.items():
            plain = isinstance(field.default, str | int | float | tuple)
            default = "needed" if field.is_required() else f"`{json.dumps(field.default)}`" if plain else ""
            rows.append(f"| `{name}` | {default} | {' '.join((field.description or '').split())} |")
        parts.append(f"\n## {title}\n\n| key | default | meaning |\n|---|---|---|\n" + "\n".join(rows) + "\n")
    return "".join(parts)


def commands(helps: Mapping[str, str]) -> str:
    """docs/cli.md; helps: what `heredity COMMAND --help` prints, by command."""
    parts = [f"\n## {name}\n\n```text\n{text.strip()}\n```\n" for name, text in helps.items()]
    return "".join(re.sub(r"[ \t]+$", "", part, flags=re.M) for part in parts)


def names(module: Any) -> str:
    """docs/api.md: signature and docstring of every public name of a module."""
    parts = []
    for name in sorted((name for name in module.__all__ if not name.startswith("_")), key=str.lower):
        value = getattr(module, name)
        kind = "class " if inspect.isclass(value) else ""
        signature = "" if kind and hasattr(value, "model_fields") else str(inspect.signature(value))
        text = f"{kind}{name}{signature}\n\n{inspect.getdoc(value)}"
        parts.append(f"\n## {name}\n\n`{value.__module__}`\n\n```text\n{text}\n```\n")
    return "".join(parts)
