"""The report as one Markdown text: findings, evidence and limits, for a person or a language model to read whole.

Everything in it is a statement, a note, a declared table with its brief columns, or an analysis' own definition.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heredity import __version__, format
from heredity.analyses import ANALYSES, TABLES
from heredity.analyses.analysis import Statement
from heredity.engine.store import whole
from heredity.show import seen
from heredity.show.summary import machine_of
from heredity.tables import KEYS, Table

if TYPE_CHECKING:
    from heredity.results import Run
    from heredity.study import Study

_STUDIED = ("models", "corpora", "merges", "accuracy", "saes")
_FOUND = ("layers", "verdicts", "lost_and_new", "references", "changed_most", "edges")
_FOUND += tuple(  # curves are for the eye
    table.name
    for table in TABLES.values()
    if table.brief and "stitch" in table.key and not (table.plot and table.plot.kind == "lines")
)
_VERDICTS_FIRST = (
    "Verdicts come first. They judge stable features only: those that an SAE of another seed finds again in the same "
    "model. What a feature does to activations while all other features are fixed is its effect; transmission is its "
    "effect in the other model over that in its own, along its direction, relative to the median of features that both "
    "models have. Kept or inherited: transmission between 0.5 "
    "and 2, direction within 45 degrees, and r above 0.6, all beyond errors. Changed: there, outside of these: "
    "moved, fainter, stronger, blurred, split. Lost or new: no effect along its direction (transmission or "
    "retained below 0.2), and either little in any other or nothing that a linear readout finds, at a false discovery "
    "rate of 10 %: about one in ten listed may not be. "
    "Undecided: the evidence carries none of these. Counts by matches ask something else: whether an SAE of the other "
    "model has a feature of the same firings; they are of all live features."
)
LIMITS = (
    "Verdicts are of the text that both models have read (common), unless another is named. What a child learned "
    "from text of its own shows on that text (own).",
    "Agreement between SAE seeds is over all verdicts; kappa, in summary.json, is what it exceeds chance by.",
    "Undecided and unstable features are in no count of lost or new ones; if all undecided ones were lost, that many "
    "more would be.",
    "Intervals are of shares, over SAE seeds and features; neither training seeds of the models nor other text are "
    "in them, but for second intervals, which findings give where a fine-tune was trained twice. Verdicts on "
    "unstable features do not exist, and stable features may be the more robust ones.",
    "A share of kept features is high for untrained dictionaries, too; the references say how high.",
    "How a model was made is not looked at: what the study file does not say is not known here.",
)
"""Of verdicts, wherever a report tells them."""
_REST = (
    "- Counts by matches at other thresholds, kinds of features, their density and what they mean are on the page. The "
    "last section says how figures are made."
)
_QUESTIONS = ("merge", "sites", "inherited", "lost", "changed", "new", "sure", "matches")
"""In the order in which a model's findings are read; others follow."""
LEFT_OUT = ("density", "kinds", "meaning")
"""Questions about kinds of features rather than what became of them; the page answers them."""
_CORPORA = ("corpus", "source", "documents_train", "bytes_train")  # corpora have no brief columns
_IN_TABLES = ("matches", "inherited", "new", "sure")  # questions whose evidence is in verdicts, references and edges
_RANKS = 1  # of a ranking
_ROWS = 40  # of a table


def write(run: Run, out: Path) -> None:
    """Write the text for a run, whole or not at all."""
    text = render(run)
    with whole(out) as partial:
        partial.write_text(text, encoding="utf-8")


def render(run: Run) -> str:
    """The text for a run, as far as it is done: by the study's first instrument, at its main site."""
    study, first = run.study, run.study.instrument
    rows = {name: _own(TABLES[name], table.to_pylist(), study) for name, table in run.tables.items()}
    studied, found = ([name for name in names if rows.get(name)] for names in (_STUDIED, _FOUND))
    if "verdicts" in found:  # sentences say what matches count
        found = [name for name in found if name != "edges"]
    others = [name for name in (*study.instruments, *study.sites) if name not in (first, study.site)]
    made = [f"heredity {__version__}; seed {study.config.seed}; {format.duration(run.seconds)} of work"]
    made += [machine_of(run), f"SAEs of instrument {first} at `{study.site}`"]
    made += [f"also measured, in summary.json: {format.listed(others)}"] if others else []
    edges = [f"- {edge.name}: {', '.join(study.common_trace(edge))}" for edge in study.edges]
    asked = [one for one in run.statements if one.question not in LEFT_OUT]
    statements = [one for one in asked if one.instrument in (first, "") and one.site in (study.site, "")]
    notes = dict.fromkeys(f"- {one.text}" for one in statements if one.question == "note")
    parts = [
        f"# Study {run.name}: what was inherited, what was lost, what is new, and how sure that is",
        f"{'; '.join(made)}.",
        "## What was studied",
        *(_block(name, rows[name]) for name in studied),
        "### Edges, with the corpora that features are compared on: those that both ends have read" if edges else "",
        "\n".join(edges),
        "## Findings",
        _VERDICTS_FIRST if "verdicts" in found else "",
        *_findings(statements, study.order[::-1]),
        "## Limits",
        "\n".join([*notes, *(f"- {limit}" for limit in (LIMITS if "verdicts" in found else ())), _REST]),
        "## Figures",
        *(_block(name, rows[name]) for name in found),
        "## What the columns mean",
        "A count is followed by its share of the whole in parentheses, and by its interval in brackets.",
        _columns([*studied, *found]),
        "## How figures are made, and what intervals cover",
        *_definitions(found),
    ]
    return "\n\n".join("\n".join(map(seen, part.split("\n"))) for part in parts if part) + "\n"


def table(table: Table, rows: Sequence[Mapping[str, Any]], names: Sequence[str] = ()) -> str:
    """A Markdown table; text columns to the left."""
    layout = format.laid_out(table, rows, names)
    lines = [
        [column.name.replace("_", " ") for column in layout.columns],
        ["---" if column.kind in ("text", "flag") else "--:" for column in layout.columns],
        *([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in layout.cells),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _own(table: Table, rows: Sequence[Mapping[str, Any]], study: Study) -> list[Mapping[str, Any]]:
    """Rows of the first instrument and the main site, where rows have them, but of all sites where these are compared;
    of a ranking the first, and of several seeds the plain study's."""
    own = [row for row in rows if row.get("instrument", study.instrument) == study.instrument]
    if table.plot is None or table.plot.by != "site":
        own = [row for row in own if row.get("site", study.site) == study.site]
    return [row for row in own if row.get("rank", 1) <= _RANKS and not row.get("seed")]


def _names(name: str) -> tuple[str, ...]:
    if name == "lost_and_new":  # of one text, a person reads what was lost from its examples
        return *TABLES[name].brief, "example"
    return TABLES[name].brief or _CORPORA


def _block(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    more = f"\n\n{len(rows) - _ROWS:,} more rows are in summary.json." if len(rows) > _ROWS else ""
    title = format.laid_out(TABLES[name], rows, _names(name)).title
    return f"### {title}\n\n{table(TABLES[name], rows[:_ROWS], _names(name))}{more}"


def _findings(statements: Sequence[Statement], models: Sequence[str]) -> list[str]:
    """By model, the last child first, as on the page; what is about no model after that."""
    found = [one for one in statements if one.question != "note"]
    about = [name for name in models if any(one.about == name for one in found)]
    parts = []
    for name in dict.fromkeys([*about, *(one.about for one in found)]):
        rows = [one for one in found if one.about == name]
        rows.sort(key=lambda one: _QUESTIONS.index(one.question) if one.question in _QUESTIONS else len(_QUESTIONS))
        parts.append(f"### {name}\n\n" + "\n".join(map(_line, rows)))
    return parts or ["None."]


def _line(one: Statement) -> str:
    """A finding with its evidence, unless the text has it as a table."""
    evidence = f" [{'; '.join(one.evidence)}]" if one.evidence and one.question not in _IN_TABLES else ""
    return f"- {one.question}: {one.text}{evidence}"


def _columns(names: Sequence[str]) -> str:
    """Definitions of the columns of some tables; key columns that tables share are defined once."""
    columns = {name: [one for one in TABLES[name].all_columns if one.name in _names(name)] for name in names}
    shared = {column.name: column for each in columns.values() for column in each if KEYS.get(column.name) == column}
    lines = {"all": list(shared.values())}
    lines |= {name: [column for column in each if column.name not in shared] for name, each in columns.items()}
    return "\n".join(
        f"- {name}: " + " ".join(f"*{column.name.replace('_', ' ')}*: {column.doc}" for column in each)
        for name, each in lines.items()
        if each
    )


def _definitions(names: Sequence[str]) -> list[str]:
    """Definitions of the analyses that made some tables."""
    found = [one for one in ANALYSES if any(table.name in names for table in one.tables)]
    docs = dict.fromkeys(inspect.cleandoc(sys.modules[one.run.__module__].__doc__ or "") for one in found)
    return [re.sub(r"(?<!\n)\n(?!\n)", " ", doc) for doc in docs]
