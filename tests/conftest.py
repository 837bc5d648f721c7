"""Two studies, each run once for all tests, and which worker runs what."""

from __future__ import annotations

import os
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


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share what a fixture makes run on one worker, so that it is made once."""
    for item in items:
        names = getattr(item, "fixturenames", ())
        definitions: Any = getattr(item, "_fixtureinfo").name2fixturedefs if names else {}  # noqa: B009
        study = next((name for name in STUDIES if name in names), None)
        shared = any(definitions[name][-1].scope == "module" for name in names if name in definitions)
        if study or shared:
            item.add_marker(pytest.mark.xdist_group(study or item.nodeid.partition("::")[0]))


class Done(NamedTuple):
    """A study that has been run by the command line."""

    path: Path
    """The study file."""
    runs: Path
    """Folder of its runs."""
    run: Run
    """What it left."""

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
    return _done(tmp_path_factory.mktemp("lineage"), "lineage_values")


@pytest.fixture(scope="session")
def stitch(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Models joined by affine maps."""
    return _done(tmp_path_factory.mktemp("stitch"), "stitch_values")


def _done(folder: Path, values: str) -> Done:
    """Write the study `s.toml` and run it into `runs`. values: function of `tiny`."""
    import tiny
    from heredity.results import open as open_run

    path = tiny.toml(getattr(tiny, values)(folder), folder / "s.toml")
    tiny.run_study(path, folder / "runs")
    return Done(path, folder / "runs", open_run(folder / "runs" / "s"))
