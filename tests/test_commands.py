"""The command line on a study that has been run: every command prints, writes or refuses what the run holds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import heredity
import tiny
from heredity import format
from heredity.analyses import TABLES
from heredity.engine.store import ArtifactError
from heredity.show.export import export
from tiny import command


def ask(lineage, name: str, *words: object, code: int = 0) -> Any:
    """What a command about the shared study prints as JSON; of a refusal, its line."""
    result = command(name, lineage.path, "--runs", lineage.runs, "--json", *words, code=code)
    return json.loads(result.stdout) if code < 2 else " ".join(result.stderr.split())


def summary_of(lineage) -> dict[str, Any]:
    """`summary.json` without what depends on the clock."""
    summary = json.loads((lineage.run.folder / "summary.json").read_text())
    return {name: part for name, part in summary.items() if name not in ("seconds", "created")}


def test_the_summary_holds_every_small_table_and_every_finding(lineage):
    summary = summary_of(lineage)
    assert summary["schema"] == 2 and summary["study"] == "s"
    assert {name: table["rows"] for name, table in summary["tables"].items()} == {
        name: table.to_pylist() for name, table in lineage.run.tables.items()
    }
    assert not any(TABLES[name].large for name in summary["tables"])
    statements = [statement for statement in lineage.run.statements if statement.question != "note"]
    assert [row["text"] for row in summary["statements"]] == [statement.text for statement in statements]
    notes = summary["notes"]
    assert (
        "case nonsense: 'no such token': no single token of this vocabulary, not searched for; name it in strings"
        in notes
    )
    assert len(set(notes)) == len(notes)


def test_a_second_run_makes_nothing_and_ends_with_the_same_summary(lineage):
    before = summary_of(lineage)
    result = command("run", lineage.path, "--runs", lineage.runs)
    assert "/" not in "".join(line for line in result.stderr.splitlines() if line.endswith(" s")), "a stage ran again"
    assert summary_of(lineage) == before


def test_clean_lists_what_other_settings_left_and_deletes_it_only_when_told(tmp_path):
    path = tiny.toml(tiny.study_values(tmp_path), tmp_path / "s.toml")
    options = (path, "--runs", tmp_path / "runs")
    command("run", *options, "--until", "corpus")
    folders = {one.name.rpartition("-")[0]: one for one in (tmp_path / "runs" / "s" / "corpus").iterdir()}
    assert json.loads(command("clean", *options, "--json").stdout)["left_over"] == []
    changed = (*options, "--set", "corpus.words.validation=0.2")
    said = " ".join(command("clean", *changed).stdout.split())
    assert f"corpus/{folders['words'].name}" in said and said.endswith("--yes deletes that")
    assert "code" not in said and folders["words"].exists()
    (row,) = json.loads(command("clean", *changed, "--yes", "--json").stdout)["left_over"]
    assert row["folder"] == f"corpus/{folders['words'].name}" and row["mib"] > 0
    assert {name for name, one in folders.items() if one.exists()} == folders.keys() - {"words"}
    (tmp_path / "code.jsonl").unlink()  # with a text missing, every key is another
    assert "code.jsonl" in command("clean", *options, "--yes", code=2).stderr and folders["code"].exists()


def test_status_verify_and_check_agree_that_all_is_done(lineage):
    rows = ask(lineage, "status")["stages"]
    assert {row["state"] for row in rows} == {"done"} and len(rows) == len(lineage.run.pipeline.stages)
    assert ask(lineage, "verify")["damaged"] == {}
    plan = ask(lineage, "check")
    assert plan["tokens"] == 0 and plan["seconds"] == 0 and list(plan["sites"].values()) == [32]
    assert [edge["common_trace"] for edge in plan["plan_edges"]][2] == "words, code, sums"
    shown = [command("check", lineage.path, "--runs", lineage.runs, *more).stdout for more in ((), ("--stages",))]
    assert "sae_quality/base" in shown[1] and "sae_quality/base" not in shown[0] and "--stages lists each" in shown[0]
    rows = ask(lineage, "status", "--set", "report.features=1")["stages"]
    assert {row["stage"].partition("/")[0] for row in rows if row["state"] == "missing"} == {"features", "explain"}


def test_a_damaged_file_is_found(lineage, tmp_path):
    runs = tmp_path / "runs"
    folder = lineage.run.artifacts["quality/base"].folder
    shutil.copytree(folder, runs / "s" / "quality" / folder.name)
    (runs / "s" / "quality" / folder.name / "accuracy.parquet").write_bytes(b"other")
    result = command("verify", lineage.path, "--runs", runs, "--json", code=1)
    (lines,) = json.loads(result.stdout)["damaged"].values()
    assert lines == ["accuracy.parquet differs from its recorded checksum"]


def test_a_table_damaged_after_the_run_was_opened_is_not_exported(lineage, tmp_path):
    shutil.copytree(lineage.run.folder, tmp_path / "s")
    run = heredity.open(tmp_path / "s")
    file = next((run.folder / "match").glob("*/matches.parquet"))
    file.write_bytes(b"PAR1")
    with pytest.raises(ArtifactError, match="run again") as error:
        export(run, tmp_path / "out", "csv", lambda done, total: None)
    assert str(file) in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["csv", "parquet", "json"])
def test_tables_are_exported_in_every_format(lineage, tmp_path, kind):
    files = {Path(file).stem: Path(file) for file in ask(lineage, "export", "--format", kind, "-o", tmp_path)["files"]}
    assert set(files) >= {*lineage.run.tables, "matches", "fates", "explanations"}
    if kind == "parquet":
        assert pq.read_table(files["matches"]).equals(lineage.run["matches"], check_metadata=True)
    if kind == "json":
        assert json.loads(files["edges"].read_text()) == lineage.rows("edges")
    if kind == "csv":
        assert files["edges"].read_text().splitlines()[0].startswith(("instrument,", '"instrument"'))


def test_the_report_is_one_file_that_loads_nothing_from_the_network_and_never_replaces_a_folder(lineage, tmp_path):
    ask(lineage, "report", "-o", tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert 'src="http' not in page and 'href="http' not in page and "@import" not in page
    assert "base" in page and len(page) < 5_000_000
    assert "is a folder" in ask(lineage, "report", "-o", tmp_path, code=2) and (tmp_path / "r.html").read_text() == page


def test_features_are_found_and_shown(lineage):
    rows = {row["model"]: row for row in lineage.rows("cases", case="assignment", instrument="parent")}
    hits = ask(lineage, "find", "--tokens", "=", "--tokens", " =", "--top", 3, "--model", "sums")["models"]
    assert list(hits) == ["sums"] and hits["sums"][0]["feature"] == rows["sums"]["best_feature"]
    joint = ask(
        lineage, "find", *("--tokens", "=", "--tokens", " =", "--top", 1, "--model", "sums", "--instrument", "joint")
    )
    (own,) = lineage.rows("cases", case="assignment", model="sums", instrument="joint")
    (found,) = joint["models"]["sums"]
    assert joint["instrument"] == "joint" and found["feature"] == own["best_feature"]
    assert found["llr"] == own["best_llr"]
    name = f"base/{rows['base']['best_feature']}"
    shown = ask(lineage, "show", name)
    assert shown == json.loads(json.dumps(lineage.run.feature("base", rows["base"]["best_feature"]).values))
    text = command("show", lineage.path, name, "--top", 2, "--runs", lineage.runs).stdout
    assert " ".join(shown["explanation"]["description"].split()) in " ".join(text.split())
    assert name in text and "«" in text
    assert "base/1,base/2: names 2 features; give one of them" in ask(lineage, "show", "base/1,base/2", code=2)
    assert "error: feature 'base': must be a model, a slash" in ask(lineage, "show", "base", code=2)


def test_chosen_features_are_explained(lineage, tmp_path):
    features = np.argsort(-lineage.run.acts("base").firings(), kind="stable")[:2].tolist()
    chosen = ",".join(f"base/{feature}" for feature in features)
    result = ask(lineage, "explain", "--features", chosen, "-o", tmp_path)
    rows = pq.read_table(tmp_path / "explanations.parquet").to_pylist()
    assert sorted(row["feature"] for row in rows) == sorted(features) and result["judge"] == "offline"
    for words, message in (
        (("--all", "--persisting"), "exclude each other"),
        (("--estimate",), "statistics cost nothing"),
        (("--features", "base"), "such as base/12"),
        (("--scores", "beauty"), "--scores beauty"),
    ):
        assert message in ask(lineage, "explain", *words, code=2)


def test_the_gate_reads_the_verdicts_of_the_run_or_its_matches(lineage):
    rows = {row["edge"]: row for row in lineage.rows("verdicts", instrument="parent", end="parent", text="common")}
    result = ask(lineage, "gate", "--max-lost", "100%", "--undecided", "pass")
    assert list(result["edges"]) == list(rows) and set(result) >= {"instrument", "notes"}
    for name, judged in result["edges"].items():
        assert judged["stable"] == rows[name]["stable"] and judged["verdict"] in ("pass", "undecided")
        assert judged["lost"] == (rows[name]["lost_share"] if rows[name]["stable"] else None)
    (edge,) = lineage.rows("edges", instrument="parent", edge="base->sums", rule="evidence")
    result = ask(lineage, "gate", "--max-lost", "0", "--by", "matches", code=1)
    assert result["edges"]["base->sums"]["lost"] == pytest.approx(edge["disappear"] / edge["parent_live"])


def test_a_run_is_set_beside_its_paper_with_pictures(lineage, tmp_path):
    out = tmp_path / "new" / "beside.md"
    value = ask(lineage, "reproduce", "--paper", "tracking", "-o", out)
    assert value["paper"] == "tracking" and value["written"] == str(out)
    persist = {row["about"]: row["here"] for row in value["beside_paper"] if row["element"] == 23 and row["here"]}
    (row,) = lineage.rows("edges", instrument="joint", edge="base->sums", rule="paper")
    assert persist["base->sums"].startswith(format.percent(row["persist"] / row["parent_live"]))
    text = out.read_text(encoding="utf-8")
    pictures = [line.partition("](")[2].rstrip(")") for line in text.splitlines() if line.startswith("![")]
    assert pictures and all((out.parent / name).is_file() for name in pictures)
    printed = command("reproduce", lineage.path, "--runs", lineage.runs, "--format", "md").stdout
    assert printed.startswith("# s, beside the paper") and "| base->sums |" in printed and "![" not in printed
    assert "must be text or md" in ask(lineage, "reproduce", "--format", "html", code=2)
    assert "no stitch that has been run" in ask(lineage, "reproduce", "--paper", "stitching", code=2)


def test_the_report_in_markdown_goes_to_stdout_or_a_file(lineage, tmp_path):
    text = command("report", lineage.path, "--runs", lineage.runs, "--format", "md").stdout
    ask(lineage, "report", "--format", "md", "-o", tmp_path / "r.md")
    assert (tmp_path / "r.md").read_text() == text == ask(lineage, "report", "--format", "md")["text"]
    assert text.startswith("# Study s: ") and all(statement.text in text for statement in lineage.run.statements[:3])
    assert "-o: give the HTML file" in ask(lineage, "report", code=2)
    assert "--format pdf: must be html or md" in ask(lineage, "report", "--format", "pdf", code=2)


def test_the_summary_tells_runs_on_other_text_apart(lineage):
    rows = summary_of(lineage)["tables"]["corpora"]["rows"]
    assert len({row["sha256"] for row in rows}) == len(rows) and all(len(row["sha256"]) == 64 for row in rows)


def test_a_study_that_changed_or_was_not_run_is_refused_by_the_first_stage_missing(lineage, tmp_path):
    for words in (["--runs", tmp_path], ["--set", "sae.tokens=2049"]):
        line = ask(lineage, "gate", "--max-lost", "5%", *words, code=2)
        again = f"heredity run {lineage.path} --runs {words[1] if words[0] == '--runs' else lineage.runs}"
        again += f" --set {words[1]}" if words[0] == "--set" else ""
        changed = (
            f"sae_stream/base@scratch of study s in {lineage.run.folder} has changed since the run: what is there was"
        )
        assert ("is not done in" if words[0] == "--runs" else changed) in line and f"run `{again}` first" in line
        assert f"run `{again}` first" in ask(lineage, "show", "base/1", *words, code=2)


def test_a_saved_sae_and_model_are_tracked_without_a_study(lineage, tmp_path):
    folders = {label: artifact.folder for label, artifact in lineage.run.artifacts.items()}
    words = [
        *("track", folders["model/base"] / "model", folders["model/sums"] / "model"),
        *("--sae-parent", folders["sae/base@scratch"] / "sae", "--sae-child", folders["sae/sums@parent"] / "sae"),
        *("--corpus", f"local:{lineage.path.with_name('words')}", "--tokens", 2000, "--context-size", 16),
    ]
    told = command(*words, "-o", tmp_path / "alone", "--second-sae", "none").stdout
    assert "One SAE: stability unknown" in told and "differs most" in told and " live features" not in told
    assert not (tmp_path / "alone" / "edges.parquet").exists()
    kept = tmp_path / "second"
    trained = ("--second-sae-tokens", 2000, "--save-second-sae", kept, "--json", "-o", tmp_path / "out")
    done = command(*words, *trained)
    assert "training a second SAE of" in done.stderr and ": about" in done.stderr
    result = json.loads(done.stdout)
    edge, quality = result["tables"]["edges"][0], result["tables"]["saes"]
    assert edge["persist"] + edge["disappear"] == edge["parent_live"] > 0
    assert pq.read_table(tmp_path / "out" / "edges.parquet").to_pylist()[0]["persist"] == edge["persist"]
    assert [row["seed"] for row in quality] == [0, 1, 0] and all(row["explained_variance"] < 1 for row in quality)
    assert json.loads((tmp_path / "out" / "track.json").read_text()) == result
    shown = command(*words, "--sae-control", kept / "parent", "-o", tmp_path / "again").stdout
    assert "persist" in shown and "live features are stable" in shown and str(tmp_path / "again") in shown
    refused = command(*words[:4], *words[6:], "--second-sae", "both", "-o", tmp_path / "b", code=2).stderr
    assert "the child has no SAE of its own" in " ".join(refused.split())


def test_a_run_of_an_earlier_version_is_refused_in_one_line(tmp_path):
    (tmp_path / "summary.json").write_text('{"heredity": "0.1.0", "edges": {}}')
    for name in (tmp_path, tmp_path / "summary.json"):
        result = command("run", name, code=2)
        assert result.stderr.count("\n") == 1
        assert "written by heredity 0.1.0" in result.stderr and "run the study again" in result.stderr
