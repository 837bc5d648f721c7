"""What the command line shows: progress bars on stderr, tables on stdout."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from heredity.features.null import PAPER
from heredity.report import console
from heredity.report.console import Bars, duration
from heredity.report.said import print_edge, print_explained, print_found, print_merge, print_shown
from heredity.report.stitched import print_stitches

__all__ = [
    "Bars",
    "duration",
    "print_edge",
    "print_explained",
    "print_found",
    "print_gate",
    "print_merge",
    "print_plan",
    "print_shown",
    "print_status",
    "print_stitches",
    "print_summary",
    "print_verified",
]


def print_plan(plan: Any) -> None:
    """`heredity check`."""
    models = Table(
        "model", "made by", "parents", "trace", "parameters", title=f"Study {plan.study}", title_justify="left"
    )
    for model in plan.models:
        count = f"{model.parameters:,}" if model.parameters is not None else "?"
        models.add_row(model.name, model.kind, ", ".join(model.parents), ", ".join(model.trace), count)
    console.out.print(models)
    edges = Table("edge", "compared on")
    for edge in plan.edges:
        edges.add_row(f"{edge.parent} -> {edge.child}", ", ".join(edge.common_trace))
    console.out.print(edges)
    stages = Table("stage", "state", "tokens", "TFLOP", "GiB", "estimate")
    for row in plan.stages:
        state = "done" if row.cached else ""
        tokens = f"{row.tokens:,}" if row.tokens else ""
        left = "" if row.cached else duration(row.seconds)
        stages.add_row(
            row.stage, state, tokens, f"{row.flops / 1e12:.1f}" if row.flops else "", f"{row.memory_gib:.1f}", left
        )
    console.out.print(stages)
    console.out.print(
        f"hook point {plan.hook_point} (width {plan.d_in or '?'}); to do: {plan.tokens:,} tokens, "
        f"{plan.flops / 1e12:,.1f} TFLOP, about {plan.memory_gib:.1f} GiB at most, about {duration(plan.seconds)} here "
        f"({plan.rate / 1e9:.0f} GFLOP/s measured)",
        soft_wrap=True,
    )
    here = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    if plan.memory_gib > here:
        most = max(plan.stages, key=lambda row: 0 if row.cached else row.memory_gib)
        console.out.print(
            f"This machine has {here:.0f} GiB: {most.stage} may not fit, choose narrower SAEs or fewer tokens",
            soft_wrap=True,
        )


def print_status(rows: Sequence[Mapping[str, Any]]) -> None:
    """`heredity status`."""
    table = Table("stage", "state", "seconds")
    for row in rows:
        table.add_row(row["stage"], row["state"], f"{row['seconds']:.1f}" if row["seconds"] is not None else "")
    console.out.print(table)


def print_verified(count: int, damage: Mapping[str, Sequence[str]]) -> None:
    """`heredity verify`."""
    for folder, lines in damage.items():
        for line in lines:
            console.out.print(f"{folder}: {line}", markup=False)
    console.out.print(f"{count} artifacts verified, {len(damage)} damaged")


def print_summary(summary: Any, page: Any) -> None:
    """The end of `heredity run`: what a person wants to know first."""
    corpora = list(next(iter(summary.models.values())).accuracy)
    models = console.table("Next-token accuracy on held-out text", "model", *corpora)
    for name, model in summary.models.items():
        models.add_row(name, *(console.number(model.accuracy[corpus]) for corpus in corpora))
    unigram = next(iter(summary.models.values())).unigram_accuracy
    models.add_row("(unigram)", *(console.number(unigram[corpus]) for corpus in corpora), style="dim")
    console.out.print(models)
    for name, merge in summary.merges.items():
        if merge.t is not None and merge.second:
            mixture = f"{1 - merge.t:.0%} {merge.first} / {merge.t:.0%} {merge.second}"
            console.out.print(f"{name}: {merge.method} at t = {merge.t:.3f} ({mixture})\n", soft_wrap=True)
    instruments = {summary.instrument: summary, **summary.also}
    for init, found in instruments.items():
        _print_measured(init, found)
    print_stitches(summary.stitches)
    for name, case in summary.cases.items():
        ratios = ", ".join(
            f"{model} {console.number(row.llr)}" for model, row in case.members.items() if row.llr is not None
        )
        console.out.print(f"case {name}: {case.verdict}{ratios and f'; LLR {ratios}'}", markup=False, soft_wrap=True)
    if summary.repeats:
        _print_repeats(summary.repeats)
    for note in summary.notes:
        console.out.print(f"Note: {note}", markup=False, soft_wrap=True)
    console.out.print(f"{duration(summary.seconds)} of work. The report: {page}", soft_wrap=True)


_INSTRUMENTS = {
    "joint": "one SAE for all models",
    "parent": "SAEs continued from the parent's",
    "independent": "independent SAEs",
}


def _print_measured(init: str, found: Any) -> None:
    """SAEs, edges and flow of one instrument; nothing for a study of stitches alone."""
    if not found.saes:
        return
    instrument = _INSTRUMENTS[init]
    headings = ("SAE", "L0", "expl. variance", "CE recovered", "dead")
    saes = console.table(f"Sparse autoencoders on held-out text: {instrument}", *headings)
    for name, sae in found.saes.items():
        figures = (
            console.number(sae.explained_variance),
            console.number(sae.ce_loss_recovered),
            f"{sae.dead_share:.1%}",
        )
        saes.add_row(name, f"{sae.l0:.1f}", *figures)
    console.out.print(saes)
    if found.edges:
        _print_edges(instrument, found.edges)
    for name, flow in found.flow.items():
        counts = ", ".join(f"{console.origin(key)} {value}" for key, value in flow.items())
        console.out.print(f"{name}, {sum(flow.values())} live features: {counts}\n", soft_wrap=True)
    if found.classes is not None and found.classes.edges:
        _print_classes(instrument, found.classes)
    if found.explained is not None and found.explained.edges:
        _print_explained(instrument, found.explained)


def _print_edges(instrument: str, edges: Mapping[str, Any]) -> None:
    """Fates along every edge of one instrument; fits 100 columns."""
    headings = ("edge", "r >", "live", "persist", "of ceiling", f"at r > {PAPER:g}", "lost", "new", "floor")
    title = f"Features along every edge, shares of the parent's live ones: {instrument}"
    table = console.table(title, *headings)
    table.padding = 0
    for column, least in ((0, 9), (3, 13)):  # what folds on a narrow terminal
        table.columns[column].no_wrap, table.columns[column].overflow = False, "fold"
        table.columns[column].min_width = least
    for name, edge in edges.items():
        ends = console.ends(edge.intervals.get("persist"))
        persist = (
            f"{edge.persist:,} ({console.percent(console.ratio(edge.persist, edge.parent_live), 0)}) {ends}".strip()
        )
        paper = "" if edge.paper is None else console.percent(console.ratio(edge.paper.persist, edge.parent_live), 0)
        counts = (f"{edge.disappear:,}", f"{edge.emerge:,}", console.percent(edge.floor))
        own = (f"{edge.threshold:.2f}", f"{edge.parent_live:,}")
        table.add_row(name, *own, persist, console.percent(edge.relative, 0), paper, *counts)
    console.out.print(table)
    how = console.thresholds(
        [(row.threshold, row.threshold_by, row.ceiling, row.one_dictionary) for row in edges.values()]
    )
    level = next(iter(edges.values())).level
    brackets = (
        f"; in brackets {level:.0%} intervals over documents, not over trainings"
        if any(row.intervals for row in edges.values())
        else ""
    )
    console.out.print(f"{how}{brackets}\n", soft_wrap=True)


def _print_classes(instrument: str, classes: Any) -> None:
    """Groups of features along every edge, by fate; fits 100 columns."""
    groups = list(next(iter(classes.edges.values())).persist.groups)
    title = f"Kinds of features, % of persist / lost / emerged: {instrument}"
    table = console.table(title, "edge", "judged", *groups)
    table.columns[0].no_wrap, table.columns[0].overflow = False, "fold"
    for name, edge in classes.edges.items():
        fates = edge.persist, edge.disappear, edge.emerge
        shares = [" / ".join(_points(fate.groups[group].share) for fate in fates) for group in groups]
        table.add_row(name, " / ".join(f"{fate.judged:,}" for fate in fates), *shares)
    console.out.print(table)


def _points(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f}"


def _print_explained(instrument: str, explained: Any) -> None:
    """Scores of explanations along every edge and into every merge; fits 100 columns."""
    judge = "statistics of the text" if explained.judge == "offline" else explained.judge
    title = f"Simulation scores, by {judge}: {instrument}"
    table = console.table(title, "edge", "persist", "n", "others", "n", "higher", "interval", "p")
    table.columns[0].no_wrap, table.columns[0].overflow = False, "fold"
    rows = explained.edges | {f"into {name}": found for name, found in explained.merges.items()}
    for name, found in rows.items():
        groups = [
            cell
            for group in (found.persisting, found.others)
            for cell in (console.number(group.median), f"{group.n:,}")
        ]
        p = "" if found.p is None else "<0.001" if found.p < 0.001 else f"{found.p:.3f}"
        table.add_row(name, *groups, console.percent(found.effect, 0), console.ends(found.interval, share=True), p)
    console.out.print(table)
    console.out.print(
        "medians of features that persist and of others; higher: chance that one that persists scores above one that "
        "does not, 50% is no difference\n"
        f"labels: {console.labels(explained.model_dump())}\n",
        soft_wrap=True,
    )


def _print_repeats(repeats: Any) -> None:
    """How far the headline numbers vary between seeds."""
    names = ("persist", "emerge", "ceiling", "floor")
    title = f"Between seeds, mean ± standard deviation of {repeats.seeds} trainings of fine-tunes and SAEs"
    table = console.table(title, "edge", *names)
    for edge, spreads in repeats.edges.items():
        table.add_row(edge, *(_spread(spreads[name]) if name in spreads else "" for name in names))
    console.out.print(table)
    for name, spreads in repeats.merges.items():
        t = spreads["t"]
        console.out.print(f"{name}: t = {t.mean:.3f} ± {t.standard_deviation or 0:.3f}\n", soft_wrap=True)


def _spread(spread: Any) -> str:
    deviation = "" if spread.standard_deviation is None else f" ± {100 * spread.standard_deviation:.1f}"
    return f"{100 * spread.mean:.1f}{deviation} %"


def print_gate(gate: Any) -> None:
    """`heredity gate`."""
    whole = "loss relative to the ceiling" if gate.relative_to_ceiling else "share of the parent's live features"
    table = console.table(f"Lost along every edge: {whole}", "edge", "lost", "interval", "limit", "verdict")
    for row in gate.verdicts:
        interval = "" if row.interval is None else f"{row.interval[0]:.1%} to {row.interval[1]:.1%}"
        table.add_row(row.edge, f"{row.lost:.1%}", interval, f"{row.limit:.1%}", row.words)
    console.out.print(table)
