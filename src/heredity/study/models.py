"""Settings of the model graph: how each language model is made, from scratch, from a parent or from several."""

from __future__ import annotations

import re
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from heredity.errors import short

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
    sweep_points: Annotated[int, Field(ge=2, le=1001)] | None = None
    """Grid of t in the sweep, 0 and 1 included, all of it measured. By default 11 where it finds t, less those where
    the parents' curves cannot cross, and no sweep where t is given."""
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
    """Bits of a weight."""
    method: Literal["absmax", "minmax", "nf4"] = "absmax"
    """Levels that weights are rounded to, the nearest: `absmax`, evenly spaced and symmetric up to the largest absolute
    value of a group; `minmax`, evenly spaced from its lowest to its highest value; `nf4`, the 4-bit levels of QLoRA
    (Dettmers et al. 2023), scaled by the largest absolute value."""
    group_size: Positive | None = None
    """Neighboring weights of a row that share a scale; default one scale per row."""
    embeddings: bool = True
    """Round embeddings and output head as well."""

    @model_validator(mode="after")
    def _levels_exist(self) -> QuantizeConfig:
        if self.method == "nf4" and self.bits != 4:
            raise ValueError(f"bits={self.bits}: nf4 has levels of 4 bits; give bits = 4, or another method")
        return self


class PruneConfig(Config):
    """`prune = {...}` of a model: its parent with some of its weights set to zero. Biases and norms stay."""

    share: Annotated[float, Field(gt=0, lt=1)]
    """Share of the weights of each matrix that is zero afterwards."""
    method: Literal["magnitude"] = "magnitude"
    """Which weights go: those of the smallest absolute value."""
    per: Literal["tensor", "row"] = "tensor"
    """What the share holds in: every matrix, or every row of it, so that each output keeps as many weights."""
    embeddings: bool = False
    """Prune embeddings and output head as well."""


class EditConfig(Config):
    """`edit = {...}` of a model: its parent with an edit of its weights whose effect is known."""

    project_out: Annotated[str, Field(min_length=1)] | None = None
    """A direction of the residual stream, from a file (safetensors, npy, pt) or, as `direction:NAME`, of the study
    ([direction.NAME]): no embedding, attention or MLP writes along it any more (Arditi et al. 2024)."""
    tensor: str | None = None
    """Name of the direction in that file, where it holds several."""
    scale: Annotated[float, Field(ge=0)] = 0.0
    """What is written along the direction is multiplied by this; 0 takes it out."""
    layers: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None = None
    """Blocks whose attention and MLP are edited; default all of them, and the embeddings."""
    permute: Annotated[str, Field(pattern=r"^blocks\.(\d+|\*)\.mlp$")] | None = None
    """MLP whose neurons are put into another order, such as `blocks.0.mlp`, or `blocks.*.mlp` for those of all blocks:
    the function stays, so that all features of the residual stream should be kept."""

    @model_validator(mode="after")
    def _one_edit(self) -> EditConfig:
        if (self.project_out is None) == (self.permute is None):
            raise ValueError("gives project_out and permute, or neither; give exactly one of them")
        more = sorted(self.model_fields_set & {"tensor", "scale", "layers"})
        if self.permute is not None and more:
            raise ValueError(f"{more[0]} is of a direction that is projected out, and permute has none; remove it")
        if self.scale == 1:
            raise ValueError("scale=1 changes nothing; give 0 to take the direction out, 0.5 for half of it")
        if self.tensor is not None and self.direction is not None:
            raise ValueError("tensor is of a file; name it in the table of the direction")
        return self

    @property
    def direction(self) -> str | None:
        """Direction of the study that is projected out, by name; None for one in a file."""
        scheme, _, name = (self.project_out or "").partition(":")
        return name if scheme == "direction" else None


Derived = Literal["quantize", "prune", "adapter", "edit"]
DERIVED: tuple[Derived, ...] = get_args(Derived)
"""Kinds of models that are made from their parent without training, by the key that makes them."""


_References = tuple[Annotated[str, Field(min_length=1)], ...]


class ModelConfig(TrainingConfig):
    """One node of the model graph: exactly one of `train`, `load`, `merge`, `recipe_of`, or `parent` with one of
    `corpora`, `quantize`, `prune`, `adapter` and `edit`."""

    train: ScratchConfig | None = None
    """Train from scratch."""
    load: Annotated[str, Field(min_length=1)] | None = None
    """Load the weights from this folder or hub id."""
    revision: str | None = None
    """Commit of a hub model."""
    revisions: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Revisions of the hub id in `load`, or folders of checkpoints in its folder, in the order of training. They become
    a chain of models, each the parent of the next, named `NAME@REVISION`."""
    trust_remote_code: bool = False
    """Run code that a hub model ships. Off unless the study says so."""
    parent: Annotated[str, Field(min_length=1)] | None = None
    """Model this one is fine-tuned from."""
    corpora: tuple[str, ...] = ()
    """Corpora of the fine-tune; of a loaded model, the corpora of its trace."""
    lora: LoraConfig | None = None
    """Fine-tune low-rank adapters instead of all weights."""
    quantize: QuantizeConfig | None = None
    """Round the weights of the parent to few bits."""
    prune: PruneConfig | None = None
    """Set weights of the parent to zero."""
    adapter: Annotated[str, Field(min_length=1)] | None = None
    """Merge the LoRA or DoRA adapter (peft) of this folder or hub id into the weights of the parent."""
    edit: EditConfig | None = None
    """Edit the weights of the parent: a direction projected out or scaled, or neurons permuted."""
    merge: MergeConfig | None = None
    """Merge the weights of several parents."""
    sae: _References = ()
    """A pretrained SAE of this model in place of one that is trained: a folder in any format that is read, or
    `saelens:RELEASE/ID`; in a study of several hook points a list, one for each. The instruments `independent` and
    `frozen` read it; `parent` continues it."""
    second_sae: _References = ()
    """Another one of another seed, which tells which features of the first are stable. By default one is trained, with
    the first one's features, activation function and k, and otherwise by [sae]."""
    recipe_of: Annotated[str, Field(min_length=1)] | None = None
    """Train this model as that one was, from scratch or from the same parent, with another seed; the two are compared
    along an edge of their own. All other keys are that model's."""

    @field_validator("sae", "second_sae", mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_kind(self) -> ModelConfig:
        if self.revisions is not None:
            if self.load is None or self.revision is not None:
                raise ValueError("revisions are of load = ..., and stand in place of revision; give these two keys")
            for one in self.revisions:  # which become parts of names
                if not re.fullmatch(r"[\w-][\w.-]*", one):
                    raise ValueError(f"revisions: {short(one, 80)!r}: must be a name of letters, digits, _, - and .")
            if len(set(self.revisions)) < len(self.revisions):
                raise ValueError(f"revisions={list(self.revisions)} names one twice; remove it")
        kinds = [name for name in ("train", "load", "merge", "recipe_of") if getattr(self, name) is not None]
        if len(kinds) > 1:
            raise ValueError(f"{' and '.join(kinds)} exclude each other; keep one")
        if kinds == ["recipe_of"] and (more := sorted(self.model_fields_set - {"recipe_of"})):
            raise ValueError(f"recipe_of takes everything from {self.recipe_of}; remove {', '.join(more)}")
        if not kinds and self.parent is None:
            what = next((f"{name} changes a parent: add parent = ..." for name in DERIVED if getattr(self, name)), None)
            raise ValueError(what or "says neither train, load, merge, recipe_of nor parent; give one of them")
        derived = [name for name in DERIVED if getattr(self, name) is not None]
        others = [*derived, *kinds, *(name for name in ("corpora", "lora") if getattr(self, name))]
        if derived and len(others) > 1:
            verb = others[0].replace("adapter", "adapt")
            way = (
                "leave it out, it has read its parent's"
                if others[1] == "corpora"
                else f"{verb} it in a table of its own"
            )
            raise ValueError(f"{others[0]} and {others[1]} exclude each other; {way}")
        if derived and (more := sorted(self.model_fields_set & set(TrainingConfig.model_fields))):
            raise ValueError(f"{more[0]} is of training, and {derived[0]} trains nothing; remove it")
        if self.parent is not None and not (kinds or derived or self.corpora):
            ways = ", ".join(f"{name} = ..." for name in DERIVED)
            raise ValueError(f"has a parent but no corpora to be fine-tuned on; add corpora = [...], or one of {ways}")
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
    def kind(self) -> Literal["train", "load", "merge", "finetune"] | Derived:
        """How this model comes to be."""
        kinds: tuple[Literal["train", "load", "merge"] | Derived, ...] = ("train", "load", "merge", *DERIVED)
        for name in kinds:
            if getattr(self, name) is not None:
                return name
        return "finetune"
