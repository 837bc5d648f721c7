"""What a warm start saves, what each part of a stitch costs, and how the loss falls with compute.

Saving (figure 8b of Chen et al. 2025): 1 - (cost of the start, its maps and its training) / (cost of the training from
the random start), on the way to an explained variance; once more with the training of the source's SAE included. The
cost of a level is read off the training's curve where it first gets there, linear in the logarithm of the cost between
its points. The curve is of the same held-out vectors throughout and is not smoothed. Costs are FLOPs of dense products,
as in their appendix D, and seconds. Where either training never reaches the level, there is no saving.

Scaling (table 4): see `heredity.stitch.scaling`; of each width's curve, and of the frontier of all widths, as in the
paper.
Costs (table 3): parts of a stitch as shares of the training of the target's SAE from a random start.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from heredity import format
from heredity.analyses.analysis import Analysis, Item, Needs, Results, Statement, Tables, rows_of, seed_of
from heredity.analyses.sae_transfer import source_sae_need
from heredity.analyses.stitch_maps import by_stitch, maps_of, percent, read_rows
from heredity.analyses.warm_starts import ARM, KEY, warm_start_need
from heredity.engine.stage import Work
from heredity.engine.store import Artifact
from heredity.study import Study
from heredity.tables import Column, Plot, Table

_STARTS = {"transferred": "the transferred SAE", "repaired": "the transferred and repaired SAE"}
_SAVED = (
    Column("never", "text", "Starts that never reached it; empty where both did."),
    Column("flops", "flops", "FLOPs of the training up to there; null when never."),
    Column("seconds", "seconds", "Wall time of the same."),
    Column("saved_flops", "share", "Saving in FLOPs, with making the start and, where it needs them, the maps."),
    Column("saved_seconds", "share", "The same in wall time."),
    Column("saved_flops_with_source", "share", "With the training of the source's SAE too; null for a loaded one."),
    Column("saved_seconds_with_source", "share", "The same in wall time."),
)
SAVINGS = Table(
    "savings",
    "Share of the cost of the random start's training saved on the way to an explained variance.",
    (*KEY, "threshold"),
    (ARM, Column("threshold", "r", "Explained variance to reach."), *_SAVED),
    brief=(*KEY, "threshold", "never", "saved_flops", "saved_seconds", "saved_flops_with_source"),
)
SAVINGS_BY_LEVEL = Table(
    "savings_by_level",
    "The same over a range of explained variances.",
    (*KEY, "level"),
    (ARM, Column("level", "r", "Explained variance to reach."), *_SAVED),
    plot=Plot("lines", x="level", y="saved_flops", by="arm"),
)
SCALING_FITS = Table(
    "scaling_fits",
    "Fraction of variance unexplained as A C^-beta of the training's FLOPs C.",
    ("stitch", "arm", "curve"),
    (
        ARM,
        Column("curve", "text", "Features of the SAE, or the frontier of all widths."),
        Column("a", "number", "A. Interval: bootstrap of residuals, without the scatter between trainings.", ci=True),
        Column("beta", "number", "The exponent, with its interval by the same draws.", ci=True),
        Column("r2", "r", "R2 of the logarithm of the fraction unexplained."),
        Column("points", "count", "Points of the curve behind the fit; below 4 there is none."),
        Column("from_flops", "flops", "The first of them: a twentieth of the training, which is left out before."),
        Column("to_flops", "flops", "The last of them."),
    ),
    brief=("stitch", "arm", "curve", "a", "beta", "r2", "points"),
)
COSTS = Table(
    "costs",
    "Parts of a stitch by cost.",
    ("stitch", "d_sae", "part"),
    (
        Column(
            "part",
            "text",
            "maps: each fit; source SAE and target SAE (from the random start): their trainings; reading for each: "
            "forward passes of the models up to their hook points.",
        ),
        Column("flops", "flops", "FLOPs: of a fit's and a training's dense products, or of the passes."),
        Column("seconds", "seconds", "Wall time, passes included; null where passes are timed with their training."),
        Column("share", "share", "FLOPs relative to those of the target SAE's training."),
        Column("in_use", "flag", "Whether further results rest on it."),
    ),
    brief=("stitch", "d_sae", "part", "flops", "seconds", "share", "in_use"),
)


class SavingsSettings(NamedTuple):
    thresholds: tuple[float, ...]
    levels: tuple[float, ...]
    seed: int


def _settings(study: Study, item: Item) -> SavingsSettings:
    config = study.config.stitch[item["stitch"]]
    return SavingsSettings(config.thresholds, config.levels, seed_of(study, "scaling", item["stitch"]))


def _needs(study: Study, item: Item) -> Needs:
    name = item["stitch"]
    config = study.config.stitch[name]
    starts = ((d_sae, arm) for d_sae in config.widths for arm in config.arms)
    return {
        "stitch": ("stitch", item),
        "source_sae": {str(d_sae): source_sae_need(name, d_sae) for d_sae in config.widths},
        "warm_start": {f"{d_sae}-{arm}": warm_start_need(name, d_sae, arm) for d_sae, arm in starts},
    }


def _run(work: Work, settings: SavingsSettings) -> Results:
    from heredity.stitch.savings import saving_row

    fit = next(row for row in read_rows(work.inputs["stitch"], "stitch_fits") if row["in_use"])
    ends: dict[tuple[int, str], dict[str, Any]] = {}
    curves: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for artifact in work.inputs["warm_start"].values():
        row = read_rows(artifact, "warm_starts")[0]
        ends[row["d_sae"], row["arm"]] = row
        curves[row["d_sae"], row["arm"]] = read_rows(artifact, "warm_start_curves")
    sources = {int(d_sae): _source_cost(artifact) for d_sae, artifact in work.inputs["source_sae"].items()}
    levels = {"savings": ("threshold", settings.thresholds), "savings_by_level": ("level", settings.levels)}
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in levels}
    for (d_sae, arm), curve in curves.items():
        if arm == "random":
            continue
        # A start that is only turned needs the source's SAE and no maps.
        paid = (0.0, 0.0) if arm == "geometry" else (fit["flops"], fit["seconds"])
        start = ends[d_sae, arm]
        extra = start["start_flops"] + paid[0], start["start_seconds"] + paid[1]
        for name, (column, values) in levels.items():
            for level in values:
                costs = saving_row(curve, curves[d_sae, "random"], level, extra, sources[d_sae][:2])
                reached = {arm: costs["flops"], "random": costs.pop("random_flops")}
                del costs["random_seconds"]
                never = ", ".join(one for one, cost in reached.items() if cost is None)
                tables[name].append({"d_sae": d_sae, "arm": arm, column: level, "never": never, **costs})
    targets = {d_sae: row for (d_sae, arm), row in ends.items() if arm == "random"}
    parts = [row for d_sae in targets for row in _costs(work.inputs["stitch"], sources[d_sae], targets[d_sae])]
    return {**tables, "scaling_fits": _scaling(curves, settings.seed), "costs": parts}


def _source_cost(trained: Artifact) -> tuple[float, float, float]:
    """FLOPs, seconds and vectors of the training of the source's SAE; nan where it was loaded."""
    from heredity.stitch.savings import dense_flops

    settings = trained.json("sae/cfg.json")
    vectors = settings["metadata"]["training_tokens"] if (trained / "training.json").exists() else float("nan")
    flops = dense_flops(settings["d_in"], settings["d_sae"], vectors)
    return flops, trained.manifest["seconds"] if np.isfinite(vectors) else float("nan"), vectors


def _costs(stitch: Artifact, source: tuple[float, float, float], target: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """Rows of `costs` of one width. source: see `_source_cost`; target: row of `warm_starts` of the random start."""
    maps, fits = maps_of(stitch), read_rows(stitch, "stitch_fits")
    flops, seconds, vectors = source
    reading = maps["source_reading_flops"], maps["target_reading_flops"]
    tokens = next(fit["tokens"] for fit in fits if fit["method"] == "ridge")
    parts = {f"maps: {fit['method']}": (fit["flops"], fit["seconds"], fit["in_use"]) for fit in fits}
    parts["maps: reading"] = sum(reading) * tokens, maps["reading_seconds"], True
    parts["source SAE"] = flops, seconds, True
    parts["source SAE: reading"] = reading[0] * vectors, None, True
    parts["target SAE"] = target["flops"], target["seconds"], True
    parts["target SAE: reading"] = reading[1] * target["vectors"], None, True
    for part, (cost, time, used) in parts.items():
        row = {"d_sae": target["d_sae"], "part": part, "flops": cost, "seconds": time}
        yield row | {"share": cost / target["flops"], "in_use": used}


def _scaling(curves: Mapping[tuple[int, str], list[dict[str, Any]]], seed: int) -> list[dict[str, Any]]:
    """Rows of `scaling_fits`."""
    from heredity.stitch.scaling import fit_scaling, frontier

    read: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for (d_sae, arm), curve in curves.items():
        columns = ([row[name] for row in curve] for name in ("flops", "explained_variance"))
        costs, explained = (np.array(column, np.float64) for column in columns)
        read.setdefault(arm, {})[f"{d_sae:,}"] = costs, 1 - explained
    rows: list[dict[str, Any]] = []
    for arm, own in read.items():
        of = {name: [curve] for name, curve in own.items()} | ({"frontier": [*own.values()]} if len(own) > 1 else {})
        for name, several in of.items():
            costs, losses = frontier(several)
            row: dict[str, Any] = {"arm": arm, "curve": name, "points": len(costs)}
            if fit := fit_scaling(costs, losses, seed):
                row |= {"a": fit.a, "a_low": fit.a_interval[0], "a_high": fit.a_interval[1], "beta": fit.beta}
                row |= {"beta_low": fit.beta_interval[0], "beta_high": fit.beta_interval[1], "r2": fit.r2}
                row |= {"from_flops": fit.costs[0], "to_flops": fit.costs[1]}
            rows.append(row)
    return rows


def _say(tables: Tables) -> Iterable[Statement]:
    """The highest level that a transferred and the random start both reach, at the first width of each stitch."""
    for name, (source, target), every in by_stitch(tables, "savings"):
        first = [row for row in every if row["d_sae"] == every[0]["d_sae"]]
        rows = [row for row in first if row["arm"] in _STARTS]
        if not rows:
            continue
        width = f"{rows[0]['d_sae']:,} features"
        if rows_of(tables, "warm_starts", stitch=name, recipe="published"):
            width += ", trained with the published settings"
        reached = [row for row in rows if row["saved_flops"] is not None]
        if not reached:
            levels = format.listed([f"{level:g}" for level in sorted({row["threshold"] for row in rows})])
            nobody = "the random start" if {row["never"] for row in rows} == {"random"} else "one start or the other"
            text = f"No saving can be given for SAEs of {target} ({width}): {nobody} never reached {levels}."
            yield Statement(f"stitch {name}", "training", text)
            continue
        best = max(reached, key=lambda row: (row["threshold"], row["saved_flops"]))
        text = (
            f"To explain {percent(best['threshold'])} of the variance of {target} ({width}), an SAE that starts from "
            f"{_STARTS[best['arm']]} takes {_fewer(best['saved_flops'])} FLOPs than one from a random start, the maps "
            "included."
        )
        level, sourced = best["threshold"], best["saved_flops_with_source"]
        evidence = [
            f"{row['arm']} to {level:g}: " + (f"{row['never']} never" if row["never"] else _fewer(row["saved_flops"]))
            for row in first
            if row["threshold"] == level
        ]
        evidence += [] if sourced is None else [f"with the training of {source}'s SAE: {_fewer(sourced)}"]
        yield Statement(f"stitch {name}", "training", text, tuple(evidence))


def _fewer(saved: float | None) -> str:
    """A saving in words: `31 % fewer`."""
    return f"{percent(None if saved is None else abs(saved))} {'more' if (saved or 0) < 0 else 'fewer'}"


ANALYSIS = Analysis(
    kind="savings",
    version=2,
    title="Savings by warm starts",
    items=lambda study: ({"stitch": name} for name, stitch in study.config.stitch.items() if stitch.arms),
    settings=_settings,
    needs=_needs,
    run=_run,
    tables=(SAVINGS, SAVINGS_BY_LEVEL, SCALING_FITS, COSTS),
    say=_say,
)
