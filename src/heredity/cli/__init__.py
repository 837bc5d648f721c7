"""The command line: reads arguments, draws progress on stderr, prints results on stdout. Thin."""

import sys
from importlib.util import find_spec
from io import TextIOWrapper

from heredity.cli import study as study  # isort: skip - commands are listed in the order they are made in
from heredity.cli import look as look
from heredity.cli import serving as serving
from heredity.cli import single as single
from heredity.cli.app import app as app
from heredity.errors import UNSUPPORTED
from heredity.kernels.processors import share_processors


def main() -> None:
    """Entry point of the `heredity` command."""
    if find_spec("fcntl") is None or find_spec("resource") is None:
        sys.stderr.write(f"error: {UNSUPPORTED}\n")
        sys.exit(2)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")  # a locale without a letter ends no command
    share_processors()  # before a command loads torch
    app()
