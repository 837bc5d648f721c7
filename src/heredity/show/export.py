"""Every declared table of a run, small and large, as files for other tools: Parquet, CSV or JSON.

Parquet files hold the declaration in their metadata. Each file appears under its name when it is complete, and a new
folder when all of it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from heredity.analyses import BY_KIND, TABLES
from heredity.engine.store import Artifact, whole
from heredity.tables import Table

if TYPE_CHECKING:
    from heredity.results import Run

FORMATS = ("csv", "parquet", "json")


def export(run: Run, out: Path, format_: str, progress: Callable[[int, int], None]) -> list[Path]:
    """Write every table of a run as `out/NAME.FORMAT`; returns the paths.

    A new folder is there when all of it is; in one that exists each file is. Raises ValueError for `out` that is a
    file.
    """
    if out.exists():
        if not out.is_dir():
            raise ValueError(f"-o {out}: is a file; give the name of a folder")
        return [out / name for name in _written(run, out, format_, progress)]
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole(out) as unfinished:
        unfinished.mkdir()
        return [out / name for name in _written(run, unfinished, format_, progress)]


def _written(run: Run, folder: Path, format_: str, progress: Callable[[int, int], None]) -> list[str]:
    """Names of the files that were written into a folder."""
    tables = holders_of(run)
    for done, (name, artifacts) in enumerate(tables.items(), 1):
        write(TABLES[name], parts_of(name, artifacts), folder / f"{name}.{format_}", format_)
        progress(done, len(tables))
    return [f"{name}.{format_}" for name in tables]


def holders_of(run: Run) -> dict[str, list[Artifact]]:
    """The artifacts that hold parts of every table of a run, large ones too, by the table's name."""
    holders: dict[str, list[Artifact]] = {name: [] for name in TABLES}
    for label, artifact in run.artifacts.items():
        if "~" not in label:
            for table in BY_KIND[label.partition("/")[0]].tables:
                holders[table.name].append(artifact)
    return {name: artifacts for name, artifacts in holders.items() if artifacts}


def parts_of(name: str, artifacts: Iterable[Artifact]) -> Iterator[pa.Table]:
    """The parts of a table, each read when it is taken. Raises ArtifactError for a file that cannot be read."""
    return (artifact.table(name) for artifact in artifacts)


def write(table: Table, parts: Iterable[pa.Table], path: Path, format_: str) -> None:
    """Write the parts of one table, one in memory at a time; the file is whole or not there."""
    with whole(path) as unfinished:
        if format_ == "json":
            rows = (json.dumps(row, allow_nan=False) for part in parts for row in part.to_pylist())
            with open(unfinished, "w", encoding="utf-8") as file:
                file.write("[")
                file.writelines(f"{',' if place else ''}\n {row}" for place, row in enumerate(rows))
                file.write("\n]\n")
            return
        opened = partial(pq.ParquetWriter, compression="zstd") if format_ == "parquet" else csv.CSVWriter
        with opened(unfinished, table.schema) as writer:
            for part in parts:
                writer.write_table(part.cast(table.schema))
