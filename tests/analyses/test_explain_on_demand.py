"""`heredity explain`: features of a study that has been run, by statistics or by a language model behind HTTP."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import tiny
from heredity.analyses import stages_of
from heredity.analyses.explain_on_demand import named
from heredity.cli import app
from heredity.engine.stage import run
from heredity.engine.store import Store
from heredity.study import Study

from explain.server import Reply, chat, data_of, serving  # isort: skip - a folder of the tests


def reader(path: str, body: dict[str, Any]) -> Any:
    """A model that says which token is the strongest, and predicts by that one token."""
    prompt, data = body["messages"][0]["content"], data_of(body)
    if '"explanation": "..."' in prompt:
        levels: dict[str, int] = {}
        for excerpt in data:
            for token, level in excerpt["active"]:
                levels[token] = levels.get(token, 0) + level
        return chat(json.dumps({"explanation": f"on [{max(levels, key=lambda token: levels[token])}]"}))
    if '"intruder"' in prompt:
        return chat('{"intruder": 1}')
    token = data["explanation"][4:-1]
    if "excerpts" in data:
        return chat(json.dumps({str(at): 9 for excerpt in data["excerpts"] for at, own in excerpt if own == token}))
    if "marks" in data:
        start, end = data["marks"]
        return chat(json.dumps([int(f"{start}{token}{end}" in text) for _, text in data["texts"]]))
    return chat(json.dumps([int(token in text) for _, text in data["texts"]]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    values = tiny.study_values(folder)
    values["sae"] |= {"init": ["joint"], "tokens": 20_000}
    values["controls"] = {"seeds": 1, "newness": 0, "passes": 1, "resamples": 100}
    values["explain"] = {"features": 4}
    study = Study.of(values, "s", folder)
    (folder / "s.toml").write_text(study.config.to_toml())
    run(stages_of(study), Store(folder / "runs" / "s"), until="features")
    return folder


def explain(folder: Path, *more: str, code: int = 0) -> dict[str, Any]:
    arguments = ["explain", str(folder / "s.toml"), "--runs", str(folder / "runs"), "--json", *more]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == code, found.output
    return json.loads(found.stdout) if code < 2 else {"error": found.stderr}


def test_statistics_explain_what_is_asked_for(folder):
    found = explain(folder, "-o", str(folder / "offline"))
    rows = pq.read_table(folder / "offline" / "explanations.parquet").to_pylist()
    assert found["judge"] == "offline" and found["ledger"] is None and found["complete"]
    assert len(rows) == found["features"] + found["too_rare"] > 0
    assert {row["model"] for row in rows} <= {"base", "sums", "stories", "both"}
    assert all(row["by"] == "offline" and row["cost"] == 0 for row in rows)


def test_a_language_model_is_asked_once_and_paid_once(folder):
    out = folder / "asked"
    with serving(reader) as server:
        asked = ("--model", "m", "--base-url", server.url, "--price-in", "1", "--price-out", "2", "-o", str(out))
        most = explain(folder, *asked, "--estimate")
        assert not server.bodies, "an estimate asks nothing"
        first = explain(folder, *asked)
        count = len(server.bodies)
        again = explain(folder, *asked)
        assert len(server.bodies) == count and again["ledger"]["cached"] >= count
        assert set(server.paid.values()) == {1}
    assert first["ledger"]["requests"] == count <= most["at_most"]["requests"]
    assert first["ledger"]["cost"] == pytest.approx(count * (100 * 1 + 10 * 2) / 1e6)
    assert first["complete"] and first["failures"] == {} and first["median_simulation"] > 0
    rows = pq.read_table(out / "explanations.parquet").to_pylist()
    assert sum(row["cost"] for row in rows) == pytest.approx(first["ledger"]["cost"])
    assert again["median_simulation"] == first["median_simulation"]
    assert json.loads((out / "explained.json").read_text())["judge"] == "m"


def test_a_budget_ends_it_and_a_higher_one_goes_on(folder):
    out = folder / "budget"
    with serving(reader) as server:
        asked = ("--model", "m", "--base-url", server.url, "-o", str(out), "--scores", "simulation")
        few = explain(folder, *asked, "--max-requests", "3", code=1)
        assert len(server.bodies) == 3 and not few["complete"] and few["failures"]["budget"] > 0
        rest = explain(folder, *asked)
        assert rest["complete"] and rest["failures"] == {} and set(server.paid.values()) == {1}
    rows = pq.read_table(out / "explanations.parquet").to_pylist()
    assert all(row["detection_n"] == row["fuzzing_n"] == row["intruder_n"] == 0 for row in rows)
    with sqlite3.connect(out / "ledger.sqlite") as ledger:
        assert {kind for (kind,) in ledger.execute("SELECT DISTINCT question FROM answers")} == {"explain", "simulate"}


def test_faults_of_an_endpoint_are_told_and_lose_nothing(folder):
    """A refused key, half a character, usage that is none, null log-probabilities: no traceback, nothing paid twice."""
    one = ("--features", "base/30,base/83")
    with serving(lambda path, body: Reply({"error": {"message": "bad key"}}, 401)) as server:
        found = explain(folder, "--model", "k", "--base-url", server.url, *one, code=1)
        assert not found["complete"] and "HTTP 401" in found["ledger"]["reasons"]["refused"]

    def odd(path: str, body: dict[str, Any]) -> Any:
        reply = reader(path, body)
        content = reply.body["choices"][0]["message"]
        if '"explanation": "..."' in body["messages"][0]["content"]:
            content["content"] = '{"explanation": "half \\ud800 of it"}'
        reply.body["usage"] = "many" if len(body["messages"][0]["content"]) % 2 else {"prompt_tokens": 10**30}
        return reply

    with serving(odd) as server:
        asked = ("--model", "odd", "--base-url", server.url, *one, "--scores", "simulation")
        first, again = explain(folder, *asked), explain(folder, *asked)
        assert first["complete"] and set(server.paid.values()) == {1} and again["ledger"]["cached"] > 0
    rows = pq.read_table(folder / "runs" / "s" / "explanations" / "odd" / "explanations.parquet").to_pylist()
    assert [row["description"] for row in rows] == ["half ? of it"] * 2


def test_a_later_call_adds_to_the_table(folder):
    out = folder / "more"
    explain(folder, "--features", "base/0,base/30", "-o", str(out))
    explain(folder, "--features", "base/83,base/30", "-o", str(out))
    rows = pq.read_table(out / "explanations.parquet").to_pylist()
    assert sorted(row["feature"] for row in rows) == [0, 30, 83]


def test_features_by_name_and_what_cannot_be_asked(folder):
    assert named("base/1,one/2, base/3") == {"base": [1, 3], "one": [2]}
    found = explain(folder, "--features", "base/0,base/1", "-o", str(folder / "two"))
    assert found["features"] + found["too_rare"] == 2
    for arguments, part in (
        (("--features", "nowhere/1"), "no model of study"),
        (("--features", "base/99999"), "counted from 0"),
        (("--features", "base"), "such as base/12"),
        (("--features", ""), "such as base/12"),
        (("--mode", "echo"), "--mode: means nothing"),
        (("--max-cost", "1"), "--max-cost: means nothing"),
        (("--all", "--persisting"), "exclude each other"),
        (("--estimate",), "statistics cost nothing"),
        (("--base-url", "http://127.0.0.1:1/v1"), "--base-url: means nothing"),
        (("--model", "m", "--local", "m"), "exclude each other"),
        (("--model", "m", "--base-url", "http://127.0.0.1:1/v1", "--max-cost", "1"), "prices of 0"),
        (("--scores", "beauty"), "--scores beauty"),
        (("--model", "m", "--base-url", "nowhere"), "is no http address"),
    ):
        assert part in " ".join(explain(folder, *arguments, code=2)["error"].split()), arguments
