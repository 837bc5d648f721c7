"""The run behind a server: opened when it is first asked about, its features and models kept open from then on."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heredity.analyses import TABLES
from heredity.analyses.trial import tried
from heredity.serve.database import Asked, Database
from heredity.show.export import holders_of, parts_of, write

if TYPE_CHECKING:
    from heredity.analyses.inspector import Inspector
    from heredity.results import Run


class Busy(Exception):
    """What is done one at a time is being done; the message says what."""


class Explorer:
    """Answers about a run, for any number of threads.

    Features are read one at a time, and so are texts; models are loaded once, by whatever needs one first.
    """

    def __init__(self, open_run: Callable[[], Run], database: Path) -> None:
        """open_run: opens the run, which checks its artifacts. database: the file that `database.build` made of it."""
        self._open_run, self._path = open_run, database
        self._run: Run | None = None
        self._inspectors: dict[tuple[str, ...], Inspector] = {}
        self._models: dict[str, Any] = {}
        self._opening, self._reading, self._loading = (threading.Lock() for _ in range(3))
        self._trying, self._writing = threading.Lock(), threading.Lock()
        self._own = threading.local()

    @property
    def database(self) -> Database:
        """The file, as this thread has it open."""
        if not hasattr(self._own, "database"):
            self._own.database = Database(self._path)
        return self._own.database

    @property
    def run(self) -> Run:
        """The run; opened by the first thread that asks."""
        with self._opening:
            if self._run is None:
                self._run = self._open_run()
            return self._run

    def inspector(self, instrument: str | None = None, site: str | None = None) -> Inspector:
        """The features of a place, with all that they share read. Raises StudyError for a place that is none, and what
        `Inspector.sample` raises."""
        from heredity.analyses.inspector import Inspector  # loads torch, which the page does not wait for

        asked = Inspector(self.run, instrument, site, self._models)
        key = tuple(asked.place.values())
        with self._opening:
            if key not in self._inspectors:
                _ = asked.columns
                self._inspectors[key] = asked
            return self._inspectors[key]

    def warm(self) -> None:
        """Read what features of the main place share, so that the first of them comes at once. What is missing is said
        to whoever asks for a feature."""
        with contextlib.suppress(ValueError):
            self.inspector()

    def feature(self, model: str, index: int, instrument: str | None, site: str | None) -> dict[str, Any]:
        """All of a feature but its explanation and what needs its model. Raises as `Inspector.shown` does."""
        inspector = self.inspector(instrument, site)
        with self._reading:
            return inspector.fired(model, index)

    def explained(self, model: str, index: int, instrument: str | None, site: str | None) -> dict[str, Any]:
        """The explanation of a feature and what it predicts. Raises as `Inspector.shown` does."""
        inspector = self.inspector(instrument, site)
        with self._reading:
            return inspector.explained(model, index)

    def asked(self, model: str, index: int, instrument: str | None, site: str | None) -> list[dict[str, Any]]:
        """What language models were asked about a feature. Raises as `Inspector.asked` does."""
        inspector = self.inspector(instrument, site)
        with self._reading:
            return inspector.asked(model, index)

    def family(self, model: str, index: int, instrument: str | None, site: str | None) -> dict[str, Any]:
        """A feature in every model that the lineage connects. Raises as `Inspector.family` does."""
        inspector = self.inspector(instrument, site)
        with self._reading:
            return inspector.family(model, index, explained=False)

    def table(self, name: str, folder: Path) -> Path:
        """Write a table of the run, whole, as a Parquet file into a folder.

        Raises LookupError for a table that the run does not have, Busy while another one is written, ArtifactError for
        a part that cannot be read.
        """
        artifacts = holders_of(self.run).get(name)
        if artifacts is None:
            raise LookupError(f"the run has no table {name}")
        if not self._writing.acquire(blocking=False):
            raise Busy("another table is being written")
        try:
            path = folder / f"{name}.parquet"
            write(TABLES[name], parts_of(name, artifacts), path, "parquet")
            return path
        finally:
            self._writing.release()

    def logits(self, model: str, index: int, instrument: str | None, site: str | None) -> dict[str, Any]:
        """What a feature predicts. Raises as `Inspector.predicts` does."""
        inspector = self.inspector(instrument, site)
        with self._loading:
            return inspector.predicts(model, index)

    def features(self, asked: Asked) -> dict[str, Any]:
        """Features that fit. Raises ValueError for a sort that there is not."""
        return self.database.features(asked)

    def tried(self, text: str, instrument: str | None) -> dict[str, Any]:
        """Every model's features on a text, at all sites. Raises Busy while another text is tried, and as `trial.tried`
        does."""
        if not self._trying.acquire(blocking=False):
            raise Busy("another text is being read by the models")
        try:
            inspectors = [self.inspector(instrument, site) for site in self.run.study.sites]
            with self._loading:
                return tried(inspectors, text)
        finally:
            self._trying.release()
