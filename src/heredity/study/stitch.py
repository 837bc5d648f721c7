"""Settings of a stitch: two models, the affine maps between them, and what is carried through the maps."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from heredity.study.models import Config, Positive, PositiveFloat

FitMethod = Literal["joint", "ridge", "procrustes", "published", "descent"]
LossUnits = Literal["auto", "raw", "spread"]
Arm = Literal["random", "transferred", "repaired", "geometry"]
Recipe = Literal["study", "published"]
ProbeTask = Literal["origin", "kind", "language", "test"]
Sizes = Annotated[tuple[Positive, ...], Field(min_length=1)]
Levels = Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(min_length=1)]


class AdamConfig(Config):
    """Gradient descent on the joint loss, as a baseline beside the exact minimum. The defaults are the settings of Chen
    et al. 2025 (appendix A), and this descent is called `published`; with any other setting `descent` is fitted too."""

    epochs: Annotated[int, Field(ge=0)] = 2
    """Passes over the tokens; fits with half as many, a quarter and so on show what a given loss costs. 0 leaves all
    descents out."""
    lr: PositiveFloat = 1e-4
    """Learning rate at the start of the cosine decay."""
    batch_tokens: Positive = 5120
    """Tokens per step."""


class ProbeSetConfig(Config):
    """Texts with labels of their own: local files, or a data set of the Hugging Face hub."""

    source: str
    """`local:PATH` or `hub:OWNER/NAME`. A path names a file, or a folder, of JSON lines, CSV or Parquet with a row for
    each text; or a folder of text files: one subfolder per label with a text in each file, or one file per label with a
    text in each line."""
    text: str = "text"
    """Column of the texts."""
    label: str = "label"
    """Column of the labels. Empty: the name of the file, or of the subfolder it is in, as for text files."""
    subset: str | None = None
    """Configuration name of a hub data set."""
    split: str = "train"
    """Split of a hub data set that texts are drawn from. Test texts are disjoint from training texts."""
    revision: str | None = None
    """Commit of a hub data set; recorded, and pinned when given."""

    @field_validator("source")
    @classmethod
    def _known(cls, source: str) -> str:
        if not re.match(r"(local|hub):.", source):
            raise ValueError(f"{source!r} is neither local:PATH nor hub:OWNER/NAME")
        return source


class ProbesConfig(Config):
    """Probes on features, fitted in the source and used in the target."""

    tasks: tuple[ProbeTask, ...] = ("origin",)
    """Classification tasks on the study's corpora: `origin` (which corpus), `kind` (prose or code), `language` (which
    corpus of code), `test` (test files or other files of code). Empty leaves these out."""
    sets: dict[str, ProbeSetConfig] = {}
    """[stitch.NAME.probes.sets.SET]: further tasks, from texts with labels of their own."""
    sizes: Sizes = (1, 2, 5, 10, 20, 50)
    """Numbers of features that probes read."""
    texts: Positive = 1000
    """Texts per class, at most; a quarter of them form the test set."""
    context_size: Positive = 128
    """Tokens read from the beginning of each text."""
    draws: Positive = 5
    """Draws of random features."""


class SteeringConfig(Config):
    """Directions that make a model write text like a corpus, native and carried over."""

    prompts: Annotated[int, Field(ge=0)] = 100
    """Beginnings of held-out texts of the other corpora that the models continue; 0 leaves steering out."""
    prompt_tokens: Positive = 16
    """Tokens per beginning."""
    max_tokens: Positive = 48
    """Tokens generated per prompt."""
    vectors: Positive = 20_000
    """Activations per corpus over which directions and levels are averaged."""
    chat: bool = False
    """Give each beginning as a user's message in the tokenizer's chat template, to models that follow instructions;
    nothing is steered where the tokenizer has none."""


class CarriedFeaturesConfig(Config):
    """What single features keep: their effect on the next token; structural, semantic and functional ones apart."""

    tokens: Annotated[int, Field(ge=0)] = 50_000
    """Tokens on which attributions are correlated; 0 leaves all of it out."""
    prompts: Positive = 200
    """Texts whose content words are swapped, to separate structural features from semantic ones."""
    rewrites: Annotated[int, Field(ge=1, le=20)] = 5
    """Rewritten versions per text."""
    corpus: str | None = None
    """Corpus of prose these texts are drawn from; default the first prose corpus that both models have read."""
    functional: Annotated[int, Field(ge=0)] = 3
    """Features of each kind (entropy, attention deactivation) that are examined closely; 0 leaves them out."""


class StitchConfig(Config):
    """Maps between a source and a target, which read the same tokens, and what goes through them."""

    source: str
    """The smaller model, A: its SAEs, probes and directions are carried over."""
    target: str
    """The other model, B; of any width, or a child of the source."""
    source_hook_point: str | None = None
    """Where the source is read: a place that all of the residual stream passes, such as `blocks.1.hook_resid_pre`;
    default the study's `hook_point`."""
    target_hook_point: str | None = None
    """Where the target is read; default the layer's `hook_resid_pre` most similar to the source's by SVCCA."""
    layers: bool = False
    """Compare all layers of both models (SVCCA and CKA) though `target_hook_point` is given: a pass through both whole
    models. Where it is not given, layers are compared to find it."""
    tokens: Positive = 1_000_000
    """Aligned tokens the maps are fitted to."""
    sae: str | None = None
    """Folder of the source's SAE, in a format that `heredity convert` reads, in place of one trained here; `widths`
    then names its features. One that normalizes its input does not pass through affine maps, and is refused."""
    held_out: Positive = 100_000
    """Held-out tokens: every second block chooses the ridge of the maps, the others evaluate them."""
    context_size: Annotated[int, Field(ge=8)] = 128
    """Tokens per block."""
    method: FitMethod = "joint"
    """The maps in use: `joint` (the paper's loss, minimized exactly), `ridge`, `procrustes`, `published` or `descent`
    (see adam); all are compared."""
    alpha: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the round trips in the joint loss (the paper: 1)."""
    units: LossUnits = "auto"
    """Units of squared errors in the joint loss: `raw` (the paper), or `spread`, each model's own mean variance. `auto`
    takes spread where these differ more than tenfold: the errors of one model would else be all that counts."""
    alphas: tuple[Annotated[float, Field(ge=0)], ...] = ()
    """Weights at which joint fits are compared by what they are good for (the paper: 0, 0.1, 1, 10); default none."""
    adam: AdamConfig = AdamConfig()
    """[stitch.NAME.adam]"""
    evaluation: Positive = 50_000
    """Held-out tokens behind cross-entropies and the quality figures of SAEs."""
    widths: Sizes = (4096,)
    """Features of the SAEs, d_sae; probes and feature analyses use the first. All other settings come from [sae]."""
    arms: tuple[Arm, ...] = ("random", "transferred", "repaired", "geometry")
    """Initializations of the target's SAEs: `random` weights; the source's `transferred`; the transferred one with its
    decoder refitted and dead features reinitialized (`repaired`); the source's, randomly rotated (`geometry`: the value
    of a trained dictionary without the maps). Empty leaves training in the target out."""
    arms_recipe: Recipe = "study"
    """How this stitch's SAEs are trained, the source's included: by [sae] (`study`), or with the settings of Chen et
    al. 2025 (appendix D) in their place (`published`): topk, a constant rate of 1e-4 without a warm-up, raw
    activations, no dead features resampled, and rows of a transferred start cut to norm 1, its encoder as it is. k,
    tokens and batches stay those of [sae]."""
    thresholds: Levels = (0.8, 0.85, 0.9)
    """Explained-variance targets at which compute savings are reported."""
    levels: Levels = (0.7, 0.725, 0.75, 0.775, 0.8, 0.825, 0.85, 0.875, 0.9, 0.925, 0.95)
    """Explained variances over which savings are drawn."""
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
        for name in ("widths", "arms", "thresholds", "levels", "alphas"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name}={list(values)} names one twice")
        if self.arms and "random" not in self.arms:
            raise ValueError(f"arms={list(self.arms)} has nothing to compare with; add random")
        if self.method in ("published", "descent") and self.method not in self.descents:
            made = ", ".join(self.descents) or "none, since adam.epochs is 0"
            raise ValueError(f"method={self.method!r} is not among this stitch's descents ({made}); choose another")
        return self

    @property
    def descents(self) -> dict[str, AdamConfig]:
        """Gradient descents by name: `published` with the published settings, round trips' weight of 1 included, and
        `descent` with the study's where these differ."""
        published = {"published": AdamConfig()} if self.alpha == 1 else {}
        own = {} if self.adam in published.values() else {"descent": self.adam}
        return published | own if self.adam.epochs else {}
