"""Results on shared storage: whole or not there, checked as they are read, and faults of the storage in one line."""

from __future__ import annotations

import json
import os
import pickle
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

import s3
from heredity.engine import shared as module
from heredity.engine import snapshot
from heredity.engine.shared import Shared, StorageError, place, shown
from heredity.engine.store import ArtifactError, Store

KEY = "a" * 64


@pytest.fixture(params=["memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty prefix of a storage."""
    monkeypatch.setenv(module.CACHE, str(tmp_path / "cache"))
    if request.param == "memory":
        yield f"memory://bucket/{tmp_path.name}"
        fsspec.filesystem("memory").store.clear()
    else:
        yield from (f"{bucket}/runs" for bucket in s3.bucket(monkeypatch))


@pytest.fixture
def store(url: str) -> Store:
    return Store(place(url) / "study")


def write(store: Store, key: str = KEY) -> Path:
    with store.writing("sae", "base", key, {"k": 1}, {}) as folder:
        (folder / "sae").mkdir(exist_ok=True)
        (folder / "sae" / "weights").write_bytes(b"123")
        (folder / "table").write_bytes(b"456")
    return store.path("sae", "base", key)


def elsewhere(url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str = "other") -> Store:
    """The store as another machine sees it."""
    monkeypatch.setenv(module.CACHE, str(tmp_path / name))
    return Store(place(url) / "study")


def test_what_one_machine_writes_another_reads_and_fetches_only_what_it_reads(url, store, monkeypatch, tmp_path):
    folder = write(store)
    other = elsewhere(url, monkeypatch, tmp_path)
    assert other.root != store.root and shown(other.root.parent) == url
    found = other.find("sae", "base", KEY)
    assert found is not None and found.manifest["stage"] == "sae"
    assert not (found.folder / "table").exists()
    assert (found / "table").read_bytes() == b"456" and not (found.folder / "sae").exists()
    assert (found / "sae" / "weights").read_bytes() == b"123"
    assert other.folders() == [other.path("sae", "base", KEY)] and other.faults(other.folders()[0]) == []
    assert other.place(folder) == f"{url}/study/sae/{folder.name}"
    assert pickle.loads(pickle.dumps(found)) == found or (found.shared and found.shared.url)
    assert pickle.loads(pickle.dumps(other)).find("sae", "base", KEY) is not None


def test_an_artifact_without_its_manifest_is_not_there(url, store, monkeypatch, tmp_path):
    write(store)
    there = store.shared / f"sae/base-{KEY[:12]}"
    there.remove("manifest.json")
    other = elsewhere(url, monkeypatch, tmp_path)
    assert other.find("sae", "base", KEY) is None
    write(other)
    assert other.find("sae", "base", KEY) is not None


def test_a_changed_or_missing_file_is_noticed_when_it_is_read(url, store, monkeypatch, tmp_path):
    folder = write(store)
    there = store.shared / f"sae/{folder.name}"
    there.write("table", b"45x")
    there.remove("sae/weights")
    found = elsewhere(url, monkeypatch, tmp_path).find("sae", "base", KEY)
    assert found is not None
    with pytest.raises(ArtifactError, match="table differs from its recorded checksum; delete it and run again"):
        _ = found / "table"
    with pytest.raises(ArtifactError, match="sae/weights is missing"):
        _ = found / "."
    assert store.faults(folder) == ["sae/weights is missing", "table differs from its recorded checksum"]
    there.write("manifest.json", b"{}")
    with pytest.raises(ArtifactError, match="unreadable or incomplete"):
        elsewhere(url, monkeypatch, tmp_path, "third").find("sae", "base", KEY)


def test_a_damaged_file_of_the_cache_is_fetched_again(url, store, monkeypatch, tmp_path):
    write(store)
    other = elsewhere(url, monkeypatch, tmp_path)
    found = other.find("sae", "base", KEY)
    assert found is not None
    (found.folder / "table").write_bytes(b"???")
    assert (found / "table").read_bytes() == b"456"


def test_what_could_not_be_sent_is_sent_by_the_next_run_and_made_by_none(url, store, monkeypatch, tmp_path):
    real, broken = Shared.write, True

    def write_(self: Shared, name: str, content: bytes) -> None:
        if broken and name == "manifest.json":
            raise StorageError("the storage fails")
        real(self, name, content)

    monkeypatch.setattr(Shared, "write", write_)
    with pytest.raises(StorageError):
        write(store)
    broken = False
    other = elsewhere(url, monkeypatch, tmp_path)
    assert other.find("sae", "base", KEY) is None
    again = Store(store.root)
    assert again.find("sae", "base", KEY) is not None
    assert other.find("sae", "base", KEY) is not None


def test_another_machine_goes_on_from_the_last_snapshot(url, store, monkeypatch, tmp_path):
    with pytest.raises(KeyboardInterrupt), store.writing("model", "base", KEY, {}, {}) as folder:
        (folder / "steps").mkdir()
        (folder / "steps" / "checkpoint").write_text("7")
        raise KeyboardInterrupt
    other = elsewhere(url, monkeypatch, tmp_path)
    with pytest.raises(KeyboardInterrupt), other.writing("model", "base", KEY, {}, {}) as folder:
        assert (folder / "steps" / "checkpoint").read_text() == "7"
        (folder / "steps" / "checkpoint").write_text("8")
        raise KeyboardInterrupt
    with store.writing("model", "base", KEY, {}, {}) as folder:  # the first machine again, which is behind
        assert (folder / "steps" / "checkpoint").read_text() == "8"
    found = store.find("model", "base", KEY)
    assert found is not None and set(found.manifest["files"]) == {"steps/checkpoint", "config.json"}
    assert not [name for name in store.shared.sizes() if ".partial-" in name]


def test_half_a_snapshot_is_none_and_one_under_way_is_not_kept(url, store, monkeypatch, tmp_path):
    there, folder = store.shared / "model/x", tmp_path / "work"
    folder.mkdir()
    (folder / "a").write_text("1")
    assert snapshot.save(folder, there) and not snapshot.save(folder, there)
    real = Shared.put

    def put(self: Shared, *arguments: object) -> None:
        real(self, *arguments)
        (folder / "a").write_text("333")

    (folder / "a").write_text("22")
    monkeypatch.setattr(Shared, "put", put)
    assert not snapshot.save(folder, there)
    monkeypatch.undo()
    other = tmp_path / "other"
    other.mkdir()
    with snapshot.snapshots(other, there):
        assert (other / "a").read_text() == "1"
    content = json.loads(there.read(snapshot.LIST))
    there.write(content["a"], b"?")
    with snapshot.snapshots(other, there):
        assert (other / "a").read_text() == "1"
    third = tmp_path / "third"
    third.mkdir()
    with snapshot.snapshots(third, there):
        assert list(third.iterdir()) == []


def test_a_second_writer_is_refused_and_a_killed_one_is_not_waited_for(url, store, monkeypatch, tmp_path):
    other = elsewhere(url, monkeypatch, tmp_path)
    with (
        store.lock(),
        pytest.raises(StorageError, match=f"is being written by process {os.getpid()} on .*; wait"),
        other.lock(),
    ):
        pass
    for left in ({"host": "gone", "process": 1, "until": time.time() - 1}, {"host": "gone"}, []):
        store.shared.write(".lock", json.dumps(left).encode())
        with other.lock():
            assert json.loads(store.shared.read(".lock"))["process"] == os.getpid()
    assert store.shared.read(".lock") is None


def test_what_is_left_over_is_deleted_there_as_well(url, store):
    kept, gone = write(store), write(store, "b" * 64)
    with pytest.raises(KeyboardInterrupt), store.writing("model", "lua", KEY, {}, {}) as folder:
        (folder / "checkpoint").write_text("1")
        raise KeyboardInterrupt
    found = store.left_over([("sae", "base", KEY)])
    assert found == [folder, gone] and store.size_of(gone) > 0
    for one in found:
        store.delete(one)
    assert store.folders() == [kept] and store.of_other_keys("sae", "base", "b" * 64) == [kept]
    assert not gone.exists() and Store(store.root).find("sae", "base", "b" * 64) is None


def test_a_file_of_the_study_itself_is_the_one_that_was_shared_last(url, store, monkeypatch, tmp_path):
    other = elsewhere(url, monkeypatch, tmp_path)
    assert not other.file("run.json").exists()
    for content in ("1", "2"):
        with store.lock():
            (store.root / "run.json").write_text(content)
            store.share("run.json")
        assert other.file("run.json").read_text() == content
    store.shared.remove("run.json")
    assert not other.file("run.json").exists() and [one.name for one in other.root.iterdir()] == []


def test_a_plain_path_is_itself_and_an_unknown_scheme_is_refused():
    assert place("runs/x") == Path("runs/x") and place("file:///a/b") == Path("/a/b")
    with pytest.raises(StorageError, match="nonsense://x: is no storage that is known"):
        place("nonsense://x")


class _Failing(BaseHTTPRequestHandler):
    """Storage that answers 500 to everything, after a while."""

    delay = 0.0
    asked = 0

    def _answer(self) -> None:
        type(self).asked += 1
        time.sleep(self.delay)
        self.send_response(500)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _answer  # noqa: N815

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    """A store whose storage is `_Failing`."""
    s3fs = pytest.importorskip("s3fs", reason="needs s3fs")
    monkeypatch.setenv(module.CACHE, str(tmp_path))
    monkeypatch.setattr(_Failing, "asked", 0)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Failing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    s3fs.S3FileSystem.clear_instance_cache()
    yield Store(place("s3://bucket/runs") / "study")
    server.shutdown()
    server.server_close()
    s3fs.S3FileSystem.clear_instance_cache()


def test_storage_that_answers_500_is_asked_again_some_times_and_then_named(failing):
    start = time.monotonic()
    with pytest.raises(
        StorageError, match=r"s3://bucket/runs/study/.*: the storage fails .* goes on from here"
    ) as line:
        failing.find("sae", "base", KEY)
    assert "\n" not in str(line.value)
    assert 2 <= _Failing.asked <= 20 and time.monotonic() - start < 120


def test_storage_that_does_not_answer_in_time_is_asked_again_some_times_and_then_named(failing, monkeypatch):
    monkeypatch.setattr(_Failing, "delay", 3.0)
    limits = module._S3["config_kwargs"] | {"read_timeout": 0.5}
    monkeypatch.setattr(module, "_S3", {"config_kwargs": limits})
    start = time.monotonic()
    with pytest.raises(StorageError, match=r"the storage fails \(.*[Tt]imeout.*; tried for .* goes on from here"):
        failing.find("sae", "base", KEY)
    assert 2 <= _Failing.asked <= 20 and time.monotonic() - start < 120
