"""The command line's frame: the application, its shared options, output and errors."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import logging
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.text import Text
from typer import Argument, Option

from heredity import __version__
from heredity.engine.shared import place, shown
from heredity.errors import short
from heredity.show import seen

if TYPE_CHECKING:
    from heredity.results import Run
    from heredity.show.progress import Following
    from heredity.study import Study

app = typer.Typer(
    name="heredity",
    help="Which learned features did the child model inherit, which did it lose, which are new, and how sure are we?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"heredity {__version__}")
        raise typer.Exit


_Version = Annotated[bool, Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")]


@app.callback()
def _options(version: _Version = False) -> None: ...  # noqa: ARG001 - its callback does it


err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)

StudyArg = Annotated[str, Argument(metavar="STUDY", help="Path of a study's TOML file, or `demo`.")]
_KEPT = "Folder that results are kept in, or a URL of shared storage such as s3://bucket/prefix."
Runs = Annotated[Path, Option("--runs", metavar="PATH", parser=place, help=_KEPT)]
RUNS = Path("runs")
_SHARE = "Processes that share the work of a stage, at most one per processor; no number depends on it."
Workers = Annotated[int, Option("--workers", min=1, help=_SHARE)]
_FORM = "auto: bars in a terminal, lines in a log; or bars, lines, or json: one object a line."
Progress = Annotated[str, Option("--progress", help=f"Form of the progress on stderr. {_FORM}")]
Engine = Annotated[
    str, Option("--engine", help="local, or ray: stages and their work on a cluster, --workers tasks on each node.")
]
Site = Annotated[str | None, Option(help="One of the study's hook points. Default: the first.")]
Sets = Annotated[list[str] | None, Option("--set", help="Override a setting: sae.tokens=1000000. Repeatable.")]
_JSON = Annotated[bool, Option("--json", help="One JSON object on stdout; progress stays on stderr.")]
_DEBUG = Annotated[bool, Option("--debug", help="Show the traceback of an error.")]


class Result(NamedTuple):
    """What a command ends with."""

    value: object  # printed as JSON under --json
    show: Callable[[], object]  # prints it for people
    code: int = 0  # exit code


def command(
    name: str | None = None, hidden: bool = False, keeps: bool = True
) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Make a command of a function, with --json and --debug; what the user can mend is one line and exit code 2. keeps:
    whether what it has done is there when it is interrupted."""

    def register(work: Callable[..., Result]) -> Callable[..., Result]:
        @functools.wraps(work)
        def run(*, as_json: bool, debug: bool, **options: Any) -> None:
            with errors(debug, keeps):
                value, show, code = work(**options)
                if as_json:
                    typer.echo(json.dumps(value, allow_nan=False))
                else:
                    show()
                if code:
                    raise typer.Exit(code)

        signature, only = inspect.signature(work, eval_str=True), inspect.Parameter.KEYWORD_ONLY
        shared = {"as_json": _JSON, "debug": _DEBUG}
        more = [inspect.Parameter(name, only, default=False, annotation=kind) for name, kind in shared.items()]
        run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *more])  # pyright: ignore[reportAttributeAccessIssue]
        app.command(name, hidden=hidden)(run)
        return work

    return register


def setting(config: Any, name: str, more: str = "") -> str:
    """Help of an option that means the same as a setting: the first sentence of the setting's documentation."""
    first = " ".join(config.model_fields[name].description.split()).split(". ")[0].removesuffix(".")
    return f"{first}{more}."


def text() -> Any:
    """The printers for people; loaded when needed."""
    from heredity.show import terminal

    return terminal


def study_of(name: str, overrides: list[str] | None = None) -> Study:
    """The study of a command. Raises ValueError for a folder or summary of a run, which is no study file."""
    from heredity.show import summary
    from heredity.study import load_study

    path = Path(name)
    if path.is_dir() or path.name == summary.SUMMARY:
        recorded = path / summary.SUMMARY if path.is_dir() else path
        if recorded.is_file():
            summary.read(recorded)  # an earlier version's is refused in its own words
        kind = "a folder" if path.is_dir() else "a summary"
        raise ValueError(f"{name}: is {kind}, not a study; give the study's TOML file, or `demo`")
    return load_study(name, overrides or ())


def run_of(name: str, runs: Path, overrides: list[str] | None, site: str | None = None) -> Run:
    """The run of a study, as far as it is done. site: the main one in place of the study's first."""
    from heredity.results import Run, as_recorded

    study = study_of(name, overrides)
    study = as_recorded(study.at(site) if site else study, runs / study.name)
    words = ["heredity", "run", name, *(("--runs", shown(runs)) if runs != RUNS else ())]
    again = shlex.join([*words, *(word for one in overrides or () for word in ("--set", one))])
    return Run(study, runs / study.name, again=again)


def complete(name: str, runs: Path, overrides: list[str] | None, site: str | None = None) -> Run:
    """A run with all of its stages done. Raises ValueError, by label, for a stage that is not."""
    run = run_of(name, runs, overrides, site)
    if run.missing:
        raise ValueError(run.not_done(run.missing[0]))
    return run


@contextlib.contextmanager
def watcher(form: str = "auto") -> Iterator[Following]:
    """Progress on stderr, in a form of `show.progress`; an error gets a note of the stage it came from, unless it has
    one."""
    from heredity.show.progress import watcher_of

    with watcher_of(form, err) as bars:
        try:
            yield bars
        except Exception as error:
            if bars.stage and not hasattr(error, "__notes__"):
                error.add_note(bars.stage)
            raise


class _Terminated(KeyboardInterrupt):
    """A request to stop that came as SIGTERM, as schedulers and containers send it."""


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """While open, SIGTERM stops the work as Ctrl-C does. Signals belong to the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def errors(debug: bool, keeps: bool = True) -> Iterator[None]:
    """One clear line on stderr and exit code 2 for every error; the traceback with --debug. 130 after Ctrl-C, 143 after
    SIGTERM. keeps: as of `command`."""
    if not debug:  # a hub that cannot be reached is one line, not one for every attempt
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        with _terminable():
            yield
    except KeyboardInterrupt as stop:
        left = "the same command goes on from here" if keeps else "nothing is kept, and the same command begins anew"
        err.print(f"interrupted; {left}", style="yellow")
        sys.exit(143 if isinstance(stop, _Terminated) else 130)
    except (typer.Exit, SystemExit):
        raise
    except BaseException as error:  # a panic of Rust code is no `Exception`
        if debug:
            traceback.print_exc()
        err.print(Text(f"error: {one_line(error)}", "red"))
        sys.exit(2)


_LONGEST = 1000  # characters of a line
_WAYS_OUT = {
    FileExistsError: "is there already; choose another path, nothing is overwritten",
    NotADirectoryError: "a part of this path is a file where a folder is needed; choose another path",
    IsADirectoryError: "is a folder, and a file is needed here; give a file's name",
    FileNotFoundError: "no such file or folder; correct the path",
    PermissionError: "permission denied; mend its permissions or choose another path",
}


def one_line(error: BaseException) -> str:
    """Any error in one line with its way out, cut to a readable length.

    Python's and torch's messages of a full disk or memory name neither stage nor way out: these are added. What no
    code expected is a mistake of this package, and said to be one.
    """
    message, place = str(error), "".join(f"{note}: " for note in getattr(error, "__notes__", ()))
    if isinstance(error, MemoryError) or any(words in message for words in ("out of memory", "can't allocate memory")):
        line = (
            f"{place}not enough memory{f' ({message})' if message else ''}; use narrower SAEs or fewer tokens "
            "(`heredity check` estimates both), or a larger machine; the same command goes on from here"
        )
    elif type(error).__name__ == "SafetensorError" or "PytorchStreamWriter" in message or "inline_container" in message:
        line = (
            f"{place}weights could not be written or read ({message}); make room on the disk or choose another folder "
            "with --runs; the same command goes on from here"
        )
    elif isinstance(error, OSError) and error.filename is None and error.errno is not None:
        line = f"{place}{message}; make room or choose another folder with --runs; the same command goes on from here"
    elif isinstance(error, OSError) and error.filename is not None:
        way_out = _WAYS_OUT.get(type(error)) or f"{error.strerror}; mend that or choose another path"
        line = f"{place}{short(str(error.filename))}: {way_out}"
    elif isinstance(error, ValueError | OSError):
        line = message
    else:
        where = "".join(
            f" at {Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)[-1:]
        )
        line = (
            f"{place}{type(error).__name__}{where}: {message}; this is a mistake of heredity: run the command again "
            "with --debug, and report what it shows"
        )
    return seen(short(line, _LONGEST))
