"""One door for what others wrote: whatever reading it raises becomes one line with the place, the reason and the way
out."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

UNSUPPORTED = "heredity runs on Linux and macOS; on Windows run it in WSL 2"
LONGEST = 200  # characters of a value or a reason in a line
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def short(value: object, longest: int = LONGEST) -> str:
    """A text on one line, cut in its middle to `longest` characters; anything but a text as Python writes it."""
    try:
        text = value if isinstance(value, str) else repr(value)
    except Exception:  # nested too deeply, a number of too many digits: whatever its own repr raises
        text = f"a {type(value).__name__}"
    text = " ".join(text.split())
    left = longest * 2 // 3
    return text if len(text) <= longest else f"{text[:left]} ... {text[left - longest + 5 :]}"


def one_of(name: str, value: object, known: Collection[str], more: str = "") -> None:
    """Raise ValueError for a value that is none of those known, with what is allowed; `more` is allowed besides."""
    if not isinstance(value, str) or value not in known:
        *others, last = [*map(repr, known), *([more] if more else [])]
        allowed = f"{', '.join(others)} or {last}" if others else last
        raise ValueError(f"{name}={short(value, 80)!r}: must be {allowed}")


def install(extra: str) -> str:
    """How an extra is installed, the one way that every message and document names."""
    return f"in a clone: pip install -c constraints.txt -e '.[{extra}]'"


def reason(error: BaseException) -> str:
    """Why something could not be read, in few words; those of parsers and allocators mended where they say little."""
    text = str(error).strip()
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if "integer string conversion" in text:
        return "it holds a number of more than 4,300 digits"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start:,} is not UTF-8"
    if isinstance(error, UnicodeEncodeError):
        return "it holds half of a surrogate pair, which is no character"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "alloc" in text.lower()):
        return "it asks for more memory than there is"
    if isinstance(error, KeyError) and error.args:
        return f"it has no {short(error.args[0], 80)}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if "couldn't connect to" in text or "offline mode" in text:
        return "there is no such folder, and the hub cannot be reached from here"
    name = type(error).__name__
    if not text:
        return name
    first = short(text.split("\n\n")[0])
    return first if isinstance(error, ValueError | OSError) else f"{name}: {first}"


@contextlib.contextmanager
def reading(what: object, way_out: str, error: type[Exception] = ValueError) -> Iterator[None]:
    """Turn anything that is raised while `what` is read into one line of `error`: what, reason and way out.

    what: the file, or the place with its value. way_out: what the user can do, such as "copy it anew". Keep only what
    reads inside the block: whatever fails there is put down to `what`. Errors of this package pass, since they name
    their place; so does a request to stop. A panic of Rust code is no `Exception`, and is caught as well.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as fault:
        if type(fault).__module__.partition(".")[0] == "heredity":
            raise
        raise error(f"{short(str(what))}: cannot be read ({reason(fault)}); {way_out}") from fault


def read_json(path: Path, way_out: str, error: type[Exception] = ValueError, kind: type = dict) -> Any:
    """The JSON value of a kind (dict, list) in a file; raises `error` by path for anything else.

    Half of a surrogate pair is refused: it cannot be written or shown later.
    """
    with reading(path, way_out, error):
        text = path.read_text(encoding="utf-8-sig")
        value = json.loads(text)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    if not isinstance(value, kind):
        raise error(f"{path}: cannot be read (it holds a {type(value).__name__}, not a {kind.__name__}); {way_out}")
    return value
