"""Affine maps between the residual streams of two models, and each model going on from the other's front.

After Chen et al. 2025 (arXiv 2506.06609). The source A is d_A wide, the target B d_B. Activations a and b are those of
the residual streams at the same token, special tokens left out. up(a) = a P_up + b_up and down(b) = b P_down + b_down.

Joint loss (equation 3): ||up(a) - b||^2 + ||down(b) - a||^2 + alpha (||down(up(a)) - a||^2 + ||up(down(b)) - b||^2),
each the mean over elements and tokens; alpha = 1 is the paper's. It depends on the data through means and covariances
alone and is quadratic in either map, so a quasi-Newton method minimizes it from one pass over the tokens, without a
learning rate (`joint`). It is not convex in both maps: the fit ends at a stationary point below its start, the maps of
`ridge` (each map for itself). The ridge of each side is chosen on held-out tokens. `procrustes`: up turns and scales,
down undoes it. `published`: Adam with the published settings (appendix A: learning rate 1e-4, 2 epochs, 5,120 tokens a
step, alpha = 1), on as many tokens as the stitch has; `descent`: the same with the study's settings. FLOPs are those of
the matrix products of a fit, without the forward passes of the models.

Layer of B, unless the study names one: the residual stream of highest SVCCA with A's (Raghu et al. 2017), beside linear
CKA (Kornblith et al. 2019). Stitched models (table 1): the back of one model after the front of the other, mapped, or
after its own front, mapped there and back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from heredity import format
from heredity.analyses.analysis import (
    Analysis,
    Aside,
    Cost,
    Item,
    Needs,
    Passes,
    Results,
    Statement,
    Tables,
    rows_of,
    seed_of,
)
from heredity.analyses.loaded import across
from heredity.analyses.plan import check_method
from heredity.analyses.reading import load, on_device, sampler_of, tokenizer_of
from heredity.analyses.text import tokenizer_need, tokens_for
from heredity.engine.stage import Work
from heredity.engine.store import Artifact
from heredity.study import AdamConfig, Precision, StitchConfig, Study, StudyError
from heredity.tables import Column, Plot, Table

if TYPE_CHECKING:
    from heredity.analyses.plan import Shapes
    from heredity.lm.evaluate import Quality
    from heredity.sae.model import SAE
    from heredity.stitch.affine import Moments, Pairs, Stitch
    from heredity.stitch.aligned import Points

COMPARED = 50_000
"""Tokens on which layers are compared."""
FITTED = 0.55
"""Share of the measured matrix rate that the products of a fit reach on two cores."""
_TYPICAL = 60  # rounds of the joint fit
_KEPT = 4 << 30  # bytes of activations that the descent keeps; of more, each epoch reads them anew

STITCH_MAPS = Table(
    "stitch_maps",
    "Stitches: pairs of models joined by affine maps.",
    ("stitch",),
    (
        Column("source", "text", "Model A."),
        Column("target", "text", "Model B."),
        Column("source_hook_point", "text", "Hook point of A."),
        Column("target_hook_point", "text", "Hook point of B."),
        Column("source_width", "count", "Width of the residual stream of A."),
        Column("target_width", "count", "Width of the residual stream of B."),
        Column("corpora", "text", "Corpora that both models have read."),
        Column("method", "text", "Fit in use: joint, ridge, procrustes, published or descent."),
        Column("alpha", "number", "Weight of the round trips in the joint loss."),
        Column(
            "units", "text", "Units of squared errors in the joint loss: raw, or spread, each model's mean variance."
        ),
        Column("held_out", "count", "Held-out tokens on which the fits are judged."),
        Column("compared", "count", "Tokens on which layers are compared."),
        Column("paired", "text", "By tokens, or by characters where tokenizers differ: where a token of both ends."),
        Column("source_reading_flops", "flops", "FLOPs per token of products with weights before the hook point of A."),
        Column("target_reading_flops", "flops", "The same of B."),
        Column("reading_seconds", "seconds", "Wall time of these passes over the tokens of the fits."),
    ),
    brief=("stitch", "source", "source_hook_point", "target", "target_hook_point", "method", "held_out"),
)
STITCH_FITS = Table(
    "stitch_fits",
    "Maps by every fit, judged on held-out tokens.",
    ("stitch", "method"),
    (
        Column("method", "text", "joint, ridge, procrustes, published or descent."),
        Column("in_use", "flag", "Whether further results rest on these maps."),
        Column("loss", "number", "Joint loss."),
        Column("r2_up", "r", "R2 of B from A, pooled over dimensions."),
        Column("r2_down", "r", "R2 of A from B."),
        Column("r2_there_and_back", "r", "R2 of A from itself through B."),
        Column("r2_back_and_there", "r", "R2 of B from itself through A."),
        Column("condition_up", "number", "Largest over least singular value of up; null for a singular map."),
        Column("condition_down", "number", "Largest over least singular value of down; null for a singular map."),
        Column("effective_rank_up", "number", "exp of the entropy of the singular values of up (Roy & Vetterli 2007)."),
        Column("effective_rank_down", "number", "The same of down."),
        Column("tokens", "count", "Tokens it read, repeats counted."),
        Column("flops", "flops", "FLOPs of its matrix products, without forward passes of the models."),
        Column("seconds", "seconds", "Wall time, forward passes of the models included."),
        Column("converged", "flag", "Whether the iterations converged; null for fits without iterations."),
        Column("lr", "number", "Adam's learning rate at the start of its cosine decay; null for other fits."),
        Column("epochs", "count", "Its passes over the tokens."),
        Column("batch_tokens", "count", "Its tokens per step."),
    ),
    brief=("stitch", "method", "loss", "r2_up", "r2_down", "r2_there_and_back", "r2_back_and_there", "flops"),
)
STITCH_COSTS = Table(
    "stitch_costs",
    "Held-out loss by cost: the joint fit on 1/32 to all of the tokens, whole descents of fewer epochs up to all.",
    ("stitch", "method", "tokens"),
    (
        Column("method", "text", "joint, published or descent."),
        Column("tokens", "count", "Tokens it read, repeats counted."),
        Column("flops", "flops", "FLOPs of its matrix products."),
        Column("loss", "number", "Joint loss."),
    ),
    plot=Plot("lines", x="flops", y="loss", by="method"),
)
STITCH_LAYERS = Table(
    "stitch_layers",
    "Similarity of the layers of both models.",
    ("stitch", "source_layer", "target_layer"),
    (
        Column("source_layer", "text", "Hook point of A."),
        Column("target_layer", "text", "Hook point of B."),
        Column("svcca", "r", "Mean canonical correlation of the leading principal components."),
        Column("cka", "r", "Linear centered kernel alignment."),
        Column("chosen", "flag", "Whether the stitch joins these two; where no layer of B is named, by the SVCCA."),
    ),
    plot=Plot("heat", x="target_layer", y="svcca", by="source_layer"),
)
STITCHED_MODELS = Table(
    "stitched_models",
    "Next-token prediction by both models and by the back of one after the front of the other.",
    ("stitch", "way"),
    (
        Column("way", "text", "source, target, up (A's front, B's back), down, source_round_trip, target_round_trip."),
        Column("ce_loss", "nats", "Cross-entropy, nats per token."),
        Column("accuracy", "share", "Accuracy."),
        Column("increase", "share", "Increase of the cross-entropy over the model of the back; null for whole models."),
    ),
    brief=("stitch", "way", "ce_loss", "accuracy", "increase"),
)


class StitchSettings(NamedTuple):
    config: StitchConfig
    """Settings that the result does not depend on stand at their defaults."""
    hook_point: str
    """Of the study: default of the source's."""
    corpora: tuple[str, ...]
    """Corpora that both models have read."""
    precision: Precision
    seed: int
    place: Aside

    @property
    def source_hook_point(self) -> str:
        return self.config.source_hook_point or self.hook_point

    @staticmethod
    def of(study: Study, name: str, seed: str, *used: str) -> StitchSettings:
        """With the stitch's source, target, context_size and what else is `used`. seed: name the seed is made from."""
        given, place = study.config.stitch[name], Aside(f"{study.name}: stitch.{name}")
        config = StitchConfig(**{key: getattr(given, key) for key in ("source", "target", "context_size", *used)})
        read = study.site, study.stitch_corpora(name), study.config.precision
        return StitchSettings(config, *read, seed_of(study, seed, name), place)

    def blocks(self, work: Work, split: str, tokens: int, draw: int = 0, end: str = "source") -> np.ndarray:
        """Token blocks int64 [n, context] of the common corpora in equal parts, without repeats, as one end reads."""
        from heredity.text.tokens import distinct_blocks

        role = "target_tokens" if end == "target" and "target_tokens" in work.inputs else "tokens"
        sampler = sampler_of(work.inputs[role], split, self.config.context_size, self.seed + draw)
        return distinct_blocks(sampler, tokens)


def _settings(study: Study, item: Item) -> StitchSettings:
    points, amounts = ("source_hook_point", "target_hook_point"), ("tokens", "held_out", "evaluation")
    return StitchSettings.of(
        study, item["stitch"], "stitch", *points, *amounts, "method", "alpha", "units", "adam", "layers"
    )


def _needs(study: Study, item: Item) -> Needs:
    config, corpora = study.config.stitch[item["stitch"]], study.stitch_corpora(item["stitch"])
    needs: Needs = {"source": ("model", {"model": config.source}), "target": ("model", {"model": config.target})}
    needs |= {
        "tokenizer": tokenizer_need(study, config.source),
        "tokens": tokens_for(study, config.source, corpora),
    }
    if across(study, item["stitch"]):
        needs["target_tokenizer"] = tokenizer_need(study, config.target)
        needs["target_tokens"] = tokens_for(study, config.target, corpora)
    return needs


def stitch_needs(study: Study, item: Item, corpora: Iterable[str] = (), **others: Any) -> Needs:
    """Inputs of `Sides.of` and `StitchSettings.blocks`, the documents of some corpora, and others by role."""
    documents: dict[str, tuple[str, Item]] = {corpus: ("corpus", {"corpus": corpus}) for corpus in corpora}
    maps: Needs = {**_needs(study, item), "stitch": ("stitch", {"stitch": item["stitch"]}), **others}
    return maps | {"corpus": documents} if documents else maps


class Sides(NamedTuple):
    """Both ends of a stitch, a model on the device and its hook point each, and what lies between them."""

    source: tuple[Any, str]
    target: tuple[Any, str]
    stitch: Stitch
    tokenizers: tuple[Any, Any]
    """Of source and target: one and the same, unless they differ."""

    @staticmethod
    def of(work: Work) -> Sides:
        """Those of the inputs of `stitch_needs`, with the maps in use."""
        from heredity.stitch.affine import Stitch

        folder, maps = work.inputs["stitch"], maps_of(work.inputs["stitch"])
        source, target = ((on_device(load(work.inputs[e])), maps[f"{e}_hook_point"]) for e in ("source", "target"))
        stitch = Stitch.load(folder / maps["method"]).to(next(target[0].parameters()).device)
        return Sides(source, target, stitch, tokenizers_of(work))

    @property
    def tokenizer(self) -> Any:
        """That of the source."""
        return self.tokenizers[0]

    def pairs(self, blocks: np.ndarray, precision: Precision) -> Pairs:
        """Aligned activations at both hook points on token blocks of the source."""
        from heredity.stitch.aligned import Points

        source, target = (Points(model, [hook_point]) for model, hook_point in (self.source, self.target))
        return paired(source, target, self.tokenizers, blocks, precision)

    def losses(self, work: Work, settings: StitchSettings, stitch: Stitch) -> dict[str, Quality]:
        """Both models and the ways through some maps, on held-out tokens; without `up` and `down` across tokenizers."""
        from heredity.stitch.aligned import stitched_losses

        first, second = self.tokenizers
        blocks = settings.blocks(work, "validation", settings.config.evaluation, 1)
        apart = None
        if second is not first:
            theirs = settings.blocks(work, "validation", settings.config.evaluation, 1, "target")
            apart = theirs, list(second.all_special_ids)
        special = list(first.all_special_ids)
        return stitched_losses(self.source, self.target, *stitch, blocks, special, settings.precision, apart)

    def read_sae(self, artifact: Artifact) -> SAE:
        """The SAE of an artifact, on the device."""
        from heredity.sae.formats import read_sae

        return read_sae(artifact / "sae")[0].to(self.stitch.up.weight.device)


def tokenizers_of(work: Work) -> tuple[Any, Any]:
    """Tokenizers of the source and of the target, the same object unless they differ."""
    first = tokenizer_of(work.inputs["tokenizer"])
    return first, tokenizer_of(work.inputs["target_tokenizer"]) if "target_tokenizer" in work.inputs else first


def paired(a: Points, b: Points, tokenizers: tuple[Any, Any], blocks: np.ndarray, precision: Precision) -> Pairs:
    """Activations of both models at the same places of a text, given as token blocks of the source.

    By the token; where tokenizers differ, at the characters where a token of both ends. The other tokenizer may need
    more tokens for the text of a block, up to twice as many.
    """
    from heredity.stitch.aligned import aligned, aligned_texts, block_texts

    first, second = tokenizers
    if first is second:
        return aligned(a, b, blocks, list(first.all_special_ids), precision)
    return aligned_texts(a, first, b, second, block_texts(blocks, first), 2 * blocks.shape[1], precision)


def maps_of(artifact: Artifact) -> dict[str, Any]:
    """The row of `stitch_maps` of a stitch artifact."""
    return read_rows(artifact, "stitch_maps")[0]


def read_rows(artifact: Artifact, table: str) -> list[dict[str, Any]]:
    """Rows of one table of an artifact."""
    return artifact.table(table).to_pylist()


def _run(work: Work, settings: StitchSettings) -> Results:
    from heredity.stitch.affine import nested_moments
    from heredity.stitch.aligned import BACKS, Points
    from heredity.stitch.fit import FEWEST, joint_rounds, units_of

    config, first = settings.config, settings.source_hook_point
    models = on_device(load(work.inputs["source"])), on_device(load(work.inputs["target"]))
    tokenizers = tokenizers_of(work)

    def read(a: list[str], b: list[str], some: np.ndarray) -> Pairs:
        return paired(Points(models[0], a), Points(models[1], b), tokenizers, some, settings.precision)

    blocks = settings.blocks(work, "train", config.tokens)
    layers, second, compared = _layers(settings, models, read, blocks)
    pairs, clock = partial(read, [first], [second]), [0.0]
    work.progress(1, 5)
    start = time.monotonic()
    # Fits on parts of the tokens are what loss by cost is told of, beside descents.
    parts = nested_moments(lambda some: _timed(pairs(some), clock), blocks, 5 if config.descents else 0)
    moments = parts[-1]
    if not layers:
        layers, compared = [_likeness(moments) | {"source_layer": first, "target_layer": second}], moments.tokens
    widths = len(moments.mean_a), len(moments.mean_b)
    if moments.tokens <= sum(widths):
        raise StudyError(
            f"{settings.place}.tokens: {moments.tokens} tokens were read, and maps between {widths[0]} and {widths[1]} "
            "dimensions fit any so few; give many times as many"
        )
    check_method(settings.place.value, config, *widths)
    shared = time.monotonic() - start
    work.progress(2, 5)
    held = held_moments(settings, work, pairs)
    moments.save(work.folder / "moments.safetensors")
    fitted, units = partial(_fitted, config, held=held, shared=shared), units_of(moments, config.units)
    curves, method = {"ridge": [fitted(moments, "ridge")]}, config.method
    if joint_rounds(*widths) >= FEWEST:
        curves["joint"] = [fitted(part, "joint") for part in parts]
    elif method == "joint":
        method = "ridge"
    if widths[0] <= widths[1]:
        curves["procrustes"] = [fitted(moments, "procrustes")]
    work.progress(3, 5)
    for name, adam in config.descents.items():
        curves[name] = _by_adam(adam, config.alpha, pairs, blocks, held[1], units, settings.seed)
    for name, fits in curves.items():
        fits[-1][0].save(work.folder / name)
    work.progress(4, 5)
    stitch = curves[method][-1][0].to(next(models[1].parameters()).device)
    source, target = zip(models, (first, second), strict=True)
    ways = Sides(source, target, stitch, tokenizers).losses(work, settings, stitch)
    backs = {way: ways[back].ce_loss for way, back in BACKS.items()}
    row = {"source": config.source, "target": config.target, "method": method, "alpha": config.alpha}
    row["units"] = "raw" if units == (1.0, 1.0) else "spread"
    row |= {"source_hook_point": first, "target_hook_point": second, "corpora": ", ".join(settings.corpora)}
    row |= {"source_width": widths[0], "target_width": widths[1], "held_out": held[1].tokens, "compared": compared}
    row["paired"] = "tokens" if tokenizers[0] is tokenizers[1] else "characters"
    for end, place in (("source", source), ("target", target)):
        row[f"{end}_reading_flops"] = _reading_flops(*place, blocks[:1])
    row["reading_seconds"] = round(clock[0], 3)
    return {
        "stitch_maps": [row],
        "stitch_fits": [{"method": name, "in_use": name == method} | fits[-1][1] for name, fits in curves.items()],
        "stitch_costs": [
            {"method": name} | {key: row[key] for key in ("tokens", "flops", "loss")}
            for name in ("joint", *config.descents)
            if name in curves
            for _, row in curves[name]
        ],
        "stitch_layers": layers,
        "stitched_models": [
            {"way": way, "ce_loss": own.ce_loss, "accuracy": own.accuracy}
            | {"increase": own.ce_loss / backs[way] - 1 if way in backs else None}
            for way, own in ways.items()
        ],
    }


def held_moments(settings: StitchSettings, work: Work, pairs: Callable[[np.ndarray], Pairs]) -> tuple[Moments, Moments]:
    """Moments of the held-out tokens: to choose the ridge on, and to judge by."""
    from heredity.stitch.affine import MomentStream

    blocks = settings.blocks(work, "validation", settings.config.held_out)
    tuning, judging = (MomentStream().extend(pairs(half)).pair() for half in (blocks[::2], blocks[1::2]))
    return tuning, judging


def _timed(chunks: Pairs, clock: list[float]) -> Pairs:
    """The same chunks; the seconds that they take to come are added to the clock."""
    mark = time.monotonic()
    for chunk in chunks:
        clock[0] += time.monotonic() - mark
        yield chunk
        mark = time.monotonic()


def _reading_flops(model: Any, hook_point: str, block: np.ndarray) -> float:
    """FLOPs per token of a forward pass up to a hook point: of products with weights, as torch counts them."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from heredity.lm.hooks import capture

    with FlopCounterMode(display=False) as counter:
        capture(model, hook_point, torch.from_numpy(block).to(next(model.parameters()).device))
    counts = counter.get_flop_counts().get("Global", {})  # without any product there is none
    return sum(counts.get(op, 0) for op in (torch.ops.aten.mm, torch.ops.aten.addmm)) / block.size


def _layers(
    settings: StitchSettings, models: tuple[Any, Any], read: Callable[..., Pairs], blocks: np.ndarray
) -> tuple[list[dict[str, Any]], str, int]:
    """Similarity of all layers; the target's hook point, of highest SVCCA; and the tokens compared.

    Where the study gives that hook point and asks for no others, there are no rows: the two are compared on the tokens
    of the fit.
    """
    from heredity.lm.hooks import HookPointError, resolve
    from heredity.stitch.affine import MomentStream, all_layers, similarity

    first, given = settings.source_hook_point, settings.config.target_hook_point
    sides: list[list[str]] = []
    for end, point, model in zip(("source", "target"), (first, given), models, strict=True):
        points = [f"blocks.{layer}.hook_resid_pre" for layer in range(model.config.get_text_config().num_hidden_layers)]
        if point is not None and point not in points:
            points.append(point)
        try:
            resolve(model, points[-1])
        except HookPointError as error:
            raise StudyError(f"{settings.place}.{end}_hook_point: {error}") from None
        sides.append(points)
    if given and not settings.config.layers:
        return [], given, 0
    widths = [model.config.get_text_config().hidden_size for model in models]
    if not all_layers(*widths, *map(len, sides))[0]:
        sides[0] = [first]
    stream = MomentStream().extend(read(*sides, blocks[: max(1, COMPARED // blocks.shape[1])]))
    svcca, cka = similarity(stream)
    second = given or sides[1][int(np.argmax(np.nan_to_num(svcca[sides[0].index(first)])))]
    rows = [
        {
            "source_layer": a,
            "target_layer": b,
            "svcca": svcca[i, j],
            "cka": cka[i, j],
            "chosen": (a, b) == (first, second),
        }
        for i, a in enumerate(sides[0])
        for j, b in enumerate(sides[1])
    ]
    return rows, second, stream.tokens


def _likeness(moments: Moments) -> dict[str, Any]:
    """Columns of `stitch_layers` for the two layers that are joined."""
    from heredity.stitch.affine import likeness

    svcca, cka = likeness(moments)
    return {"svcca": svcca, "cka": cka, "chosen": True}


def _fitted(
    config: StitchConfig, moments: Moments, method: Any, held: Sequence[Moments], shared: float
) -> tuple[Stitch, dict[str, Any]]:
    """A fit that reads moments alone, and its figures.

    held: moments to choose the ridge on, and to judge by. shared: seconds of the pass that took the moments.
    """
    from heredity.stitch.affine import moment_flops
    from heredity.stitch.fit import fit, joint_flops

    start, widths = time.monotonic() - shared, moments.ab.shape
    fitted = fit(moments, method, config.alpha, held_out=held[0], units=config.units)
    flops = moment_flops(moments.tokens, *widths)
    if method == "joint":
        flops += joint_flops(len(fitted.losses) - 1, *widths)
    row = _figures(fitted.stitch, held[1], config.alpha, fitted.units, moments.tokens, flops, start)
    return fitted.stitch, row | {"converged": fitted.converged if method == "joint" else None}


def _by_adam(
    adam: AdamConfig,
    alpha: float,
    pairs: Callable[[np.ndarray], Pairs],
    blocks: np.ndarray,
    held_out: Moments,
    units: tuple[float, float],
    seed: int,
) -> list[tuple[Stitch, dict[str, Any]]]:
    """A descent on the same tokens, and its figures: whole trainings of fewer epochs up to all."""
    from heredity.stitch.fit import adam_flops, block_batches, fit_by_adam

    each = max(1, adam.batch_tokens // blocks.shape[1])
    keep = 4 * blocks.size * sum(held_out.ab.shape) <= _KEPT
    batch, fits = block_batches(pairs, blocks, each, keep), []
    for halvings in reversed(range(adam.epochs.bit_length())):
        start, epochs = time.monotonic(), adam.epochs >> halvings
        stitch, _, tokens = fit_by_adam(batch, max(1, len(blocks) // each), epochs, alpha, adam.lr, seed)
        flops, stitch = adam_flops(tokens, *held_out.ab.shape), stitch.to("cpu")
        row = _figures(stitch, held_out, alpha, units, tokens, flops, start)
        fits.append((stitch, row | adam.model_dump() | {"epochs": epochs}))
    return fits


def _figures(
    stitch: Stitch,
    held_out: Moments,
    alpha: float,
    units: tuple[float, float],
    tokens: int,
    flops: float,
    start: float,
) -> dict[str, Any]:
    """A row of `stitch_fits`, of a fit begun at `start`."""
    from heredity.stitch.affine import stitch_quality

    seconds, quality = round(time.monotonic() - start, 2), stitch_quality(stitch, held_out, alpha, units)
    row: dict[str, Any] = {"loss": quality.loss, "tokens": tokens, "flops": flops, "seconds": seconds}
    row |= {f"r2_{way}": getattr(quality, way).r2 for way in ("up", "down", "there_and_back", "back_and_there")}
    for name in ("condition", "effective_rank"):
        row |= {f"{name}_{end}": value for end, value in zip(("up", "down"), getattr(quality, name), strict=True)}
    return row


def _cost(study: Study, item: Item, shapes: Shapes) -> Cost:
    from heredity.stitch.affine import all_layers
    from heredity.stitch.fit import FEWEST, joint_flops, joint_gib, joint_rounds

    name = item["stitch"]
    config, (a, b, gib) = study.config.stitch[name], sizes(study, name, shapes)
    ends, descents = passes_of(study, name, shapes), config.descents
    front, whole = (sum(end[place] for end in ends.values()) for place in (0, 1))
    read = config.tokens + config.held_out
    flops = read * 2 * (a * a + a * b + b * b)
    # Across tokenizers no model goes on from the other's front.
    passed = read * front + (2 if across(study, name) else 3) * config.evaluation * (front + whole)
    kept = 8 * (a * a + a * b + b * b)
    if config.layers or not config.target_hook_point:
        _, kept = all_layers(a, b, shapes.layers(config.source), shapes.layers(config.target))
        passed += COMPARED * whole
        flops += COMPARED * kept / 4  # a product and a sum for each number of 8 bytes
    if (rounds := joint_rounds(a, b)) >= FEWEST:
        # In float64, at half the rate; fits on parts of the tokens stand beside descents alone.
        flops += (6 if descents else 1) * 2 * joint_flops(min(rounds, _TYPICAL), a, b)
        gib += joint_gib(a, b)
    # Trainings of half the epochs, a quarter and so on are as many again.
    epochs = sum(adam.epochs for adam in descents.values())
    passed += config.tokens * front * len(descents)
    flops += config.tokens * 2 * epochs * 20 * a * b
    passes = Passes(passed, study.config.precision)
    return Cost(read + 2 * epochs * config.tokens, flops, gib + kept / 2**30, FITTED, passes=passes)


def stitch_notes(study: Study, name: str, shapes: Shapes) -> Iterable[str]:
    """What to know of a stitch before it is made: what its tokenizers or widths leave out."""
    from heredity.stitch.fit import FEWEST, joint_rounds

    config, place = study.config.stitch[name], f"stitch {name}"
    a, b, _ = sizes(study, name, shapes)
    if across(study, name):
        yield f"{place}: {_apart(config.source, config.target)}"
    if joint_rounds(a, b) < FEWEST:
        yield (
            f"{place}: at widths of {a:,} and {b:,} the joint fit would end far from its minimum in the "
            "operations that it may take; ridge stands in for it"
        )


def _apart(source: str, target: str) -> str:
    return (
        f"{source} and {target} have different tokenizers and are read at the characters where a token of both ends; "
        "what needs the same tokens is left out: the back of one after the front of the other (up and down of "
        "stitched_models), and single features across the stitch (feature_transfer)"
    )


def sizes(study: Study, name: str, shapes: Shapes) -> tuple[int, int, float]:
    """Widths of source and target, and GiB of both models and of what one of them predicts."""
    ends = study.config.stitch[name].source, study.config.stitch[name].target
    a, b = map(shapes.d_model, ends)
    return a, b, shapes.read_gib(*ends) + shapes.logits_gib(*ends)


def passes_of(study: Study, name: str, shapes: Shapes) -> dict[str, tuple[float, float]]:
    """FLOPs per token of source and target: of a pass to the stitch, and of one through the whole model."""
    config = study.config.stitch[name]
    points = {config.source: config.source_hook_point or study.site, config.target: config.target_hook_point}
    each = []
    for model, at in points.items():  # a layer that is yet to be found is taken to be in the middle
        whole = shapes.whole(model)
        each.append((2 * (shapes.passed(model, at) if at else whole / 2), 2 * whole))
    return dict(zip(("source", "target"), each, strict=True))


def pass_cost(study: Study, name: str, shapes: Shapes, passes: int, d_sae: int | None = None) -> Cost:
    """Cost of passes of the evaluation tokens through both models and an SAE of the target."""
    config, (_, b, gib) = study.config.stitch[name], sizes(study, name, shapes)
    tokens, front = passes * config.evaluation, sum(end[0] for end in passes_of(study, name, shapes).values())
    read = Passes(tokens * front / 2, study.config.precision)
    return Cost(tokens, tokens * 2 * b * (d_sae or config.widths[0]), gib, passes=read)


def by_stitch(tables: Tables, table: str) -> Iterable[tuple[str, tuple[str, str], list[Mapping[str, Any]]]]:
    """Stitches that a table has, their source and target, and their rows."""
    for maps in rows_of(tables, "stitch_maps"):
        if rows := rows_of(tables, table, stitch=maps["stitch"]):
            yield maps["stitch"], (maps["source"], maps["target"]), rows


def _say(tables: Tables) -> Iterable[Statement]:
    for name, (source, target), (row,) in by_stitch(tables, "stitch_maps"):
        fit = rows_of(tables, "stitch_fits", stitch=name, in_use=True)[0]
        rise = {way["way"]: way["increase"] for way in rows_of(tables, "stitched_models", stitch=name)}
        text = (
            f"Affine maps explain {percent(fit['r2_up'])} of the variance of {target} from {source} and "
            f"{percent(fit['r2_down'])} of that of {source} from {target}."
        )
        if "up" in rise:
            text += (
                f" With the front of {source} before the back of {target}, cross-entropy {_change(rise['up'])}; the "
                f"other way round it {_change(rise['down'])}."
            )
        else:
            yield Statement(f"stitch {name}", "note", f"stitch {name}: {_apart(source, target)}")
        evidence = [
            f"{row['source_hook_point']} ({row['source_width']:,} wide) and {row['target_hook_point']} "
            f"({row['target_width']:,} wide)",
            f"{row['method']} fit on {fit['tokens']:,} tokens, judged on {row['held_out']:,} held-out tokens",
            *(
                f"SVCCA of the two layers {format.value('r', layers['svcca'])}"
                for layers in rows_of(tables, "stitch_layers", stitch=name, chosen=True)
            ),
            f"there and back costs {source} {percent(rise['source_round_trip'])} and {target} "
            f"{percent(rise['target_round_trip'])}",
            *_fit_costs(tables, name),
        ]
        yield Statement(f"stitch {name}", "maps", text, tuple(evidence))


def _fit_costs(tables: Tables, name: str) -> Iterable[str]:
    """Cost of the joint fit beside that of each descent, for each loss that both reach within 1 %."""
    curves: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows_of(tables, "stitch_costs", stitch=name):
        if row["loss"] is not None:
            curves.setdefault(row["method"], []).append(row)
    joint = curves.pop("joint", [])
    for method, rows in curves.items() if joint else ():
        fit = rows_of(tables, "stitch_fits", stitch=name, method=method)[0]
        words = "the published descent" if method == "published" else "the descent"
        settings = f"learning rate {fit['lr']:g}, epochs {fit['epochs']}"
        for loss, level in (
            ("the joint fit's loss", joint[-1]["loss"]),
            (f"the best loss of {words}", min(row["loss"] for row in rows)),
        ):
            least, most = (
                min((row["flops"] for row in one if row["loss"] <= 1.01 * level), default=None) for one in (joint, rows)
            )
            if least is not None and most is not None:
                yield (
                    f"to within 1 % of {loss} ({level:.4g}): {format.value('flops', least)} by the joint fit, "
                    f"{format.value('flops', most)} by {words} ({settings}), {most / least:,.1f} times as many"
                )
            elif level == joint[-1]["loss"]:
                yield f"{words} ({settings}) never came within 1 % of {loss}, {level:.4g}"


def percent(share: float | None) -> str:
    """A share in prose, also where it is not known."""
    return "an unknown share" if share is None else format.percent(share)


def _change(share: float | None) -> str:
    return f"falls by {percent(-share)}" if share is not None and share < 0 else f"rises by {percent(share)}"


ANALYSIS = Analysis(
    kind="stitch",
    version=4,
    title="Stitches: affine maps between models",
    items=lambda study: ({"stitch": name} for name in study.config.stitch),
    settings=_settings,
    needs=_needs,
    run=_run,
    tables=(STITCH_MAPS, STITCH_FITS, STITCH_COSTS, STITCH_LAYERS, STITCHED_MODELS),
    cost=_cost,
    say=_say,
)
