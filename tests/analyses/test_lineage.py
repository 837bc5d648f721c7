"""A whole study of a lineage, run once: figures add up, agree between tables, and show what was trained."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from heredity.analyses import TABLES, Pipeline, stages_of
from heredity.analyses.analysis import seed_of
from heredity.engine.stage import run
from heredity.engine.store import Artifact, Store, faults
from heredity.engine.workers import shards
from heredity.features.directions import turns
from heredity.sae.formats import read_sae
from heredity.study import load_study

INSTRUMENTS = ("parent", "independent", "joint")
EDGES = ("base->sums", "base->stories", "sums->both", "stories->both")
MODELS = ("base", "sums", "stories", "both")
STEPS = ("data", "data-then-model", "model", "model-then-data")


def columns(table: Any, **key: object) -> dict[str, np.ndarray]:
    """Columns of the rows with these values; nulls of numbers are nan."""
    chosen = np.all([table[name].to_numpy() == value for name, value in key.items()], axis=0)
    return {name: table[name].to_numpy()[chosen] for name in table.column_names}


def test_all_stages_are_done_and_sound(lineage):
    assert not lineage.run.missing
    assert not [fault for artifact in lineage.run.artifacts.values() for fault in faults(artifact.folder, artifact.key)]
    assert set(lineage.run.tables) == {name for name, table in TABLES.items() if not table.large} - {
        "repeats",
        "repeats_same",
        "layers",
        "tokens_apart",
    } - {name for name in TABLES if name not in lineage.run.tables and "stitch" in TABLES[name].key}


def test_every_edge_is_measured_by_every_instrument(lineage):
    rows = lineage.rows("edges", rule="evidence")
    assert [(row["instrument"], row["edge"]) for row in rows] == [(i, e) for i in INSTRUMENTS for e in EDGES]
    assert [row["model"] for row in lineage.rows("models")] == list(MODELS)
    first, second = (lineage.rows("saes", model="base", instrument=name)[0] for name in ("parent", "independent"))
    assert first | {"instrument": ""} == second | {"instrument": ""}, "a start model has one SAE"


def test_every_sae_is_compared_with_a_second_one(lineage):
    for row in lineage.rows("saes"):
        assert row["live"] == round((1 - row["dead_share"]) * row["d_sae"])
        assert row["stable_share"] == pytest.approx(1 - row["unstable"] / row["live"])
        assert row["stable_share_low"] <= row["stable_share"] <= row["stable_share_high"] and 0 < row["pw_mcc"] < 1


def test_counts_add_up_and_stand_between_floor_and_ceiling(lineage):
    for row in lineage.rows("edges"):
        assert row["persist"] + row["disappear"] == row["parent_live"] <= row["parent_features"] == 128
        assert row["emerge"] <= row["child_live"] and 0 <= row["floor"] <= row["ceiling"] <= 1
        assert row["one_to_one"] <= min(row["persist"], row["child_live"] - row["emerge"])
        assert row["persist_low"] <= row["persist_high"] and row["tokens"] >= 4_000
        assert row["relative"] == pytest.approx(row["persist"] / row["parent_live"] / row["ceiling"])
        assert row["one_dictionary"] == (row["instrument"] == "joint")
        assert not row["one_dictionary"] or row["ceiling"] == 1
        key = {name: row[name] for name in ("instrument", "edge")}
        if row["rule"] == "paper":
            (curve,) = lineage.rows("curves", threshold=0.8, **key)
            assert curve["persist"] == row["persist"] and row["threshold"] == 0.8
        else:
            assert row["chance_end"] <= row["threshold"] <= row["same_end"]


def test_fates_of_features_are_those_that_are_counted(lineage):
    fates, matches = lineage.run["fates"], lineage.run["matches"]
    for row in lineage.rows("edges", rule="evidence"):
        key = {name: row[name] for name in ("instrument", "edge")}
        for end, names in (("parent", ("persist", "disappear")), ("child", ("inherited", "emerge"))):
            own = columns(fates, end=end, **key)
            counts = {name: int((own["fate"] == name).sum()) for name in (*names, "dead")}
            assert sum(counts.values()) == 128 and (own["density"][own["fate"] == "dead"] == 0).all()
            assert counts[names[0]] + counts[names[1]] == row[f"{end}_live"]
            assert counts[names[1]] == row["disappear" if end == "parent" else "emerge"]
            assert ((own["best_r"] > row["threshold"]) == (own["fate"] == names[0])).all()
            first = columns(matches, end=end, rank=1, **key)
            assert np.array_equal(first["r"], own["best_r"], equal_nan=True)
            binned = lineage.rows("best_r", end=end, **key)
            assert sum(one["features"] for one in binned) == np.isfinite(own["best_r"]).sum()
            strata = lineage.rows("strata", end=end, **key)
            assert sum(one["features"] for one in strata) == 128
            assert sum(one["matched"] for one in strata) == counts[names[0]]


def test_every_feature_of_a_merge_is_counted_once_where_it_comes_from(lineage):
    for instrument in INSTRUMENTS:
        rows = lineage.rows("flow", instrument=instrument, model="both", rule="evidence")
        assert [row["origin"] for row in rows][0] == "from_base" and len({row["live"] for row in rows}) == 1
        live = {row["child_live"] for row in lineage.rows("edges", instrument=instrument, child="both")}
        assert sum(row["features"] for row in rows) == rows[0]["live"] >= max(live)
        counts = {row["origin"]: row["features"] for row in rows}
        links = lineage.rows("flow_links", instrument=instrument, model="both", rule="evidence")
        once: dict[str, int] = {}
        for link in links:  # features through both parents stand in the link of each
            once[link["origin"]] = once.get(link["origin"], 0) + 2 * link["features"] - link["shared"]
        assert once.get("base", 0) == 2 * counts["from_base"]
        assert once.get("sums", 0) == 2 * counts["emerged_in_sums"]
        reach = {(row["rule"], row["model"]): row for row in lineage.rows("reach", instrument=instrument)}
        for row in lineage.rows("edges", instrument=instrument):
            own = reach[row["rule"], row["parent"]]
            assert row["persist"] <= own["features"] <= own["live"] <= own["total"] == 128
            assert f"{row['child']} {row['persist']}" in own["children"].split(", ")


def test_the_sweep_ends_at_the_parents_and_children_learned_more_of_their_own(lineage):
    rows = {(row["model"], row["corpus"]): row for row in lineage.rows("accuracy")}
    assert rows["base", "code"]["accuracy"] > 1.5 * rows["base", "code"]["unigram"]
    for t, parent in ((0, "sums"), (1, "stories")):
        (end,) = lineage.rows("sweeps", model="both", t=t, parent=parent)
        assert end["accuracy"] == pytest.approx(rows[parent, parent]["accuracy"])
        assert rows[parent, parent]["accuracy"] > rows["base", parent]["accuracy"]
    (merge,) = lineage.rows("merges")
    assert 0 < merge["t"] < 1 and merge["t_low"] <= merge["t"] <= merge["t_high"]


def test_a_merge_is_compared_with_its_parents_its_base_and_other_methods(lineage):
    accuracy = {(row["model"], row["corpus"]): row["accuracy"] for row in lineage.rows("accuracy")}
    for row in lineage.rows("merge_accuracy"):
        one, other = (accuracy[model, row["corpus"]] for model in ("both", row["reference"]))
        assert row["accuracy"] == pytest.approx(one) and row["relative"] == pytest.approx(one / other - 1)
        assert row["own"] == (row["corpus"] in ("sums", "stories"))
    methods = {row["method"]: row for row in lineage.rows("merge_methods", corpus="sums")}
    assert {"slerp", "linear", "task_arithmetic", "ties"} <= set(methods)
    assert methods["slerp"]["taken"] and methods["slerp"]["accuracy"] == pytest.approx(accuracy["both", "sums"])


def test_cases_follow_the_best_feature_and_say_when_there_is_none(lineage):
    rows = {row["model"]: row for row in lineage.rows("cases", case="assignment", instrument="parent")}
    assert set(rows) == set(MODELS) and rows["base"]["llr"] > 0
    assert rows["base"]["best_feature"] == rows["base"]["feature"] and rows["base"]["status"] == "start"
    assert lineage.rows("cases", case="nonsense") == []
    verdicts = {row["case"]: row for row in lineage.rows("case_verdicts", instrument="parent")}
    assert verdicts["nonsense"]["verdict"] == "nothing in the sample fits" and verdicts["nonsense"]["mean_r"] is None
    assert verdicts["assignment"]["verdict"].startswith(("persists", "disappears on "))
    assert verdicts["assignment"]["verdict"] == rows["base"]["verdict"] and verdicts["assignment"]["hits"] > 0


def test_classes_of_all_features_are_counted_for_every_fate(lineage):
    features = lineage.run["feature_classes"]
    for row in lineage.rows("class_groups", fate="live"):
        if row["subject"] in MODELS:
            own = columns(features, instrument=row["instrument"], model=row["subject"])
            assert len(own["feature"]) == row["features"] == (own["firings"] > 0).sum()
            assert (own["class"] == "rare").sum() == row["rare"]
    for row in lineage.rows("edges", rule="evidence"):
        key = {"instrument": row["instrument"], "subject": row["edge"]}
        (persist,) = lineage.rows("class_groups", fate="persist", **key)
        (emerge,) = lineage.rows("class_groups", fate="emerge", **key)
        assert persist["features"] == row["persist"] and emerge["features"] == row["emerge"]


# -- other data or other weights -------------------------------------------------------------------------------------


def test_shifts_are_of_edges_to_trained_children(lineage):
    for edge in ("base->sums", "base->stories"):
        (causes,) = lineage.rows("shift_causes", edge=edge)
        assert causes["features"] > 20 and causes["vectors"] >= 4_000
        angles = {(row["order"], row["step"]): row for row in lineage.rows("shift", edge=edge)}
        orders = {(order, step) for order in ("data_first", "model_first") for step in ("data", "model", "total")}
        assert set(angles) == orders | {("reference", "noise"), ("reference", "weights")}
        assert all(0 <= row["lower"] <= row["median"] <= row["upper"] < 180 for row in angles.values())
        assert angles["data_first", "total"]["lower"] > 0 and angles["reference", "weights"]["median"] > 0
        persist = {row["step"]: row for row in lineage.rows("shift_persist", edge=edge)}
        (own,) = lineage.rows("edges", edge=edge, instrument="parent", rule="evidence")
        assert set(persist) == {"noise", "data", "model", "both"}
        assert all(0 <= row["paper"] <= 1 and row["threshold"] == own["threshold"] for row in persist.values())
    assert {row["edge"] for row in lineage.rows("shift_causes")} == {"base->sums", "base->stories"}


def test_the_table_of_shifted_features_agrees_with_the_counts(lineage):
    own = columns(lineage.run["shift_features"], edge="base->sums")
    (causes,) = lineage.rows("shift_causes", edge="base->sums")
    live = own["live"].astype(bool)
    assert len(live) == 128 and live.sum() == causes["features"]
    data, model = ((own[f"data_first_{cause}"] + own[f"model_first_{cause}"])[live] / 2 for cause in ("data", "model"))
    beyond = np.maximum(data, model) > np.quantile(own["noise"][live], 0.95)
    assert (beyond & (model > data + 1e-9)).sum() == causes["by_model"]
    (noise,) = lineage.rows("shift", edge="base->sums", step="noise")
    assert np.median(own["noise"][live]) == noise["median"]
    (data_step,) = lineage.rows("shift_persist", edge="base->sums", step="data")
    assert (own["data_r"][live] > 0.8).mean() == data_step["paper"]
    silent = ~live & (own["noise"] == 0)
    assert not np.isnan(own["data_r"][live]).all() and np.isnan(own["data_r"][silent]).all()


def test_equal_weights_do_not_turn_a_feature_beyond_the_noise(lineage):
    """A child that keeps its parent's weights, beside the shared study."""
    import tomllib

    values = tomllib.loads(lineage.path.read_text())
    values["model"] = {"base": values["model"]["base"], "twin": {**values["model"]["sums"], "lr": 1e-30}}
    values["corpus"].pop("stories")
    values["sae"] |= {"instruments": ["joint"], "tokens": 6_000, "continue_tokens": 4_000}
    pipeline = Pipeline(load_study(str(tiny.toml(values, lineage.path.with_name("twin.toml")))))
    names = {f"shift_sae/base+twin@{step}" for step in STEPS} | {"sae/base@control1-from-base", "sae/base@scratch"}
    artifacts = run(pipeline.closure(names), Store(lineage.runs / "twin"))

    def decoder(label: str) -> torch.Tensor:
        return read_sae(artifacts[label] / "sae")[0].W_dec

    steps = {step.replace("-then-", "_"): decoder(f"shift_sae/base+twin@{step}") for step in STEPS}
    turn = turns(steps | {"source": decoder("sae/base@scratch"), "control": decoder("sae/base@control1-from-base")})
    assert (turn.weights == 0).all(), "the same weights, tokens and order: the same SAE"
    assert (turn.model_first_model == turn.noise).all() and turn.noise.max() > 1
    assert (turn.model_first_data > 0).any() and (turn.data_first_data != turn.noise).any()


# -- what features mean ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def explained(lineage) -> list[dict[str, Any]]:
    """Explanations by the first instrument."""
    return lineage.rows("explanations", instrument="parent")


def test_every_row_says_what_a_feature_means_and_how_well_that_predicts_it(lineage, explained):
    listed = 3 * 6 + 2  # report.features of every list, the families of each, and features of cases
    for model in MODELS:
        assert 0 < sum(row["model"] == model for row in explained) <= 24 + listed
    for row in explained:
        if row["failure"]:
            assert row["failure"] == "too_rare" and row["description"] is None and row["simulation"] is None
            continue
        assert row["by"] == "offline" and row["description"].startswith(("fires ", "follows no simple rule"))
        assert -1 <= row["simulation"] <= 1 and (row["detection"] is None or -1 <= row["detection"] <= 1)
        own = (row["origin_model"], row["origin_feature"]) == (row["model"], row["feature"])
        assert own != row["carried"] and own == bool(row["rule"])
        assert not row["re_explained"] or row["inherited_simulation"] is not None
    scores = [row["simulation"] for row in explained if row["simulation"] is not None]
    assert np.median(scores) > 0.3, "features of tokens are explained by their tokens"


def test_carried_labels_are_those_of_their_origins_and_fall_no_further_than_allowed(explained):
    rows = {(row["model"], row["feature"]): row for row in explained}
    carried = [row for row in explained if row["carried"]]
    assert len(carried) > 5
    for row in carried:
        origin = rows[row["origin_model"], row["origin_feature"]]
        assert origin["description"] == row["description"] and not origin["carried"]
        fell = row["simulation"] < origin["simulation"] - 0.05
        assert fell == row["re_explained"], "one that fell is kept where a new description scores no higher"
        assert json.loads(origin["rule"])["form"]


def test_labels_add_up_and_every_edge_and_merge_is_compared(lineage, explained):
    (labels,) = lineage.rows("labels", instrument="parent")
    assert labels["features"] + labels["too_rare"] == len(explained)
    assert labels["explained"] + labels["saved"] == labels["features"]
    assert labels["saved"] + labels["re_explained"] == labels["carried"]
    assert labels["kept"] == sum(row["carried"] for row in explained) >= labels["saved"] > 0
    assert labels["re_explained"] == sum(row["re_explained"] for row in explained)
    compared = {row["subject"]: row for row in lineage.rows("explained", instrument="parent")}
    assert set(compared) == {*EDGES, "both"}
    for subject, row in compared.items():
        for group in ("persisting", "others"):
            bins = lineage.rows("explained_scores", instrument="parent", subject=subject, group=group)
            assert sum(one["features"] for one in bins) == row[group]
    assert any(row["persisting"] and row["persisting_median"] is not None for row in compared.values())
    into = [compared["sums->both"], compared["stories->both"]]
    assert compared["both"]["persisting"] == sum(row["persisting"] for row in into)


# -- findings --------------------------------------------------------------------------------------------------------


def test_what_to_know_before_relying_on_a_figure_is_noted(lineage):
    notes = [statement.text for statement in lineage.run.statements if statement.question == "note"]
    last = [note for note in notes if note.startswith("case nonsense")]
    said = "no single token of this vocabulary, not searched for; name it in strings"
    assert set(last) == {f"case nonsense: 'no such token': {said}"}
    # SAEs this small explain little or agree little: what planted worlds show of such ones is noted.
    regime = [note for note in notes if note not in last]
    assert regime and all(note.startswith(("SAEs of ", "edge ", "edges ", "Only ")) for note in regime)


def test_findings_answer_each_question_for_every_child(lineage):
    statements = lineage.run.statements
    for question, subjects in {
        "inherited": MODELS[1:], "lost": MODELS[1:], "new": MODELS[1:], "sure": MODELS[1:], "merge": ("both",),
        "matches": MODELS[1:], "case": ("assignment",), "meaning": (), "kinds": (),
    }.items():  # fmt: skip
        about = {statement.about for statement in statements if statement.question == question}
        assert about >= set(subjects), question
    assert {statement.instrument for statement in statements} == {"", *INSTRUMENTS}
    for statement in statements:
        assert statement.text.endswith(".") or statement.question == "note"
        assert "nan" not in statement.text and "None" not in " ".join((statement.text, *statement.evidence))


# -- the same files however a run went -------------------------------------------------------------------------------


def test_running_again_makes_nothing_and_measurements_have_the_seed_of_their_edge(lineage):
    before = {label: artifact.manifest for label, artifact in lineage.run.artifacts.items()}
    study = load_study(str(lineage.path))
    again = run(stages_of(study), Store(lineage.runs / "s"))
    assert {label: artifact.manifest for label, artifact in again.items()} == before
    config = again["match/base+sums@joint"].json("config.json")
    assert config["seed"] == seed_of(study, "match", "base->sums") and json.loads(json.dumps(config)) == config


def test_making_explanations_again_gives_the_same_bytes(lineage, tmp_path):
    pipeline = Pipeline(load_study(str(lineage.path)))
    stage = pipeline.stages["explain/joint"]
    store = Store(tmp_path)
    for one in pipeline.closure([stage.label])[:-1]:
        (tmp_path / one.kind).mkdir(exist_ok=True)
        (tmp_path / one.kind / f"{one.name}-{one.key[:12]}").symlink_to(lineage.run.artifacts[one.label].folder)
    made = run([stage], store)[stage.label]
    assert contents(made) == contents(lineage.run.artifacts[stage.label])


def contents(artifact: Artifact) -> dict[str, bytes]:
    """Every file of an artifact, without what depends on the clock."""
    files = [path for path in artifact.folder.rglob("*") if path.is_file() and path.name != "manifest.json"]
    return {str(path.relative_to(artifact.folder)): path.read_bytes() for path in files}


@pytest.mark.slow
def test_every_file_is_the_same_when_two_workers_share_the_work(lineage, tmp_path):
    with shards(2) as workers:
        shared = run(stages_of(load_study(str(lineage.path))), Store(tmp_path), shards=workers)
    assert {"sae", "match", "acts", "sweep"} <= {label.partition("/")[0] for label in shared}
    for label, artifact in shared.items():
        assert contents(artifact) == contents(lineage.run.artifacts[label]), label


@pytest.mark.slow
def test_a_run_that_is_killed_ends_with_the_same_files_when_it_is_started_again(tmp_path):
    """The undisturbed run is made in another folder with the same study."""
    folders = tmp_path / "a", tmp_path / "b"
    for folder in folders:
        tiny.toml(tiny.study_values(folder), folder / "s.toml")
    kill_during("sae/joint", folders[1])
    made = [run(stages_of(load_study(str(f / "s.toml"))), Store(f / "runs/s")) for f in folders]
    for label, artifact in made[0].items():
        assert contents(made[1][label]) == contents(artifact), label


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
