"""Chen et al. (arXiv 2506.06609), figure by figure, beside a run of their experiment.

The paper has three pairs of models (Pythia, GPT-2, Gemma 2); a figure of ours is held to the range of the three. Of a
study's stitches those between models of different width count.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from heredity import format
from heredity.papers.beside import Range, Rows, ends, figure, one, rows, scale
from heredity.study import Study

PAIRS = "Pythia, GPT-2, Gemma 2"
_WAYS = {
    "up": ("small to large", Range(0.11, 0.39)),
    "down": ("large to small", Range(0.083, 0.17)),
    "source_round_trip": ("small, there and back", Range(None, 0.01)),
    "target_round_trip": ("large, there and back", Range(0.014, 0.13)),
}
_ZERO_SHOT = (
    ("fvu", "variance unexplained", "share", Range(0.11, 0.21), Range(0.39, 0.52)),
    ("delta_loss", "loss added by splicing in", "nats", Range(0.08, 0.50), Range(0.85, 2.16)),
    ("dead_share", "dead features", "share", Range(None, 0.052), Range(None, 0.035)),
)
_FITS = {"random": Range(0.15, 0.16), "transferred": Range(0.10, 0.14)}
"""Exponents of the published fits, for a random start and for the transferred one."""


def pairs_of(study: Study, tables: Rows) -> list[str]:
    """Stitches between models of different width; where a study has none, all of its stitches.

    Raises ValueError for a study without a stitch that has been run.
    """
    widths = {row["stitch"]: (row["source_width"], row["target_width"]) for row in rows(tables, "stitch_maps")}
    if not widths:
        raise ValueError(
            f"study {study.name} has no stitch that has been run, which the tables of arXiv 2506.06609 are about; run "
            "studies/stitching.toml, or name the other paper with --paper tracking"
        )
    return [stitch for stitch, (source, target) in widths.items() if source != target] or list(widths)


def sizes(study: Study, tables: Rows) -> list[dict[str, Any]]:
    """Scale of the paper's experiment (its Pythia pair) and of a run."""
    found: list[tuple[str, str, float, float | None]] = []
    for stitch in pairs_of(study, tables):
        row = one(tables, "stitch_maps", stitch=stitch)
        starts = rows(tables, "warm_starts", stitch=stitch)
        fit = one(tables, "stitch_fits", stitch=stitch, in_use=True)
        found += [
            ("width of the small model", stitch, 512, row["source_width"]),
            ("width of the large model", stitch, 768, row["target_width"]),
            ("tokens of the maps", stitch, 184_300_000, fit.get("tokens")),
            ("features of an SAE, most", stitch, 65_536, max((one["d_sae"] for one in starts), default=None)),
            ("vectors of an SAE", stitch, 4e9, max((one["vectors"] for one in starts), default=None)),
        ]
    return scale(found)


def figures(study: Study, tables: Rows) -> list[dict[str, Any]]:
    """Rows of `beside.BESIDE`, in the order of the paper."""
    parts = {
        "maps": _maps,
        "carried SAEs": _carried,
        "carried starts": _starts,
        "probes and steering": _probes,
        "single features": _features,
    }
    first, *_ = stitches = pairs_of(study, tables)  # the others are asked for part of it
    found = [
        ({"part": part} | row, name) for part, of in parts.items() for name in stitches for row in of(tables, name)
    ]
    return [row for row, name in found if name == first or row["agreement"] != "not measured"]


def _maps(tables: Rows, stitch: str) -> Iterator[dict[str, Any]]:
    layers = rows(tables, "stitch_layers", stitch=stitch)
    best = max(layers, key=lambda row: row["svcca"], default={})
    about = f"{stitch}, {best['source_layer']} and {best['target_layer']}" if best else stitch
    yield figure(63, "S Fig 6", "highest mean SVCCA of a layer", about, "number", Range(0.3, 0.8), best.get("svcca"))
    for way, (words, paper) in _WAYS.items():
        row = one(tables, "stitched_models", stitch=stitch, way=way)
        yield figure(
            64,
            "S Table 1",
            f"loss added: {words}",
            stitch,
            "share",
            paper,
            row.get("increase"),
            remark="relative to the model whose back half predicts",
        )
    alphas = rows(tables, "alphas", stitch=stitch, way="sae")
    for row in alphas:
        what, loss = f"loss added by the carried SAE at alpha {row['alpha']:g}", row["delta_loss"]
        yield figure(62, "S Fig 7", what, stitch, "nats", "drawn, no numbers", loss)
    if not alphas:
        yield figure(62, "S Fig 7", "alpha of 0, 0.1, 1, 10", stitch, "nats", "drawn, no numbers", None)


def _carried(tables: Rows, stitch: str) -> Iterator[dict[str, Any]]:
    for d_sae in sorted({row["d_sae"] for row in rows(tables, "sae_transfer", stitch=stitch)}):
        for column, what, kind, own, carried in _ZERO_SHOT:
            for variant, words, paper in (("source", "in its own model", own), ("transferred", "carried", carried)):
                row = one(tables, "sae_transfer", stitch=stitch, d_sae=d_sae, variant=variant)
                about = f"{stitch}, {d_sae:,} features"
                yield figure(67, "S Table 2", f"{what}, {words}", about, kind, paper, row.get(column))


def _starts(tables: Rows, stitch: str) -> Iterator[dict[str, Any]]:
    saved = rows(tables, "savings_by_level", stitch=stitch, arm="transferred")
    for row in saved:
        if abs(row["level"] - 0.9) < 1e-9:
            about = f"{stitch}, {row['d_sae']:,} features"
            yield figure(
                73,
                "S Fig 8b",
                "FLOPs saved at a variance of 0.90",
                about,
                "share",
                Range(0.3, 0.5),
                row["saved_flops"],
                remark=row["never"] or "the source's SAE is not charged",
            )
            yield figure(
                72,
                "S App D",
                "the same, the source's SAE charged",
                about,
                "share",
                None,
                row["saved_flops_with_source"],
            )
            yield figure(
                97, "review", "seconds saved at a variance of 0.90", about, "share", None, row["saved_seconds"]
            )
    for row in rows(tables, "scaling_fits", stitch=stitch):
        if row["arm"] in _FITS:
            what = f"exponent of loss over FLOPs, {row['arm']} start"
            about = f"{stitch}, {row['curve']}" + ("" if row["curve"] == "frontier" else " features")
            yield figure(77, "S Table 4", what, about, "number", _FITS[row["arm"]], row["beta"], ends(row, "beta"))
    for row in rows(tables, "costs", stitch=stitch):
        if row["share"] is not None and row["part"].startswith("maps"):
            about = f"{stitch}, {row['d_sae']:,} features" if row["d_sae"] else stitch
            what = f"FLOPs of the {row['part']} over those of the target's SAE"
            # The paper reads its models once, and counts the training of the stitch alone.
            published = "not counted" if row["part"].endswith("reading") else 0.012
            yield figure(71, "S Table 3", what, about, "share", published, row["share"])
    for row in rows(tables, "moved", stitch=stitch, quantile=0.5):
        about, what = f"{stitch}, {row['d_sae']:,} features", f"median cosine with the start, {row['arm']}"
        yield figure(76, "S Fig 2b", what, about, "r", "nearer when carried", row["cosine"])
    for row in rows(tables, "warm_starts", stitch=stitch, arm="transferred"):
        yield figure(
            78,
            "S App D",
            "dead features of the carried start at the end",
            f"{stitch}, {row['d_sae']:,} features",
            "share",
            "more in wider SAEs",
            row["dead_share"],
        )


def _probes(tables: Rows, stitch: str) -> Iterator[dict[str, Any]]:
    found = rows(tables, "probe_means", stitch=stitch)
    for k in sorted({row["k"] for row in found if row["k"]}):
        own = {(row["task"], row["arm"]): row["balanced_accuracy"] for row in found if row["k"] == k}
        for arm, other, paper in (
            ("refitted", "native", "about 0"),
            ("unchanged", "random", "above 0, but for two sets"),
        ):
            gaps = [own[task, arm] - own[task, other] for task, name in own if name == arm and (task, other) in own]
            if gaps:
                about = f"{stitch}, k {k}, mean of {len(gaps)} tasks"
                more = f"({format.interval('share', min(gaps), max(gaps))})"
                what = f"balanced accuracy, {arm} less {other}"
                here = sum(gaps) / len(gaps)
                yield figure(81, "S Fig 3a, 9, 10", what, about, "share", paper, here, more=more)
    for model in dict.fromkeys(row["model"] for row in rows(tables, "steering_gaps", stitch=stitch)):
        gaps = [
            row["gap"] for row in rows(tables, "steering_gaps", stitch=stitch, model=model) if row["gap"] is not None
        ]
        yield figure(
            84,
            "S eq 16",
            "effect of carried over native steering, mean",
            f"{stitch}, into {model}",
            "number",
            Range(0.42, 0.45),
            sum(gaps) / len(gaps) if gaps else None,
            remark=f"{len(gaps)} directions",
        )
        for arm, paper in (("native", Range(0.32, 0.54)), ("carried", Range(0.22, 0.29))):
            shares = [row["share"] for row in rows(tables, "steering", stitch=stitch, model=model, arm=arm)]
            yield figure(
                85,
                "S Tables 5, 6",
                f"answers in the wanted text, {arm}",
                f"{stitch}, into {model}",
                "share",
                paper,
                sum(shares) / len(shares) if shares else None,
            )


def _features(tables: Rows, stitch: str) -> Iterator[dict[str, Any]]:
    spread = {
        row["features"]: row for row in rows(tables, "transfer_correlations", stitch=stitch, measure="attribution")
    }
    for features, element, place in (
        ("judged", 88, "S Fig 14"),
        ("random", 88, "S Fig 14"),
        ("structural", 90, "S Fig 4b, 15"),
        ("semantic", 90, "S Fig 4b, 15"),
    ):
        row = spread.get(features, {})
        inner = (row.get("q25"), row.get("q75"))
        yield figure(
            element,
            place,
            f"attribution correlation, {features}, median and quartiles",
            stitch,
            "r",
            "drawn, no numbers",
            row.get("median"),
            inner,
        )
    row = one(tables, "feature_transfer", stitch=stitch)
    yield figure(
        88,
        "S Fig 14",
        "features above the random ones' 95th percentile",
        stitch,
        "share",
        "most features",
        row.get("above"),
    )
    classes = {row["features"]: row for row in rows(tables, "transfer_classes", stitch=stitch)}
    density = [classes.get(name, {}).get("density") for name in ("structural", "semantic")]
    ratio = density[0] / density[1] if density[0] and density[1] else None
    yield figure(90, "S 5.1", "density of structural over semantic features", stitch, "number", Range(1.0, None), ratio)
    for name, row in classes.items():
        what, chance = f"share of versions that {name} features fire in", row.get("share_by_chance")
        more = "" if chance is None else f"({format.percent(chance)} by chance)"
        yield figure(89, "S 5.1, Fig 4a", what, stitch, "share", "no number", row.get("share"), more=more)
    for end in ("source", "target"):
        row = one(tables, "transfer_null_space", stitch=stitch, end=end)
        by_chance = row.get("high_by_chance")
        more = "" if by_chance is None else f"({by_chance:.1f} by chance)"
        what = "entropy features: strong, and in the lowest 2 % of the unembedding"
        yield figure(
            92, "S 5.2, Fig 5a", what, f"{stitch}, {end}", "count", "two keep both", row.get("high"), more=more
        )
        for effect, element, paper in (("off", 93, 0.3), ("on", 94, -0.6)):
            heads = rows(tables, "deactivation_features", stitch=stitch, end=end, effect=effect)
            drops = [row["attention_drop"] for row in heads if row["attention_drop"] is not None]
            most = max(drops, key=abs, default=None)
            what = f"largest loss of attention to the first token, heads turned {effect}"
            yield figure(element, "S Fig 5b, 16", what, f"{stitch}, {end}", "number", f"up to {paper}", most)
    for row in rows(tables, "steering_frequencies", stitch=stitch):
        what = "r of the steering gap and the corpus's log frequency"
        about, words = f"{stitch}, into {row['model']}", "rises with frequency"
        yield figure(86, "S F.2", what, about, "r", words, row["r"], ends(row, "r"), remark=row["reason"] or "")
