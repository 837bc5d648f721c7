"""Artifacts are whole or absent, know their recipe, and notice damage."""

from __future__ import annotations

import errno
import json
import mmap
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from heredity.engine import store as module
from heredity.engine.store import Artifact, ArtifactError, Store, digest, faults, whole, write_json

KEY = "a" * 64


def writing(store: Store):
    return store.writing("sae", "base", KEY, {}, {})


def find(root: Path) -> Artifact | None:
    return Store(root).find("sae", "base", KEY)


def write_one(store: Store, key: str = KEY) -> Path:
    with store.writing("sae", "base", key, {"k": 1}, {"model": "b" * 64}) as folder:
        (folder / "weights").write_bytes(b"123")
    return store.path("sae", "base", key)


@pytest.fixture
def written(tmp_path) -> Path:
    return write_one(Store(tmp_path))


def test_an_artifact_is_found_after_it_was_written_and_records_its_recipe(tmp_path, written):
    found = find(tmp_path)
    assert found is not None and found.folder == written
    assert found.manifest["inputs"] == {"model": "b" * 64}
    assert json.loads((written / "config.json").read_text()) == {"k": 1}
    assert set(found.manifest["files"]) == {"weights", "config.json"}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system tells no peak of its own")
def test_the_peak_of_memory_is_that_of_the_stage(tmp_path):
    store, peaks = Store(tmp_path), []
    for name, size in (("large", 300), ("small", 1)):
        with store.writing("stage", name, name, {}, {}), mmap.mmap(-1, size << 20) as memory:  # not of an allocator
            memory.write(b"1" * len(memory))
        peaks.append(store.find("stage", name, name).manifest["peak_memory_gib"])
    assert peaks[0] > peaks[1] + 0.2


def test_nothing_is_found_when_writing_was_interrupted_but_the_work_is_kept(tmp_path):
    with pytest.raises(KeyboardInterrupt), writing(Store(tmp_path)) as folder:
        (folder / "checkpoint").write_text("half")
        raise KeyboardInterrupt
    assert find(tmp_path) is None
    with writing(Store(tmp_path)) as folder:
        assert (folder / "checkpoint").read_text() == "half"


def test_what_is_left_over_is_deleted_and_nothing_else(tmp_path):
    store, other = Store(tmp_path), "b" * 64
    kept, gone = write_one(store), write_one(store, other)
    for key in (KEY, "c" * 64):
        with pytest.raises(KeyboardInterrupt), store.writing("model", "lua", key, {}, {}) as folder:
            (folder / "checkpoints").mkdir()
            raise KeyboardInterrupt
    mine = tmp_path / "sae" / f"mine-{'0' * 12}"  # named like an artifact, and none
    mine.mkdir()
    (mine / "manifest.json").write_text("{}")
    (tmp_path / "summary.json").write_text("{}")
    (tmp_path / "sae" / f"link-{'0' * 12}").symlink_to(gone)
    begun = tmp_path / "model" / f".partial-lua-{'c' * 12}"
    found = store.left_over([("sae", "base", KEY), ("model", "lua", KEY)])
    assert found == [begun, gone]
    before = set(tmp_path.rglob("*"))
    for folder in found:
        store.delete(folder)
    left = {path for path in before if not any(path == one or one in path.parents for one in found)}
    assert set(tmp_path.rglob("*")) == left and kept in left and find(tmp_path) is not None


@pytest.mark.parametrize(("name", "content"), [("weights", "124"), ("weights", None), ("stranger", "x")])
def test_damage_is_noticed_when_an_artifact_is_read(tmp_path, written, name, content):
    if content is None:
        (written / name).unlink()
    else:
        (written / name).write_text(content)
    assert len(faults(written)) == 1
    with pytest.raises(ArtifactError, match="mend that, or delete the folder and run again"):
        find(tmp_path)


def test_an_artifact_without_its_manifest_is_made_anew(tmp_path, written):
    (written / "manifest.json").unlink()
    assert faults(written) == ["manifest.json is missing"]
    assert find(tmp_path) is None
    write_one(Store(tmp_path))
    assert find(tmp_path) is not None


@pytest.mark.parametrize(
    ("entry", "value"), [("key", "a" * 63 + "b"), ("key", "b" * 64), ("stage", "model"), ("name", "child")]
)
def test_an_artifact_of_another_recipe_is_refused(tmp_path, written, entry, value):
    manifest = json.loads((written / "manifest.json").read_text())
    write_json(written / "manifest.json", manifest | {entry: value})
    with pytest.raises(ArtifactError, match="that of another artifact"):
        find(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{", b"\xff\xfe\0", b"[" * 100_000, b"7", b'{"files": {}}'])
def test_a_broken_manifest_is_one_fault_among_those_of_other_artifacts(tmp_path, content):
    store = Store(tmp_path)
    first, second = write_one(store), write_one(store, "c" * 64)
    (first / "manifest.json").write_bytes(content)
    (second / "weights").write_bytes(b"124")
    assert store.folders() == [first, second]
    assert faults(first) == ["manifest.json is unreadable or incomplete"]
    assert faults(second) == ["weights differs from its recorded checksum"]
    with pytest.raises(ArtifactError, match="unreadable"):
        find(tmp_path)


@pytest.mark.parametrize("entry", ["stage", "name", "key", "inputs", "files", "versions", "seconds"])
@pytest.mark.parametrize("value", [None, "?", [1], float("nan"), 10**400])
def test_a_manifest_with_a_wrong_entry_is_a_fault(written, entry, value):
    manifest = json.loads((written / "manifest.json").read_text())
    (written / "manifest.json").write_text(json.dumps({**manifest, entry: value}))
    assert faults(written)


def test_a_file_that_cannot_be_read_is_a_fault_of_its_own(written, monkeypatch):
    monkeypatch.setattr(
        module, "checksum", lambda path: (_ for _ in ()).throw(PermissionError(13, "denied", str(path)))
    )
    assert faults(written) == ["config.json cannot be read (denied)", "weights cannot be read (denied)"]


@pytest.mark.parametrize("name", [".DS_Store", "Thumbs.db", "desktop.ini", ".nfs0000000012", "._weights"])
def test_files_of_file_managers_are_neither_recorded_nor_faults(tmp_path, name):
    with writing(Store(tmp_path)) as folder:
        (folder / name).write_text("x")
    final = Store(tmp_path).path("sae", "base", KEY)
    (final / name).write_text("y")
    assert faults(final) == []
    (final / name).unlink()
    assert faults(final) == []


def test_a_link_to_a_folder_inside_an_artifact_is_followed_and_one_in_its_place_replaced(tmp_path):
    store = Store(tmp_path / "runs")
    with writing(store) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "weights").write_text("1")
    final = store.path("sae", "base", KEY)
    shutil.move(final / "deep", tmp_path / "elsewhere")
    (final / "deep").symlink_to(tmp_path / "elsewhere")
    assert faults(final) == []
    shutil.rmtree(final)
    final.symlink_to(tmp_path / "nowhere")
    write_one(store)
    assert faults(final) == []


# -- killed and full disks ---------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from heredity.engine.store import Store, write_json
real = os.rename
os.rename = lambda a, b, **_: os.kill(os.getpid(), signal.SIGKILL) if ".partial-" in os.fspath(a) else real(a, b)
with Store(Path(sys.argv[1])).writing("sae", "base", "a" * 64, {}, {}) as folder:
    (folder / "weights").write_text("half")
    (folder / f".table.json.{os.getpid()}").write_text("half")
"""


def test_a_kill_between_manifest_and_rename_leaves_a_run_that_goes_on(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert done.returncode == -9
    assert (tmp_path / "sae" / f".partial-base-{'a' * 12}" / "manifest.json").exists()
    store = Store(tmp_path)
    folder = write_one(store)
    found = find(tmp_path)
    assert found is not None
    assert set(found.manifest["files"]) == {"weights", "config.json"}
    assert [path.name for path in tmp_path.rglob(".*")] == []
    assert store.folders() == [folder]


@pytest.mark.parametrize(
    ("content", "seconds"), [*((odd, 0) for odd in (b"", b"x", b"nan", b"inf", b"-5", b"\xff")), (b"1000.5", 1000)]
)
def test_seconds_of_earlier_tries_are_added_where_they_make_sense(tmp_path, content, seconds):
    with pytest.raises(KeyboardInterrupt), writing(Store(tmp_path)) as folder:
        raise KeyboardInterrupt
    (folder / ".seconds").write_bytes(content)
    write_one(Store(tmp_path))
    found = find(tmp_path)
    assert found is not None
    assert seconds <= found.manifest["seconds"] < seconds + 60


def test_a_full_disk_names_the_place_and_masks_nothing(tmp_path, monkeypatch):
    def full(*_: object, **__: object):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = Store(tmp_path)
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match=r"No space left on device: .*x\.json"):
        write_json(tmp_path / "x.json", {})
    with pytest.raises(OSError, match=r"No space left on device: .*\.partial-base"), writing(store):
        full()
    monkeypatch.undo()
    partial = store.path("sae", "base", KEY).with_name(f".partial-base-{'a' * 12}")
    assert list(partial.iterdir()) == []
    write_one(store)
    assert [path.name for path in tmp_path.rglob(".*")] == []


# -- whole -------------------------------------------------------------------------------------------------------


def test_a_file_or_folder_is_replaced_whole_or_left_as_it_was(tmp_path):
    for number in ("1", "2"):
        with whole(tmp_path / "file") as partial:
            partial.write_text(number)
        with whole(tmp_path / "folder") as partial:
            (partial / "deep").mkdir(parents=True)
            (partial / "deep" / number).write_text(number)
    for name in ("file", "folder"):
        with pytest.raises(ValueError, match="stop"), whole(tmp_path / name) as partial:
            partial.write_text("3") if name == "file" else partial.mkdir()
            raise ValueError("stop")
    assert (tmp_path / "file").read_text() == "2"
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert names == ["file", "folder", "folder/deep", "folder/deep/2"]


def test_temporary_files_of_killed_processes_are_deleted_and_those_of_living_ones_are_not(tmp_path):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    strays = [f".x.json.{number}" for number in (int(dead.stdout), os.getppid())] + [".x.json.swp", ".xxjson.1234567"]
    for name in strays:
        (tmp_path / name).write_text("half")
    write_json(tmp_path / "x.json", 1)
    with pytest.raises(ValueError):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert (tmp_path / "x.json").read_text() == "1\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*strays[1:], "x.json"])


def hold(root: Path, held, release) -> None:
    with Store(root).lock():
        held.set()
        release.wait(20)


def test_two_writers_of_one_study_are_refused(tmp_path):
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path, held, release))
    other.start()
    try:
        assert held.wait(20)
        with pytest.raises(ArtifactError, match=f"process {other.pid}"), Store(tmp_path).lock():
            pass
    finally:
        release.set()
        other.join()


def test_a_digest_does_not_depend_on_the_order_of_keys():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1}) != digest({"a": 1, "b": [2, 1]})


def test_a_damaged_table_is_named_with_its_file(tmp_path):
    """Arrow says OSError where the file's own table of contents is damaged, and ValueError elsewhere."""
    artifact, path = Artifact(tmp_path, "k"), tmp_path / "rows.parquet"
    pq.write_table(pa.table({"a": [1, 2, 3], "b": [4, 5, 6]}), path)
    assert artifact.table("rows", ["a"], [("a", ">", 1)]).to_pydict() == {"a": [2, 3]}
    whole, read = path.read_bytes(), 0
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            artifact.table("rows")
            read += 1  # what was changed says nothing of the rows
        except ArtifactError as error:
            assert str(path) in str(error) and "delete its folder and run again" in str(error)
    assert read < len(whole) / 2
