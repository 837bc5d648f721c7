"""`summary.json`: the figures of a study in the form that other tools read.

Keys are stable; a key that a study has no figure for is null. A number that is not finite (the r of a feature that
never fires, a ceiling without a second SAE) becomes null too, since JSON has neither nan nor infinity.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from heredity.report.classes import ClassesSummary
from heredity.report.edge import EdgeSummary
from heredity.report.explained import ExplainedSummary
from heredity.report.record import Count, Frozen, Interval, Number, plain
from heredity.report.stitch import StitchSummary
from heredity.study import Init

_FLOW_KEYS = ("from_base", "emerged_in_both", "novel")


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


def _flow_keys(counts: dict[str, int]) -> dict[str, int]:
    wrong = [f"{key} is unknown" for key in counts if key not in _FLOW_KEYS and not key.startswith("emerged_in_")]
    wrong += [f"{key} is missing" for key in _FLOW_KEYS if key not in counts]
    if wrong:
        raise ValueError(f"{wrong[0]}; give from_base, emerged_in_PARENT for each parent, emerged_in_both and novel")
    return counts


Flow = Annotated[dict[str, Count], AfterValidator(_flow_keys)]
"""`from_base`, `emerged_in_<parent>` for each parent, `emerged_in_both`, `novel`; each live feature once."""


class CaseMember(Frozen):
    """A case in one model: the family's feature there, and the feature that fits best by itself."""

    feature: Annotated[int | None, BeforeValidator(plain)]
    """Its index; null where the family does not reach."""
    llr: Number
    """log( P_act(token in set) / P_data(token in set) ), activation-weighted."""
    llr_count: Number = None
    """The same with every firing counted once."""
    r: Number = None
    """Pearson r with the feature of the case in the model it descends from."""
    via: str | None = None
    """That model."""
    status: Literal["start", "kept", "lost", "absent", "beyond"] | None = None
    """kept: reached by matches above the thresholds; lost: a child's nearest miss; absent: a parent's; beyond: reached
    from a miss."""
    sensitivity: Number = None
    """Pearson r of its activation and the indicator of the set."""
    elsewhere: Number = None
    """Specificity: total activation on all other tokens over that on the set; null where it is silent on the set."""
    elsewhere_mean: Number = None
    """Mean activation of a firing on other tokens over that of one on the set."""
    hits: Count | None = None
    """Firings on the set."""
    base_rate: Number = None
    """Share of the sample's tokens that are in the set."""
    best_feature: Annotated[int | None, BeforeValidator(plain)] = None
    """The feature of this model that fits best, whatever it matches; null where none fits."""
    best_llr: Number = None
    """Its LLR, activation-weighted."""
    best_sensitivity: Number = None
    """Its sensitivity."""
    best_r: Number = None
    """Its Pearson r with `feature`, on the sample; 1 where they are the same."""


class CaseSummary(BaseModel):
    """A case: one `CaseMember` for each model under the model's name, the mean r along the edges, and the verdict."""

    model_config = ConfigDict(frozen=True, extra="allow")
    __pydantic_extra__: dict[str, CaseMember] = Field(init=False)  # pyright: ignore[reportIncompatibleVariableOverride]

    mean_r: Number
    """Mean Pearson r of the members along the edges of the graph; null when none is known."""
    verdict: str = ""
    """persists, disappears on EDGE, or emerges in MODEL; in words."""

    @classmethod
    def of(cls, members: Mapping[str, CaseMember], mean_r: float | None, verdict: str = "") -> CaseSummary:
        """The case of these members, by model."""
        return cls.model_validate({**members, "mean_r": mean_r, "verdict": verdict})

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
    classes: ClassesSummary | None = None
    """Kinds of features, by rule."""
    explained: ExplainedSummary | None = None
    """Explanations and their scores; null where none were asked for."""


class Spread(Frozen):
    """One number over the repeats of a study."""

    mean: Number
    """Mean."""
    standard_deviation: Number
    """Of a single repeat, with n - 1 in the denominator; null with fewer than two numbers."""
    minimum: Number
    """Lowest."""
    maximum: Number
    """Highest."""
    n: Count
    """Repeats that have the number."""


Spreads = dict[str, dict[str, Spread]]
"""By model, merge or edge, and by the name of the number."""


class AlsoRepeats(Frozen):
    """What varies between the repeats of a further `init`."""

    saes: Spreads
    """explained_variance, l0 and ce_loss_recovered, by model."""
    edges: Spreads
    """Shares `persist` (of the parent's live features), `emerge` (of the child's), `ceiling` and `floor`, by edge."""


class RepeatsSummary(AlsoRepeats):
    """How far the figures vary when fine-tunes and SAEs are trained again with other seeds."""

    seeds: Count
    """Repeats, the one that the figures of the summary belong to included."""
    accuracy: Spreads
    """By model and corpus; models that are not trained again (loaded, or from scratch) are left out."""
    merges: Spreads
    """`t`, by merge that seeks its equilibrium."""
    also: dict[Init, AlsoRepeats]
    """The further inits."""


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
    classes: ClassesSummary | None = None
    """Kinds of features by rule, and their shares among those that persist, are lost, or emerge."""
    explained: ExplainedSummary | None = None
    """Explanations and their scores; null where none were asked for."""
    stitches: dict[str, StitchSummary]
    """By name of the stitch."""
    also: dict[Init, AlsoSummary]
    """Figures of the further inits."""
    repeats: RepeatsSummary | None = None
    """Variation between seeds; null for a study that is not repeated."""

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
