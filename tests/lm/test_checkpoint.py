"""Model folders as people have them: each is read right, or refused with what is wrong and what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import tiny
from heredity.lm.checkpoint import INDEX, ModelError, located
from heredity.lm.load import load_model, quiet, save_model, state_hash

WEIGHT = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Two layers in one file."""
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    save_model(tiny.tiny_model(layers=2, d_model=16), None, folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def sharded(folder: Path) -> Path:
    load_model(folder).save_pretrained(folder / "shards", max_shard_size="20KB")
    return folder / "shards"


def index(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    table = json.loads((folder / INDEX).read_text())
    change(table["weight_map"])
    (folder / INDEX).write_text(json.dumps(table))


def rewritten(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def refused(path: Path | str, words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        load_model(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_shards_half_precision_and_old_buffers_are_read_as_they_are(folder: Path, saved: Path):
    state = state_hash(load_model(saved).state_dict())
    shards = sharded(folder)
    assert len(list(shards.glob("*.safetensors"))) > 2 and state_hash(load_model(shards).state_dict()) == state
    load_model(saved).to(torch.float16).save_pretrained(folder / "half")
    half = load_model(folder / "half")
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.lm_head.weight, load_model(saved).lm_head.weight, rtol=1e-3, atol=1e-4)
    rewritten(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}))
    assert state_hash(load_model(folder).state_dict()) == state


def test_two_sets_of_weights_and_an_index_that_lies_are_refused(folder: Path):
    shards = sharded(folder)
    files = sorted(file.name for file in shards.glob("*.safetensors"))
    shutil.copy(folder / "model.safetensors", shards)
    refused(shards, f"holds two sets of weights, model.safetensors and the shards .*{files[0]}")
    (shards / "model.safetensors").unlink()
    left = shards / "model-00001-of-00099.safetensors"
    shutil.copy(shards / files[0], left)
    refused(shards, "holds two sets of weights, model-00001-of-00099")
    left.unlink()
    owner = json.loads((shards / INDEX).read_text())["weight_map"][WEIGHT]
    other = next(file for file in files if file != owner)
    index(shards, lambda table: table.update({WEIGHT: other}))
    refused(shards, f"says that tensor {WEIGHT} is in {other}, and it is in {owner}")
    index(shards, lambda table: table.pop(WEIGHT))
    refused(shards, f"{owner} holds tensor {WEIGHT}, which {INDEX} does not name")
    index(shards, lambda table: table.update({WEIGHT: owner}))
    tensors = load_file(shards / other)
    save_file(tensors | {WEIGHT: torch.zeros(2)}, shards / other, metadata={"format": "pt"})
    refused(shards, f"tensor {WEIGHT} is in .* and in .*only one can be the model's")
    (shards / other).unlink()
    refused(shards, f"{other}, which {INDEX} names, is missing")
    (shards / INDEX).unlink()
    refused(shards, "index.json is missing")


def test_wrappers_empty_tensors_and_codes_without_their_scale_are_named(folder: Path, saved: Path):
    for prefix, word in {
        "_orig_mod.": "torch.compile",
        "module.": "DDP",
        "base_model.model.": "merge_and_unload",
    }.items():
        rewritten(
            folder, lambda held, prefix=prefix: [held.update({prefix + name: held.pop(name)}) for name in [*held]]
        )
        refused(folder, f"21 of 21 tensors begin with '{prefix}' .*{word}")
        shutil.copy(saved / "model.safetensors", folder)
    rewritten(folder, lambda held: held.update({WEIGHT: torch.empty(0)}))
    refused(folder, rf"tensor {WEIGHT} is empty \[0\], as ZeRO-3 leaves it")
    rewritten(folder, lambda held: held.update({WEIGHT: torch.ones(16, 48).to(torch.float8_e4m3fn)}))
    refused(folder, f"{WEIGHT} is of type F8_E4M3, and config.json has no quantization_config")


def test_config_and_weights_that_disagree_are_refused_by_tensor(folder: Path):
    rewritten(folder, lambda held: held.update({WEIGHT: torch.ones(16, 40)}))
    refused(folder, rf"tensor {WEIGHT} is \[16, 40\] in its weights and \[16, 48\] by config.json")
    rewritten(
        folder, lambda held: held.update({WEIGHT: torch.ones(16, 48), "v_head.summary.weight": torch.ones(1, 16)})
    )
    refused(folder, "1 tensors of its weights have no place in MistralForCausalLM, v_head.summary.weight first")


def test_pointers_and_broken_links_are_named_as_what_they_are(folder: Path):
    file = folder / "model.safetensors"
    file.rename(folder / "kept")
    file.symlink_to("../blobs/none")
    refused(folder, r"model.safetensors is a broken link .*the download is incomplete")
    file.unlink()
    for name in ("model.safetensors", "config.json"):
        (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
        refused(folder, r"(model.safetensors|config.json) is a pointer of git-lfs.*git lfs pull")


def test_a_folder_one_level_too_high_is_refused_with_the_one_to_give(folder: Path, tmp_path: Path, monkeypatch):
    output = tmp_path / "output"
    for step in (90, 500):
        shutil.copytree(folder, output / f"checkpoint-{step}")
    refused(output, f"in 2 of its folders; give the one that is meant, such as {output}/checkpoint-500")
    repository = tmp_path / "models--a--b"
    snapshot = Path(shutil.copytree(folder, repository / "snapshots" / "c0ffee"))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c0ffee")
    refused(repository, f"the hub cache's folder of a repository; give the snapshot in it, {snapshot}")
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    refused("org/name", "stands in the way of the hub id")


def test_a_gguf_file_is_meant_by_its_own_name(tmp_path: Path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(40))
    refused(tmp_path, f"give the GGUF file itself, such as {tmp_path}/x.gguf")
    refused(tmp_path / "x.gguf", "x.gguf: cannot read its config")


def test_a_hub_id_is_one_snapshot_and_its_commit(folder: Path, tmp_path: Path, monkeypatch):
    import huggingface_hub.constants

    commit = "c" * 40
    repository = tmp_path / "hub" / "models--org--name"
    snapshot = Path(shutil.copytree(folder, repository / "snapshots" / commit))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert located("org/name").commit == commit and located(f"org/name@{commit}").folder == snapshot
    assert load_model("org/name").num_parameters() > 0
    (snapshot / "model.safetensors").unlink()
    refused("org/name", "its download is incomplete")
    refused(f"org/name@{'d' * 40}", "at revision d+")


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_is_merged_exactly(folder: Path, tmp_path: Path, dora: bool):
    import peft

    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, lora_alpha=8, target_modules="all-linear", use_dora=dora, task_type="CAUSAL_LM")
    with quiet():
        adapted = peft.get_peft_model(load_model(folder), config)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.copy_(0.1 * torch.randn_like(weight))
    adapted.save_pretrained(tmp_path / "adapter")
    ids = torch.arange(12)[None]
    with torch.no_grad():
        expected = adapted.eval()(ids).logits
        found = load_model(tmp_path / "adapter")
        torch.testing.assert_close(found(ids).logits, expected, rtol=1e-4, atol=1e-5)
    assert type(found) is type(load_model(folder))
    assert not torch.allclose(load_model(folder)(ids).logits, expected, atol=1e-3)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[0]
    save_file({key: value for key, value in tensors.items() if key != name}, file)
    refused(tmp_path / "adapter", f"tensor {name} of the adapter is missing from its weights")
    shutil.copy(folder / "model.safetensors", tmp_path / "adapter")
    refused(tmp_path / "adapter", "holds a whole model .* and an adapter .* side by side")


def test_a_multimodal_model_is_read_as_the_decoder_in_it(tmp_path: Path):
    text = dict(vocab_size=61, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4)
    vision = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28)
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision | {"patch_size": 14}, mm_tokens_per_image=4
    )
    made = transformers.Gemma3ForConditionalGeneration(config)
    made.save_pretrained(tmp_path)
    assert state_hash(load_model(tmp_path).state_dict()) == state_hash(made.state_dict())
    written = json.loads((tmp_path / "config.json").read_text())
    seen = written["vision_config"] | {"num_hidden_layers": 2**31}
    (tmp_path / "config.json").write_text(json.dumps(written | {"vision_config": seen}))
    refused(tmp_path, r"config.json: vision_config.num_hidden_layers is 2,147,483,648, and must be at most 10,000")


def test_a_reward_model_is_read_where_no_logits_are_needed(folder: Path, tmp_path: Path):
    config = transformers.AutoConfig.from_pretrained(folder, num_labels=1, pad_token_id=0)
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "reward")
    refused(tmp_path / "reward", "gives scores, and no next-token logits can be read; compare it by `heredity track`")
    assert load_model(tmp_path / "reward", scores=True).score.out_features == 1
