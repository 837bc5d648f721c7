from __future__ import annotations

import logging
import os
import random
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from heredity.kernels.processors import keep_large_buffers
from heredity.lm import train
from heredity.lm.evaluate import evaluate, trunk_and_head
from heredity.lm.load import mistral_config, new_model, state_hash
from heredity.lm.train import TrainingError, TrainingRecord, newest_checkpoint, train_model
from heredity.study import ArchitectureConfig, LoraConfig, TrainingConfig

VOCAB, CONTEXT, BATCH, STEPS = 64, 16, 4, 12
CONFIG = TrainingConfig(batch_size=BATCH, context_size=CONTEXT)
TOKENS = STEPS * BATCH * CONTEXT
LORA = LoraConfig(r=2, alpha=4.0)


class Sampler:
    """Stands in for the sampler of the data room: blocks of counting tokens, a function of their position."""

    blocks_per_pass = 40
    context_size = CONTEXT

    def __init__(self, shift: int = 0) -> None:
        self.shift = shift
        self.read: list[tuple[int, int]] = []

    def take(self, start: int, stop: int) -> np.ndarray:
        self.read.append((start, stop))
        positions = np.arange(start, stop) % self.blocks_per_pass
        return (7 * positions[:, None] + np.arange(CONTEXT)[None]) % VOCAB + self.shift


class Killed(Exception):
    pass


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def mistral(seed: int = 0) -> transformers.PreTrainedModel:
    architecture = ArchitectureConfig(d_model=32, d_mlp=48, n_layers=1, n_heads=4)
    return new_model(mistral_config(architecture, VOCAB, 64, 0), seed)


def gpt2() -> transformers.PreTrainedModel:
    config = transformers.GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=1, n_head=4, n_positions=64, bos_token_id=0)
    assert config.resid_pdrop == 0.1  # dropout draws random numbers, which a resumed run must draw again
    return new_model(config, 0)


def run(model: transformers.PreTrainedModel, folder: Path, **changes: object) -> TrainingRecord:
    arguments = {"blocks": Sampler(), "config": CONFIG, "total_tokens": TOKENS, "lr": 1e-2, "seed": 3, "lora": None}
    return train_model(model, folder=folder, **{**arguments, **changes})  # type: ignore[arg-type]


def killed_after(step: int):
    def progress(done: int, total: int) -> None:
        if done >= total * step // STEPS:
            raise Killed

    return progress


def test_training_lowers_the_loss_reports_it_and_keeps_one_checkpoint(tmp_path: Path):
    model, calls, tokens = mistral(), [], 60 * BATCH * CONTEXT
    blocks = Sampler().take(0, 40)
    before = evaluate(model, blocks).ce_loss
    record = run(model, tmp_path, total_tokens=tokens, progress=lambda *call: calls.append(call), save_seconds=0)
    assert evaluate(model, blocks).ce_loss < before / 3
    assert (record.steps, record.tokens) == (60, tokens)
    assert [step for step, _ in record.losses] == list(range(1, 61))
    assert record.losses[0][1] == pytest.approx(before, rel=0.02)
    assert calls[-1] == (tokens, tokens) and calls == sorted(calls)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-60", "run.json"]


def test_blocks_are_read_once_in_order_and_the_last_batch_may_be_short(tmp_path: Path):
    sampler = Sampler()
    record = run(mistral(), tmp_path, blocks=sampler, total_tokens=9 * CONTEXT + 1)
    assert sampler.read == [(0, 1), (0, 4), (4, 8), (8, 10)]
    assert (record.steps, record.tokens) == (3, 10 * CONTEXT)


def test_equals_a_plain_torch_loop_in_float32(tmp_path: Path):
    config = CONFIG.model_copy(update={"precision": "float32", "warmup_steps": 2})
    ours, plain = mistral(), mistral()
    run(ours, tmp_path, config=config)
    decayed = [p for p in plain.parameters() if p.ndim > 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": [p for p in plain.parameters() if p.ndim < 2]}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.0)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, 2, STEPS)
    for step in range(STEPS):
        ids = torch.from_numpy(Sampler().take(step * BATCH, (step + 1) * BATCH))
        plain(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    for (name, a), b in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=name)


def test_model_whose_logits_are_no_plain_product_is_trained_by_its_own_loss(tmp_path: Path):
    small = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, head_dim=8)
    small |= dict(vocab_size=VOCAB, num_key_value_heads=2, pad_token_id=None, final_logit_softcapping=2.0)
    config = transformers.Gemma2Config(**small)
    model = new_model(config, 0)
    assert trunk_and_head(model) is None
    before = evaluate(model, Sampler().take(0, 40)).ce_loss
    run(model, tmp_path)
    assert evaluate(model, Sampler().take(0, 40)).ce_loss < before


def test_lora_changes_only_the_targeted_weights_and_leaves_a_plain_model(tmp_path: Path):
    model, before = mistral(), mistral().state_dict()
    run(model, tmp_path, lora=LoraConfig(r=2, alpha=4.0, target_modules=("q_proj", "down_proj")))
    after = model.state_dict()
    assert list(after) == list(before)
    changed = {name.split(".")[-2] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"q_proj", "down_proj"}
    update = (after["model.layers.0.mlp.down_proj.weight"] - before["model.layers.0.mlp.down_proj.weight"]).double()
    assert int(torch.linalg.matrix_rank(update, rtol=1e-4)) <= 2
    assert all(p.requires_grad for p in model.parameters())
    assert not hasattr(model, "peft_config")
    model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out" / "adapter_config.json").exists()


def test_no_checkpoint_takes_more_than_a_part_of_the_free_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    weights, free = sum(weight.numel() for weight in mistral().parameters()), shutil.disk_usage(tmp_path)
    for room, checkpoints in ((40, 0), (60, 1)):
        monkeypatch.setattr("shutil.disk_usage", lambda _, room=room: free._replace(free=room * weights))
        run(mistral(), tmp_path / str(room), save_seconds=0)
        assert len(list((tmp_path / str(room)).glob("checkpoint-*"))) == checkpoints


@pytest.mark.parametrize("case", ["mistral", "lora", "gpt2"])
def test_interrupted_and_resumed_run_ends_in_identical_weights(tmp_path: Path, case: str):
    make, lora = (gpt2 if case == "gpt2" else mistral), (LORA if case == "lora" else None)
    straight, resumed = make(), make()
    expected = run(straight, tmp_path / "a", lora=lora)
    with pytest.raises(Killed):
        run(resumed, tmp_path / "b", lora=lora, progress=killed_after(7), save_seconds=0)
    assert newest_checkpoint(tmp_path / "b") is not None
    assert resumed.config.use_cache and resumed.config._attn_implementation == "sdpa"  # as before, though it failed
    resumed, sampler = make(), Sampler()
    got = run(resumed, tmp_path / "b", lora=lora, blocks=sampler)
    assert state_hash(resumed.state_dict()) == state_hash(straight.state_dict()) != state_hash(make().state_dict())
    assert got == expected
    assert min(start for start, stop in sampler.read if stop > 1) >= 5 * BATCH  # nothing is read twice


def test_half_written_checkpoint_is_not_used(tmp_path: Path):
    straight = mistral()
    run(straight, tmp_path / "a")
    folder = tmp_path / "b"
    with pytest.raises(Killed):
        run(mistral(), folder, progress=killed_after(5), save_seconds=0)
    whole = newest_checkpoint(folder)
    assert whole is not None and whole.name == "checkpoint-4"
    shutil.copytree(whole, broken := folder / "checkpoint-9", ignore=shutil.ignore_patterns("whole", "*.pt"))
    assert newest_checkpoint(folder) == whole
    assert not broken.exists()
    resumed = mistral()
    run(resumed, folder)
    assert state_hash(resumed.state_dict()) == state_hash(straight.state_dict())


def test_of_two_whole_checkpoints_the_later_is_used_and_without_one_training_starts_anew(tmp_path: Path):
    for step in (2, 10, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-2" / "whole").touch()
    (tmp_path / "checkpoint-10" / "whole").touch()
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert newest_checkpoint(tmp_path / "nowhere") is None


def test_a_finished_run_called_again_trains_no_more_and_checkpoints_of_another_are_refused(tmp_path: Path):
    first, second, sampler = mistral(), mistral(), Sampler()
    record = run(first, tmp_path)
    assert run(second, tmp_path, blocks=sampler) == record
    assert state_hash(first.state_dict()) == state_hash(second.state_dict())
    assert sampler.read == [(0, 1)]
    with pytest.raises(ValueError, match=r"checkpoints of another run \(lr differ\); delete it"):
        run(mistral(), tmp_path, lr=1e-3)
    with pytest.raises(ValueError, match=r"\(weights differ\)"):
        run(mistral(seed=1), tmp_path)


def test_nothing_is_printed_and_nothing_global_is_changed(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    from transformers.utils import logging as hf_logging

    def world() -> tuple[object, ...]:
        levels = [logging.getLogger(name).level for name in ("transformers", "accelerate", "peft", "huggingface_hub")]
        legacy, python, generator = np.random.get_state(), random.getstate(), torch.random.get_rng_state().tolist()
        drawn = (legacy[1].tolist(), legacy[2:], python, generator)  # type: ignore[union-attr]
        bars, filters = hf_logging.is_progress_bar_enabled(), warnings.filters[:]
        return levels, bars, filters, drawn, dict(os.environ), torch.get_num_threads()

    model = mistral()
    model.eval()
    before = world()
    run(model, tmp_path, lora=LORA)
    assert world() == before
    assert capfd.readouterr() == ("", "")
    assert model.config.use_cache and model.config._attn_implementation == "sdpa" and not model.training
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"total_tokens": 0}, "total_tokens=0 leaves nothing"),
        ({"blocks": Sampler(shift=1)}, "hold token 64, the model knows 64"),
        ({"lora": LoraConfig(target_modules=("query",))}, r"lora.target_modules=\('query',\)"),
    ],
)
def test_arguments_that_cannot_be_are_refused(tmp_path: Path, changes: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        run(mistral(), tmp_path, **changes)


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path: Path):
    with pytest.raises(TrainingError, match=r"loss is nan at step \d; lower lr=1e[+]30"):
        run(mistral(), tmp_path, lr=1e30)


def test_long_contexts_keep_the_fused_attention(monkeypatch: pytest.MonkeyPatch):
    model = mistral()

    def attention(**changes: int) -> str:
        with train._fast_attention(model, CONFIG.model_copy(update=changes)):
            return model.config._attn_implementation

    assert (attention(), attention(context_size=1024)) == ("eager", "sdpa")
    monkeypatch.setattr(train, "_EAGER_SCORES", 10)
    assert attention() == "sdpa"


@pytest.mark.skipif(sys.platform != "linux", reason="malloc thresholds are set on Linux only")
def test_large_buffers_are_kept_only_where_glibc_is(monkeypatch: pytest.MonkeyPatch):
    import platform

    assert keep_large_buffers() == (platform.libc_ver()[0] == "glibc")
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert keep_large_buffers() is False


def test_experts_are_balanced_where_their_config_asks_for_it(tmp_path: Path):
    shape = dict(vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    shape |= dict(num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=1, pad_token_id=None)
    losses = {}
    for asked in (False, True):
        config = transformers.MixtralConfig(**shape, output_router_logits=asked, router_aux_loss_coef=10.0)
        record = run(new_model(config, 0), tmp_path / str(asked), total_tokens=BATCH * CONTEXT)
        losses[asked] = record.losses[0][1]
    assert losses[True] > losses[False] + 5, "a balanced load of 4 experts costs at least the coefficient"
