"""`summary.json`: the figures of a study in the form that other tools read.

Keys are stable; a key that a study has no figure for is null. A number that is not finite (the r of a feature that
never fires, a ceiling without a second SAE) becomes null too, since JSON has neither nan nor infinity.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from heredity.config import Init

_FLOW_KEYS = ("from_base", "emerged_in_both", "novel")


def _finite(value: object) -> object:
    """None for a float that JSON cannot hold; anything else unchanged."""
    number = _plain(value)
    return None if isinstance(number, float) and not math.isfinite(number) else number


def _plain(value: object) -> object:
    """The Python number of a numpy scalar, which pydantic would refuse as an int."""
    return value.item() if isinstance(value, np.generic) else value


Number = Annotated[float | None, BeforeValidator(_finite)]
"""A float; nan and infinity become None."""
Count = Annotated[int, BeforeValidator(_plain), Field(ge=0)]
"""How many; never negative."""
Interval = tuple[Number, Number]
"""Lower and upper end of a 95 % interval."""


class Frozen(BaseModel):
    """An immutable record whose fields are documented; an unknown key is an error that names it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ModelSummary(Frozen):
    """One language model of the graph."""

    kind: Literal["train", "load", "merge", "finetune"]
    """How it came to be."""
    parents: tuple[str, ...]
    """The models it was made from; none for a start model."""
    parameters: Count
    """Parameters, tied ones counted once."""
    tokens: Count
    """Tokens it was trained on in this study; 0 for a merge or a loaded model."""
    accuracy: dict[str, Number]
    """Share of next tokens predicted right, by corpus, on held-out text."""
    ce_loss: dict[str, Number]
    """Cross-entropy in nats a token, by corpus, on held-out text."""
    unigram_accuracy: dict[str, Number] = {}
    """Accuracy of always predicting the corpus's most frequent token, on the same text."""


class SweepPoint(Frozen):
    """The merge at one t."""

    t: float
    """0 is the first parent, 1 the second."""
    accuracy: dict[str, Number]
    """Next-token accuracy on the held-out text of each parent's corpora, by parent."""
    ce_loss: dict[str, Number] = {}
    """Cross-entropy on the same text, nats a token."""
    interval: dict[str, Interval] = {}
    """Bootstrap interval of each accuracy."""


class MergeSummary(Frozen):
    """How a child was made from its parents' weights."""

    method: str
    """slerp, linear, task_arithmetic, ties, dare_linear or dare_ties."""
    t: Number
    """Position between the two parents; null for methods that take weights."""
    first: str
    """The parent at t = 0."""
    second: str | None
    """The parent at t = 1."""
    sweep: tuple[SweepPoint, ...]
    """Accuracies along t, in rising order; empty where t was given."""
    linear_fallback: Count
    """Tensors that were interpolated linearly because their directions almost agree."""
    weights: tuple[float, ...] | None = None
    """Weights of the parents, for methods that take them."""
    parents: tuple[str, ...] = ()
    """All parents in order."""
    interval: Interval | None = None
    """Bootstrap interval of an equilibrium t."""
    crossed: bool | None = None
    """Whether the two accuracy curves cross; if not, t is where they come nearest. Null where t was given."""


class SAESummary(Frozen):
    """One sparse autoencoder, judged on held-out text."""

    d_in: Count
    """Width of the hook point."""
    d_sae: Count
    """Features."""
    seed: int
    """Seed of its initialization and data order."""
    tokens: Count
    """Vectors it was trained on."""
    l0: Number
    """Mean number of active features a token."""
    mse: Number
    """Mean squared error an element."""
    explained_variance: Number
    """1 - FVU, pooled over tokens."""
    ce_loss_recovered: Number
    """(CE zero - CE SAE) / (CE zero - CE clean), by zero ablation."""
    dead_share: Number
    """Share of features that never fired on the held-out text."""
    l1_coefficient: Number = None
    """L1 coefficient in force at the end of the training (relu)."""


class EdgeSummary(Frozen):
    """What one parent -> child step did to the features.

    Fates rest on existence: a feature persists when any feature of the other end matches it with r above the
    threshold. `persist + disappear = parent_live` always.
    """

    tokens: Count
    """Aligned token positions of the common trace."""
    threshold: float
    """Persisting means r above this."""
    parent_live: Count
    """Features of the parent that fired at least once on these tokens."""
    child_live: Count
    """Features of the child that did."""
    persist: Count
    """Parent features with a match above the threshold."""
    disappear: Count
    """Live parent features without one."""
    emerge: Count
    """Live child features without one."""
    one_to_one: Count
    """Pairs above the threshold that are each other's best match."""
    curve: dict[str, Count]
    """Persisting parent features by threshold, "0.50" to "0.95" in steps of 0.05."""
    ceiling: Number
    """Share of live parent features that persist into another SAE of the same model; null without a second SAE."""
    floor: Number
    """Share that persists under shuffled alignment."""
    parent_features: Count | None = None
    """All features of the parent's SAE, the second denominator."""
    child_features: Count | None = None
    """All features of the child's SAE."""
    l0_parent: Number = None
    """Mean active features a token of the parent on these tokens."""
    l0_child: Number = None
    """Mean active features a token of the child on these tokens."""

    @model_validator(mode="after")
    def _adds_up(self) -> EdgeSummary:
        if self.persist + self.disappear != self.parent_live:
            raise ValueError(
                f"persist={self.persist} and disappear={self.disappear} do not add up to "
                f"parent_live={self.parent_live}; every live parent feature has exactly one of the two fates"
            )
        if self.emerge > self.child_live:
            raise ValueError(f"emerge={self.emerge} exceeds child_live={self.child_live}; count live features only")
        return self


def _flow_keys(counts: dict[str, int]) -> dict[str, int]:
    wrong = [f"{key} is unknown" for key in counts if key not in _FLOW_KEYS and not key.startswith("emerged_in_")]
    wrong += [f"{key} is missing" for key in _FLOW_KEYS if key not in counts]
    if wrong:
        raise ValueError(f"{wrong[0]}; give from_base, emerged_in_PARENT for each parent, emerged_in_both and novel")
    return counts


Flow = Annotated[dict[str, Count], AfterValidator(_flow_keys)]
"""`from_base`, `emerged_in_<parent>` for each parent, `emerged_in_both`, `novel`; each live feature once."""


class CaseMember(Frozen):
    """The feature of one model that fits a case best."""

    feature: Annotated[int | None, BeforeValidator(_plain)]
    """Its index; null when no feature fires on the tokens."""
    llr: Number
    """log( P_act(token in set) / P_data(token in set) ), activation-weighted."""
    llr_count: Number = None
    """The same with every firing counted once."""
    r: Number = None
    """Pearson r with the feature of the case in the model it descends from."""


class CaseSummary(BaseModel):
    """A case: one `CaseMember` for each model under the model's name, and the mean r along the edges."""

    model_config = ConfigDict(frozen=True, extra="allow")
    __pydantic_extra__: dict[str, CaseMember] = Field(init=False)  # pyright: ignore[reportIncompatibleVariableOverride]

    mean_r: Number
    """Mean Pearson r of the members along the edges of the graph; null when none is known."""

    @classmethod
    def of(cls, members: Mapping[str, CaseMember], mean_r: float | None) -> CaseSummary:
        """The case of these members, by model."""
        return cls.model_validate({**members, "mean_r": mean_r})

    @property
    def members(self) -> dict[str, CaseMember]:
        """The member of each model."""
        return dict(self.__pydantic_extra__ or {})


class AlsoSummary(Frozen):
    """The figures of a further `init`."""

    saes: dict[str, SAESummary]
    """By model."""
    edges: dict[str, EdgeSummary]
    """By `parent->child`."""
    flow: dict[str, Flow]
    """By merge."""


class Summary(Frozen):
    """All figures of a study. `saes`, `edges` and `flow` belong to `instrument`; further inits stand under `also`."""

    heredity: str
    """Version of the package."""
    study: str
    """Name of the study."""
    device: str = ""
    """The machine that the summary was made on, in words."""
    notes: tuple[str, ...] = ()
    """What to know before relying on a figure."""
    seconds: float
    """Time spent on all its artifacts."""
    instrument: Init
    """How the SAEs of the headline figures were initialized."""
    models: dict[str, ModelSummary]
    """By name, parents before children."""
    merges: dict[str, MergeSummary]
    """By name."""
    saes: dict[str, SAESummary]
    """By model."""
    edges: dict[str, EdgeSummary]
    """By `parent->child`."""
    flow: dict[str, Flow]
    """By merge: where its live features come from."""
    cases: dict[str, CaseSummary]
    """By name of the case."""
    stitches: dict[str, Any]
    """Reserved for stitching studies."""
    also: dict[Init, AlsoSummary]
    """Figures of the further inits."""

    @model_validator(mode="after")
    def _names_exist(self) -> Summary:
        groups = [(self.saes, self.edges, self.flow), *((a.saes, a.edges, a.flow) for a in self.also.values())]
        for saes, edges, flow in groups:
            ends = [end for edge in edges for end in edge.split("->")]
            for name in (*saes, *flow, *ends, *self.merges):
                if name not in self.models:
                    raise ValueError(f"{name!r} is no model of this summary; models are {', '.join(self.models)}")
        return self

    def to_json(self) -> str:
        """The text of `summary.json`."""
        return self.model_dump_json(indent=1) + "\n"
