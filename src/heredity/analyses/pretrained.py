"""SAEs that a study names in place of trained ones: what identifies them, and whether they belong where they are read.

An SAE is known by its content, wherever its folder lies. The place, the weights and the first token that its folder
says it was trained with are compared with its use, and what differs is refused by name; of another model's name, which
says less, there is a note.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from heredity.analyses.analysis import Aside, Item
from heredity.analyses.loaded import config_here, local_folder
from heredity.analyses.reading import load, state_of, tokenizer_of
from heredity.engine.stage import Work
from heredity.study import Study, StudyError

if TYPE_CHECKING:
    from heredity.sae.model import SAE

KEYS = {"scratch": "sae", "control1-independent": "second_sae"}
"""Keys of a model's table by the name of the SAE that stands in their place."""


class PretrainedSAE(NamedTuple):
    """An SAE that a study names."""

    release: str | None
    """`saelens:RELEASE/ID`; None for a folder, which its content identifies wherever it lies."""
    content: str | None
    folder: Aside
    place: Aside
    hook_point: str
    any_prefix: bool
    """Whether the study itself says what stands before every block, so that the SAE need not agree."""
    model: Aside
    """Name of the model for notes: what it was loaded from."""
    context_size: Aside
    """Tokens of the blocks it is read on, for notes."""


def named(study: Study, item: Item) -> str | None:
    """Reference of the SAE that stands in the place of a trained one."""
    site = item.get("site", study.site)
    return study.given_sae(item["model"], KEYS[item["sae"]], site) if item["sae"] in KEYS else None


def pretrained(study: Study, item: Item) -> PretrainedSAE | None:
    """The SAE that stands in the place of a trained one. Raises StudyError for a folder that is not there."""
    if (given := named(study, item)) is None:
        return None
    name, key, site = item["model"], KEYS[item["sae"]], item.get("site", study.site)
    folder, place = sae_folder(study, f"model.{name}.{key}", given), f"{study.name}: model.{name}.{key}"
    content = study.identity(f"model.{name}.{key}.{site}", lambda: None if folder is None else _digest(folder))
    which = (None, content) if content else (given, None)
    asked = study.config.reading.prefix != "auto"
    model, context = Aside(study.config.model[name].load or ""), Aside(study.config.sae.context_size)
    return PretrainedSAE(*which, Aside(folder), Aside(place), site, asked, model, context)


def _digest(folder: Path) -> str:
    from heredity.text.corpora import file_digest

    return file_digest(sorted(path for path in (folder, *folder.rglob("*")) if path.is_file()))


def sae_folder(study: Study, key: str, given: str) -> Path | None:
    """Folder or file of an SAE that a study names; None for one of a release. Raises StudyError where there is none."""
    from heredity.sae.formats import PUBLISHED

    if given.startswith(PUBLISHED):
        return None
    if (folder := local_folder(study, key, given)) is None:
        wrong = f"{study.name}: {key}: {given}: no such folder"
        raise StudyError(f"{wrong}; correct the path, or write {PUBLISHED}RELEASE/ID for one that SAELens knows")
    return folder


def check_pretrained(study: Study, widths: Mapping[tuple[str, str], int | None]) -> None:
    """That the SAEs which a study names can be read, and were made for the width and the place they are read at, as far
    as can be told without weights of models. Releases are not fetched. Raises StudyError.

    widths: by model and site, None where it is not known.
    """
    for name, site in itertools.product(study.followed, study.sites):
        for sae in KEYS:
            settings = pretrained(study, {"model": name, "sae": sae, "site": site})
            if settings is None or settings.folder.value is None:
                continue
            read, metadata = _read(settings)
            _check_width(settings, read, widths.get((name, site)))
            config, trusted = config_here(study, name)
            if config is not None:
                from heredity.lm.trace import skeleton

                with skeleton(config, trusted) as model:
                    _notes(settings, metadata, model)


def take_over(work: Work, settings: PretrainedSAE) -> None:
    """Write the SAE as a trained one is written. Raises StudyError where it was made for another use."""
    import torch

    from heredity.lm.hooks import caught_at
    from heredity.lm.reading import reading_of
    from heredity.sae.formats import read_sae, write_sae
    from heredity.sae.made_for import refuse_other_prefix

    ((name, artifact),) = work.inputs["model"].items()
    model, (sae, metadata), given = load(artifact), _read(settings), _name(settings)
    with torch.no_grad():
        (caught,) = caught_at(model, (settings.hook_point,), torch.zeros(1, 2, dtype=torch.long))
    _check_width(settings, sae, caught.shape[-1])
    notes, state = _notes(settings, metadata, model), state_of(artifact)
    if state not in (trained_on(metadata) or [state]):
        raise StudyError(f"{settings.place}: {given} was trained on other weights than those of {name}")
    try:
        if not settings.any_prefix:
            tokenizer = tokenizer_of(work.inputs["tokenizer"])
            refuse_other_prefix(given, metadata, tokenizer, reading_of(model).prefix)
    except ValueError as error:
        raise StudyError(f"{settings.place}: {error}") from None
    if "first" in work.inputs:
        refuse_twin(settings, sae, read_sae(work.inputs["first"] / "sae")[0])
    metadata |= {"hook_name": settings.hook_point, "model_state": trained_on(metadata) or state, "notes": notes}
    write_sae(sae, work.folder / "sae", metadata)


def trained_on(metadata: Any) -> list[str]:
    """Hashes of the weights that an SAE was trained on: one model's, those of all for a joint SAE, or unknown."""
    state = metadata.get("model_state")
    return [] if state is None else [state] if isinstance(state, str) else list(state)


def refuse_twin(settings: PretrainedSAE, sae: SAE, first: SAE) -> None:
    """Raise StudyError where a second SAE is the first one again."""
    if sae.W_dec.shape == first.W_dec.shape and bool((sae.W_dec == first.W_dec).all()):
        again = f"{_name(settings)} is the SAE itself"
        raise StudyError(f"{settings.place}: {again}; give one of another seed, or leave it out to train one")


def _read(settings: PretrainedSAE) -> tuple[SAE, dict[str, Any]]:
    from heredity.sae.formats import FormatError, read_sae

    try:
        return read_sae(settings.folder.value or str(settings.release))
    except FormatError as error:
        raise StudyError(f"{settings.place}: {error}") from None


def _name(settings: PretrainedSAE) -> str:
    return str(settings.folder.value or settings.release)


def _check_width(settings: PretrainedSAE, sae: SAE, width: int | None) -> None:
    if width is not None and sae.d_in != width:
        reads = f"{_name(settings)} reads vectors of width {sae.d_in}, and {settings.hook_point} gives {width}"
        raise StudyError(f"{settings.place}: {reads}; give an SAE trained at this hook point")


def _notes(settings: PretrainedSAE, metadata: dict[str, Any], model: Any) -> list[str]:
    """How the model is another than the SAE's folder names. Raises StudyError for another place."""
    from heredity.lm.hooks import HookPointError
    from heredity.sae.made_for import differences, refuse_other_place

    given, notes = _name(settings), []
    way_out = f"set hook_point = {metadata.get('hook_name')!r}, or give an SAE of {settings.hook_point}"
    try:
        refuse_other_place(given, metadata, model, settings.hook_point, way_out)
    except HookPointError as error:  # its library has a name of its own for the place
        notes.append(f"{error}; it is read at {settings.hook_point}, as the study says")
    except ValueError as error:
        raise StudyError(f"{settings.place}: {error}") from None
    return [*notes, *differences(given, metadata, model, str(settings.model), settings.context_size.value)]
