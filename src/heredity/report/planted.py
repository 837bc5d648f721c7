"""What `heredity plant` prints: every rule against planted truth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from heredity.synthetic.validation import Judged, Proof, Rates, Verdict, pooled

_out = Console(highlight=False)
if not _out.is_terminal:
    _out.width = max(_out.width, 120)  # a file or a pipe has no width that tables would have to be cut to


def as_json(proof: Proof) -> dict[str, Any]:
    """One JSON object; nan becomes null."""
    worlds = [{**row._asdict(), "verdicts": [verdict._asdict() for verdict in row.verdicts]} for row in proof.worlds]
    found = {"tokens": proof.tokens, "seeds": proof.seeds, "worlds": worlds, "rates": proof.rates._asdict()}
    return _plain(found)


def proof_of(found: Mapping[str, Any]) -> Proof:
    """What `as_json` made one object of; null becomes nan."""

    def numbers(row: Mapping[str, Any]) -> dict[str, Any]:
        return {key: math.nan if value is None else value for key, value in row.items()}

    worlds = tuple(
        Judged(
            **{
                **numbers(row),
                "verdicts": tuple(
                    Verdict(**{**numbers(verdict), "called": numbers(verdict["called"])}) for verdict in row["verdicts"]
                ),
                "emerged": numbers(row["emerged"]),
                "really_new": numbers(row["really_new"]),
            }
        )
        for row in found["worlds"]
    )
    return Proof(worlds, Rates(**numbers(found["rates"])), found["tokens"], found["seeds"])


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def tables(proof: Proof) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, headings and rows of every table, as text."""
    rows = pooled(proof.worlds)
    protocols = list(dict.fromkeys(row.protocol for row in proof.worlds))
    found = []
    for protocol in protocols:
        own = {(condition, rule): shares for (condition, at, rule), shares in rows.items() if at == protocol}
        rules = list(dict.fromkeys(rule for _, rule in own))
        mean = {rule: _over([shares for (_, at), shares in own.items() if at == rule]) for rule in rules}
        body = [
            [rule, *(_share(mean[rule].get(name)) for name in ("precision", "recall", "kept", "rotated", "lost"))]
            for rule in rules
        ]
        headings = ["rule", "precision", "recall", "kept", "rotated", "lost"]
        found.append((f"Rules, mean over all worlds, and shares called persisting, SAEs {protocol}", headings, body))
        found.append((f"Called by evidence, world by world, SAEs {protocol}", *_worlds(proof, protocol, own)))
    return [*found, _rates(proof)]


def _worlds(
    proof: Proof, protocol: str, own: Mapping[tuple[str, str], Mapping[str, float]]
) -> tuple[list[str], list[list[str]]]:
    body = []
    for condition in dict.fromkeys(row.condition for row in proof.worlds):
        same = [row for row in proof.worlds if (row.condition, row.protocol) == (condition, protocol)]
        best, paper = own[condition, "evidence"], own[condition, "r > 0.8"]
        shares = [_share(best.get(fate)) for fate in ("kept", "rotated", "lost")]
        new = _over([row.emerged for row in same]).get("new")
        really = _over([row.really_new for row in same])
        body.append(
            [
                condition,
                _mean_of(same, "explained_variance"),
                _mean_of(same, "reliability"),
                *shares,
                _share(paper.get("kept")),
                _share(new),
                _share(really.get("new")),
                _share(really.get("unknown")),
            ]
        )
    headings = ["world", "EV", "r truth", "kept", "rotated", "lost", "kept at .8"]
    return [*headings, "new emerge", "confirmed", "spare conf."], body


def _rates(proof: Proof) -> tuple[str, list[str], list[list[str]]]:
    rates = proof.rates
    body = [
        ["false discoveries", f"{rates.false_discoveries:.3f}", f"at most {rates.nominal:g}"],
        ["kept features found", f"{rates.power:.3f}", ""],
        ["intervals of r that hold the truth", f"{rates.r_coverage:.3f}", f"{rates.level:g}"],
        ["intervals of counts that hold the truth", f"{rates.count_coverage:.3f}", f"{rates.level:g}"],
    ]
    return f"Error rates over {rates.seeds} worlds of noisy codes", ["what", "measured", "nominal"], body


def print_proof(proof: Proof) -> None:
    """The tables, for people."""
    for title, headings, rows in tables(proof):
        table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
        for number, heading in enumerate(headings):
            table.add_column(heading, justify="right" if number else "left")
        for row in rows:
            table.add_row(*row)
        _out.print(table)


def markdown(proof: Proof) -> str:
    """The same for the docs."""
    parts = []
    for title, headings, rows in tables(proof):
        lines = [headings, ["---", *["--:"] * (len(headings) - 1)], *rows]
        parts.append(f"{title}:\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines))
    return "\n\n".join(parts) + "\n"


def _mean_of(rows: Sequence[Judged], name: str) -> str:
    return f"{sum(getattr(row, name) for row in rows) / len(rows):.2f}"


def _over(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each name over the rows that have a number for it."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            if math.isfinite(value):
                found.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in found.items()}


def _share(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.3f}"
