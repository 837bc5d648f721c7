"""Explanations on demand: features of a study that has been run, by statistics or by a language model behind HTTP."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from heredity.analyses.explain_on_demand import Ask, Which, estimate, explain
from heredity.analyses.inspector import Inspector
from heredity.analyses.query import named
from heredity.analyses.sample import MIN_FIRINGS

from explain.server import Reply, chat, data_of, serving  # isort: skip - a folder of the tests


def reader(path: str, body: dict[str, Any]) -> Any:
    """A model that says which token is the strongest, and predicts by that one token."""
    prompt, data = body["messages"][0]["content"], data_of(body)
    if '"explanation": "..."' in prompt:
        levels: Counter[str] = Counter()
        for token, level in (active for excerpt in data for active in excerpt["active"]):
            levels[token] += level
        return chat(json.dumps({"explanation": f"on [{levels.most_common(1)[0][0]}]"}))
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
def often(lineage) -> list[int]:
    """Features of base that fire often enough."""
    counts = lineage.run.acts("base").firings()
    return np.flatnonzero(counts >= 3 * MIN_FIRINGS).tolist()


@pytest.fixture(scope="module")
def few(often) -> dict[str, list[int]]:
    return {"base": often[:4], "sums": []}


def rows_in(folder: Path) -> list[dict[str, Any]]:
    return pq.read_table(folder / "explanations.parquet").to_pylist()


def test_statistics_explain_the_studys_own_choice(lineage, tmp_path):
    result = explain(lineage.run, "study", Ask(), tmp_path)
    rows = rows_in(tmp_path)
    assert result["judge"] == "offline" and result["ledger"] is None and result["complete"]
    assert len(rows) == result["features"] + result["too_rare"] > 0
    assert {row["model"] for row in rows} <= {"base", "sums", "stories", "both"}
    assert all(row["by"] == "offline" and row["cost"] == 0 for row in rows)
    run = {(row["model"], row["feature"]): row for row in lineage.rows("explanations", instrument="parent")}
    pairs = [(row, run[row["model"], row["feature"]]) for row in rows]
    first = [pair for pair in pairs if all(row["inherited_simulation"] is None for row in pair)]
    assert first and all(one == other for one, other in first), "the run explained them in the same words"
    with pytest.raises(ValueError, match="statistics cost nothing"):
        estimate(lineage.run, "study", Ask(), tmp_path)


@pytest.mark.parametrize("which", ["persisting", "all"])
def test_a_wider_choice_holds_the_features_that_fire_often_enough(lineage, tmp_path, which: Which):
    result = explain(lineage.run, which, Ask(scores=("simulation",)), tmp_path)
    rows = rows_in(tmp_path)
    counts = {name: lineage.run.acts(name).firings() for name in ("base", "sums", "stories", "both")}
    assert rows and all(counts[row["model"]][row["feature"]] >= MIN_FIRINGS for row in rows)
    assert which == "persisting" or len(rows) == sum((own >= MIN_FIRINGS).sum() for own in counts.values())
    assert result["features"] + result["too_rare"] == len(rows)


def test_a_language_model_is_asked_once_and_paid_once(lineage, few, tmp_path):
    with serving(reader) as server:
        ask = Ask(model="m", base_url=server.url, prices=(1, 2))
        most = estimate(lineage.run, few, ask, tmp_path)
        assert not server.bodies, "an estimate asks nothing"
        first = explain(lineage.run, few, ask, tmp_path)
        count = len(server.bodies)
        again = explain(lineage.run, few, ask, tmp_path)
        assert len(server.bodies) == count and again["ledger"]["cached"] >= count
        assert set(server.paid.values()) == {1}
    assert first["ledger"]["requests"] == count <= most["at_most"]["requests"]
    assert first["ledger"]["cost"] == pytest.approx(count * (100 * 1 + 10 * 2) / 1e6)
    assert first["complete"] and first["failures"] == {} and first["median_simulation"] > 0
    assert sum(row["cost"] for row in rows_in(tmp_path)) == pytest.approx(first["ledger"]["cost"])
    assert again["median_simulation"] == first["median_simulation"]
    assert json.loads((tmp_path / "explained.json").read_text())["judge"] == "m"


def test_a_budget_ends_it_and_a_higher_one_goes_on(lineage, few, tmp_path):
    with serving(reader) as server:
        ask = Ask(model="m", base_url=server.url, scores=("simulation",))
        part = explain(lineage.run, few, ask._replace(max_requests=3), tmp_path)
        assert len(server.bodies) == 3 and not part["complete"] and part["failures"]["budget"] > 0
        rest = explain(lineage.run, few, ask, tmp_path)
        assert rest["complete"] and rest["failures"] == {} and set(server.paid.values()) == {1}
    assert all(row["detection_n"] == row["fuzzing_n"] == row["intruder_n"] == 0 for row in rows_in(tmp_path))
    with sqlite3.connect(tmp_path / "ledger.sqlite") as ledger:
        assert {kind for (kind,) in ledger.execute("SELECT DISTINCT question FROM answers")} == {"explain", "simulate"}


def test_faults_of_an_endpoint_are_reported_and_lose_nothing(lineage, often, tmp_path):
    """A refused key, half a character, usage that is none, null log-probabilities: no traceback, nothing paid twice."""
    two = {"base": often[:2]}
    with serving(lambda path, body: Reply({"error": {"message": "bad key"}}, 401)) as server:
        result = explain(lineage.run, two, Ask(model="k", base_url=server.url), tmp_path / "k")
        assert not result["complete"] and "HTTP 401" in result["ledger"]["reasons"]["refused"]

    def odd(path: str, body: dict[str, Any]) -> Any:
        reply = reader(path, body)
        content = reply.body["choices"][0]["message"]
        reply.body["choices"][0]["logprobs"] = {"content": [{"token": "1", "top_logprobs": None, "logprob": None}]}
        if '"explanation": "..."' in body["messages"][0]["content"]:
            content["content"] = '{"explanation": "half \\ud800 of it"}'
        reply.body["usage"] = "many" if len(body["messages"][0]["content"]) % 2 else {"prompt_tokens": 10**30}
        return reply

    with serving(odd) as server:
        ask = Ask(model="odd", base_url=server.url, scores=("simulation",))
        first, again = (explain(lineage.run, two, ask, None) for _ in range(2))
        assert first["complete"] and set(server.paid.values()) == {1} and again["ledger"]["cached"] > 0
    rows = rows_in(lineage.run.folder / "explanations" / "odd")
    assert [row["description"] for row in rows] == ["half ? of it"] * 2


def test_what_was_asked_is_read_back_with_what_it_predicts(lineage, often):
    run, feature = lineage.run, often[0]
    folder, inspector = run.folder / "explanations" / "audited", Inspector(run)

    def sometimes(path: str, body: dict[str, Any]) -> Any:
        reply = reader(path, body)
        return chat("no") if "marks" in str(data_of(body)) else reply

    try:
        with serving(sometimes) as server:
            explain(run, {"base": [feature]}, Ask(model="audited", base_url=server.url, prices=(1, 2)), None)
            count = len(server.bodies)
            place = [one["folder"] for one in inspector.said("base", feature)].index("audited")
            said, asked = inspector.said("base", feature)[place], inspector.asked("base", feature)[place]
            assert len(server.bodies) == count, "nothing is asked anew"
        (row,) = rows_in(folder)
        assert (said["description"], said["by"]) == (row["description"], "audited")
        assert said["simulation"] == row["simulation"] and said["fuzzing"] is None, "no score without an answer"
        assert inspector.shown("base", feature)["said"] == inspector.said("base", feature)
        assert len(asked["requests"]) == count and asked["others"] == 0
        assert (
            sum(one["cost"] for one in asked["requests"]) == pytest.approx(row["cost"]) == pytest.approx(said["cost"])
        )
        kinds = Counter(one["question"] for one in asked["requests"])
        assert kinds["explain"] == 1 and {"simulate", "detect", "fuzz", "intruder"} < set(kinds)
        assert {one["question"] for one in asked["requests"] if one["failure"]} == {"fuzz"}
        token = row["description"][4:-1]
        highest = run.acts("base").of(feature)[1].max()
        for one in asked["audit"]:
            assert [value > 0 for value in one["predicted"]] == [own == token for own in one["tokens"]]
            assert max(one["values"]) <= highest * (1 + 1e-3)
        assert asked["audit"] and any(max(one["values"]) > 0.9 * highest for one in asked["audit"])
        # the same number in other SAEs is another feature, of which nothing was said; nor was of other features
        assert Inspector(run, "independent").said("base", feature) == []
        assert "audited" not in [one["folder"] for one in inspector.said("base", often[3])]
        # what a second run asked about other SAEs, or about words given up, is counted and not shown as about these
        with sqlite3.connect(folder / "ledger.sqlite") as ledger:
            ledger.execute("UPDATE answers SET prompt = prompt || ' ' WHERE question = 'intruder'")
        again = inspector.asked("base", feature)[place]
        assert again["others"] == kinds["intruder"] and len(again["requests"]) == count - kinds["intruder"]
        (folder / "explanations.parquet").write_text("no table")
        with pytest.raises(ValueError, match=r"explanations.parquet: cannot be read"):
            inspector.said("base", feature)
    finally:
        shutil.rmtree(folder)


def test_a_later_call_adds_to_the_table(lineage, often, tmp_path):
    first, second, third = often[:3]
    explain(lineage.run, {"base": [first, second]}, Ask(), tmp_path)
    explain(lineage.run, {"base": [second, third]}, Ask(), tmp_path)
    assert sorted(row["feature"] for row in rows_in(tmp_path)) == [first, second, third]


def test_features_are_named_by_model_and_number():
    assert named("base/1,one/2, base/3, base/1") == {"base": [1, 3], "one": [2]}
    for wrong in ("base", "", "base/-1", "/1"):
        with pytest.raises(ValueError, match="must be a model, a slash and a number, such as base/12"):
            named(wrong)


@pytest.mark.parametrize(
    ("feature", "ask", "message"),
    [
        ("nowhere/1", {}, "no model of study"),
        ("base/99999", {}, "counted from 0"),
        ("base/1", {"mode": "echo"}, "--mode: means nothing"),
        ("base/1", {"max_cost": 1}, "--max-cost: means nothing"),
        ("base/1", {"base_url": "http://127.0.0.1:1/v1"}, "--base-url: means nothing"),
        ("base/1", {"prices": (1, 0)}, "--price-in: means nothing"),
        ("base/1", {"model": "m", "mode": "loud"}, "--mode loud: must be one of"),
        ("base/1", {"model": "m", "local": "m"}, "exclude each other"),
        ("base/1", {"model": "m", "base_url": "http://127.0.0.1:1/v1", "max_cost": 1}, "prices of 0"),
        ("base/1", {"scores": ("beauty",)}, "--scores beauty"),
        ("base/1", {"model": "m", "base_url": "nowhere"}, "is no http address"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(lineage, tmp_path, feature, ask, message):
    with pytest.raises(ValueError, match=message):
        explain(lineage.run, named(feature), Ask(**ask), tmp_path)
