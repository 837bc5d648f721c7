"""Tables of `heredity validate`: every rule against planted truth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from heredity.show.docs import markdown as markdown_table
from heredity.show.layout import laid_out
from heredity.show.terminal import print_table
from heredity.tables import Column, Table

_FATES = tuple(
    Column(name, "r", f"Share of the {name} features that the rule calls persisting.")
    for name in ("kept", "rotated", "lost")
)
RULES = Table(
    "planted_rule_means",
    "Rules, mean over all worlds, and share called persisting by fate.",
    ("init", "rule"),
    (
        Column("init", "text", "Origin of the SAEs."),
        Column("rule", "text", "Rule for a match."),
        Column("precision", "r", "Share of the called features that are kept."),
        Column("recall", "r", "Share of the kept features that are called."),
        *_FATES,
    ),
)
WORLDS = Table(
    "planted_world_means",
    "Called by evidence, world by world.",
    ("init", "condition"),
    (
        Column("init", "text", "Origin of the SAEs."),
        Column("condition", "text", "World."),
        Column("explained_variance", "number", "Of the SAEs."),
        Column("reliability", "number", "r of a feature with the planted truth."),
        *_FATES,
        Column("kept_at_paper", "r", "Share of the kept features with r above 0.8."),
        Column("new_emerged", "r", "Share of the new features that emerge."),
        Column("new_confirmed", "r", "Share of the new features that the test of newness confirms."),
        Column("unknown_confirmed", "r", "Share of the confirmed features that are no planted one."),
    ),
)
RATES = Table(
    "planted_rates",
    "Error rates over worlds of noisy codes.",
    ("rate",),
    (
        Column("rate", "text", "Rate."),
        Column("measured", "r", "Measured."),
        Column("nominal", "number", "Nominal, where there is one."),
    ),
)


def print_proof(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """The tables on the terminal."""
    for table, rows in _parts(results):
        print_table(table, rows)


def markdown(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The tables for the documents."""
    parts = [f"{laid_out(table, rows).title}:\n\n{markdown_table(table, rows)}" for table, rows in _parts(results)]
    return "\n\n".join(parts) + "\n"


def _parts(
    results: Mapping[str, Sequence[Mapping[str, Any]]],
) -> Iterator[tuple[Table, Sequence[Mapping[str, Any]]]]:
    """Tables with their rows; those of rules by origin of the SAEs."""
    for init in dict.fromkeys(row["init"] for row in results[RULES.name]):
        for table in (RULES, WORLDS):
            yield table, [row for row in results[table.name] if row["init"] == init]
    yield RATES, results[RATES.name]
