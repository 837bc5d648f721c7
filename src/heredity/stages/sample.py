"""The text that features are shown on: every model's activations on it, and the matches between the models."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from heredity.engine.stage import Stage, Work
from heredity.features.correlate import Matches
from heredity.stages.lineage import COUNTS, acts_of, read_matches, sampler_of
from heredity.stages.text import tokenizer_of
from heredity.study import Edge, Study

MIN_FIRINGS = 20
"""A feature seen less often on the sample is not shown as an example of anything."""


def sample_inputs(
    acts: Mapping[str, Stage], matches: Mapping[Edge, Stage], tokens: Mapping[str, Stage], tokenizer: Stage
) -> dict[str, Stage]:
    """The inputs of a stage that reads a `Sample`, by role."""
    return {
        "tokenizer": tokenizer,
        **{f"acts:{name}": stage for name, stage in acts.items()},
        **{f"match:{edge.name}": stage for edge, stage in matches.items()},
        **{f"tokens:{corpus}": stage for corpus, stage in tokens.items()},
    }


class Sample:
    """The token sample, the models' feature activations on it, and the matches between them.

    work: of a stage with the inputs that `sample_inputs` gives; of models and edges it may have some only. seed: of the
    `acts` stages, `seed_of(study, "sample")`.
    """

    def __init__(self, study: Study, work: Work, seed: int):
        size = study.config.sae.context_size
        sampler = sampler_of(work, "train", size, seed, "equal")
        count = min(-(-study.config.report.tokens // size), sampler.blocks_per_pass)
        self.ids = sampler.take(0, count)
        self.names = sampler.names
        self.origin = sampler.origin(0, count)[0]
        self.acts = {name: acts_of(artifact.folder) for name, artifact in work.group("acts").items()}
        found = work.group("match")
        self.edges = [edge for edge in study.edges if edge.name in found]
        self.matches: dict[tuple[str, str], Matches] = {
            edge: read_matches(found[edge.name].folder) for edge in self.edges
        }
        self.threshold: dict[tuple[str, str], float] = {
            edge: found[edge.name].json(COUNTS)["threshold"] for edge in self.edges
        }
        self.tokenizer = tokenizer_of(work.inputs["tokenizer"])
        self.vocabulary = [str(self.tokenizer.decode([number])) for number in range(len(self.tokenizer))]

    @cached_property
    def firings(self) -> dict[str, np.ndarray]:
        """How often each feature fires, int64 [d_sae] by model."""
        return {name: np.bincount(acts.indices, minlength=acts.d_sae) for name, acts in self.acts.items()}

    @property
    def counting(self) -> dict[tuple[str, str], Matches]:
        """The matches that count: those above each edge's threshold."""
        return {edge: found.above(self.threshold[edge]) for edge, found in self.matches.items()}
