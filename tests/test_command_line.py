"""Every error is one line with the stage and a way out; --debug shows its traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from safetensors import SafetensorError

from heredity.cli.app import errors, one_line, setting, watcher
from heredity.study import LineageConfig


def noted(error: Exception, stage: str = "sae/base@scratch") -> Exception:
    error.add_note(stage)
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (noted(MemoryError()), ("sae/base@scratch: not enough memory; ", "fewer tokens", "heredity check")),
        (noted(RuntimeError("CUDA out of memory. Tried")), ("sae/base@scratch: not enough memory (CUDA", "narrower")),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), ("not enough memory", "goes on")),
        (noted(SafetensorError("I/O error: No space left on device")), ("sae/base@scratch: weights", "--runs")),
        (noted(RuntimeError("PytorchStreamWriter failed writing file data/0")), ("sae/base@scratch", "make room")),
        (noted(OSError(28, "No space left on device")), ("sae/base@scratch: [Errno 28]", "make room")),
        (FileNotFoundError(2, "No such file or directory", "a/b.txt"), ("a/b.txt: no such file", "correct the path")),
        (FileExistsError(17, "File exists", "s.toml"), ("s.toml: is there already; choose another",)),
        (NotADirectoryError(20, "Not a directory", "s.toml/x"), ("s.toml/x: a part of this path is a file",)),
        (OSError(36, "File name too long", "x" * 5000), ("xxx ... xxx", "File name too long", "choose another path")),
        (ValueError("hub:x: has\n no  text"), ("hub:x: has no text",)),
        (ValueError("column \x1b]0;evil\x07 is\u202e missing"), ("column \\x1b]0;evil\\x07 is\\u202e missing",)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_what_the_user_can_mend_is_one_printable_line(error, words):
    line = one_line(error)
    assert line is not None and line.isprintable()
    for word in words:
        assert word in line


def test_a_mistake_of_ours_is_one_line_as_well_and_its_traceback_is_shown_on_demand(capsys):
    for debug in (False, True):
        with pytest.raises(SystemExit) as caught, errors(debug):
            raise KeyError("x" * 5000)
        said = capsys.readouterr().err
        assert caught.value.code == 2 and ("Traceback" in said) is debug
        line = said.strip().splitlines()[-1]
        assert line.startswith("error: KeyError at test_command_line.py:") and "--debug" in line and len(line) < 1100


def test_an_error_names_the_stage_it_came_from_and_no_emoji_replaces_its_words(capsys):
    with pytest.raises(SystemExit) as caught, errors(debug=False), watcher() as bars:
        bars.start(SimpleNamespace(label="corpus/hub"))
        raise MemoryError("hub:x: is large")
    assert caught.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: corpus/hub: not enough memory (hub:x: is large)")


@pytest.mark.parametrize(("sent", "code", "keeps", "left"), [
    (signal.SIGINT, 130, True, "the same command goes on from here"),
    (signal.SIGTERM, 143, True, "the same command goes on from here"),
    (signal.SIGINT, 130, False, "nothing is kept, and the same command begins anew"),
])  # fmt: skip
def test_a_request_to_stop_is_one_line_and_an_exit_code_of_its_own(sent, code, keeps, left, capsys):
    before = signal.getsignal(signal.SIGTERM)
    # A shell lets what it runs in the background ignore interrupts, this process perhaps.
    own = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as stopped, errors(False, keeps):
            os.kill(os.getpid(), sent)
            time.sleep(10)
    finally:
        signal.signal(signal.SIGINT, own)
    assert stopped.value.code == code and signal.getsignal(signal.SIGTERM) == before
    assert " ".join(capsys.readouterr().err.split()) == f"interrupted; {left}"


def test_the_help_of_an_option_is_that_of_its_setting():
    assert setting(LineageConfig, "tokens") == "Aligned token positions per edge."
    assert setting(LineageConfig, "threshold", "; default: chosen").endswith("persists; default: chosen.")


def test_help_loads_nothing_heavy():
    names = ("torch", "pyarrow", "scipy", "transformers")
    code = f"import sys; from heredity.cli import app; print(*(name for name in {names} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
