"""Every form that text comes in gives the same documents; what is left out is counted, what is damaged is placed."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from heredity.study import CorpusConfig
from heredity.text.corpora import documents, write_corpus
from heredity.text.readers import CorpusError
from heredity.text.sources import Account

TEXTS = ['one, "two"\nthree', "drei – vier", "五"]
LINES = "".join(json.dumps({"text": text, "id": 7}) + "\n" for text in TEXTS).encode()


def read(path: Path, **settings) -> tuple[list[str], Account]:
    config, account = CorpusConfig(source=f"local:{path}", **settings), Account()
    return [one.text for one in documents(config, 0, path, account=account)], account


def put(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def lines(tag: str, count: int) -> str:
    return "".join(json.dumps({"text": f"{tag} {number}"}) + "\n" for number in range(count))


def table(path: Path, delimiter: str) -> None:
    with path.open("w", newline="") as stream:
        csv.writer(stream, delimiter=delimiter).writerows([("id", "text"), *((7, text) for text in TEXTS)])


def test_every_form_and_packing_gives_the_same_texts(tmp_path):
    put(
        tmp_path,
        {
            "a.jsonl.gz": gzip.compress(LINES),
            "b.json.xz": lzma.compress(json.dumps([json.loads(line) for line in LINES.splitlines()]).encode()),
            "c.ndjson.bz2": bz2.compress(LINES),
            "d.json": json.dumps([{"text": text} for text in TEXTS], indent=2, ensure_ascii=False),
            "e.json": LINES,
            "f.jsonl": LINES.decode().encode("utf-16"),
            "g.jsonl": b"\xef\xbb\xbf" + LINES,
            "i/data-00000-of-00001.arrow": b"",
            "i/state.json": "{}",
            "i/dataset_info.json": "{}",
        },
    )
    table(tmp_path / "h.csv", ",")
    table(tmp_path / "h.tsv", "\t")
    records = pa.table({"text": TEXTS, "id": [7] * 3})
    with pa.ipc.new_stream(
        tmp_path / "i" / "data-00000-of-00001.arrow", records.schema
    ) as stream:  # as `datasets` does
        stream.write_table(records)
    with pa.ipc.new_file(tmp_path / "j.arrow", records.schema) as file:
        file.write_table(records)
    with zipfile.ZipFile(tmp_path / "k.zip", "w") as archive:
        archive.writestr("in/part.jsonl.zst", zstandard.compress(LINES))
        archive.writestr("README.md", "about")
    for path in sorted(tmp_path.iterdir()):
        assert read(path)[0] == TEXTS, path.name


def test_texts_may_be_packed_in_utf16_and_parted_by_a_line(tmp_path):
    put(
        tmp_path,
        {
            "a.txt.gz": gzip.compress(b"one\r\ntwo"),
            "b.txt": "one\ntwo".encode("utf-16"),
            "stories.txt": "one\ntwo\n<|endoftext|>\nthree <|endoftext|> four\n<|endoftext|>\n",
        },
    )
    assert read(tmp_path / "a.txt.gz")[0] == read(tmp_path / "b.txt")[0] == ["one\ntwo"]
    whole, account = read(tmp_path / "stories.txt")
    assert len(whole) == 1 and "<|endoftext|> 3 times in the texts" in account.notes()[0]
    parted, account = read(tmp_path / "stories.txt", separator="<|endoftext|>")
    assert parted == ["one\ntwo\n", "three <|endoftext|> four\n"] and account.markers == {"<|endoftext|>": 1}


def test_a_dot_leads_into_nested_columns(tmp_path):
    rows = [{"answer": {"text": text, "score": 1}, "text": "not this"} for text in TEXTS]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    put(tmp_path, {"b.jsonl": "".join(json.dumps(row) + "\n" for row in rows)})
    for name in ("a.parquet", "b.jsonl"):
        assert read(tmp_path / name, column="answer.text")[0] == TEXTS
    with pytest.raises(CorpusError, match=r'row 1: no column "answer\.body"'):
        read(tmp_path / "a.parquet", column="answer.body")


@pytest.mark.parametrize(
    ("files", "found", "left"),
    [
        (
            {"a.json.gz": gzip.compress(LINES), "README.md": "about", "dataset_info.json": "{}"},
            3,
            {".md": 1, ".json": 1},
        ),
        ({"a.jsonl": lines("x", 5), "b.txt": "text", "c.txt": "text"}, 5, {".txt": 2}),
        ({"a.csv": "id,text\n1,x\n", "LICENSE": "MIT", "b.msgpack": "?"}, 1, {"": 1, ".msgpack": 1}),
        ({"a.py": "x = 1", "b.json": "{}", "sub/README.md": "read me"}, 3, {}),
        ({"README.md": "alone"}, 1, {}),
    ],
)
def test_what_is_left_out_is_counted(tmp_path, files, found, left):
    texts, account = read(put(tmp_path, files))
    assert len(texts) == found and account.left_out == left
    assert not left or any("files left out" in note for note in account.notes())


def test_links_are_followed_once(tmp_path):
    put(tmp_path, {"far/a.jsonl": lines("far", 3), "here/b.jsonl": lines("here", 2)})
    (tmp_path / "here" / "linked").symlink_to(tmp_path / "far")
    (tmp_path / "here" / "again").symlink_to(tmp_path / "here")
    assert len(read(tmp_path / "here")[0]) == 5


@pytest.mark.parametrize(
    ("files", "train", "validation"),
    [
        (["train.jsonl", "test.jsonl"], "train", None),
        (["train/part-0.jsonl", "test/part-0.jsonl"], "train", None),
        (["train.jsonl", "dev.jsonl", "test.jsonl"], "train", "dev"),
        (["data/train-00000-of-00002.jsonl", "data/valid-00000-of-00001.jsonl", "data/test_1.jsonl"], "data/", "valid"),
        (["training.jsonl", "eval.jsonl"], "training", "eval"),
        (["my.train.jsonl", "my.val.jsonl", "my.test.jsonl"], "my.train", "my.val"),
        (["part-0.jsonl", "validation.jsonl", "test.jsonl"], "part", "validation"),
        (["train/a.txt", "test/a.txt"], "train", None),
    ],
)
def test_a_test_set_is_never_the_corpus(tmp_path, files, train, validation):
    for name in files:
        tag = name if "/train-" not in name else "data/"
        content = lines(tag, 40) if name.endswith("jsonl") else f"{tag}\n\n" + "word " * 50
        put(tmp_path / "in", {name: content})
    if files[0].endswith(".txt"):
        assert read(tmp_path / "in")[0][0].startswith("train") and len(read(tmp_path / "in")[0]) == 1
        return
    record = write_corpus("mine", CorpusConfig(source="local:in"), tmp_path, 0, tmp_path)
    found = {
        split: {text for (text,) in pq.read_table(tmp_path / f"{split}.parquet", columns=["text"]).to_pandas().values}
        for split in ("train", "validation")
    }
    everything = found["train"] | found["validation"]
    assert not any(text.startswith(("test", "data/test", "my.test")) for text in everything)
    assert all(text.startswith(train) for text in found["train"])
    if validation:
        assert len(everything) == 80 and all(validation in text for text in found["validation"])
    else:
        assert len(everything) == 40 and "no validation set beside the test set" in record.notes[0]


def test_a_test_set_alone_is_refused_and_read_where_it_is_named(tmp_path):
    put(tmp_path, {"test.jsonl": lines("exam", 3)})
    with pytest.raises(CorpusError, match="holds a test set alone; name its file"):
        read(tmp_path)
    assert "is a test set by its name" in read(tmp_path / "test.jsonl")[1].notes()[0]


def test_damaged_rows_are_left_out_only_where_that_is_asked_and_up_to_a_share(tmp_path):
    bad = ['{"text": "cut o', '{"text": "half \\ud83d"}', '{"text": 7}', "[1]", '{"text": null}', '{"text": " "}']
    put(tmp_path, {"a.jsonl": lines("x", 50) + "\n".join(bad) + "\n" + lines("y", 50)})
    with pytest.raises(CorpusError, match=r"a\.jsonl, line 51: broken JSON .* skip_damaged = 0\.01"):
        read(tmp_path / "a.jsonl")
    texts, account = read(tmp_path / "a.jsonl", skip_damaged=0.05)
    assert len(texts) == 100 and (account.damaged, account.empty, account.rows) == (4, 2, 106)
    assert any("4 of 106 rows damaged and left out, the first: " in note for note in account.notes())
    with pytest.raises(CorpusError, match=r"4 of 106 rows are damaged, more than skip_damaged=0\.01; the first: .*51"):
        read(tmp_path / "a.jsonl", skip_damaged=0.01)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '[{"text": "x"},\n{"text": }]', r"a\.json, line 2: broken JSON"),
        ("a.json", '[{"text": "x"},\n{"text": "cut', r"a\.json, line 2: broken JSON"),
        ("a.json", '{"text": "x", "n": ' + "9" * 5000 + "}", r"a\.json, line 1: broken JSON .*digits"),
        ("a.json", '{"text": "x", "n": ' + "[" * 100_000, r"a\.json, line 1: broken JSON .*recursion"),
        ("a.csv", 'text\nx\n"cut', r"a\.csv, line 3: broken CSV"),
        ("a.csv", "text\nx,y\n", r"a\.csv, line 2: more values than columns"),
        ("a.csv", b"text\nx\n\xff\n", r"a\.csv, line 3: byte 0 of the line is not UTF-8"),
        ("a.jsonl.gz", gzip.compress(LINES * 99)[:-20], r"a\.jsonl\.gz: broken gzip"),
        ("a.zip", b"PK no", r"a\.zip: broken zip archive"),
        ("a.arrow", b"no", r"a\.arrow: broken Arrow"),
        ("a.txt", "version https://git-lfs.github.com/spec/v1\noid x\n", r"a\.txt: is a git-lfs pointer.*git lfs pull"),
        ("a.parquet", "version https://git-lfs.github.com/spec/v1\noid x\n", r"a\.parquet: is a git-lfs pointer"),
    ],
)
def test_damage_is_placed(tmp_path, name, content, message):
    put(tmp_path, {name: content})
    with pytest.raises(CorpusError, match=message) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"column": "body"}, 'column = "body": .* is plain text, which has no columns'),
        ({"subset": "small"}, "subset: belongs to hub"),
        ({"format": "chat"}, 'format = "chat": .* is plain text'),
    ],
)
def test_a_setting_that_would_mean_nothing_is_refused(tmp_path, settings, message):
    with pytest.raises(CorpusError, match=message):
        read(put(tmp_path, {"a.txt": "text"}), **settings)
    if "column" in settings:
        with pytest.raises(CorpusError, match="separator: .* holds records"):
            read(put(tmp_path / "rows", {"a.jsonl": LINES}), separator="---")


_WRITE = """
import sys, zipfile
import pyarrow as pa, pyarrow.parquet as pq, zstandard
from pathlib import Path
folder = Path(sys.argv[1])
with (folder / "line.jsonl").open("wb") as out:
    out.write(b'{"text": "')
    for _ in range(200): out.write(b"a" * 2**20)
    out.write(b'"}')
with zstandard.ZstdCompressor().stream_writer((folder / "blank.txt.zst").open("wb")) as out:
    for _ in range(1024): out.write(b" \\n" * 2**19)
with zipfile.ZipFile(folder / "zip.zip", "w", zipfile.ZIP_DEFLATED) as out, out.open("a.json", "w") as member:
    member.write(b'[{"text": "')
    for _ in range(300): member.write(b"a" * 2**20)
word = pa.DictionaryArray.from_arrays(pa.array([0] * 200, pa.int32()), pa.array(["z" * 2**23]))
pq.write_table(pa.table({"text": word}), folder / "dictionary.parquet", compression="zstd")
pq.write_table(pa.table({"text": ["z" * 2**28 + "y"]}), folder / "page.parquet", compression="zstd")
"""
_READ = """
import json, sys
from pathlib import Path
from heredity.study import CorpusConfig
from heredity.text.corpora import documents
for name in ("line.jsonl", "blank.txt.zst", "zip.zip", "dictionary.parquet", "page.parquet"):
    try:
        found = len(list(documents(CorpusConfig(source=f"local:{name}"), 0, Path(sys.argv[1]))))
    except ValueError as error:
        found = str(error)
    print(json.dumps([name, found]))
    peak = open("/proc/self/status").read().partition("VmHWM:")[2].split()[0]  # rusage keeps the parent's
    print(json.dumps([f"{name} MiB", int(peak) // 1024]))
"""


def test_memory_is_bounded_whatever_a_line_a_row_or_an_archive_unpacks_to(tmp_path):
    for code in (_WRITE, _READ):
        done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    found = dict(map(json.loads, done.stdout.splitlines()))
    assert "longer than 67,108,864 bytes" in found["line.jsonl"]
    assert "which no text does" in found["blank.txt.zst"] and "which no text does" in found["page.parquet"]
    assert found["dictionary.parquet"] == 1  # one text of 8 MiB, 200 times
    assert "a.json, line 1: broken JSON" in found["zip.zip"]
    assert found["page.parquet MiB"] < 1024, found


def test_damaged_statistics_of_a_column_do_not_end_the_process():
    """A file that `make fuzz` made: pyarrow aborts when it is asked for the sizes of single columns."""
    folder = Path(__file__).parent
    with pytest.raises(CorpusError, match="damaged_statistics.parquet: broken Parquet"):
        list(documents(CorpusConfig(source="local:damaged_statistics.parquet"), 0, folder))
