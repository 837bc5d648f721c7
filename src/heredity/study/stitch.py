"""Settings of a stitch: two models, the affine maps between them, and what is carried through the maps."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from heredity.study.table import Config, Positive, PositiveFloat

FitMethod = Literal["joint", "ridge", "procrustes"]
Arm = Literal["random", "transferred", "repaired", "geometry"]
ProbeTask = Literal["origin", "kind", "language", "test"]
Sizes = Annotated[tuple[Positive, ...], Field(min_length=1)]


class AdamConfig(Config):
    """The published fit by gradient descent, as a baseline beside the closed form (Chen et al. 2025, appendix A)."""

    epochs: Annotated[int, Field(ge=0)] = 2
    """Passes over the tokens; trainings of half as many, a quarter and so on stand beside it, to tell what a loss
    costs. 0 leaves the baseline out."""
    lr: PositiveFloat = 1e-4
    """Learning rate at the start of the cosine decay."""
    batch_tokens: Positive = 5120
    """Tokens a step."""


class HubTaskConfig(Config):
    """A text-classification data set of the Hugging Face hub, or of a local folder that `datasets` reads."""

    dataset: str
    """Its name or folder."""
    text: str = "text"
    """Column of the texts."""
    label: str = "label"
    """Column of the classes."""
    subset: str | None = None
    """Configuration name."""
    split: str = "train"
    """Split that texts are taken from; the test texts too, which are none of those fitted on."""
    revision: str | None = None
    """Commit; recorded, and pinned when given."""


class ProbesConfig(Config):
    """Probes on features, fitted in the source and used in the target."""

    tasks: tuple[ProbeTask, ...] = ("origin",)
    """What is told apart in the corpora at hand: `origin` (corpora), `kind` (prose and code), `language` (corpora of
    code), `test` (tests and other files of code). Empty leaves these out."""
    hub: dict[str, HubTaskConfig] = {}
    """[stitch.NAME.probes.hub.TASK]: further sets, with labels of their own."""
    sizes: Sizes = (1, 2, 5, 10, 20, 50)
    """Numbers of features that probes read."""
    texts: Positive = 1000
    """Texts a class, at most; a quarter of them to test on."""
    context_size: Positive = 128
    """Tokens that are read of a text, from its beginning."""
    draws: Positive = 5
    """Draws of random features."""


class SteeringConfig(Config):
    """Directions that make a model write what a corpus holds, native and carried over."""

    prompts: Annotated[int, Field(ge=0)] = 100
    """Beginnings of held-out texts of the other corpora that the models go on from; 0 leaves steering out."""
    prompt_tokens: Positive = 16
    """Tokens of a beginning."""
    max_tokens: Positive = 48
    """Tokens written."""
    vectors: Positive = 20_000
    """Activations a corpus that directions and levels are means of."""


class CarriedFeaturesConfig(Config):
    """What single features keep: their push on the next token, and structural, semantic and functional ones apart."""

    tokens: Annotated[int, Field(ge=0)] = 50_000
    """Tokens that attributions are correlated on; 0 leaves all of it out."""
    prompts: Positive = 200
    """Texts whose content words are swapped, to tell structural features from semantic ones."""
    rewrites: Annotated[int, Field(ge=1, le=20)] = 5
    """Versions of each."""
    corpus: str | None = None
    """Corpus of prose that these texts are taken from; default the first of the models' common ones that is prose."""
    functional: Annotated[int, Field(ge=0)] = 3
    """Features of each kind (entropy, attention deactivation) that are looked at closely; 0 leaves them out."""


class StitchConfig(Config):
    """Maps between a source and a target, which read the same tokens, and what goes through them."""

    source: str
    """The smaller model, A: its SAEs, probes and directions are carried over."""
    target: str
    """The other one, B; may be of any width, or a child of the source."""
    source_hook_point: str | None = None
    """Where the source is read: a place that all of the residual stream passes, such as `blocks.1.hook_resid_pre`;
    default the study's `hook_point`."""
    target_hook_point: str | None = None
    """Where the target is read; default the layer's `hook_resid_pre` that is most like the source's by SVCCA."""
    tokens: Positive = 1_000_000
    """Aligned tokens that maps are fitted to."""
    held_out: Positive = 100_000
    """Validation tokens: every second block is there to choose their ridge, the others to judge them."""
    context_size: Annotated[int, Field(ge=8)] = 128
    """Tokens a block."""
    method: FitMethod = "joint"
    """The maps in use: `joint` (the paper's loss, minimized exactly), `ridge` or `procrustes`; all are compared."""
    alpha: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the round trips in the joint loss (the paper: 1)."""
    adam: AdamConfig = AdamConfig()
    """[stitch.NAME.adam]"""
    evaluation: Positive = 50_000
    """Held-out tokens behind cross-entropies and the figures of SAEs."""
    widths: Sizes = (4096,)
    """Features of the SAEs, d_sae; the first one's are used for probes and features. [sae] gives all else."""
    arms: tuple[Arm, ...] = ("random", "transferred", "repaired", "geometry")
    """What SAEs of the target start from: `random` weights; the source's `transferred`; that with its decoder
    fitted and dead features given a new start (`repaired`); the source's turned at random (`geometry`: what a trained
    dictionary is worth without the maps). Empty leaves training in the target out."""
    thresholds: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(min_length=1)] = (0.8, 0.85, 0.9)
    """Explained variances that savings are told at."""
    probes: ProbesConfig = ProbesConfig()
    """[stitch.NAME.probes]"""
    steering: SteeringConfig = SteeringConfig()
    """[stitch.NAME.steering]"""
    features: CarriedFeaturesConfig = CarriedFeaturesConfig()
    """[stitch.NAME.features]"""

    @model_validator(mode="after")
    def _sane(self) -> StitchConfig:
        if self.source == self.target:
            raise ValueError(f"source and target are both {self.source!r}; name two models")
        for name in ("widths", "arms", "thresholds"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name}={list(values)} names one twice")
        if self.arms and "random" not in self.arms:
            raise ValueError(f"arms={list(self.arms)} has nothing to compare with; add random")
        return self
