"""What the command line says of stitches."""

from __future__ import annotations

from collections.abc import Mapping

from heredity.report import console
from heredity.report.bridge import BridgeSummary
from heredity.report.carried import SavingRow
from heredity.report.kept import KeptSummary
from heredity.report.probing import ProbeSummary, SteeringSummary
from heredity.report.stitch import MapsSummary, StitchSummary
from heredity.report.stitch_findings import fit_costs

WAYS = {
    "source": "{source}",
    "target": "{target}",
    "up": "{source} -> {target}",
    "down": "{target} -> {source}",
    "source_round_trip": "{source} -> {target} -> {source}",
    "target_round_trip": "{target} -> {source} -> {target}",
}
"""Fronts and backs of models, as the first paper writes them (table 1)."""
_SIZES = 6  # of probes, that fit beside each other


def print_stitches(found: Mapping[str, StitchSummary]) -> None:
    """What each stitch carries, a table for every question."""
    for name, own in found.items():
        _print_maps(name, own.maps)
        _print_carried(own)
        if own.savings:
            _print_savings(own.savings)
            for width, arms in own.beginnings.items():
                ends = ", ".join(f"{arm} {console.number(found.explained_variance)}" for arm, found in arms.items())
                console.out.print(f"Explained at the end, {int(width):,} features: {ends}", markup=False)
            console.out.print()
        for task, probes in own.probes.items():
            _print_probes(task, probes)
        if own.steering is not None:
            _print_steering(own.steering)
        if own.kept is not None:
            _print_kept(own.kept)
        if own.bridge is not None:
            _print_bridge(own.bridge)


def way(name: str, maps: MapsSummary) -> str:
    """A way through the maps in the models' names."""
    return WAYS[name].format(source=maps.source, target=maps.target)


def _print_maps(name: str, maps: MapsSummary) -> None:
    ends = f"{maps.source} {maps.source_hook_point} ({maps.widths[0]}) and {maps.target} {maps.target_hook_point}"
    console.out.print(f"Stitch {name}: {ends} ({maps.widths[1]})\n", markup=False, soft_wrap=True)
    headings = ("fit", "loss", "R2 up", "down", "there and back", "back and there", "GFLOP", "seconds")
    fits = console.table(f"Maps, judged on {maps.held_out:,} held-out tokens", *headings)
    for method, fit in maps.fits.items():
        marked = f"{method} *" if method == maps.method else method
        r2 = (console.number(value) for value in fit.r2.values())
        fits.add_row(marked, _digits(fit.loss), *r2, f"{(fit.flops or 0) / 1e9:,.0f}", f"{fit.seconds or 0:.1f}")
    console.out.print(fits)
    for line in fit_costs(maps):
        console.out.print(f"{line[0].upper()}{line[1:]}.", markup=False, soft_wrap=True)
    ways = console.table("Front of the first, back of the last", "way", "CE", "accuracy", "rise of CE")
    for key, row in maps.ways.items():
        ways.add_row(
            way(key, maps), console.number(row.ce_loss), console.number(row.accuracy), console.percent(row.increase)
        )
    console.out.print(ways)


def _print_carried(own: StitchSummary) -> None:
    headings = ("SAE", "L0", "unexplained", "CE rise", "CE recovered", "dead")
    for width, carried in own.carried.items():
        table = console.table(f"{width:,} features of {own.maps.source}, in {own.maps.target} untrained", *headings)
        for kind, row in carried.figures.items():
            label = f"in {own.maps.source} itself" if kind == "source" else kind
            l0 = "" if row.l0 is None else f"{row.l0:.1f}"
            figures = console.number(row.fvu), console.number(row.delta_loss), console.number(row.ce_loss_recovered)
            table.add_row(label, l0, *figures, console.percent(row.dead_share))
        console.out.print(table)


def _print_savings(rows: tuple[SavingRow, ...]) -> None:
    headings = ("features", "start", "explained", "FLOPs saved", "time saved", "with the source's SAE")
    table = console.table("Training in the target: saved against a random start, maps included", *headings)
    for row in rows:
        never = f"never: {' and '.join(row.never)}" if row.never else ""
        saved = never or console.percent(row.saved_flops, 0)
        further = console.percent(row.saved_seconds, 0), console.percent(row.saved_flops_with_source, 0)
        table.add_row(f"{row.d_sae:,}", row.arm, f"{row.threshold:g}", saved, *further)
    console.out.print(table)


def _print_probes(task: str, found: ProbeSummary) -> None:
    if found.reason:
        console.out.print(f"Probes, {task}: {found.reason}\n", markup=False, soft_wrap=True)
        return
    means = {(row.arm, row.k): row.balanced_accuracy for row in found.means}
    sizes = sorted(k for arm, k in means if arm == "source")[:_SIZES]
    dense = {arm: value for (arm, _), value in means.items() if arm.startswith("dense_")}
    title = f"Probes, {task} ({', '.join(found.classes)}): balanced accuracy by features read"
    table = console.table(title, "probe", *(f"{k}" for k in sizes), "all dimensions")
    for arm in ("source", "native", "refitted", "unchanged", "random"):
        values = (console.number(means.get((arm, k))) for k in sizes)
        table.add_row(arm, *values, console.number(dense.get(f"dense_{arm}")))
    console.out.print(table)


def _print_steering(found: SteeringSummary) -> None:
    if found.reason:
        console.out.print(f"Steering: {found.reason}\n", markup=False, soft_wrap=True)
        return
    shares = {(row.model, row.wanted, row.arm): row.share[0] for row in found.rows}
    texts = {(row.model, row.wanted): row.n for row in found.rows}
    arms = ("none", "random", "native", "carried")
    table = console.table("Steering: share of texts of the wanted kind", "model", "wanted", *arms, "gap", "texts")
    for row in found.gaps:
        values = (console.percent(shares.get((row.model, row.wanted, arm)), 0) for arm in arms)
        table.add_row(row.model, row.wanted, *values, _digits(row.gap), f"{texts[row.model, row.wanted]}")
    console.out.print(table)


def _print_kept(found: KeptSummary) -> None:
    headings = ("features", "n", "5 %", "25 %", "median", "75 %", "95 %")
    table = console.table("r of a feature's attributions in both models", *headings)
    rows = {}
    if found.attribution is not None:
        rows |= {"all judged": found.attribution.trained, "random directions": found.attribution.random}
    if found.split is not None:
        rows |= {"structural": found.split.structural.attribution, "semantic": found.split.semantic.attribution}
    for label, row in rows.items():
        table.add_row(label, f"{row.n:,}", *(_digits(value) for value in row.quantiles))
    if rows:
        console.out.print(table)
    for part, reason in found.reasons.items():
        console.out.print(f"Features, {part}: {reason}\n", markup=False, soft_wrap=True)


def _print_bridge(found: BridgeSummary) -> None:
    own = found.compared
    if own is None:
        console.out.print(f"Edge {found.edge}: {found.reason}\n", markup=False, soft_wrap=True)
        return
    title = f"Edge {found.edge}: {own.matched:,} of {own.live:,} features persist by their matches"
    table = console.table(
        title, "each feature with itself", "persist", "agree (kappa)", "r with match's r", "expl. var."
    )
    explained = {"carried": own.carried_explained_variance, "unchanged": own.unchanged_explained_variance}
    for label, row in (("carried", own.carried), ("unchanged", own.unchanged)):
        if row is not None:
            figures = (_digits(row.kappa), _digits(row.rank), console.number(explained[label]))
            table.add_row(label, f"{row.persisting:,}", *figures)
    console.out.print(table)


def _digits(value: float | None) -> str:
    """Three that count."""
    return "" if value is None else f"{value:.3g}"
