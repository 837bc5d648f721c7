"""A whole study, small enough for seconds: every stage on real text, killed, resumed, exported and looked at."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import tiny
from heredity.analyses import TABLES, stages_of
from heredity.cli import app
from heredity.run import open as open_run
from heredity.study import load_study


def heredity(*arguments: object):
    """Run a command in this process and check that it succeeded."""
    result = CliRunner().invoke(app, [str(word) for word in arguments])
    assert result.exit_code == 0, (result.output, result.stderr, result.exception)
    return result


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    """A folder with the study `s.toml`, run into `runs`."""
    folder = tmp_path_factory.mktemp("study")
    path = tiny.toml(both_instruments(folder), folder / "s.toml")
    heredity("run", path, "--runs", folder / "runs")
    return folder


def both_instruments(folder: Path) -> dict:
    """The tiny study with SAEs continued and independent."""
    values = tiny.study_values(folder)
    values["sae"]["init"] = ["parent", "independent", "joint"]
    return values


def summary_of(folder: Path) -> dict:
    """`summary.json` without what depends on the clock."""
    summary = json.loads((folder / "runs/s/summary.json").read_text())
    return {name: part for name, part in summary.items() if name not in ("seconds", "created")}


def rows_of(folder: Path, name: str, **key: object) -> list[dict]:
    """Rows of a table of the summary with these values."""
    rows = summary_of(folder)["tables"][name]["rows"]
    return [row for row in rows if all(row[column] == value for column, value in key.items())]


def test_the_summary_holds_every_small_table_and_names_every_model(done):
    summary = summary_of(done)
    assert summary["schema"] == 2 and summary["study"] == "s"
    assert [row["model"] for row in rows_of(done, "models")] == ["base", "sums", "stories", "both"]
    edges = {(row["instrument"], row["edge"]) for row in rows_of(done, "edges", rule="evidence")}
    names = ("base->sums", "base->stories", "sums->both", "stories->both")
    assert edges == {(instrument, name) for instrument in ("parent", "independent", "joint") for name in names}
    own = [
        {name: value for name, value in row.items() if name != "instrument"}
        for row in rows_of(done, "saes", model="base")
        if row["instrument"] != "joint"
    ]
    assert own[0] == own[1], "a start model has one SAE"
    assert not any(TABLES[name].large for name in summary["tables"])


def test_a_run_opens_from_its_folder_as_it_was_summarized(done):
    run = open_run(done / "runs/s")
    assert not run.missing
    summary = summary_of(done)
    assert {name: table.to_pylist() for name, table in run.tables.items()} == {
        name: table["rows"] for name, table in summary["tables"].items()
    }
    texts = [statement.text for statement in run.statements if statement.question != "note"]
    assert texts == [row["text"] for row in summary["statements"]]


def test_counts_add_up_and_stand_between_floor_and_ceiling(done):
    for edge in rows_of(done, "edges"):
        assert edge["persist"] + edge["disappear"] == edge["parent_live"]
        if edge["rule"] == "evidence":
            assert edge["floor"] <= edge["ceiling"]
            assert edge["one_to_one"] <= min(edge["persist"], edge["child_live"] - edge["emerge"])
        else:
            key = {name: edge[name] for name in ("instrument", "edge")}
            (curve,) = rows_of(done, "curves", threshold=0.8, **key)
            assert curve["persist"] == edge["persist"]
    for instrument in ("parent", "independent", "joint"):
        flow = rows_of(done, "flow", instrument=instrument, model="both")
        live = {row["child_live"] for row in rows_of(done, "edges", instrument=instrument, child="both")}
        assert sum(row["features"] for row in flow) >= max(live)


def test_the_sweep_ends_at_the_parents(done):
    sweep = rows_of(done, "sweeps", model="both")
    assert {0, 1} <= {row["t"] for row in sweep}
    for t, parent in ((0, "sums"), (1, "stories")):
        (end,) = rows_of(done, "sweeps", model="both", t=t, parent=parent)
        (alone,) = rows_of(done, "accuracy", model=parent, corpus=parent)
        assert end["accuracy"] == pytest.approx(alone["accuracy"])


def test_models_learned_something_and_children_more_of_their_own(done):
    rows = {(row["model"], row["corpus"]): row for row in rows_of(done, "accuracy")}
    assert rows["base", "code"]["accuracy"] > 1.5 * rows["base", "code"]["unigram"]
    for child in ("sums", "stories"):
        assert rows[child, child]["accuracy"] > rows["base", child]["accuracy"]


def test_a_second_run_makes_nothing_and_ends_with_the_same_summary(done):
    before = summary_of(done)
    result = heredity("run", done / "s.toml", "--runs", done / "runs")
    assert "/" not in "".join(line for line in result.stderr.splitlines() if line.endswith(" s")), "a stage ran again"
    assert summary_of(done) == before


def test_a_changed_threshold_leaves_the_models_and_saes_alone(done):
    rows = json.loads(
        heredity("status", done / "s.toml", "--runs", done / "runs", "--set", "lineage.threshold=0.7", "--json").stdout
    )
    missing = {row["stage"].partition("/")[0] for row in rows["stages"] if row["state"] == "missing"}
    assert missing == {"match", "flow", "newness", "features", "classes", "explain"}


def test_status_verify_and_check_agree_that_all_is_done(done):
    runs = ("--runs", done / "runs", "--json")
    rows = json.loads(heredity("status", done / "s.toml", *runs).stdout)["stages"]
    assert {row["state"] for row in rows} == {"done"}
    assert json.loads(heredity("verify", done / "s.toml", *runs).stdout)["damaged"] == {}
    plan = json.loads(heredity("check", done / "s.toml", *runs).stdout)
    assert plan["tokens"] == 0 and plan["seconds"] == 0 and plan["d_in"] == 32
    assert [edge["common_trace"] for edge in plan["plan_edges"]][2] == "words, code, sums"


@pytest.mark.parametrize("format_", ["csv", "parquet", "json"])
def test_tables_are_exported_in_every_format(done, tmp_path, format_):
    result = heredity("export", done / "s.toml", "--runs", done / "runs", "--format", format_, "-o", tmp_path, "--json")
    files = {Path(file).stem: Path(file) for file in json.loads(result.stdout)["files"]}
    assert set(files) >= {"models", "merges", "sweeps", "saes", "edges", "cases", "curves", "flow", "matches", "fates"}
    if format_ == "parquet":
        matches = pq.read_table(files["matches"])
        assert matches.schema.equals(TABLES["matches"].schema, check_metadata=True)
        assert set(matches["edge"].to_pylist()) == {"base->sums", "base->stories", "sums->both", "stories->both"}
    if format_ == "json":
        edges = json.loads(files["edges"].read_text())
        assert edges == rows_of(done, "edges")
        key = {"instrument": "joint", "edge": "base->sums"}
        (edge,) = rows_of(done, "edges", rule="evidence", **key)
        fates = [row for row in json.loads(files["fates"].read_text()) if key.items() <= row.items()]
        assert sum(row["fate"] == "disappear" for row in fates) == edge["disappear"]


def test_the_report_is_one_file_that_asks_nothing_of_the_network(done, tmp_path):
    heredity("report", done / "s.toml", "--runs", done / "runs", "-o", tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert 'src="http' not in page and 'href="http' not in page and "@import" not in page
    assert "base" in page and len(page) < 5_000_000


def test_cases_follow_the_best_feature_and_say_when_there_is_none(done):
    verdicts = {row["case"]: row for row in rows_of(done, "case_verdicts", instrument="parent")}
    assert verdicts["nonsense"]["verdict"] == "nothing in the sample fits" and verdicts["nonsense"]["mean_r"] is None
    assert verdicts["assignment"]["verdict"].startswith(("persists", "disappears on "))
    members = {row["model"]: row for row in rows_of(done, "cases", instrument="parent", case="assignment")}
    assert set(members) == {"base", "sums", "stories", "both"} and members["base"]["llr"] > 0
    assert members["base"]["best_feature"] == members["base"]["feature"]


def test_features_are_found_by_what_they_fire_on(done):
    asked = ("--runs", done / "runs", "--tokens", "=", "--tokens", " =", "--top", 3, "--json")
    found = json.loads(heredity("find", done / "s.toml", *asked).stdout)
    case = {row["model"]: row for row in rows_of(done, "cases", instrument="parent", case="assignment")}
    for model in ("base", "sums", "stories", "both"):
        rows = found["models"][model]
        assert rows[0]["feature"] == case[model]["best_feature"] and rows[0]["llr"] == case[model]["best_llr"]
        assert [row["sensitivity"] for row in rows] == sorted((row["sensitivity"] for row in rows), reverse=True)
    assert {match["edge"] for match in found["models"]["both"][0]["matches"]} == {"sums->both", "stories->both"}
    assert list(json.loads(heredity("find", done / "s.toml", *asked, "--model", "sums").stdout)["models"]) == ["sums"]


def test_a_saved_sae_and_model_are_tracked_without_a_study(done, tmp_path):
    def folder(stage: str, name: str) -> Path:
        return next((done / "runs/s" / stage).glob(f"{name}-????????????"))

    words = [
        *("track", folder("model", "base") / "model", folder("model", "sums") / "model"),
        *("--sae-parent", folder("sae", "base@scratch") / "sae", "--sae-child", folder("sae", "sums@parent") / "sae"),
        *("--corpus", f"local:{done / 'words'}", "--tokens", 2000, "--context-size", 16),
    ]
    result = heredity(*words, "-o", tmp_path / "out", "--json")
    edge = json.loads(result.stdout)["tables"]["edges"][0]
    assert edge["persist"] + edge["disappear"] == edge["parent_live"] > 0
    assert pq.read_table(tmp_path / "out" / "edges.parquet").to_pylist()[0]["persist"] == edge["persist"]
    assert "persist" in heredity(*words, "-o", tmp_path / "again").stdout


def made_anew(done, *overrides: str) -> set[str]:
    """Stages that changed settings make anew."""
    plain, other = (stages_of(load_study(str(done / "s.toml"), changes)) for changes in ((), overrides))
    return {one.label for one, two in zip(plain, other, strict=True) if one.key != two.key}


def test_the_type_that_activations_are_read_in_belongs_to_the_recipe_of_what_reads_them(done):
    kinds = {label.partition("/")[0] for label in made_anew(done, "precision=bf16")}
    assert kinds >= {"sae", "sae_quality", "match", "newness", "acts", "features", "classes", "explain"}
    assert not kinds & {"corpus", "tokenizer", "tokens", "model", "sweep", "quality"}


def test_a_setting_makes_anew_only_the_saes_that_read_it(done):
    assert not made_anew(done, "sae.l0=[5, 13]", "sae.calibration=0.5")  # of relu and jumprelu
    longer = {label for label in made_anew(done, "sae.continue_tokens=12_000") if label.startswith("sae/")}
    assert longer and not any("scratch" in label for label in longer)
    assert "sae/base@scratch" in made_anew(done, "sae.tokens=31_000", "sae.continue_tokens=10_000")


def test_what_to_know_before_relying_on_a_figure_is_noted(done):
    notes = summary_of(done)["notes"]
    assert "case nonsense: 'no such token': no single token of this vocabulary, not searched for" in notes
    # SAEs this small explain little or agree little: what planted worlds show of such ones is said.
    assert any(note.startswith(("SAEs of ", "edge ")) for note in notes) and len(set(notes)) == len(notes)


@pytest.mark.parametrize(("limit", "code"), [("100%", 0), ("0", 1)])
def test_the_gate_reads_the_edges_of_the_run(done, limit, code):
    words = ["gate", done / "s.toml", "--runs", done / "runs", "--json", "--max-lost", limit]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    (edge,) = rows_of(done, "edges", instrument="parent", edge="base->sums", rule="evidence")
    verdict = json.loads(result.stdout)["edges"]["base->sums"]
    assert verdict["lost"] == pytest.approx(edge["disappear"] / edge["parent_live"])


def test_a_study_that_changed_or_was_not_run_is_refused_by_the_first_stage_missing(done, tmp_path):
    for words in (["--runs", tmp_path], ["--runs", done / "runs", "--set", "sae.tokens=2049"]):
        words = ["gate", done / "s.toml", "--max-lost", "5%", *words]
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exit_code == 2 and "is not done" in result.stderr and "heredity run" in result.stderr


def test_a_run_of_an_earlier_version_is_refused_in_one_line(tmp_path):
    (tmp_path / "summary.json").write_text('{"heredity": "0.1.0", "edges": {}}')
    for name in (tmp_path, tmp_path / "summary.json"):
        result = CliRunner().invoke(app, ["run", str(name)])
        assert result.exit_code == 2 and result.stderr.count("\n") == 1
        assert "written by heredity 0.1.0" in result.stderr and "run the study again" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 3])
def test_every_file_is_the_same_however_many_workers_share_the_work(done, tmp_path, workers):
    heredity("run", done / "s.toml", "--runs", tmp_path, "--workers", workers)
    alone = contents(done / "runs/s")
    assert {"sae", "match", "acts", "sweep"} <= {name.partition("/")[0] for name in alone}
    assert contents(tmp_path / "s") == alone


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a study's artifacts, without what depends on the clock."""
    files = {str(path.relative_to(folder)): path for path in folder.glob("*/*/**/*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if path.name != "manifest.json"}


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["model/base", "sae/joint", "match/base+sums@joint"])
def test_a_run_that_is_killed_ends_with_the_same_numbers_when_it_is_started_again(tmp_path, stage):
    """The undisturbed run is made in another folder with the same study."""
    undisturbed, killed = tmp_path / "a", tmp_path / "b"
    for folder in (undisturbed, killed):
        tiny.toml(tiny.study_values(folder), folder / "s.toml")
    heredity("run", undisturbed / "s.toml", "--runs", undisturbed / "runs")
    kill_during(stage, killed)
    assert not (killed / "runs/s/summary.json").exists()
    heredity("run", killed / "s.toml", "--runs", killed / "runs")
    assert summary_of(killed) == summary_of(undisturbed)


def kill_during(stage: str, folder: Path) -> None:
    """Start the study in a process of its own and kill it (SIGKILL) while it is in this stage."""
    kind, name = stage.split("/")
    command = [sys.executable, "-m", "heredity", "run", "s.toml", "--runs", "runs"]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list((folder / "runs/s" / kind).glob(f".partial-{name}-*")):
        assert process.poll() is None, "the study ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list((folder / "runs/s" / kind).glob(f"{name}-*/manifest.json")), "the stage was already complete"
