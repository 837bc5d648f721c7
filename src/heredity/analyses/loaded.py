"""Models that a study loads: where they lie, what identifies them, and whether they fit together, told before any
weights are read."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heredity.study import Study, StudyError
from heredity.study.places import local_path

if TYPE_CHECKING:
    from heredity.lm.checkpoint import Source

_READ_AT_ONCE = 4 << 30  # bytes of weights that are looked at before a run; larger ones when they are first loaded
_CONTENT = ("*.safetensors", "*.safetensors.index.json", "config.json", "adapter_config.json", "*.py")


def local_folder(study: Study, key: str, reference: str) -> Path | None:
    """The folder, or GGUF file, that the value of a key names; None for what may lie on the hub.

    Raises StudyError for a relative path that leads nowhere from the study file and somewhere from the working folder:
    read from there, the study would be another in every folder it is started in.
    """
    folder = study.folder(key, reference)
    here = Path.cwd() / Path(reference).expanduser()
    if folder is None and here.exists():
        right = os.path.relpath(here, study.root)
        raise StudyError(
            f"{study.name}: {key}: {reference}: relative paths start at the study file's folder ({study.root}), where "
            f'there is none; one lies in the working folder: write "{right}" for that'
        )
    return folder


def refuse_missing(study: Study, key: str, reference: str) -> None:
    """Raise StudyError for the value of a key that names no folder, in one that is there: a misspelt path, which would
    be looked for on the hub."""
    above = local_path(reference, study.root).parent
    if "/" in reference and local_folder(study, key, reference) is None and above.is_dir():
        raise StudyError(
            f"{study.name}: {key}: {reference}: {above} has no folder {Path(reference).name}; correct the path"
        )


def config_here(study: Study, name: str) -> tuple[Any, bool]:
    """Configuration of a model that is loaded from this disk, or made of one that is, and whether its code is run;
    None for any other."""
    from heredity.lm.checkpoint import located
    from heredity.lm.load import config_of

    while study.config.model[name].load is None:
        if not study.parents[name]:
            return None, False
        name = study.parents[name][0]
    trusted, path = study.config.model[name].trust_remote_code, model_folder(study, name)
    source = base_source(located(str(path), code=trusted)) if path else None
    return config_of(source, trusted) if source else None, trusted


def model_folder(study: Study, name: str) -> Path | None:
    """The folder, or GGUF file, of a model that is loaded; see `local_folder`."""
    return local_folder(study, f"model.{name}.load", study.config.model[name].load or "")


def derived_file(study: Study, name: str) -> Path | None:
    """What a model that is made from its parent reads: the folder of its adapter, or the file of its direction; None
    where it reads none, for a direction of the study, and for what may lie on the hub."""
    model, place = study.config.model[name], f"model.{name}"
    if model.adapter is not None:
        return local_folder(study, f"{place}.adapter", model.adapter)
    if model.edit is not None and model.edit.project_out is not None and model.edit.direction is None:
        return local_folder(study, f"{place}.edit.project_out", model.edit.project_out)
    return None


def adapter_note(study: Study, name: str) -> str | None:
    """What is to be said of the model that an adapter names as its base, where that is not plainly its parent; None for
    an adapter that does not lie here, or names none."""
    from heredity.lm.checkpoint import ADAPTER, Source, base_of_adapter, read_json

    folder, parent = derived_file(study, name), study.parents[name][0]
    if folder is None or not (folder / ADAPTER).is_file():
        return None
    if not read_json(folder / ADAPTER, str(folder)).get("base_model_name_or_path"):
        return "does not say which model it was trained on"
    base, load = base_of_adapter(Source(str(folder), folder)), study.config.model[parent].load
    if load is None:
        return f"says that it was trained on {base}, and its parent {parent} is a model of this study"
    own, lies_here = model_folder(study, parent), Path(base).is_dir()
    if own is not None and lies_here:
        same = content_digest(own) == content_digest(Path(base))
        return None if same else f"says that it was trained on {base}, whose weights are not those of {parent}"
    if own is None and not lies_here:
        same = load.partition("@")[0] == base.partition("@")[0]
        return None if same else f"says that it was trained on {base}, and its parent {parent} is {load}"
    return f"says that it was trained on {base}; whether that is its parent {parent} ({load}) cannot be told here"


def weights_digest(path: Path) -> str:
    """Digest of a file, or of weights, configuration and code in a folder."""
    from heredity.text.corpora import file_digest

    found = sorted(file for pattern in _CONTENT for file in path.glob(pattern) if file.is_file())
    return file_digest([path] if path.is_file() else found)


def content_digest(path: Path) -> str:
    """Digest of all that makes a local model: weights, configuration and code, of an adapter those of its base too."""
    from heredity.engine.store import digest
    from heredity.lm.checkpoint import ADAPTER, Source, base_of_adapter, base_revision

    own = weights_digest(path)
    if not (path / ADAPTER).exists():
        return own
    source = Source(str(path), path)
    base = base_of_adapter(source)
    beneath = content_digest(Path(base)) if Path(base).is_dir() else [base, base_revision(source)]
    return digest([own, beneath])


def check_loaded(study: Study) -> dict[tuple[str, str], int]:
    """Look at every loaded model that lies here: its files, its configuration, whether its tokenizer reads as the
    study's does, and what passes the hook points. Nothing is fetched.

    Returns the widths of the study's sites by model and site, where they can be found. Raises StudyError, by key.
    """
    from heredity.lm.checkpoint import ModelError, located
    from heredity.lm.load import check_decoder, config_of

    widths, first = dict[tuple[str, str], int](), None
    for name in sorted(study.order, key=lambda name: name != study.starts[0]):
        model = study.config.model[name]
        if model.load is None or (path := model_folder(study, name)) is None:
            continue
        place, trusted = f"{study.name}: model.{name}.load", model.trust_remote_code
        try:
            source = located(str(path), code=trusted)
            base = base_source(source)
            config = config_of(base, trusted) if base else None
            if config is not None:
                check_decoder(source, config)
        except ModelError as error:
            raise StudyError(f"{place}: {error}") from None
        if config is not None:
            _check_weights(study, name, source, config)
        first = first or _study_tokenizer(study)
        if first is not None:
            _check_tokenizer(study, name, source, config, first)
        if config is not None:
            widths |= _check_places(study, name, config)
            _check_positions(study, name, config)
    for name in study.order:
        _check_derived(study, name)
    for name in study.order:  # what is made from a model has its shape
        for site in study.sites if study.parents[name] and study.config.model[name].load is None else ():
            if (width := widths.get((study.parents[name][0], site))) is not None:
                widths.setdefault((name, site), width)
    return widths


def _check_derived(study: Study, name: str) -> None:
    """That the files that a model is made with are there, that an adapter is one and fits its parent, and that groups
    of quantized weights divide its rows. Raises StudyError, by key."""
    from heredity.lm.checkpoint import ADAPTER, ModelError, is_local, located
    from heredity.lm.quantize import refuse_group_size
    from heredity.lm.trace import check_adapter, skeleton

    model, file = study.config.model[name], derived_file(study, name)
    config, trusted = config_here(study, name) if model.quantize or model.adapter else (None, False)
    if model.quantize and config is not None:
        with skeleton(config, trusted) as parent:
            try:
                refuse_group_size(parent, model.quantize)
            except ValueError as error:
                raise StudyError(f"{study.name}: model.{name}.quantize: {error}") from None
    if model.edit is not None and model.edit.project_out is not None and model.edit.direction is None and file is None:
        place = f"{study.name}: model.{name}.edit.project_out"
        raise StudyError(f"{place}: {model.edit.project_out}: no such file; correct the path")
    if model.adapter is None:
        return
    refuse_missing(study, f"model.{name}.adapter", model.adapter)
    try:
        if file is not None and not (file / ADAPTER).exists():
            raise ModelError(f"{file}: holds no adapter (there is no {ADAPTER}); give the folder that peft wrote")
        if is_local(str(file or model.adapter)):
            source = located(str(file or model.adapter))
            if config is not None:
                check_adapter(config, source, study.parents[name][0], trusted)
    except ModelError as error:
        raise StudyError(f"{study.name}: model.{name}.adapter: {error}") from None


def reader(study: Study, name: str) -> str:
    """The model whose tokenizer a model reads by: the study's first start, or, of a loaded model that is on no edge and
    joined to others by stitches alone, the first with the same tokenizer, which may be the model itself.

    A model or a tokenizer that does not lie here is taken for one of the first start's until it is loaded.
    """
    if name == study.starts[0] or name not in study.starts or name in study.followed:
        return study.starts[0]
    own = _tokenizer_place(study, name)
    for other in study.starts[: study.starts.index(name)]:
        place = _tokenizer_place(study, other)
        if own is None or (place is None and _loads(study, other)) or (place and not _apart(place, own)):
            return reader(study, other)
    return name


def across(study: Study, stitch: str) -> bool:
    """Whether the tokenizers of a stitch's source and target differ."""
    config = study.config.stitch[stitch]
    return reader(study, config.source) != reader(study, config.target)


def _loads(study: Study, start: str) -> str | None:
    """What the tokenizer of a start is loaded from; None where it is trained here."""
    given = study.config.tokenizer.load if start == study.starts[0] else None
    return given or study.config.model[start].load


def _tokenizer_place(study: Study, start: str) -> tuple[str, bool, int] | None:
    """Where the tokenizer of a start lies, whether its code is run, and when its files changed; None for one that does
    not lie here, and for one that is trained here."""
    from heredity.lm.checkpoint import tokenizer_place

    load, given = _loads(study, start), start == study.starts[0] and study.config.tokenizer.load
    path = local_folder(study, "tokenizer.load" if given else f"model.{start}.load", load) if load else None
    if path is None:
        return None
    place = Path(tokenizer_place(path))
    files = [place, *place.glob("*")] if place.is_dir() else [place]
    changed = max(file.stat().st_mtime_ns for file in files) if place.exists() else 0
    return str(place), study.config.model[start].trust_remote_code, changed


@lru_cache(maxsize=16)
def _apart(one: tuple[str, bool, int], other: tuple[str, bool, int]) -> str | None:
    """How two tokenizers differ; None where they do not, or one cannot be read, which is said where it is loaded."""
    from heredity.text.tokens import load_tokenizer
    from heredity.text.vocabularies import difference

    try:
        return difference(*(load_tokenizer(place, trust_remote_code=code) for place, code, _ in (one, other)))
    except ValueError:
        return None


def base_source(source: Source) -> Source | None:
    """The model itself, or the base of an adapter where that lies here."""
    from heredity.lm.checkpoint import ADAPTER, base_of_adapter, located

    if not (source.folder / ADAPTER).exists():
        return source
    base = base_of_adapter(source)
    return located(base) if Path(base).is_dir() else None


def _study_tokenizer(study: Study) -> Any:
    """The tokenizer that all models share, where it is loaded and lies here."""
    from heredity.lm.checkpoint import tokenizer_place
    from heredity.text.tokens import load_tokenizer

    start, given = study.config.model[study.starts[0]], study.config.tokenizer.load
    key = "tokenizer.load" if given else f"model.{study.starts[0]}.load"
    load = given or start.load
    path = local_folder(study, key, load) if load else None
    if path is None:
        return None
    try:
        return load_tokenizer(tokenizer_place(path), trust_remote_code=start.trust_remote_code)
    except ValueError as error:
        raise StudyError(f"{study.name}: {key}: {error}") from None


def _check_tokenizer(study: Study, name: str, source: Source, config: Any, shared: Any) -> None:
    from heredity.lm.checkpoint import tokenizer_place
    from heredity.text.tokens import load_tokenizer
    from heredity.text.vocabularies import check_rows, difference

    place, trusted = f"{study.name}: model.{name}.load", study.config.model[name].trust_remote_code
    try:
        own = load_tokenizer(tokenizer_place(source.folder / (source.gguf or "")), trust_remote_code=trusted)
        alone = reader(study, name) != study.starts[0]
        apart = None if alone else difference(shared, own)
        if config is not None and not apart:
            check_rows(own if alone else shared, config.get_text_config().vocab_size, source.name)
    except ValueError as error:
        raise StudyError(f"{place}: {error}") from None
    if apart:
        raise StudyError(f"{place}: {tokenizers_differ(source.name, study.starts[0], apart)}")


def tokenizers_differ(name: str, start: str, difference: str) -> str:
    """What to say of a model whose tokenizer is not the study's."""
    return (
        f"the tokenizer of {name} is not that of model {start}; models of one study must read the same tokens, unless "
        f"stitches alone join them and both lie here: {difference}"
    )


def _check_places(study: Study, name: str, config: Any) -> dict[tuple[str, str], int]:
    """Widths of the sites that are read in a model, by model and site; none of what cannot be traced."""
    from heredity.lm.checkpoint import ModelError
    from heredity.lm.hooks import HookPointError
    from heredity.lm.trace import shape_at

    widths = {}
    for key, point in _places(study, name):
        try:
            shape = shape_at(config, point, study.config.model[name].trust_remote_code)
        except HookPointError as error:
            raise StudyError(f"{study.name}: {key}: {error} (model {name})") from None
        except ModelError as error:
            raise StudyError(f"{study.name}: model.{name}.load: {error}") from None
        if shape and key == "hook_point":
            widths[name, point] = shape[2]
    return widths


def _check_positions(study: Study, name: str, config: Any) -> None:
    """That blocks, and the token before them, fit the positions that a model has learned an embedding for. Raises
    StudyError, by key."""
    from heredity.analyses.model import training_of
    from heredity.lm.reading import positions_of, refuse_beyond_positions
    from heredity.lm.trace import skeleton

    sizes = {"sae.context_size": study.config.sae.context_size} if study.instruments and name in study.followed else {}
    first = name
    while study.parents[first] and study.config.model[first].train is None:
        first = study.parents[first][0]
    sizes[f"model.{first}.context_size"] = training_of(study, name).context_size  # blocks that models are judged on
    for child in study.line_of(name):
        if study.config.model[child].kind == "finetune":
            sizes[f"model.{child}.context_size"] = study.config.model[child].context_size
    behind_prefix, most = study.config.reading.prefix != "none", positions_of(config)
    if most is None or max(sizes.values()) + behind_prefix <= most:
        return
    with skeleton(config, study.config.model[name].trust_remote_code) as model:
        try:
            refuse_beyond_positions(model, name, sizes, behind_prefix)
        except ValueError as error:
            raise StudyError(f"{study.name}: {error}") from None


def _check_weights(study: Study, name: str, source: Source, config: Any) -> None:
    """That the tensors of the files are those of the configuration, in name and shape, as far as names are those that
    the model calls them by, and that weights which are read in seconds are finite. Raises StudyError, by key."""
    from heredity.lm.checkpoint import ADAPTER, ModelError, tensors_of
    from heredity.lm.load import NO_WEIGHT, refuse_not_finite
    from heredity.lm.trace import skeleton
    from heredity.lm.weights import tensors_in

    if source.gguf or (source.folder / ADAPTER).exists() or getattr(config, "quantization_config", None):
        return
    place, trusted = f"{study.name}: model.{name}.load: {source.name}", study.config.model[name].trust_remote_code
    held = {}
    for file in sorted(source.folder.glob("*.safetensors")):
        held |= tensors_of(file, source.name)
    try:
        with skeleton(config, trusted) as model:
            expected = {tensor: tuple(one.shape) for tensor, one in model.state_dict().items()}
            pairs = dict(getattr(model, "all_tied_weights_keys", None) or {}).items()
            # Of tied tensors a file may hold either: safetensors' save_model keeps the first by name, lm_head.
            tied = {one for one, other in pairs} | {other for one, other in pairs if one in held}
            passed_over = [NO_WEIGHT, *map(re.compile, model._keys_to_ignore_on_load_unexpected or ())]
    except ModelError as error:
        raise StudyError(f"{study.name}: model.{name}.load: {error}") from None
    for tensor in sorted(expected.keys() & held.keys()):
        if expected[tensor] != held[tensor].shape:
            shapes = f"{list(held[tensor].shape)} in its weights and {list(expected[tensor])} by config.json"
            raise StudyError(f"{place}: tensor {tensor} is {shapes}; they belong to different models: copy both anew")
    more = [tensor for tensor in held.keys() - expected.keys() if not any(one.search(tensor) for one in passed_over)]
    if more and expected.keys() - tied <= held.keys():
        few = f"{len(more)} tensors of its weights are not told of by config.json ({min(more)})"
        raise StudyError(f"{place}: {few}; they belong to different models: copy both anew")
    missing = sorted(expected.keys() - held.keys() - tied)
    if missing and held.keys() <= expected.keys():
        few = f"{len(missing)} tensors that config.json tells of are not in its weights ({missing[0]})"
        raise StudyError(f"{place}: {few}; they belong to different models: copy both anew")
    if sum(file.stat().st_size for file in source.folder.glob("*.safetensors")) < _READ_AT_ONCE:
        try:
            refuse_not_finite(source.name, tensors_in(source.folder, source.name))
        except ValueError as error:
            raise StudyError(f"{study.name}: model.{name}.load: {error}") from None


def _places(study: Study, name: str) -> Iterator[tuple[str, str]]:
    """Hook points that are read in a model, with the keys that name them."""
    if study.instruments and name in study.followed:
        yield from (("hook_point", site) for site in study.sites)
    for stitch, config in study.config.stitch.items():
        if config.source == name:
            yield f"stitch.{stitch}.source_hook_point", config.source_hook_point or study.site
        if config.target == name and config.target_hook_point:
            yield f"stitch.{stitch}.target_hook_point", config.target_hook_point
    for direction, own in study.config.direction.items():
        if own.hook_point and name in study.line_of(own.model or study.starts[0]):
            yield f"direction.{direction}.hook_point", own.hook_point
