"""Named hook points of about fifty families of decoders: is what we catch what the name says?

Every family gets a random model of three small layers. What `capture` gives is compared with what does not rest on it:
the hidden states that transformers returns, and what becomes of them when a value is replaced by zeros.

    python benchmarks/matrix_models.py [FAMILY ...] [--json FILE]

A cell is `right`, `refused` (with the reason below the table) or WRONG; the exit code is 1 where one is WRONG.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from heredity.lm.hooks import HookPointError, capture, replaced
from heredity.lm.load import quiet

NAMES = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out")
NAMES += ("mlp.hook_post", "attn.hook_z")
LAYER, VOCAB, CONTEXT = 1, 61, 9
_AFTER = ("mamba", "mamba2", "falcon_mamba", "rwkv")  # their hidden states begin behind the first layer
_SMALL = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip
_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_EXPERTS |= {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 0, "n_group": 1, "topk_group": 1}
_LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
_STATE = {"state_size": 4, "expand": 2, "conv_kernel": 4, "time_step_rank": 4}
_FULL = {"num_key_value_heads": 4}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {}, "mistral": {}, "qwen2": {}, "qwen3": {"head_dim": 8}, "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8}, "gemma3_text": {"head_dim": 8, "sliding_window": 16},
    "gemma3n_text": {
        "head_dim": 8, "intermediate_size": [48] * 3, "hidden_size_per_layer_input": 4, "num_kv_shared_layers": 0,
        "vocab_size_per_layer_input": VOCAB, "altup_num_inputs": 2, "laurel_rank": 4, "sliding_window": 16,
        "layer_types": ["sliding_attention"] * 2 + ["full_attention"], "activation_sparsity_pattern": [0.0] * 3,
    },
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64},
    "gpt_bigcode": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64},
    "gptj": {"n_embd": 32, "n_layer": 3, "n_head": 4, "rotary_dim": 4},
    "codegen": {"n_embd": 32, "n_layer": 3, "n_head": 4, "rotary_dim": 4},
    "gpt_neo": {"num_layers": 3, "num_heads": 4, "attention_types": [[["global"], 3]]},
    "gpt_neox": _FULL, "gpt_neox_japanese": {"intermediate_multiple_size": 2},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {"n_layer": 3, "n_head": 4}, "mpt": {"d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 64},
    "falcon": {"new_decoder_architecture": False, "parallel_attn": False, "num_kv_heads": 4}, "phi": _FULL,
    "phi3": {},
    "phimoe": _EXPERTS, "stablelm": {}, "starcoder2": {}, "cohere": {}, "cohere2": {"sliding_window": 16}, "olmo": {},
    "olmo2": {}, "olmo3": {"sliding_window": 16}, "olmoe": _EXPERTS, "granite": {"residual_multiplier": 0.22},
    "granitemoe": {"residual_multiplier": 0.22} | _EXPERTS, "mixtral": _EXPERTS, "qwen2_moe": _EXPERTS,
    "qwen3_moe": _EXPERTS | {"head_dim": 8},
    "qwen3_next": _EXPERTS | {
        "head_dim": 8, "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    },
    "deepseek_v2": _EXPERTS | _LATENT, "deepseek_v3": _EXPERTS | _LATENT, "glm": {"head_dim": 8},
    "glm4": {"head_dim": 8},
    "glm4_moe": _EXPERTS | {"head_dim": 8}, "gpt_oss": _EXPERTS | {"head_dim": 8, "sliding_window": 16},
    "nemotron": {}, "persimmon": _FULL, "smollm3": {}, "exaone4": {"sliding_window": 16}, "ernie4_5": {"head_dim": 8},
    "hunyuan_v1_dense": {"head_dim": 8}, "helium": {"head_dim": 8}, "arcee": {},
    "minimax": _EXPERTS | {"head_dim": 8, "layer_types": ["full_attention"] * 3},
    "mamba": _STATE, "mamba2": _STATE | {"num_heads": 4, "head_dim": 16, "n_groups": 1}, "falcon_mamba": _STATE,
    "rwkv": {"attention_hidden_size": 32, "context_length": 64},
    "jamba": _EXPERTS | {"mamba_d_state": 4, "mamba_dt_rank": 4, "use_mamba_kernels": False, "attn_layer_period": 2,
        "attn_layer_offset": 1},
    "recurrent_gemma": {"lru_width": 32, "attention_window_size": 16},
    "bamba": {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "attn_layer_indices": [1]},
    "xglm": {"d_model": 32, "ffn_dim": 48, "num_layers": 3, "attention_heads": 4}, "biogpt": {},
    "openai-gpt": {"n_embd": 32, "n_layer": 3, "n_head": 4},
    "diffllama": {}, "lfm2": {"layer_types": ["full_attention"] * 3, "full_attn_idxs": [0, 1, 2]},
    "seed_oss": {"head_dim": 8}, "apertus": {},
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("families", nargs="*", help="default: all")
    parser.add_argument("--json", type=Path, help="also write the cells, with their reasons, here")
    chosen = parser.parse_args()
    start, rows = time.perf_counter(), {}
    for family in chosen.families or FAMILIES:
        rows[family] = cells(family)
        print(f"{family:18}" + "".join(f"{cell[0]:9}" for cell in rows[family].values()), flush=True)
    print(f"{'':18}" + "".join(f"{name.split('hook_')[1]:9}" for name in NAMES))
    counts = {kind: sum(cell[0] == kind for row in rows.values() for cell in row.values()) for kind in _KINDS}
    for family, row in rows.items():
        for name, (kind, why) in row.items():
            if why:
                print(f"{family} {name} {kind}: {why}")
    print(f"{len(rows)} families, {counts} in {time.perf_counter() - start:.0f} s")
    if chosen.json:
        chosen.json.write_text(json.dumps({"cells": rows, "counts": counts}, indent=1) + "\n")
    return int(counts["WRONG"] > 0)


_KINDS = ("right", "refused", "WRONG", "none")


def cells(family: str) -> dict[str, tuple[str, str]]:
    """What every hook point of a family is, with the reason where it is not right; `none`: no such model here."""
    try:
        model = made(family)
        ids = torch.randint(1, VOCAB, (2, CONTEXT), generator=torch.Generator().manual_seed(1))
        clean = streams(model, ids)
    except Exception as error:  # a family of another release of transformers
        return dict.fromkeys(NAMES, ("none", _line(error)))
    return {name: _cell(model, ids, clean, name) for name in NAMES}


def made(family: str) -> Any:
    """A random model of a family, with biases and norms away from zero and one."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, **_SMALL | FAMILIES[family])
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.ndim == 1 and not name.endswith("bias"):
                    weight += 0.1 * torch.randn_like(weight)
                elif weight.ndim > 1:
                    weight *= 3  # so that parts are of the size of the stream
    return model


def streams(model: Any, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The stream before and after the layer, as transformers returns it."""
    with torch.no_grad():
        states = model(ids, output_hidden_states=True, use_cache=False).hidden_states
    after = LAYER + (model.config.model_type not in _AFTER)
    return states[after - 1], states[after]


def _cell(model: Any, ids: torch.Tensor, clean: tuple[torch.Tensor, torch.Tensor], name: str) -> tuple[str, str]:
    try:
        x = capture(model, f"blocks.{LAYER}.{name}", ids)
    except HookPointError as error:
        return "refused", str(error).partition(": ")[2]
    except Exception as error:
        return "WRONG", f"{type(error).__name__}: {_line(error)}"
    try:
        wrong = _apart(model, ids, clean, name, x)
    except HookPointError as error:
        return "WRONG", f"cannot be judged: {error}"
    return ("right", "") if wrong is None else ("WRONG", wrong)


def _apart(model: Any, ids: torch.Tensor, clean: tuple[Any, Any], name: str, x: torch.Tensor) -> str | None:
    """How a captured value differs from an independent one; None where it does not."""
    pre, post = clean

    def without(*names: str) -> torch.Tensor:
        """The stream after the layer where these values are zeros."""
        with contextlib.ExitStack() as stack:
            for one in names:
                stack.enter_context(replaced(model, f"blocks.{LAYER}.{one}", torch.zeros_like))
            return streams(model, ids)[1]

    def has(one: str) -> bool:
        with contextlib.suppress(HookPointError):
            capture(model, f"blocks.{LAYER}.{one}", ids)
            return True
        return False

    if name in ("hook_resid_pre", "hook_resid_post"):
        return _differ(x, pre if name == "hook_resid_pre" else post)
    outs = has("hook_mlp_out")
    if name == "hook_mlp_out":
        return _differ(x, post - without("hook_mlp_out"))
    if name == "hook_attn_out":
        return _differ(x, without("hook_mlp_out" if outs else "mlp.hook_post") - pre)
    if name == "hook_resid_mid":
        return _differ(x, without("hook_mlp_out" if outs else "mlp.hook_post"))
    if outs and has("hook_attn_out"):
        return _differ(without(name, "hook_mlp_out"), pre if name == "attn.hook_z" else without("hook_mlp_out"))
    return _no_projection(model, ids, x, pre)


def _no_projection(model: Any, ids: torch.Tensor, x: torch.Tensor, pre: torch.Tensor) -> str | None:
    """None where some linear map of the layer makes of x what a part of the layer returns, or adds to its stream."""
    stack = next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and len(module) == 3)
    path = next(name for name, module in model.named_modules() if module is stack)
    block, outs = stack[LAYER], []
    for child, _ in block.named_children():
        with contextlib.suppress(HookPointError):
            outs.append(capture(model, f"{path}.{LAYER}.{child}:output", ids))
            outs.append(capture(model, f"{path}.{LAYER}.{child}:input", ids))
    inputs = {"Linear": 1, "Conv1D": 0}  # which axis of the weight
    maps = [module for module in block.modules() if type(module).__name__ in inputs]
    fits = [module for module in maps if module.weight.shape[inputs[type(module).__name__]] == x.shape[-1]]
    with torch.no_grad():
        for made in (module(x) for module in fits):
            rests = [out - made for out in outs if out.shape == made.shape]
            if any(rest.norm() < 1e-3 * made.norm() for rest in rests):
                return None
            if any(
                _differ(rest, stream) is None for rest in rests for stream in (pre, *outs) if rest.shape == stream.shape
            ):
                return None
    return "no linear map of the layer makes of it what a part of the layer returns"


def _differ(x: torch.Tensor, expected: torch.Tensor) -> str | None:
    if x.shape != expected.shape:
        return f"shape {list(x.shape)}, expected {list(expected.shape)}"
    error = float((x - expected).norm() / expected.norm().clamp(min=1e-9))
    return None if error < 1e-3 else f"off by {error:.1%}"


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


if __name__ == "__main__":
    sys.exit(main())
