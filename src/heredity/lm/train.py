"""Training and fine-tuning of decoders with Hugging Face's Trainer: silent, resumable to the bit, fast on a CPU."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from heredity.engine.store import flush, write_json
from heredity.kernels.processors import keep_large_buffers
from heredity.lm.evaluate import dtype_of, next_token_loss, trunk_and_head
from heredity.lm.hooks import evaluating
from heredity.lm.load import quiet, random_state_kept, state_hash
from heredity.study import LoraConfig, TrainingConfig
from heredity.text.tokens import BlockSampler

Progress = Callable[[int, int], None]

_LOSSES = 200  # points of the loss curve
_WRITING, _SELDOM = 0.05, 10  # share of the time that checkpoints may take, and how much rarer they become for it
_DISK = 0.25  # share of the free disk that a checkpoint may take
_WHOLE = "whole"  # a file of this name is the last thing written into a checkpoint
_EAGER_SCORES = 2**27  # attention scores of a batch that may be held at once (512 MiB in float32)


class TrainingError(ValueError):
    """Training that went wrong in a way its settings can mend."""


class TrainingRecord(NamedTuple):
    steps: int  # optimizer steps
    tokens: int  # tokens read
    losses: list[tuple[int, float]]  # (step, mean loss in nats per token since the point before)


def train_model(
    model: PreTrainedModel,
    blocks: BlockSampler,
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

    A checkpoint is written to `folder` about every `save_seconds`, less often (up to ten times) where writing it takes
    more than a twentieth of that, and none where it would take more than a quarter of the free disk: 12 bytes a trained
    weight. Each replaces the one before. Called again with the same arguments and initial
    weights after a kill, training resumes from it and ends in the same weights, bit by bit, as an uninterrupted run (on
    a GPU as far as its kernels are deterministic). The global random state, log levels and warning filters are left as
    they were; on Linux a process that trains on a CPU keeps what `keep_large_buffers` set.

    Raises TrainingError when the loss is not finite, ValueError for arguments that leave nothing to train on and for
    a folder with checkpoints of another run.
    """
    if total_tokens < 1:
        raise ValueError(f"total_tokens={total_tokens} leaves nothing to train on; give at least one block of tokens")
    first = blocks.take(0, 1)
    count = math.ceil(total_tokens / first.shape[1])
    tokens, steps = count * first.shape[1], math.ceil(count / config.batch_size)
    settings = {"config": config.model_dump(), "total_tokens": total_tokens, "lr": lr, "seed": seed}
    settings |= {"lora": lora.model_dump() if lora else None, "weights": state_hash(model.state_dict())}
    _claim(folder, settings | {"data": [blocks.blocks_per_pass, *first[0, :16].tolist()]})
    device = next(model.parameters()).device
    if device.type == "cpu":
        keep_large_buffers()
    training, cache = model.training, getattr(model.config, "use_cache", None)
    try:
        with quiet(), random_state_kept(), _fast_attention(model, config):
            torch.manual_seed(seed)
            trained = _with_adapters(model, lora) if lora else model
            dataset = _BlockDataset(blocks, count, model.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]
            trainer = _ChunkedTrainer(
                trained,
                dtype_of(config.precision, device),
                args=_arguments(config, steps, lr, seed, folder, device.type == "cpu"),
                train_dataset=dataset,
                data_collator=lambda batch: batch,  # the data set makes whole batches already
                callbacks=[_Follow(steps, tokens, lr, save_seconds, progress, _bytes_of_checkpoint(trained))],
            )
            trainer.remove_callback(PrinterCallback)
            checkpoint = newest_checkpoint(folder)
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            losses = [(int(row["step"]), float(row["loss"])) for row in trainer.state.log_history if "loss" in row]
            if lora:
                trained.merge_and_unload()  # type: ignore[operator]
                for name in ("peft_config", "_hf_peft_config_loaded"):  # peft leaves these on the plain model
                    model.__dict__.pop(name, None)
                model.requires_grad_(True)
    finally:
        if cache is not None:  # the Trainer leaves the cache off, which would end up in the saved configuration
            model.config.use_cache = cache
    model.zero_grad(set_to_none=True)
    model.train(training)
    return TrainingRecord(steps, tokens, losses)


class _BlockDataset(torch.utils.data.Dataset):
    """Position p is block p; a batch is one read, and resuming far into the run reads nothing twice."""

    def __init__(self, blocks: BlockSampler, count: int, vocab_size: int):
        self.blocks, self.count, self.vocab_size = blocks, count, vocab_size

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, positions: list[int]) -> dict[str, torch.Tensor]:
        taken = self.blocks.take(positions[0], positions[-1] + 1)
        if int(taken.max()) >= self.vocab_size:
            token = f"token {int(taken.max())}, the model knows {self.vocab_size}"
            raise ValueError(f"block {positions[0]} ff. hold {token}; train with the tokenizer of the model")
        ids = torch.from_numpy(np.ascontiguousarray(taken, dtype=np.int64))
        return {"input_ids": ids, "labels": ids}


class _Follow(TrainerCallback):
    """Says when to log and to save; checkpoints fall on logged steps, so that a resumed run has the same loss curve."""

    def __init__(
        self, steps: int, tokens: int, lr: float, save_seconds: float, progress: Progress | None, size: int = 0
    ):
        self.steps, self.tokens, self.lr, self.save_seconds, self.progress = steps, tokens, lr, save_seconds, progress
        self.every, self.saved, self.size = max(1, steps // _LOSSES), time.monotonic(), size
        self.between = save_seconds  # seconds

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        step, last = state.global_step, state.global_step >= self.steps
        control.should_log = last or step % self.every == 0
        if control.should_log and self.progress is not None:
            self.progress(self.tokens * step // self.steps, self.tokens)
        late = time.monotonic() - self.saved >= self.between
        control.should_save = control.should_log and (last or late)
        if control.should_save:
            control.should_save = self.size <= _DISK * shutil.disk_usage(args.output_dir).free
        if control.should_save:
            self.saved = time.monotonic()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        made = Path(args.output_dir, f"checkpoint-{state.global_step}")
        for file in made.iterdir():
            flush(file)
        (made / _WHOLE).touch()
        for path in set(made.parent.glob("checkpoint-*")) - {made}:
            shutil.rmtree(path)
        took, self.saved = time.monotonic() - self.saved, time.monotonic()
        self.between = min(max(self.save_seconds, took / _WRITING), _SELDOM * self.save_seconds)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:  # noqa: ARG002
        if "loss" in logs and not math.isfinite(logs["loss"]):
            raise TrainingError(f"loss is {logs['loss']} at step {state.global_step}; lower lr={self.lr:g}")


def _bytes_of_checkpoint(model: Any) -> int:
    """Weights that are trained and Adam's two moments of each, float32."""
    return 12 * sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


class _ChunkedTrainer(Trainer):
    """A Trainer with our bf16 autocast, and with the loss computed in chunks where the model allows it.

    accelerate's autocast would copy all logits of a batch to float32 once more on their way out of the model.
    """

    def __init__(self, model: Any, product_dtype: torch.dtype, **options: Any):
        super().__init__(model, **options)
        # Adapters live inside the modules, so the plain model under them computes the same.
        plain = model.get_base_model() if hasattr(model, "get_base_model") else model
        parts = trunk_and_head(plain)
        self.parts = parts if parts is not None and _has_plain_loss(plain, *parts) else None
        self.product_dtype = product_dtype

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, *more: Any, **kwargs: Any) -> Any:
        ids = inputs["input_ids"]
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self.product_dtype is torch.bfloat16):
            # A wrapped model (several GPUs) must be called whole.
            if self.parts is None or return_outputs or model is not self.model:
                return super().compute_loss(model, inputs, return_outputs, *more, **kwargs)
            return next_token_loss(*self.parts, ids, self.product_dtype)

    def floating_point_ops(self, inputs: Any) -> int:  # noqa: ARG002 (counting parameters takes time every step)
        return 0


def _has_plain_loss(model: Any, trunk: torch.nn.Module, head: torch.nn.Linear) -> bool:
    """Whether the loss of a model's own is the cross-entropy alone: that of experts may hold a term that balances them,
    where the configuration asks for it (`output_router_logits`)."""
    ids = torch.arange(8, device=head.weight.device).remainder(head.out_features)[None]
    with evaluating(model), torch.no_grad(), torch.autocast(head.weight.device.type, enabled=False):
        own = model(input_ids=ids, labels=ids, use_cache=False).loss
        ours = next_token_loss(trunk, head, ids, head.weight.dtype)
    return own is None or bool(torch.isclose(own.float(), ours, rtol=1e-3))


def _arguments(
    config: TrainingConfig, steps: int, lr: float, seed: int, folder: Path, on_cpu: bool
) -> TrainingArguments:
    return TrainingArguments(
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
        report_to="none",
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=not on_cpu,
        remove_unused_columns=False,
    )


def _with_adapters(model: PreTrainedModel, lora: LoraConfig) -> Any:
    import peft

    modules = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    adapters = peft.LoraConfig(r=lora.r, lora_alpha=lora.alpha, target_modules=modules, task_type="CAUSAL_LM")  # type: ignore[arg-type]
    try:
        wrapped = peft.get_peft_model(model, adapters)
    except ValueError as error:
        raise ValueError(f"lora.target_modules={lora.target_modules!r}: {str(error).splitlines()[0]}") from error
    # With a name, peft queries the hub about the base model at every checkpoint.
    wrapped.peft_config["default"].base_model_name_or_path = ""
    return wrapped


@contextmanager
def _fast_attention(model: PreTrainedModel, config: TrainingConfig) -> Iterator[None]:
    """On a CPU and for short contexts, plain matrix products: torch's fused attention is slow backwards there."""
    heads = getattr(model.config, "num_attention_heads", 1)
    scores = config.batch_size * heads * config.context_size**2
    before = str(getattr(model.config, "_attn_implementation", None))
    on_cpu = next(model.parameters()).device.type == "cpu"
    if not (on_cpu and before == "sdpa" and config.context_size <= 512 and scores <= _EAGER_SCORES):
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def newest_checkpoint(folder: Path) -> Path | None:
    """The last whole checkpoint in `folder`; those that a kill cut short are deleted on the way."""
    whole = []
    for path in folder.glob("checkpoint-*"):
        if (path / _WHOLE).exists():
            whole.append(path)
        else:
            shutil.rmtree(path, ignore_errors=True)
    return max(whole, key=lambda path: int(path.name.partition("-")[2]), default=None)


def _claim(folder: Path, settings: Mapping[str, object]) -> None:
    """Record in `folder` which run its checkpoints belong to; ValueError, by key, for those of another run."""
    folder.mkdir(parents=True, exist_ok=True)
    note, now = folder / "run.json", json.loads(json.dumps(dict(settings)))
    try:
        before = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # nothing says whose the checkpoints are: they are not trusted
        before = {}
        for path in folder.glob("checkpoint-*"):
            shutil.rmtree(path, ignore_errors=True)
    if before != now and newest_checkpoint(folder) is not None:
        differ = ", ".join(key for key in now if before.get(key) != now[key])
        raise ValueError(f"{folder} holds checkpoints of another run ({differ} differ); delete it or take another")
    write_json(note, now)
