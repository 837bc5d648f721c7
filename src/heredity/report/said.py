"""What the commands show that look at one thing: an edge, a merge, features that fit, explanations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from heredity.features.evidence import PAPER
from heredity.report import console


def print_merge(result: Mapping[str, Any]) -> None:
    """`heredity merge`."""
    table = Table("tensor", "angle", "method", "norm ratio")
    for row in result["tensors"]:
        angle = f"{row['angle_degrees']:.2f}°" if row["angle_degrees"] is not None else ""
        ratio = f"{row['norm_ratio']:.4f}" if row["norm_ratio"] is not None else ""
        table.add_row(row["name"], angle, row["method"], ratio)
    console.out.print(table)
    console.out.print(f"{result['method']} of {', '.join(result['models'])} -> {result['out']}", markup=False)


def print_edge(result: Mapping[str, Any]) -> None:
    """`heredity track`."""
    table = console.table("", "", "count", "interval", "of live", "of all", f"at r > {PAPER:g}", "interval")
    paper = result["paper"]
    for name in ("persist", "disappear", "emerge", "one_to_one"):
        end = "child" if name == "emerge" else "parent"
        live, features = result[f"{end}_live"], result[f"{end}_features"]
        shares = console.share(result[name], live), console.share(result[name], features)
        own, theirs = (console.ends(found["intervals"].get(name)) for found in (result, paper))
        table.add_row(console.origin(name), f"{result[name]:,}", own, *shares, f"{paper[name]:,}", theirs)
    for name in ("ceiling", "floor", "relative"):
        label = "of ceiling" if name == "relative" else name
        own, theirs = (console.ends(found["intervals"].get(name), share=True) for found in (result, paper))
        table.add_row(label, "", own, console.percent(result[name]), "", console.percent(paper[name]), theirs)
    console.out.print(table)
    if result["ceiling"] is None:
        console.out.print("ceiling not measured: give --sae-control")
    chance = result["chance"]
    found = result.get("rules", {})
    how = console.thresholds(
        [(result["threshold"], result["threshold_by"], result["ceiling"], result["one_dictionary"])]
    )
    above = f"{chance['parent_above']:,} of {result['parent_live']:,} live features match better than chance"
    console.out.print(f"{result['tokens']:,} tokens; {how}", soft_wrap=True)
    tail = f"(false discovery rate {chance['rate']:.0%}); {result['level']:.0%} intervals"
    console.out.print(f"{above} {tail}", soft_wrap=True)
    if found:
        rules = ", ".join(
            f"{console.origin(rule)} {console.share(row['persist'], result['parent_live'])}"
            for rule, row in found.items()
        )
        console.out.print(f"persist by other rules: {rules}", soft_wrap=True)
        for rule, row in found.items():
            if row["flag"]:
                console.out.print(f"beware of {console.origin(rule)}: it {row['flag']}", soft_wrap=True, style="dim")


def print_found(found: Mapping[str, Any]) -> None:
    """`heredity find`: for each model the features that fit, best first."""
    console.out.print(
        f"{found['hits']:,} of {found['positions']:,} tokens of the sample fit ({found['base_rate']:.3%})\n"
    )
    headings = ("feature", "LLR", "counted", "sensitivity", "elsewhere", "hits", "firings", "density", "best match")
    for model, rows in found["models"].items():
        table = console.table(f"{model}, by {found['by']}", *headings)
        table.columns[-1].justify, table.columns[-1].no_wrap = "left", False
        for row in rows:
            fit = [console.number(row[key]) for key in ("llr", "llr_counted", "sensitivity")]
            counts = f"{row['elsewhere']:.3g}x", f"{row['hits']:,}", f"{row['firings']:,}", f"{row['density']:.2%}"
            table.add_row(str(row["feature"]), *fit, *counts, ", ".join(map(_became, row["matches"])))
        console.out.print(
            table if rows else f"{model}: no feature fits and fires {found['minimum_firings']} times on them\n"
        )


def _became(match: Mapping[str, Any]) -> str:
    known = f"{match['feature']} r {match['r'] or 0:.2f}{'' if match['persists'] else ' (no match)'}"
    return f"{match['model']}/{known if match['r'] is not None else 'none'}"


def print_explained(found: Mapping[str, Any]) -> None:
    """`heredity explain`: what was explained, or with `--estimate` what it would take at most."""
    if "at_most" in found:
        most = found["at_most"]
        console.out.print(
            f"{found['features']:,} features of study {found['study']}, by {found['judge']}: at most "
            f"{most['requests']:,} requests, {most['tokens_in']:,} tokens in, {most['tokens_out']:,} out, "
            f"${most['cost']:,.2f} at the prices given",
            markup=False,
            soft_wrap=True,
        )
        return
    table = console.table(f"Explanations by {found['judge']}", "feature", "simulation", "label", "description")
    for column in table.columns[2:]:
        column.justify = "left"
    table.columns[3].no_wrap = False
    for row in found["examples"]:
        said = row["description"] if row["description"] is not None else f"none: {row['failure'].replace('_', ' ')}"
        origin = f"from {row['origin']}" if row["carried"] else "own"
        table.add_row(row["feature"], console.number(row["simulation"]), origin, Text(said))
    if found["examples"]:
        console.out.print(table)
    lines = [console.labels(found)]
    if found["median_simulation"] is not None:
        lines.append(f"median simulation score {found['median_simulation']:.3f}")
    if found["failures"]:
        kinds = ", ".join(f"{kind.replace('_', ' ')} {count:,}" for kind, count in found["failures"].items())
        lines.append(f"answers that did not come: {kinds}")
    if found["ledger"] is not None:
        lines.append(_paid(found["ledger"]))
    if not found["complete"]:
        lines.append("not complete: the budget was spent; raise it and run the same command to go on")
    lines.append(f"written to {found['out']}")
    console.out.print("\n".join(lines), markup=False, soft_wrap=True)


def _paid(ledger: Mapping[str, Any]) -> str:
    return (
        f"{ledger['requests']:,} requests in the ledger, {ledger['cached']:,} answers of this run were there already; "
        f"{ledger['tokens_in']:,} tokens in, {ledger['tokens_out']:,} out, ${ledger['cost']:,.2f}"
    )
