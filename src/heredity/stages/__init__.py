"""A study as a list of stages. The makers only connect rooms: no mathematics here, no loop over tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from heredity.engine.stage import Stage
from heredity.study import Edge, Study, StudyError


class Base(NamedTuple):
    """What everything else of a study is made from."""

    stages: list[Stage]
    """All of these, and the quality of the models."""
    corpora: dict[str, Stage]
    """By name."""
    tokenizer: Stage
    """Of all models."""
    tokens: dict[str, Stage]
    """By corpus."""
    models: dict[str, Stage]
    """By name."""


class Followed(NamedTuple):
    """An edge whose features are matched."""

    match: Stage
    """Their matches by the study's instrument."""
    parent_sae: Stage
    """Of the parent, matched there."""


def stages_of(study: Study) -> list[Stage]:
    """Every stage of a study, inputs before what is made from them.

    Raises StudyError for a hook point that a model does not have, before anything runs.
    """
    base, lineage, stitches = _parts(study)
    return _unique([*base.stages, *lineage, *(stage for part in stitches.values() for stage in part)])


def stitch_part(study: Study, names: Sequence[str] = ()) -> list[Stage]:
    """The stages of some stitches, all unless named, and what they are made from; inputs first.

    Raises StudyError for a study without stitches or a name that is none of them, and as `stages_of` does.
    """
    base, lineage, stitches = _parts(study)
    if unknown := [name for name in names if name not in stitches]:
        raise StudyError(f"{study.name}: no stitch {unknown[0]!r}; defined are {', '.join(stitches) or 'none'}")
    if not stitches:
        raise StudyError(f"{study.name}: has no stitch; add a table [stitch.NAME] with source and target")
    wanted = [stage for name in names or stitches for stage in stitches[name]]
    needed = {stage.label for stage in _closure(wanted)}
    needed |= {f"quality/{end}" for name in names or stitches for end in _ends(study, name)}
    return [stage for stage in _unique([*base.stages, *lineage, *wanted]) if stage.label in needed]


def _parts(study: Study) -> tuple[Base, list[Stage], dict[str, list[Stage]]]:
    """Models, lineage, and each stitch."""
    from heredity.stages import stitching
    from heredity.stages.plan import check_hook_point

    check_hook_point(study)
    base = _base(study)
    lineage, followed = _lineage(study, base)
    stitches = {name: stitching.stitch_stages(study, name, base, followed) for name in study.config.stitch}
    return base, lineage, stitches


def _ends(study: Study, name: str) -> tuple[str, str]:
    stitch = study.config.stitch[name]
    return stitch.source, stitch.target


def _base(study: Study) -> Base:
    from heredity.stages import models, text

    corpora = {name: text.corpus_stage(study, name) for name in study.config.corpus}
    tokenizer = text.tokenizer_stage(study, corpora)
    tokens = {name: text.tokens_stage(name, corpus, tokenizer) for name, corpus in corpora.items()}
    stages = [*corpora.values(), tokenizer, *tokens.values()]
    nodes: dict[str, Stage] = {}
    for name in study.order:
        sweep = models.sweep_stage(study, name, nodes, tokens)
        nodes[name] = models.model_stage(study, name, nodes, tokens, tokenizer, sweep)
        quality = models.quality_stage(study, name, nodes[name], tokens)
        stages += [sweep, nodes[name], quality] if sweep else [nodes[name], quality]
    return Base(stages, corpora, tokenizer, tokens, nodes)


def _lineage(study: Study, base: Base) -> tuple[list[Stage], dict[Edge, Followed]]:
    """SAEs, and features matched, shown and explained along the edges; none for a study of stitches alone.

    The edges are those matched by the study's instrument.
    """
    from heredity.stages import classes, explain, features, lineage, newness, saes, shift
    from heredity.stages.sample import sample_inputs

    config, stages, followed = study.config, list[Stage](), dict[Edge, Followed]()
    nodes, tokens = base.models, base.tokens
    for init in study.inits:
        measured: dict[str, Stage] = {}
        controls: dict[tuple[str, str | None], list[Stage]] = {}
        for name in study.followed:
            measured[name] = saes.sae_stage(study, name, init, nodes, measured, tokens)
            stages += [measured[name], saes.sae_quality_stage(study, name, init, nodes[name], measured[name], tokens)]
        matches: dict[Edge, Stage] = {}
        for edge in study.edges:
            start = saes.control_start(study, edge, init)
            if (edge.parent, start) not in controls:
                controls[edge.parent, start] = saes.control_stages(
                    study, edge.parent, init, start, nodes, measured, tokens
                )
                stages += controls[edge.parent, start]
            spare = controls[edge.parent, start]
            matches[edge] = lineage.match_stage(study, edge, init, nodes, measured, spare, tokens)
        followed = followed or {edge: Followed(match, measured[edge.parent]) for edge, match in matches.items()}
        samples = {
            name: lineage.acts_stage(study, name, init, nodes[name], measured[name], tokens) for name in study.followed
        }
        asked = [
            newness.newness_stage(study, edge, init, nodes, measured, match, tokens)
            for edge, match in matches.items()
            if config.controls.newness
        ]
        stages += [*matches.values(), *asked, *samples.values()]
        read = sample_inputs(samples, matches, tokens, base.tokenizer)
        shown = features.features_stage(study, init, read, nodes, measured)
        stages += [shown, classes.classes_stage(study, init, read)]
        if config.explain.features:
            stages.append(explain.explain_stage(study, init, read, shown))
    if config.controls.shifts:
        stages += shift.shift_stages(study, nodes, {edge: own.match for edge, own in followed.items()}, tokens)
    return stages, followed


def _closure(stages: Iterable[Stage]) -> list[Stage]:
    """Stages and all that they are made from, each once."""
    found: dict[str, Stage] = {}
    waiting = list(stages)
    while waiting:
        stage = waiting.pop()
        if stage.label not in found:
            found[stage.label] = stage
            waiting += stage.inputs.values()
    return list(found.values())


def _unique(stages: list[Stage]) -> list[Stage]:
    """Each stage once: what two inits share (the start model's SAE) has one key."""
    return list({(stage.label, stage.key): stage for stage in stages}.values())
