"""Two studies, each run once for all tests, and which worker runs what."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread each, set before numpy and torch read it
    for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(_name, "1")

import pytest

if TYPE_CHECKING:
    from heredity.analyses.analysis import Need
    from heredity.engine.store import Artifact
    from heredity.results import Run

STUDIES = ("lineage", "stitch")
_MOST_WORKERS = 8  # each holds torch and a study: more are slower than the tests are long


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One worker per core; none for tests picked by name, which the start of workers would only delay."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    picked = any("::" in argument or argument.endswith(".py") for argument in config.args)
    return 0 if picked else min(cores, _MOST_WORKERS)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Files go to workers whole, and those that use one of the studies all to the same, so that it is run once."""
    from xdist.scheduler import LoadScopeScheduling

    class ByStudy(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _scope(config.rootpath / nodeid.partition("::")[0])

    return ByStudy(config, log)


@cache
def _scope(file: Path) -> str:
    """The study that a file of tests names as an argument, or the file itself."""
    text = file.read_text(encoding="utf-8")
    names = [name for name in STUDIES if re.search(rf"^def \w+\((.*, )?{name}\b", text, re.MULTILINE)]
    return next((name for name in names if f"\ndef {name}(" not in text), str(file))


class Done(NamedTuple):
    """A study that has been run by the command line."""

    path: Path  # the study file
    runs: Path  # folder of its runs
    run: Run  # what it left

    def rows(self, table: str, **key: object) -> list[dict[str, Any]]:
        """Rows of a table with these values."""
        rows = self.run[table].to_pylist()
        return [row for row in rows if all(row[column] == value for column, value in key.items())]

    def artifact(self, need: Need) -> Artifact:
        """The artifact of a stage."""
        return self.run.artifact(need)


@pytest.fixture(scope="session")
def lineage(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Four models, three instruments, all analyses of a lineage."""
    import tiny

    return _done(tmp_path_factory.mktemp("lineage"), tiny.lineage_values)


@pytest.fixture(scope="session")
def stitch(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Models joined by affine maps."""
    pytest.importorskip("sklearn")
    import stitches

    return _done(tmp_path_factory.mktemp("stitch"), stitches.stitch_values)


def _done(folder: Path, values: Callable[[Path], dict[str, Any]]) -> Done:
    """Write the study `s.toml` and run it into `runs`. values: writes its corpora into a folder and returns it."""
    import tiny
    from heredity.results import open as open_run

    path = tiny.toml(values(folder), folder / "s.toml")
    tiny.run_study(path, folder / "runs")
    return Done(path, folder / "runs", open_run(folder / "runs" / "s"))
