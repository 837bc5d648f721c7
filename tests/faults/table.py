"""A fault: what is done, what is promised, and how it is tried. Every test of this folder tries one, and the folder's
`conftest.py` prints the table of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import heredity
from tiny import toml

SOURCE = str(Path(heredity.__file__).parent.parent)
SMALL = {"tokens": 2000, "batch_size": 8, "context_size": 32, "lr": 5e-3, "precision": "float32"}
STUDY: dict[str, Any] = {
    "seed": 1,
    "hook_point": "blocks.0.mlp.hook_post",
    "tokenizer": {"vocab_size": 300},
    "corpus": {"words": {"source": "local:words.jsonl"}, "sums": {"source": "local:sums.jsonl"}},
    "model": {
        "base": {"train": {"corpora": ["words"], "d_model": 16, "d_mlp": 16, "n_heads": 2, **SMALL}},
        "sums": {"parent": "base", "corpora": ["sums"], **SMALL},
    },
    "sae": {
        "activation": "topk",
        "k": 4,
        "expansion": 4,
        "tokens": 6000,
        "lr": 2e-3,
        "batch_blocks": 16,
        "context_size": 16,
        "evaluation_tokens": 500,
    },
    "lineage": {"tokens": 2000},
    "report": {"tokens": 2000, "features": 2, "contexts": 2},
    "evaluation": {"tokens": 500},
    "controls": {"resamples": 100, "newness": 0},
    "explain": {"features": 4},
    "case": {"plus": {"tokens": [" plus"]}},
}


class Fault(NamedTuple):
    """One row of the table."""

    name: str
    promised: str
    tried: Callable[[Place], str]  # does it, asserts what is promised, and says what was seen


class Faults:
    """The faults of one file of tests."""

    def __init__(self) -> None:
        self.rows: list[Any] = []

    def __call__(self, name: str, promised: str, *, slow: bool = False, only: bool = True) -> Callable[[Any], Any]:
        """Add a fault. slow: takes seconds, and runs when faults are asked for; only: whether this system has it."""

        def add(tried: Callable[[Place], str]) -> Callable[[Place], str]:
            marks = [pytest.mark.faults] * slow + [pytest.mark.skipif(not only, reason="not on this system")]
            self.rows.append(pytest.param(Fault(name, promised, tried), id=name, marks=marks))
            return tried

        return add


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    def refused(self, *words: str, code: int = 2) -> str:
        """Assert one line of error, no traceback and these words in it; returns it, short."""
        lines = [line for line in self.err.splitlines() if line.startswith("error:")]
        assert self.code == code, (self.code, self.out[-2000:], self.err[-2000:])
        assert len(lines) == 1 and "Traceback" not in self.err + self.out, self.err[-3000:]
        for word in words:
            assert re.search(word, lines[0]), (word, lines[0])
        return f"code {code}: {lines[0].removeprefix('error: ')}"

    def well(self) -> str:
        assert self.code == 0 and "Traceback" not in self.err, (self.code, self.out[-1500:], self.err[-3000:])
        return "code 0"


class Place:
    """A folder of its own with a study, and commands in it; `finished` has its run beside it, done once."""

    def __init__(self, folder: Path, finished: Callable[[], Path]) -> None:
        self.folder, self._finished = folder, finished
        self.run_folder = folder / "runs" / "s"

    def study(self, **changes: Any) -> Path:
        """The study's file and texts; tables of it replaced by `changes`."""
        write_texts(self.folder)
        return toml(STUDY | changes, self.folder / "s.toml")

    def done(self) -> Path:
        """A copy of the finished run, with its study; returns the run's folder."""
        shutil.copytree(self._finished(), self.folder, dirs_exist_ok=True, symlinks=True)
        return self.run_folder

    def undisturbed(self) -> Path:
        """The folder of the finished run itself, to compare with."""
        return self._finished()

    def artifact(self, kind: str, name: str = "") -> Path:
        """The folder of a stage."""
        return next((self.run_folder / kind).glob(f"{name}*/manifest.json")).parent

    def command(self, *words: object, **more: Any) -> Ended:
        """`heredity WORDS` in a process of its own, in this folder. more: of `subprocess.run`."""
        command = [sys.executable, "-m", "heredity", *map(str, words)]
        return self.process(command, **more)

    def inside(self, *words: object) -> Ended:
        """`heredity WORDS` on the study, in this process: for what loads no model."""
        from typer.testing import CliRunner

        from heredity.cli import app

        first, *more = map(str, words)
        named = [first, str(self.folder / "s.toml"), *more, "--runs", str(self.folder / "runs")]
        result = CliRunner().invoke(app, named)
        return Ended(result.exit_code, result.stdout, result.stderr)

    def process(self, command: list[str], env: Mapping[str, str] | None = None, **more: Any) -> Ended:
        given = {"OMP_NUM_THREADS": "1", "PYTHONPATH": SOURCE, "HF_HUB_OFFLINE": "1", **(env or {})}
        given = {**{k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}, **given}
        given = {name: value for name, value in given.items() if value}
        kept: dict[str, Any] = {"cwd": self.folder, "timeout": 1500, "stdin": subprocess.DEVNULL, "check": False}
        kept |= {"capture_output": not {"stdout", "stderr"} & set(more)}
        done = subprocess.run(command, env=given, text=True, errors="replace", **kept | more)
        return Ended(done.returncode, done.stdout or "", done.stderr or "")

    def injected(self, code: str) -> dict[str, str]:
        """An environment in which every Python runs `code` at its start."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        (folder / "sitecustomize.py").write_text(code)
        return {"PYTHONPATH": f"{folder}{os.pathsep}{SOURCE}"}

    def tables(self) -> dict[str, Any]:
        """Every table of the run's summary, and its findings: what no fault may change."""
        summary = json.loads((self.run_folder / "summary.json").read_text(encoding="utf-8"))
        return {"tables": summary["tables"], "statements": summary["statements"]}

    def equal(self, other: Path) -> None:
        """Assert that the run has the tables and the weights of an undisturbed one."""
        undisturbed = Place(other, lambda: other)
        assert self.tables() == undisturbed.tables()
        for file in sorted((other / "runs/s").rglob("*.safetensors")):
            mine = self.folder / file.relative_to(other)
            assert mine.read_bytes() == file.read_bytes(), mine

    def hidden(self) -> list[str]:
        """Hidden files that are left below the run."""
        return [path.name for path in self.run_folder.rglob(".*") if path.name != ".lock"]


def write_texts(folder: Path) -> None:
    """Two little corpora."""
    folder.mkdir(parents=True, exist_ok=True)
    places = ("the mat", "a tree", "the old house")
    words = [" ".join(f"the cat sat on {places[(n * j) % 3]}." for j in range(9)) + f" {n}" for n in range(120)]
    sums = ["\n".join(f"{x} plus {n % 9} = {x + n % 9};" for x in range(12)) + f"\nend {n}" for n in range(120)]
    for name, texts in (("words", words), ("sums", sums)):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
