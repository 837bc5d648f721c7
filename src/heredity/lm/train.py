"""Training and fine-tuning of decoders with Hugging Face's Trainer: silent, resumable to the bit, fast on a CPU."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch

from heredity.kernels.processors import keep_large_buffers
from heredity.lm.checkpoints import claim, newest_checkpoint
from heredity.lm.load import quiet, state_hash
from heredity.lm.loss import next_token_loss, trunk_and_head
from heredity.lm.precision import dtype_of
from heredity.study import LoraConfig, TrainingConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer

Progress = Callable[[int, int], None]

_LOSSES = 200  # points of the loss curve
_EAGER_SCORES = 2**27  # attention scores of a batch that may be held at once (512 MiB in float32)


class Blocks(Protocol):
    """What training needs of a `BlockSampler`: token blocks in a fixed order, read anywhere."""

    @property
    def blocks_per_pass(self) -> int:
        """Blocks of one pass over the text."""
        ...

    def take(self, start: int, stop: int) -> np.ndarray:
        """Blocks start..stop, int64 [stop - start, context]."""
        ...


class TrainingError(ValueError):
    """Training went wrong in a way its settings can mend."""


class TrainingRecord(NamedTuple):
    """What a training run did."""

    steps: int
    """Optimizer steps."""
    tokens: int
    """Tokens read."""
    final_loss: float
    """The last point of `losses`."""
    losses: list[tuple[int, float]]
    """(step, mean loss in nats a token since the point before)."""


def train_model(
    model: PreTrainedModel,
    blocks: Blocks,
    config: TrainingConfig,
    total_tokens: int,
    lr: float,
    seed: int,
    folder: Path,
    lora: LoraConfig | None = None,
    progress: Progress | None = None,
    save_seconds: float = 60.0,
) -> TrainingRecord:
    """Train `model` in place, where its weights are, on the first `total_tokens` of `blocks`, in the blocks' order.

    Fused AdamW (0.9, 0.999, weight decay on matrices only), linear warm-up and cosine decay to 0, gradients clipped
    to norm 1. With `lora`, adapters are trained through peft and merged into the weights at the end, so that `model`
    is a plain model before and after. `total_tokens` is rounded up to whole blocks; the last batch may be short.

    A checkpoint is written to `folder` about every `save_seconds`. Called again with the same arguments and the same
    initial weights after it was killed, training goes on from the newest whole checkpoint and ends in the same
    weights, bit by bit, as if nothing had happened (on a GPU as far as its kernels are deterministic). The global
    random state, log levels and warning filters are left as they were; on Linux the process keeps the thresholds
    set by `keep_large_buffers` when it trains on a CPU.

    Raises TrainingError when the loss is not finite, ValueError for arguments that leave nothing to train on and for
    a folder with checkpoints of another run.
    """
    if total_tokens < 1:
        raise ValueError(f"total_tokens={total_tokens} leaves nothing to train on; give at least one block of tokens")
    first = blocks.take(0, 1)
    count = math.ceil(total_tokens / first.shape[1])
    steps = math.ceil(count / config.batch_size)
    settings = {"config": config.model_dump(), "total_tokens": total_tokens, "lr": lr, "seed": seed}
    settings |= {"lora": lora.model_dump() if lora else None, "weights": state_hash(model.state_dict())}
    settings |= {"data": [blocks.blocks_per_pass, *first[0, :16].tolist()]}
    claim(folder, settings)
    if next(model.parameters()).device.type == "cpu":
        keep_large_buffers()
    training = model.training
    with quiet(), _random_state_kept(), _settings_kept(model), _fast_attention(model, config):
        torch.manual_seed(seed)
        trained = _with_adapters(model, lora) if lora else model
        dataset = _BlockDataset(blocks, count, model.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]
        pace = _Pace(count * first.shape[1], steps, progress, save_seconds)
        trainer = _trainer(trained, dataset, config, steps, lr, seed, folder, pace)
        names = () if lora else {name for name, _ in model.named_parameters()}
        found = newest_checkpoint(folder, names)
        trainer.train(resume_from_checkpoint=str(found) if found else None)
        losses = [(int(row["step"]), float(row["loss"])) for row in trainer.state.log_history if "loss" in row]
        if lora:
            trained.merge_and_unload()  # type: ignore[operator]
            _forget_adapters(model)
    model.zero_grad(set_to_none=True)
    model.train(training)
    return TrainingRecord(steps, count * first.shape[1], losses[-1][1], losses)


class _BlockDataset(torch.utils.data.Dataset):
    """Position p is block p; a batch is one read, and resuming far into the run reads nothing twice."""

    def __init__(self, blocks: Blocks, count: int, vocab_size: int):
        self.blocks, self.count, self.vocab_size = blocks, count, vocab_size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        return {name: value[0] for name, value in self.__getitems__([position]).items()}

    def __getitems__(self, positions: list[int]) -> dict[str, torch.Tensor]:
        taken = self.blocks.take(positions[0], positions[-1] + 1)
        if int(taken.max()) >= self.vocab_size:
            raise ValueError(
                f"block {positions[0]} ff. hold token {int(taken.max())}, the model knows {self.vocab_size}; "
                "train with the tokenizer of the model"
            )
        ids = torch.from_numpy(np.ascontiguousarray(taken, dtype=np.int64))
        return {"input_ids": ids, "labels": ids}


class _Pace:
    """When to log, save and report, and when to give up.

    Checkpoints fall on steps that are logged, so that the loss curve of a resumed run has the same points.
    """

    def __init__(self, tokens: int, steps: int, progress: Progress | None, save_seconds: float):
        self.tokens, self.steps, self.progress, self.save_seconds = tokens, steps, progress, save_seconds
        self.every = max(1, steps // _LOSSES)
        self.saved = time.monotonic()

    def step_ended(self, step: int) -> tuple[bool, bool]:
        """Whether to log and whether to save after this step."""
        last = step >= self.steps
        log = last or step % self.every == 0
        if log and self.progress is not None:
            self.progress(self.tokens * step // self.steps, self.tokens)
        save = log and (last or time.monotonic() - self.saved >= self.save_seconds)
        if save:
            self.saved = time.monotonic()
        return log, save


def _trainer(
    model: Any,
    dataset: _BlockDataset,
    config: TrainingConfig,
    steps: int,
    lr: float,
    seed: int,
    folder: Path,
    pace: _Pace,
) -> Trainer:
    from transformers import PrinterCallback, TrainerCallback, TrainingArguments

    class Follow(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            control.should_log, control.should_save = pace.step_ended(state.global_step)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:  # noqa: ARG002
            if "loss" in logs and not math.isfinite(logs["loss"]):
                raise TrainingError(f"loss is {logs['loss']} at step {state.global_step}; lower lr={lr:g}")

    on_cpu = next(model.parameters()).device.type == "cpu"
    args = TrainingArguments(
        output_dir=str(folder),
        use_cpu=on_cpu,
        per_device_train_batch_size=config.batch_size,
        max_steps=steps,
        learning_rate=lr,
        lr_scheduler_type="cosine",
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        optim="adamw_torch_fused",
        seed=seed % 2**32,
        train_sampling_strategy="sequential",
        logging_strategy="no",
        logging_nan_inf_filter=False,
        save_strategy="no",
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=not on_cpu,
        remove_unused_columns=False,
    )
    trainer = _trainer_class(model, config)(
        model=model, args=args, train_dataset=dataset, data_collator=_as_it_is, callbacks=[Follow()]
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _as_it_is(batch: Any) -> Any:
    """The data set makes whole batches already."""
    return batch


def _trainer_class(model: Any, config: TrainingConfig) -> type[Trainer]:
    """The Trainer with bf16 autocast of our own and the loss computed in chunks where the model allows it.

    accelerate's autocast would copy all logits of a batch to float32 once more on their way out of the model.
    """
    from transformers import Trainer

    device = next(model.parameters()).device
    dtype = dtype_of(config.precision, device)
    # Adapters live inside the modules, so the plain model under them computes the same.
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    parts = trunk_and_head(plain)

    class ChunkedTrainer(Trainer):
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            with torch.autocast(device.type, torch.bfloat16, enabled=dtype is torch.bfloat16):
                # A wrapped model (several GPUs) must be called whole.
                if parts is None or return_outputs or model is not self.model:
                    return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
                return next_token_loss(*parts, inputs["input_ids"], dtype)

        def floating_point_ops(self, inputs: Any) -> int:  # noqa: ARG002 (counting parameters takes time every step)
            return 0

    return ChunkedTrainer


def _with_adapters(model: PreTrainedModel, lora: LoraConfig) -> Any:
    import peft

    modules = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    adapters = peft.LoraConfig(r=lora.r, lora_alpha=lora.alpha, target_modules=modules, task_type="CAUSAL_LM")  # type: ignore[arg-type]
    try:
        wrapped = peft.get_peft_model(model, adapters)
    except ValueError as error:
        raise ValueError(f"lora.target_modules={lora.target_modules!r}: {str(error).splitlines()[0]}") from error
    # With a name, peft asks the hub about the base model at every checkpoint.
    wrapped.peft_config["default"].base_model_name_or_path = ""
    return wrapped


def _forget_adapters(model: PreTrainedModel) -> None:
    """Drop what peft leaves on a model whose adapters were merged."""
    for name in ("peft_config", "_hf_peft_config_loaded"):
        model.__dict__.pop(name, None)
    model.requires_grad_(True)


@contextmanager
def _random_state_kept() -> Iterator[None]:
    python, legacy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)


@contextmanager
def _settings_kept(model: PreTrainedModel) -> Iterator[None]:
    """The Trainer turns the model's cache off and leaves it so; that would end up in the saved configuration."""
    cache = getattr(model.config, "use_cache", None)
    try:
        yield
    finally:
        if cache is not None:
            model.config.use_cache = cache


@contextmanager
def _fast_attention(model: PreTrainedModel, config: TrainingConfig) -> Iterator[None]:
    """On a CPU and for short contexts, plain matrix products: torch's fused attention is slow backwards there."""
    heads = getattr(model.config, "num_attention_heads", 1)
    scores = config.batch_size * heads * config.context_size**2
    before = str(getattr(model.config, "_attn_implementation", None))
    on_cpu = next(model.parameters()).device.type == "cpu"
    change = on_cpu and before == "sdpa" and config.context_size <= 512 and scores <= _EAGER_SCORES
    if not change:
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
