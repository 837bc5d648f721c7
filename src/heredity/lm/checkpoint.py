"""A model's files before anything of them is loaded: which folder is meant, and that its weights are one whole set.

transformers takes what it finds: an old `model.safetensors` before newer shards, a tensor that a shard holds beside
what the index gives to it, a pointer of git-lfs for a file. Here a folder is read once, names and shapes alone, and
refused where more than one reading is possible. Nothing heavy is imported.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from heredity.errors import reading, short

INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
_POINTER = b"version https://git-lfs"
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_WRAPPERS = {
    "_orig_mod.": "torch.compile; save its _orig_mod",
    "module.": "a parallel wrapper (DataParallel, DDP, FSDP); save its module",
    "_fsdp_wrapped_module.": "FSDP; gather the full state dict and save that",
    "base_model.model.": "peft; call merge_and_unload() and save what it returns, or give the adapter's own folder",
}
_QUANTIZED = ("F8", "F4", "I", "U")  # types that hold codes, not weights
_SNAPSHOT = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
_HEADER_LIMIT = 100 * 2**20  # bytes, as in the safetensors library


class ModelError(ValueError):
    """A model that cannot be loaded; one line with its name, the reason and the way out."""


class Stored(NamedTuple):
    """A tensor in a file."""

    dtype: str  # as safetensors names it: F32, BF16, F8_E4M3 ...
    shape: tuple[int, ...]
    start: int = 0  # byte of the file where its numbers begin


class Source(NamedTuple):
    """Where a model's files lie, and which of them are read."""

    name: str  # as it was given
    folder: Path
    gguf: str | None = None  # the file of that folder, for weights in that format
    commit: str | None = None  # of a hub repository


def located(name: str, revision: str | None = None, code: bool = False) -> Source:
    """The folder of a model: a local one, one GGUF file, or the snapshot of a hub repository, fetched where it is not
    in the cache. `ID@REVISION` is a hub id with its revision. code: whether Python files of a repository are fetched.

    Raises ModelError where there is no such folder or repository, and for files that can be read in more than one way.
    """
    if is_local(name):
        path = Path(name).expanduser()
        source = Source(name, path.parent, path.name) if path.suffix == ".gguf" else Source(name, path)
    else:
        repository, _, given = name.partition("@")
        source = _fetched(name, repository, revision or given or None, code)
    check_files(source)
    return source


def is_local(name: str) -> bool:
    """Whether a reference is a folder or a GGUF file here; ModelError for the path of one that is missing, and for a
    folder without a model."""
    path = Path(name).expanduser()
    if not path.exists():
        if name.startswith((".", "~", "/")) or name.count("/") > 1 or "\\" in name or path.is_symlink():
            raise ModelError(f"{name}: no such folder; give a folder with config.json and *.safetensors, or a hub id")
        return False
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"{name}: is a file; give the folder with its config.json (of files, only .gguf is read)")
        return True
    if not any((path / file).exists() for file in ("config.json", ADAPTER)):
        raise ModelError(f"{name}: {_without_config(name, path)}")
    return True


def check_files(source: Source) -> None:
    """That the files of a folder are one whole set of weights: no pointers, broken links, second set, tensor twice,
    index that lies, names of a wrapper, or empty tensors. Raises ModelError."""
    folder, name = source.folder, source.name
    for file in sorted(folder.iterdir()):
        if file.is_symlink() and not file.exists():
            raise ModelError(
                f"{name}: {file.name} is a broken link (to {file.readlink()}): the download is incomplete; "
                "download the model again"
            )
        if file.is_file() and file.suffix in (".json", ".safetensors", ".model", ".gguf") and _starts(file, _POINTER):
            raise ModelError(
                f"{name}: {file.name} is a pointer of git-lfs, not the file; run `git lfs pull` in that folder"
            )
    if source.gguf:
        return
    weights = _weights(source)
    tensors = {file: tensors_of(folder / file, name) for file in weights}
    owner: dict[str, str] = {}
    for file, held in tensors.items():
        for tensor, (dtype, shape, _) in held.items():
            if tensor in owner:
                raise ModelError(
                    f"{name}: tensor {tensor} is in {owner[tensor]} and in {file}; only one can be the model's: "
                    "save the model again into an empty folder"
                )
            owner[tensor] = file
            if 0 in shape:
                raise ModelError(
                    f"{name}: tensor {tensor} is empty {list(shape)}, as ZeRO-3 leaves it; gather the weights "
                    "(zero_to_fp32.py, or stage3_gather_16bit_weights_on_model_save) and save again"
                )
            if tensor.endswith(".weight") and dtype.startswith(_QUANTIZED) and not _quantization(source):
                raise ModelError(
                    f"{name}: tensor {tensor} is of type {dtype}, and config.json has no quantization_config to say "
                    "what its numbers stand for; copy the config of the quantized model"
                )
    for prefix, how in _WRAPPERS.items():
        wrapped = [tensor for tensor in owner if tensor.startswith(prefix)]
        if wrapped and weights != ("adapter_model.safetensors",):
            raise ModelError(
                f"{name}: {len(wrapped)} of {len(owner)} tensors begin with {prefix!r} ({wrapped[0]}), the prefix of "
                f"{how}"
            )
    if INDEX in {file.name for file in folder.iterdir()}:
        _check_index(source, owner)


def tensors_of(file: Path, name: str) -> dict[str, Stored]:
    """Types and shapes of the tensors in a safetensors file, by name, from its header.

    Raises ModelError for a damaged file.
    """
    with reading(f"{name}: its safetensors are damaged: {file.name}", "copy the model again", ModelError):
        with file.open("rb") as opened:
            (size,) = struct.unpack("<Q", opened.read(8))
            if size > min(_HEADER_LIMIT, file.stat().st_size - 8):
                raise ValueError("its header is longer than the file")
            header = json.loads(opened.read(size))
        header.pop("__metadata__", None)
        ends = [row["data_offsets"][1] for row in header.values()]
        if 8 + size + max(ends, default=0) != file.stat().st_size:
            raise ValueError(f"it should be {8 + size + max(ends, default=0):,} bytes and is {file.stat().st_size:,}")
        for tensor, row in header.items():
            _check_entry(tensor, row)
        return {
            tensor: Stored(row["dtype"], tuple(row["shape"]), 8 + size + row["data_offsets"][0])
            for tensor, row in header.items()
        }


def _check_entry(tensor: str, row: dict[str, Any]) -> None:
    """Raise ValueError for a tensor of a header whose type, shape and place do not fit each other: what reads it would
    take whatever lies there for its numbers, or none for as many as there are said to be."""
    dtype, shape, (start, end) = row["dtype"], row["shape"], row["data_offsets"]
    if not isinstance(dtype, str) or not isinstance(shape, list):
        raise ValueError(f"tensor {short(tensor, 80)} has no type or no shape in its header")
    if not all(type(one) is int and one >= 0 for one in (*shape, start, end)):
        raise ValueError(f"tensor {short(tensor, 80)} has a shape or a place that is no count in its header")
    bits = re.search(r"\d+", dtype)  # F8_E4M3, BF16, I64; BOOL has eight
    if (bits or dtype == "BOOL") and math.prod(shape) * (int(bits[0]) if bits else 8) != 8 * (end - start):
        raise ValueError(f"tensor {short(tensor, 80)} has {end - start:,} bytes, which its shape does not fill")


def read_json(path: Path, name: str) -> dict[str, Any]:
    """A JSON object of a model's folder. Raises ModelError, with the file's name."""
    with reading(f"{name}: {path.name}", "copy the model again", ModelError):
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError(f"it is a {type(value).__name__}, not an object")
        return value


def base_of_adapter(source: Source) -> str:
    """Folder or hub id of the model that an adapter changes; a relative folder starts at the adapter's own."""
    base = read_json(source.folder / ADAPTER, source.name).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError(f"{source.name}: {ADAPTER} has no base_model_name_or_path; add the model it was trained on")
    beside = source.folder / Path(base).expanduser()
    return str(beside.resolve()) if beside.exists() else base


def tokenizer_place(path: Path) -> str:
    """Where the tokenizer of a local model lies: with it, or with the base of an adapter that has none of its own."""
    if path.is_dir() and (path / ADAPTER).exists() and not any(path.glob("tokenizer*")):
        return base_of_adapter(Source(str(path), path))
    return str(path)


def base_revision(source: Source) -> str | None:
    """Revision of that model."""
    return read_json(source.folder / ADAPTER, source.name).get("revision") or None


def _quantization(source: Source) -> object:
    return read_json(source.folder / "config.json", source.name).get("quantization_config")


def _weights(source: Source) -> tuple[str, ...]:
    """Names of the files that hold the one set of weights."""
    folder, name = source.folder, source.name
    found = sorted(file.name for file in folder.glob("*.safetensors"))
    shards, whole = [file for file in found if _SHARD.fullmatch(file)], "model.safetensors" in found
    indexed = (folder / INDEX).exists()
    adapter = (folder / ADAPTER).exists()
    if adapter:
        if whole or shards or (folder / "config.json").exists():
            what = ["model.safetensors"] if whole else shards[:1] or ["config.json"]
            raise ModelError(
                f"{name}: holds a whole model ({what[0]}) and an adapter ({ADAPTER}) side by side; give a folder that "
                "holds one of them"
            )
        if "adapter_model.safetensors" not in found:
            raise ModelError(f"{name}: {_no_weights(folder, 'adapter_model.safetensors')}")
        return ("adapter_model.safetensors",)
    if indexed:
        named = tuple(sorted(set(_index(source).values())))
        left = sorted(({"model.safetensors"} if whole else set()) | set(shards) - set(named))
        left = [file for file in left if file not in named]
        if left:
            raise ModelError(
                f"{name}: holds two sets of weights, {left[0]} and the shards of {INDEX} ({named[0]} ...); delete the "
                "one that is not the model"
            )
        if missing := [file for file in named if file not in found]:
            raise ModelError(f"{name}: {missing[0]}, which {INDEX} names, is missing; download the model again")
        return named
    if whole and shards:
        raise ModelError(
            f"{name}: holds two sets of weights, model.safetensors and {shards[0]}; delete the one that is not "
            "the model"
        )
    if shards:
        raise ModelError(f"{name}: {INDEX} is missing beside {shards[0]}; copy it too")
    if not whole:
        raise ModelError(f"{name}: {_no_weights(folder, 'model.safetensors')}")
    return ("model.safetensors",)


def _no_weights(folder: Path, wanted: str) -> str:
    names = sorted(file.name for file in folder.iterdir())
    if pickles := [file for file in names if file.endswith((".bin", ".pt", ".pth"))]:
        return f"its weights are pickled ({pickles[0]}), which can run code; save the model as safetensors"
    if gguf := [file for file in names if file.endswith(".gguf")]:
        return f"has no {wanted}; give the GGUF file itself, {folder / gguf[0]}"
    others = [file for file in names if file.endswith(".safetensors")]
    if others:
        return f"no *.safetensors there that transformers reads: {others[0]} is not named {wanted}; rename it if it is"
    return "no *.safetensors there; save the model in that format"


def _index(source: Source) -> Mapping[str, str]:
    """File of each tensor, as the index says it."""
    table = read_json(source.folder / INDEX, source.name).get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(file, str) for file in table.values()):
        raise ModelError(f"{source.name}: {INDEX} has no table weight_map; save the model again")
    return table


def _check_index(source: Source, owner: Mapping[str, str]) -> None:
    named = _index(source)
    wrong = [(tensor, file) for tensor, file in named.items() if owner.get(tensor) != file]
    if wrong:
        tensor, file = wrong[0]
        lies = f"in {owner[tensor]}" if tensor in owner else "in none"
        raise ModelError(
            f"{source.name}: {INDEX} says that tensor {tensor} is in {file}, and it is {lies} ({len(wrong)} such); "
            "save or download the model again"
        )
    if more := sorted(set(owner) - set(named)):
        raise ModelError(
            f"{source.name}: {owner[more[0]]} holds tensor {more[0]}, which {INDEX} does not name ({len(more)} such); "
            "it may be left over from another model: save or download the model again"
        )


def _without_config(name: str, folder: Path) -> str:
    """What to say of a folder that has no config.json: the one to give, if there is one below."""
    below = sorted(_models_below(folder), key=lambda found: (found.stat().st_mtime, found.name))
    if (folder / "refs").is_dir() and (folder / "snapshots").is_dir():
        main = folder / "refs" / "main"
        chosen = folder / "snapshots" / main.read_text().strip() if main.is_file() else None
        chosen = chosen if chosen in below else (below or [None])[-1]
        if chosen is None:
            return "is the hub cache's folder of a repository, and no snapshot in it has a config.json; download it"
        return f"is the hub cache's folder of a repository; give the snapshot in it, {chosen}"
    if below:
        steps = [found for found in below if re.fullmatch(r".*-\d+", found.name)]
        last = max(steps, key=lambda found: int(found.name.rpartition("-")[2])) if steps else below[-1]
        return f"no config.json there, but in {len(below)} of its folders; give the one that is meant, such as {last}"
    if gguf := sorted(folder.glob("*.gguf")):
        return f"no config.json there; give the GGUF file itself, such as {gguf[0]}"
    if "/" in name and name.count("/") == 1 and not name.startswith((".", "~", "/")):
        return (
            "no config.json in the local folder of this name, which stands in the way of the hub id; start the command "
            "elsewhere, rename the folder, or give the folder that model.save_pretrained wrote"
        )
    return "no config.json there; give the folder that model.save_pretrained wrote"


def _models_below(folder: Path) -> Iterator[Path]:
    for pattern in ("*", "snapshots/*"):
        for file in ("config.json", ADAPTER):
            yield from (found.parent for found in folder.glob(f"{pattern}/{file}"))


def _fetched(name: str, repository: str, revision: str | None, code: bool) -> Source:
    """The snapshot of a hub repository: its top folder, without weights in other formats."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    patterns = [*_SNAPSHOT, *(["*.py"] if code else [])]
    other = ["*/*", "consolidated*", "*.fp16.safetensors", "*.bf16.safetensors"]
    at = f" at revision {revision}" if revision else ""
    try:
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=patterns, ignore_patterns=other))
    except HFValidationError as error:
        raise ModelError(f"{name}: is neither a folder here nor the form of a hub id ({_line(error)})") from error
    except Exception as error:
        raise ModelError(
            f"{name}: cannot read its config: neither a local folder nor a hub repository that can be reached{at} "
            f"({_line(error)}); check the name and the network, or download it and give the folder"
        ) from error
    if not any((folder / file).is_symlink() or (folder / file).exists() for file in ("config.json", ADAPTER)):
        raise ModelError(
            f"{name}: its cached copy has no config.json{at}: the download is incomplete, or it holds no model; "
            "download it again"
        )
    if not any(file.suffix == ".safetensors" for file in folder.iterdir()):
        raise ModelError(
            f"{name}: the hub repository{at} has no safetensors, the only format that is read (or its download is "
            "incomplete); download it again, or convert it and give the folder"
        )
    return Source(name, folder, commit=folder.name)


def _starts(file: Path, with_bytes: bytes) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(with_bytes)) == with_bytes


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".")[:200] if lines else type(error).__name__
