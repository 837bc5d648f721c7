"""Artifacts are whole or absent, know their recipe, and notice damage."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from heredity.engine.store import ArtifactError, Store, digest, faults, write_json


def write_one(store: Store, key: str = "a" * 64) -> Path:
    with store.writing("sae", "base", key, {"k": 1}, {"model": "b" * 64}) as folder:
        (folder / "weights").write_bytes(b"123")
    return store.path("sae", "base", key)


def test_an_artifact_is_found_after_it_was_written_and_records_its_recipe(tmp_path):
    store = Store(tmp_path)
    folder = write_one(store)
    found = store.find("sae", "base", "a" * 64)
    assert found is not None and found.folder == folder
    assert found.manifest["inputs"] == {"model": "b" * 64}
    assert json.loads((folder / "config.json").read_text()) == {"k": 1}
    assert set(found.manifest["files"]) == {"weights", "config.json"}


def test_nothing_is_found_when_writing_was_interrupted_but_the_work_is_kept(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(KeyboardInterrupt), store.writing("sae", "base", "a" * 64, {}, {}) as folder:
        (folder / "checkpoint").write_text("half")
        raise KeyboardInterrupt
    assert store.find("sae", "base", "a" * 64) is None
    with store.writing("sae", "base", "a" * 64, {}, {}) as folder:
        assert (folder / "checkpoint").read_text() == "half"


@pytest.mark.parametrize("damage", ["change", "remove", "add"])
def test_damage_is_noticed_when_an_artifact_is_read(tmp_path, damage):
    folder = write_one(Store(tmp_path))
    if damage == "change":
        (folder / "weights").write_bytes(b"124")
    elif damage == "remove":
        (folder / "weights").unlink()
    else:
        (folder / "stranger").write_text("x")
    assert len(faults(folder)) == 1
    with pytest.raises(ArtifactError, match="delete the folder and run again"):
        Store(tmp_path).find("sae", "base", "a" * 64)


def test_an_artifact_without_its_manifest_does_not_exist(tmp_path):
    folder = write_one(Store(tmp_path))
    (folder / "manifest.json").unlink()
    assert Store(tmp_path).find("sae", "base", "a" * 64) is None


def test_a_json_file_is_never_half_written(tmp_path):
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(ValueError):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}


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
