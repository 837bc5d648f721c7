"""The stage that steers both models of a stitch, by directions of their own and of each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from heredity.engine.stage import Stage, Work
from heredity.engine.store import Artifact, write_json
from heredity.report.probing import GapRow, SteeringRow, SteeringSummary, Written
from heredity.stages.models import seed_of
from heredity.stages.newness import distinct_blocks
from heredity.stages.probes import require_sklearn
from heredity.stages.stitch import Sides, sides_of
from heredity.stages.text import packs, tokenizer_of
from heredity.study import Study, StudyError
from heredity.study.stitch import SteeringConfig
from heredity.text.corpora import read_corpus
from heredity.text.tokens import BlockSampler

if TYPE_CHECKING:
    from heredity.stitch.affine import Affine
    from heredity.stitch.moments import Moments
    from heredity.stitch.probe import Estimate
    from heredity.stitch.steer import Effect, Steering

STEERING = "steering.json"
_PIECES, _TESTED = 2_000, 500  # of a corpus, that texts are told apart by, and to test on
_READ = 20  # documents that each prompt is drawn from
_CHARACTERS = 40  # that are read of a document for each token of a prompt
_BATCH = 64  # texts written at a time
_EXAMPLES = 2


def steering_stage(study: Study, name: str, inputs: Mapping[str, Stage], corpora: Mapping[str, Stage]) -> Stage | None:
    """`steering/STITCH`: texts of both models, steered towards each of their common corpora; None without prompts.

    inputs: as `stitch_inputs` gives them. corpora: documents by name. Raises StudyError without scikit-learn, before
    anything runs.
    """
    config = study.config.stitch[name]
    if not config.steering.prompts:
        return None
    common = study.stitch_corpora(name)
    if len(common) > 1:
        require_sklearn(study, name, "steering.prompts = 0")
    seed = seed_of(study, "steering", name)
    settings = {
        **config.steering.model_dump(),
        "context_size": config.context_size,
        "precision": study.config.precision,
        "seed": seed,
    }

    def make(work: Work) -> None:
        if len(common) < 2:
            reason = f"both models have read {', '.join(common)} only; a direction lies between two corpora"
            found = SteeringSummary(classes=common, reason=reason)
        else:
            found = _steered(study, name, work, seed)
        write_json(work.folder / STEERING, found.model_dump(mode="json"))

    documents = {f"corpus:{corpus}": corpora[corpus] for corpus in common}
    return Stage("steering", name, settings, {**inputs, **documents}, make)


def steering_of(artifact: Artifact) -> SteeringSummary:
    """The figures of a `steering` artifact."""
    return SteeringSummary.model_validate(artifact.json(STEERING))


class _Side(NamedTuple):
    """One model of a stitch, as steering sees it."""

    name: str
    """Its name."""
    model: Any
    """Itself."""
    hook_point: str
    """Where it is steered."""
    arriving: Affine
    """The map to it from the other model."""


def _steered(study: Study, name: str, work: Work, seed: int) -> SteeringSummary:
    from heredity.stitch.steer import interleave, steering_arms

    config = study.config.stitch[name]
    sides, tokenizer = sides_of(work), tokenizer_of(work.inputs["tokenizer"])
    corpora = study.stitch_corpora(name)
    total = 2 + 2 * len(corpora)
    classify, accuracy, fitted, tested = _classifier(work, tokenizer, sides.masked, config.steering.max_tokens, seed)
    work.progress(1, total)
    moments = _moments(study, name, work, sides, seed)
    work.progress(2, total)
    beginnings = _beginnings(work, config.steering, seed)
    both = (
        _Side(config.source, sides.source, sides.source_hook_point, sides.stitch.down),
        _Side(config.target, sides.target, sides.target_hook_point, sides.stitch.up),
    )
    rows: list[SteeringRow] = []
    gaps: list[GapRow] = []
    for place, side in enumerate(both):
        for number, wanted in enumerate(corpora):
            own, others = (part.swapped() if place else part for part in moments[wanted])
            elsewhere = [beginnings[corpus] for corpus in corpora if corpus != wanted]
            prompts = interleave(elsewhere)[: config.steering.prompts]
            try:
                arms = steering_arms(own, others, side.arriving, np.random.default_rng([seed, place, number]))
                effect = _effect(side, tokenizer, prompts, arms, (classify, number), config.steering, seed + number)
            except ValueError as error:
                raise StudyError(f"{study.name}: stitch.{name}.steering: {side.name} to {wanted}: {error}") from error
            begun = _decoded(tokenizer, prompts[:_EXAMPLES], config.steering.prompt_tokens)
            rows += _rows(side.name, wanted, effect, arms, others, begun)
            gaps.append(_gap(side.name, wanted, effect, arms))
            work.progress(3 + place * len(corpora) + number, total)
    return SteeringSummary(
        classes=corpora, accuracy=accuracy, fitted=fitted, tested=tested, rows=tuple(rows), gaps=tuple(gaps)
    )


def _classifier(
    work: Work, tokenizer: Any, special: Sequence[int], size: int, seed: int
) -> tuple[Callable[[Sequence[str]], np.ndarray], Estimate, int, int]:
    """Tells the corpora apart by pieces of `size` tokens; its accuracy, and the pieces fitted and tested on."""
    from heredity.stitch.probe import proportion
    from heredity.stitch.steer import longest_pieces, text_classifier

    def pieces(split: str, count: int) -> tuple[list[str], np.ndarray]:
        found = []
        for pack in packs(work.group("tokens"), split).values():
            sampler = BlockSampler({"corpus": pack}, min(size, len(pack.tokens)), seed)
            blocks = distinct_blocks(sampler, count * sampler.context_size)
            found.append(longest_pieces(blocks, tokenizer, special))
        least = min(map(len, found))
        return [text for own in found for text in own[:least]], np.repeat(np.arange(len(found)), least)

    texts, y = pieces("train", _PIECES)
    classify = text_classifier(texts, y)
    held_out, truth = pieces("validation", _TESTED)
    hits = int((classify(held_out) == truth).sum())
    return classify, proportion(hits, len(truth)), len(texts), len(held_out)


def _moments(study: Study, name: str, work: Work, sides: Sides, seed: int) -> dict[str, tuple[Moments, Moments]]:
    """Moments of the activations of both models on each corpus, and on all others."""
    from heredity.stitch.aligned import Points, aligned
    from heredity.stitch.moments import MomentStream

    config = study.config.stitch[name]
    points = Points(sides.source, [sides.source_hook_point]), Points(sides.target, [sides.target_hook_point])
    streams: dict[str, MomentStream] = {}
    for corpus, pack in packs(work.group("tokens"), "train").items():
        streams[corpus] = MomentStream()
        blocks = distinct_blocks(BlockSampler({corpus: pack}, config.context_size, seed), config.steering.vectors)
        for of_source, of_target in aligned(*points, blocks, sides.masked, study.config.precision):
            streams[corpus].add(of_source, of_target)
    found: dict[str, tuple[Moments, Moments]] = {}
    for corpus, stream in streams.items():
        rest = MomentStream()
        for other in streams.values():
            if other is not stream:
                rest.merge(other)
        found[corpus] = stream.pair(0, 0), rest.pair(0, 0)
    return found


def _beginnings(work: Work, config: SteeringConfig, seed: int) -> dict[str, list[str]]:
    """Held-out documents of each corpus in random order, cut to what a prompt can take of them."""
    found = {}
    for number, (corpus, artifact) in enumerate(work.group("corpus").items()):
        texts = list(islice(read_corpus(artifact.folder, "validation"), _READ * config.prompts))
        order = np.random.default_rng([seed, number]).permutation(len(texts))[: config.prompts]
        found[corpus] = [texts[place][: _CHARACTERS * config.prompt_tokens] for place in order]
    return found


def _effect(
    side: _Side,
    tokenizer: Any,
    prompts: Sequence[str],
    arms: Mapping[str, Steering | None],
    judge: tuple[Callable[[Sequence[str]], np.ndarray], int],
    config: SteeringConfig,
    seed: int,
) -> Effect:
    """What a model writes after the prompts, and how much of it is of the wanted class; all arms by the same seed."""
    from heredity.stitch.steer import effect, generate

    def write(steering: Steering | None) -> list[str]:
        return generate(
            side.model,
            tokenizer,
            prompts,
            side.hook_point,
            steering,
            max_tokens=config.max_tokens,
            prompt_tokens=config.prompt_tokens,
            seed=seed,
            batch_size=_BATCH,
        )

    return effect(write, arms, *judge)


def _decoded(tokenizer: Any, prompts: Sequence[str], tokens: int) -> list[str]:
    """The parts of prompts that are read."""
    return [tokenizer.decode(tokenizer(prompt, verbose=False)["input_ids"][:tokens]) for prompt in prompts]


def _rows(
    model: str,
    wanted: str,
    effect: Effect,
    arms: Mapping[str, Steering | None],
    others: Moments,
    begun: Sequence[str],
) -> list[SteeringRow]:
    from heredity.stitch.steer import change

    return [
        SteeringRow(
            model=model,
            wanted=wanted,
            arm=arm,
            share=effect.shares[arm],
            n=len(effect.texts[arm]),
            change=0.0 if steering is None else change(steering, others.mean_a, others.aa),
            examples=tuple(
                Written(prompt=prompt, text=text) for prompt, text in zip(begun, effect.texts[arm], strict=False)
            ),
        )
        for arm, steering in arms.items()
    ]


def _gap(model: str, wanted: str, effect: Effect, arms: Mapping[str, Steering | None]) -> GapRow:
    from heredity.stitch.steer import transfer_gap

    native, carried = arms["native"], arms["carried"]
    assert native is not None and carried is not None
    return GapRow(
        model=model,
        wanted=wanted,
        gap=transfer_gap(effect.shares["carried"].value, effect.shares["native"].value),
        cosine=float(native.direction @ carried.direction),
    )
