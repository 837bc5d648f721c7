"""Parts of documents about stitches, made from the recorded summary of a run; see `summaries`."""

from __future__ import annotations

from typing import Any

from markdown_table import table

PAPER_WAYS = {"up": "+27% / +11% / +39%", "down": "+17% / +9.1% / +8.3%"}
PAPER_WAYS |= {"source_round_trip": "<1% / <1% / <1%", "target_round_trip": "+4.7% / +1.4% / +13%"}
"""Table 1 of the paper: Pythia, GPT-2, Gemma."""
ARMS = ("source", "native", "refitted", "unchanged", "random")


def first(summary: dict[str, Any]) -> dict[str, Any]:
    """The stitch that the page is about."""
    return next(iter(summary["stitches"].values()))


def number(value: float | None, digits: int = 3) -> str:
    """With some digits; a dash for what is not known."""
    return "–" if value is None else f"{value:.{digits}f}"


def percent(value: float | None, digits: int = 0) -> str:
    """A share."""
    return "–" if value is None else f"{value:.{digits}%}"


def maps(summary: dict[str, Any]) -> str:
    """Every fit of the maps, what it costs to get as far, and the stitched models."""
    own = first(summary)["maps"]
    fits = [
        [method, number(fit["loss"], 4), *(number(fit["r2"][way]) for way in fit["r2"])]
        + [f"{fit['tokens']:,}", f"{fit['flops'] / 1e9:,.0f}", f"{fit['seconds']:.1f}"]
        for method, fit in own["fits"].items()
    ]
    names = ["fit", "loss", "R² up", "down", "there and back", "back and there", "tokens", "GFLOP", "seconds"]
    points = [
        [method, f"{row['tokens']:,}", f"{row['flops'] / 1e9:,.1f}", number(row["loss"], 4)]
        for method, rows in own["curves"].items()
        for row in rows
    ]
    return "\n".join(
        [
            f"{own['source']} at `{own['source_hook_point']}` ({own['widths'][0]} wide) and {own['target']} at "
            f"`{own['target_hook_point']}` ({own['widths'][1]}), chosen by SVCCA; judged on {own['held_out']:,} "
            "held-out tokens:",
            "",
            table(names, fits),
            "",
            "Held-out loss by cost:",
            "",
            table(["fit", "tokens read", "GFLOP", "loss"], points),
        ]
    )


def ways(summary: dict[str, Any]) -> str:
    """Table 1."""
    own = first(summary)["maps"]
    words = {
        "source": own["source"],
        "target": own["target"],
        "up": f"{own['source']} → {own['target']}",
        "down": f"{own['target']} → {own['source']}",
        "source_round_trip": f"{own['source']} → {own['target']} → {own['source']}",
        "target_round_trip": f"{own['target']} → {own['source']} → {own['target']}",
    }
    rows = []
    for way, label in words.items():
        row = own["ways"][way]
        rise = "" if row["increase"] is None else f"{row['increase']:+.1%}"
        rows.append([label, number(row["ce_loss"], 2), rise, percent(row["accuracy"], 1), PAPER_WAYS.get(way, "")])
    return table(["front → back", "cross-entropy", "rise", "accuracy", "paper: Pythia / GPT-2 / Gemma"], rows)


def carried(summary: dict[str, Any]) -> str:
    """Table 2."""
    rows = []
    for width, found in first(summary)["carried"].items():
        for variant, row in found["figures"].items():
            rows.append(
                [f"{int(width):,}", variant, number(row["l0"], 1), number(row["fvu"]), number(row["delta_loss"])]
            )
            rows[-1] += [percent(row["ce_loss_recovered"], 1), percent(row["dead_share"], 1)]
    return table(["features", "SAE", "L0", "unexplained", "CE rise", "CE recovered", "dead"], rows)


def savings(summary: dict[str, Any]) -> str:
    """What each start saves in FLOPs and in time, by every stitch between the same two models."""
    ends = [first(summary)["maps"][end] for end in ("source", "target")]
    stitches = [
        own for own in summary["stitches"].values() if [own["maps"][end] for end in ("source", "target")] == ends
    ]
    levels = sorted({row["threshold"] for row in first(summary)["savings"]})
    names = ["tokens of the maps", "features", "start", *(f"to {level:g}" for level in levels)]
    keys = {
        "The maps counted; FLOPs saved, and in brackets time saved:": ("saved_flops", "saved_seconds"),
        "The source's SAE counted as well:": ("saved_flops_with_source", "saved_seconds_with_source"),
    }
    tables = []
    for head, (flops, seconds) in keys.items():
        rows: dict[tuple[str, str, str], dict[float, str]] = {}
        for own in stitches:
            read = own["maps"]["fits"][own["maps"]["method"]]["tokens"]
            for row in own["savings"]:
                told = f"never: {' and '.join(row['never'])}"
                if not row["never"]:
                    told = f"{percent(row[flops])} ({percent(row[seconds])})"
                rows.setdefault((f"{read:,}", f"{row['d_sae']:,}", row["arm"]), {})[row["threshold"]] = told
        cells = ([*row, *(by_level[level] for level in levels)] for row, by_level in rows.items())
        tables += [head, table(names, cells)]
    return "\n\n".join(tables)


def curves(summary: dict[str, Any]) -> str:
    """Explained variance along the trainings at the steps that are nearest to some."""
    rows = []
    for width, arms in first(summary)["beginnings"].items():
        steps = [row["step"] for row in next(iter(arms.values()))["curve"]]
        chosen = sorted({min(steps, key=lambda step, at=at: abs(step - at)) for at in (0, 20, 50, 100, 200, 400, 9**9)})
        for arm, found in arms.items():
            by_step = {row["step"]: row for row in found["curve"]}
            values = [number(by_step[step]["explained_variance"]) for step in chosen]
            ends = [
                percent(found["dead_share"], 1),
                f"{found['flops'] / 1e12:.2f}",
                f"{found['sparse_flops'] / 1e12:.2f}",
            ]
            rows.append([f"{int(width):,}", arm, *values, *ends, f"{found['seconds']:.0f}"])
    names = [f"{step:,} steps" for step in chosen]
    return table(["features", "start", *names, "dead", "TFLOP dense", "done", "seconds"], rows)


def probes(summary: dict[str, Any]) -> str:
    """Balanced accuracy by features read."""
    rows, sizes = [], []
    for task, found in first(summary)["probes"].items():
        if found["reason"]:
            continue
        means = {(row["arm"], row["k"]): row["balanced_accuracy"] for row in found["means"]}
        sizes = sizes or sorted(k for arm, k in means if arm == "source")
        dense = {arm: value for (arm, _), value in means.items() if arm.startswith("dense_")}
        for arm in ARMS:
            values = [number(means.get((arm, k))) for k in sizes]
            rows.append([task, arm, *values, number(dense.get(f"dense_{arm}"))])
    return table(["task", "probe", *(f"k = {k}" for k in sizes), "dense"], rows)


def steering(summary: dict[str, Any]) -> str:
    """Shares of texts of the wanted kind."""
    own = first(summary)["steering"]
    shares = {(row["model"], row["wanted"], row["arm"]): row["share"] for row in own["rows"]}
    rows = []
    for gap in own["gaps"]:
        found = [shares[gap["model"], gap["wanted"], arm] for arm in ("none", "random", "native", "carried")]
        said = [f"{value:.0%} [{low:.0%}, {high:.0%}]" for value, low, high in found]
        rows.append([gap["model"], gap["wanted"], *said, number(gap["gap"], 2), number(gap["cosine"], 2)])
    accuracy = own["accuracy"]
    counts = sorted({row["n"] for row in own["rows"]})
    head = (
        f"The classifier is right on {accuracy[0]:.1%} [{accuracy[1]:.1%}, {accuracy[2]:.1%}] of {own['tested']:,} "
        f"held-out pieces; {' or '.join(map(str, counts))} texts each, as many as there are documents to begin from."
    )
    return f"{head}\n\n" + table(["model", "wanted", "unsteered", "random", "native", "carried", "gap", "cosine"], rows)


def kept(summary: dict[str, Any]) -> str:
    """What single features keep."""
    own = first(summary)["kept"]
    spreads = {"all judged": own["attribution"]["trained"], "random directions": own["attribution"]["random"]}
    spreads |= {kind: own["split"][kind]["attribution"] for kind in ("structural", "semantic")}
    rows = [
        [label, f"{row['n']:,}", *(number(value, 2) for value in row["quantiles"])] for label, row in spreads.items()
    ]
    found = table(["r of attributions", "n", "5 %", "25 %", "median", "75 %", "95 %"], rows)
    rows = [
        ["all judged", f"{own['activation']['n']:,}", *(number(value, 2) for value in own["activation"]["quantiles"])]
    ]
    rows += [
        [kind, f"{row['n']:,}", *(number(value, 2) for value in row["quantiles"])]
        for kind, row in ((kind, own["split"][kind]["activation"]) for kind in ("structural", "semantic"))
    ]
    tables = [found, table(["r of activations", "n", "5 %", "25 %", "median", "75 %", "95 %"], rows)]
    if own["entropy"]:
        rows = [
            [f"{row['feature']:,}", *(number(row[key]) for key in ("share", "carried", "push", "carried_push"))]
            for row in own["entropy"]["features"]
        ]
        tables.append(table(["entropy feature", "share in the null space", "carried", "push", "carried"], rows))
    if own["deactivation"]:
        rows = []
        for row in own["deactivation"]["features"]:
            for end in ("source", "target"):
                head = row[end]
                drops = [number(head[key]) for key in ("attention", "attention_drop", "norm", "norm_drop")]
                place = f"{head['layer']}.{head['head']}"
                rows.append([f"{row['feature']:,}", end, place, f"{head['tokens']:,}", *drops])
        names = ["deactivation feature", "in", "head", "tokens", "attention to the first", "drop", "norm of z", "drop"]
        tables.append(table(names, rows))
    return "\n\n".join(tables)


def bridges(summary: dict[str, Any]) -> str:
    """The lineage by maps beside the lineage by matches, of every stitch along an edge."""
    rows, explained = [], []
    for own in summary["stitches"].values():
        if not own["bridge"]:
            continue
        found, edge = own["bridge"]["compared"], own["bridge"]["edge"]
        for label in ("carried", "unchanged"):
            row = found[label]
            counts = [
                f"{found['matched']:,} of {found['live']:,}",
                *(f"{row[key]:,}" for key in ("persisting", "both")),
            ]
            rows.append([edge, label, f"{found['threshold']:.2f}", *counts])
            rows[-1] += [number(row["kappa"], 2), number(row["rank"], 2), number(row["median"], 2)]
        figures = next(iter(own["carried"].values()))["figures"]
        kinds = ("source", "unchanged", "aligned", "transferred", "bias", "decoder")
        explained.append([edge, *(number(figures[kind]["explained_variance"]) for kind in kinds)])
    names = ["edge", "read in the child", "r >", "persist by matches", "with themselves", "by both", "kappa", "rank"]
    return "\n\n".join(
        [
            table([*names, "median r"], rows),
            table(
                ["parent's SAE, explained variance", "in the parent", "in the child as it is", "turned (procrustes)"]
                + ["through the maps", "bias refitted", "decoder refitted"],
                explained,
            ),
        ]
    )


KINDS = {
    "stitch_bridges": bridges,
    "stitch_carried": carried,
    "stitch_curves": curves,
    "stitch_kept": kept,
    "stitch_maps": maps,
    "stitch_probes": probes,
    "stitch_savings": savings,
    "stitch_steering": steering,
    "stitch_ways": ways,
}
