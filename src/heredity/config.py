"""Every setting of a study: frozen, documented field by field, read from one TOML file. `Study` (study.py) adds the
relations between the tables; this module only says what may stand in each of them."""

from __future__ import annotations

from typing import Annotated, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Init = Literal["parent", "independent"]

_MOST_VECTORS = 2**17  # sixteen batches are held at once: beyond this they would not fit into memory
Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]


class Config(BaseModel):
    """A frozen table of settings; an unknown key is an error that names it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


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


class LoraConfig(Config):
    """Low-rank fine-tuning through peft; the adapter is merged into the weights afterwards."""

    r: Positive = 8
    """Rank of the update."""
    alpha: PositiveFloat = 16.0
    """Scale: the update is multiplied by alpha / r."""
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Names of the modules that get an adapter."""


class TrainingConfig(Config):
    """How a language model is trained, from scratch or from its parent."""

    tokens: Positive | None = None
    """Tokens to train on; by default `epochs` passes over the corpora."""
    epochs: PositiveFloat = 1.0
    """Passes over the corpora when `tokens` is not given."""
    lr: PositiveFloat | None = None
    """Peak learning rate; default 6e-4 from scratch, 2e-5 for a fine-tune (paper, model cards)."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of linear warm-up before the cosine decay."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decoupled weight decay of AdamW."""
    batch_size: Positive = 64
    """Sequences a step."""
    context_size: Annotated[int, Field(ge=8, le=131072)] = 256
    """Tokens a sequence."""
    precision: Literal["bf16", "float32"] = "bf16"
    """Autocast type of the matrix products; weights and optimizer stay in float32."""


class ArchitectureConfig(Config):
    """A Mistral-like decoder; the defaults are the paper's one-layer model."""

    d_model: Positive = 512
    """Width of the residual stream."""
    d_mlp: Positive = 1024
    """Width of the MLP's hidden layer."""
    n_layers: Positive = 1
    """Number of blocks."""
    n_heads: Positive = 16
    """Query heads a block."""
    n_kv_heads: Positive | None = None
    """Key and value heads a block; default half of `n_heads`."""
    tie_embeddings: bool = False
    """Share the input and output embedding."""

    @model_validator(mode="after")
    def _heads_divide(self) -> ArchitectureConfig:
        if self.d_model % self.n_heads:
            raise ValueError(f"n_heads={self.n_heads} does not divide d_model={self.d_model}; choose a divisor")
        if self.n_heads % self.kv_heads:
            raise ValueError(f"n_kv_heads={self.kv_heads} does not divide n_heads={self.n_heads}; choose a divisor")
        return self

    @property
    def kv_heads(self) -> int:
        """Key and value heads in force."""
        return self.n_kv_heads or max(1, self.n_heads // 2)


class ScratchConfig(ArchitectureConfig, TrainingConfig):
    """`train = {...}` of a model: architecture, corpora and training in one table."""

    corpora: Annotated[tuple[str, ...], Field(min_length=1)]
    """Names of the corpora, mixed by their shares."""


class MergeConfig(Config):
    """A child made from the weights of its parents."""

    method: Literal["slerp", "linear", "task_arithmetic", "ties", "dare_linear", "dare_ties"] = "slerp"
    """How the weights are combined."""
    parents: Annotated[tuple[str, ...], Field(min_length=1)]
    """The models merged; t runs from the first (t = 0) to the second (t = 1)."""
    t: float | Literal["equilibrium"] = "equilibrium"
    """Position between two parents (slerp, linear); `equilibrium` is where their accuracies cross."""
    weights: tuple[float, ...] | None = None
    """One weight a parent (task arithmetic, TIES, DARE; linear of more than two)."""
    density: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of each task vector that is kept (TIES, DARE)."""
    base: str | None = None
    """Model that task vectors are taken from; default the parents' nearest common ancestor."""
    sweep_points: Annotated[int, Field(ge=2)] = 11
    """Grid of t in the sweep, 0 and 1 included."""
    tolerance: PositiveFloat = 0.005
    """The bisection for the equilibrium stops when t is known to this much."""

    @field_validator("t", mode="before")
    @classmethod
    def _number_or_equilibrium(cls, t: object) -> object:
        if t == "equilibrium" or (isinstance(t, int | float) and 0 <= t <= 1):
            return t
        raise ValueError('must be a number from 0 (first parent) to 1 (second parent), or "equilibrium"')


class ModelConfig(TrainingConfig):
    """One node of the model graph: exactly one of `train`, `load`, `merge`, or `parent` with `corpora`."""

    train: ScratchConfig | None = None
    """Train from scratch."""
    load: str | None = None
    """Take the weights from this folder or hub id."""
    revision: str | None = None
    """Commit of a hub model."""
    trust_remote_code: bool = False
    """Run code that a hub model ships. Off unless the study says so."""
    parent: str | None = None
    """Model this one was (or will be) fine-tuned from."""
    corpora: tuple[str, ...] = ()
    """Corpora of the fine-tune; of a loaded model, the corpora its trace consists of."""
    lora: LoraConfig | None = None
    """Fine-tune low-rank adapters instead of all weights."""
    merge: MergeConfig | None = None
    """Make it from its parents' weights."""

    @model_validator(mode="after")
    def _one_kind(self) -> ModelConfig:
        kinds = [name for name in ("train", "load", "merge") if getattr(self, name) is not None]
        if len(kinds) > 1:
            raise ValueError(f"{' and '.join(kinds)} exclude each other; keep one")
        if not kinds and self.parent is None:
            raise ValueError("says neither train, load, merge nor parent; give one of them")
        if not kinds and not self.corpora:
            raise ValueError("has a parent but no corpora to be fine-tuned on; add corpora = [...]")
        if self.parent is not None and kinds and kinds != ["load"]:
            raise ValueError(f"{kinds[0]} and parent exclude each other; a merge names its parents inside merge")
        if kinds in (["train"], ["merge"]) and self.corpora:
            raise ValueError("corpora belong inside train = {...}; a merge has its parents' corpora")
        if self.lora is not None and self.kind != "finetune":
            raise ValueError("lora is for fine-tunes only; give parent and corpora")
        return self

    @property
    def kind(self) -> Literal["train", "load", "merge", "finetune"]:
        """How this model comes to be."""
        if self.train is not None:
            return "train"
        if self.load is not None:
            return "load"
        return "merge" if self.merge is not None else "finetune"


class SAEConfig(Config):
    """Sparse autoencoders: one a model, an `init` and a seed."""

    activation: Literal["relu", "topk", "batchtopk"] = "relu"
    """Activation function; `relu` with an L1 penalty is the paper's. A trained `batchtopk` is saved as a JumpReLU."""
    expansion: Positive = 16
    """d_sae / d_in."""
    tokens: Positive = 15_000_000
    """Activation vectors to train on."""
    continue_tokens: Positive | None = None
    """Vectors for an SAE that continues its parent's; default `tokens`."""
    init: tuple[Init, ...] = ("parent",)
    """`parent` continues the parent's SAE on the child, `independent` starts anew (the paper); both are allowed."""
    k: Positive = 32
    """Active features a token (topk, batchtopk)."""
    l0: Annotated[tuple[float, float], Field()] = (25.0, 35.0)
    """Range of mean active features a token that the L1 coefficient is calibrated to (relu)."""
    l1_coefficient: PositiveFloat | None = None
    """Use this L1 coefficient instead of calibrating one (relu)."""
    lr: PositiveFloat = 1e-4
    """Adam's learning rate; constant, with a linear decay over the last fifth when `decay` is set."""
    decay: bool = False
    """Decay the learning rate linearly to 0 over the last fifth of the training."""
    batch_blocks: Positive = 128
    """Blocks a batch; with 24-token blocks 3,072 vectors, the paper's batch."""
    context_size: Annotated[int, Field(ge=2, le=8192)] = 24
    """Tokens a block."""
    calibration: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of the training during which the L1 coefficient is moved towards the L0 target; then it is frozen."""
    resample_every: Positive | None = None
    """Steps between resamplings of dead features; default a tenth of the training."""
    mix: Literal["tokens", "equal"] = "tokens"
    """How the corpora of a trace are mixed: by their size (uniform over the union, the paper) or in equal parts."""
    evaluation_tokens: Positive = 200_000
    """Held-out vectors that the quality figures are measured on."""

    @model_validator(mode="before")
    @classmethod
    def _one_init_is_a_list_of_one(cls, values: object) -> object:
        if isinstance(values, dict) and isinstance(values.get("init"), str):
            values = {**values, "init": (values["init"],)}
        return values

    @model_validator(mode="after")
    def _sane(self) -> SAEConfig:
        if not self.init or len(set(self.init)) != len(self.init):
            raise ValueError(f"init={list(self.init)} must name parent, independent or both, each once")
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

    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """A pair with r above this persists (paper, section 3.4)."""
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


class EvaluationConfig(Config):
    """How well the models predict."""

    tokens: Positive = 200_000
    """Validation tokens a corpus."""


class CaseConfig(Config):
    """A question about one kind of token, followed through every model."""

    tokens: Annotated[tuple[str, ...], Field(min_length=1)]
    """The token strings of the hypothesis, as text (`"="`, `" ="`)."""


class ReportConfig(Config):
    """What the report shows."""

    features: Positive = 10
    """Features shown for each of the lists (most persistent, most changed)."""
    contexts: Positive = 6
    """Top contexts shown for a feature."""
    tokens: Positive = 200_000
    """Tokens, from all corpora, that contexts and case studies are taken from."""


class StudyConfig(Config):
    """A whole study file."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Every random number follows from it."""
    hook_point: str
    """Where activations are read, such as `blocks.0.mlp.hook_post`."""
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
    report: ReportConfig = ReportConfig()
    """[report]"""

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
