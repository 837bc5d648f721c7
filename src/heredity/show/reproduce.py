"""A run beside its paper, as one Markdown text with pictures in a folder of the same name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from heredity import format
from heredity.analyses import TABLES
from heredity.engine.store import whole
from heredity.papers.beside import BESIDE, CLAIMS, SCALE
from heredity.papers.pictures import draw
from heredity.papers.reproduction import NAMES, Reproduction
from heredity.show import seen
from heredity.show.markdown import table
from heredity.tables import Table

if TYPE_CHECKING:
    from heredity.results import Run

_AGREES = (
    "A figure agrees where the published value lies inside our interval or within 10 % of ours, is near within a "
    "factor of 1.5, and differs otherwise, by the factor that stands beside it. Of a published range ours is inside, "
    "below or above; a bound is met or not, or cannot be told where our interval holds it. What the paper gives in "
    "words or draws without numbers has no word; `not measured` is what this run lacks. Places are sections of the "
    "paper: T is arXiv 2410.12391, S is 2506.06609; cards, code and review are what was published beside them."
)
_CLAIMS = {
    "tracking": "`yes` and `no` say on which side of the paper's claim the whole interval lies, undecided features "
    "counted for what they could be; `most` is more than half, `few` less. Counts at r > 0.8 are asked twice: of the "
    "parent's live features, and of the share that persists into an SAE of another seed of the parent itself (the "
    "ceiling).",
    "stitching": "`yes` and `no` say on which side of the paper's claim ours lies, with the whole interval where there "
    "is one. FLOPs saved charge the fit of the maps, as the paper does, not the reading of the models for it; seconds "
    "charge both.",
}


def parts(
    found: Reproduction, deviations: Sequence[Mapping[str, Any]]
) -> list[tuple[Table, Sequence[Mapping[str, Any]]]]:
    """Tables in the order in which they are read."""
    told = [(CLAIMS, found.claims), (SCALE, found.scale), (BESIDE, found.beside_paper)]
    return told + ([(TABLES["deviations"], deviations)] if deviations else [])


def write(run: Run, found: Reproduction, out: Path) -> str:
    """Write the text, and its pictures into the folder `NAME_pictures` beside it; each file whole or not at all.

    Returns why there are no pictures, or nothing. Raises ValueError, before anything is written, for a name that does
    not end in .md, and for a folder.
    """
    if out.suffix != ".md" or out.is_dir():
        raise ValueError(
            f"-o {out}: {'is a folder' if out.is_dir() else 'is no .md file'}; give a file such as beside.md"
        )
    rows, pictures, missing = {name: rows.to_pylist() for name, rows in run.tables.items()}, dict[str, Path](), ""
    try:
        pictures = draw(run.study, found.paper, rows, out.with_name(f"{out.stem}_pictures"))
    except ImportError as error:
        missing = f"no pictures: matplotlib cannot be used ({error}); pip install -c constraints.txt -e '.[pictures]'"
    with whole(out) as partial:
        partial.write_text(render(run, found, rows, pictures), encoding="utf-8")
    return missing


def render(
    run: Run, found: Reproduction, rows: Mapping[str, Sequence[Mapping[str, Any]]], pictures: Mapping[str, Path]
) -> str:
    """The text. pictures: files by title."""
    cost = f"{format.duration(run.seconds)} of work, {run.peak_memory_gib:.1f} GiB at most"
    text = [f"# {run.name}, beside the paper", f"{NAMES[found.paper]}. {cost}."]
    heads = {
        CLAIMS.name: f"## What stands\n\n{_CLAIMS[found.paper]}",
        SCALE.name: "## Scale",
        BESIDE.name: f"## Every figure\n\n{_AGREES}",
        "deviations": "## What differs, and why",
    }
    for declared, own in parts(found, rows.get("deviations", ())):
        text += [heads[declared.name], table(declared, own)]
        if declared is SCALE and pictures:
            text.append("## Pictures")
            text += [
                f"### {title}\n\n![{title}]({quote(f'{file.parent.name}/{file.name}')})"
                for title, file in pictures.items()
            ]
    return "\n\n".join("\n".join(map(seen, part.split("\n"))) for part in text) + "\n"
