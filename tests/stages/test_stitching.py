"""A study of two models joined by a stitch, from the command line to the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import tiny
from heredity.analyses.query import check_followed
from heredity.cli import app
from heredity.engine.store import Store
from heredity.report.summary import Summary
from heredity.stages import stages_of, stitch_part
from heredity.study import Study, StudyError, load_study

pytest.importorskip("sklearn")
SMALL = {"batch_size": 8, "context_size": 32, "lr": 5e-3, "precision": "float32", "tokens": 12_000}
STITCH = {
    "source": "small",
    "target": "large",
    "tokens": 6_000,
    "held_out": 2_000,
    "context_size": 32,
    "evaluation": 1_000,
    "widths": [64],
    "thresholds": [0.3],
    "adam": {"epochs": 2, "lr": 1e-2, "batch_tokens": 512},
    "probes": {"texts": 30, "sizes": [1, 2], "draws": 2},
    "steering": {"prompts": 3, "max_tokens": 4, "prompt_tokens": 4, "vectors": 1_000},
    "features": {"tokens": 2_000, "prompts": 8, "rewrites": 2, "functional": 1, "corpus": "words"},
}


def two_models(folder: Path, **stitch: Any) -> dict[str, Any]:
    """A study of a small and a larger model on the same corpora, and nothing inherited between them."""
    values = tiny.study_values(folder)
    shapes = {"small": (32, 32, 2), "large": (48, 64, 3)}
    models = {
        name: {"train": {"corpora": ["words", "code"], "d_model": d, "d_mlp": mlp, "n_heads": 4, "n_layers": n} | SMALL}
        for name, (d, mlp, n) in shapes.items()
    }
    corpora = {name: values["corpus"][name] for name in ("words", "code")}
    changes = {"model": models, "corpus": corpora, "hook_point": "blocks.1.hook_resid_pre", "case": {}}
    return values | changes | {"stitch": {"pair": STITCH | stitch}}


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Path, Path, dict[str, Any]]:
    """Study file, runs folder, and what `heredity stitch --json` printed."""
    folder = tmp_path_factory.mktemp("stitching")
    path = tiny.toml(two_models(folder), folder / "pair.toml")
    result = CliRunner().invoke(app, ["stitch", str(path), "--runs", str(folder / "runs"), "--json", "--debug"])
    assert result.exit_code == 0, result.output
    return path, folder / "runs", json.loads(result.stdout)


def test_everything_asked_for_is_told(done):
    _, _, printed = done
    pair = printed["stitches"]["pair"]
    maps = pair["maps"]
    assert maps["widths"] == [32, 48] and set(maps["fits"]) == {"ridge", "joint", "procrustes", "adam"}
    assert maps["fits"]["joint"]["loss"] <= maps["fits"]["ridge"]["loss"] * 1.02
    assert maps["ways"]["up"]["ce_loss"] < 5 and maps["ways"]["source"]["increase"] is None
    for method in ("joint", "adam"):
        rows, ends = maps["curves"][method], maps["fits"][method]
        assert rows[-1] == {name: ends[name] for name in ("tokens", "flops", "loss")}
        assert [row["tokens"] for row in rows] == sorted(row["tokens"] for row in rows) and len(rows) > 1
    assert set(pair["beginnings"]["64"]) == {"random", "transferred", "repaired", "geometry"}
    assert len(pair["savings"]) == 3
    assert pair["probes"]["origin"]["means"] and pair["steering"]["gaps"]
    assert pair["kept"]["attribution"] and pair["bridge"] is None


def test_a_run_of_the_study_adds_the_report_and_makes_nothing_again(done):
    path, runs, printed = done
    before = {stage.label: manifest(stage, runs) for stage in stages_of(load_study(str(path)))}
    result = CliRunner().invoke(app, ["run", str(path), "--runs", str(runs), "--debug"])
    assert result.exit_code == 0 and "Stitch pair" in result.stdout and "small -> large" in result.stdout
    summary = Summary.model_validate_json((runs / "pair" / "summary.json").read_text())
    assert summary.stitches["pair"].model_dump(mode="json") == printed["stitches"]["pair"]
    assert not summary.saes and not summary.edges and summary.classes is None
    assert "<title>" in (runs / "pair" / "report.html").read_text()
    assert before == {stage.label: manifest(stage, runs) for stage in stages_of(load_study(str(path)))}


def manifest(stage: Any, runs: Path) -> bytes:
    found = Store(runs / "pair").find(stage.kind, stage.name, stage.key)
    assert found is not None, stage.label
    return (found / "manifest.json").read_bytes()


def test_check_and_status_know_the_stages(done):
    path, runs, _ = done
    for command in ("check", "status"):
        result = CliRunner().invoke(app, [command, str(path), "--runs", str(runs)])
        assert result.exit_code == 0 and "beginning/pair-64-random" in result.stdout


def test_all_of_it_can_be_exported(done, tmp_path):
    path, runs, printed = done
    command = ["export", str(path), "--runs", str(runs), "--format", "json", "-o", str(tmp_path), "--debug"]
    assert CliRunner().invoke(app, command).exit_code == 0
    rows = {file.stem: json.loads(file.read_text()) for file in tmp_path.glob("*.json")}
    kinds = ("fits", "costs", "ways", "carried", "curves", "savings", "probes", "steering")
    assert set(rows) == {"models", "stitch_kept_pair", *(f"stitch_{kind}" for kind in kinds)}
    fits = {row["method"]: row for row in rows["stitch_fits"]}
    assert (
        fits["joint"]["in_use"]
        and fits["joint"]["loss"] == printed["stitches"]["pair"]["maps"]["fits"]["joint"]["loss"]
    )
    costs = [row for row in rows["stitch_costs"] if row["method"] == "joint"]
    assert costs[-1]["loss"] == fits["joint"]["loss"] and costs[0]["tokens"] < costs[-1]["tokens"]
    assert {row["arm"] for row in rows["stitch_curves"]} == {"random", "transferred", "repaired", "geometry"}
    assert len(rows["stitch_kept_pair"]) == 64


@pytest.mark.parametrize(
    "command", [["find", "--tokens", "="], ["show", "small/1"], ["explain"], ["gate", "--max-lost", "5%"]]
)
def test_what_asks_about_a_lineage_says_that_there_is_none(done, command):
    path, runs, _ = done
    result = CliRunner().invoke(app, [command[0], str(path), *command[1:], "--runs", str(runs)])
    assert result.exit_code == 2 and "Traceback" not in result.output
    assert "has stitches alone" in result.output or "no parent -> child edge" in result.output


def test_a_changed_setting_of_probes_makes_only_them_again(tmp_path):
    def keys(**changed: int) -> dict[str, str]:
        study = Study.of(two_models(tmp_path, probes=STITCH["probes"] | changed), root=tmp_path)
        return {stage.label: stage.key for stage in stages_of(study)}

    first, second = keys(), keys(texts=31)
    assert {label for label in first if first[label] != second[label]} == {"probes/pair-origin"}


def test_a_stitch_along_an_edge_meets_the_lineage(tmp_path):
    values = tiny.study_values(tmp_path)
    values["hook_point"] = "blocks.0.hook_resid_post"
    values["model"]["base"]["train"]["n_layers"] = 2
    stitch = STITCH | {"source": "base", "target": "sums", "features": {"tokens": 0}}
    study = Study.of(values | {"stitch": {"edge": stitch}, "case": {}}, root=tmp_path)
    labels = [stage.label for stage in stages_of(study)]
    assert "bridge/edge" in labels and "match/base-to-sums-joint" in labels and "kept/edge" not in labels
    part = [stage.label for stage in stitch_part(study)]
    assert "bridge/edge" in part and "sae/joint" in part and "classes/joint" not in part


def test_a_model_of_stitches_alone_has_no_part_in_the_lineage(tmp_path):
    values = two_models(tmp_path)
    values["model"]["child"] = {"parent": "small", "corpora": ["code"], "tokens": 1_000}
    study = Study.of(values, root=tmp_path)
    assert study.followed == ("small", "child")
    labels = {stage.label: stage for stage in stages_of(study)}
    assert "sae_quality/small-joint" in labels and "sae_quality/large-joint" not in labels
    assert {name for name in labels["sae/joint"].inputs if name.startswith("model:")} == {"model:small", "model:child"}
    assert "quality/large" in labels and "kept/pair" in labels
    with pytest.raises(ValueError, match=r"large/1: large is on no edge.*small, child"):
        check_followed(study, "large", "large/1")
    with pytest.raises(ValueError, match="no model of study"):
        check_followed(study, "larg", "larg/1")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target": "larg"}, "'larg' is no model of this study; did you mean 'large'"),
        ({"target": "small"}, "source and target are both 'small'"),
        ({"source_hook_point": "blocks.7.hook_resid_pre"}, "stitch.pair.source_hook_point"),
        ({"target_hook_point": "blocks.3.hook_resid_pre"}, "stitch.pair.target_hook_point"),
        ({"widths": [4]}, "sae.k: 8 is more than the 4 features"),
        ({"arms": ["transferred"]}, "add random"),
        ({"features": {"corpus": "sums"}}, "stitch.pair.features.corpus"),
        ({"tokens": 0}, "stitch.pair.tokens"),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(tmp_path, changes, said):
    with pytest.raises(StudyError, match=r".") as error:
        stages_of(Study.of(two_models(tmp_path, **changes), root=tmp_path))
    assert said in str(error.value)


def test_only_stitches_that_are_there_can_be_asked_for(tmp_path):
    study = Study.of(two_models(tmp_path), root=tmp_path)
    with pytest.raises(StudyError, match="no stitch 'pear'; defined are pair"):
        stitch_part(study, ["pear"])
    with pytest.raises(StudyError, match="has no stitch"):
        stitch_part(Study.of(tiny.study_values(tmp_path), root=tmp_path))
