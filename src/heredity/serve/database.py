"""What is looked up among all features of a run: an SQLite file beside it, made from its tables and activations.

The file is made whole or not at all, and again when any artifact that it was made from has another key. One row of
`feature` for each feature of every instrument, site and model; its verdicts along every edge; the tokens that carry
most of its activation; the words of its explanation, for full-text search; and of each place all features in columns.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from heredity import __version__
from heredity.analyses.feature_columns import feature_columns, packed
from heredity.analyses.query import rows_of_stage
from heredity.engine.store import ArtifactError, Store, digest, whole
from heredity.show import page

if TYPE_CHECKING:
    from heredity.analyses import Pipeline
    from heredity.analyses.inspector import Inspector
    from heredity.results import Run

FILE = "explorer.sqlite"
_SCHEMA = 3  # raised when what is in the file changes its form
_TOKENS = 10  # of each feature
PAGE = 100  # rows of an answer at most
_TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE feature (
    id INTEGER PRIMARY KEY, instrument TEXT NOT NULL, site TEXT NOT NULL, model TEXT NOT NULL, feature INTEGER NOT NULL,
    firings INTEGER NOT NULL, density REAL, max REAL, class TEXT, domain TEXT, top_token TEXT,
    description TEXT, by TEXT, simulation REAL, detection REAL, fuzzing REAL
);
CREATE TABLE verdict (id INTEGER NOT NULL, edge TEXT NOT NULL, model TEXT NOT NULL, verdict TEXT NOT NULL);
CREATE TABLE token (
    token TEXT NOT NULL, id INTEGER NOT NULL, share REAL NOT NULL, PRIMARY KEY (token, id)
) WITHOUT ROWID;
CREATE TABLE columns (
    instrument TEXT NOT NULL, site TEXT NOT NULL, packed BLOB NOT NULL, PRIMARY KEY (instrument, site)
) WITHOUT ROWID;
CREATE VIRTUAL TABLE words USING fts5(description, content='');
"""
_INDICES = """
CREATE UNIQUE INDEX place ON feature (instrument, site, model, feature);
CREATE INDEX by_class ON feature (instrument, site, class, density);
CREATE INDEX of_feature ON verdict (id);
CREATE INDEX by_verdict ON verdict (verdict, edge, id);
"""
_SORTS = ("feature", "firings", "density", "max", "simulation", "detection", "fuzzing")
_INDICES += "".join(f"CREATE INDEX sorted_{name} ON feature (instrument, site, {name});" for name in _SORTS)
SORTS: dict[str, str] = {**{name: f"f.{name}" for name in _SORTS}, "share": "t.share"}
"""What answers can be sorted by; `share`: of a feature's activation, on the token that is looked for."""
_MADE_OF = {  # columns of a feature from tables of stages
    "feature_classes": ("classes", ("class", "domain", "top_token")),
    "explanations": ("explain", ("description", "by", "simulation", "detection", "fuzzing")),
}


class Asked(NamedTuple):
    """Which features to list, and how. None: whatever it is."""

    instrument: str
    site: str
    model: str | None = None
    verdict: str | None = None  # along any edge, or along `edge`
    edge: str | None = None
    class_: str | None = None
    density: tuple[float | None, float | None] = (None, None)  # least and most
    score: tuple[float | None, float | None] = (None, None)  # simulation score, likewise
    token: str | None = None  # exactly this text is among the tokens that carry most of the activation
    words: str | None = None  # all of these are in the explanation, the last one as a beginning
    sort: str = "density"  # of SORTS
    down: bool = True
    start: int = 0  # rows to leave out
    size: int = 50  # rows, at most PAGE


def key_of(pipeline: Pipeline, folder: Path) -> str:
    """Hash of all that the file of a run is made from: what is done of it, and this code."""
    store = Store(folder)
    done = {
        label: stage.key
        for label, stage in pipeline.stages.items()
        if store.recorded(stage.kind, stage.name, stage.key)
    }
    return digest([_SCHEMA, __version__, page.source(), done])


def is_current(path: Path, key: str) -> bool:
    """Whether the file is there, can be read, and has this key."""
    if not path.is_file():
        return False
    try:
        return Database(path).meta("key") == key
    except (sqlite3.Error, LookupError):
        return False


def build(run: Run, path: Path, key: str, progress: Callable[[int, int], None]) -> None:
    """Make the file of a run, whole or not at all. progress: models done, and their number.

    Raises OSError for a file that cannot be written.
    """
    try:
        with whole(path) as unfinished, closing(sqlite3.connect(unfinished, isolation_level=None)) as file:
            _fill(file, run, key, progress)
    except sqlite3.OperationalError as error:
        reason = f"cannot be written ({error}); make room or mend its permissions, or choose another folder with --runs"
        raise OSError(f"{path}: {reason}") from error


def _fill(file: sqlite3.Connection, run: Run, key: str, progress: Callable[[int, int], None]) -> None:
    from heredity.analyses.inspector import Inspector  # loads torch, which a file that is made does not need

    places = [(instrument, site) for instrument in run.study.instruments for site in run.study.sites]
    total, done = len(places) * len(run.study.followed), 0
    file.executescript(f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; {_TABLES}")
    file.execute("BEGIN")
    next_id = 0
    for place in places:
        inspector = Inspector(run, *place)
        try:
            models = inspector.sample.models
        except ArtifactError:  # not done yet: its features are not there
            done += len(run.study.followed)
            continue
        first = dict[str, int]()
        for model in models:
            progress(done, total)
            first[model] = next_id
            next_id += _add_features(file, inspector, model, next_id)
            done += 1
        _add_tables(file, inspector, first)
        columns = packed(feature_columns(inspector))
        file.execute("INSERT INTO columns VALUES (?, ?, ?)", (*inspector.place.values(), columns))
    html, _ = page.served(page.page_data(run))
    place = [*run.item().values()] if places else ["", ""]  # a study of stitches alone has no features
    given = {"key": key, "page": html, "place": json.dumps(place)}
    file.executemany("INSERT INTO meta VALUES (?, ?)", given.items())
    file.execute("COMMIT")
    file.executescript(f"{_INDICES} ANALYZE;")
    progress(total, total)


def _add_features(file: sqlite3.Connection, inspector: Inspector, model: str, first: int) -> int:
    """Rows of all features of a model, with their tokens; returns their number."""
    from heredity.features.cards import leading_tokens

    sample, columns = inspector.sample, inspector.columns[model]
    counted, d_sae = sample.acts[model].counted, len(columns.indptr) - 1
    firings, highest = np.diff(columns.indptr), np.zeros(d_sae)
    live = firings > 0
    if live.any():
        highest[live] = np.maximum.reduceat(columns.values, columns.indptr[:-1][live])
    rows = zip(range(first, first + d_sae), range(d_sae), firings.tolist(), highest.tolist(), strict=True)
    head = "INSERT INTO feature (id, instrument, site, model, feature, firings, density, max) VALUES (?,?,?,?,?,?,?,?)"
    place = tuple(inspector.place.values())
    file.executemany(head, ((at, *place, model, n, count, count / counted, most) for at, n, count, most in rows))
    found = leading_tokens(columns, sample.ids, _TOKENS)
    shares: dict[tuple[str, int], float] = {}  # tokens of one text count together
    for feature, token, share in zip(*(part.tolist() for part in found), strict=True):
        one = (sample.text(token), first + feature)
        shares[one] = shares.get(one, 0.0) + share
    file.executemany("INSERT INTO token VALUES (?, ?, ?)", ((*one, share) for one, share in shares.items()))
    return d_sae


def _add_tables(file: sqlite3.Connection, inspector: Inspector, first: Mapping[str, int]) -> None:
    """What tables of the run say of the features. first: id of feature 0 of each model."""
    run, place = inspector.run, inspector.place
    for table, (kind, names) in _MADE_OF.items():
        changes = ", ".join(f"{name} = :{name}" for name in names)
        rows = rows_of_stage(run, kind, place, table) or ()
        known = [{name: row[name] for name in names} | {"id": first[row["model"]] + row["feature"]} for row in rows]
        file.executemany(f"UPDATE feature SET {changes} WHERE id = :id", known)
        if table == "explanations":
            described = ((row["id"], row["description"]) for row in known if row["description"])
            file.executemany("INSERT INTO words (rowid, description) VALUES (?, ?)", described)
    silent = "UPDATE feature SET class = 'silent' WHERE class IS NULL AND firings = 0 AND instrument = ? AND site = ?"
    file.execute(silent, tuple(place.values()))
    for edge in run.study.edges:
        item = place | {"edge": edge.name, "text": "common"}
        ends = {"parent": (edge.parent, edge.child), "child": (edge.child, edge.parent)}
        rows = rows_of_stage(run, "verdicts", item, "evidence") or ()
        judged = ((first[ends[r["end"]][0]] + r["feature"], edge.name, ends[r["end"]][1], r["verdict"]) for r in rows)
        file.executemany("INSERT INTO verdict VALUES (?, ?, ?, ?)", judged)


class Database:
    """The file, read-only. One object serves one thread."""

    def __init__(self, path: Path) -> None:
        """Raises sqlite3.Error for a file that cannot be opened."""
        self.file = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        self.file.row_factory = sqlite3.Row
        # Every page of a table asks for the same count, which reads all rows; the file never changes.
        self._count = lru_cache(maxsize=256)(partial(_counted, self.file))

    def meta(self, name: str) -> str:
        """`key`, `page` or `place`, the first instrument and site. Raises LookupError for another."""
        row = self.file.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise LookupError(f"{name}: the database has no such entry")
        return row["value"]

    def columns(self, instrument: str, site: str) -> bytes | None:
        """All features of a place as compressed JSON (`feature_columns`); None where there are none."""
        query = "SELECT packed FROM columns WHERE instrument = ? AND site = ?"
        row = self.file.execute(query, (instrument, site)).fetchone()
        return None if row is None else row["packed"]

    def choices(self, instrument: str, site: str) -> dict[str, list[str]]:
        """Values that features can be filtered by at a place."""
        place = (instrument, site)
        kinds = "SELECT DISTINCT class FROM feature WHERE instrument = ? AND site = ? AND class IS NOT NULL ORDER BY 1"
        models = "SELECT DISTINCT model FROM feature WHERE instrument = ? AND site = ?"
        found = {"classes": (kinds, place), "models": (models, place)}
        # Both at once, one step in the index for each pair; edges alone would be read off every verdict.
        judged = self.file.execute("SELECT DISTINCT verdict, edge FROM verdict ORDER BY 1, 2").fetchall()
        choices = {name: [row[0] for row in self.file.execute(*query)] for name, query in found.items()}
        choices |= {f"{name}s": [*dict.fromkeys(row[name] for row in judged)] for name in ("verdict", "edge")}
        return choices

    def features(self, asked: Asked) -> dict[str, Any]:
        """`total`: features that fit; `rows`: those asked for, each with its `verdicts` by edge.

        Raises ValueError for a sort that is none of SORTS, or by the share of no token.
        """
        if asked.sort not in SORTS or (asked.sort == "share" and asked.token is None):
            raise ValueError(f"sort {asked.sort!r}: must be one of {', '.join(SORTS)}; share goes with a token")
        source, values = "feature f", list[Any]()
        if asked.token is not None:
            source, values = "token t JOIN feature f ON f.id = t.id AND t.token = ?", [asked.token]
        where = list(_conditions(asked))
        text = " AND ".join(condition for condition, _ in where)
        values += [value for _, own in where for value in own]
        total = self._count(f"{source} WHERE {text}", *values)
        share = ", t.share" if asked.token is not None else ""
        way = "DESC" if asked.down else "ASC"
        order = f"{SORTS[asked.sort]} {way} NULLS LAST, f.id {way}"
        query = f"SELECT f.*{share} FROM {source} WHERE {text} ORDER BY {order} LIMIT ? OFFSET ?"
        rows = [dict(row) for row in self.file.execute(query, [*values, min(asked.size, PAGE), asked.start])]
        for row in rows:
            own = self.file.execute("SELECT edge, model, verdict FROM verdict WHERE id = ?", (row.pop("id"),))
            row["verdicts"] = [dict(one) for one in own]
        return {"total": total, "rows": rows}


def _counted(file: sqlite3.Connection, rows: str, *values: Any) -> int:
    """Number of rows, given as what follows FROM."""
    return file.execute(f"SELECT count(*) FROM {rows}", values).fetchone()[0]


def _conditions(asked: Asked) -> Iterator[tuple[str, Iterable[Any]]]:
    """Conditions on a feature, with their values."""
    for name in ("instrument", "site"):
        yield f"f.{name} = ?", (getattr(asked, name),)
    if asked.model is not None:
        yield "f.model = ?", (asked.model,)
    if asked.class_ is not None:
        yield "f.class = ?", (asked.class_,)
    for column, (low, high) in (("density", asked.density), ("simulation", asked.score)):
        if low is not None:
            yield f"f.{column} >= ?", (low,)
        if high is not None:
            yield f"f.{column} <= ?", (high,)
    given = {name: value for name in ("verdict", "edge") if (value := getattr(asked, name)) is not None}
    if given:
        yield f"f.id IN (SELECT id FROM verdict WHERE {' AND '.join(f'{name} = ?' for name in given)})", given.values()
    if asked.words is not None:
        yield "f.id IN (SELECT rowid FROM words WHERE words MATCH ?)", (_matching(asked.words),)


def _matching(words: str) -> str:
    """A full-text query for all of the words, none of which can be taken for its syntax."""
    found = re.findall(r"\w+", words)
    return " AND ".join([*(f'"{word}"' for word in found[:-1]), *(f'"{word}"*' for word in found[-1:])]) or '""'
