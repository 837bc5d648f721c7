"""The place of a fault, and the table of all that were tried."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from faults.table import Fault, Place


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Makes the finished run when it is first asked for; its folder holds the study beside it."""

    @cache
    def make() -> Path:
        place = Place(tmp_path_factory.mktemp("finished"), lambda: Path())
        place.study()
        place.command("run", "s.toml").well()
        return place.folder

    return make


@pytest.fixture
def place(tmp_path: Path, finished: Any) -> Place:
    return Place(tmp_path, finished)


@pytest.fixture
def tried(place: Place, record_property: Any) -> Any:
    """Tries a fault and notes its row of the table."""

    def try_(fault: Fault) -> None:
        measured = "NOT AS PROMISED"
        try:
            measured = fault.tried(place)
        finally:
            record_property("fault", [fault.name, fault.promised, measured.replace(str(place.folder), "...")])

    return try_


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table, where this folder is what was asked for."""
    if not any("faults" in str(one) for one in terminalreporter.config.args):
        return
    reports = [one for kind in ("passed", "failed") for one in terminalreporter.stats.get(kind, ())]
    rows = [value for report in reports for name, value in report.user_properties if name == "fault"]
    terminalreporter.section("faults")
    for name, promised, measured in rows:
        terminalreporter.write_line(
            f"{name}\n    promised: {promised}\n    measured: {' '.join(measured.split())[:230]}"
        )
    wrong = sum("NOT AS PROMISED" in measured for _, _, measured in rows)
    terminalreporter.write_line(f"{len(rows)} faults, {len(rows) - wrong} as promised, {wrong} not")
