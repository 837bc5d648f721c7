"""What an analysis is: one question, in one file with its settings, computation, tables and sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel

from heredity.engine.stage import Work
from heredity.engine.store import digest
from heredity.study import Precision, Study
from heredity.tables import Rows, Table

Item = dict[str, Any]
"""Key columns that tell one stage of a kind from the others: `{"instrument": "joint", "edge": "base->lua"}`."""
Need = tuple[str, Item]
"""The stage that an input comes from: kind and item."""
Needs = dict[str, Need | dict[str, Need]]
"""Inputs by role; a role may hold several by name."""
Results = Mapping[str, Rows]
"""Rows by name of the table; key columns of the item may be left out."""
Tables = Mapping[str, Sequence[Mapping[str, Any]]]
"""Rows of every small table of a run, as dicts."""


class Aside(NamedTuple):
    """A setting outside of the key: it tells where to look, never what the result is."""

    value: Any

    def __str__(self) -> str:
        return str(self.value)


class Passes(NamedTuple):
    """Matrix products of language models."""

    flops: float = 0.0
    precision: Precision = "float32"
    """Their type, where the device multiplies it natively."""
    training: bool = False
    """Whether gradients are taken, at a lower share of the rate."""


class Cost(NamedTuple):
    """Estimate of a stage's work."""

    tokens: int = 0
    """Tokens it reads."""
    flops: float = 0.0
    """Floating-point operations of its matrix products, beside those of passes."""
    gib: float = 0.0
    """Memory of its largest buffers."""
    efficiency: float = 0.35
    """Share of the measured matrix rate that it reaches on two cores."""
    seconds: float = 0.0
    """Time of what is no matrix product."""
    passes: Passes = Passes()
    """Of language models, which run at a rate of their own."""


class Statement(NamedTuple):
    """A finding in one sentence, with the figures behind it."""

    about: str
    """Model, edge or stitch."""
    question: str
    """What it answers: inherited, lost, new, sure, merge ..., or note for what to know before relying on a figure."""
    text: str
    """The sentence."""
    evidence: tuple[str, ...] = ()
    """Figures, each with its denominators."""
    instrument: str = ""
    """Origin of the SAEs it rests on; empty where there is none."""
    site: str = ""
    """Where these read, in a study of several sites; empty for what does not depend on it."""


def _nothing(*_: Any) -> tuple[()]:
    return ()


def _free(*_: Any) -> Cost:
    return Cost()


def _never(*_: Any) -> bool:
    return False


class Analysis(NamedTuple):
    """One question put to a study. `run` sees its inputs and its settings, and nothing else of the study: whatever can
    change a number is in the key."""

    kind: str
    """Name of the stage, and folder under the study's."""
    version: int
    """Raised when a change of the code changes numbers."""
    title: str
    """Heading on the page and in the documentation."""
    items: Callable[[Study], Iterable[Item]]
    """Which stages of this kind a study has, inputs before what is made from them."""
    settings: Callable[[Study, Item], Any]
    """A NamedTuple of all that `run` reads besides its inputs."""
    needs: Callable[[Study, Item], Needs]
    """Inputs."""
    run: Callable[[Work, Any], Results]
    """(work, settings) -> rows of every declared table; files of other forms go into `work.folder`."""
    tables: tuple[Table, ...] = ()
    """Declarations."""
    cost: Callable[..., Cost] = _free
    """(study, item, shapes) -> estimate; see `plan.Shapes`."""
    say: Callable[[Tables], Iterable[Statement]] = _nothing
    """Findings, from the tables alone."""
    reseeded: Callable[[Study, Item], bool] = _never
    """Whether a training repeat makes the stage anew with a seed of its own."""
    divided: Callable[[Study, Item], bool] = _never
    """Whether ranks make the stage together (see `engine.ranks`)."""
    across_sites: bool = False
    """Whether findings compare sites; those of others are said of each site apart."""


def seed_of(study: Study, *names: object) -> int:
    """A seed for one part of a study; all follow from the study's."""
    return int(digest([study.config.seed, *names])[:8], 16)


def name_of(item: Item, repeat: int = 0) -> str:
    """The item as part of a path: `base@joint`, `base+lua@joint`; separators that no name of a study can hold."""
    order = (
        "edge",
        "text",
        "model",
        "corpus",
        "direction",
        "stitch",
        "d_sae",
        "arm",
        "task",
        "sae",
        "reference",
        "instrument",
        "use",
        "site",
    )
    parts = [str(item[key]).replace("->", "+") for key in order if item.get(key) not in (None, "")]
    return ("@".join(parts) or "study") + (f"~{repeat}" if repeat else "")


def plain(value: Any) -> Any:
    """Settings as JSON: what a stage's key is the digest of."""
    if isinstance(value, Aside):
        return None
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if hasattr(value, "_asdict"):
        return {name: plain(part) for name, part in value._asdict().items()}
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value


def rows_of(tables: Tables, name: str, **key: Any) -> list[Mapping[str, Any]]:
    """Rows of a table with these values; none for a table that the run does not have."""
    return [row for row in tables.get(name, ()) if all(row.get(column) == value for column, value in key.items())]
