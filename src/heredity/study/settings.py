"""Settings of everything but the models: text, SAEs, matching, controls, report; and the study file as a whole."""

from __future__ import annotations

import re
import sys
import unicodedata
from typing import Annotated, Literal

import tomli_w
from pydantic import Field, field_validator, model_validator

from heredity.study.models import ModelConfig
from heredity.study.stitch import StitchConfig
from heredity.study.table import Config, Init, Positive, PositiveFloat, Precision, Share

_MOST_VECTORS = 2**17  # sixteen batches are held at once: beyond this they would not fit into memory


class CorpusConfig(Config):
    """One named source of text."""

    source: str
    """`local:PATH`, `hub:NAME`, `installed:NAME` or `generated:NAME`. A table of several, such as
    `{ local = "local:PATH", hub = "hub:NAME" }`, leaves the choice to the study's `text`."""
    share: Share | None = None
    """Share of tokens when a model is trained on several corpora; all of them or none."""
    max_bytes: Positive | None = None
    """Stop after this much text (UTF-8 bytes), documents taken in a seeded random order where the source allows it."""
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of documents held out, chosen by the hash of their text."""
    revision: str | None = None
    """Commit of a `hub:` data set; recorded, and pinned when given."""
    subset: str | None = None
    """Configuration name or data folder of a `hub:` data set."""
    column: str = "text"
    """Column (Parquet, hub) or key (JSON lines) that holds the text."""
    licence: str | None = None
    """Licence recorded for documents that do not state their own."""


class TokenizerConfig(Config):
    """The tokenizer every model of the study shares."""

    vocab_size: Annotated[int, Field(ge=300)] = 4096
    """Size of the byte-level BPE vocabulary trained on the start model's corpora."""
    load: str | None = None
    """Use the tokenizer of this folder or hub id instead of training one."""


RANKED = ("topk", "batchtopk")
"""Activation functions whose number of active features is set by k; the others' follows from a penalty."""


class SAEConfig(Config):
    """Sparse autoencoders: one per model, instrument and seed."""

    activation: Literal["relu", "topk", "batchtopk", "jumprelu"] = "relu"
    """Activation function; `relu` with an L1 penalty is the paper's. A trained `batchtopk` is saved as a JumpReLU."""
    expansion: Positive = 16
    """d_sae / d_in."""
    tokens: Positive = 15_000_000
    """Activation vectors to train on; of each model for a joint SAE."""
    continue_tokens: Positive | None = None
    """Vectors for an SAE that continues its parent's; default `tokens`."""
    instruments: tuple[Init, ...] = ("joint",)
    """`joint` trains one SAE on the activations of all models of the study, `parent` continues the parent's SAE on the
    child, `independent` starts anew for every model (the paper); one or several, the first gives the headline figures.
    Also accepted as `init`, its earlier name."""
    k: Positive = 32
    """Active features a token (topk, batchtopk)."""
    l0: Annotated[tuple[float, float], Field()] = (25.0, 35.0)
    """Range of mean active features a token that the penalty's coefficient is calibrated to (relu, jumprelu)."""
    l1_coefficient: PositiveFloat | None = None
    """Use this coefficient of the penalty, L1 (relu) or L0 (jumprelu), instead of calibrating one."""
    lr: PositiveFloat = 1e-4
    """Adam's learning rate; constant, with a warm-up over the first fiftieth of a continued training and, when `decay`
    is set, a linear decay over the last fifth."""
    decay: bool = False
    """Decay the learning rate linearly to 0 over the last fifth of the training."""
    batch_blocks: Positive = 128
    """Blocks a batch; with 24-token blocks 3,072 vectors, the paper's batch."""
    context_size: Annotated[int, Field(ge=2, le=8192)] = 24
    """Tokens a block."""
    calibration: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of the training during which the coefficient is moved towards the L0 target; then it is frozen."""
    resample_every: Positive | None = None
    """Steps between resamplings of dead features, in the first half of the training; default a tenth of it, but no less
    than 300,000 vectors, so that rare features are not taken for dead ones. A short training has none."""
    mix: Literal["tokens", "equal"] = "tokens"
    """How the corpora of a trace are mixed: by their size (uniform over the union, the paper) or in equal parts."""
    evaluation_tokens: Positive = 200_000
    """Held-out vectors that the quality figures are measured on."""

    @model_validator(mode="before")
    @classmethod
    def _one_instrument_is_a_list_of_one(cls, values: object) -> object:
        if isinstance(values, dict) and "init" in values:
            if "instruments" in values:
                raise ValueError("init is the earlier name of instruments; keep one of them")
            values = {"instruments" if key == "init" else key: value for key, value in values.items()}
        if isinstance(values, dict) and isinstance(values.get("instruments"), str):
            values = {**values, "instruments": (values["instruments"],)}
        return values

    @model_validator(mode="after")
    def _sane(self) -> SAEConfig:
        if not self.instruments or len(set(self.instruments)) != len(self.instruments):
            raise ValueError(
                f"instruments={list(self.instruments)} must name joint, parent or independent, each at most once"
            )
        if self.batch_blocks * self.context_size > _MOST_VECTORS:
            raise ValueError(
                f"batch_blocks={self.batch_blocks} of context_size={self.context_size} make "
                f"{self.batch_blocks * self.context_size:,} vectors a batch; lower them to {_MOST_VECTORS:,} at most"
            )
        if not 0 < self.l0[0] < self.l0[1]:
            raise ValueError(f"l0={list(self.l0)} must be a rising pair such as [25, 35]")
        return self


class LineageConfig(Config):
    """How features are matched along edges."""

    threshold: Annotated[float, Field(gt=0, lt=1)] | Literal["evidence"] = "evidence"
    """A pair with r above this persists. `evidence` chooses it for each edge, between what chance reaches and what two
    SAEs of one model reach (docs/method.md); a number is taken as it is. The counts at the paper's 0.8 (its section
    3.4) are always shown beside it."""
    tokens: Positive = 3_000_000
    """Aligned token positions of an edge."""
    top: Annotated[int, Field(ge=1, le=64)] = 5
    """Matches kept for each feature, both ways."""


class ControlsConfig(Config):
    """What a count is compared with."""

    seeds: Annotated[int, Field(ge=1)] = 2
    """SAEs a model; from the second on they serve as ceilings of the edges that leave the model."""
    models: tuple[str, ...] | None = None
    """Models that get the further SAEs; default every model that has a child."""
    passes: Annotated[int, Field(ge=1, le=100)] = 2
    """Comparisons of every edge under shifted alignment, for the floor and the p-values; one pass shows 64 shifts."""
    rate: Annotated[float, Field(gt=0, lt=0.5)] = 0.01
    """False discovery rate (Benjamini and Hochberg) at which a match counts as more than chance."""
    resamples: Annotated[int, Field(ge=100, le=100_000)] = 1000
    """Resamples of the documents (block bootstrap) behind the intervals."""
    level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Nominal coverage of the intervals."""
    newness: Annotated[int, Field(ge=0)] = 20_000
    """Tokens of the child's trace on which it is judged whether emerged features are new; 0 leaves it out."""
    shifts: bool = False
    """Measure how far other data and other weights turn the features of every edge to a child with one parent: four
    more SAEs an edge, each continued for `sae.continue_tokens` vectors."""


class EvaluationConfig(Config):
    """How well the models predict."""

    tokens: Positive = 200_000
    """Validation tokens a corpus."""


class CaseConfig(Config):
    """A question about one kind of token, followed through every model; exactly one of these is given."""

    tokens: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """The token strings of the hypothesis, as text (`"="`, `" ="`)."""
    regex: str | None = None
    """Tokens whose whole text matches this pattern of Python's `re`, such as `" ?[0-9]+"`."""
    script: str | None = None
    """Tokens with letters, all of them of this Unicode script, such as `Greek`: the first word of their names."""
    predicate: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")] | None = None
    """`module:function` of your own, found beside the study file or installed. It gets token ids [blocks, context] and
    the text of every token of the vocabulary, and returns an array of bool [blocks, context]: so place and context can
    be asked about. It is run, and made part of the recipe by its file's content."""

    @model_validator(mode="after")
    def _one_hypothesis(self) -> CaseConfig:
        given = list(self.model_dump(exclude_none=True))
        if len(given) != 1:
            choices = ", ".join(type(self).model_fields)
            raise ValueError(f"gives {' and '.join(given) or 'no hypothesis'}; give exactly one of {choices}")
        return self

    @field_validator("regex")
    @classmethod
    def _is_a_pattern(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"is no pattern ({error}); see Python's re") from None
        return pattern

    @field_validator("script")
    @classmethod
    def _is_a_script(cls, script: str | None) -> str | None:
        named = (unicodedata.name(chr(code), "") for code in range(sys.maxunicode + 1) if chr(code).isalpha())
        if script is not None and not any(name.startswith(f"{script.upper()} ") for name in named):
            raise ValueError("no letter's Unicode name begins with it; give a script such as Greek, Cyrillic or CJK")
        return script


class ReportConfig(Config):
    """What the report shows."""

    features: Positive = 10
    """Features shown for each of the lists (most persistent, most changed)."""
    contexts: Positive = 6
    """Top contexts shown for a feature."""
    tokens: Positive = 200_000
    """Tokens, from all corpora, that contexts and case studies are taken from."""


class ExplainConfig(Config):
    """What features mean: which are explained, and when a label that was handed down is given up."""

    features: Annotated[int, Field(ge=0)] = 1000
    """Features of each model, at most: those that persist along an edge and as many others; those that the report lists
    come on top. 0 leaves it all out."""
    drop: Annotated[float, Field(ge=0, le=2)] = 0.1
    """A label inherited from a matched feature is given up, and the feature explained anew, where its simulation score
    lies this much below the one it has at its origin."""
    radius: Annotated[int, Field(ge=1, le=128)] = 8
    """Tokens of an excerpt on either side of the one it was drawn for."""


class RepeatConfig(Config):
    """How often a study's trainings are done."""

    seeds: Annotated[int, Field(ge=1)] = 1
    """Times that fine-tunes and SAEs are trained, each time with other seeds and all else the same."""


class StudyConfig(Config):
    """A whole study file."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Every random number follows from it."""
    hook_point: str
    """Where activations are read, such as `blocks.0.mlp.hook_post`."""
    precision: Precision = "float32"
    """Type of the language models' matrix products wherever activations are read for SAEs and matches, the same at both
    ends of every edge. `bf16` takes about two thirds of the forward pass's time on processors that multiply it
    (others use float32 all the same), but only 5 % off a whole SAE stage, and puts noise of 1 % on the activations:
    hence `float32`."""
    text: str = "local"
    """Which of a corpus's sources is used where it names several: one switch for all of them."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """[tokenizer]"""
    corpus: dict[str, CorpusConfig]
    """[corpus]: name = { source = ..., share = ... }"""
    model: dict[str, ModelConfig]
    """[model.NAME]"""
    sae: SAEConfig = SAEConfig()
    """[sae]"""
    lineage: LineageConfig = LineageConfig()
    """[lineage]"""
    controls: ControlsConfig = ControlsConfig()
    """[controls]"""
    evaluation: EvaluationConfig = EvaluationConfig()
    """[evaluation]"""
    case: dict[str, CaseConfig] = {}
    """[case.NAME]"""
    stitch: dict[str, StitchConfig] = {}
    """[stitch.NAME]"""
    report: ReportConfig = ReportConfig()
    """[report]"""
    explain: ExplainConfig = ExplainConfig()
    """[explain]"""
    repeat: RepeatConfig = RepeatConfig()
    """[repeat] seeds = 1: how often fine-tunes and SAEs are trained, each time with other seeds and all else the same.
    From 2 on the summary tells under `repeats` how far every headline number varies between them."""

    def to_toml(self) -> str:
        """The study as TOML, defaults left out; reading it again gives an equal config."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_defaults=True, exclude_none=True))

    @model_validator(mode="before")
    @classmethod
    def _choose_sources(cls, values: object) -> object:
        corpora = values.get("corpus") if isinstance(values, dict) else None
        if not isinstance(values, dict) or not isinstance(corpora, dict):
            return values
        choice, chosen = values.get("text", "local"), {}
        for name, corpus in corpora.items():
            sources = corpus.get("source") if isinstance(corpus, dict) else None
            if isinstance(sources, dict):
                if choice not in sources:
                    raise ValueError(f"corpus.{name}.source has no {choice!r}; set text to one of {', '.join(sources)}")
                chosen[name] = {**corpus, "source": sources[choice]}
            else:
                chosen[name] = corpus
        return {**values, "corpus": chosen}
