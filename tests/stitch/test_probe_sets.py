"""Sets with labels of their own are read from files of every kind and from the hub; what is wrong is named by line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from heredity.stitch.probe_datasets import LabelError
from heredity.stitch.probe_sets import fingerprint, labeled_set
from heredity.study import ProbeSetConfig

TEXTS = {label: [f'{label}, {i}: "quoted"' for i in range(30)] for label in ("art", "sport")}
ROWS = [{"body": text, "topic": label} for label, texts in TEXTS.items() for text in texts]


def read(folder: Path, path: str, **columns: str) -> Any:
    return labeled_set(ProbeSetConfig(source=f"local:{path}", **columns), folder, most=20)


def planted(found: Any) -> None:
    """That 20 texts of each label are found, each with its own."""
    assert found.names == ("art", "sport") and np.bincount(found.y).tolist() == [20, 20]
    assert all(text in TEXTS[found.names[label]] for text, label in zip(found.texts, found.y, strict=True))


def jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)))


def test_rows_come_from_json_lines_csv_and_parquet(tmp_path: Path):
    jsonl(tmp_path / "a.jsonl", ROWS)
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        with (tmp_path / name).open("w", newline="") as stream:
            writer = csv.DictWriter(stream, ["topic", "body"], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(ROWS)
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.csv", "a.tsv", "a.parquet", "."):
        planted(read(tmp_path, name, text="body", label="topic"))
    pq.write_table(pa.table({"text": list("xyzuvw"), "label": range(6)}), tmp_path / "a.parquet")
    with pytest.raises(LabelError, match=r"class '0' has 1 different texts .*, 10 are needed"):
        read(tmp_path, "a.parquet")


def test_names_of_files_and_folders_are_labels(tmp_path: Path):
    for label, texts in TEXTS.items():
        jsonl(tmp_path / "records" / f"{label}.jsonl", [{"body": text} for text in texts])
        (tmp_path / "lines").mkdir(exist_ok=True)
        (tmp_path / "lines" / f"{label}.txt").write_text("\n".join(texts))
        (tmp_path / "folders" / label).mkdir(parents=True)
        for i, text in enumerate(texts):
            (tmp_path / "folders" / label / f"{i}.txt").write_text(text)
    planted(read(tmp_path, "records", text="body", label=""))
    planted(read(tmp_path, "lines"))
    planted(read(tmp_path, "folders"))
    moved, config = tmp_path / "folders" / "art" / "3.txt", ProbeSetConfig(source="local:folders")
    before = fingerprint(config, tmp_path)
    moved.rename(tmp_path / "folders" / "sport" / "other.txt")
    assert fingerprint(config, tmp_path) != before, "another label, and so another set"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (
            {"body": "x"},
            r"b.jsonl, line 2: no column 'topic'; it has body; set label to one of these, or to \"\" where",
        ),
        ({"topic": "x"}, r"b.jsonl, line 2: no column 'body'; it has topic; set text to one"),
        ({"body": "  ", "topic": "x"}, r"b.jsonl, line 2: the text is empty"),
        ({"body": 3, "topic": "x"}, r"b.jsonl, line 2: column 'body' is int, not text"),
        ({"body": "x", "topic": None}, r"b.jsonl, line 2: column 'topic' holds no label \(None\)"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_by_its_line(tmp_path: Path, line: dict[str, Any], says: str):
    jsonl(tmp_path / "b.jsonl", [ROWS[0], line])
    with pytest.raises(LabelError, match=says):
        read(tmp_path, "b.jsonl", text="body", label="topic")


def test_a_set_that_cannot_be_used_says_why(tmp_path: Path):
    (tmp_path / "art.txt").write_text("\n".join(TEXTS["art"]))
    (tmp_path / "c.csv").write_text("text,label\none, two, three\n")
    (tmp_path / "d.csv").write_text('text,label\n"x" y,a\n')
    (tmp_path / "e.csv").write_text("text,label\nx\n")
    (tmp_path / "f.txt").write_bytes(b"\xff")
    (tmp_path / "none").mkdir()
    for path, says in (
        ("art.txt", "only art was given; a set needs two classes"),
        ("c.csv", r"c.csv, line 2: more values than columns; quote texts that hold ','"),
        ("d.csv", r"d.csv, line 2: broken CSV"),
        ("e.csv", r"e.csv, line 2: column 'label' holds no label"),
        ("f.txt", r"f.txt: byte 0 .* is not UTF-8"),
        ("none", r"local:none: .* holds none of .jsonl"),
        ("no_such", r"local:no_such: no file or folder"),
    ):
        with pytest.raises(LabelError, match=says):
            read(tmp_path, path)


def test_a_data_set_of_the_hub_is_read_by_its_columns(tmp_path: Path):
    """`datasets` takes a folder for a data set too."""
    jsonl(tmp_path / "train.jsonl", [*ROWS, {"body": "?", "topic": None}])
    config = ProbeSetConfig(source=f"hub:{tmp_path}", text="body", label="topic")
    planted(labeled_set(config, tmp_path, most=20))
    assert fingerprint(config, tmp_path) is None
    with pytest.raises(LabelError, match="no column 'text' or 'topic'; it has body, topic"):
        labeled_set(config.model_copy(update={"text": "text"}), tmp_path)
    with pytest.raises(LabelError, match="cannot be read"):
        labeled_set(config.model_copy(update={"split": "nonsense"}), tmp_path)
