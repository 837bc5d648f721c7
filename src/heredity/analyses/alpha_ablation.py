"""The weight of the round trips: maps of several alphas by what they are good for (figure 7 of Chen et al. 2025).

For each alpha the exact minimum of the joint loss, on the tokens of the stitch; 0 gives each map for itself. Told are
the four ways through the maps, and the source's SAE carried to the target through them, which is up(SAE(down(x))): its
error is small only where the maps also invert each other.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from heredity.analyses.analysis import Analysis, Cost, Item, Results
from heredity.analyses.sae_transfer import source_sae_need
from heredity.analyses.stitch_maps import Sides, StitchSettings, held_moments, maps_of, pass_cost, stitch_needs
from heredity.engine.stage import Work
from heredity.study import Study
from heredity.tables import Column, Plot, Table

if TYPE_CHECKING:
    from heredity.analyses.plan import Shapes

ALPHAS = Table(
    "alphas",
    "Joint fits by the weight of their round trips, on held-out tokens.",
    ("stitch", "alpha", "way"),
    (
        Column("alpha", "number", "Weight of the round trips."),
        Column("way", "text", "up, down, source_round_trip, target_round_trip; sae: the SAE carried to the target."),
        Column("ce_loss", "nats", "Cross-entropy of the stitched model, or with the SAE spliced in, nats per token."),
        Column("delta_loss", "nats", "Its rise over the model of the back, or over the target."),
        Column("increase", "share", "The same as a share."),
        Column("r2", "r", "Explained variance: of the map, the round trip or the SAE."),
    ),
    brief=("stitch", "alpha", "way", "ce_loss", "increase", "r2"),
    plot=Plot("lines", x="alpha", y="increase", by="way"),
)
_R2 = {"up": "up", "down": "down", "source_round_trip": "there_and_back", "target_round_trip": "back_and_there"}


def _run(work: Work, settings: StitchSettings) -> Results:
    from heredity.lm.activations import sampled
    from heredity.lm.evaluate import evaluate
    from heredity.sae.evaluate import quality, spliced_loss
    from heredity.stitch.affine import Moments, Stitch, stitch_quality
    from heredity.stitch.aligned import BACKS
    from heredity.stitch.fit import fit
    from heredity.stitch.transfer import transfer_sae

    config, sides = settings.config, Sides.of(work)
    sae, rows, made = sides.read_sae(work.inputs["sae"]), list[dict[str, Any]](), work.inputs["stitch"]
    moments, fitted = Moments.load(made / "moments.safetensors"), maps_of(made)["alpha"]
    tuning, judging = held_moments(settings, work, partial(sides.pairs, precision=settings.precision))
    blocks, units = settings.blocks(work, "validation", config.evaluation, 1, "target"), config.units
    clean = evaluate(sides.target[0], blocks, precision=settings.precision).ce_loss
    for done, alpha in enumerate(config.alphas, 1):
        there = alpha == fitted and (made / "joint").is_dir()  # the stitch has made this fit already
        found = Stitch.load(made / "joint") if there else fit(moments, "joint", alpha, None, tuning, units).stitch
        figures = stitch_quality(found, judging, alpha)
        stitch = found.to(sides.stitch.up.weight.device)
        ways = sides.losses(work, settings, stitch)
        losses = {way: (ways[way].ce_loss, ways[back].ce_loss) for way, back in BACKS.items() if way in ways}
        r2 = {way: getattr(figures, name).r2 for way, name in _R2.items()}
        carried = transfer_sae(sae, *stitch)
        losses["sae"] = spliced_loss(*sides.target, carried, blocks, settings.precision), clean
        r2["sae"] = quality(carried, sampled(*sides.target, blocks, settings.precision)).explained_variance
        for way, (loss, whole) in losses.items():
            row = {"alpha": alpha, "way": way, "ce_loss": loss, "delta_loss": loss - whole, "r2": r2[way]}
            rows.append(row | {"increase": loss / whole - 1})
        work.progress(done, len(config.alphas))
    return {"alphas": rows}


def _items(study: Study) -> Iterable[Item]:
    return ({"stitch": name} for name, stitch in study.config.stitch.items() if stitch.alphas)


def _settings(study: Study, item: Item) -> StitchSettings:
    # Of the seed of the maps, so that blocks are theirs.
    return StitchSettings.of(study, item["stitch"], "stitch", "held_out", "evaluation", "alphas", "units")


def _cost(study: Study, item: Item, shapes: Shapes) -> Cost:
    return pass_cost(study, item["stitch"], shapes, 10 * len(study.config.stitch[item["stitch"]].alphas))


ANALYSIS = Analysis(
    kind="alphas",
    version=3,
    title="Weight of the round trips",
    items=_items,
    settings=_settings,
    needs=lambda study, item: stitch_needs(
        study, item, sae=source_sae_need(item["stitch"], study.config.stitch[item["stitch"]].widths[0])
    ),
    run=_run,
    tables=(ALPHAS,),
    cost=_cost,
)
