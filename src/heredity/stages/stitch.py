"""Stages that choose the layers of a stitch, fit its maps, and let each model go on from the other's front."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from heredity.engine.stage import Stage, Work
from heredity.engine.store import Artifact, write_json
from heredity.report.stitch import FitPoint, FitSummary, LayersSummary, MapsSummary, WaySummary
from heredity.stages.lineage import sampler_of
from heredity.stages.models import load, on_device, seed_of
from heredity.stages.stitchable import check_method
from heredity.stages.text import tokenizer_of
from heredity.study import StitchConfig, Study, StudyError
from heredity.text.tokens import distinct_blocks

if TYPE_CHECKING:
    from heredity.stitch.affine import Stitch
    from heredity.stitch.moments import Moments, MomentStream

MAPS = "maps.json"
COMPARED = 50_000
"""Tokens that layers are compared on."""
_KEPT = 4 << 30  # bytes of activations that the descent keeps; of more, each epoch reads them anew


class Sides(NamedTuple):
    """Both models of a stitch and the maps between them, opened."""

    source: Any
    """Model A."""
    target: Any
    """Model B."""
    source_hook_point: str
    """Where A is read."""
    target_hook_point: str
    """Where B is read."""
    stitch: Stitch
    """The maps in use, where the models are."""
    masked: list[int]
    """Ids of special tokens."""


def maps_stage(
    study: Study, name: str, models: Mapping[str, Stage], tokens: Mapping[str, Stage], tokenizer: Stage
) -> Stage:
    """The maps of a stitch by every method, their quality, and the cross-entropies of stitched models."""
    config = study.config.stitch[name]
    seed = seed_of(study, "stitch", name)
    used = {"source_hook_point", "target_hook_point", "tokens", "held_out", "context_size", "method", "alpha", "adam"}
    settings = {
        **config.model_dump(include={*used, "evaluation"}),
        "source_hook_point": source_hook_point(study, name),
        "precision": study.config.precision,
        "seed": seed,
    }
    inputs = {"source": models[config.source], "target": models[config.target], "tokenizer": tokenizer}
    inputs |= {f"tokens:{corpus}": tokens[corpus] for corpus in study.stitch_corpora(name)}

    def make(work: Work) -> None:
        _make_maps(study, name, work, seed)

    return Stage("stitch", name, settings, inputs, make)


def source_hook_point(study: Study, name: str) -> str:
    """Where the source of a stitch is read."""
    return study.config.stitch[name].source_hook_point or study.config.hook_point


def stitch_inputs(
    study: Study, name: str, models: Mapping[str, Stage], maps: Stage, tokens: Mapping[str, Stage], tokenizer: Stage
) -> dict[str, Stage]:
    """What `sides_of` and `stitch_blocks` need, as inputs of a stage."""
    config = study.config.stitch[name]
    ends = {"source": models[config.source], "target": models[config.target], "stitch": maps, "tokenizer": tokenizer}
    return ends | {f"tokens:{corpus}": tokens[corpus] for corpus in study.stitch_corpora(name)}


def sides_of(work: Work) -> Sides:
    """Both models of a stitch, on the device, with its maps."""
    from heredity.stitch.affine import Stitch

    source, target = (on_device(load(work.inputs[end])) for end in ("source", "target"))
    found = maps_of(work.inputs["stitch"])
    stitch = Stitch.load(work.inputs["stitch"] / found.method).to(next(target.parameters()).device)
    special = tokenizer_of(work.inputs["tokenizer"]).all_special_ids
    return Sides(source, target, found.source_hook_point, found.target_hook_point, stitch, list(special))


def maps_of(artifact: Artifact) -> MapsSummary:
    """The figures of a `stitch` artifact."""
    return MapsSummary.model_validate(artifact.json(MAPS))


def stitch_blocks(work: Work, split: str, tokens: int, context_size: int, seed: int) -> np.ndarray:
    """Token blocks int64 [n, context] of the common corpora in equal parts, none of them twice."""
    return distinct_blocks(sampler_of(work, split, context_size, seed, "equal"), tokens)


def _make_maps(study: Study, name: str, work: Work, seed: int) -> None:
    from heredity.stitch.affine import Stitch
    from heredity.stitch.moments import nested_moments

    config, precision = study.config.stitch[name], study.config.precision
    models = on_device(load(work.inputs["source"])), on_device(load(work.inputs["target"]))
    special = list(tokenizer_of(work.inputs["tokenizer"]).all_special_ids)
    read = _Read(models, special, precision)
    blocks = stitch_blocks(work, "train", config.tokens, config.context_size, seed)
    first = source_hook_point(study, name)
    layers, second = _layers(study, name, read, first, blocks)
    work.progress(1, 5)
    start = time.monotonic()
    *parts, moments = nested_moments(lambda some: read.pairs([first], [second], some), blocks)
    if moments.tokens <= len(moments.mean_a) + len(moments.mean_b):
        raise StudyError(
            f"{study.name}: stitch.{name}.tokens: {moments.tokens} tokens were read, and maps between "
            f"{len(moments.mean_a)} and {len(moments.mean_b)} dimensions fit any so few; give many times as many"
        )
    check_method(study, name, len(moments.mean_a), len(moments.mean_b))
    shared = time.monotonic() - start
    work.progress(2, 5)
    held = stitch_blocks(work, "validation", config.held_out, config.context_size, seed)
    tuning, held_out = (read.stream([first], [second], half).pair(0, 0) for half in (held[::2], held[1::2]))
    moments.save(work.folder / "moments.safetensors")
    fits: dict[str, FitSummary] = {}
    for method, (found, told) in _fits(config, moments, (tuning, held_out), shared).items():
        found.save(work.folder / method)
        fits[method] = told
    shorter = [_fitted(config, part, "joint", (tuning, held_out), 0.0)[1] for part in parts]
    curves = {"joint": tuple(map(_point, [*shorter, fits["joint"]]))}
    work.progress(3, 5)
    if config.adam.epochs:
        found, by_epochs = _by_adam(config, read, (first, second), blocks, held_out, seed)
        found.save(work.folder / "adam")
        fits["adam"], curves["adam"] = by_epochs[-1], tuple(map(_point, by_epochs))
    work.progress(4, 5)
    chosen = Stitch.load(work.folder / config.method).to(read.device)
    judged = stitch_blocks(work, "validation", config.evaluation, config.context_size, seed + 1)
    told = MapsSummary(
        source=config.source,
        target=config.target,
        source_hook_point=first,
        target_hook_point=second,
        widths=(len(moments.mean_a), len(moments.mean_b)),
        corpora=study.stitch_corpora(name),
        method=config.method,
        alpha=config.alpha,
        held_out=held_out.tokens,
        layers=layers,
        fits=fits,
        curves=curves,
        ways=_ways(read, (first, second), chosen, judged),
    )
    write_json(work.folder / MAPS, told.model_dump(mode="json"))


class _Read(NamedTuple):
    """Aligned activations of two models."""

    models: tuple[Any, Any]
    special: list[int]
    precision: Any

    @property
    def device(self):
        return next(self.models[1].parameters()).device

    def pairs(self, a: list[str], b: list[str], blocks: np.ndarray):
        """Chunks of activations at points of each."""
        from heredity.stitch.aligned import Points, aligned

        return aligned(Points(self.models[0], a), Points(self.models[1], b), blocks, self.special, self.precision)

    def stream(self, a: list[str], b: list[str], blocks: np.ndarray) -> MomentStream:
        """Moments of all points of A with all of B."""
        from heredity.stitch.moments import MomentStream

        stream = MomentStream()
        for of_a, of_b in self.pairs(a, b, blocks):
            stream.add(of_a, of_b)
        return stream


def _layers(study: Study, name: str, read: _Read, first: str, blocks: np.ndarray) -> tuple[LayersSummary, str]:
    """Likeness of all layers, and the target's hook point: the given one, or that most like the source's."""
    from heredity.lm.hooks import HookPointError, resolve
    from heredity.stitch.moments import all_layers, similarity

    config = study.config.stitch[name]
    sides: list[list[str]] = []
    for end, model, named in zip(("source", "target"), read.models, (first, config.target_hook_point), strict=True):
        layers = model.config.get_text_config().num_hidden_layers
        points = [f"blocks.{layer}.hook_resid_pre" for layer in range(layers)]
        if named is not None and named not in points:
            points.append(named)
        try:
            resolve(model, points[-1])
        except HookPointError as error:
            raise StudyError(f"{study.name}: stitch.{name}.{end}_hook_point: {error}") from None
        sides.append(points)
    widths = [model.config.get_text_config().hidden_size for model in read.models]
    if not all_layers(*widths, *map(len, sides))[0]:
        sides[0] = [first]
    some = blocks[: max(1, COMPARED // blocks.shape[1])]
    found = similarity(read.stream(sides[0], sides[1], some))
    row = np.nan_to_num(found.svcca[sides[0].index(first)])
    second = config.target_hook_point or sides[1][int(np.argmax(row))]
    rows = {key: tuple(map(tuple, getattr(found, key).tolist())) for key in ("svcca", "cka")}
    return LayersSummary(source=tuple(sides[0]), target=tuple(sides[1]), tokens=found.tokens, **rows), second


def _fits(
    config: StitchConfig, moments: Moments, held: tuple[Moments, Moments], shared: float
) -> dict[str, tuple[Stitch, FitSummary]]:
    """Every fit that reads moments alone. held: to choose the ridge on, and to judge by. shared: seconds of the pass
    that took them."""
    narrower = len(moments.mean_a) <= len(moments.mean_b)
    methods: list[Any] = ["ridge", "joint", *(["procrustes"] if narrower else [])]
    return {method: _fitted(config, moments, method, held, shared) for method in methods}


def _fitted(
    config: StitchConfig, moments: Moments, method: Any, held: tuple[Moments, Moments], shared: float
) -> tuple[Stitch, FitSummary]:
    from heredity.stitch.fit import fit, joint_flops
    from heredity.stitch.moments import moment_flops

    widths, start = (len(moments.mean_a), len(moments.mean_b)), time.monotonic()
    fitted = fit(moments, method, config.alpha, held_out=held[0])
    flops, converged = moment_flops(moments.tokens, *widths), None
    if method == "joint":
        flops, converged = flops + joint_flops(len(fitted.losses) - 1, *widths), fitted.converged
    told = _told(fitted.stitch, held[1], config.alpha, moments.tokens, flops, shared + time.monotonic() - start)
    return fitted.stitch, told.model_copy(update={"converged": converged})


def _point(told: FitSummary) -> FitPoint:
    return FitPoint(tokens=told.tokens, flops=told.flops, loss=told.loss)


def _by_adam(
    config: StitchConfig, read: _Read, points: tuple[str, str], blocks: np.ndarray, held_out: Moments, seed: int
) -> tuple[Stitch, list[FitSummary]]:
    """The published fit on the same tokens; and what shorter trainings come to, the shortest first."""
    from heredity.stitch.fit import adam_flops, block_batches, fit_by_adam

    each = max(1, config.adam.batch_tokens // blocks.shape[1])
    count = max(1, len(blocks) // each)
    widths = len(held_out.mean_a), len(held_out.mean_b)
    keep = 4 * blocks.size * sum(widths) <= _KEPT
    batch = block_batches(lambda some: read.pairs([points[0]], [points[1]], some), blocks, each, keep)
    epochs = [config.adam.epochs]
    while epochs[0] > 1:
        epochs.insert(0, epochs[0] // 2)
    fitted = []
    for number in epochs:
        start = time.monotonic()
        found = fit_by_adam(batch, count, number, config.alpha, config.adam.lr, seed=seed)
        flops, stitch = adam_flops(found.tokens, *widths), found.stitch.to("cpu")
        told = _told(stitch, held_out, config.alpha, found.tokens, flops, time.monotonic() - start)
        fitted.append((stitch, told))
    return fitted[-1][0], [told for _, told in fitted]


def _told(stitch: Stitch, held_out: Moments, alpha: float, tokens: int, flops: float, seconds: float) -> FitSummary:
    from heredity.stitch.affine import stitch_quality

    found = stitch_quality(stitch, held_out, alpha)
    r2 = {way: getattr(found, way).r2 for way in ("up", "down", "there_and_back", "back_and_there")}
    return FitSummary(
        loss=found.loss,
        r2=r2,
        condition=found.condition,
        effective_rank=found.effective_rank,
        tokens=tokens,
        flops=flops,
        seconds=round(seconds, 2),
    )


def _ways(read: _Read, points: tuple[str, str], stitch: Stitch, blocks: np.ndarray) -> dict[str, WaySummary]:
    """Both models, and each going on from the other's front."""
    from heredity.stitch.stitched import stitched_losses

    source, target = zip(read.models, points, strict=True)
    found = stitched_losses(source, target, *stitch, blocks, read.special, read.precision)
    rises = found.increases
    return {
        way: WaySummary(ce_loss=own.ce_loss, accuracy=own.accuracy, increase=rises.get(way))
        for way, own in found._asdict().items()
    }
