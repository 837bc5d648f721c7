"""Notes and tags on features: written, changed, removed, shown, and exchanged as CSV without a loss."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from heredity.analyses import notes, raters
from heredity.analyses.inspector import Inspector
from heredity.results import Run, open
from tiny import command

HOSTILE = 'a "quoted", text\nof two lines, <script>alert(1)</script> \u202e =1+1 \u200b 🦆'


@pytest.fixture
def run(lineage, tmp_path) -> Run:
    """A copy of the shared run that may be written to."""
    keep = {"run.json", "acts", "sae", "model", "tokenizer", "corpus", "tokens", "match"}
    folder = tmp_path / "runs" / "s"
    shutil.copytree(lineage.run.folder, folder, ignore=lambda at, names: {*names} - keep if at.endswith("/s") else ())
    return open(folder)


def note(run: Run, feature: int = 3, text: str | None = "sums", *tags: str, by: str = "") -> notes.Note:
    return notes.write_note(run, run.item(), "base", feature, text, tags, by)


def test_a_note_is_shown_with_its_feature_and_changed_by_its_writer(run):
    note(run, 3, "first", "code", by="ada")
    note(run, 3, HOSTILE, "code", "digits", by="ada")
    note(run, 3, None, "odd", by="bob")
    shown = notes.notes_on(run, run.item(), "base", 3)
    assert [(one["by"], one["text"], one["tags"]) for one in shown] == [
        ("ada", HOSTILE, ["code", "digits"]),
        ("bob", "", ["odd"]),
    ]
    assert Inspector(run).shown("base", 3)["notes"] == shown
    assert notes.notes_on(run, run.item("independent"), "base", 3) == [], "the feature of another SAE"
    assert notes.remove_note(run, run.item(), "base", 3, "bob").tags == ("odd",)
    assert [one.by for one in notes.read_notes(run)] == ["ada"]
    with pytest.raises(ValueError, match="base/3: there is no note by bob to remove"):
        notes.remove_note(run, run.item(), "base", 3, "bob")


def test_csv_out_and_in_is_the_same(run, tmp_path):
    note(run, 3, HOSTILE, "code", by="ada")
    note(run, 100, "", "empty-text")
    before, file = notes.read_notes(run), tmp_path / "notes.csv"
    notes.write_csv(before, file)
    shutil.rmtree(run.folder / "notes")
    assert sorted(notes.take_notes(run, file)) == before == notes.read_notes(run)
    assert notes.take_notes(run, file) and notes.read_notes(run) == before, "taken twice is taken once"
    file.write_text("model,feature,text\nsums,5,by hand\n")
    (taken,) = notes.take_notes(run, file)
    assert taken.sae and taken.written and (taken.instrument, taken.site) == tuple(run.item().values())
    assert len(notes.read_notes(run)) == 3


def test_a_file_loses_nothing_of_what_it_leaves_empty(run, tmp_path):
    note(run, 3, "says", "code", by="ada")
    for content, text, tags in (
        ("by,model,feature,tags\nada,base,3,odd\n", "says", ("odd",)),
        ("by,model,feature,text,tags\nada,base,3,anew,\n", "anew", ("odd",)),
    ):
        (tmp_path / "notes.csv").write_text(content)
        assert notes.take_notes(run, tmp_path / "notes.csv") == notes.read_notes(run)
        assert [(one.text, one.tags) for one in notes.read_notes(run)] == [(text, tags)]
    (tmp_path / "notes.csv").write_text("by,model,feature,text\nada,base,3,a\nada,base,3,b\n")
    with pytest.raises(ValueError, match="note 2: is a second one on base/3 by ada"):
        notes.take_notes(run, tmp_path / "notes.csv")
    (tmp_path / "notes.csv").write_text("")
    with pytest.raises(ValueError, match="is empty"):
        notes.take_notes(run, tmp_path / "notes.csv")
    for name in (" ", "ada ", "two\nlines"):
        with pytest.raises(ValueError, match="must be one line without blanks around it"):
            note(run, 3, "x", by=name)
    assert [one.text for one in notes.read_notes(run)] == ["anew"]


def test_a_note_on_an_sae_of_before_is_kept_and_not_shown(run):
    made = note(run)
    notes.write_csv([made._replace(sae="0" * 12)], run.folder / "notes" / "notes.csv")
    gone = [made._replace(model="gone"), made._replace(site="gone")]
    assert notes.notes_on(run, run.item(), "base", 3) == []
    assert [row["current"] for row in notes.rows_of_notes(run, [*notes.read_notes(run), *gone])] == [False] * 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("model,text\nbase,x\n", "note 1: there is no column feature"),
        ("model,feature,text\nbase,x,y\n", "note 1: feature 'x' is not the number of a feature"),
        ("model,feature,text\nbase,1\n", "note 1: has not as many values as there are columns"),
        ("model,feature,text,colour\nbase,1,x,red\n", "note 1: unknown column 'colour'"),
        ("model,feature,text\nbase,1,x\nbase,999,y\n", "note 2: base/999: its SAE has 128 features"),
        ("model,feature,text\nnowhere,1,x\n", "note 1: nowhere/1: no model of study s"),
        ("model,feature,text\nbase,1,\n", "note 1: neither a text nor a tag is given"),
        ("model,feature,text,site\nbase,1,x,elsewhere\n", "note 1: site 'elsewhere': study s has"),
        ('model,feature,text\nbase,1,"x\n', "cannot be read"),
    ],
)
def test_a_csv_file_that_cannot_be_taken_changes_nothing(run, tmp_path, content, message):
    (tmp_path / "notes.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        notes.take_notes(run, tmp_path / "notes.csv")
    assert notes.read_notes(run) == []


def test_what_cannot_be_kept_is_refused(run):
    for arguments, message in (
        ((3, None), "base/3: neither a text nor a tag"),
        ((3, "x" * 10_001), "the note has 10,001 characters; at most 10,000 are kept"),
        ((3, "x", "two words"), "tag 'two words': must be up to 50 characters without blanks"),
        ((3, "half \ud83d"), "half of a surrogate pair"),
        ((999, "x"), "base/999: its SAE has 128 features"),
    ):
        with pytest.raises(ValueError, match=message):
            note(run, *arguments)
    assert not (run.folder / "notes" / "notes.csv").exists()


def test_the_command_writes_lists_exchanges_and_removes(lineage, run, tmp_path):
    def ask(*words: Any, code: int = 0) -> Any:
        result = command("note", lineage.path, "--runs", run.folder.parent, "--json", *words, code=code)
        return json.loads(result.stdout)["notes"] if not code else " ".join(result.stderr.split())

    (made,) = ask("base/3", "fires on sums", "--tag", "code", "--by", "ada")
    assert (made["model"], made["feature"], made["text"], made["tags"]) == ("base", 3, "fires on sums", ["code"])
    text = command("show", lineage.path, "base/3", "--runs", run.folder.parent).stdout
    assert "note by ada: fires on sums #code" in text
    file: Path = tmp_path / "all.csv"
    assert ask("--out", file) == [made] == ask() and "fires on sums" in file.read_text()
    assert "fires on sums" in command("note", lineage.path, "--runs", run.folder.parent).stdout
    assert ask("base/3", "--remove", "--by", "ada") == [made] and ask() == []
    assert ask("--from", file) == [made]
    for words, message in (
        (("--tag", "x"), "--tag: means nothing without a feature"),
        (("--by", "ada", "--from", file), "--by: means nothing without a feature"),
        (("base/1,base/2", "x"), "names 2 features; give one of them"),
        (("base/1", "--from", file), "exclude each other"),
        (("base/1", "x", "--remove"), "--remove deletes the whole note"),
        (("nowhere/1", "x"), "no model of study s"),
    ):
        assert message in ask(*words, code=2)


def test_agreement_is_counted_over_the_features_that_both_have_tagged(run):
    given = {
        "ada": {1: "code", 2: "code", 3: "code", 4: "prose", 5: "prose", 6: "code"},
        "bob": {1: "code", 2: "code", 3: "prose", 4: "prose", 5: "prose", 7: "code"},
    }
    for by, tags in given.items():
        for feature, tag in tags.items():
            note(run, feature, None, tag, by=by)
    note(run, 1, "words without a tag", by="cleo")
    note(run, 2, None, "code")  # by nobody
    made = raters.compared(run)
    rows = {row["tag"]: row for row in made.rows}
    assert {(row["first"], row["second"], row["features"]) for row in made.rows} == {("ada", "bob", 5)}
    code = rows["code"]
    assert (code["both"], code["first_only"], code["second_only"], code["agreement"]) == (2, 1, 0, 0.8)
    by_chance = (3 * 2 + 2 * 3) / 25
    assert code["kappa"] == pytest.approx((0.8 - by_chance) / (1 - by_chance)) == rows["prose"]["kappa"]
    assert code["kappa_low"] < 0 < code["kappa"] < code["kappa_high"] <= 1, "five features say little"
    place = run.item() | {"model": "base", "feature": 3}
    assert made.apart == [
        place | {"tag": "code", "by": "ada", "beside": "bob"},
        place | {"tag": "prose", "by": "bob", "beside": "ada"},
    ]


def test_agreement_of_all_is_no_certainty_and_one_call_has_no_kappa(run):
    for feature in range(1, 9):
        for by in ("ada", "bob"):
            note(run, feature, None, "all", *(["some"] if feature % 2 else []), by=by)
    rows = {row["tag"]: row for row in raters.compared(run).rows}
    assert rows["all"]["agreement"] == 1 and rows["all"]["kappa"] is rows["all"]["kappa_low"] is None
    some = rows["some"]
    assert some["kappa"] == some["kappa_high"] == 1 and 0.2 < some["kappa_low"] < 0.9
    assert raters.compared(run).apart == []


def test_notes_on_an_sae_of_before_are_compared_with_none(run):
    made = [note(run, 3, None, "code", by=by) for by in ("ada", "bob")]
    assert len(raters.compared(run).rows) == 1
    notes.write_csv([made[0], made[1]._replace(sae="0" * 12)], run.folder / "notes" / "notes.csv")
    assert raters.compared(run) == raters.Compared([], [])


def test_the_command_shows_the_agreement_below_all_notes(lineage, run):
    ask = ("note", lineage.path, "--runs", run.folder.parent)
    for by in ("ada", "bob"):
        note(run, 3, None, "code", by=by)
    assert json.loads(command(*ask, "--json").stdout)["raters"] == raters.compared(run).rows
    text = command(*ask).stdout
    assert "How far people agree on tags" in text and "ada" in text and "code" in text
    assert json.loads(command(*ask, "base/3", "more", "--by", "ada", "--json").stdout)["raters"] == []
