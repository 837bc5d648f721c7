from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from heredity.lm.load import ModelError, load_model, mistral_config, new_model, quiet, save_model, state_hash
from heredity.study import ArchitectureConfig

ARCHITECTURE = ArchitectureConfig(d_model=32, d_mlp=48, n_layers=2, n_heads=4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(new_model(mistral_config(ARCHITECTURE, 97, 64, 0), 0), None, tmp_path / "model")
    return tmp_path / "model"


def refused(path: Path | str, **options: object) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(path, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_default_architecture_is_the_one_of_the_paper():
    config = mistral_config(ArchitectureConfig(), 32_000, 2048, 2)
    with torch.device("meta"):
        model = transformers.MistralForCausalLM(config)
    assert model.num_parameters() == 35_128_832
    assert (config.num_key_value_heads, config.head_dim, config.rms_norm_eps) == (8, 32, 1e-6)
    assert config.rope_parameters["rope_theta"] == 10_000
    assert not config.tie_word_embeddings


def test_new_model_follows_from_its_seed_and_leaves_the_random_state_alone():
    config = mistral_config(ARCHITECTURE, 97, 64, 0)
    before = torch.random.get_rng_state()
    first, again, other = (new_model(config, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert state_hash(first.state_dict()) == state_hash(again.state_dict()) != state_hash(other.state_dict())
    assert {p.dtype for p in first.parameters()} == {torch.float32}
    embedding = first.get_input_embeddings()
    assert embedding.padding_idx is None and bool(embedding.weight[0].abs().sum() > 0), "the end token is no padding"


def test_saved_model_loads_to_the_same_weights_and_nothing_is_printed(folder: Path, capfd: pytest.CaptureFixture[str]):
    model = load_model(folder)
    assert not model.training
    assert state_hash(model.state_dict()) == state_hash(load_file(folder / "model.safetensors"))
    assert load_model(str(folder), dtype=torch.bfloat16).dtype == torch.bfloat16
    assert capfd.readouterr() == ("", "")
    assert list(folder.glob("*.safetensors")) and not list(folder.glob("*.bin"))


def test_tied_embeddings_are_saved_once_and_stay_tied(tmp_path: Path):
    tied = ARCHITECTURE.model_copy(update={"tie_embeddings": True})
    save_model(new_model(mistral_config(tied, 97, 64, 0), 0), None, tmp_path)
    model = load_model(tmp_path)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")


def test_hash_does_not_depend_on_order_and_sees_name_type_shape_and_bytes():
    a, b = torch.arange(6.0), torch.ones(2, 3)
    base = state_hash({"a": a, "b": b})
    assert base == state_hash({"b": b, "a": a})
    assert base == state_hash({"a": a, "b": b.T.contiguous().T})  # memory layout is not content
    others = [{"a": other, "b": b} for other in (a.int(), a.view(2, 3), a + 1, a.bfloat16())]
    assert len({base, *map(state_hash, [*others, {"a": a, "c": b}])}) == 6


def test_a_missing_folder_and_one_without_config_are_refused(tmp_path: Path):
    message = "no such folder; give a folder with config.json and *.safetensors, or a hub id"
    assert refused(tmp_path / "nowhere") == f"{tmp_path / 'nowhere'}: {message}"
    assert "no such folder" in refused("./models/mine")
    assert "no config.json there" in refused(tmp_path)


def test_pickled_incomplete_damaged_and_missing_weights_are_refused(folder: Path):
    file, tensors = folder / "model.safetensors", load_file(folder / "model.safetensors")
    first = tensors.pop("model.layers.1.mlp.down_proj.weight")
    save_file(tensors, file, metadata={"format": "pt"})
    assert "1 tensors are missing from its weights, model.layers.1.mlp.down_proj.weight first" in refused(folder)
    file.write_bytes(file.read_bytes()[:-100])
    assert "safetensors are damaged" in refused(folder)
    pickled = file.rename(folder / "pytorch_model.bin")
    assert "its weights are pickled (pytorch_model.bin)" in refused(folder)
    pickled.unlink()
    assert "no *.safetensors there" in refused(folder)
    (folder / "config.json").write_text("{")
    save_file({"first": first}, file)
    assert "cannot read its config" in refused(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]},
        {"model_type": "bert", "architectures": ["BertForMaskedLM"]},
        {"model_type": "vit", "architectures": ["ViTModel"]},
        {"architectures": ["MistralForSequenceClassification"]},
    ],
)
def test_models_that_are_no_decoders_are_refused(folder: Path, change: dict[str, object]):
    config = {**json.loads((folder / "config.json").read_text()), **change}
    (folder / "config.json").write_text(json.dumps(config))
    assert f"{change['architectures'][0]} is not a decoder" in refused(folder)  # type: ignore[index]


def test_unreachable_hub_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    message = refused("someone/some-model", revision="abc")
    assert message.startswith("someone/some-model: cannot read its config: neither a local folder nor a hub repository")
    assert "at revision abc" in message and "check the name and the network" in message


def test_quiet_puts_log_levels_filters_and_progress_bars_back():
    from transformers.utils import logging as hf_logging

    logger, bars, filters = logging.getLogger("transformers"), hf_logging.is_progress_bar_enabled(), warnings.filters[:]
    level = logger.level
    with pytest.raises(RuntimeError), quiet():
        assert logger.level == logging.CRITICAL and not hf_logging.is_progress_bar_enabled()
        warnings.warn("not heard", stacklevel=1)
        raise RuntimeError
    assert (logger.level, hf_logging.is_progress_bar_enabled(), warnings.filters) == (level, bars, filters)
