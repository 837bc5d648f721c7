"""Pictures of a run in the place of the papers' figures, drawn by matplotlib (extra `pictures`) from tables alone.

Published values that the papers give in numbers are drawn as dashed grey lines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from heredity import format
from heredity.engine.store import whole
from heredity.papers.beside import Rows, one, rows
from heredity.papers.stitching import pairs_of
from heredity.papers.tracking import by_paper, roles_of
from heredity.study import Study

Axes = Any  # matplotlib's; it is an extra
COLORS = ("#4269d0", "#ff725c", "#3ca951", "#efb118", "#a463f2", "#97bbf5", "#9c6b4e", "#6cc5b0")
GREY = "#8a8a8a"
_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "heredity",
    "axes.prop_cycle": None,
    "legend.frameon": False,
}
_WIDE, _HIGH = 6.4, 3.4


def draw(study: Study, paper: str, tables: Rows, folder: Path) -> dict[str, Path]:
    """Draw what a run has tables for, as SVG files in a folder; their paths by title, in the order of the paper.

    Raises ImportError where matplotlib is missing or broken.
    """
    import matplotlib as mpl
    from cycler import cycler
    from matplotlib.figure import Figure

    drawn = {}
    style: Any = {**_STYLE, "axes.prop_cycle": cycler(color=COLORS)}
    with mpl.rc_context(style):
        for number, (title, panels) in enumerate(_plans(study, paper, tables).items(), 1):
            figure = Figure(figsize=(_WIDE, _HIGH), layout="constrained")
            for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
                panel(axes)
            file = folder / f"{number:02d}.svg"
            folder.mkdir(parents=True, exist_ok=True)
            with whole(file) as partial:
                figure.savefig(partial, format="svg", metadata={"Date": None})
            drawn[title] = file
    return drawn


Panel = Callable[[Axes], None]


def _plans(study: Study, paper: str, tables: Rows) -> dict[str, list[Panel]]:
    """Panels of every picture that there are rows for, by title."""
    return _tracking(study, tables) if paper == "tracking" else _stitching(study, tables)


# -- the first paper -------------------------------------------------------------------------------------------


def _tracking(study: Study, tables: Rows) -> dict[str, list[Panel]]:
    roles, plans = roles_of(study), dict[str, list[Panel]]()
    for instrument in by_paper(study):
        for rule, cut in (("paper", "r > 0.8"), ("evidence", "each edge's own cut")):
            links = rows(tables, "flow_links", instrument=instrument, model=roles.merge, rule=rule)
            edges = rows(tables, "edges", instrument=instrument, rule=rule)
            if links and edges:
                title = f"Flow of what persists, {instrument} SAEs, {cut} (Figure 2)"
                plans[title] = [lambda axes, edges=edges, links=links: _flow(axes, roles, edges, links)]
    sweep = rows(tables, "sweeps", model=roles.merge)
    if sweep:
        plans["Accuracy along t (Figure 5)"] = [lambda axes: _sweep(axes, study, tables, sweep)]
    for instrument in by_paper(study):
        pairs = rows(tables, "case_pairs", instrument=instrument)
        for case in dict.fromkeys(row["case"] for row in pairs):
            own = [row for row in pairs if row["case"] == case]
            title = f"r between the models' features of the case {case}, {instrument} SAEs (Figure 3)"
            plans[title] = [lambda axes, own=own: _pairs(axes, study, own)]
        scores = rows(tables, "explained_scores", instrument=instrument)
        subjects = [f"{parent}->{roles.merge}" for parent in (roles.first, roles.second)]
        found = [name for name in subjects if any(row["subject"] == name for row in scores)]
        if found:
            panels = [lambda axes, name=name, scores=scores: _scores(axes, name, scores) for name in found]
            plans[f"Scores of explanations by fate, {instrument} SAEs (Figure 6)"] = panels
    return plans


def _flow(axes: Axes, roles: Any, edges: Sequence[Mapping[str, Any]], links: Sequence[Mapping[str, Any]]) -> None:
    """Bars of live features by model, ribbons of those that persist, in proportion."""
    by_edge = {row["edge"]: row for row in edges}
    into = {roles.first: f"{roles.base}->{roles.first}", roles.second: f"{roles.base}->{roles.second}"}
    if any(edge not in by_edge for edge in (*into.values(), f"{roles.first}->{roles.merge}")):
        return
    live = {
        roles.base: by_edge[into[roles.first]]["parent_live"],
        roles.first: by_edge[into[roles.first]]["child_live"],
        roles.second: by_edge[into[roles.second]]["child_live"],
        roles.merge: by_edge[f"{roles.first}->{roles.merge}"]["child_live"],
    }
    gap = 0.25 * max(live.values())
    place = {
        roles.base: (0.0, gap),
        roles.first: (1.0, live[roles.second] + gap),
        roles.second: (1.0, 0.0),
        roles.merge: (2.0, gap),
    }
    for name, (x, bottom) in place.items():
        axes.bar(x, live[name], 0.12, bottom, color="#444")
        axes.text(x, bottom + live[name] + 0.02 * gap, f"{name}\n{live[name]:,}", ha="center", va="bottom")
    out = dict.fromkeys(live, 0.0)
    arrived = 0.0
    for child, edge in into.items():
        row = by_edge[edge]
        start = live[roles.base] - row["persist"] if child == roles.first else 0.0
        sizes = row["persist"], live[child] - row["emerge"]
        _ribbon(axes, place[roles.base], place[child], start, 0.0, *sizes, COLORS[0])
        middle = (place[roles.base][1] + start + sizes[0] / 2 + place[child][1] + sizes[1] / 2) / 2
        share = f"{row['persist']:,} ({format.percent(row['persist'] / live[roles.base])})"
        axes.text(0.5, middle, share, ha="center", va="center")
    colors = {"base": COLORS[0], roles.first: COLORS[2], roles.second: COLORS[3], "both": COLORS[4]}
    words = {"base": f"from {roles.base}", "both": "emerged in both"}
    whole = sum(row["features"] for row in links)
    shrunk = min(1.0, live[roles.merge] / whole) if whole else 1.0  # what comes through both parents is in two ribbons
    named = set()
    for row in sorted(links, key=lambda row: (row["source"] == roles.first, list(colors).index(row["origin"]))):
        child, size, origin = row["source"], row["features"], row["origin"]
        text = None if origin in named else words.get(origin, f"emerged in {origin}")
        _ribbon(axes, place[child], place[roles.merge], out[child], arrived, size, shrunk * size, colors[origin], text)
        out[child] += size
        arrived += shrunk * size
        named.add(origin)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0.02), ncols=4, fontsize=7)
    axes.set_axis_off()
    axes.set_xlim(-0.25, 2.25)


def _ribbon(
    axes: Axes,
    left: tuple[float, float],
    right: tuple[float, float],
    start: float,
    end: float,
    height: float,
    height_right: float,
    color: str,
    label: str | None = None,
) -> None:
    """A band from one bar to another."""
    import numpy as np

    x = np.linspace(left[0] + 0.06, right[0] - 0.06, 60)
    ease = (1 - np.cos(np.linspace(0, np.pi, 60))) / 2
    low = (left[1] + start) * (1 - ease) + (right[1] + end) * ease
    axes.fill_between(
        x, low, low + height * (1 - ease) + height_right * ease, color=color, alpha=0.45, linewidth=0, label=label
    )


def _sweep(axes: Axes, study: Study, tables: Rows, sweep: Sequence[Mapping[str, Any]]) -> None:
    roles = roles_of(study)
    for color, parent in zip(COLORS, dict.fromkeys(row["parent"] for row in sweep), strict=False):
        own = sorted((row for row in sweep if row["parent"] == parent), key=lambda row: row["t"])
        t = [row["t"] for row in own]
        text = " and ".join(study.own_corpora(parent))
        axes.plot(t, [row["accuracy"] for row in own], color=color, marker=".", label=f"merge on {text}")
        axes.fill_between(
            t,
            [row["accuracy_low"] for row in own],
            [row["accuracy_high"] for row in own],
            color=color,
            alpha=0.2,
            linewidth=0,
        )
        for corpus in study.own_corpora(parent):
            base = one(tables, "accuracy", model=roles.base, corpus=corpus)
            if base:
                axes.axhline(base["accuracy"], color=color, linestyle=":", label=f"{roles.base} on {corpus}")
    merge = one(tables, "merges", model=roles.merge)
    if merge.get("t") is not None:
        axes.axvline(merge["t"], color="black", linewidth=1, label=f"t = {merge['t']:.3f}")
    axes.axvline(0.58, color=GREY, linestyle="--", label="paper: t = 0.58")
    axes.set(xlabel=f"t ({roles.first} to {roles.second})", ylabel="next-token accuracy")
    axes.legend(fontsize=7)


def _pairs(axes: Axes, study: Study, pairs: Sequence[Mapping[str, Any]]) -> None:
    import numpy as np

    names = [name for name in study.order if any(name in (row["model_a"], row["model_b"]) for row in pairs)]
    grid = np.eye(len(names))
    for row in pairs:
        a, b = names.index(row["model_a"]), names.index(row["model_b"])
        grid[a, b] = grid[b, a] = np.nan if row["r"] is None else row["r"]
    axes.imshow(grid, vmin=0, vmax=1, cmap="Blues")
    for (a, b), value in np.ndenumerate(grid):
        axes.text(b, a, f"{value:.2f}", ha="center", va="center", color="white" if value > 0.6 else "black")
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)


def _scores(axes: Axes, subject: str, scores: Sequence[Mapping[str, Any]]) -> None:
    for color, group in zip(COLORS, ("persisting", "others"), strict=False):
        own = {row["score"]: row["features"] for row in scores if (row["subject"], row["group"]) == (subject, group)}
        _histogram(axes, own, f"{group} ({sum(own.values()):,})", color)
    axes.set(xlabel="simulation score", ylabel="share of features", title=subject)
    axes.legend(fontsize=7)


def _histogram(axes: Axes, bins: Mapping[float, int], label: str, color: str) -> None:
    """Shares of features by lower edge of their bin; bins that no feature is in have no row."""
    import numpy as np

    edges = np.array(sorted(bins))
    width = np.diff(edges).min() if len(edges) > 1 else 0.05
    grid = edges[0] + width * np.arange(round((edges[-1] - edges[0]) / width) + 2)
    counts = np.histogram(edges + width / 2, grid, weights=[bins[edge] for edge in edges])[0]
    axes.stairs(counts / counts.sum(), grid, color=color, label=label)


# -- the second paper ------------------------------------------------------------------------------------------


def _stitching(study: Study, tables: Rows) -> dict[str, list[Panel]]:
    plans = dict[str, list[Panel]]()
    for stitch in pairs_of(study, tables):
        own = {
            name: rows(tables, name, stitch=stitch)
            for name in tables
            if any("stitch" in row for row in tables[name][:1])
        }
        for title, name, panels in _PICTURES:
            if own.get(name):
                plans[f"{title}, {stitch}"] = [lambda axes, panel=panel, own=own: panel(axes, own) for panel in panels]
    return plans


def _curves(axes: Axes, own: Rows) -> None:
    widths = sorted({row["d_sae"] for row in own["warm_start_curves"]})
    for line, arm in zip(("-", "--"), ("random", "transferred"), strict=True):
        for color, width in zip(COLORS, widths, strict=False):
            points = [row for row in own["warm_start_curves"] if (row["arm"], row["d_sae"]) == (arm, width)]
            points = sorted((row["flops"], row["explained_variance"]) for row in points if row["flops"])
            axes.plot(*zip(*points, strict=True), line, color=color, linewidth=1, label=f"{width:,}, {arm}")
    axes.set(xscale="log", xlabel="FLOPs of training", ylabel="explained variance")
    axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
    axes.legend(fontsize=6)


def _savings(axes: Axes, own: Rows) -> None:
    found = [row for row in own["savings_by_level"] if row["arm"] == "transferred"]
    for width in sorted({row["d_sae"] for row in found}):
        points = sorted(
            (row["level"], row["saved_flops"])
            for row in found
            if row["d_sae"] == width and row["saved_flops"] is not None
        )
        if points:
            axes.plot(*zip(*points, strict=True), marker=".", label=f"{width:,} features")
    axes.plot([0.9, 0.9], [0.3, 0.5], color=GREY, linewidth=4, alpha=0.6, label="paper, near 0.90")
    axes.axhline(0, color="black", linewidth=0.5)
    axes.set(xlabel="level of explained variance", ylabel="FLOPs saved")
    axes.legend(fontsize=7)


def _layers(axes: Axes, own: Rows) -> None:
    import numpy as np

    found = own["stitch_layers"]
    left, right = (list(dict.fromkeys(row[name] for row in found)) for name in ("source_layer", "target_layer"))
    grid = np.full((len(left), len(right)), np.nan)
    for row in found:
        grid[left.index(row["source_layer"]), right.index(row["target_layer"])] = row["svcca"]
    axes.imshow(grid, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    for (a, b), value in np.ndenumerate(grid):
        axes.text(b, a, f"{value:.2f}", ha="center", va="center", color="white" if value > 0.6 else "black")
    short = [[name.replace("hook_resid_", "") for name in names] for names in (right, left)]
    axes.set_xticks(range(len(right)), short[0], rotation=45, ha="right", fontsize=7)
    axes.set_yticks(range(len(left)), short[1], fontsize=7)
    axes.set(xlabel="target", ylabel="source")


def _correlations(axes: Axes, own: Rows) -> None:
    found = [row for row in own["transfer_histograms"] if row["measure"] == "attribution"]
    for color, features in zip(COLORS, dict.fromkeys(row["features"] for row in found), strict=False):
        _histogram(axes, {row["r"]: row["n"] for row in found if row["features"] == features}, features, color)
    axes.set(xlabel="attribution correlation", ylabel="share of features")
    axes.legend(fontsize=7)


def _steering(axes: Axes, own: Rows) -> None:
    found = [row for row in own["steering_gaps"] if row["gap"] is not None]
    names = [f"{row['wanted']} into {row['model']}" for row in found]
    axes.barh(names, [row["gap"] for row in found], color=COLORS[0])
    axes.axvline(0.42, color=GREY, linestyle="--")
    axes.axvline(0.45, color=GREY, linestyle="--", label="paper: means 0.42 and 0.45")
    axes.set(xlabel="effect of carried over native steering", xlim=(0, 1))
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=7)


def _probes(axes: Axes, own: Rows) -> None:
    found = [row for row in own["probe_means"] if row["k"]]
    tasks = list(dict.fromkeys(row["task"] for row in found))
    for arm in dict.fromkeys(row["arm"] for row in found):
        points: dict[int, list[float]] = {}
        for row in found:
            if row["arm"] == arm and row["balanced_accuracy"] is not None:
                points.setdefault(row["k"], []).append(row["balanced_accuracy"])
        axes.plot(sorted(points), [sum(points[k]) / len(points[k]) for k in sorted(points)], marker=".", label=arm)
    axes.set(xscale="log", xlabel="k features", ylabel="balanced accuracy", title=f"mean of {len(tasks)} tasks")
    axes.legend(fontsize=7)


def _alphas(axes: Axes, own: Rows) -> None:
    ways = {"up": "small to large", "down": "large to small", "source_round_trip": "small, there and back"}
    ways |= {"target_round_trip": "large, there and back", "sae": "carried SAE spliced in"}
    for way, words in ways.items():
        points = sorted(
            (row["alpha"], row["delta_loss"])
            for row in own["alphas"]
            if row["way"] == way and row["delta_loss"] is not None
        )
        if points:
            axes.plot(*zip(*points, strict=True), marker=".", label=words)
    axes.set_xscale("symlog", linthresh=0.1)
    axes.set(xlabel="alpha", ylabel="loss added (nats)")
    axes.legend(fontsize=7)


def _moved(axes: Axes, own: Rows) -> None:
    widest = max(row["d_sae"] for row in own["moved"])
    for arm in dict.fromkeys(row["arm"] for row in own["moved"]):
        points = sorted(
            (row["cosine"], row["quantile"])
            for row in own["moved"]
            if (row["arm"], row["d_sae"]) == (arm, widest) and row["cosine"] is not None
        )
        axes.plot(*zip(*points, strict=True), marker=".", label=arm)
    axes.set(
        xlabel="cosine of a final decoder row with its start",
        ylabel="share of features below",
        title=f"{widest:,} features",
    )
    axes.legend(fontsize=7)


def _classes(axes: Axes, own: Rows) -> None:
    for color, name in zip(COLORS, dict.fromkeys(row["features"] for row in own["transfer_percentiles"]), strict=False):
        found = [row for row in own["transfer_percentiles"] if row["features"] == name and row["share"] is not None]
        found.sort(key=lambda row: row["percentile"])
        axes.plot(
            [row["percentile"] for row in found], [row["share"] for row in found], marker=".", color=color, label=name
        )
    axes.set(xlabel="percentile of attribution correlation", ylabel="share of features")
    axes.legend(fontsize=7)


def _null_space(axes: Axes, own: Rows) -> None:
    for color, end in zip(COLORS, ("source", "target"), strict=False):
        found = [row for row in own["null_shares"] if row["end"] == end]
        axes.scatter(
            [row["push"] for row in found],
            [row["share"] for row in found],
            s=5,
            color=color,
            alpha=0.5,
            linewidth=0,
            label=end,
        )
    axes.set(xlabel="push: largest activation times decoder norm", ylabel="share in the null space")
    axes.legend(fontsize=7)


def _attention(axes: Axes, own: Rows) -> None:
    key = ("feature", "end", "effect")
    for place in dict.fromkeys(tuple(row[name] for name in key) for row in own["attention_curves"]):
        found = [row for row in own["attention_curves"] if tuple(row[name] for name in key) == place]
        found.sort(key=lambda row: row["activation"])
        axes.plot(
            [row["activation"] for row in found],
            [row["attention_drop"] for row in found],
            marker=".",
            linestyle="-" if place[1] == "source" else "--",
            label=f"{place[0]}, {place[1]}, {place[2]}",
        )
    axes.axhline(0, color="black", linewidth=0.5)
    axes.set(xlabel="activation", ylabel="loss of attention to the first token")
    axes.legend(fontsize=6)


_PICTURES: tuple[tuple[str, str, tuple[Callable[[Axes, Rows], None], ...]], ...] = (
    ("Mean SVCCA by layer (Figure 6)", "stitch_layers", (_layers,)),
    ("Loss by alpha (Figure 7)", "alphas", (_alphas,)),
    ("Explained variance by FLOPs of training (Figures 2a, 8a)", "warm_start_curves", (_curves,)),
    ("How far features move from their start (Figure 2b)", "moved", (_moved,)),
    ("FLOPs saved by level (Figure 8b)", "savings_by_level", (_savings,)),
    ("Probes by number of features (Figures 3a, 9, 10)", "probe_means", (_probes,)),
    ("Carried over native steering (equation 16)", "steering_gaps", (_steering,)),
    ("Attribution correlations (Figure 14)", "transfer_histograms", (_correlations,)),
    ("Structural and semantic features by percentile (Figures 4b, 15)", "transfer_percentiles", (_classes,)),
    ("Share in the null space of the unembedding (Figure 5a)", "null_shares", (_null_space,)),
    ("Loss of attention to the first token by activation (Figures 5b, 16)", "attention_curves", (_attention,)),
)
