"""The terminal: tables and results of commands on stdout; progress is `heredity.show.progress`."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from heredity import format
from heredity.analyses import ANALYSES, BY_KIND, TABLES
from heredity.show import seen
from heredity.show.gate import line_of
from heredity.tables import Column, Table

if TYPE_CHECKING:
    from heredity.results import Run

Row = Mapping[str, Any]
_FIRST = 10  # of many rows
WIDTH = 100  # of tables; longer lines are hard to read
out = Console(highlight=False, emoji=False)
if not out.is_terminal:
    out.width = max(out.width, WIDTH)  # a file or a pipe has no width that tables would have to be cut to


def say(*lines: str) -> None:
    """Lines of text, as `seen`."""
    for line in lines:
        out.print(Text(seen(line)), soft_wrap=True)


def print_table(table: Table, rows: Sequence[Row], names: Sequence[str] = (), title: str = "") -> None:
    """A table, no wider than the terminal.

    Where it does not fit, there is one for each value of the first key column (the instrument), intervals stand below
    their values, and headings and edges are broken.
    """
    layout, room = format.laid_out(table, rows, names), min(out.width, WIDTH)
    cells = [[seen(cell) for cell in row] for row in layout.cells]
    heads = [column.name.replace("_", " ") for column in layout.columns]
    if _width(heads, cells) > room:
        first = layout.columns[0].name
        values = dict.fromkeys(row.get(first) for row in rows)
        if table.key[:1] == (first,) and 1 < len(values) < len(rows):
            for value in values:
                print_table(table, [row for row in rows if row.get(first) == value], names, title)
            return
        heads = [head.replace(" ", "\n") for head in heads]
        cells = [[cell.replace(" [", "\n[") for cell in row] for row in cells]
    pad = 1
    if _width(heads, cells) > room:
        pad, cells = 0, [[cell.replace("->", "->\n") for cell in row] for row in cells]
    grid = Grid(box=SIMPLE_HEAD, padding=(0, pad, 0, 0), pad_edge=False)
    for column, head in zip(layout.columns, heads, strict=True):
        text = column.kind in ("text", "flag")
        grid.add_column(Text(head), justify="left" if text else "right", no_wrap=not text, overflow="fold")
    for row in cells:
        grid.add_row(*map(Text, row))
    out.print(Text(seen(f"{title} ({layout.title})" if title else layout.title), "bold"), width=room)
    out.print(grid, width=room)


def _width(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> int:
    """Of a table with two spaces after each column."""
    columns = zip(heads, *cells, strict=True)
    return 2 + sum(2 + max(len(line) for cell in column for line in cell.split("\n")) for column in columns)


_RANKS = 3  # of a ranking, whose other rows are on the page


def print_worked(rows: Sequence[Row]) -> None:
    """What the stages took that were done now; nothing where all was there."""
    from heredity.analyses.worked import WORKED

    if rows:
        out.rule(Text("Work", "bold"), align="left", style="dim")
        print_table(WORKED, rows)


def print_run(run: Run, page: Path, spent: Sequence[Row] = ()) -> None:
    """The end of `heredity run`: brief tables under the titles of their analyses, what the stages took that were done
    now, notes, time and page."""
    for analysis in ANALYSES:
        shown = [table for table in analysis.tables if table.brief and len(run.tables.get(table.name, ()))]
        if shown:
            out.rule(Text(analysis.title, "bold"), align="left", style="dim")
        for table in shown:
            rows = run.tables[table.name].to_pylist()
            print_table(table, [row for row in rows if "rank" not in table.key or row["rank"] <= _RANKS])
    print_worked(spent)
    say(*dict.fromkeys(f"Note: {found.text}" for found in run.statements if found.question == "note"))
    say(f"{format.duration(run.seconds)} of work. The report: {page}")


PLAN_KINDS = Table(
    "plan_kinds",
    "Work by kind of stage, in order; --stages lists each.",
    ("kind",),
    (
        Column("kind", "text", "Kind of stage."),
        Column("stages", "count", "Number of stages."),
        Column("done", "count", "Those that are done already."),
        Column("tokens", "count", "Tokens that they read."),
        Column("flops", "flops", "Floating-point operations of their matrix products."),
        Column("memory_gib", "number", "Estimate of GiB of memory at most."),
        Column("took_gib", "number", "GiB that those which are done took at most."),
        Column("seconds", "seconds", "Estimate on this machine."),
        Column("took", "seconds", "Seconds that those which are done took."),
    ),
    brief=("kind", "stages", "done", "tokens", "flops", "memory_gib", "took_gib", "seconds", "took"),
)


def by_kind(stages: Sequence[Row]) -> list[Row]:
    """Rows of `PLAN_KINDS`."""
    kinds: dict[str, list[Row]] = {}
    for row in stages:
        kinds.setdefault(row["stage"].partition("/")[0], []).append(row)
    rows = []
    for kind, own in kinds.items():
        done = [row for row in own if row["cached"]]
        total: dict[str, Any] = {"kind": kind, "stages": len(own), "done": len(done)}
        total |= {name: sum(one[name] for one in own) for name in ("tokens", "flops", "seconds")}
        total["memory_gib"] = max(one["memory_gib"] for one in own)
        took = {"took": sum(one["took"] for one in done), "took_gib": max((one["took_gib"] for one in done), default=0)}
        rows.append(total | (took if done else {}))
    return rows


def print_plan(plan: Row, stages: bool) -> None:
    """`heredity check`. stages: list each, in place of a row per kind."""
    from heredity.analyses.plan import PLAN_EDGES, PLAN_MODELS, PLAN_STAGES

    say(f"Study {plan['study']}")
    done = [row for row in plan["plan_stages"] if row["cached"]]
    work = (PLAN_STAGES, plan["plan_stages"]) if stages else (PLAN_KINDS, by_kind(plan["plan_stages"]))
    for table, rows in ((PLAN_MODELS, plan["plan_models"]), (PLAN_EDGES, plan["plan_edges"]), work):
        shown = [name for name in table.brief if done or not name.startswith(("took", "done"))]
        if rows:
            print_table(table, rows, shown)
    sites = [f"{site} (width {width or '?'})" for site, width in plan["sites"].items()]
    say(
        f"hook point {format.listed(sites)}; to do: {plan['tokens']:,} tokens, "
        f"{format.value('flops', plan['flops'])}, about {plan['memory_gib']:.1f} GiB at most, about "
        f"{format.duration(plan['seconds'])} here ({plan['rate'] / 1e9:.0f} GFLOP/s measured)"
    )
    if done:
        estimate, took = (format.duration(sum(row[name] for row in done)) for name in ("seconds", "took"))
        say(f"Done: {len(done)} stages, which took {took} (the estimate here: {estimate})")
    say(*(f"Note: {note}" for note in plan["notes"]))
    here = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    left = [row for row in plan["plan_stages"] if not row["cached"]]
    if left and plan["memory_gib"] > here:
        most = max(left, key=lambda row: row["memory_gib"])
        say(f"This machine has {here:.0f} GiB: {most['stage']} may not fit; choose narrower SAEs or fewer tokens")


STATUS = Table(
    "status",
    "Stages, in order of work.",
    ("stage",),
    (
        Column("stage", "text", "kind/name."),
        Column("state", "text", "done, begun, damaged or missing."),
        Column("seconds", "seconds", "Time spent."),
    ),
)
LEFT_OVER = Table(
    "left_over",
    "What the study has no use for.",
    ("folder",),
    (
        Column("folder", "text", "Below the study's folder; those of stages that were begun are named .partial-..."),
        Column("mib", "number", "MiB on the disk."),
    ),
)
FOUND = Table(
    "found",
    "Features that fit.",
    ("feature",),
    (
        Column("llr", "number", "LLR by activation."),
        Column("counted", "number", "LLR by count."),
        Column("sensitivity", "r", "Share of the tokens on which it is active."),
        Column("elsewhere", "number", "Activation on other tokens over that on these."),
        Column("hits", "count", "Firings on the tokens."),
        Column("firings", "count", "All firings."),
        Column("density", "share", "Share of all tokens on which it fires."),
        Column("best_match", "text", "Best match along every edge."),
        Column("verdict", "text", "What became of it along every edge, by evidence."),
    ),
)
EXPLAINED = Table(
    "explained",
    "Explanations.",
    ("feature",),
    (
        Column("feature", "text", "MODEL/FEATURE."),
        Column("simulation", "r", "Simulation score."),
        Column("label", "text", "Feature that the explanation was made for."),
        Column("description", "text", "The explanation."),
    ),
)


def print_verified(count: int, damage: Mapping[str, Sequence[str]]) -> None:
    """`heredity verify`."""
    say(*(f"{folder}: {line}" for folder, lines in damage.items() for line in lines))
    say(f"{count} artifacts verified, {len(damage)} damaged")


def print_gate(gate: Row) -> None:
    """`heredity gate`: one line per edge."""
    if gate["by"] == "verdicts":
        whole = "Stable features of the parent, by verdicts"
        whole += "" if gate["text"] == "common" else f" on the text {gate['text']}"
    else:
        relative = ", relative to the ceiling" if gate["relative_to_ceiling"] else ""
        whole = f"Live features of the parent, by matches{relative}"
    say(f"{whole} (instrument {gate['instrument']}, at {gate['site']})")
    say(*(line_of(edge, judged) for edge, judged in gate["edges"].items()))


def print_merge(result: Row) -> None:
    """`heredity merge`."""
    print_table(TABLES["merge_tensors"], result["tensors"], ("name", "angle_degrees", "method", "norm_ratio"))
    say(f"{result['method']} of {', '.join(result['models'])} -> {result['out']}")


def print_products(rows: Sequence[Row]) -> None:
    """`heredity doctor`."""
    grid = Grid("product", "inputs", "features", "threads", "GFLOP/s", "taken", box=SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        speed = "missing" if row["gflops"] is None else f"{row['gflops']:.0f}"
        grid.add_row(row["product"], *(str(row[name]) for name in ("d_in", "d_sae", "threads")), speed, row["taken"])
    out.print(Text("Matrix products that candidates of SAEs' activations can be found with", "bold"))
    out.print(grid)


def print_converted(result: Row) -> None:
    """`heredity convert`."""
    place = f" at {result['hook_name']}" if result["hook_name"] else ""
    say(f"{result['activation']}, {result['d_in']} -> {result['d_sae']} features{place}, in {result['out']}")
    same = "read again, activations differ by at most"
    say(f"{same} {result['largest_difference']:.2g}, features active or not in {result['other_features']} entries")


def print_edge(result: Row, evidence: Sequence[Row]) -> None:
    """`heredity track`. evidence: rows of that table; the features that differ most, where there are no verdicts."""
    if "verdicts" not in result["tables"]:
        names = ("end", "feature", "firings", "match_r", "map_r", "strength", "transmission")
        known = [row for row in evidence if None not in (row["transmission"], row["transmission_error"])]
        middle = statistics.median([row["transmission"] for row in known] or [1.0])
        known.sort(key=lambda row: 2 * row["transmission_error"] - abs(row["transmission"] - middle))
        title = f"The {min(len(known), _FIRST)} features of which the effect surely differs most from the median"
        if known:
            print_table(TABLES["evidence"], known[:_FIRST], names, title)
    if rows := result["tables"].get("saes"):
        here = TABLES["saes"]._replace(doc="Sparse autoencoders on this text; seed 0 is the one that was given.")
        print_table(here, rows, ("model", "seed", *here.brief[2:]))
    for table in (*BY_KIND["verdicts"].tables, *BY_KIND["match"].tables):
        if rows := result["tables"].get(table.name):
            names = [column for column in table.brief if column not in ("instrument", "edge")]
            if names or table.name in ("chance", "criteria"):
                print_table(table, rows, names)
    for row in result["tables"].get("verdicts", ()):
        own, stable = result[row["end"]], format.of(row["stable"], row["live"])
        say(f"{own}: {stable} live features are stable, found again by an SAE of another seed")
    say(*(f"Note: {note}" for note in result["notes"]))
    for end, folder in result["second_saes"].items():
        option = "--sae-control" if end == "parent" else "--sae-child-control"
        say(f"The second SAE of the {end} is kept: {option} {folder} spares its training")
    say(f"Tables, one Parquet file each, and this result as JSON: {result['out']}")


def print_found(result: Row) -> None:
    """`heredity find`: for each model the features that fit, best first."""
    base = format.percent(result["base_rate"])
    say(f"{result['hits']:,} of {result['positions']:,} tokens of the sample fit ({base})")
    if result["not_in_vocabulary"]:
        absent = ", ".join(map(repr, result["not_in_vocabulary"]))
        say(f"not single tokens here, and so left out of the search: {absent}")
    for model, features in result["models"].items():
        rows = [
            row
            | {"counted": row["llr_counted"], "best_match": ", ".join(map(_match, row["matches"]))}
            | {"verdict": ", ".join(f"{one['model']}: {one['verdict']}" for one in row["verdicts"])}
            for row in features
        ]
        if rows:
            print_table(FOUND, rows, title=f"{model}, by {result['by']}")
        else:
            say(f"{model}: no feature fits and fires {result['minimum_firings']} times on them")


def _match(match: Row) -> str:
    if match["r"] is None:
        return f"{match['model']}/none"
    return f"{match['model']}/{match['feature']} r {match['r']:.2f}{'' if match['persists'] else ' (no match)'}"


def print_explained(result: Row) -> None:
    """`heredity explain`: what was explained, or with `--estimate` what it would take."""
    if "at_most" in result:
        most = result["at_most"]
        say(
            f"{result['features']:,} features of study {result['study']}, by {result['judge']}: at most "
            f"{most['requests']:,} requests; about {most['tokens_in']:,} tokens in and {most['tokens_out']:,} out for "
            f"all of them, ${most['cost']:,.2f} at the prices given"
        )
        return
    rows = []
    for row in result["examples"]:
        failure = f"none: {(row['failure'] or '').replace('_', ' ')}"
        label = f"from {row['origin']}" if row["carried"] else "its own"
        rows.append(row | {"label": label, "description": row["description"] or failure})
    if rows:
        print_table(EXPLAINED, rows, title=f"By {result['judge']}")
    saved = f" (${result['saved_cost']:.2f})" if result["saved_cost"] else ""
    say(
        f"{result['features']:,} features selected, {result['too_rare']:,} more too rare; {result['explained']:,} "
        f"explained, {result['carried']:,} tried with a match's label: {result['kept']:,} keep it, "
        f"{result['re_explained']:,} explained anew; {result['saved']:,} explanations saved{saved}; "
        f"{result['failed']:,} failed"
    )
    if result["median_simulation"] is not None:
        say(f"median simulation score {result['median_simulation']:.3f}")
    if result["failures"]:
        kinds = ", ".join(f"{kind.replace('_', ' ')} {count:,}" for kind, count in result["failures"].items())
        say(f"answers that did not come: {kinds}")
    if ledger := result["ledger"]:
        say(
            f"{ledger['requests']:,} requests in the ledger, {ledger['cached']:,} answers of this run were there "
            f"already; {ledger['tokens_in']:,} tokens in, {ledger['tokens_out']:,} out, ${ledger['cost']:,.2f}"
        )
        say(*(f"{kind}: {reason}" for kind, reason in ledger["reasons"].items()))
    for one in result["dialect"]:
        sent = f"sent as {one['instead']}" if one["instead"] else "left out"
        said = f"{one['parameter']} is not taken by this endpoint: {sent}, after {one['requests']:,} refused requests"
        if one["parameter"] == "spare_tokens":
            said = f"answers may have {int(one['instead']):,} further tokens, after {one['requests']:,} cut in thoughts"
        say(said)
    if not result["complete"]:
        say("not complete: raise the limit or mend what is said above, and run the same command to go on")
    say(f"written to {result['out']}")
