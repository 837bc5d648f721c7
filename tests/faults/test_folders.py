"""Faults of a run's folder: damaged, foreign and hostile files are told by name, before any figure rests on them."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import heredity
from faults.table import Fault, Faults, Place
from heredity.engine.store import ArtifactError, Store, faults
from heredity.explain.ledger import Ledger
from heredity.serve import database

FAULTS = Faults()
fault = FAULTS


@pytest.mark.parametrize("one", FAULTS.rows)
def test_a_fault_of_the_folder_ends_as_promised(one: Fault, tried):
    tried(one)


def kinds_of_files(place: Place) -> list[Path]:
    """One file of every kind that artifacts hold."""
    found = {
        (file.parent.name, file.suffix): file for file in sorted(place.run_folder.glob("*/*/**/*")) if file.is_file()
    }
    return [file for file in found.values() if file.name != "manifest.json"]


def noticed(place: Place, change) -> str:
    """Change one file of every kind in turn: `verify` and whoever opens the run name it."""
    place.done()
    files = kinds_of_files(place)
    for file in files:
        before = file.read_bytes()
        change(file)
        artifact = next(one for one in file.parents if (one / "manifest.json").is_file())
        assert any(str(file.relative_to(artifact)) in line for line in faults(artifact)), file
        with pytest.raises(ArtifactError, match="mend that, or delete the folder and run again"):
            heredity.open(place.run_folder)
        file.write_bytes(before)
    heredity.open(place.run_folder)
    return f"{len(files)} of {len(files)} kinds of files told by verify and refused"


@fault("one bit of a file flipped", "verify names it, nothing reads it")
def _(place: Place) -> str:
    def flip(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)

    return noticed(place, flip)


@fault("a file cut in half", "verify names it, nothing reads it")
def _(place: Place) -> str:
    return noticed(place, lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]))


@fault("an empty file", "verify names it, nothing reads it")
def _(place: Place) -> str:
    return noticed(place, lambda file: file.write_bytes(b""))


@fault("a file that is gone", "verify names it, nothing reads it")
def _(place: Place) -> str:
    return noticed(place, Path.unlink)


@fault("manifests of other forms", "verify and status tell each as damage, the others too")
def _(place: Place) -> str:
    place.done()
    manifest, other = place.artifact("sae") / "manifest.json", place.artifact("flow") / "table.txt"
    other.write_text("x")
    forms = [b"", b"[]", b"null", b"{", b"\xff\xfe\0", b"[" * 100_000, b"7", b"9" * 5000, b'{"files": {}}', b"NaN"]
    for content in forms:
        manifest.write_bytes(content)
        told = place.inside("verify")
        assert told.code == 1 and "manifest.json is unreadable or incomplete" in told.out, (content[:20], told)
        assert "table.txt is not part of the artifact" in told.out
        states = json.loads(place.inside("status", "--json").out)["stages"]
        assert sum(row["state"] == "damaged" for row in states) == 2
        place.inside("report", "--format", "md").refused("mend that, or delete the folder")
    return f"{len(forms)} of {len(forms)} forms told beside the other fault"


@fault("a manifest and a file that may not be read", "told with the reason, the others too")
def _(place: Place) -> str:
    place.done()
    manifest, file = place.artifact("sae") / "manifest.json", next(place.artifact("flow").glob("*.parquet"))
    other = place.artifact("match") / "notes.txt"
    other.write_text("x")
    real = open

    def refusing(path, *arguments, **more):
        if str(path) in (str(manifest), str(file)):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.open", refusing)
        patch.setattr("io.open", refusing)
        told, states = place.inside("verify"), place.inside("status", "--json")
    assert told.code == 1 and "notes.txt is not part of the artifact" in told.out
    for name in ("manifest.json", file.name):
        assert f"{name} cannot be read (Permission denied)" in told.out, told.out
    assert sum(row["state"] == "damaged" for row in json.loads(states.out)["stages"]) == 3
    return "3 of 3 faults told by verify and status"


@fault("an artifact of another recipe under this one's name", "refused")
def _(place: Place) -> str:
    place.done()
    first, second = sorted((place.run_folder / "acts").iterdir())
    shutil.rmtree(first)
    shutil.copytree(second, first)
    return place.inside("report", "--format", "md").refused("is that of another artifact")


@fault("files of file managers and file systems in every artifact", "ignored")
def _(place: Place) -> str:
    place.done()
    for artifact in Store(place.run_folder).folders():
        for name in (".DS_Store", "Thumbs.db", "desktop.ini", ".nfs00000001", "._x"):
            (artifact / name).write_text("x")
    told = place.inside("verify")
    told.well()
    return told.out.strip()


@fault("a stray file in an artifact", "refused with the file to delete")
def _(place: Place) -> str:
    place.done()
    (place.artifact("sae") / "notes.txt").write_text("x")
    return place.inside("report", "--format", "md").refused(r"notes\.txt is not part .* \(delete that file\)")


@fault("links in circles inside an artifact", "ends, and nothing is found twice")
def _(place: Place) -> str:
    place.done()
    artifact = place.artifact("model")
    for number in range(40):  # a walk that follows each would take 2 ** 40 steps
        (artifact / f"circle{number}").symlink_to(artifact)
    place.inside("verify").well()
    return "verify: code 0"


@fault("an artifact moved elsewhere and linked", "followed")
def _(place: Place) -> str:
    place.done()
    artifact = place.artifact("sae")
    shutil.move(artifact, place.folder / "elsewhere")
    artifact.symlink_to(place.folder / "elsewhere")
    place.inside("verify").well()
    return place.inside("report", "--format", "md").well()


@fault("a table of other columns, its checksum mended", "refused by file")
def _(place: Place) -> str:
    place.done()
    artifact = place.artifact("verdicts")
    file = artifact / "verdicts.parquet"
    for table in (
        pq.read_table(file).drop_columns(["live"]),
        pq.read_table(file).append_column("more", pa.array([1] * len(pq.read_table(file)))),
        pa.table({"edge": [{"a": [1]}]}),
    ):
        pq.write_table(table, file)
        resign(artifact)
        said = place.inside("report", "--format", "md").refused(r"verdicts\.parquet.*cannot be read .*run again")
    return said


@fault("a table whose counts do not add up, its checksum mended", "refused by file")
def _(place: Place) -> str:
    place.done()
    artifact = place.artifact("verdicts")
    file = artifact / "verdicts.parquet"
    table = pq.read_table(file)
    at = table.column_names.index("kept")
    pq.write_table(
        table.set_column(at, table.schema.field(at), pa.array([10**6] * len(table), table["kept"].type)), file
    )
    resign(artifact)
    return place.inside("report", "--format", "md").refused(
        r"verdicts\.parquet: table verdicts: .*(do not add up|exceeds).*run again"
    )


def resign(artifact: Path) -> None:
    manifest = json.loads((artifact / "manifest.json").read_text())
    for name in manifest["files"]:
        manifest["files"][name] = hashlib.sha256((artifact / name).read_bytes()).hexdigest()
    (artifact / "manifest.json").write_text(json.dumps(manifest))


@fault("run.json of other forms", "refused by file")
def _(place: Place) -> str:
    place.done()
    forms = [b"", b"[]", b"{}", b"[" * 100_000, b'{"toml": 5, "study": [], "root": 1}', b"\xff", b'{"toml": "a = ["}']
    for content in forms:
        (place.run_folder / "run.json").write_bytes(content)
        with pytest.raises(ArtifactError, match=r"run\.json: cannot be read .*run the study again"):
            heredity.open(place.run_folder)
    return f"{len(forms)} of {len(forms)} refused by file"


@fault("the lock of a process that has died", "taken over")
def _(place: Place) -> str:
    place.study()
    root = place.run_folder
    code = "import os, sys; from pathlib import Path; from heredity.engine.store import Store\n"
    code += f"with Store(Path({str(root)!r})).lock(): os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    with Store(root).lock():
        return f"held again; it named process {(root / '.lock').read_text()}"


@fault("a folder or a dead link where the lock is", "refused by path")
def _(place: Place) -> str:
    place.study()
    (place.run_folder / ".lock").mkdir(parents=True)
    words = "cannot be written .*choose another folder with --runs"
    with pytest.raises(ArtifactError, match=words) as told, Store(place.run_folder).lock():
        pass
    return str(told.value)


@fault("a served database cut short or of another kind", "made anew")
def _(place: Place) -> str:
    run = heredity.open(place.done())
    path, key = place.run_folder / database.FILE, database.key_of(run.pipeline, run.folder)
    database.build(run, path, key, lambda *_: None)
    whole = path.read_bytes()
    contents = [b"", b"x" * 5000, whole[:5000], whole[: len(whole) // 2], b"SQLite format 3\0" + b"\xff" * 4096]
    for content in contents:
        path.write_bytes(content)
        if database.is_current(path, key):  # the page that holds the key is whole
            assert len(content) == len(whole) // 2
            continue
        database.build(run, path, key, lambda *_: None)
        assert path.read_bytes()[:16] == whole[:16] and database.is_current(path, key)
    return f"{len(contents)} forms, each noticed and made anew"


@fault("a ledger of answers that is no ledger", "refused by path, and left as it was")
def _(place: Place) -> str:
    path = place.folder / "ledger.sqlite"
    with sqlite3.connect(place.folder / "other.sqlite") as other:
        other.execute("CREATE TABLE a (b)")
    other.close()
    for content in (b"x" * 5000, b"SQLite format 3\0" + b"\xff" * 4096, (place.folder / "other.sqlite").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"ledger\.sqlite") as told, Ledger(path):
            pass
        assert path.read_bytes() == content
    return str(told.value)


@fault("explanations of twelve at once into one folder", "the rows of all are kept")
def _(place: Place) -> str:
    from heredity.analyses import explain_on_demand
    from heredity.analyses.explain import EXPLANATIONS

    path = place.folder / "explanations.parquet"

    def add(number: int) -> None:
        row = dict.fromkeys(EXPLANATIONS.schema.names) | {"model": "base", "feature": number, "origin_model": "base"}
        row |= {
            "origin_feature": number,
            "carried": False,
            "re_explained": False,
            "kept": False,
            "by": "x",
            "cost": 0.0,
        }
        made = EXPLANATIONS.schema.empty_table()
        row |= {"instrument": "joint", "site": "x"}
        explain_on_demand._add(pa.concat_tables([made, pa.Table.from_pylist([row], made.schema)]), path)

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(add, range(12)))
    assert sorted(pq.read_table(path)["feature"].to_pylist()) == list(range(12))
    return "12 of 12 rows"
