"""Parts of the documents that are no table of a summary: a sentence, figures beside the paper's, and one picture."""

from __future__ import annotations

import math
from typing import Any

from heredity import format
from heredity.show.docs import markdown
from heredity.synthetic.validation import TABLES

Recorded = dict[str, Any]


def rows(recorded: Recorded, name: str, **key: Any) -> list[dict[str, Any]]:
    """Rows of a table of a recorded summary with these values."""
    found = recorded["tables"][name]["rows"]
    return [row for row in found if all(row[column] == value for column, value in key.items())]


def grid(names: list[str], lines: list[list[str]]) -> str:
    """A Markdown table, its first column to the left."""
    marks = ["---", *["--:"] * (len(names) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (names, marks, *lines))


def first_row(recorded: Recorded) -> str:
    """The first edge in words."""
    row = next(row for row in rows(recorded, "edges") if row["rule"] == "evidence")
    paper = rows(recorded, "edges", rule="paper", edge=row["edge"], instrument=row["instrument"])[0]
    counts = format.of(row["persist"], row["parent_live"], row["persist_low"], row["persist_high"])
    return (
        f"Read the first row so: {counts} live features of {row['parent']} have a match in {row['child']} above\n"
        f"r = {row['threshold']:.2f}, a threshold between what chance reaches and what an unchanged model reaches.\n"
        "The interval covers documents, not training seeds. By chance "
        f"{format.percent(row['floor'])} would persist; at the paper's threshold of {paper['threshold']:g}, "
        f"{paper['persist']:,} do."
    )


def beside_paper(recorded: Recorded) -> str:
    """Figures of Horn & Elliott (2410.12391, sections 3 and 4) and those of a run of their experiment."""
    saes, models = rows(recorded, "saes"), [row["model"] for row in rows(recorded, "models")]
    flow = {row["origin"]: row["features"] for row in rows(recorded, "flow")}
    live, emerged = sum(flow.values()), sum(n for origin, n in flow.items() if origin.startswith("emerged"))
    edges = [row for row in rows(recorded, "edges", parent=models[0]) if row["rule"] != "paper"]
    verdicts = {row["case"]: row for row in rows(recorded, "case_verdicts")}

    def between(column: str, digits: int) -> str:
        values = [row[column] for row in saes]
        return f"{min(values):.{digits}f} to {max(values):.{digits}f}"

    def llr(case: str) -> str:
        ratios = {row["model"]: row["llr"] for row in rows(recorded, "cases", case=case)}
        return ", ".join(f"{ratios[name]:.2f}" if ratios.get(name) is not None else "–" for name in models)

    def flowing(group: str) -> str:
        row = rows(recorded, "classes", fate="flow", kind="group", **{"class": group})[0]
        ends = format.interval("share", row["share_low"], row["share_high"])
        return f"{format.percent(row['share'])} [{ends}]"

    persist = ", ".join(f"{row['persist']:,} ({format.percent(row['persist'] / row['parent_live'])})" for row in edges)
    vectors = f"{saes[0]['tokens']:,} of all models" if saes[0]["instrument"] == "joint" else f"{saes[0]['tokens']:,}"
    return grid(
        ["", "paper", "this run"],
        [
            ["features of an SAE", "16,384", f"{saes[0]['d_sae']:,}"],
            ["vectors per SAE", "15,000,000", vectors],
            ["mean L0", "25 to 35", between("l0", 1)],
            ["explained loss, most likely CE recovered", "over 0.88", between("ce_loss_recovered", 3)],
            ["explained variance", "not reported", between("explained_variance", 3)],
            ["dead features", "no significant share", between("dead_share", 3)],
            ["base's features found in a fine-tune", "959 in at least one (5.9 %)", persist],
            ["merge's features found in a parent", "1,210", f"{live - flow['novel']:,} of {live:,}"],
            ["of these, emerged in fine-tuning", "729", f"{emerged:,}"],
            ["of these, from the base", "481", f"{flow['from_base']:,}"],
            ["assignment, LLR along the lineage", "7.53, 6.58, 7.64, 7.19", llr("assignment")],
            ["assignment, mean r", "0.851", f"{verdicts['assignment']['mean_r']:.3f}"],
            ["exception, LLR", "11.38 in the base, 8.59 in Lua's best match", llr("exception")],
            ["punctuation among features that flow base, Lua, merge", "20 %", flowing("punctuation")],
            ["formatting among features that flow the same way", "5 %", flowing("formatting")],
        ],
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
    for table in (table for table in TABLES if table.brief):
        made = recorded[table.name]
        for init in dict.fromkeys(row.get("init") for row in made):
            own = [row for row in made if row.get("init") == init]
            parts.append(f"{format.laid_out(table, own).title}:\n\n{markdown(table, own)}")
    return "\n\n".join(parts) + "\n"
