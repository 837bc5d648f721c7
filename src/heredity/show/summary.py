"""`summary.json`, schema 2: every table of a run but the large ones, with declarations, findings and notes.

{"heredity": version, "schema": 2, "study": name, "seconds": of work, "peak_memory_gib": of a stage, "created": UTC,
 "machine": in words,
 "config": the study file without its defaults,
 "tables": {NAME: {"doc", "key", "columns": {NAME: {"kind", "doc", "of"}}, "rows": [{...}]}},
 "statements": [{"about", "question", "text", "evidence", "instrument", "site"}], "notes": [text]}
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heredity import __version__
from heredity.analyses import TABLES
from heredity.engine.store import write_json
from heredity.errors import read_json, short
from heredity.tables import Table

if TYPE_CHECKING:
    from heredity.results import Run

SCHEMA = 2
SUMMARY = "summary.json"


def summarize(run: Run) -> dict[str, Any]:
    """The summary of a run, as far as it is done."""
    statements = [statement._asdict() | {"evidence": list(statement.evidence)} for statement in run.statements]
    return {
        "heredity": __version__,
        "schema": SCHEMA,
        "study": run.name,
        "seconds": round(run.seconds, 3),
        "peak_memory_gib": run.peak_memory_gib,
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "machine": machine_of(run),
        "config": run.study.config.model_dump(mode="json", exclude_defaults=True, exclude_none=True),
        "tables": {name: record(TABLES[name], rows.to_pylist()) for name, rows in run.tables.items()},
        "statements": [statement for statement in statements if statement["question"] != "note"],
        "notes": list(dict.fromkeys(row["text"] for row in statements if row["question"] == "note")),
    }


def record(table: Table, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows with their declaration, as JSON."""
    columns = {}
    for field in table.schema:
        meta = {key.decode(): value.decode() for key, value in field.metadata.items()}
        columns[field.name] = {key: meta[key] for key in ("kind", "doc", "of")}
    return {"doc": table.doc, "key": list(table.key), "columns": columns, "rows": list(rows)}


def write(run: Run) -> dict[str, Any]:
    """Write `summary.json` into the run's folder, whole or not at all."""
    summary = summarize(run)
    write_json(run.folder / SUMMARY, summary)
    return summary


def read(path: str | Path) -> dict[str, Any]:
    """A summary from its file or from the folder of its run.

    Raises ValueError, by path, for a file that is no summary, and for one of version 0.1.0.
    """
    path = Path(path)
    path = path / SUMMARY if path.is_dir() else path
    summary = read_json(path, "it is no summary: run the study again", kind=object)
    if not isinstance(summary, dict) or not {"schema", "edges", "tables"} & set(summary):
        raise ValueError(f"{path}: is no summary of a run; give the summary.json of one")
    if summary.get("schema") != SCHEMA:
        made_by = f"heredity {short(summary.get('heredity', '0.1.0'))} (schema {short(summary.get('schema', 1))})"
        raise ValueError(f"{path}: was written by {made_by}, this version reads schema 2; run the study again")
    return summary


def machine_of(run: Run) -> str:
    """The machine that computed a run: this one, or where nothing was computed now the one of before."""
    path = run.folder / SUMMARY
    if "torch" not in sys.modules and path.is_file():
        with suppress(ValueError):
            return read(path)["machine"]
    return machine()


def machine() -> str:
    """This machine in words; what trained models give differs in its digits between kinds of processors."""
    torch, processors = sys.modules.get("torch"), f"{os.cpu_count()} processors"
    if torch is None:  # nothing was computed
        return f"{platform.machine()}, {processors}"
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    kind = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return f"{kind}, {processors}, torch {torch.__version__}"
