"""What people write about features, and tags, kept beside a run as one CSV file that other tools can read and write.

A note belongs to a feature of one SAE: where that was trained anew since, its numbers mean other features, and the note
is kept but not shown with them.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from heredity.analyses.query import check_followed
from heredity.analyses.sae import sae_need
from heredity.analyses.sample import acts_of
from heredity.engine.store import Store, whole
from heredity.errors import reading, short
from heredity.tables import Column, Table

if TYPE_CHECKING:
    from heredity.results import Run

FOLDER, FILE = "notes", "notes.csv"
LONGEST = 10_000  # characters of a note
_TAG = re.compile(r"[^\s,;]{1,50}")

NOTES = Table(
    "notes",
    "Notes on features.",
    ("instrument", "site", "model", "feature", "by"),
    (
        Column("by", "text", "Who wrote it."),
        Column("text", "text", "The note."),
        Column("tags", "text", "Its tags."),
        Column("current", "flag", "Whether the SAE is still the one that it was written about."),
    ),
)


class Note(NamedTuple):
    """A note of one person on one feature."""

    instrument: str
    site: str
    model: str
    feature: int
    sae: str  # the first 12 digits of the key of its SAE
    by: str  # who wrote it; empty where nobody is named
    text: str  # may be empty where there are tags
    tags: tuple[str, ...]
    written: str  # when, UTC

    @property
    def owner(self) -> tuple[object, ...]:
        """What there is one note of."""
        return self[:6]


def read_notes(run: Run) -> list[Note]:
    """All notes beside a run, those on SAEs of before as well. Raises ValueError, by line, for a damaged file."""
    path = run.folder / FOLDER / FILE
    return _parsed(path) if path.exists() else []


def notes_on(run: Run, place: dict[str, Any], model: str, feature: int) -> list[dict[str, Any]]:
    """Notes on one feature as it is now: `by`, `text`, `tags`, `written`. place: instrument and site."""
    sae = _sae(run, place, model)
    own = (place["instrument"], place["site"], model, feature, sae)
    return [
        {"by": note.by, "text": note.text, "tags": list(note.tags), "written": note.written}
        for note in read_notes(run)
        if note[:5] == own
    ]


def rows_of_notes(run: Run, notes: Iterable[Note]) -> list[dict[str, Any]]:
    """Rows of the table `notes`."""
    rows = []
    for note in notes:
        place = {"instrument": note.instrument, "site": note.site}
        row = {**place, "model": note.model, "feature": note.feature, "by": note.by, "text": note.text}
        rows.append(row | {"tags": " ".join(note.tags), "current": note.sae == _sae(run, place, note.model)})
    return rows


def write_note(
    run: Run, place: dict[str, Any], model: str, feature: int, text: str | None, tags: Sequence[str], by: str
) -> Note:
    """Write a note, or change that of the same person: a text replaces the one of before, tags are added.

    Raises ValueError for a feature that the run does not have, a text or a tag that cannot be kept, and for neither.
    """
    _check(run, place, model, feature)
    with Store(run.folder / FOLDER).lock():
        notes = {note.owner: note for note in read_notes(run)}
        new = Note(
            **place, model=model, feature=feature, sae=_sae(run, place, model), by=by, text="", tags=(), written=""
        )
        before = notes.get(new.owner, new)
        both = tuple(dict.fromkeys([*before.tags, *tags]))
        note = new._replace(text=before.text if text is None else text, tags=both, written=_now())
        if fault := _fault(note):
            raise ValueError(f"{model}/{feature}: {fault}")
        _write(run, [*(notes | {note.owner: note}).values()])
    return note


def remove_note(run: Run, place: dict[str, Any], model: str, feature: int, by: str) -> Note:
    """Delete the note of a person on a feature, and return it. Raises ValueError where there is none."""
    with Store(run.folder / FOLDER).lock():
        notes = read_notes(run)
        own = (place["instrument"], place["site"], model, feature, _sae(run, place, model), by)
        found = next((note for note in notes if note.owner == own), None)
        if found is None:
            raise ValueError(f"{model}/{feature}: there is no note{f' by {by}' if by else ''} to remove")
        _write(run, [note for note in notes if note is not found])
    return found


def take_notes(run: Run, path: Path) -> list[Note]:
    """Add the notes of a CSV file, and return them. Of one on the same feature by the same person the text is replaced,
    and so are the tags; what the file leaves empty stays.

    Its columns are those that `write_csv` writes, of which `model`, `feature` and `text` or `tags` are needed. Raises
    ValueError, by line, for what cannot be taken, a second note of one person on a feature too; then nothing is.
    """
    taken: dict[tuple[Any, ...], Note] = {}
    for place, note in enumerate(_parsed(path), 2):
        try:
            own = run.item(note.instrument or None, note.site or None)
            _check(run, own, note.model, note.feature)
        except ValueError as error:
            raise ValueError(f"{path}, note {place - 1}: {error}") from None
        sae = note.sae or _sae(run, own, note.model)
        new = note._replace(**own, sae=sae, written=note.written or _now())
        if new.owner in taken:
            named = f"{note.model}/{note.feature} by {note.by or 'nobody'}"
            raise ValueError(f"{path}, note {place - 1}: is a second one on {named}; put both into one")
        taken[new.owner] = new
    with Store(run.folder / FOLDER).lock():
        kept = {note.owner: note for note in read_notes(run)}
        for owner, new in taken.items():
            before = kept.get(owner, new)
            kept[owner] = taken[owner] = new._replace(text=new.text or before.text, tags=new.tags or before.tags)
        _write(run, [*kept.values()])
    return [*taken.values()]


def write_csv(notes: Iterable[Note], path: Path) -> None:
    """Write notes as CSV, whole or not at all."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Note._fields)
    writer.writerows(note._replace(tags=" ".join(note.tags)) for note in notes)  # pyright: ignore[reportArgumentType]
    with whole(path) as partial:
        partial.write_text(text.getvalue(), encoding="utf-8", newline="")


def _write(run: Run, notes: Iterable[Note]) -> None:
    write_csv(sorted(notes), run.folder / FOLDER / FILE)


def _parsed(path: Path) -> list[Note]:
    with reading(path, "give a CSV file with the columns model, feature, and text or tags"):
        text = path.read_text(encoding="utf-8-sig")
        rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    if not text.strip():
        raise ValueError(f"{path}: is empty; give a CSV file with the columns model, feature, and text or tags")
    notes = []
    for number, row in enumerate(rows, 1):
        place = f"{path}, note {number}"
        if None in row or None in row.values():
            raise ValueError(f"{place}: has not as many values as there are columns; mend that line")
        if unknown := sorted(set(row) - set(Note._fields)):
            raise ValueError(f"{place}: unknown column {short(unknown[0], 50)!r}; known are {', '.join(Note._fields)}")
        if missing := sorted({"model", "feature"} - set(row)):
            raise ValueError(f"{place}: there is no column {missing[0]}; add it")
        if not row["feature"].isascii() or not row["feature"].isdigit() or len(row["feature"]) > 9:
            raise ValueError(f"{place}: feature {short(row['feature'], 50)!r} is not the number of a feature")
        given = {name: row.get(name, "") for name in Note._fields if name not in ("feature", "tags")}
        note = Note(**given, feature=int(row["feature"]), tags=tuple(row.get("tags", "").split()))
        if fault := _fault(note):
            raise ValueError(f"{place}: {fault}")
        notes.append(note)
    return notes


def _fault(note: Note) -> str:
    """What cannot be kept of a note; nothing where all can."""
    if not note.text and not note.tags:
        return "neither a text nor a tag is given; give one of them"
    if len(note.text) > LONGEST:
        return f"the note has {len(note.text):,} characters; at most {LONGEST:,} are kept"
    if bad := [tag for tag in note.tags if not _TAG.fullmatch(tag)]:
        return f"tag {short(bad[0], 60)!r}: must be up to 50 characters without blanks, commas and semicolons"
    if note.by != note.by.strip() or (note.by and not note.by.isprintable()):
        return f"the name {short(note.by, 60)!r} of who wrote it: must be one line without blanks around it"
    if len(note.by) > 100:
        return f"the name of who wrote it has {len(note.by):,} characters; at most 100 are kept"
    texts = [note.text, note.by, *note.tags]
    if any("\ud800" <= one <= "\udfff" or one in "\r\0" for text in texts for one in text):
        return "the text holds half of a surrogate pair, a carriage return or a NUL; leave it out"
    return ""


def _check(run: Run, place: dict[str, Any], model: str, feature: int) -> None:
    check_followed(run.study, model, f"{model}/{feature}")
    size = acts_of(run.artifact(("acts", {**place, "model": model}))).d_sae
    if not 0 <= feature < size:
        raise ValueError(f"{model}/{feature}: its SAE has {size:,} features, counted from 0")


def _sae(run: Run, place: dict[str, Any], model: str) -> str:
    """The SAE that a model's features are of; empty where it is not there, or not in the study any more: no note is on
    that."""
    study = run.study
    known = place["instrument"] in study.instruments and place["site"] in study.sites and model in study.followed
    if not known:
        return ""
    artifact = run.find(sae_need(study, model, place["instrument"], place["site"]))
    return artifact.key[:12] if artifact else ""


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
