"""Settings of the model graph: how each language model is made, from scratch, from a parent or from several."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Init = Literal["joint", "parent", "independent"]
Instrument = Literal["joint", "parent", "independent", "frozen"]
Precision = Literal["bf16", "float32"]
Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]


class Config(BaseModel):
    """A frozen table of settings; an unknown key is an error that names it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


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
    """Training tokens; by default `epochs` passes over the corpora."""
    epochs: PositiveFloat = 1.0
    """Passes over the corpora when `tokens` is not given."""
    lr: PositiveFloat | None = None
    """Peak learning rate; default 6e-4 from scratch, 2e-5 for a fine-tune (paper, model cards)."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of linear warm-up before the cosine decay."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decoupled weight decay of AdamW."""
    batch_size: Positive = 64
    """Sequences per step."""
    context_size: Annotated[int, Field(ge=8, le=131072)] = 256
    """Tokens per sequence."""
    precision: Precision = "bf16"
    """Autocast type of the matrix products, `float32` where the device does not multiply bf16 natively; weights and
    optimizer stay in float32."""


class ArchitectureConfig(Config):
    """A Mistral-like decoder; the defaults are the paper's one-layer model."""

    d_model: Positive = 512
    """Width of the residual stream."""
    d_mlp: Positive = 1024
    """Width of the MLP's hidden layer."""
    n_layers: Positive = 1
    """Number of blocks."""
    n_heads: Positive = 16
    """Query heads per block."""
    n_kv_heads: Positive | None = None
    """Key and value heads per block; default half of `n_heads`."""
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
    """The merged models; t runs from the first (t = 0) to the second (t = 1)."""
    t: float | Literal["equilibrium"] = "equilibrium"
    """Position between two parents (slerp, linear); `equilibrium` is where their accuracies cross."""
    weights: tuple[float, ...] | None = None
    """One weight per parent (task arithmetic, TIES, DARE; linear of more than two)."""
    density: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of each task vector that is kept (TIES, DARE)."""
    base: str | None = None
    """Model from which task vectors are taken; default the parents' nearest common ancestor."""
    sweep_points: Annotated[int, Field(ge=2)] = 11
    """Grid of t in the sweep, 0 and 1 included."""
    tolerance: PositiveFloat = 0.005
    """Precision of t at which the bisection for the equilibrium stops."""

    @field_validator("t", mode="before")
    @classmethod
    def _number_or_equilibrium(cls, t: object) -> object:
        if t == "equilibrium" or (isinstance(t, int | float) and 0 <= t <= 1):
            return t
        raise ValueError('must be a number from 0 (first parent) to 1 (second parent), or "equilibrium"')


class QuantizeConfig(Config):
    """`quantize = {...}` of a model: its parent's weights rounded to few bits and back."""

    bits: Annotated[int, Field(ge=2, le=8)]
    """Bits of a weight; symmetric, rounded to nearest."""
    group_size: Positive | None = None
    """Neighboring weights of a row that share a scale; default one scale per row."""


_References = tuple[Annotated[str, Field(min_length=1)], ...]


class ModelConfig(TrainingConfig):
    """One node of the model graph: exactly one of `train`, `load`, `merge`, `recipe_of`, or `parent` with `corpora` or
    `quantize`."""

    train: ScratchConfig | None = None
    """Train from scratch."""
    load: Annotated[str, Field(min_length=1)] | None = None
    """Load the weights from this folder or hub id."""
    revision: str | None = None
    """Commit of a hub model."""
    trust_remote_code: bool = False
    """Run code that a hub model ships. Off unless the study says so."""
    parent: str | None = None
    """Model this one is fine-tuned from."""
    corpora: tuple[str, ...] = ()
    """Corpora of the fine-tune; of a loaded model, the corpora of its trace."""
    lora: LoraConfig | None = None
    """Fine-tune low-rank adapters instead of all weights."""
    quantize: QuantizeConfig | None = None
    """Round the weights of the parent to few bits."""
    merge: MergeConfig | None = None
    """Merge the weights of several parents."""
    sae: _References = ()
    """A pretrained SAE of this model in place of one that is trained: a folder in any format that is read, or
    `saelens:RELEASE/ID`; in a study of several hook points a list, one for each. The instruments `independent` and
    `frozen` read it; `parent` continues it."""
    second_sae: _References = ()
    """Another one of another seed, which tells which features of the first are stable. By default one is trained, with
    the first one's features, activation function and k, and otherwise by [sae]."""
    recipe_of: str | None = None
    """Train this model as that one was, from scratch or from the same parent, with another seed; the two are compared
    along an edge of their own. All other keys are that model's."""

    @field_validator("sae", "second_sae", mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_kind(self) -> ModelConfig:
        kinds = [name for name in ("train", "load", "merge", "recipe_of") if getattr(self, name) is not None]
        if len(kinds) > 1:
            raise ValueError(f"{' and '.join(kinds)} exclude each other; keep one")
        if kinds == ["recipe_of"] and (more := sorted(self.model_fields_set - {"recipe_of"})):
            raise ValueError(f"recipe_of takes everything from {self.recipe_of}; remove {', '.join(more)}")
        if not kinds and self.parent is None:
            raise ValueError("says neither train, load, merge, recipe_of nor parent; give one of them")
        if self.quantize is not None and (kinds or self.corpora or self.lora):
            other = kinds[0] if kinds else "corpora" if self.corpora else "lora"
            raise ValueError(f"quantize and {other} exclude each other; quantize the model in a table of its own")
        if not kinds and not self.corpora and self.quantize is None:
            raise ValueError("has a parent but no corpora to be fine-tuned on; add corpora = [...] or quantize = {...}")
        if self.parent is not None and kinds and kinds != ["load"]:
            raise ValueError(f"{kinds[0]} and parent exclude each other; a merge names its parents inside merge")
        if kinds in (["train"], ["merge"]) and self.corpora:
            raise ValueError("corpora belong inside train = {...}; a merge has its parents' corpora")
        if self.lora is not None and self.kind != "finetune":
            raise ValueError("lora is for fine-tunes only; give parent and corpora")
        if self.second_sae and not self.sae:
            raise ValueError("second_sae stands beside an sae; give sae, or rename second_sae")
        return self

    @property
    def kind(self) -> Literal["train", "load", "merge", "quantize", "finetune"]:
        """How this model comes to be."""
        if self.train is not None:
            return "train"
        if self.load is not None:
            return "load"
        if self.merge is not None:
            return "merge"
        return "quantize" if self.quantize is not None else "finetune"
