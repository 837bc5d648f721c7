from __future__ import annotations

import copy
import warnings
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from heredity.lm.hooks import BLOCK_NAMES, HookPointError, capture, replaced, resolve, width
from heredity.lm.trace import shape_at

transformers = pytest.importorskip("transformers")

VOCAB, LAYERS = 61, 3
SMALL = dict(vocab_size=VOCAB, hidden_size=24, intermediate_size=40, num_hidden_layers=LAYERS, num_attention_heads=4)
SMALL |= dict(num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=0)
HEAD = SMALL | {"head_dim": 8}  # heads * head_dim differs from d_model
NEOX = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
GPT2 = dict(vocab_size=VOCAB, n_embd=24, n_layer=LAYERS, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0)

CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "mistral": lambda: transformers.MistralConfig(**HEAD),
    "qwen2": lambda: transformers.Qwen2Config(**SMALL),
    "qwen3": lambda: transformers.Qwen3Config(**HEAD),
    "gemma2": lambda: transformers.Gemma2Config(**HEAD, pad_token_id=None),
    "gemma3": lambda: transformers.Gemma3TextConfig(**HEAD, pad_token_id=None),
    "gpt2": lambda: transformers.GPT2Config(**GPT2),
    "gpt2_inner": lambda: transformers.GPT2Config(**GPT2, n_inner=56),
    "neox": lambda: transformers.GPTNeoXConfig(**NEOX),
    "neox_serial": lambda: transformers.GPTNeoXConfig(**NEOX, use_parallel_residual=False),
}
each_family = pytest.mark.parametrize("family", sorted(CONFIGS))
POST = "blocks.0.hook_resid_post"


@cache
def made(family: str) -> nn.Module:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(CONFIGS[family]()).eval()


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, VOCAB, (2, 9), generator=torch.Generator().manual_seed(1))


def names(family: str) -> list[str]:
    return [name for name in BLOCK_NAMES if not (family == "neox" and name == "hook_resid_mid")]


def layers_of(model: nn.Module) -> nn.ModuleList:
    trunk = model.base_model
    return trunk.h if hasattr(trunk, "h") else trunk.layers


def part(module: nn.Module, *names: str) -> nn.Module:
    """The first of these submodules that there is."""
    return next(getattr(module, name) for name in names if hasattr(module, name))


def hooks_on(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@each_family
def test_residual_stream_is_the_hidden_states_and_the_sum_of_what_is_added_to_it(family: str, ids: torch.Tensor):
    model = made(family)
    with torch.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states
    for layer in range(LAYERS):
        torch.testing.assert_close(capture(model, f"blocks.{layer}.hook_resid_pre", ids), states[layer])
    for layer in range(LAYERS - 1):  # the last hidden state of a model is after the final norm
        torch.testing.assert_close(capture(model, f"blocks.{layer}.hook_resid_post", ids), states[layer + 1])
    attn, mlp = (capture(model, f"blocks.1.{name}", ids) for name in ("hook_attn_out", "hook_mlp_out"))
    torch.testing.assert_close(states[2], states[1] + attn + mlp, rtol=1e-4, atol=1e-5)
    if "hook_resid_mid" in names(family):
        middle = capture(model, "blocks.1.hook_resid_mid", ids)
        torch.testing.assert_close(middle, states[1] + attn, rtol=1e-4, atol=1e-5)


@each_family
def test_hook_post_is_the_activation_of_hook_pre_times_the_gated_value(family: str, ids: torch.Tensor):
    model = made(family)
    mlp = layers_of(model)[1].mlp
    stack = next(name for name, module in model.named_modules() if module is layers_of(model))
    pre, post = (capture(model, f"blocks.1.mlp.{name}", ids) for name in ("hook_pre", "hook_post"))
    entering, act = capture(model, f"{stack}.1.mlp:input", ids), part(mlp, "act_fn", "act")
    with torch.no_grad():
        expected = part(mlp, "gate_proj", "c_fc", "dense_h_to_4h")(entering)
        torch.testing.assert_close(pre, expected)
        torch.testing.assert_close(post, act(pre) * (mlp.up_proj(entering) if hasattr(mlp, "up_proj") else 1))


@each_family
def test_projected_hook_z_is_what_attention_gives(family: str, ids: torch.Tensor):
    model = made(family)
    block = layers_of(model)[2]
    project = part(part(block, "self_attn", "attn", "attention"), "o_proj", "c_proj", "dense")
    out = project(capture(model, "blocks.2.attn.hook_z", ids))
    if family in ("gemma2", "gemma3"):
        out = block.post_attention_layernorm(out)
    torch.testing.assert_close(out.detach(), capture(model, "blocks.2.hook_attn_out", ids))


@each_family
def test_width_equals_the_width_of_what_is_captured(family: str, ids: torch.Tensor):
    model = made(family)
    for name in ["hook_embed", *(f"blocks.2.{name}" for name in names(family))]:
        got = capture(model, name, ids)
        assert got.shape == (2, 9, width(model.config, name)), name
        # A study reads the file of a model it has not loaded, with the names that the family gives its sizes there.
        assert width(SimpleNamespace(**model.config.to_dict()), name) == got.shape[2], name
        assert got.dtype == torch.float32 and not got.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(capture(model, "hook_embed", ids), model.get_input_embeddings()(ids))


@each_family
def test_forward_stops_at_the_hook_point(family: str, ids: torch.Tensor):
    model = copy.deepcopy(made(family))
    calls: list[str] = []
    for i, module in enumerate([*layers_of(model), model.get_output_embeddings()]):
        module.register_forward_pre_hook(lambda _m, _a, name=f"layer{i}": calls.append(name))
    capture(model, "blocks.1.mlp.hook_post", ids)
    assert calls == ["layer0", "layer1"]
    capture(model, "hook_embed", ids)
    assert calls == ["layer0", "layer1"]


@each_family
def test_replacing_a_value_by_itself_changes_nothing_and_zeroing_it_does(family: str, ids: torch.Tensor):
    model = made(family)
    before = hooks_on(model)
    with torch.no_grad():
        clean = model(ids).logits
        for name in ["hook_embed", *(f"blocks.1.{name}" for name in names(family))]:
            with replaced(model, name, lambda x: x.clone()):
                torch.testing.assert_close(model(ids).logits, clean)
            with replaced(model, name, torch.zeros_like):
                assert not torch.allclose(model(ids).logits, clean), name
    assert hooks_on(model) == before


def test_zeroing_the_mlp_output_equals_a_model_whose_down_projection_is_zero(ids: torch.Tensor):
    model = made("mistral")
    with torch.no_grad(), replaced(model, "blocks.1.hook_mlp_out", torch.zeros_like):
        spliced = model(ids).logits
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.layers[1].mlp.down_proj.weight.zero_()
        torch.testing.assert_close(spliced, other(ids).logits)


def test_capture_sees_what_replaced_put_upstream(ids: torch.Tensor):
    model, next_block = made("llama"), "blocks.1.hook_resid_pre"
    with replaced(model, POST, lambda x: x + 1):
        shifted = capture(model, next_block, ids)
    torch.testing.assert_close(shifted, capture(model, next_block, ids) + 1)


def test_gradients_flow_through_a_replacement(ids: torch.Tensor):
    model = made("qwen3")
    shift = torch.zeros(24, requires_grad=True)
    with replaced(model, POST, lambda x: x + shift):
        model(ids).logits.sum().backward()
    assert shift.grad is not None and bool(shift.grad.abs().sum() > 0)
    model.zero_grad()


def test_hooks_are_gone_after_an_exception(ids: torch.Tensor):
    model = made("llama")
    before = hooks_on(model)

    def fail(_x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"), replaced(model, "blocks.1.mlp.hook_post", fail):
        model(ids)
    with pytest.raises(IndexError):
        capture(model, "blocks.1.mlp.hook_post", torch.full((1, 4), VOCAB + 5))
    assert hooks_on(model) == before
    assert capture(model, "blocks.1.mlp.hook_post", ids).shape == (2, 9, 40)


def test_a_replacement_of_another_shape_is_refused(ids: torch.Tensor):
    model, message = made("llama"), r"shape \[2, 9, 23\]; it must be \[2, 9, 24\]"
    with pytest.raises(ValueError, match=message), replaced(model, POST, lambda x: x[..., :-1]):
        model(ids)


@pytest.mark.parametrize("family", ["mistral", "gpt2"])
def test_capture_under_bf16_autocast_is_float32_and_close(family: str, ids: torch.Tensor):
    model = made(family)
    exact = capture(model, "blocks.1.mlp.hook_post", ids)
    with torch.autocast("cpu", torch.bfloat16):
        rough = capture(model, "blocks.1.mlp.hook_post", ids)
        with replaced(model, "blocks.1.mlp.hook_post", lambda x: x.float() * 0):
            assert torch.isfinite(model(ids).logits).all()
    half = copy.deepcopy(model).to(torch.bfloat16)
    assert rough.dtype == capture(half, POST, ids).dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.1, atol=0.02)
    assert not torch.equal(rough, exact)


def test_capture_turns_dropout_off_and_puts_the_mode_back(ids: torch.Tensor):
    model = copy.deepcopy(made("gpt2")).train()
    torch.testing.assert_close(capture(model, POST, ids), capture(made("gpt2"), POST, ids))
    assert model.training and not made("gpt2").training


def test_any_module_is_reached_by_its_path(ids: torch.Tensor):
    model = made("mistral")
    named = capture(model, "blocks.1.mlp.hook_post", ids)
    torch.testing.assert_close(capture(model, "model.layers.1.mlp.down_proj:input", ids), named)
    assert resolve(model, "model.norm:output") == (model.model.norm, "output")
    assert width(model.config, "model.norm:output") is None
    with torch.no_grad():
        logits = model(ids).logits
    torch.testing.assert_close(capture(model, "lm_head:output", ids), logits)


def test_inputs_passed_by_keyword_and_models_without_a_head_are_captured(ids: torch.Tensor):
    model, norm = made("llama"), "model.layers.0.input_layernorm:output"
    torch.testing.assert_close(capture(model, "model.layers.0.self_attn:input", ids), capture(model, norm, ids))
    torch.testing.assert_close(capture(model.model, POST, ids), capture(model, POST, ids))


BOTH = (resolve, lambda model, name: width(model.config, name))


@pytest.mark.parametrize(
    ("family", "calls", "name", "message"),
    [
        ("llama", BOTH, "blocks.0.mlp.hook_pots", r"'blocks.0.mlp.hook_pots' is unknown.*blocks.L.mlp.hook_post"),
        ("llama", BOTH, "blocks.3.hook_resid_pre", r"layer 3 is out of range, the model has 3 \(blocks.0 to blocks.2"),
        ("llama", BOTH, "model.norm:out", "write ':input' or ':output'"),
        ("neox", BOTH, "blocks.0.hook_resid_mid", "valid names: blocks.0.hook_resid_pre, blocks.0.hook_resid_post"),
        ("llama", [resolve], "model.layer.0.mlp:output", "no module 'model.layer.0.mlp'; did you mean model.layers.0"),
    ],
)
def test_unknown_names_and_places_the_family_lacks_list_the_valid_ones(family, calls, name, message):
    for call in calls:
        with pytest.raises(HookPointError, match=message):
            call(made(family), name)


def test_a_module_without_layers_is_refused():
    with pytest.raises(HookPointError, match="no decoder layers found in Linear"):
        resolve(nn.Linear(2, 2), POST)
    with pytest.raises(HookPointError, match="has none of hidden_size, n_embd.*name the place"):
        width(object(), POST)


def test_a_module_the_forward_pass_never_calls_is_reported(ids: torch.Tensor):
    model = copy.deepcopy(made("llama"))
    model.spare = nn.Linear(2, 2)
    with pytest.raises(HookPointError, match="never reaches it"):
        capture(model, "spare:output", ids)


def test_width_reads_the_text_part_of_a_multimodal_configuration():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        vision = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28)
        text = transformers.Gemma3TextConfig(**HEAD)
        config = transformers.Gemma3Config(text_config=text, vision_config=vision | {"patch_size": 14})
    assert width(config, "blocks.0.mlp.hook_post") == 40
    assert shape_at(config, "model.language_model.layers.1:output") == [2, 5, 24]


# -- families whose blocks are not laid out as their names say ------------------------------------------------------

EXPERTS = dict(num_local_experts=4, num_experts_per_tok=2)
GLM4 = HEAD | {"pad_token_id": None}
GEMMA3N = HEAD | dict(intermediate_size=[40] * 3, hidden_size_per_layer_input=4, vocab_size_per_layer_input=VOCAB)
GEMMA3N |= dict(num_kv_shared_layers=0, altup_num_inputs=2, laurel_rank=4, sliding_window=16, pad_token_id=None)
GEMMA3N |= dict(layer_types=["full_attention"] * 3, activation_sparsity_pattern=[0.0] * 3)
OTHERS = {
    "glm4": lambda: transformers.Glm4Config(**GLM4),
    "opt": lambda: transformers.OPTConfig(**SMALL | dict(ffn_dim=40, word_embed_proj_dim=24, pad_token_id=0)),
    "bloom": lambda: transformers.BloomConfig(vocab_size=VOCAB, hidden_size=24, n_layer=3, n_head=4),
    "mpt": lambda: transformers.MptConfig(vocab_size=VOCAB, d_model=24, n_layers=3, n_heads=4, max_seq_len=64),
    "mamba": lambda: transformers.MambaConfig(vocab_size=VOCAB, hidden_size=24, num_hidden_layers=3, state_size=4),
    "granite": lambda: transformers.GraniteConfig(**SMALL, residual_multiplier=0.22),
    "mixtral": lambda: transformers.MixtralConfig(**SMALL, **EXPERTS),
    "gemma3n": lambda: transformers.Gemma3nTextConfig(**GEMMA3N),
}
CONFIGS_AND_OTHERS = CONFIGS | OTHERS


@cache
def other(family: str) -> nn.Module:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(OTHERS[family]()).eval()


@pytest.mark.parametrize("family", ["glm4", "opt", "mixtral"])
def test_what_attention_and_mlp_add_is_found_where_it_is_added(family: str, ids: torch.Tensor):
    model = other(family)
    with torch.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states
    attn, mlp, mid = (
        capture(model, f"blocks.1.{name}", ids) for name in ("hook_attn_out", "hook_mlp_out", "hook_resid_mid")
    )
    torch.testing.assert_close(mid, states[1] + attn, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(states[2], mid + mlp, rtol=1e-4, atol=1e-5)
    with replaced(model, "blocks.1.hook_mlp_out", torch.zeros_like), torch.no_grad():
        without = model(ids, output_hidden_states=True).hidden_states[2]
    torch.testing.assert_close(without, mid, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "name", "words"),
    [
        ("bloom", "hook_mlp_out", "BloomBlock has no such place"),
        ("mpt", "hook_mlp_out", "MptBlock has no such place"),
        ("mamba", "hook_attn_out", "MambaBlock has no such place; valid names: blocks.1.hook_resid_pre"),
        ("granite", "hook_attn_out", "GraniteDecoderLayer computes something else than stream . attention . MLP"),
        ("mixtral", "mlp.hook_post", "MixtralDecoderLayer has no such place"),
        ("gemma3n", "hook_resid_pre", r"has shape \[2, 2, 9, 24\] for 2 x 9 tokens.*several streams"),
    ],
)
def test_places_that_are_not_what_their_name_says_are_refused(family: str, name: str, words: str, ids: torch.Tensor):
    with pytest.raises(HookPointError, match=words):
        capture(other(family), f"blocks.1.{name}", ids)
    with pytest.raises(HookPointError, match=words), replaced(other(family), f"blocks.1.{name}", torch.zeros_like):
        other(family)(ids)


class Experts(nn.Module):
    """A decoder's layer that hands tokens on without their places: in order, sorted, and only some."""

    def __init__(self):
        super().__init__()
        self.embedding, self.flat, self.expert, self.some = nn.Embedding(VOCAB, 6), *(nn.Linear(6, 6) for _ in range(3))

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.flat(self.embedding(ids).flatten(0, 1))
        return self.some(self.expert(x.flip(0))[:5])


def test_tokens_in_one_row_are_put_back_where_that_is_certain(ids: torch.Tensor):
    model = Experts()
    flat = capture(model, "flat:output", ids)
    torch.testing.assert_close(flat, model.flat(model.embedding(ids)).detach())
    with replaced(model, "flat:output", lambda x: x.new_zeros(2, 9, 6)):
        torch.testing.assert_close(model(ids), model.some(model.expert(torch.zeros(5, 6))))
    for place, words in {
        "expert:output": "another order, or not all",
        "some:input": r"\[5, 6\] for 2 x 9 tokens",
    }.items():
        with pytest.raises(HookPointError, match=words):
            capture(model, place, ids)


@pytest.mark.parametrize("family", sorted(CONFIGS_AND_OTHERS))
def test_the_shape_at_a_place_is_known_without_weights(family: str, ids: torch.Tensor):
    config = CONFIGS_AND_OTHERS[family]()
    for name in ("hook_resid_post", "hook_attn_out", "mlp.hook_post"):
        model = other(family) if family in OTHERS else made(family)
        try:
            expected = [2, 5, capture(model, f"blocks.1.{name}", ids).shape[2]]
        except HookPointError:
            continue
        assert shape_at(config, f"blocks.1.{name}") == expected, name
    if family == "gemma3n":
        with pytest.raises(HookPointError, match=r"\[2, 2, 5, 24\]"):
            shape_at(config, "blocks.1.hook_resid_post")
