"""Names of the place, the model and the reading that an SAE was made for, whatever its library calls them.

| in metadata    | from                                                                                             |
|----------------|--------------------------------------------------------------------------------------------------|
| `hook_name`    | `hook_name`, `hook_point` and its layer, `submodule_name`, `hf_hook_point_in`, the name of a folder |
| `model_name`   | `model_name`, `lm_name`, `model`                                                                 |
| `prepend_bos`  | `prepend_bos`: whether blocks began with the beginning-of-text token                             |
| `context_size` | `context_size`, `ctx_len`                                                                        |
"""

from __future__ import annotations

import re

_MODULE = re.compile(r"(?:[A-Za-z_]\w*\.)*(?:layers|h|blocks)\.(\d+)((?:\.[A-Za-z_]\w*)*)")
_PART = re.compile(r"(resid_pre|resid_mid|resid_post|mlp_out|attn_out)_layer_?(\d+)")
_EMBEDDINGS = ("embed_tokens", "wte", "embed_in")


def place_of(name: str, layer: object = None, side: str = "output") -> str:
    """The hook point that a library's name of a place means; a name that is none of these stays as it is.

    `blocks.{layer}.hook_resid_pre` with a layer, `resid_post_layer_3`, `model.layers.5.output` and bare paths of
    modules, such as sparsify's `layers.5.mlp`, whose `side` is read.
    """
    if isinstance(layer, int):
        name = name.replace("{layer}", str(layer))
    if part := _PART.fullmatch(name):
        return f"blocks.{part[2]}.hook_{part[1]}"
    if ":" in name or "hook_" in name:
        return name
    path, _, last = name.rpartition(".")
    if last in ("input", "output"):
        name, side = path, last
    if name.rpartition(".")[2] in _EMBEDDINGS and side == "output":
        return "hook_embed"
    if (module := _MODULE.fullmatch(name)) is None:
        return name
    if not module[2]:
        return f"blocks.{module[1]}.hook_resid_{'post' if side == 'output' else 'pre'}"
    return f"{name}:{side}"
