"""Two models and their SAEs in hand: what must hold of them before any work is done on them, and what is to be said."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Union, get_args

from heredity.analyses.pretrained import trained_on
from heredity.errors import one_of
from heredity.lm.reading import Prefix, refuse_beyond_positions
from heredity.text.spoken import Roles

if TYPE_CHECKING:
    from heredity.sae.model import SAE

Given = Union["SAE", str, Path]
"""An SAE, or the folder of one."""
Ends = Mapping[str, Sequence["Opened"]]
"""SAEs of the parent and of the child; none of a child that the parent's read."""


class Opened(NamedTuple):
    given: Given
    sae: SAE
    metadata: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.given) if isinstance(self.given, str | Path) else "in hand"


def opened(given: Iterable[Given]) -> list[Opened]:
    """SAEs with what their folders say of them."""
    from heredity.sae.formats import read_sae

    return [Opened(one, *(read_sae(Path(one)) if isinstance(one, str | Path) else (one, {}))) for one in given]


def further(name: str, given: Given | Sequence[Given] | Literal["train"] | None) -> tuple[list[Given], bool]:
    """SAEs that an argument gives besides the first, and whether one is to be trained.

    One SAE may stand for a list of one. Raises ValueError for a word that is neither `train` nor a place of an SAE.
    """
    from heredity.sae.formats import PUBLISHED

    if given is None or (isinstance(given, str) and given == "train"):
        return [], given == "train"
    some = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    for one in some:
        if isinstance(one, str) and not one.startswith(PUBLISHED) and not Path(one).exists():
            raise ValueError(f"{name}={one!r}: is neither 'train' nor the folder of an SAE; correct the word or path")
    return some, False  # pyright: ignore[reportReturnType]


def check_words(prefix: Prefix | None, roles: Roles, context_size: int) -> None:
    """Raise ValueError for values that stand for nothing."""
    one_of("roles", roles, get_args(Roles))
    if prefix is not None:
        one_of("prefix", prefix, get_args(Prefix), "None, as the SAE says")
    if context_size < 2:
        raise ValueError(f"context_size={context_size} must be 2 or more")


def check_pair(models: Sequence[Any], saes: Ends, place: str, names: tuple[str, str]) -> None:
    """That two models differ, give vectors of one width at the place, and that every SAE reads that width and was
    trained on these weights. Raises ValueError; HookPointError where a model has no such place."""
    import torch

    from heredity.lm.hooks import caught_at
    from heredity.lm.load import state_hash

    states = [state_hash(model.state_dict()) for model in models]
    if states[0] == states[1]:
        raise ValueError(f"{names[0]} and {names[1]} have identical weights; check the paths or revisions")
    tokens = torch.zeros(1, 2, dtype=torch.long)
    widths = [int(caught_at(model, (place,), tokens.to(model.device))[0].shape[-1]) for model in models]
    if widths[0] != widths[1]:
        raise ValueError(
            f"{place} is {widths[0]} wide in {names[0]} and {widths[1]} in {names[1]}; features are matched at one "
            "width, use a stitch between models of different size"
        )
    for some, state, name in zip(saes.values(), states, names, strict=True):
        for one in some:
            if state not in (trained_on(one.metadata) or [state]):
                wrong = f"SAE {one.given} was trained on other weights than the model it is given for"
                raise ValueError(f"{wrong}; check the pairing")
            if one.sae.d_in != widths[0]:
                reads = f"SAE {one.name} reads vectors of width {one.sae.d_in}, and {place} gives {widths[0]} in {name}"
                raise ValueError(f"{reads}; give an SAE trained at this hook point")
        for one in some[1:]:
            a, b = some[0].sae.W_dec, one.sae.W_dec
            if a.shape == b.shape and bool((a == b).all()):
                raise ValueError("a control is the SAE itself; give one of another seed, or stability says nothing")


def check_positions(models: Sequence[Any], names: tuple[str, str], context_size: int, prefix: int | None) -> None:
    """That blocks fit both models, with the token before them. Raises ValueError."""
    for model, name in zip(models, names, strict=True):
        refuse_beyond_positions(model, name, {"context_size": context_size}, prefix is not None)


def check_made_for(
    saes: Sequence[Opened], model: Any, name: str, place: str, asked: bool, context_size: int
) -> Iterator[str]:
    """What is to be said of SAEs that were made for another use. Raises ValueError for those of another place.

    asked: the place was asked for. Then a name of an SAE's that the model does not know is its library's own, and one
    of a place of another width than the SAE's is wrong.
    """
    from heredity.lm.hooks import HookPointError, width
    from heredity.sae.made_for import differences, refuse_other_place

    for one in saes:
        own = one.metadata.get("hook_name")
        way_out = f"leave hook_point out, give {own!r}, or an SAE of {place}" if asked else "give SAEs of one place"
        try:
            there = width(model.config, own) if asked and own not in (None, place) else None
            if there not in (None, one.sae.d_in):
                wide = f"SAE {one.name} says {own}, which is {there} wide, and reads vectors of width {one.sae.d_in}"
                yield f"{wide}; it is read at {place}, as asked"
            else:
                refuse_other_place(one.name, one.metadata, model, place, way_out)
        except HookPointError as error:
            if not asked:
                raise
            yield f"{error}; it is read at {place}, as asked"
        yield from differences(one.name, one.metadata, model, name, context_size)
