"""Tables of `heredity validate`: every rule against planted truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

_out = Console(highlight=False)
if not _out.is_terminal:
    _out.width = max(_out.width, 120)  # a file or a pipe has no width that tables would have to be cut to

_RULES = {"rule": "rule", **{name: name for name in ("precision", "recall", "kept", "rotated", "lost")}}
_WORLDS = {
    "condition": "world",
    "explained_variance": "EV",
    "reliability": "reliability",
    "kept": "kept",
    "rotated": "rotated",
    "lost": "lost",
    "kept_at_paper": "kept at 0.8",
    "new_emerged": "new emerged",
    "new_confirmed": "new confirmed",
    "unknown_confirmed": "unknown confirmed",
}


def tables(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, headings and rows of every table of `prove`'s means and rates, as text."""
    parts = []
    for init in dict.fromkeys(row["init"] for row in results["planted_rule_means"]):
        for name, title, columns in (
            ("planted_rule_means", "Rules, mean over all worlds, and share called persisting by fate", _RULES),
            ("planted_world_means", "Called by evidence, world by world", _WORLDS),
        ):
            rows = [row for row in results[name] if row["init"] == init]
            body = [
                [_cell(row[column], 2 if column in ("explained_variance", "reliability") else 3) for column in columns]
                for row in rows
            ]
            parts.append((f"{title}; SAEs {init}", list(columns.values()), body))
    rates = results["planted_rates"]
    body = [
        [row["rate"], _cell(row["measured"], 3), "" if row["nominal"] is None else f"{row['nominal']:g}"]
        for row in rates
    ]
    return [
        *parts,
        (f"Error rates over {rates[0]['worlds']} worlds of noisy codes", ["rate", "measured", "nominal"], body),
    ]


def _cell(value: float | str | None, digits: int) -> str:
    return value if isinstance(value, str) else "" if value is None else f"{value:.{digits}f}"


def print_proof(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Print the tables."""
    for title, headings, rows in tables(results):
        table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
        for number, heading in enumerate(headings):
            table.add_column(heading, justify="right" if number else "left", no_wrap=not number)
        for row in rows:
            table.add_row(*row)
        _out.print(table)


def markdown(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The tables for the docs."""
    parts = []
    for title, headings, rows in tables(results):
        lines = [headings, ["---", *["--:"] * (len(headings) - 1)], *rows]
        parts.append(f"{title}:\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines))
    return "\n\n".join(parts) + "\n"
