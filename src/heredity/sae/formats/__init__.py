"""SAEs on disk: SAELens folders are native; those of other libraries and of published families are read as well.

| format              | files                                       | what it holds, and whether it is written       |
|---------------------|---------------------------------------------|------------------------------------------------|
| saelens             | sae_weights.safetensors, cfg.json           | every activation, gated; written               |
| dictionary_learning | ae.pt, config.json                          | every activation, gated, Matryoshka; written   |
| sparsify            | sae.safetensors, cfg.json                   | topk; written                                  |
| gemma_scope         | params.npz                                  | jumprelu                                       |
| gemma_scope_2       | params.safetensors, config.json             | jumprelu                                       |
| llama_scope         | checkpoints/final.safetensors and settings  | jumprelu                                       |
| qwen_scope          | layer5.sae.pt, the file itself              | topk                                           |
| saelens:RELEASE/ID  | of a hub, by SAELens' own loaders (`saes`)  | what of theirs is one of the kinds above       |

Gated SAEs are read as the JumpReLU that they are, and SAELens keeps batchtopk as a JumpReLU of one threshold.
A setting or a tensor that no reader knows is refused by its name unless it is neutral (`contents`). Our own facts
(model, seed, tokens, λ, ...) travel as `metadata`: inside SAELens' own table of that name, and in a table `heredity` of
the other two. Pickles are read with torch's `weights_only` loader, which runs no code.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors.torch import save_file

from heredity.errors import install, reading
from heredity.sae.formats import dictionary_learning, folds, saelens, scopes, sparsify
from heredity.sae.formats.contents import FormatError as FormatError
from heredity.sae.formats.contents import Settings, Tensors, shown
from heredity.sae.model import SAE
from heredity.study.places import fault_of

Format = Literal["saelens", "dictionary_learning", "sparsify"]
PUBLISHED = "saelens:"


class Kind(NamedTuple):
    """A format: the file by which it is known, the settings beside it, and what reads and writes them."""

    weights: str
    settings: str | None
    read: Callable[[Tensors, Any], tuple[SAE, dict[str, Any]]]
    write: Callable[[SAE, dict[str, Any]], tuple[dict[str, torch.Tensor], dict[str, Any]]] | None = None


KINDS = {
    "saelens": Kind("sae_weights.safetensors", "cfg.json", saelens.read, saelens.write),
    "dictionary_learning": Kind("ae.pt", "config.json", dictionary_learning.read, dictionary_learning.write),
    "sparsify": Kind("sae.safetensors", "cfg.json", sparsify.read, sparsify.write),
    "gemma_scope": Kind("params.npz", None, scopes.gemma),
    "gemma_scope_2": Kind("params.safetensors", "config.json", scopes.gemma_2),
    "llama_scope": Kind("checkpoints/final.safetensors", "hyperparams.json", scopes.llama),
    "qwen_scope": Kind(".sae.pt", None, scopes.qwen),
}
_MANY = 8  # SAEs named of a folder that holds several


def write_sae(sae: SAE, folder: Path, metadata: Mapping[str, Any], to: Format = "saelens") -> None:
    """Write the SAE with its metadata (JSON values) into folder. Raises FormatError when the format cannot hold it."""
    if to not in KINDS or (write := KINDS[to].write) is None:
        written = ", ".join(name for name, kind in KINDS.items() if kind.write)
        raise FormatError(f"format {to!r} is not known or not written; choose one of {written}")
    facts = dict(metadata)
    if sae.centered:
        facts["model_from_pretrained_kwargs"] = facts.get("model_from_pretrained_kwargs", {}) | {_CENTERED: True}
    tensors, settings = write(sae, facts)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    (torch.save if to == "dictionary_learning" else save_file)(tensors, folder / KINDS[to].weights)
    (folder / str(KINDS[to].settings)).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def read_sae(folder: str | Path) -> tuple[SAE, dict[str, Any]]:
    """Read an SAE of any of the formats, float32, on the CPU, with its metadata.

    folder: of one SAE, or its file of weights; `saelens:RELEASE/ID` is fetched by SAELens. Metadata says `hook_name`,
    `model_name`, `prepend_bos` and `context_size` under these names whatever the format calls them, as far as it knows.
    Raises FormatError, naming the file, the key or tensor and the way out, when files are missing or damaged, shapes do
    not fit together, weights are not finite, something is not known, or `SAE` has no equal of its kind.
    """
    if str(folder).startswith(PUBLISHED):
        return _published(str(folder).removeprefix(PUBLISHED))
    with reading(folder, "copy it anew, or give the folder of one SAE", FormatError):
        return _local(Path(folder))


def _local(path: Path) -> tuple[SAE, dict[str, Any]]:
    kind = KINDS[format_of(path)]
    if path.is_file():
        path, weights = path.parents[kind.weights.count("/")], path
    else:
        weights = path / kind.weights
    if kind.settings == "cfg.json" and not (path / "cfg.json").exists() and (path / "config.json").exists():
        raise FormatError(
            f"{path} has the settings of lm-saes (config.json beside {kind.weights}), which SAELens knows by release; "
            "read it as saelens:llama_scope_r1_distill/ID"
        )
    if fault := fault_of(weights) or (kind.settings and fault_of(path / kind.settings)):
        raise FormatError(fault)
    settings = Settings.read(path / kind.settings, kind.weights) if kind.settings else None
    sae, metadata = kind.read(Tensors(weights), settings)
    for key, form in (("hook_name", str), ("model_name", str), ("model_from_pretrained_kwargs", dict)):
        if not isinstance(value := metadata.get(key), form | None):
            raise FormatError(f"{path}: {key}={shown(value)} of its settings is no {form.__name__}; repair it")
    loading = metadata.get("model_from_pretrained_kwargs") or {}
    if loading.get(_CENTERED) and _in_stream(metadata.get("hook_name")):
        folds.centered(sae)
    return sae, metadata


_CENTERED = "center_writing_weights"


def _in_stream(place: object) -> bool:
    """Whether TransformerLens' centering of what is written to the stream changes the values at a place."""
    return not any(part in str(place) for part in ("mlp.hook_", "attn.hook_"))


def format_of(folder: str | Path) -> str:
    """Which format a folder or file is in, by its file of weights.

    Raises FormatError, with the SAEs to choose from, when there is none or there are several.
    """
    folder = Path(folder)
    if not folder.exists():
        raise FormatError(f"{folder}: no such folder or file; give the folder of one SAE")
    for name, kind in KINDS.items():
        of_any_name = kind.weights[0] == "."
        ending = kind.weights if of_any_name else f"/{kind.weights}"
        if folder.absolute().as_posix().endswith(ending) and folder.is_file():
            return name
        if not of_any_name and (folder / kind.weights).is_file():
            return name
    if found := _saes_below(folder):
        raise FormatError(f"{folder} is no SAE itself; give one of those below: {', '.join(found)}")
    names = ", ".join(kind.weights.lstrip(".") for kind in KINDS.values())
    raise FormatError(f"{folder} holds no SAE (none of {names}); give the folder of one SAE")


def _saes_below(folder: Path) -> list[str]:
    """The first SAEs in the folders below, at most four deep."""
    found: list[str] = []
    for at, folders, files in os.walk(folder, followlinks=True):
        depth = len(Path(at).relative_to(folder).parts)
        if depth >= 4:
            folders.clear()
        folders.sort()
        here = [at for kind in KINDS.values() if (Path(at) / kind.weights).is_file()]
        here += [os.path.join(at, file) for file in sorted(files) if file.endswith(KINDS["qwen_scope"].weights)]
        found += here[: _MANY - len(found)]
        if len(found) == _MANY:
            return [*found, "..."]
    return found


def _published(name: str) -> tuple[SAE, dict[str, Any]]:
    """An SAE that SAELens' loaders read. Raises FormatError when SAELens is missing or refuses."""
    release, _, sae_id = name.partition("/")
    if not sae_id:
        raise FormatError(f"{PUBLISHED}{name}: names no SAE; write {PUBLISHED}RELEASE/ID, as SAELens lists them")
    try:
        import sae_lens  # pyright: ignore[reportMissingImports] - an extra
    except ImportError:
        needed = f"needs SAELens; {install('saes')}; or give a folder"
        raise FormatError(f"{PUBLISHED}{name}: {needed}") from None
    try:
        loaded = sae_lens.SAE.from_pretrained(release, sae_id)
    except Exception as error:  # whatever its loaders and the hub raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise FormatError(f"{PUBLISHED}{name}: SAELens could not load it ({reason}); check release and id") from error
    with tempfile.TemporaryDirectory() as folder:
        loaded.save_model(folder)
        return read_sae(folder)
