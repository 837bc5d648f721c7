"""Settings of everything but the models: text, SAEs, matching, controls, report; and the study file as a whole."""

from __future__ import annotations

import re
import sys
import unicodedata
from typing import Annotated, Literal

import tomli_w
from pydantic import AliasChoices, Field, field_serializer, field_validator, model_validator

from heredity.errors import reason, short
from heredity.study.directions import DirectionConfig
from heredity.study.models import Config, Instrument, ModelConfig, Positive, PositiveFloat, Precision
from heredity.study.stitch import StitchConfig

_MOST_VECTORS = 2**17  # sixteen batches are held at once: beyond this they would not fit into memory


class CorpusConfig(Config):
    """One named source of text."""

    source: str
    """`local:PATH`, `hub:NAME`, `installed:NAME` or `generated:NAME`. A table of several, such as
    `{ local = "local:PATH", hub = "hub:NAME" }`, leaves the choice to the study's `text`."""
    share: Annotated[float, Field(gt=0, le=1)] | None = None
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
    """Column (Parquet, CSV, hub) or key (JSON) of the text; a dot leads into nested ones (`"answer.text"`). Where there
    is no `text`, `messages`, `conversations` and `input_ids` are looked for too."""
    format: Literal["text", "chat", "ids"] | None = None
    """What the column holds: `text`; `chat`, lists of messages, rendered by the chat template of the tokenizer that is
    loaded; `ids`, lists of that tokenizer's token ids. Default: `chat` where the first row of local files is such a
    list, otherwise `text`."""
    roles: Literal["all", "assistant"] = "all"
    """Of dialogues, whose words are samples of SAEs, matches and verdicts: everybody's, or only the assistant's. Models
    read and learn all of it."""
    separator: str | None = None
    """What stands, on a line of its own, between the documents of a text file, such as `"<|endoftext|>"`."""
    skip_damaged: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of rows that may be left out because they cannot be read; counted. By default the first one is an error."""
    license: Annotated[str | None, Field(validation_alias=AliasChoices("license", "licence"))] = None
    """License recorded for documents that do not state their own; `licence` is accepted too."""


class TokenizerConfig(Config):
    """The tokenizer every model of the study shares."""

    vocab_size: Annotated[int, Field(ge=300)] = 4096
    """Size of the byte-level BPE vocabulary trained on the start model's corpora."""
    load: Annotated[str, Field(min_length=1)] | None = None
    """Load the tokenizer of this folder or hub id instead of training one."""


RANKED = ("topk", "batchtopk")  # activation functions whose L0 is set by k; that of the others follows from a penalty


class SAEConfig(Config):
    """Sparse autoencoders: one per model, instrument and seed."""

    activation: Literal["relu", "topk", "batchtopk", "jumprelu"] = "relu"
    """Activation function; the paper has `relu` with an L1 penalty. A trained `batchtopk` is saved as a JumpReLU."""
    expansion: Positive = 16
    """d_sae / d_in."""
    tokens: Positive = 15_000_000
    """Training vectors; per model for a joint SAE."""
    continue_tokens: Positive | None = None
    """Training vectors of an SAE that continues its parent's; default `tokens`."""
    instruments: tuple[Instrument, ...] = ("joint",)
    """`joint` trains one SAE on the activations of all models of the study, `parent` continues the parent's SAE on the
    child, `independent` starts anew for every model (the paper), `frozen` reads every model with the SAE of its
    first ancestor, and trains none on a child. One or several; headline figures come from the first.
    `init`, the earlier name, is accepted too."""
    k: Positive = 32
    """Active features per token (topk, batchtopk)."""
    l0: tuple[float, float] = (25.0, 35.0)
    """Target range of mean active features per token, to which the penalty's coefficient is calibrated (relu,
    jumprelu)."""
    l1_coefficient: PositiveFloat | None = None
    """Coefficient of the penalty, L1 (relu) or L0 (jumprelu), in place of a calibrated one."""
    lr: PositiveFloat = 1e-4
    """Adam's learning rate; constant, with a warm-up of a continued training and, when `decay` is set, a linear decay
    over the last fifth."""
    warm_up: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """Share of a continued training over which the learning rate rises to it, because Adam starts anew; 0 for none."""
    decay: bool = False
    """Decay the learning rate linearly to 0 over the last fifth of training."""
    batch_blocks: Positive = 128
    """Blocks per batch; with 24-token blocks 3,072 vectors, the paper's batch."""
    context_size: Annotated[int, Field(ge=2, le=8192)] = 24
    """Tokens per block."""
    calibration: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of training during which the coefficient moves toward the L0 target; afterwards it is frozen."""
    resample_every: Annotated[int, Field(ge=0)] | None = None
    """Steps between resamplings of dead features, in the first half of training; default a tenth of it, but at least
    300,000 vectors, so that rare features are not mistaken for dead ones. A short training has none; 0 is none at
    all (the first paper)."""
    subtract_mean: bool = False
    """Whether the encoder also subtracts the mean of the data, x̄ = x − mean − b_dec, as equation 1 of the first paper
    is printed; measured on the first batches and folded into b_enc of the SAE that is written."""
    encoder_start: Literal["transpose", "kaiming"] = "transpose"
    """Encoder of a new SAE: the decoder's transpose, with biases or thresholds that let about 1.5 times the wanted L0
    fire; or drawn apart from the decoder (Kaiming-uniform, Bricken et al. 2023), b_enc 0, so that half of a relu SAE
    fires at first."""
    normalize: bool = True
    """Whether activations are scaled by one number in training. Either way `l1_coefficient` weighs the raw activations
    and the optimum is the same; without it the biases move by `lr` in raw units, as published. Not for jumprelu; relu
    then needs an `l1_coefficient`."""
    mix: Literal["tokens", "equal"] = "tokens"
    """Mixture of a trace's corpora: by size (uniform over the union, the paper) or in equal parts."""
    evaluation_tokens: Positive = 200_000
    """Held-out vectors behind the quality figures."""

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
            given = list(self.instruments)
            raise ValueError(f"instruments={given} must name joint, parent, independent or frozen, each at most once")
        if self.batch_blocks * self.context_size > _MOST_VECTORS:
            raise ValueError(
                f"batch_blocks={self.batch_blocks} of context_size={self.context_size} make "
                f"{self.batch_blocks * self.context_size:,} vectors per batch; lower them to {_MOST_VECTORS:,} at most"
            )
        if not 0 < self.l0[0] < self.l0[1]:
            raise ValueError(f"l0={list(self.l0)} must be a rising pair such as [25, 35]")
        if not self.normalize and self.activation == "jumprelu":
            raise ValueError("normalize=false leaves jumprelu's window without a unit; leave it out, or train relu")
        if not self.normalize and self.activation == "relu" and self.l1_coefficient is None:
            raise ValueError("normalize=false leaves calibration without a unit; give an l1_coefficient such as 3e-4")
        return self


class LineageConfig(Config):
    """How features are matched along edges."""

    threshold: Annotated[float, Field(gt=0, lt=1)] | Literal["evidence"] = "evidence"
    """A pair with r above this persists. `evidence` chooses it for each edge, between the r reached by chance and the r
    between two SAEs of one model (docs/method.md); a number is used as given. Counts at the paper's 0.8 (its section
    3.4) are always reported beside it."""
    tokens: Positive = 3_000_000
    """Aligned token positions per edge."""
    top: Annotated[int, Field(ge=1, le=64)] = 5
    """Matches kept per feature, both ways."""


class ControlsConfig(Config):
    """Floors, ceilings and confidence intervals of the counts."""

    seeds: Annotated[int, Field(ge=1, le=100)] = 2
    """SAEs per model, each with its own seed; those after the first serve as ceilings of the model's outgoing edges."""
    models: tuple[str, ...] | None = None
    """Models with further SAEs; default every model that has a child."""
    passes: Annotated[int, Field(ge=1, le=100)] = 2
    """Comparisons per edge under shifted alignment, for the floor and the p-values; one pass covers 64 shifts."""
    rate: Annotated[float, Field(gt=0, lt=0.5)] = 0.01
    """False discovery rate (Benjamini and Hochberg) at which a match counts as more than chance."""
    resamples: Annotated[int, Field(ge=100, le=100_000)] = 1000
    """Bootstrap resamples of the documents behind the confidence intervals."""
    level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Nominal coverage of the confidence intervals."""
    newness: Annotated[int, Field(ge=0)] = 20_000
    """Tokens of the child's trace on which emerged features are tested for newness; 0 leaves it out."""
    shifts: bool = False
    """Measure how far other data and other weights rotate the features of every edge to a child with one parent: four
    more SAEs per edge, each continued for `sae.continue_tokens` vectors."""


class VerdictsConfig(Config):
    """What became of each feature: kept, changed, lost or undecided."""

    tokens: Annotated[int, Field(ge=0)] = 60_000
    """Aligned tokens on which features of every edge are judged; as many more fit the maps between both models'
    activations. Each model gets a second SAE, which tells features from what only one SAE has. 0 leaves them out."""
    examine: Annotated[int, Field(ge=0)] = 60
    """Features of every edge that are taken away in the parent, and their matches in the child, to see whether both do
    the same to the prediction. 0 leaves this out, and what became of lost features with it."""
    texts: tuple[str, ...] = ("common", "own")
    """Texts on which every edge is judged: `common`, the corpora that both ends have read, behind all headline figures;
    `own`, those that only the child was trained on, where it has any; and corpora by name, as probes, which no model
    need have read. Those after `common` are read with half as many tokens."""

    direction_tokens: Annotated[int, Field(ge=1000)] = 20_000
    """Held-out tokens on which directions ([direction.NAME]) are read, over all their corpora, and tokens of training
    text that make them and fit maps and readouts."""

    @field_validator("tokens")
    @classmethod
    def _enough(cls, tokens: int) -> int:
        if 0 < tokens < 1000:
            raise ValueError("are too few to judge features on; give at least 1000, or 0 for no verdicts")
        return tokens

    @field_validator("texts")
    @classmethod
    def _with_the_common_one(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        if "common" not in texts or len(set(texts)) < len(texts):
            raise ValueError(f"{list(texts)} must name common, which headline figures come from, and no text twice")
        return texts


class ReferencesConfig(Config):
    """Edges and instruments whose answer is known, judged beside every edge."""

    unchanged: bool = True
    """The parent against itself, read by its second SAE."""
    edit: bool = True
    """The parent with a random change in every tensor, of the size of the edge's own. Of a quantized child that is
    noise of the size of its rounding."""
    random: bool = True
    """The parent changed in the child's way, at random: as many weights pruned, another direction projected out or
    scaled, an adapter's change with rows and columns in another order. For such children."""
    sham: bool = True
    """The parent trained on with its own corpora by the recipe of the child; one for all children of a parent that have
    the same recipe. For fine-tunes that the study trains: what is made without training has no recipe."""
    twin: bool = False
    """The child trained again with another seed: how far the counts vary between fine-tunes, in a second interval. For
    fine-tunes that the study trains."""
    removal: bool = True
    """The parent's activations without the directions of eight of its features: how many of them are called lost."""
    codebook: bool = True
    """An untrained dictionary of random tokens' activations."""
    random_decoder: bool = False
    """An untrained dictionary of random directions."""
    neurons: bool = False
    """The neurons (dimensions) at the hook point themselves, above and below their means."""
    token_identity: bool = True
    """One feature per frequent token of the vocabulary."""


class EvaluationConfig(Config):
    """Next-token prediction of the models."""

    tokens: Positive = 200_000
    """Validation tokens per corpus."""
    merge_methods: bool = False
    """Merge the two parents of every merge by the other methods as well, and evaluate these on the parents' corpora."""


class ReadingConfig(Config):
    """How loaded models, and what is made from them, are read. Models that the study trains itself read blocks as they
    are, as in their training."""

    prefix: Literal["auto", "bos", "eos", "none"] = "auto"
    """Token before every block, which is no sample: `auto` is the beginning-of-text token where the tokenizer itself
    puts one before a text, otherwise the end-of-text token, behind which documents begin where they are packed."""
    skip_positions: Annotated[int, Field(ge=0)] = 0
    """First positions of a block that are no samples of SAEs, matches and verdicts, as are those below."""
    outliers: Annotated[float, Field(ge=0)] = 10.0
    """Positions whose norm is more than so many times the median are no samples: massive activations would own the mean
    and the variance of all others. 0 leaves none out. What is left out is counted beside the quality of the SAEs."""


class CaseConfig(Config):
    """A hypothesis about one kind of token, followed through every model; give exactly one of these."""

    tokens: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Token strings, as text (`"="`, `" ="`)."""
    strings: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)] | None = None
    """Text of any number of tokens (`"else if"`): the hypothesis holds at the last token of every occurrence that
    begins and ends where tokens do; a space before it may belong to its first token."""
    regex: str | None = None
    """Tokens whose whole text matches this pattern of Python's `re`, such as `" ?[0-9]+"`."""
    script: str | None = None
    """Tokens with letters, all of this Unicode script, such as `Greek`: the first word of the letters' names."""
    predicate: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")] | None = None
    """`module:function`, beside the study file or installed. It takes token ids [blocks, context] and the text of every
    token of the vocabulary, and returns an array of bool [blocks, context], so that a hypothesis can depend on position
    and context. Its code is executed, and its file's content is part of the recipe."""

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
        except (re.error, OverflowError, RecursionError, MemoryError, ValueError) as error:
            raise ValueError(f"is no pattern ({reason(error)}); see Python's re") from None
        return pattern

    @field_validator("script")
    @classmethod
    def _is_a_script(cls, script: str | None) -> str | None:
        named = (unicodedata.name(chr(code), "") for code in range(sys.maxunicode + 1) if chr(code).isalpha())
        if script is not None and not any(name.startswith(f"{script.upper()} ") for name in named):
            raise ValueError("no letter's Unicode name begins with it; give a script such as Greek, Cyrillic or CJK")
        return script


class ReportConfig(Config):
    """Size of the report."""

    features: Positive = 10
    """Features per list (most persistent, most changed)."""
    contexts: Positive = 6
    """Top contexts per feature."""
    tokens: Positive = 200_000
    """Tokens, over all corpora, from which contexts and case studies are drawn."""
    case_tokens: Positive | None = None
    """Tokens behind the LLRs of case studies (the first paper: 3,000,000); default `tokens`, at no further cost."""
    case_corpora: tuple[str, ...] = ()
    """Corpora that these tokens come from, in equal parts; default all of the study."""


class ExplainConfig(Config):
    """Explanations of features, and when an inherited label is discarded."""

    features: Annotated[int, Field(ge=0)] = 1000
    """Explained features per model, at most: those that persist along an edge and as many others, beside those listed
    in the report. 0 leaves explanations out."""
    drop: Annotated[float, Field(ge=0, le=2)] = 0.1
    """A label inherited from a matched feature is discarded, and the feature explained anew, where its simulation score
    is this much below the score at its origin."""
    radius: Annotated[int, Field(ge=1, le=128)] = 8
    """Tokens of an excerpt on either side of its central token."""


class RepeatConfig(Config):
    """Training seeds."""

    seeds: Annotated[int, Field(ge=1, le=100)] = 1
    """Seeds with which fine-tunes and SAEs are trained, all else equal."""


class StudyConfig(Config):
    """A whole study file."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of every random number."""
    paper: Literal["tracking", "stitching"] | None = None
    """The paper that the study follows: `tracking` (arXiv 2410.12391) or `stitching` (arXiv 2506.06609). The table
    `deviations` sets its published settings beside the study's."""
    hook_point: tuple[str, ...]
    """Where activations are read, such as `blocks.0.mlp.hook_post`: one place or a list of places, the sites of the
    study. Each has SAEs, matches and verdicts of its own; the first is the main one, which commands ask unless another
    is named."""
    precision: Precision = "float32"
    """Type of the language models' matrix products wherever activations are read for SAEs and matches, the same at both
    ends of every edge. On processors that multiply `bf16` natively (others use float32 regardless) it shortens the
    forward pass by a third, but a whole SAE stage by only 5 %, and adds noise of 1 % to the activations. `float32` on a
    GPU is TF32, an eighth of that noise."""
    text: str = "local"
    """The source used for every corpus that names several."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """[tokenizer]"""
    reading: ReadingConfig = ReadingConfig()
    """[reading]"""
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
    verdicts: VerdictsConfig = VerdictsConfig()
    """[verdicts]"""
    references: ReferencesConfig = ReferencesConfig()
    """[references]"""
    evaluation: EvaluationConfig = EvaluationConfig()
    """[evaluation]"""
    case: dict[str, CaseConfig] = {}
    """[case.NAME]"""
    direction: dict[str, DirectionConfig] = {}
    """[direction.NAME]"""
    stitch: dict[str, StitchConfig] = {}
    """[stitch.NAME]"""
    report: ReportConfig = ReportConfig()
    """[report]"""
    explain: ExplainConfig = ExplainConfig()
    """[explain]"""
    repeat: RepeatConfig = RepeatConfig()
    """[repeat] From seeds = 2 on, the table `repeats` reports how far every headline number varies between seeds."""

    def to_toml(self) -> str:
        """The study as TOML, defaults left out; reading it again gives an equal config."""
        values = self.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
        twins = {name: {"recipe_of": model.recipe_of} for name, model in self.model.items() if model.recipe_of}
        return tomli_w.dumps({**values, "model": {**values["model"], **twins}})

    def with_recipes(self) -> StudyConfig:
        """With the settings of every model that repeats the recipe of another in full."""
        own: dict[str, object] = {"sae": (), "second_sae": ()}  # an SAE of the other's weights is none of these
        models = {
            name: self.model[model.recipe_of].model_copy(update=own | {"recipe_of": model.recipe_of})
            if model.recipe_of in self.model
            else model
            for name, model in self.model.items()
        }
        return self.model_copy(update={"model": models})

    @field_validator("hook_point", mode="before")
    @classmethod
    def _one_site_is_a_list_of_one(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_serializer("hook_point")
    def _a_list_of_one_is_one_site(self, sites: tuple[str, ...]) -> str | list[str]:
        return sites[0] if len(sites) == 1 else list(sites)

    @model_validator(mode="before")
    @classmethod
    def _choose_sources(cls, values: object) -> object:
        if not isinstance(values, dict) or not isinstance(values.get("corpus"), dict):
            return values
        choice, chosen = values.get("text", "local"), dict(values["corpus"])
        for name, corpus in chosen.items():
            sources = corpus.get("source") if isinstance(corpus, dict) else None
            if isinstance(sources, dict):
                if not isinstance(choice, str) or choice not in sources:
                    known = ", ".join(map(str, sources))
                    raise ValueError(
                        f"corpus.{name}.source has no {short(repr(choice), 80)}; set text to one of {known}"
                    )
                chosen[name] = {**corpus, "source": sources[choice]}
        return {**values, "corpus": chosen}
