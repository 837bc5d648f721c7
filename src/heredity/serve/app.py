"""The answers of the server: the page, and JSON about features, under fixed paths.

Needs the extra `serve`. No path names a file: what is not listed here is not there.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

from fastapi import Body, FastAPI, HTTPException, Query, Request
from fastapi import Path as PathOf
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException as StarletteError

from heredity.analyses.notes import read_notes, rows_of_notes
from heredity.analyses.query import one_named
from heredity.analyses.raters import RATERS, compared
from heredity.analyses.trial import LONGEST
from heredity.engine.store import ArtifactError
from heredity.serve.database import PAGE, Asked
from heredity.serve.explorer import Busy, Explorer
from heredity.serve.guard import Guard
from heredity.show.page import served_policy, table_data

_Word = Annotated[str | None, Query(max_length=200)]
_Place = Annotated[str | None, Query(max_length=200)]
_Id = Annotated[str, Query(max_length=200, description="A model, a slash and a number, such as base/158.")]
_Share = Annotated[float | None, Query(ge=-1, le=1)]
_Sort = Literal["feature", "firings", "density", "max", "simulation", "detection", "fuzzing", "share"]


class Answer(JSONResponse):
    """JSON as ASCII, which holds any string and nothing that a browser could take for markup."""

    def render(self, content: Any) -> bytes:
        text = json.dumps(content, allow_nan=False, separators=(",", ":"))
        return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026").encode("ascii")


def create_app(explorer: Explorer, hosts: Collection[str]) -> FastAPI:
    """The application. hosts: names by which requests may call it (`guard.hosts_of`)."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, default_response_class=Answer)
    html = explorer.database.meta("page")
    app.add_middleware(Guard, hosts=hosts, policy=served_policy())  # pyright: ignore[reportArgumentType]

    @app.exception_handler(RequestValidationError)
    def mistaken(_: Request, error: Exception) -> Response:
        first = error.errors()[0] if isinstance(error, RequestValidationError) else {"loc": (), "msg": str(error)}
        return Answer({"error": f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}"}, 422)

    @app.exception_handler(StarletteError)
    def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, StarletteError)
        return Answer({"error": str(error.detail)}, error.status_code, error.headers)

    @app.exception_handler(ValueError)
    def unknown(_: Request, error: Exception) -> Response:
        return Answer({"error": str(error)}, 409 if isinstance(error, ArtifactError) else 404)

    @app.exception_handler(Busy)
    def busy(_: Request, error: Exception) -> Response:
        return Answer({"error": f"{error}; try again in a moment"}, 503, {"retry-after": "2"})

    @app.get("/")
    def page() -> HTMLResponse:
        """The report page, with what asks this server; while it is read, what features share is made ready."""
        return HTMLResponse(html, background=BackgroundTask(explorer.warm))

    @app.get("/api/choices")
    def choices(instrument: _Place = None, site: _Place = None) -> Answer:
        """Values that features can be filtered by."""
        return Answer(explorer.database.choices(*_place(explorer, instrument, site)))

    @app.get("/api/columns")
    def columns(instrument: _Place = None, site: _Place = None) -> Response:
        """All features of a place in columns, compressed; null where there are none."""
        found = explorer.database.columns(*_place(explorer, instrument, site))
        if found is None:
            return Answer(None)
        return Response(found, media_type="application/json", headers={"content-encoding": "gzip"})

    @app.get("/api/features")
    def features(
        instrument: _Place = None,
        site: _Place = None,
        model: _Word = None,
        verdict: _Word = None,
        edge: _Word = None,
        class_: Annotated[str | None, Query(alias="class", max_length=200)] = None,
        least_density: _Share = None,
        most_density: _Share = None,
        least_score: _Share = None,
        most_score: _Share = None,
        token: _Word = None,
        words: _Word = None,
        sort: _Sort = "density",
        down: bool = True,
        start: Annotated[int, Query(ge=0, le=10_000_000)] = 0,
        size: Annotated[int, Query(ge=1, le=PAGE)] = 50,
    ) -> Answer:
        """A part of the table of all features that fit."""
        density, score = (least_density, most_density), (least_score, most_score)
        place = _place(explorer, instrument, site)
        chosen = model, verdict, edge, class_, density, score, token, words, sort, down, start, size
        return Answer(explorer.features(Asked(*place, *chosen)))

    @app.get("/api/feature")
    def feature(id: _Id, instrument: _Place = None, site: _Place = None) -> Answer:  # noqa: A002
        """All that is known of one feature but its explanation and what needs its model."""
        return Answer(explorer.feature(*_one(id), instrument, site))

    @app.get("/api/explanation")
    def explanation(id: _Id, instrument: _Place = None, site: _Place = None) -> Answer:  # noqa: A002
        """The explanation of one feature, made now where the run has none, and what it predicts."""
        return Answer(explorer.explained(*_one(id), instrument, site))

    @app.get("/api/asked")
    def asked(id: _Id, instrument: _Place = None, site: _Place = None) -> Answer:  # noqa: A002
        """What language models were asked about a feature, what they answered, and what they predict."""
        return Answer(explorer.asked(*_one(id), instrument, site))

    @app.get("/api/family")
    def family(id: _Id, instrument: _Place = None, site: _Place = None) -> Answer:  # noqa: A002
        """A feature in every model that the lineage connects, what correlates, and what came next."""
        return Answer(explorer.family(*_one(id), instrument, site))

    @app.get("/api/table/{name}.parquet")
    def table(name: Annotated[str, PathOf(max_length=80, pattern="^[a-z_]+$")]) -> Response:
        """A declared table of the run, whole."""
        with ExitStack() as stack:
            folder = stack.enter_context(TemporaryDirectory(prefix="heredity-"))
            try:
                path = explorer.table(name, Path(folder))
            except LookupError as error:
                raise HTTPException(404, str(error.args[0])) from error
            sent = stack.pop_all()  # the folder goes when the file is sent
        kind = "application/vnd.apache.parquet"
        return FileResponse(path, media_type=kind, filename=path.name, background=BackgroundTask(sent.close))

    @app.get("/api/logits")
    def logits(id: _Id, instrument: _Place = None, site: _Place = None) -> Answer:  # noqa: A002
        """What a feature predicts; loads its model, once."""
        return Answer(explorer.logits(*_one(id), instrument, site))

    @app.get("/api/notes")
    def notes() -> Answer:
        """Notes on features, as the run has them now."""
        return Answer(rows_of_notes(explorer.run, read_notes(explorer.run)))

    @app.get("/api/raters")
    def raters() -> Answer:
        """How far people agree on tags, and the features on which they differ."""
        rows, apart = compared(explorer.run)
        return Answer({"table": table_data(RATERS, rows), "apart": apart})

    @app.post("/api/try")
    def tried(
        text: Annotated[str, Body(embed=True, min_length=1, max_length=LONGEST)],
        instrument: Annotated[str | None, Body(max_length=200)] = None,
    ) -> Answer:
        """Every model's features on a text."""
        return Answer(explorer.tried(text, instrument))

    return app


def _place(explorer: Explorer, instrument: str | None, site: str | None) -> tuple[str, str]:
    """Instrument and site of a question; the run's first ones where none is named."""
    first = json.loads(explorer.database.meta("place"))
    return instrument or first[0], site or first[1]


def _one(feature: str) -> tuple[str, int]:
    """Model and number of `base/158`; what no SAE has so many features for is refused before it is looked for."""
    model, index = one_named(feature)
    if index >= 2**31:
        raise HTTPException(422, "id: there is no feature of so high a number")
    return model, index
