"""Feature activations of every model on one token sample from all corpora, in equal parts: what features are shown on,
and what cases, classes and explanations read."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from heredity.analyses.analysis import Analysis, Cost, Item, Needs, Results, seed_of
from heredity.analyses.reading import reader_of, sampler_of
from heredity.analyses.sae import encode_flops, sae_items, sae_need
from heredity.analyses.text import tokens_needs
from heredity.engine.stage import Work
from heredity.engine.store import Artifact
from heredity.study import Precision, Study

if TYPE_CHECKING:
    from heredity.analyses.plan import Shapes
    from heredity.features.acts import FeatureActs


class ActsSettings(NamedTuple):
    hook_point: str
    precision: Precision
    tokens: int
    context_size: int
    seed: int


def _settings(study: Study, item: Item) -> ActsSettings:
    config = study.config
    return ActsSettings(
        config.hook_point, config.precision, config.report.tokens, config.sae.context_size, seed_of(study, "sample")
    )


def _needs(study: Study, item: Item) -> Needs:
    return {
        "model": ("model", {"model": item["model"]}),
        "sae": sae_need(study, item["model"], item["instrument"]),
        "tokens": tokens_needs(study.config.corpus),
    }


def _run(work: Work, settings: ActsSettings) -> Results:
    from heredity.features.collect import collected

    sampler = sampler_of(work.inputs["tokens"], "train", settings.context_size, settings.seed)
    opened = reader_of(work.inputs["model"], [work.inputs["sae"]], settings.hook_point, settings.precision)
    (acts,) = collected(work.shards.job(opened), sampler, settings.tokens, work.progress)
    acts.save(work.folder / "acts.safetensors")
    return {}


def acts_of(artifact: Artifact) -> FeatureActs:
    """The feature activations of an acts artifact."""
    from heredity.features.acts import FeatureActs

    return FeatureActs.load(artifact / "acts.safetensors")


def _cost(study: Study, item: Item, shapes: Shapes) -> Cost:
    tokens = study.config.report.tokens
    return Cost(tokens, tokens * encode_flops(study, item["model"], shapes), shapes.sae_gib(item["model"], tokens))


ANALYSIS = Analysis(
    kind="acts",
    version=1,
    title="Feature activations",
    items=sae_items,
    settings=_settings,
    needs=_needs,
    run=_run,
    cost=_cost,
)
