"""Where a study's references to folders lie."""

from __future__ import annotations

import os
import re
from pathlib import Path

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


def local_path(reference: str, root: Path) -> Path:
    """Absolute path of a reference: `$NAME` and `${NAME}` come from the environment, `~` is the home folder, relative
    paths start at `root`. `HEREDITY_DATA` alone has a default, `../shared/data` below the working directory.

    Raises ValueError, with the way out, for a variable that is not set and a path that cannot be followed.
    """
    variables = {"HEREDITY_DATA": str(Path("../shared/data").absolute())}
    variables |= {name: value for name, value in os.environ.items() if value}
    try:
        spelled_out = _VARIABLE.sub(lambda match: variables[match[1] or match[2]], reference)
        path = (root / Path(spelled_out).expanduser()).resolve()
        _ = path.exists()
    except KeyError as error:
        name = error.args[0]
        raise ValueError(
            f"environment variable {name} is not set; export {name}=FOLDER or write the path out"
        ) from None
    except (OSError, RuntimeError, ValueError) as error:  # an unknown user, a loop of links, a null character
        raise ValueError(f"this path cannot be followed ({error}); correct it") from error
    return path


_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
_POINTER = b"version https://git-lfs.github.com/spec/"


def fault_of(file: Path) -> str | None:
    """What is wrong with a file that is a git-lfs pointer, or JSON behind a byte order mark, which libraries do not
    read; None for any other, and for none."""
    try:
        with file.open("rb") as stream:
            head = stream.read(len(_POINTER))
    except OSError:
        return None
    if head == _POINTER:
        return f"{file}: is a git-lfs pointer, not the file itself; fetch it with `git lfs pull` in its repository"
    if file.suffix == ".json" and head.startswith(_MARKS):
        return f"{file}: begins with a byte order mark (BOM); save it as UTF-8 without one"
    return None
