"""Documents: tables and figures of recorded summaries, and pages made from declarations, settings and signatures.

A part of a document between `<!-- TABLE FILE.json [COLUMN=VALUE ...] -->` and `<!-- end -->` is a table of a recorded
summary, brief columns unless `columns=a,b,c` names others; `COLUMN=VALUE` keeps the rows with that value. Other parts,
by name, are functions of the file (`PARTS`).
"""

from __future__ import annotations

import inspect
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

from heredity import format, seed_proof
from heredity.analyses import ANALYSES, TABLES
from heredity.papers.elements import ELEMENTS, Element, State
from heredity.papers.elements import PARTS as HEADINGS
from heredity.papers.reproduction import NAMES, reproduction
from heredity.show import summary
from heredity.show.markdown import table as markdown
from heredity.show.reproduce import parts, render
from heredity.study import Study
from heredity.synthetic import edit_proof, validation, verdict_proof
from heredity.tables import Column, Table

Recorded = dict[str, Any]
MARKED = re.compile(r"<!-- (\w+) ([\w./-]+\.json)((?: \S+?=\S+)*) -->\n(.*?)<!-- end -->", re.DOTALL)


def refreshed(text: str, folder: Path) -> str:
    """The document with every marked part made anew from the summaries in `folder`.

    Raises ValueError for a table or column that the file does not have.
    """

    def made(match: re.Match[str]) -> str:
        name, file, options = match[1], match[2], dict(part.split("=", 1) for part in match[3].split())
        if name in PARTS:
            part = PARTS[name](json.loads((folder / file).read_text(encoding="utf-8")))
        else:
            part = _recorded(name, summary.read(folder / file), file, options)
        return f"<!-- {name} {file}{match[3]} -->\n{part}\n<!-- end -->"

    return MARKED.sub(made, text)


def _recorded(name: str, recorded: Recorded, file: str, options: dict[str, str]) -> str:
    if name not in recorded["tables"]:
        raise ValueError(f"{file}: has no table {name}; tables are {', '.join(recorded['tables'])}")
    part = recorded["tables"][name]
    table = declared(name, part)
    names = [column for column in options.pop("columns", "").split(",") if column]
    known = {column.name for column in table.all_columns}
    if wrong := [column for column in (*names, *options) if column not in known]:
        raise ValueError(f"{file}: table {name} has no column {wrong[0]}; columns are {', '.join(known)}")
    own = [row for row in part["rows"] if all(str(row[key]) == text for key, text in options.items())]
    return markdown(table, own, names)


def declared(name: str, recorded: Mapping[str, Any]) -> Table:
    """The declaration of a recorded table; its brief columns are those of this version, as far as it has them."""
    fields = recorded["columns"]
    ends = {f"{field}_{end}" for field in fields for end in ("low", "high") if f"{field}_low" in fields}
    columns = [Column(field, **fields[field], ci=f"{field}_low" in fields) for field in fields if field not in ends]
    brief = tuple(column for column in (TABLES[name].brief if name in TABLES else ()) if column in fields)
    return Table(name, recorded["doc"], tuple(recorded["key"]), tuple(columns), brief)


def results() -> str:
    """docs/tables.md: definitions of every result, from the analyses' docstrings and table declarations."""
    parts, defined = [], set()
    for analysis in ANALYSES:
        module = analysis.run.__module__
        parts.append(f"\n## {analysis.title}\n")
        if module not in defined:
            parts.append(f"\n{inspect.cleandoc(sys.modules[module].__doc__ or '')}\n")
        defined.add(module)
        for table in analysis.tables:
            where = " Exported only: one row per feature or more." if table.large else ""
            parts.append(f"\n**`{table.name}`** {table.doc}{where}\n\n| column | kind | meaning |\n|---|---|---|\n")
            for column in table.all_columns:
                of = f" Shown as a share of `{column.of}`." if column.of else ""
                ci = f" With its interval: `{column.name}_low`, `{column.name}_high`." if column.ci else ""
                bold = "**" if column.name in table.key else ""
                parts.append(f"| {bold}`{column.name}`{bold} | {column.kind} | {column.doc}{of}{ci} |\n")
    return "".join(parts)


def settings(tables: Iterable[tuple[str, Any]]) -> str:
    """docs/study.md: every key of the study file with its default; tables: titles and settings classes."""
    parts = []
    for title, config in tables:
        parts.append(f"\n## {title}\n\n| key | default | meaning |\n|---|---|---|\n")
        for name, field in config.model_fields.items():
            plain = isinstance(field.default, str | int | float | tuple)
            default = "needed" if field.is_required() else f"`{json.dumps(field.default)}`" if plain else ""
            parts.append(f"| `{name}` | {default} | {' '.join((field.description or '').split())} |\n")
    return "".join(parts)


def commands(helps: Mapping[str, str]) -> str:
    """docs/cli.md; helps: what `heredity COMMAND --help` prints, by command."""
    parts = [f"\n## {name}\n\n```text\n{text.strip()}\n```\n" for name, text in helps.items()]
    return re.sub(r"[ \t]+$", "", "".join(parts), flags=re.M)


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


def rows(recorded: Recorded, name: str, **key: Any) -> list[dict[str, Any]]:
    """Rows of a table of a recorded summary with these values."""
    found = recorded["tables"][name]["rows"]
    return [row for row in found if all(row[column] == value for column, value in key.items())]


def elements() -> str:
    """docs/papers.md: the elements of both papers by heading, and how many are there."""
    papers, states = {"T": NAMES["tracking"], "S": NAMES["stitching"]}, get_args(State)
    counts = {key: [one.state for one in ELEMENTS if one.paper == key] for key in papers}
    lines = [[papers[key], *(str(own.count(state)) for state in states)] for key, own in counts.items()]
    parts = [f"{grid(['paper', *states], lines)}\n"]
    for key, name in papers.items():
        lines = []
        for heading, own in HEADINGS.items():
            if own[0].paper == key:
                lines += [["", f"**{heading}**", "", "", "", ""], *map(_element, own)]
        columns = ["#", "element", "place", "here", "what differs, and why", "result"]
        parts.append(f"\n## {name}\n\n{grid(columns, lines, ['--:', *['---'] * 5])}\n")
    return "".join(parts)


def _element(one: Element) -> list[str]:
    here = ", ".join(re.sub(r"(\S+)$", r"`\1`", reference) for reference in one.here)
    result = re.sub(r"docs/(\w+\.md)", r"[\1](\1)", one.result)
    return [str(one.number), one.element, one.place, here, one.deviation, result]


def grid(names: list[str], lines: list[list[str]], marks: list[str] | None = None) -> str:
    """A Markdown table, by default its first column to the left and all others to the right."""
    marks = marks or ["---", *["--:"] * (len(names) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (names, marks, *lines))


def first_row(recorded: Recorded) -> str:
    """The first edge in words: its verdicts, and what the first paper counts."""
    row = rows(recorded, "verdicts")[0]
    edge = next(one for one in rows(recorded, "edges", edge=row["edge"], instrument=row["instrument"]))
    paper = rows(recorded, "edges", rule="paper", edge=row["edge"], instrument=row["instrument"])[0]
    kept = format.of(row["kept"], row["stable"])
    interval = format.interval("share", row["lost_share_low"], row["lost_share_high"])
    return (
        f"Read the first row so: of {row['live']:,} live features of {edge['parent']}'s SAE, {row['stable']:,} are "
        f"stable: a second SAE of the\nsame model has them too. Of these {kept} are kept in {edge['child']}, "
        f"{row['changed']:,} are there but changed, {row['lost']:,} are\nlost (95 % CI {interval}, over SAE seeds and "
        f"features), and on {row['undecided']:,} the evidence does not decide. By matches alone,\non a sample "
        f"of its own and unstable features included, {edge['persist']:,} of {edge['parent_live']:,} persist "
        f"at r > {edge['threshold']:.2f},\nand {paper['persist']:,} at the paper's {paper['threshold']:g}."
    )


def protocols(recorded: Recorded) -> str:
    """Ways of training the SAEs of an edge, on language models and in a planted world."""
    lines = []
    for name, row in recorded["language_models"].items():
        truth = recorded["planted"][name]
        kept, lost = list(truth["kept_called"].values()), list(truth["lost_recalled"].values())
        shares = [row["ceiling"]["0.8"], row["persist"]["0.8"], row["persist_by_evidence"]]
        explained = " / ".join(f"{value:.3f}" for value in row["explained_variance"])
        ends = [" / ".join(map(format.percent, (values[0], values[-1]))) for values in (kept, lost)]
        lines.append([name, *map(format.percent, shares), explained, f"{row['further_vectors'] / 1e6:.1f}M", *ends])
    names = ["protocol", "ceiling at r > 0.8", "persist at r > 0.8", "by evidence", "explained variance", "vectors"]
    return grid([*names, "planted: kept called", "planted: lost found"], lines)


WIDE, HIGH, LEFT, TOP = 300, 240, 46, 46
COLORS = {"random": "#666666", "transferred": "#1f77b4", "repaired": "#d95f02", "geometry": "#2a9d5c"}
DASHES = {"random": "6 3", "geometry": "2 2"}
LEAST = 0.4
"""Explained variance at the foot of the axis."""


def picture(recorded: Recorded, stitch: str) -> str:
    """Explained variance by FLOPs of training as SVG: a panel per width; cost is logarithmic."""
    curves = rows(recorded, "warm_start_curves", stitch=stitch)
    thresholds = sorted({row["threshold"] for row in rows(recorded, "savings", stitch=stitch)})
    widths = sorted({row["d_sae"] for row in curves})
    size = f'width="{len(widths) * WIDE}" height="{TOP + HIGH + 20}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{LEFT}" y="16">Explained variance of the target by FLOPs of training (dense products)</text>',
    ]
    for number, (arm, color) in enumerate(COLORS.items()):
        x = LEFT + 110 * number
        parts.append(f'<path d="M{x} 30h24" {_stroke(arm)}/><text x="{x + 30}" y="34" fill="{color}">{arm}</text>')
    for number, width in enumerate(widths):
        arms = {arm: [row for row in curves if (row["d_sae"], row["arm"]) == (width, arm)] for arm in COLORS}
        parts += _panel(number * WIDE + LEFT, width, {arm: own for arm, own in arms.items() if own}, thresholds)
    return "\n".join([*parts, "</svg>", ""])


def _stroke(arm: str) -> str:
    dash = f' stroke-dasharray="{DASHES[arm]}"' if arm in DASHES else ""
    return f'fill="none" stroke="{COLORS[arm]}" stroke-width="1.6"{dash}'


def _panel(left: int, width: int, arms: dict[str, list[dict[str, Any]]], thresholds: list[float]) -> list[str]:
    costs = [row["flops"] for own in arms.values() for row in own if row["flops"] > 0]
    low, high = math.log10(min(costs)), math.log10(max(costs))
    wide, high_ = WIDE - LEFT - 14, HIGH - 44

    def x(cost: float) -> float:
        return left + wide * (math.log10(cost) - low) / (high - low)

    def y(value: float) -> float:
        return TOP + 20 + high_ * (1 - (max(value, LEAST) - LEAST) / (1 - LEAST))

    parts = [f'<text x="{left}" y="{TOP + 12}" font-weight="bold">{width:,} features</text>']
    for value in (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        parts.append(f'<path d="M{left} {y(value):.1f}h{wide}" stroke="#dddddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.1f}</text>')
    for value in thresholds:
        parts.append(f'<path d="M{left} {y(value):.1f}h{wide}" stroke="#999999" stroke-dasharray="1 3"/>')
    for power in range(math.ceil(low), math.floor(high) + 1):
        at = f'x="{x(10**power):.1f}" y="{TOP + 36 + high_}" text-anchor="middle"'
        parts.append(f'<path d="M{x(10**power):.1f} {TOP + 20}v{high_}" stroke="#dddddd"/><text {at}>1e{power}</text>')
    for arm, own in arms.items():
        known = [row for row in own if row["flops"] > 0 and row["explained_variance"] is not None]
        points = " ".join(f"{x(row['flops']):.1f},{y(row['explained_variance']):.1f}" for row in known)
        parts.append(f'<polyline points="{points}" {_stroke(arm)}/>')
    return parts


def planted(recorded: Recorded) -> str:
    """Tables of `heredity validate`; those of rules and worlds by origin of the SAEs."""
    parts = []
    for table in (table for table in validation.TABLES if table.brief):
        made = recorded[table.name]
        for init in dict.fromkeys(row.get("init") for row in made):
            own = [row for row in made if row.get("init") == init]
            parts.append(f"{format.laid_out(table, own).title}:\n\n{markdown(table, own)}")
    return "\n\n".join(parts) + "\n"


def proof(recorded: Recorded) -> str:
    """Tables of `heredity validate --only verdicts`."""
    brief = [table for table in verdict_proof.TABLES if table.brief]
    parts = [f"{table.doc.removesuffix('.')}:\n\n{markdown(table, recorded[table.name])}" for table in brief]
    return "\n\n".join(parts) + "\n"


def edits(recorded: Recorded) -> str:
    """The table of `heredity validate --edits`."""
    return markdown(edit_proof.EDITS, recorded["proof_of_edits"]) + "\n"


def seeds(recorded: Recorded) -> str:
    """Tables of `heredity validate --retrain`."""
    parts = [
        f"{table.doc.removesuffix('.')}:\n\n{markdown(table, recorded[table.name])}" for table in seed_proof.TABLES
    ]
    return "\n\n".join(parts) + "\n"


def reproduced(name: str) -> Callable[[Recorded], str]:
    """A table of `heredity reproduce`, of a recorded run that has its study."""

    def part(recorded: Recorded) -> str:
        study = Study.of(recorded["config"], recorded["study"])
        found = reproduction(study, {name: table["rows"] for name, table in recorded["tables"].items()})
        declared = next(table for table, _ in parts(found, ()) if table.name == name)
        return markdown(declared, found._asdict()[name])

    return part


def beside(recorded: Recorded, pictures: Mapping[str, Path]) -> str:
    """What `heredity reproduce STUDY -o FILE.md` writes of a recorded run; pictures: files by title."""
    study, tables = Study.of(recorded["config"], recorded["study"]), recorded["tables"]
    found = {name: table["rows"] for name, table in tables.items()}
    run = SimpleNamespace(name=recorded["study"], **{key: recorded[key] for key in ("seconds", "peak_memory_gib")})
    return render(run, reproduction(study, found), found, pictures)  # pyright: ignore[reportArgumentType]


def cost(recorded: Recorded) -> str:
    """What a recorded run took, and where."""
    text = ", ".join(f"{row['corpus']} {row['sha256'][:8]}" for row in rows(recorded, "corpora"))
    spent = f"{format.duration(recorded['seconds'])} of work, {recorded['peak_memory_gib']:.1f} GiB at most"
    return f"{spent}, on {recorded['machine']}. Text by SHA-256: {text}."


def work(recorded: Recorded) -> str:
    """What the stages of a run took, by kind, beside their estimates: of `heredity check STUDY --json` after it."""
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for row in recorded["plan_stages"]:
        by_kind.setdefault(row["stage"].partition("/")[0], []).append(row)
    shown = {kind: own for kind, own in by_kind.items() if sum(row["took"] for row in own) >= 5}
    less = [row for kind, own in by_kind.items() if kind not in shown for row in own]
    lines = [[kind, *_work(own)] for kind, own in shown.items()]
    lines += [["others", *_work(less)], ["all", *_work(recorded["plan_stages"])]]
    return grid(["stages", "number", "took", "estimate", "GiB at most", "estimate"], lines)


def _work(own: Sequence[Mapping[str, Any]]) -> list[str]:
    took, estimate = (format.duration(sum(row[name] for row in own)) for name in ("took", "seconds"))
    return [
        str(len(own)),
        took,
        estimate,
        *(f"{max(row[name] for row in own):.1f}" for name in ("took_gib", "memory_gib")),
    ]


def stories(cards: Recorded) -> str:
    """Features as `heredity show STUDY MODEL/FEATURE --json` gives them, cut to what is shown."""
    parts = []
    for card in cards["features"]:
        fired = ", ".join(f"{_code(row['token'])} ({row['share']:.0%})" for row in card["tokens"])
        up = ", ".join(_code(row["token"]) for row in card["promoted"])
        parts.append(
            f"**{card['model']}/{card['feature']}** at `{card['site']}`, on {card['density']:.2%} of tokens. Of its "
            f"activation: {fired}. Makes likelier: {up}.\n"
        )
        lines = [
            [row["edge"], row["verdict"], *_two(row, "transmission", "match_r", "map_r")] for row in card["verdicts"]
        ]
        parts.append(grid(["edge", "verdict", "transmission", "match r", "map r"], lines) + "\n")
        parts += [f"- {example['corpus']}: {_context(example)}" for example in card["top"]]
        parts.append("")
    return "\n".join(parts).rstrip()


def _two(row: Mapping[str, Any], *names: str) -> list[str]:
    return ["" if row[name] is None else f"{row[name]:.2f}" for name in names]


def _code(text: str) -> str:
    shown = "".join({" ": "␣", "\n": "↵", "\t": "→", "`": "'", "|": "¦"}.get(letter, letter) for letter in text)
    apart = shown.replace("](", "]" + chr(0x2060) + "(")  # no link
    return f"`{apart}`"


def _context(example: Mapping[str, Any]) -> str:
    """The text around a firing, the token it is on apart."""
    at, tokens = example["position"], example["tokens"]
    before, after = "".join(tokens[max(0, at - 10) : at]), "".join(tokens[at + 1 : at + 7])
    return f"{_code(before)} **{_code(tokens[at])}** {_code(after)}"


def tracked(recorded: Recorded) -> str:
    """What `heredity track` wrote: verdicts, references, and the SAE's quality in both models."""
    shown = {
        "verdicts": ["edge", "live", "stable", "kept", "changed", "lost", "undecided", "lost_share", "agreement"],
        "references": ["reference", "stable", "kept", "changed", "lost", "undecided", "removed_lost"],
        "saes": ["model", "seed", "l0", "explained_variance", "explained_variance_token", "ce_loss_recovered"],
    }
    parts = (markdown(TABLES[name], recorded["tables"][name], columns) for name, columns in shown.items())
    return "\n\n".join(part.strip() for part in parts)


def kept_of(card: Mapping[str, Any]) -> dict[str, Any]:
    """What `stories` shows of a card, for a record that stays small."""
    names = ("model", "feature", "site", "density")
    rows = {name: [{key: row[key] for key in ("token", "share")} for row in card["tokens"][:5]] for name in ("tokens",)}
    rows["promoted"] = [{"token": row["token"]} for row in card["promoted"][:5]]
    verdicts = ("edge", "verdict", "transmission", "match_r", "map_r")
    rows["verdicts"] = [{key: row[key] for key in verdicts} for row in card["verdicts"]]
    rows["top"] = [{key: example[key] for key in ("corpus", "tokens", "position")} for example in card["top"][:3]]
    return {name: card[name] for name in names} | rows


PARTS: dict[str, Callable[[Recorded], str]] = {
    "first_row": first_row, "planted": planted, "proof": proof,
    "protocols": protocols, "edits": edits, "seeds": seeds, "reproduced_claims": reproduced("claims"),
    "reproduced_figures": reproduced("beside_paper"), "cost": cost, "work": work,
    "stories": stories, "tracked": tracked,
}  # fmt: skip
"""Parts of documents that are no table of a summary."""
