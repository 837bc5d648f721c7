"""The text that features are shown on: every model's activations on it, and the matches between the models."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from heredity.analyses.acts import acts_of
from heredity.analyses.analysis import Item, Needs, seed_of
from heredity.analyses.match import read_matches, threshold_of
from heredity.analyses.reading import sampler_of, tokenizer_of
from heredity.analyses.text import tokenizer_need, tokens_needs
from heredity.study import Edge, Study

if TYPE_CHECKING:
    from heredity.features.correlate import Matches

MIN_FIRINGS = 20
"""A feature seen less often on the sample is not shown as an example of anything."""


class SampleSettings(NamedTuple):
    """What a sample is taken by."""

    tokens: int
    context_size: int
    seed: int
    models: tuple[str, ...]
    """Models whose features are followed, parents before children."""
    edges: tuple[Edge, ...]


def sample_settings(study: Study) -> SampleSettings:
    """The study's token sample; `seed` is also that of the `acts` stages."""
    config = study.config
    return SampleSettings(
        config.report.tokens, config.sae.context_size, seed_of(study, "sample"), study.followed, study.edges
    )


def sample_needs(study: Study, item: Item) -> Needs:
    """Inputs of a stage that reads a `Sample`; item: its instrument and site."""
    return {
        "tokenizer": tokenizer_need(study),
        "acts": {name: ("acts", {**item, "model": name}) for name in study.followed},
        "match": {edge.name: ("match", {**item, "edge": edge.name}) for edge in study.edges},
        "tokens": tokens_needs(study.config.corpus),
    }


def instrument_items(study: Study) -> list[Item]:
    """One item per instrument."""
    return [{"instrument": name, "site": study.config.hook_point} for name in study.instruments]


class Sample:
    """The token sample, feature activations of the models on it, and the matches between the models."""

    def __init__(self, inputs: Mapping[str, Any], settings: SampleSettings) -> None:
        """inputs: artifacts by role, as `sample_needs` names them; of models and edges there may be some only."""
        size = settings.context_size
        sampler = sampler_of(inputs["tokens"], "train", size, settings.seed)
        count = min(-(-settings.tokens // size), sampler.blocks_per_pass)
        self.ids = sampler.take(0, count)
        self.corpora: tuple[str, ...] = tuple(sampler.names)
        self.origin = sampler.origin(0, count)[0]
        self.models = settings.models
        self.acts = {name: acts_of(artifact) for name, artifact in inputs["acts"].items()}
        found = {edge: inputs["match"][edge.name] for edge in settings.edges if edge.name in inputs["match"]}
        self.edges = list(found)
        self.matches: dict[tuple[str, str], Matches] = {edge: read_matches(one) for edge, one in found.items()}
        self.threshold: dict[tuple[str, str], float] = {edge: threshold_of(one) for edge, one in found.items()}
        self.tokenizer = tokenizer_of(inputs["tokenizer"])
        self.vocabulary = [str(self.tokenizer.decode([number])) for number in range(len(self.tokenizer))]

    @cached_property
    def firings(self) -> dict[str, np.ndarray]:
        """Number of firings of each feature, int64 [d_sae] by model."""
        return {name: np.bincount(acts.indices, minlength=acts.d_sae) for name, acts in self.acts.items()}

    @property
    def above(self) -> dict[tuple[str, str], Matches]:
        """The matches that count: those above each edge's threshold."""
        return {edge: matches.above(self.threshold[edge]) for edge, matches in self.matches.items()}

    def text(self, token: int) -> str:
        """A token as text; a model may have rows for more than the tokenizer knows."""
        return self.vocabulary[token] if token < len(self.vocabulary) else f"#{token}"

    def block(self, number: int) -> dict[str, Any]:
        """A block of the sample as text."""
        tokens = [self.vocabulary[token] for token in self.ids[number].tolist()]
        return {"corpus": self.corpora[int(self.origin[number])], "tokens": tokens}
