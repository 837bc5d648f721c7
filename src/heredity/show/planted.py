"""Tables of `heredity validate`: every rule against planted truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from heredity.show.docs import markdown as markdown_table
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
    for table in (RULES, WORLDS, RATES):
        print_table(table, results[table.name])


def markdown(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The tables for the documents."""
    tables = (RULES, WORLDS, RATES)
    return "\n\n".join(f"{table.doc}\n\n{markdown_table(table, results[table.name])}" for table in tables) + "\n"
