"""SAEs of a stitch's target trained from several starts on the same vectors in the same order, and what a start saves.

Starts: `random`; `transferred`, the source's SAE folded through the maps; `repaired`, the same with its decoder
refitted and dead features revived; `geometry`, the source's SAE turned at random: the angles of a trained dictionary
without the maps. The cost of an explained variance on held-out vectors is read off the curve of a training, linear in
the logarithm of the cost between its points. Saving: 1 - (cost of the start, its maps and its training) / (cost of the
training from the random start); once more with the training of the source's SAE included. Costs are FLOPs of dense
products, as in Chen et al. 2025 (appendix D), and seconds. Where either training never reaches the level, there is no
saving.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from heredity import format
from heredity.analyses.analysis import Analysis, Item, Need, Needs, Results, Statement, Tables, seed_of
from heredity.analyses.reading import sampler_of, state_of
from heredity.analyses.sae import SAESettings, Stream, activation_store, train_sae
from heredity.analyses.sae_transfer import new_sae_config, source_sae_need, training_cost, width_items
from heredity.analyses.stitch_maps import by_stitch, maps_of, percent, read_rows
from heredity.analyses.text import tokens_needs
from heredity.engine.stage import Work
from heredity.study import Precision, SAEConfig, Study
from heredity.tables import Column, Plot, Table

if TYPE_CHECKING:
    from heredity.sae.model import SAE

HELD_OUT = 8192
"""Validation vectors behind a curve."""
_STARTS = {"transferred": "the transferred SAE", "repaired": "the transferred and repaired SAE"}
KEY = ("stitch", "d_sae", "arm")
_ARM = Column("arm", "text", "Start of the training: random, transferred, repaired or geometry.")
_QUALITY = (
    Column("flops", "flops", "FLOPs of the training in dense products."),
    Column("sparse_flops", "flops", "FLOPs of its matrix products as computed: dense for the encoder alone."),
    Column("seconds", "seconds", "Wall time, forward passes of the model included and the curve excluded."),
    Column("explained_variance", "r", "On the held-out vectors."),
    Column("l0", "number", "Mean number of active features per held-out vector."),
    Column("dead_share", "share", "Share of features that never fired on the held-out vectors."),
)

WARM_STARTS = Table(
    "warm_starts",
    "SAEs of the target, trained from several starts; figures at the end of the training.",
    KEY,
    (
        _ARM,
        Column("d_in", "count", "Width of the hook point."),
        Column("steps", "count", "Training steps."),
        Column("vectors", "count", "Training vectors."),
        Column("held_out", "count", "Validation vectors behind the figures, the same for all starts."),
        Column("start_flops", "flops", "FLOPs of making the start: folding, refitting, turning."),
        Column("start_seconds", "seconds", "Wall time of the same."),
        Column("revived", "count", "Dead features revived in the start."),
        *_QUALITY,
    ),
    brief=(*KEY, "explained_variance", "l0", "dead_share", "flops"),
)
WARM_START_CURVES = Table(
    "warm_start_curves",
    "Quality of an SAE along its training, at steps evenly spaced in their logarithm.",
    (*KEY, "step"),
    (
        _ARM,
        Column("step", "count", "Steps taken; 0 is the start."),
        Column("vectors", "count", "Training vectors read."),
        *_QUALITY,
    ),
    plot=Plot("lines", x="flops", y="explained_variance", by="arm"),
)
SAVINGS = Table(
    "savings",
    "Share of the cost of the random start's training saved on the way to an explained variance.",
    (*KEY, "threshold"),
    (
        _ARM,
        Column("threshold", "r", "Explained variance to reach."),
        Column("never", "text", "Starts that never reached it; empty where both did."),
        Column("flops", "flops", "FLOPs of the training up to there; null when never."),
        Column("seconds", "seconds", "Wall time of the same."),
        Column("saved_flops", "share", "Saving in FLOPs, with making the start and, where it needs them, the maps."),
        Column("saved_seconds", "share", "The same in wall time."),
        Column("saved_flops_with_source", "share", "With the training of the source's SAE too."),
        Column("saved_seconds_with_source", "share", "The same in wall time."),
    ),
    brief=(*KEY, "threshold", "never", "saved_flops", "saved_seconds", "saved_flops_with_source"),
)


class WarmStartSettings(NamedTuple):
    sae: SAEConfig
    d_sae: int
    arm: str
    target: str
    precision: Precision
    seed: int
    """The same for all arms of a width."""
    held_out_seed: int


def warm_start_need(name: str, d_sae: int, arm: str) -> Need:
    """The target's SAE from one start; from `random` it is the native one."""
    return ("warm_start", {"stitch": name, "d_sae": d_sae, "arm": arm})


def _items(study: Study) -> Iterable[Item]:
    return ({**item, "arm": arm} for item in width_items(study) for arm in study.config.stitch[item["stitch"]].arms)


def _settings(study: Study, item: Item) -> WarmStartSettings:
    name, d_sae, target = item["stitch"], item["d_sae"], study.config.stitch[item["stitch"]].target
    seed, held_out_seed = seed_of(study, "beginning", name, d_sae), seed_of(study, "beginning", name)
    given = new_sae_config(study), d_sae, item["arm"], target, study.config.precision
    return WarmStartSettings(*given, seed, held_out_seed)


def _needs(study: Study, item: Item) -> Needs:
    name, target = item["stitch"], study.config.stitch[item["stitch"]].target
    needs: Needs = {"model": ("model", {"model": target}), "stitch": ("stitch", {"stitch": name})}
    needs["tokens"] = tokens_needs(study.stitch_corpora(name))
    return needs if item["arm"] == "random" else needs | {"source": source_sae_need(name, item["d_sae"])}


def _run(work: Work, settings: WarmStartSettings) -> Results:
    import torch

    from heredity.lm.activations import activations
    from heredity.sae.model import SAE
    from heredity.stitch.savings import Curve
    from heredity.text.tokens import distinct_blocks

    config, model, hook_point = settings.sae, work.inputs["model"], maps_of(work.inputs["stitch"])["target_hook_point"]

    def sampler(split: str, seed: int) -> Any:
        return sampler_of(work.inputs["tokens"], split, config.context_size, seed, config.mix)

    train = sampler("train", settings.seed)
    store = activation_store(model, hook_point, train, config.batch_blocks, settings.seed, settings.precision)
    stream = Stream(store.batch, store.batch_size, -(-config.tokens // store.batch_size))
    blocks = distinct_blocks(sampler("validation", settings.held_out_seed), HELD_OUT)
    held = torch.cat(list(activations(store.model, hook_point, blocks, settings.precision)))
    sae, costs = _start(work, settings, stream)
    spare = SAE(held.shape[1], settings.d_sae, config.activation, config.k).to(held.device)
    curve = Curve(work.folder, stream.batch_size, stream.steps, spare, held)
    metadata = {"model_name": settings.target, "model_state": state_of(model), "beginning": settings.arm}
    training = SAESettings(config, hook_point, settings.precision, settings.seed, {}, settings.d_sae)
    train_sae(work, training, stream, sae, None, metadata, watch=curve)
    last = {key: value for key, value in curve.rows[-1].items() if key != "step"}
    row = {"d_in": held.shape[1], "steps": stream.steps, "held_out": len(held), **costs, **last}
    curve.forget()
    return {"warm_starts": [row], "warm_start_curves": curve.rows}


def _start(work: Work, settings: WarmStartSettings, stream: Stream) -> tuple[SAE | None, dict[str, float]]:
    """The SAE that a training begins with, None for a new one, and its cost.

    It is made again after a kill, which costs less than keeping it.
    """
    if settings.arm == "random":
        return None, {"start_flops": 0.0, "start_seconds": 0.0, "revived": 0}
    from heredity.sae.formats import read_sae
    from heredity.stitch.affine import Moments, Stitch
    from heredity.stitch.savings import fold_flops
    from heredity.stitch.transfer import repaired, trainable, transfer_sae, turned

    first, maps = stream.batch(0), maps_of(work.inputs["stitch"])
    begun = time.monotonic()
    source = read_sae(work.inputs["source"] / "sae")[0].to(first.device)
    flops, revived = fold_flops(maps["source_width"], maps["target_width"], source.d_sae), 0
    if settings.arm == "geometry":
        sae = turned(source, Moments.load(work.inputs["stitch"] / "moments.safetensors"), settings.seed)
    else:
        stitch = Stitch.load(work.inputs["stitch"] / maps["method"]).to(first.device)
        sae = transfer_sae(source, *stitch, normalize=True)
    if settings.arm == "repaired":
        sae, revived, more = repaired(sae, stream.batch, stream.batch_size, stream.steps, settings.seed)
        flops += more
    sae = trainable(sae, settings.sae, first)
    return sae, {"start_flops": flops, "start_seconds": round(time.monotonic() - begun, 3), "revived": revived}


class SavingsSettings(NamedTuple):
    thresholds: tuple[float, ...]


def _savings_needs(study: Study, item: Item) -> Needs:
    name = item["stitch"]
    config = study.config.stitch[name]
    starts = ((d_sae, arm) for d_sae in config.widths for arm in config.arms)
    return {
        "stitch": ("stitch", item),
        "source_sae": {str(d_sae): source_sae_need(name, d_sae) for d_sae in config.widths},
        "warm_start": {f"{d_sae}-{arm}": warm_start_need(name, d_sae, arm) for d_sae, arm in starts},
    }


def _savings(work: Work, settings: SavingsSettings) -> Results:
    from heredity.stitch.savings import dense_flops, saving_row

    maps = maps_of(work.inputs["stitch"])
    fit = next(row for row in read_rows(work.inputs["stitch"], "stitch_fits") if row["in_use"])
    rows: list[dict[str, Any]] = []
    for artifact in work.inputs["warm_start"].values():
        start, curve = read_rows(artifact, "warm_starts")[0], read_rows(artifact, "warm_start_curves")
        d_sae, arm = start["d_sae"], start["arm"]
        if arm == "random":
            continue
        random = read_rows(work.inputs["warm_start"][f"{d_sae}-random"], "warm_start_curves")
        trained = work.inputs["source_sae"][str(d_sae)]
        read = trained.json("sae/cfg.json")["metadata"]["training_tokens"]
        source = dense_flops(maps["source_width"], d_sae, read), trained.manifest["seconds"]
        # A start that is only turned needs the source's SAE and no maps.
        paid = (0.0, 0.0) if arm == "geometry" else (fit["flops"], fit["seconds"])
        extra = start["start_flops"] + paid[0], start["start_seconds"] + paid[1]
        for threshold in settings.thresholds:
            costs = saving_row(curve, random, threshold, extra, source)
            reached = {arm: costs["flops"], "random": costs.pop("random_flops")}
            del costs["random_seconds"]
            never = ", ".join(name for name, cost in reached.items() if cost is None)
            rows.append({"d_sae": d_sae, "arm": arm, "threshold": threshold, "never": never, **costs})
    return {"savings": rows}


def _say(tables: Tables) -> Iterable[Statement]:
    """The highest level that a transferred and the random start both reach, at the first width of each stitch."""
    for name, (source, target), every in by_stitch(tables, "savings"):
        first = [row for row in every if row["d_sae"] == every[0]["d_sae"]]
        rows = [row for row in first if row["arm"] in _STARTS]
        if not rows:
            continue
        width = f"{rows[0]['d_sae']:,} features"
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


WARM_START = Analysis(
    kind="warm_start",
    version=1,
    title="SAEs of the target from warm starts",
    items=_items,
    settings=_settings,
    needs=_needs,
    run=_run,
    tables=(WARM_STARTS, WARM_START_CURVES),
    cost=lambda study, item, shapes: training_cost(study, item, shapes, "target"),
)
SAVED = Analysis(
    kind="savings",
    version=1,
    title="Savings by warm starts",
    items=lambda study: ({"stitch": name} for name, stitch in study.config.stitch.items() if stitch.arms),
    settings=lambda study, item: SavingsSettings(study.config.stitch[item["stitch"]].thresholds),
    needs=_savings_needs,
    run=_savings,
    tables=(SAVINGS,),
    say=_say,
)
