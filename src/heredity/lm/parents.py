"""Models that are to be merged, before any weight is read: is a mean of their weights a model?

It is where all compute the same (their configurations, but for what changes no number), where an id means one token in
all of them, and where tensors have the same names and shapes. Rows of a vocabulary that only some have, and a head that
only some have beside their embedding, can be merged still: `Family` says how.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from heredity.engine.store import write_json
from heredity.errors import short
from heredity.lm.checkpoint import ADAPTER, base_of_adapter, located, read_json, tokenizer_place
from heredity.lm.load import NO_WEIGHT, check_decoder, config_of, for_older_releases, load_model, quiet
from heredity.lm.merge import MergeError, Rows, check_states
from heredity.lm.weights import FileTensor, same, tensors_in

# Keys of a configuration that change no number that the model computes from its weights: sizes that the tensors show,
# what training alone uses, roles of tokens, ways to compute the same.
_NO_COMPUTING = re.compile(
    r"vocab_size|tie_word_embeddings|.*_token_ids?|.*dropout.*|.*_drop|.*_pdrop|initializer.*|use_cache|.*dtype|"
    r"max_position_embeddings|max_window_layers|pretraining_tp|.*aux_loss.*|output_.*|return_dict|.*id2label|label2id|"
    r"architectures|transformers_version|_.*|problem_type|summary_.*|chunk_size_feed_forward|gradient_checkpointing|"
    r"use_mamba_kernels|reorder_and_upcast_attn|rope_scaling"
)
_TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.jinja")
_TOKENIZER_FILES += ("chat_template.json", "spiece.model", "sentencepiece*.model")
_UNION = "follow a recipe (--config) with `tokenizer: {source: union}`, which places every token's row"


class Parent(NamedTuple):
    """A model that is merged, or the base."""

    name: str  # as it was given
    folder: Path
    config: Any
    tensors: dict[str, FileTensor]
    tokenizer: Any | None


class Family(NamedTuple):
    """Models that can be merged: the tensors of each by the child's names, and what the child takes from which."""

    tensors: list[dict[str, FileTensor]]
    rows: dict[str, Rows]  # by tensor, where not all have all rows of the vocabulary
    shapes: dict[str, tuple[int, ...]]  # of the child's tensors
    config: dict[str, Any]  # the child's config.json
    donor: Parent  # gives the tokenizer: all tokens of all are its
    folder: Path  # of the first model, which gives the rest
    stacked: bool  # whether the files hold apart what the model holds as one tensor, as experts


def opened(name: str, scratch: Path, trust_remote_code: bool = False, rewrite: bool = False) -> Parent:
    """A model, with the tensors of its files; adapters, GGUF files and, with `rewrite`, files that name tensors
    otherwise than transformers does today are written anew below `scratch` first.

    Raises `ModelError` for what cannot be loaded, `MergeError` for quantized weights.
    """
    source = located(name, code=trust_remote_code)
    adapter, folder = (source.folder / ADAPTER).exists(), source.folder
    if rewrite or adapter or source.gguf:
        folder = scratch / f"{len(list(scratch.iterdir()))}"
        model: Any = load_model(name, None, trust_remote_code)
        stored = config_of(located(base_of_adapter(source)), trust_remote_code).dtype if adapter else model.config.dtype
        with quiet():
            model.to(stored or torch.float32).save_pretrained(folder)
        at = Path(tokenizer_place(source.folder / (source.gguf or "")))
        if at.is_dir():
            copy_tokenizer(at, folder)
        elif not adapter and (tokenizer := tokenizer_of(str(at), trust_remote_code)) is not None:
            tokenizer.save_pretrained(folder)
    source = source._replace(folder=folder, gguf=None)
    config = config_of(source, trust_remote_code)
    check_decoder(source, config)
    if getattr(config, "quantization_config", None):
        raise MergeError(f"{name}: its weights are quantized; merge the unquantized model (or save it dequantized)")
    return Parent(name, folder, config, tensors_in(folder, name), tokenizer_of(str(folder), trust_remote_code))


def tokenizer_of(place: str, trust_remote_code: bool = False) -> Any | None:
    """A tokenizer of any kind, with or without an end token; None where none is there or can be read."""
    from transformers import AutoTokenizer

    path = Path(place)
    more = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
    if path.is_dir() and not any(file for pattern in _TOKENIZER_FILES[:5] for file in path.glob(pattern)):
        return None
    with quiet():
        try:
            at = str(path.parent if more else path)
            return AutoTokenizer.from_pretrained(at, trust_remote_code=trust_remote_code, **more)
        except Exception:  # the parsers beneath raise what they like, bare Exception too
            return None


def copy_tokenizer(folder: Path, out: Path) -> None:
    """Copy a tokenizer's files as they are."""
    for pattern in _TOKENIZER_FILES:
        for file in folder.glob(pattern):
            shutil.copyfile(file, out / file.name)


def config_differences(first: Parent, other: Parent) -> list[str]:
    """What two models compute differently, by the key of their configurations."""
    a, b = dict(_settings(first.config)), dict(_settings(other.config))
    if first.config.model_type != other.config.model_type:
        a, b = {"model_type": first.config.model_type}, {"model_type": other.config.model_type}
    return [
        f"{key} is {short(repr(a.get(key)), 60)} in {first.name} and {short(repr(b.get(key)), 60)} in {other.name}"
        for key in sorted({*a, *b})
        if a.get(key) != b.get(key)
    ]


def _settings(config: Any) -> Iterator[tuple[str, Any]]:
    """The keys that the class of a configuration declares, with their values; those of parts behind dots."""

    def flat(values: Mapping[str, Any], known: Mapping[str, Any] | None, prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in values.items():
            if _NO_COMPUTING.fullmatch(key) or (known is not None and key not in known):
                continue
            if isinstance(value, Mapping):
                yield from flat(value, None, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value

    try:
        known = {**type(config)().to_dict(), **vars(type(config)()), "rope_parameters": None}
    except Exception:  # a configuration of foreign code without defaults: all its keys count
        known = None
    return flat(config.to_dict(), known, "")


def token_differences(first: Parent, other: Parent) -> str | None:
    """Whether ids mean other tokens in one model than in the other, with the first and their number."""
    if first.tokenizer is None or other.tokenizer is None:
        return None
    a, b = _tokens(first), _tokens(other)
    shared = sorted(set(a) & set(b))
    if apart := [index for index in shared if a[index] != b[index]]:
        return (
            f"id {apart[0]} is {a[apart[0]]!r} in {first.name} and {b[apart[0]]!r} in {other.name} ({len(apart):,} of "
            f"{len(shared):,} shared ids differ)"
        )
    return None


def reading_difference(first: Parent, other: Parent) -> str | None:
    """How two tokenizers whose ids mean the same cut text differently, if they do."""
    from heredity.text.vocabularies import difference

    one: Any = first.tokenizer
    another: Any = other.tokenizer
    try:
        apart = difference(one, another)
    except Exception:  # not of the fast kind: nothing to compare
        return None
    return apart.rpartition("; ")[0] if apart and "in the vocabulary" not in apart else None


def missing_tokenizers(parents: Sequence[Parent]) -> Iterator[str]:
    """What is to be said of models without a tokenizer that can be compared and written."""
    lacking = [parent.name for parent in parents if parent.tokenizer is None]
    if len(lacking) == len(parents):
        yield "none of the models has a tokenizer that can be read, so the child has none; copy one into its folder"
    elif lacking:
        yield f"{', '.join(lacking)}: no tokenizer that can be read, so its ids are taken to mean the others' tokens"
    named = [(parent.name, parent.tokenizer) for parent in parents if parent.tokenizer is not None]
    if named and named[0][1].eos_token_id is None:
        yield f"the tokenizer of {named[0][0]} has no end-of-text token (eos_token), and so has the child's"


def family(
    names: Sequence[str],
    base: str | None,
    scratch: Path,
    say: Callable[[str], object],
    trust_remote_code: bool = False,
) -> Family:
    """The models of a merge, the base last, checked against each other; `say` is told what a person should know.

    Raises `MergeError` where a mean of their weights would mean nothing, and `ModelError` as `opened`.
    """
    everyone = [*names, base] if base else list(names)
    parents = [opened(name, scratch, trust_remote_code) for name in everyone]
    _check_alike(parents, say)
    embedding, head, expected = _vocabulary_names(parents[0], trust_remote_code)
    if len({frozenset(_kept(parent.tensors) - head) for parent in parents}) > 1:  # names of several releases
        parents = [opened(parent.name, scratch, trust_remote_code, rewrite=True) for parent in parents]
    embedding = {_stored(name, parents[0].tensors) for name in embedding}
    tensors = [{name: one for name, one in parent.tensors.items() if not NO_WEIGHT.search(name)} for parent in parents]
    own = [_own_head(state, parent.config, embedding, head) for state, parent in zip(tensors, parents, strict=True)]
    for state, has_own in zip(tensors, own, strict=True):
        for name in head:
            state.pop(name, None) if not has_own else None
            if any(own) and not has_own:
                state[name] = state[next(iter(embedding))]
    labels = {parent.name if i < len(names) else f"the base {parent.name}": i for i, parent in enumerate(parents)}
    dtypes = {next(one.dtype for one in state.values() if one.is_floating_point()) for state in tensors}
    if len(dtypes) > 1:
        say(f"the models are of several types ({', '.join(sorted(map(str, dtypes)))}); the child is of the first's")
    wide = embedding | head | {name.replace(".weight", ".bias") for name in head}
    check_states({label: tensors[i] for label, i in labels.items()}, wide)
    if any(own) and not all(own):
        tied = ", ".join(parent.name for parent, has_own in zip(parents, own, strict=True) if not has_own)
        say(f"{tied}: head and embedding are one matrix, which counts as both, and the child has a head of its own")
    rows, size, donor = _rows(parents, tensors, wide & set(tensors[0]), embedding)
    shapes = {name: one.shape for name, one in tensors[0].items()}
    shapes |= {name: (size, *shapes[name][1:]) for name in wide & set(shapes)}
    config = read_json(parents[0].folder / "config.json", names[0])
    for part in (config, config.get("text_config")):
        if isinstance(part, dict):
            part |= {"vocab_size": size} if "vocab_size" in part and rows else {}
            part |= {"tie_word_embeddings": False} if any(own) else {}
    stacked = bool(set(tensors[0]) - {_stored(name, tensors[0]) for name in expected} - head)
    return Family(tensors, rows, shapes, config, donor, parents[0].folder, stacked)


def _check_alike(parents: Sequence[Parent], say: Callable[[str], object]) -> None:
    first, *others = parents
    for other in others:
        if apart := config_differences(first, other):
            raise MergeError(
                f"{first.name} and {other.name} compute differently: {'; '.join(apart)}; a mean of their weights "
                "means nothing: merge models of one configuration, or correct config.json where it is mistaken"
            )
        for one in parents[: parents.index(other)]:
            if apart := token_differences(one, other):
                raise MergeError(f"{one.name} and {other.name} have different tokenizers: {apart}; {_UNION}")
        if other.tokenizer is not None and first.tokenizer is not None and (apart := reading_difference(first, other)):
            say(f"the tokenizers of {first.name} and {other.name} cut text differently: {apart}; the child has one")
    for text in missing_tokenizers(parents):
        say(text)


def _vocabulary_names(
    parent: Parent, trust_remote_code: bool, *, check: bool = True
) -> tuple[set[str], set[str], set[str]]:
    """Names of embedding, head and all tensors, as the model calls them; its weights are checked against its config."""
    from transformers import AutoModelForCausalLM

    with quiet(), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(parent.config, trust_remote_code=trust_remote_code)
    expected, held = model.state_dict(), parent.tensors
    inside, outside = model.get_input_embeddings(), model.get_output_embeddings()
    named = {id(module): f"{name}.weight" for name, module in model.named_modules()}
    embedding, head = {named[id(inside)]}, {named[id(outside)]} if outside is not None else set()
    known = {name: _stored(name, held) for name in expected} if check else {}
    for name, stored in known.items():
        if stored in held and held[stored].shape != tuple(expected[name].shape):
            raise MergeError(
                f"{parent.name}: tensor {stored} is {list(held[stored].shape)} in its weights and "
                f"{list(expected[name].shape)} by config.json; they belong to different models"
            )
    missing = sorted(name for name, stored in known.items() if stored not in held and name not in head)
    if missing and not _kept(held) - set(known.values()):
        raise MergeError(f"{parent.name}: {missing[0]} is missing from its weights; they belong to another config.json")
    return embedding, head, set(expected)


def _stored(name: str, tensors: Mapping[str, FileTensor]) -> str:
    """A tensor's name in the files: as the model calls it, without the prefix that older releases left out, or with its
    prefixes in another order, as files of multimodal models have them."""
    short_name = name.partition(".")[2]
    if name in tensors or short_name in tensors:
        return name if name in tensors else short_name
    parts = sorted(name.split("."))
    return next((other for other in tensors if len(other) == len(name) and sorted(other.split(".")) == parts), name)


def _kept(tensors: Mapping[str, FileTensor]) -> set[str]:
    return {name for name in tensors if not NO_WEIGHT.search(name)}


def _own_head(state: Mapping[str, FileTensor], config: Any, embedding: set[str], head: set[str]) -> bool:
    """Whether a model's head is not its embedding; as transformers does it, two that differ are not tied."""
    if not head or not head <= set(state):
        return False
    if not getattr(config.get_text_config(), "tie_word_embeddings", True):
        return True
    a, b = state[next(iter(head))], state[next(iter(embedding))]
    return not same(a, b)


def mend(folder: Path, trust_remote_code: bool = False) -> None:
    """Make the config of a merged folder true of its weights: rows of the vocabulary, and whether its head is its own.

    Raises `MergeError` where it still does not describe them.
    """
    child = opened(str(folder), folder, trust_remote_code)
    path, (embedding, head, _) = folder / "config.json", _vocabulary_names(child, trust_remote_code, check=False)
    config = read_json(path, str(folder))
    held, (name,) = child.tensors, {_stored(name, child.tensors) for name in embedding}
    own = bool(head) and head <= set(held) and not same(held[next(iter(head))], held[name])
    for part in (config, config.get("text_config")):
        if isinstance(part, dict) and "vocab_size" in part:
            part |= {"vocab_size": held[name].shape[0], **({"tie_word_embeddings": False} if own else {})}
    write_json(path, config)
    for_older_releases(folder)
    _vocabulary_names(opened(str(folder), folder, trust_remote_code), trust_remote_code)


def _rows(
    parents: Sequence[Parent], tensors: Sequence[Mapping[str, FileTensor]], wide: set[str], embedding: set[str]
) -> tuple[dict[str, Rows], int, Parent]:
    """Rows of the child's vocabulary: which models have which, how many there are, and who gives the tokenizer.

    A model has the rows of its tokens, and without a tokenizer all; what lies beyond is padding.
    """
    (name,) = embedding
    sizes = [state[name].shape[0] for state in tensors]
    tokens = [1 + max(_tokens(parent), default=0) if parent.tokenizer else 0 for parent in parents]
    widest = max(range(len(parents)), key=lambda i: tokens[i])
    donor = parents[widest]
    if len(set(sizes)) == 1 and len({count for count in tokens if count}) <= 1:
        return {}, sizes[0], donor
    for parent in parents:
        if parent.tokenizer and donor.tokenizer and (alone := set(_tokens(parent)) - set(_tokens(donor))):
            such = f"{len(alone):,} tokens of {parent.name} are not in {donor.name}, and others the other way round"
            raise MergeError(f"{parent.name} and {donor.name} have different tokenizers: {such}; {_UNION}")
    counts = [min(count or size, size) for count, size in zip(tokens, sizes, strict=True)]
    filler = 0 if sizes[0] >= max(counts) else max(range(len(sizes)), key=lambda i: (counts[i], sizes[i]))
    size, rows = sizes[filler], {}
    for one in wide:
        width = tensors[0][one].numel() // max(1, tensors[0][one].shape[0])
        rows[one] = Rows([count * width for count in counts], size * width, filler)
    return rows, size, donor


def _tokens(parent: Parent) -> dict[int, str]:
    """Token of every id."""
    return {index: token for token, index in parent.tokenizer.get_vocab().items()} if parent.tokenizer else {}
