"""SAEs of a stitch's target trained from several starts on the same vectors in the same order.

Starts: `random`; `transferred`, the source's SAE folded through the maps; `repaired`, the same with its decoder
refitted and dead features revived; `geometry`, the source's SAE turned at random: the angles of a trained dictionary
without the maps. Decoder rows have norm 1 in training. By the study's recipe the norms of a transferred start move into
its encoder; by the published one (Chen et al. 2025, appendix D: `stitch.NAME.arms_recipe`) they are cut off, since rows
are renormalized at every step and the paper speaks of no other treatment.

How far features move (figure 2b): the cosine of each final decoder row with the row that it started as, over features
that fire on the held-out vectors; one that never fires stays where it was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from heredity.analyses.analysis import Analysis, Item, Need, Needs, Results, seed_of
from heredity.analyses.reading import sampler_of, state_of
from heredity.analyses.sae import SAESettings, Stream, activation_store, train_sae
from heredity.analyses.sae_transfer import new_sae_config, source_sae_need, training_cost, width_items
from heredity.analyses.stitch_maps import maps_of
from heredity.analyses.text import tokens_for
from heredity.engine.stage import Work
from heredity.study import Precision, SAEConfig, Study
from heredity.study.stitch import Recipe
from heredity.tables import Column, Plot, Table

if TYPE_CHECKING:
    from torch import Tensor

    from heredity.sae.model import SAE

HELD_OUT = 8192
"""Validation vectors behind a curve."""
KEY = ("stitch", "d_sae", "arm")
QUANTILES = np.arange(0.05, 0.96, 0.05).round(2)
ARM = Column("arm", "text", "Start of the training: random, transferred, repaired or geometry.")
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
        ARM,
        Column("d_in", "count", "Width of the hook point."),
        Column("steps", "count", "Training steps."),
        Column("vectors", "count", "Training vectors."),
        Column("held_out", "count", "Validation vectors behind the figures, the same for all starts."),
        Column("start_flops", "flops", "FLOPs of making the start: folding, refitting, turning."),
        Column("start_seconds", "seconds", "Wall time of the same."),
        Column("revived", "count", "Dead features revived in the start."),
        Column("recipe", "text", "Settings of the training: study ([sae]) or published (stitch.NAME.arms_recipe)."),
        Column("lr", "number", "Adam's learning rate."),
        Column("warm_up", "share", "Share of the steps over which it rises; 0 from a random start."),
        Column("decay", "flag", "Whether it falls to 0 over the last fifth of the steps."),
        Column("scaled", "flag", "Whether activations are scaled by one number in training."),
        Column("resampled", "count", "Dead features given a new direction during the training."),
        Column("rows", "text", "How decoder rows came to norm 1: drawn so, norms moved into the encoder, or cut off."),
        *_QUALITY,
    ),
    brief=(*KEY, "explained_variance", "l0", "dead_share", "flops"),
)
WARM_START_CURVES = Table(
    "warm_start_curves",
    "Quality of an SAE along its training, at steps evenly spaced in their logarithm.",
    (*KEY, "step"),
    (
        ARM,
        Column("step", "count", "Steps taken; 0 is the start."),
        Column("vectors", "count", "Training vectors read."),
        *_QUALITY,
    ),
    plot=Plot("lines", x="flops", y="explained_variance", by="arm"),
)

MOVED = Table(
    "moved",
    "Cosine of final decoder rows with the rows they started as, over features that fire: quantiles.",
    (*KEY, "quantile"),
    (
        ARM,
        Column("quantile", "share", "Share of these features with a cosine of at most this."),
        Column("cosine", "r", "Cosine."),
        Column("features", "count", "Features that fire on the held-out vectors."),
    ),
    plot=Plot("lines", x="quantile", y="cosine", by="arm"),
)


class WarmStartSettings(NamedTuple):
    sae: SAEConfig
    recipe: Recipe
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
    recipe = study.config.stitch[name].arms_recipe
    given = new_sae_config(study, name, item["arm"]), recipe, d_sae, item["arm"], target, study.config.precision
    return WarmStartSettings(*given, seed, held_out_seed)


def _needs(study: Study, item: Item) -> Needs:
    name, target = item["stitch"], study.config.stitch[item["stitch"]].target
    needs: Needs = {"model": ("model", {"model": target}), "stitch": ("stitch", {"stitch": name})}
    needs["tokens"] = tokens_for(study, target, study.stitch_corpora(name))
    return needs if item["arm"] == "random" else needs | {"source": source_sae_need(name, item["d_sae"])}


def _run(work: Work, settings: WarmStartSettings) -> Results:
    import torch

    from heredity.lm.activations import sampled
    from heredity.sae.evaluate import quality
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
    held = torch.cat(list(sampled(store.model, hook_point, blocks, settings.precision)))
    sae, begun = _start(work, settings, stream)
    start = sae.W_dec.clone()
    spare = SAE(held.shape[1], settings.d_sae, config.activation, config.k).to(held.device)
    curve = Curve(work.folder, stream.batch_size, stream.steps, spare, held)
    metadata = {"model_name": settings.target, "model_state": state_of(model), "beginning": settings.arm}
    training = SAESettings(config, hook_point, settings.precision, settings.seed, {}, settings.d_sae)
    trained = train_sae(work, training, stream, None if settings.arm == "random" else sae, None, metadata, watch=curve)
    last = {key: value for key, value in curve.rows[-1].items() if key != "step"}
    steps = json.loads((work.folder / "training.json").read_text(encoding="utf-8"))
    row = {"d_in": held.shape[1], "steps": stream.steps, "held_out": len(held), **begun, **last}
    row |= {"recipe": settings.recipe, "lr": config.lr, "decay": config.decay, "scaled": config.normalize}
    row |= {"warm_up": 0.0 if settings.arm == "random" else config.warm_up}
    row |= {"resampled": sum(step["resampled"] for step in steps)}
    curve.forget()
    moved = moved_rows(start, trained.W_dec, quality(trained, [held]).density > 0)
    return {"warm_starts": [row], "warm_start_curves": curve.rows, "moved": moved}


def moved_rows(start: Tensor, end: Tensor, fires: np.ndarray) -> list[dict[str, Any]]:
    """Rows of `moved`, for decoders [d_sae, d_in] and which features fire, bool [d_sae]; none where none fires."""
    from torch.nn.functional import cosine_similarity

    cosines = cosine_similarity(start.double(), end.double(), dim=1).cpu().numpy()[fires]
    if not len(cosines):
        return []
    values = np.quantile(cosines, QUANTILES)
    return [
        {"quantile": quantile, "cosine": value, "features": len(cosines)}
        for quantile, value in zip(QUANTILES.tolist(), values, strict=True)
    ]


def _start(work: Work, settings: WarmStartSettings, stream: Stream) -> tuple[SAE, dict[str, Any]]:
    """The SAE that a training begins with, and columns of `warm_starts` about it.

    It is made again after a kill, which costs less than keeping it. The random one is what the training makes itself,
    which also sets its biases.
    """
    import torch

    from heredity.sae.formats import read_sae
    from heredity.sae.model import new_sae
    from heredity.stitch.affine import Moments, Stitch
    from heredity.stitch.savings import fold_flops
    from heredity.stitch.transfer import cut_to_unit, repaired, trainable, transfer_sae, turned

    first, maps = stream.batch(0), maps_of(work.inputs["stitch"])
    if settings.arm == "random":
        seeded = torch.Generator().manual_seed(settings.seed)
        sae = new_sae(first.shape[1], settings.d_sae, settings.sae.activation, settings.sae.k, seeded)
        return sae.to(first.device), {"start_flops": 0.0, "start_seconds": 0.0, "revived": 0, "rows": "drawn"}
    begun = time.monotonic()
    source = read_sae(work.inputs["source"] / "sae")[0].to(first.device)
    flops, revived = fold_flops(maps["source_width"], maps["target_width"], source.d_sae), 0
    cut = settings.recipe == "published" and settings.arm == "transferred"
    if settings.arm == "geometry":
        sae = turned(source, Moments.load(work.inputs["stitch"] / "moments.safetensors"), settings.seed)
    else:
        stitch = Stitch.load(work.inputs["stitch"] / maps["method"]).to(first.device)
        sae = transfer_sae(source, *stitch, normalize=not cut)
        sae = cut_to_unit(sae) if cut else sae
    if settings.arm == "repaired":
        sae, revived, more = repaired(sae, stream.batch, stream.batch_size, stream.steps, settings.seed)
        flops += more
    sae = trainable(sae, settings.sae, first)
    row = {"start_flops": flops, "start_seconds": round(time.monotonic() - begun, 3), "revived": revived}
    return sae, row | {"rows": "cut off" if cut else "moved into the encoder"}


WARM_START = Analysis(
    kind="warm_start",
    version=3,
    title="SAEs of the target from warm starts",
    items=_items,
    settings=_settings,
    needs=_needs,
    run=_run,
    tables=(WARM_STARTS, WARM_START_CURVES, MOVED),
    cost=lambda study, item, shapes: training_cost(study, item, shapes, "target"),
)
