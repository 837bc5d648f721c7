"""The command that serves a run."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import webbrowser
from typing import Annotated, Any

from rich.text import Text
from typer import Option

from heredity.cli.app import RUNS, Result, Runs, Sets, StudyArg, command, err, run_of, study_of, watcher
from heredity.errors import install

_EXTRA = ("fastapi", "uvicorn")


@command()
def serve(
    study: StudyArg,
    port: Annotated[int, Option(min=0, max=65_535, help="Port to listen on; 0 for a free one.")] = 8377,
    host: Annotated[str, Option(help="Address to listen on. Default: this machine alone.")] = "127.0.0.1",
    open_: Annotated[bool, Option("--open", help="Open the page in a browser.")] = False,
    runs: Runs = RUNS,
    set_: Sets = None,
) -> Result:
    """Serve the report of a study that has been run, with every feature of it and texts to try, until interrupted."""
    if missing := [name for name in _EXTRA if importlib.util.find_spec(name) is None]:
        raise ValueError(f"heredity serve needs {missing[0]}; {install('serve')}")
    # NumPy reads it when it is loaded. Its products are small here, and its threads would wait for the next one by
    # spinning, on a core that other answers need.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from heredity.analyses import Pipeline
    from heredity.engine.store import Store
    from heredity.results import RUN, as_recorded
    from heredity.serve import database

    loaded = study_of(study, set_)
    folder = runs / loaded.name
    if not Store(folder).file(RUN).is_file():
        raise ValueError(
            f"study {loaded.name} has not been run in {runs}; run `{run_of(study, runs, set_).again}` first"
        )
    key = database.key_of(Pipeline(as_recorded(loaded, folder)), folder)
    path = folder / database.FILE
    if not database.is_current(path, key):
        with watcher() as bars:
            database.build(run_of(study, runs, set_), path, key, bars.plain("read features"))
    from uvicorn import Config, Server

    from heredity.serve.app import create_app
    from heredity.serve.explorer import Explorer
    from heredity.serve.guard import hosts_of

    explorer = Explorer(lambda: run_of(study, runs, set_), path)
    app = create_app(explorer, hosts_of(host))
    listening = _listening(host, port)
    name = f"[{host}]" if ":" in host else host
    url = f"http://{name}:{listening.getsockname()[1]}/"
    err.print(Text(f"{loaded.name} at {url} (end with Ctrl+C)"))
    if open_:
        webbrowser.open(url)  # its first request waits in the socket until the server takes it
    limits: Any = {"limit_concurrency": 100, "ws": "none"}  # of connections: a browser opens six
    server = Server(Config(app, log_level="warning", server_header=False, lifespan="off", **limits))
    with contextlib.suppress(KeyboardInterrupt):  # how it is ended
        server.run(sockets=[listening])
    return Result({"study": loaded.name, "url": url}, lambda: None)


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises ValueError for an address that cannot be had."""
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen()
    except OSError as error:
        listening.close()
        reason = f"cannot be listened on ({error.strerror or error}); choose another with --port or --host"
        raise ValueError(f"{host}:{port}: {reason}") from None
    return listening
