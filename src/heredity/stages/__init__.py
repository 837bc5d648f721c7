"""A study as a list of stages. The makers only connect rooms: no mathematics here, no loop over tokens."""

from __future__ import annotations

from typing import NamedTuple

from heredity.engine.stage import Stage
from heredity.study import Edge, Study


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
    from heredity.stages.plan import check_hook_point

    check_hook_point(study)
    base = _base(study)
    return _unique([*base.stages, *_lineage(study, base)[0]])


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


def _unique(stages: list[Stage]) -> list[Stage]:
    """Each stage once: what two inits share (the start model's SAE) has one key."""
    return list({(stage.label, stage.key): stage for stage in stages}.values())
