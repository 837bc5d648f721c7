from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from heredity.study import CorpusConfig
from heredity.text import readers
from heredity.text.corpora import documents, file_digest, fingerprint, read_corpus, write_corpus
from heredity.text.sources import Account, CorpusError, Document, local_digest, shuffled


def texts_of(source: str, root: Path, seed: int = 0, **settings) -> list[str]:
    return [document.text for document in documents(CorpusConfig(source=source, **settings), seed, root)]


def json_lines(*texts: str, **more: str) -> bytes:
    return "".join(json.dumps({"text": text, **more}) + "\n" for text in texts).encode()


def parquet(path: Path, **columns: list) -> None:
    pq.write_table(pa.table(columns), path)


def many(count: int) -> list[str]:
    return [f"document number {number} " + "word " * (number % 7) for number in range(count)]


# -- local files -------------------------------------------------------------------------------------------------


def test_every_local_format_gives_the_same_texts(tmp_path):
    texts = ["one\ntwo", "drei – vier", "五"]
    lines = json_lines(*texts)
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "b.jsonl.zst").write_bytes(zstandard.compress(lines))
    frames = b"".join(zstandard.compress(json_lines(text)) for text in texts)
    (tmp_path / "c.zst").write_bytes(frames)
    parquet(tmp_path / "d.parquet", text=texts)
    (tmp_path / "e" / "deep").mkdir(parents=True)
    marked = [b"\xef\xbb\xbfone\r\ntwo", *(text.encode() for text in texts[1:])]  # a byte order mark; carriage returns
    for name, content in zip(("1.txt", "2.md", "deep/3.lua"), marked, strict=True):
        (tmp_path / "e" / name).write_bytes(content)
    (tmp_path / "README.md").write_text("about")  # ignored beside record files, like what is hidden
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.jsonl").write_bytes(json_lines("hidden"))
    assert set(texts_of("local:.", tmp_path)) == set(texts)
    for name in ("a.jsonl", "b.jsonl.zst", "c.zst", "d.parquet", "e"):
        assert texts_of(f"local:{name}", tmp_path) == texts, name


def test_documents_state_their_source_and_license_or_take_the_given_ones(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(
        json_lines("x", source="book", license="CC0-1.0") + json_lines("y", licence="MIT") + json_lines("z")
    )
    found = list(documents(CorpusConfig(source="local:a.jsonl", license="mine"), 0, tmp_path))
    assert [one[:3] for one in found] == [
        ("x", "book", "CC0-1.0"),
        ("y", "a.jsonl", "MIT"),
        ("z", "a.jsonl", "mine"),
    ]


def test_a_long_text_file_is_cut_at_blank_lines_and_nothing_is_lost(tmp_path):
    text = "\n\n".join(f"paragraph {number} " + "word " * 50 for number in range(2000))
    (tmp_path / "book.txt").write_text(text)
    pieces = texts_of("local:book.txt", tmp_path)
    assert len(pieces) > 3 and "".join(pieces) == text
    assert all(piece.endswith("\n\n") for piece in pieces[:-1])


def test_environment_variables_expand_and_heredity_data_has_a_default(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    (tmp_path / "shared" / "data").mkdir(parents=True)
    (tmp_path / "shared" / "data" / "a.txt").write_text("hello")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.delenv("HEREDITY_DATA", raising=False)
    monkeypatch.setenv("MY_TEXTS", str(tmp_path / "shared"))
    for source in ("$MY_TEXTS/data/a.txt", "${MY_TEXTS}/data/a.txt", "$HEREDITY_DATA/a.txt"):
        assert texts_of(f"local:{source}", Path("/")) == ["hello"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", json_lines("x") + b"{broken\n", r"a\.jsonl, line 2: broken JSON .*repair or delete"),
        ("a.jsonl", b"3\n", r"a\.jsonl, line 1: int instead of an object"),
        ("a.jsonl", b'{"body": "x", "id": 1}\n', r'line 1: no column "text" \(it has body, id\); set column'),
        ("a.jsonl", b'{"text": null}\n', r"local:a\.jsonl holds no text"),
        ("a.jsonl", b'{"text": 7}\n', r'line 1: column "text" is int, not text'),
        ("a.jsonl", b'{"text": "\\ud800"}\n', r"line 1: character 0 is half a surrogate pair"),
        ("a.jsonl", json_lines("x") + b'{"text": "\xff"}\n', r"a\.jsonl, line 2: byte 10 of the line is not UTF-8"),
        ("a.txt", b"abc\xff", r"a\.txt: byte 3 \(0xff\) is not UTF-8; save the file as UTF-8"),
        ("a.jsonl.zst", b"not compressed", r"a\.jsonl\.zst: broken zstandard"),
        ("a.jsonl.zst", zstandard.compress(json_lines(*many(999)))[:-9], r"zstandard \(Truncated compressed stream\)"),
        ("a.jsonl", b'{"text": "x", "n": ' + b"9" * 5000 + b"}", r"line 1: broken JSON \(.*digits.*; repair or"),
        ("a.jsonl", b'{"text": "x", "n": ' + b"[" * 100_000, r"line 1: broken JSON \(maximum recursion"),
        ("a.jsonl", b'{"text": "x", "source": "\\ud800"}\n', r"line 1: character 0 is half a surrogate pair"),
        ("a.jsonl", b"", r"local:a\.jsonl holds no text"),
        ("a.parquet", b"not parquet", r"a\.parquet: broken Parquet"),
        ("a.txt", b"  \n", r"local:a\.txt holds no text"),
    ],
)
def test_broken_input_is_refused_by_file_and_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=message) as caught:
        texts_of(f"local:{name}", tmp_path)
    assert "\n" not in str(caught.value)


def test_a_line_without_end_is_refused_before_memory_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "_LINE_BYTES", 2**20)
    (tmp_path / "a.zst").write_bytes(zstandard.compress(json_lines("x") + b" " * 2**24))
    with pytest.raises(CorpusError, match=r"a\.zst, line 2: longer than 1,048,576 bytes; split that record"):
        texts_of("local:a.zst", tmp_path)


def test_parquet_that_is_not_utf8_or_lacks_the_column_names_its_file(tmp_path):
    strings = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")])
    parquet(tmp_path / "a.parquet", text=strings)
    with pytest.raises(CorpusError, match=r"a\.parquet: broken Parquet \('utf-8' codec"):
        texts_of("local:a.parquet", tmp_path)
    parquet(tmp_path / "a.parquet", body=["x"], id=[1])
    with pytest.raises(CorpusError, match=r'a\.parquet, row 1: no column "text" \(it has body, id\)'):
        texts_of("local:a.parquet", tmp_path)
    assert texts_of("local:a.parquet", tmp_path, column="body") == ["x"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("local:nowhere", "no file or folder .*nowhere; correct the path"),
        ("local:$NO_SUCH_VARIABLE/x", "environment variable NO_SUCH_VARIABLE is not set; export NO_SUCH_VARIABLE="),
        ("local:empty", "holds no text, JSON lines or Parquet file"),
        ("local:~nosuchuser/x", r"local:~nosuchuser/x: this path cannot be followed \(.*\); correct it"),
        ("local:a\0b", "this path cannot be followed"),
        ("local:loop", "this path cannot be followed"),
        ("ftp:x", 'source "ftp:x" is none of local:PATH, hub:NAME'),
        ("local", 'source "local" is none of'),
        ("generated:poems", "the one generator is generated:stories"),
        ("installed:books", "unknown name; use one of cpp-headers, python-english"),
        ("hub:books", "unknown name; use one of babylm, .* or hub:OWNER/NAME"),
    ],
)
def test_sources_that_cannot_be_are_refused_and_the_corpus_is_named(tmp_path, source, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(CorpusError, match=message):
        texts_of(source, tmp_path)
    with pytest.raises(CorpusError, match=f"corpus mine: .*{message}"):
        write_corpus("mine", CorpusConfig(source=source), tmp_path, 0, tmp_path)


# -- order, limits, duplicates, splits ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["text", "records"])
def test_max_bytes_is_met_exactly_and_the_seed_picks_the_documents(tmp_path, kind):
    texts = many(200)
    for number, text in enumerate(texts if kind == "text" else []):
        (tmp_path / f"{number:03}.txt").write_text(text)
    if kind == "records":
        (tmp_path / "a.jsonl").write_bytes(json_lines(*texts))
    first = texts_of("local:.", tmp_path, seed=1, max_bytes=1000)
    assert sum(len(text.encode()) for text in first) == 1000
    assert set(first[:-1]) < set(texts)
    assert first != texts[: len(first)]
    assert first == texts_of("local:.", tmp_path, seed=1, max_bytes=1000)
    assert first != texts_of("local:.", tmp_path, seed=2, max_bytes=1000)
    (tmp_path / "b.md").write_text("é" * 10)
    assert texts_of("local:b.md", tmp_path, max_bytes=5) == ["éé"], "a cut never splits a character"


def test_progress_counts_towards_what_there_is_and_not_towards_a_larger_limit(tmp_path):
    (tmp_path / "texts.jsonl").write_bytes(json_lines(*many(250)))
    (tmp_path / "packed.jsonl.zst").write_bytes(zstandard.compress(json_lines(*many(250))))
    size, seen = (tmp_path / "texts.jsonl").stat().st_size, list[tuple[int, int]]()
    for source, limit, expected in (("texts.jsonl", None, size), ("texts.jsonl", 10 * size, size),
                                    ("texts.jsonl", 5000, 5000), ("packed.jsonl.zst", None, 0)):  # fmt: skip
        config, folder = CorpusConfig(source=f"local:{source}", max_bytes=limit), tmp_path / f"{source}-{limit}"
        folder.mkdir()
        write_corpus("c", config, folder, 0, tmp_path, progress=lambda *step: seen.append(step))
        assert seen and {total for _, total in seen} == {expected} and all(done <= size for done, _ in seen)
        seen.clear()


def test_shuffling_in_little_memory_keeps_every_document():
    rows = [(Document(text, "s", "l"), None) for text in many(300)]
    mixed = list(shuffled(rows, 0, capacity=500))
    assert sorted(mixed) == sorted(rows)
    assert mixed != rows


def test_the_split_of_a_document_does_not_change_when_others_are_added(tmp_path):
    def validation(texts: list[str]) -> set[str]:
        (tmp_path / "a.jsonl").write_bytes(json_lines(*texts))
        write_corpus("mine", CorpusConfig(source="local:a.jsonl", validation=0.2), tmp_path, 0, tmp_path)
        return set(read_corpus(tmp_path, "validation"))

    few = validation(many(200))
    more = validation(many(400)[::-1])
    assert few == more & set(many(200))
    assert 50 < len(more) < 110


def test_a_folder_with_splits_of_its_own_keeps_them(tmp_path):
    texts = many(60)
    (tmp_path / "own").mkdir()
    parts = {"train-0": texts[:25], "train-1": texts[25:50], "validation": [*texts[50:], texts[0]], "test": ["unread"]}
    for name, part in parts.items():
        (tmp_path / "own" / f"{name}.jsonl.zst").write_bytes(zstandard.compress(json_lines(*part)))
    record = write_corpus("mine", CorpusConfig(source="local:own"), tmp_path, 0, tmp_path)
    assert list(read_corpus(tmp_path, "train")) == texts[:50]
    assert list(read_corpus(tmp_path, "validation")) == texts[50:]
    assert record.duplicates == 1


def test_a_small_corpus_always_holds_out_a_document_and_a_split_without_one_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(5):
        (tmp_path / "in" / f"{number}.txt").write_text(f"text number {number}")
    record = write_corpus("few", CorpusConfig(source="local:in", validation=0.0001), tmp_path, 0, tmp_path)
    assert (record.documents_train, record.documents_validation) == (4, 1)
    message = r"corpus mine: no (train|validation) document in local:in/0\.txt .*add documents"
    with pytest.raises(CorpusError, match=message):
        write_corpus("mine", CorpusConfig(source="local:in/0.txt"), tmp_path, 0, tmp_path)


def test_copies_of_a_document_are_left_out_and_told(tmp_path):
    for name in ("a", "b", "c", "d"):
        (tmp_path / f"{name}.txt").write_text("of one" if name < "d" else "of another")
    account = Account()
    found = [one.text for one in documents(CorpusConfig(source="local:."), 0, tmp_path, account=account)]
    assert found == ["of one", "of another"]
    assert account.notes() == ["2 documents left out whose text an earlier one has"]


def test_duplicates_are_left_out_and_the_record_counts_what_is_written(tmp_path):
    texts = [*many(150), "other"]
    lines = json_lines(*texts[:-1], *texts[:30], "", " \n", license="MIT") + json_lines("other", source="elsewhere")
    (tmp_path / "a.jsonl").write_bytes(lines)
    with pytest.raises(CorpusError, match=r"train\.parquet: cannot be read"):
        list(read_corpus(tmp_path, "train"))
    calls = []
    config = CorpusConfig(source="local:a.jsonl", max_bytes=10_000, license="CC0-1.0")
    record = write_corpus("mine", config, tmp_path, 0, tmp_path, lambda done, total: calls.append((done, total)))
    assert json.loads(json.dumps(record._asdict()))["corpus"] == "mine"
    assert sorted([*read_corpus(tmp_path, "train"), *read_corpus(tmp_path, "validation")]) == sorted(texts)
    assert record.documents_train + record.documents_validation == 151 and record.duplicates == 30
    assert record.bytes_train + record.bytes_validation == sum(map(len, texts))
    assert record.licenses == {"MIT": 150, "CC0-1.0": 1} and record.sources == 2
    assert record.source == "local:a.jsonl"
    assert calls
    assert all(done <= total == 10_000 for done, total in calls)
    assert pq.read_schema(tmp_path / "train.parquet").names == ["text", "source", "license", "spans"]


# -- fingerprints ------------------------------------------------------------------------------------------------


def test_a_fingerprint_follows_content_and_settings_but_not_the_place(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text("hello")
    config = CorpusConfig(source="local:one", share=0.5)
    first = fingerprint("mine", config, tmp_path)
    assert first == fingerprint("other", config.model_copy(update={"share": None, "source": "local:two"}), tmp_path)
    assert first != fingerprint("mine", config.model_copy(update={"max_bytes": 3}), tmp_path)
    (tmp_path / "one" / "a.txt").write_text("hellO")
    assert first != fingerprint("mine", config, tmp_path)
    (tmp_path / "one" / "a.txt").rename(tmp_path / "one" / "b.txt")
    assert local_digest("one", tmp_path) != local_digest("two", tmp_path)
    files = [tmp_path / "one" / "b.txt", tmp_path / "two" / "a.txt"]
    before = file_digest(files)
    files[1].write_text("hellO")
    assert file_digest(files[:1]) != file_digest(files[1:]) and file_digest(files) != before


def test_a_file_at_rest_is_hashed_once_per_process_and_a_changed_one_again(tmp_path, monkeypatch):
    file = tmp_path / "a.txt"
    file.write_text("hello")
    now, calls, real = time.time_ns(), [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *given: calls.append(1) or real(*given))
    first = local_digest("a.txt", tmp_path)
    assert local_digest("a.txt", tmp_path) == first
    assert len(calls) == 2  # just written: the next change may have the same date
    monkeypatch.setattr(time, "time_ns", lambda: now + 10**11)
    assert [local_digest("a.txt", tmp_path) for _ in range(3)] == [first] * 3
    assert file_digest([file]) == file_digest([file])
    assert len(calls) == 3
    before = file.stat()
    file.write_text("hellO")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert local_digest("a.txt", tmp_path) != first


def test_fingerprints_of_all_schemes_differ_and_need_no_network(tmp_path):
    sources = ["hub:babylm", "hub:me/mine", "installed:python-stdlib", "installed:cpp-headers", "generated:stories"]
    found = [fingerprint("mine", CorpusConfig(source=source), tmp_path) for source in sources]
    found += [fingerprint("mine", CorpusConfig(source="hub:babylm", revision="abc"), tmp_path)]
    assert len(set(found)) == len(found)
    with pytest.raises(CorpusError, match="corpus mine: installed:x: unknown name"):
        fingerprint("mine", CorpusConfig(source="installed:x"), tmp_path)


# -- hub, without a network --------------------------------------------------------------------------------------


class Rows(list):
    def shuffle(self, seed: int, buffer_size: int) -> Rows:
        assert buffer_size > 1
        return Rows(self[seed:] + self[:seed])


@pytest.fixture
def hub(monkeypatch):
    import datasets

    seen = SimpleNamespace(rows=Rows(), call=None)

    def load_dataset(path: str, **settings: object) -> Rows:
        seen.call = {"path": path, **settings}
        if isinstance(seen.rows, Exception):
            raise seen.rows
        return seen.rows

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return seen


def test_a_hub_preset_is_pinned_streamed_and_filtered(hub, tmp_path):
    good = {"content": "local x = 1", "avg_line_length": 11, "max_line_length": 11, "alphanum_fraction": 0.6}
    named = {**good, "content": "z", "max_stars_repo_licenses": ["MIT", "Zlib"], "max_stars_repo_name": "a/b"}
    hub.rows = Rows([good, {**good, "content": "minified", "max_line_length": 5000}, named])
    stack = "bigcode/the-stack-dedup"
    found = documents(CorpusConfig(source="hub:stack-lua", revision="abc"), 0, tmp_path)
    assert [one[:3] for one in found] == [
        ("local x = 1", stack, "permissive (The Stack)"),
        ("z", f"{stack}/a/b", "MIT AND Zlib"),
    ]
    options = dict(path=stack, name=None, data_dir="data/lua", split="train")
    assert hub.call == {**options, "revision": "abc", "streaming": True}


def test_any_hub_data_set_can_be_named_with_subset_and_column(hub, tmp_path):
    hub.rows = Rows({"body": text} for text in many(9))
    config = CorpusConfig(source="hub:me/mine", subset="small", column="body", max_bytes=10_000, license="MIT")
    assert [document.text for document in documents(config, 2, tmp_path)] == many(9)[2:] + many(9)[:2]
    assert (hub.call["name"], hub.call["data_dir"]) == ("small", None)
    with pytest.raises(CorpusError, match=r'hub:me/mine, row 0: no column "text" \(it has body\)'):
        texts_of("hub:me/mine", tmp_path)
    hub.rows = ConnectionError("no\nroute")
    with pytest.raises(CorpusError, match=r"nilq/babylm-100M cannot be read \(no route\); .* or use local:PATH"):
        texts_of("hub:babylm", tmp_path)


def test_reading_a_corpus_holds_a_little_of_it(tmp_path):
    """Arrow holds what it reads ahead until the file is closed, unless it is told not to read ahead."""
    rng = np.random.default_rng(0)
    rows = [{"text": rng.bytes(1 << 18).hex()} for _ in range(100)]
    schema = pa.schema([("text", pa.string())])
    with pq.ParquetWriter(tmp_path / "train.parquet", schema, compression="zstd") as file:
        for at in range(0, len(rows), 10):
            file.write_table(pa.Table.from_pylist(rows[at : at + 10], schema=schema))
    code = """
import resource, sys
from pathlib import Path
from heredity.text.corpora import read_corpus
texts = read_corpus(Path(sys.argv[1]), "train")
most = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
first = len(next(texts))
before = most()
assert sum(map(len, texts)) == 99 * first
print((most() - before) >> 10)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 20, "MiB, of 50"
