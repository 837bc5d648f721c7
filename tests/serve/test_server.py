"""The server answers what the run holds, to its own page alone, whatever strings are in it or are sent to it."""

from __future__ import annotations

import io
import json
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from heredity.analyses import Pipeline
from heredity.analyses import notes as kept
from heredity.analyses.explain_on_demand import Ask, explain
from heredity.analyses.feature_columns import feature_columns
from heredity.analyses.inspector import Inspector
from heredity.analyses.raters import RATERS, compared
from heredity.errors import install
from heredity.neuronpedia import export_neuronpedia
from heredity.results import Run, open
from heredity.serve import database
from heredity.serve.database import Asked, Database
from heredity.show import page
from heredity.study import Study
from show.runs import EVIL, data_of, run_of
from tiny import command, study_values

from explain.server import Reply, chat, knowing, serving  # isort: skip - a folder of the tests
from explain.server import data_of as data_of_prompt  # isort: skip

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from fastapi.testclient import TestClient  # noqa: E402

from heredity.serve.app import create_app  # noqa: E402
from heredity.serve.explorer import Busy, Explorer  # noqa: E402
from heredity.serve.guard import hosts_of  # noqa: E402

HOSTILE = [
    "</script><script>alert(1)</script>",
    "\u202egnirts",
    "zero\u200bwidth",
    "\x00",
    "<0xE7>",
    " \n\t",
    "🦆",
    "'; --",
]


@pytest.fixture(scope="module")
def run(lineage, tmp_path_factory) -> Run:
    """A copy of the shared run that may be written beside."""
    folder = tmp_path_factory.mktemp("served") / "s"
    shutil.copytree(lineage.run.folder, folder)
    return open(folder)


@pytest.fixture(scope="module")
def made(run) -> Path:
    """The database of the run."""
    path = run.folder / database.FILE
    database.build(run, path, database.key_of(run.pipeline, run.folder), lambda done, total: None)
    return path


@pytest.fixture(scope="module")
def explorer(run, made) -> Explorer:
    return Explorer(lambda: run, made)


@pytest.fixture
def client(explorer) -> TestClient:
    """Asks an application of its own, so that no test spends another's rate."""
    return TestClient(create_app(explorer, hosts_of("127.0.0.1")), base_url="http://127.0.0.1:8377")


def get(client: TestClient, path: str, status: int = 200, **values: Any) -> Any:
    answer = client.get(path, params=values)
    assert answer.status_code == status, answer.text
    return answer.json()


def test_the_page_is_that_of_the_report_and_may_ask_its_own_server_alone(client, run):
    answer = client.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "frame-ancestors 'none'" in policy
    assert "unsafe-eval" not in policy and re.search(r"script-src 'sha256-[^']+'(;|$)", policy)
    served, written = data_of(answer.text), data_of(page.render(page.page_data(run)))
    assert {**served, "created": 0, "served": False} == {**written, "created": 0} and served["served"]


def test_all_features_come_in_columns_that_agree_with_the_run(client, run):
    columns = get(client, "/api/columns")
    assert columns == json.loads(json.dumps(feature_columns(Inspector(run))))
    assert get(client, "/api/columns", instrument="nowhere") is None
    for name, model in columns["models"].items():
        assert model["firings"] == run.acts(name).firings().tolist()
    matches = {edge["edge"]: run.matches(edge["edge"]) for edge in columns["edges"]}
    for edge in columns["edges"]:
        for end in ("parent", "child"):
            r, held = getattr(matches[edge["edge"]], f"{end}_r")[:, 0], np.array(edge["ends"][end]["r"])
            for threshold in (0.3, 0.5, 0.8):
                np.testing.assert_array_equal(held > threshold * columns["unit"] + 1e-6, np.nan_to_num(r) > threshold)
    evidence = [r for r in run.table("evidence").to_pylist() if r["instrument"] == run.study.instrument]
    held = {edge["edge"]: edge["ends"] for edge in columns["edges"]}
    for row in (row for row in evidence if row["text"] == "common"):
        code = held[row["edge"]][row["end"]]["verdict"][row["feature"]]
        assert columns["verdicts"][code] == row["verdict"]
    flow = [r for r in run.table("flow").to_pylist() if r["instrument"] == run.study.instrument]
    for rule, chosen in (("paper", "r"), *((r["rule"], "own") for r in flow if r["rule"] != "paper")):
        (count,) = (r["features"] for r in flow if (r["rule"], r["origin"]) == (rule, "from_base"))
        chains = [np.array(one[chosen]) for one in columns["chains"]["both"].values()]
        least = 0.8 * columns["unit"] + 1e-6 if rule == "paper" else 0
        assert np.any([one > least for one in chains], axis=0).sum() == count


def test_an_explanation_is_shown_against_the_activations(client, run):
    rows = [r for r in run.table("explanations").to_pylist() if r["instrument"] == run.study.instrument]
    row = next(row for row in rows if row["description"] and row["simulation"] is not None)
    audit = get(client, "/api/explanation", id=f"{row['model']}/{row['feature']}")["audit"]
    assert audit and all(len(one["tokens"]) == len(one["values"]) == len(one["predicted"]) for one in audit)
    highest = run.acts(row["model"]).of(row["feature"])[1].max()
    assert max(max(one["values"]) for one in audit) <= highest * (1 + 1e-3)


def test_a_database_of_others_has_no_say_in_what_its_page_may_do(run, made, tmp_path):
    path = tmp_path / database.FILE
    shutil.copyfile(made, path)
    with sqlite3.connect(path) as file:
        file.execute("INSERT INTO meta VALUES ('policy', 'default-src *')")
        file.execute("UPDATE meta SET value = '<script>alert(1)</script>' WHERE name = 'page'")
    asked = TestClient(create_app(Explorer(lambda: run, path), hosts_of("127.0.0.1")), base_url="http://127.0.0.1:8377")
    policy = asked.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy and "default-src *" not in policy
    assert policy.startswith(page.served(page.page_data(run))[1])


def test_a_feature_is_what_show_says_of_it(client, run):
    expected = Inspector(run).show("sums", 5)
    shown = dict[str, Any]()
    for part in ("feature", "explanation", "logits"):
        shown |= get(client, f"/api/{part}", id="sums/5")
    assert shown == json.loads(json.dumps(expected))
    other = get(client, "/api/feature", id="sums/5", instrument="independent")
    assert other["instrument"] == "independent" and other["top"] != shown["top"]
    assert all(one["reason"] for one in shown["verdicts"]) and shown["verdicts"]


def test_a_family_is_the_feature_in_every_model_with_what_correlates_and_what_came_next(client, run):
    shown, found = get(client, "/api/feature", id="base/5"), get(client, "/api/family", id="base/5")
    assert found["members"] == shown["family"]
    acts = {one["model"]: run.acts(one["model"]) for one in found["members"]}
    dense = {}
    for one in found["members"]:
        dense[one["model"]] = np.zeros(acts[one["model"]].tokens)
        rows, values = acts[one["model"]].of(one["feature"])
        dense[one["model"]][rows] = values
    assert len(found["pairs"]) == len(dense) * (len(dense) - 1) / 2
    for pair in found["pairs"]:
        r = np.corrcoef(dense[pair["model_a"]], dense[pair["model_b"]])[0, 1]
        assert pair["r"] == pytest.approx(r) if np.isfinite(r) else pair["r"] is None
    members = {one["model"]: one for one in found["members"]}
    for row in found["near"]:
        assert members[row["model"]]["feature"] == row["feature"] and {row["model"], row["other"]} == set(
            row["edge"].split("->")
        )
        r = [one["r"] for one in row["matches"]]
        assert r == sorted(r, reverse=True)
    first = next(row for row in found["near"] if row["model"] == "base")
    via = next(one for one in shown["matches"] if one["edge"] == first["edge"])
    assert first["matches"][0] == {"feature": via["feature"], "r": via["r"]}
    other = get(client, "/api/family", id="base/5", instrument="independent")
    assert other["members"] != found["members"]
    assert "128 features" in get(client, "/api/family", 404, id="base/128")["error"]


def test_what_models_were_asked_and_how_people_agree_is_answered(client, run, monkeypatch):
    key, feature = "sk-secret-0123456789", int(run.acts("base").firings().argmax())
    monkeypatch.setenv("OPENAI_API_KEY", key)

    def leaking(path: str, body: dict[str, Any]) -> Reply:
        return chat(f"{key} is the key") if "marks" in str(data_of_prompt(body)) else knowing(path, body)

    with serving(leaking) as server:
        explain(run, {"base": [feature]}, Ask(model="m", base_url=server.url), None)
    answer = client.get("/api/asked", params={"id": f"base/{feature}"})
    (asked,) = answer.json()
    assert [asked] == json.loads(json.dumps(Inspector(run).asked("base", feature)))
    assert {one["question"] for one in asked["requests"]} >= {"explain", "simulate", "detect", "fuzz"} and asked[
        "audit"
    ]
    (told,) = (one for one in asked["requests"] if one["failure"])
    assert told["answer"] == "(key) is the key" and key not in answer.text, "which the ledger does not hold either"
    assert all(header["authorization"] == f"Bearer {key}" for header in server.headers)
    assert get(client, "/api/feature", id=f"base/{feature}")["said"][0]["by"] == "m"
    others = get(client, "/api/asked", id=f"base/{(feature + 1) % 64}")  # nobody, or by other tests
    assert all(one["provider"] not in server.url for asked in others for one in asked["requests"])
    assert "128 features" in get(client, "/api/asked", 404, id="base/128")["error"]
    (run.folder / "explanations" / "m" / "ledger.sqlite").write_bytes(b"x" * 4096)
    assert "ledger.sqlite: cannot be read" in get(client, "/api/asked", 404, id=f"base/{feature}")["error"]
    assert get(client, "/api/raters") == {"table": page.table_data(RATERS, []), "apart": []}
    for by, tag in (("ada", "code"), ("bob", "prose")):
        kept.write_note(run, run.item(), "base", 9, None, [tag], by)
    found = get(client, "/api/raters")
    assert found["table"]["values"]["tag"] == ["code", "prose"] and found["apart"] == compared(run).apart
    shutil.rmtree(run.folder / "notes")
    shutil.rmtree(run.folder / "explanations" / "m")


def test_a_table_comes_whole_as_parquet(client, run, explorer):
    for name in ("edges", "matches"):  # one of the page, and a large one
        answer = client.get(f"/api/table/{name}.parquet")
        assert answer.status_code == 200 and f'"{name}.parquet"' in answer.headers["content-disposition"]
        assert answer.headers["content-type"] == "application/vnd.apache.parquet"
        table = pq.read_table(io.BytesIO(answer.content))
        assert table.equals(run.table(name)) and table.schema.metadata
    assert get(client, "/api/table/nothing.parquet", 404)["error"] == "the run has no table nothing"
    assert get(client, "/api/table/Edges.parquet", 422)["error"].startswith("name: String should match")
    for path in ("/api/table/edges.csv", "/api/table/../edges.parquet", "/api/table/..%2fedges.parquet"):
        assert client.get(path).status_code in (404, 422)
    with explorer._writing:
        assert "another table is being written" in get(client, "/api/table/edges.parquet", 503)["error"]


def test_a_damaged_table_is_an_error_that_names_its_file(run, made, tmp_path):
    shutil.copytree(run.folder, tmp_path / "s")
    copy = open(tmp_path / "s")
    file = next((copy.folder / "match").glob("*/matches.parquet"))
    file.write_bytes(b"PAR1")
    client = TestClient(create_app(Explorer(lambda: copy, made), hosts_of("127.0.0.1")), base_url="http://127.0.0.1")
    error = get(client, "/api/table/matches.parquet", 409)["error"]
    assert str(file) in error and "run again" in error


def test_the_table_holds_every_feature_and_filters_sorts_and_pages(client, run):
    def table(**values: Any) -> Any:
        return get(client, "/api/features", **values)

    study = run.study
    whole = table(size=100)
    assert whole["total"] == 4 * 128 and len(whole["rows"]) == 100
    pages = [row for start in range(0, 512, 100) for row in table(start=start, size=100)["rows"]]
    assert len({(row["model"], row["feature"]) for row in pages}) == 512
    density = [row["density"] for row in pages]
    assert density == sorted(density, reverse=True)
    firings = run.acts("sums").firings()
    for row in table(model="sums", size=100)["rows"]:
        assert row["firings"] == firings[row["feature"]]
        assert row["max"] == pytest.approx(float(run.acts("sums").of(row["feature"])[1].max(initial=0)))
    rows = [row for row in run.table("evidence").to_pylist() if row["instrument"] == study.instrument]
    wanted = {
        r["feature"]
        for r in rows
        if (r["edge"], r["text"], r["end"]) == ("base->sums", "common", "parent") and r["verdict"] == "kept"
    }
    found = table(model="base", verdict="kept", edge="base->sums", size=100)["rows"]
    assert {row["feature"] for row in found} == wanted and wanted
    assert all({"edge": "base->sums", "model": "sums", "verdict": "kept"} in row["verdicts"] for row in found)
    classes = get(client, "/api/choices")["classes"]
    assert sum(table(**{"class": name})["total"] for name in classes) == 512
    low = table(least_density=0.01, most_density=0.1, sort="density", down=False)
    assert all(0.01 <= row["density"] <= 0.1 for row in low["rows"]) and low["total"] < 512
    scored = table(least_score=0.2, sort="simulation")["rows"]
    assert scored and all(row["simulation"] >= 0.2 for row in scored)
    assert table(instrument="parent")["total"] == 512 and table(instrument="nowhere")["total"] == 0


def test_features_are_found_by_exact_tokens_and_by_words(client, run):
    inspector = Inspector(run)
    found = get(client, "/api/features", token=" =", sort="share")["rows"]
    shares = [row["share"] for row in found]
    assert found and shares == sorted(shares, reverse=True)
    for row in found[:5]:
        tokens = {one["token"]: one["share"] for one in inspector.shown(row["model"], row["feature"])["tokens"]}
        assert row["share"] == pytest.approx(tokens[" ="])
    assert get(client, "/api/features", token="=")["total"] != get(client, "/api/features", token=" =")["total"]
    described = next(
        row
        for row in run.table("explanations").to_pylist()
        if row["description"] and row["instrument"] == run.study.instrument
    )
    words = re.findall(r"\w{3,}", described["description"])[:2]
    rows = get(client, "/api/features", words=" ".join(words), size=100)["rows"]
    assert (described["model"], described["feature"]) in {(row["model"], row["feature"]) for row in rows}
    assert get(client, "/api/features", words=words[0][:3])["total"] >= len(rows), "the last word is a beginning"
    assert get(client, "/api/features", words="zzzz")["total"] == 0
    for syntax in ('"', "NEAR(a b)", "a AND", "description:x", "*", "^", "-", "(", "'; DROP TABLE feature; --"):
        get(client, "/api/features", words=syntax)


def test_a_text_is_read_by_every_model_family_by_family(client, run):
    answer = client.post("/api/try", json={"text": "3 plus 4 = 7;"})
    assert answer.status_code == 200, answer.text
    tried = answer.json()
    assert "".join(tried["tokens"]) == "3 plus 4 = 7;" and not tried["cut"]
    families = tried["sites"][run.study.site]["families"]
    assert {member["model"] for one in families for member in one["members"]} == set(run.study.order)
    assert max(len(one["members"]) for one in families) > 1 and any(one["verdicts"] for one in families)
    sae, inspector = run.sae("sums"), Inspector(run)
    ids = np.array([run.tokenizer().encode("3 plus 4 = 7;", add_special_tokens=False)])
    from heredity.lm.activations import marked

    ((x, _),) = marked(inspector.reader("sums").model, run.study.site, ids)
    dense = sae.encode(x).numpy()
    for member in (m for one in families for m in one["members"] if m["model"] == "sums"):
        np.testing.assert_allclose(member["values"], dense[:, member["feature"]], atol=1e-4)
    long = client.post("/api/try", json={"text": "3 plus 4 = 7; " * 100}).json()
    assert long["cut"] and len(long["tokens"]) == Inspector(run).sample.ids.shape[1]


@pytest.mark.parametrize("text", HOSTILE)
def test_any_text_can_be_tried_and_looked_for(client, text):
    answer = client.post("/api/try", json={"text": text})
    assert answer.status_code == 200, answer.text
    assert not re.search(rb"[<>&\x80-\xff]", answer.content) and answer.headers["content-type"] == "application/json"
    assert "".join(answer.json()["tokens"]).replace("<|endoftext|>", "") in (text, text[:16])
    get(client, "/api/features", token=text)
    get(client, "/api/features", words=text)


def test_what_cannot_be_tried_is_refused(client, explorer):
    for body, status in (
        ({"text": ""}, 422),
        ({"text": "x" * 2_001}, 422),
        ({}, 422),
        ({"text": 5}, 422),
        ({"text": "half \ud83d"}, 422),
        ({"text": "x", "instrument": "nowhere"}, 404),
    ):
        answer = client.post("/api/try", content=json.dumps(body), headers={"content-type": "application/json"})
        assert answer.status_code == status and answer.json()["error"], body
    assert client.post("/api/try", content="{", headers={"content-type": "application/json"}).status_code == 422
    assert client.post("/api/try", data={"text": "x"}).status_code == 415
    assert client.post("/api/try", json={"text": "x" * 20_000}).status_code == 413


def test_one_text_at_a_time(client, explorer, monkeypatch):
    began, go_on = threading.Event(), threading.Event()

    def slow(inspectors: Any, text: str) -> Any:
        began.set()
        assert go_on.wait(30)
        return {"text": text}

    monkeypatch.setattr("heredity.serve.explorer.tried", slow)
    first = threading.Thread(target=lambda: explorer.tried("one", None))
    first.start()
    assert began.wait(30)
    answer = client.post("/api/try", json={"text": "two"})
    assert answer.status_code == 503 and "try again" in answer.json()["error"] and answer.headers["retry-after"] == "2"
    with pytest.raises(Busy):
        explorer.tried("three", None)
    go_on.set()
    first.join()
    assert client.post("/api/try", json={"text": "four"}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/run.json",
        "/../run.json",
        "/..%2frun.json",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/api",
        "/docs",
        "/openapi.json",
        "/explorer.sqlite",
        "/api/feature/../../run.json",
        "/%00",
    ],
)
def test_no_path_is_a_file(client, path):
    answer = client.get(path)
    assert answer.status_code == 404 and answer.json() == {"error": "Not Found"}


@pytest.mark.parametrize(
    ("id_", "status", "part"),
    [
        ("nowhere/1", 404, "no model of study s"),
        ("base/99999", 404, "its SAE has 128 features"),
        ("base/" + "9" * 30, 422, "so high a number"),
        ("base", 404, "must be a model, a slash and a number"),
        ("base/1,base/2", 404, "names 2 features"),
        ("../../run.json/1", 404, "no model of study s"),
        ("<script>/1", 404, "no model of study s"),
        ("x" * 300, 422, "at most 200 characters"),
    ],
)
def test_what_is_no_feature_is_refused_in_words(client, id_, status, part):
    answer = client.get("/api/feature", params={"id": id_})
    assert answer.status_code == status and part in answer.json()["error"]
    assert "<" not in answer.text


def test_values_that_are_none_of_the_table_are_refused(client):
    for values in (
        {"sort": "id; DROP TABLE"},
        {"size": 1000},
        {"start": -1},
        {"least_density": "x"},
        {"token": "x" * 201},
    ):
        assert get(client, "/api/features", 422, **values)["error"]
    assert "share goes with a token" in get(client, "/api/features", 404, sort="share")["error"]


def test_another_host_is_refused(client):
    answer = client.get("/", headers={"host": "evil.example"})
    assert answer.status_code == 421 and "host name" in answer.json()["error"]


def test_notes_are_shown(client, run):
    kept.write_note(run, run.item(), "base", 7, HOSTILE[0], ["code"], "ada")
    assert get(client, "/api/feature", id="base/7")["notes"][0]["text"] == HOSTILE[0]
    (row,) = get(client, "/api/notes")
    assert row["tags"] == "code" and row["current"]


def test_the_database_is_made_again_when_an_artifact_changes_and_never_half(run, made, tmp_path, monkeypatch):
    key = database.key_of(run.pipeline, run.folder)
    assert database.is_current(made, key) and not database.is_current(made, "another")
    part = tmp_path / "s"
    shutil.copytree(run.folder, part, ignore=shutil.ignore_patterns("explain", "classes", database.FILE))
    less = open(part)
    assert database.key_of(less.pipeline, part) != key == database.key_of(Pipeline(run.study), run.folder)
    path = part / database.FILE

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(database, "_add_tables", killed)
        with pytest.raises(KeyboardInterrupt):
            database.build(less, path, "key", lambda done, total: None)
    assert not path.exists() and not list(part.glob(".explorer*"))
    database.build(less, path, "key", lambda done, total: None)
    assert database.is_current(path, "key")
    rows = Database(path).features(Asked(*less.item().values()))
    assert rows["total"] == 512 and rows["rows"][0]["class"] is None, "what is not done is not there"
    with pytest.raises(OSError, match=r"nowhere.x: cannot be written .*; make room or mend its permissions"):
        database.build(less, part / "nowhere" / "x", "key", lambda done, total: None)
    path.write_bytes(path.read_bytes()[:5_000])
    assert not database.is_current(path, "key")


def test_strings_that_act_on_html_or_sql_come_back_as_they_are(tmp_path):
    """A page of hostile text, and a database whose tokens and explanations are hostile."""
    text_, policy = page.served(page.page_data(run_of(tmp_path / "run", EVIL)))
    assert text_.count("<script") == 2 and "connect-src 'self'" in policy
    path = tmp_path / "x.sqlite"
    with sqlite3.connect(path) as file:
        file.executescript(database._TABLES)
        for at, text in enumerate([*HOSTILE, EVIL]):
            row = (at, "joint", "x", "base", at, 1, 0.1, 1.0, text, text)
            names = "id, instrument, site, model, feature, firings, density, max, top_token, description"
            file.execute(f"INSERT INTO feature ({names}) VALUES (?,?,?,?,?,?,?,?,?,?)", row)
            file.execute("INSERT INTO token VALUES (?, ?, 0.5)", (text, at))
            file.execute("INSERT INTO words (rowid, description) VALUES (?, ?)", (at, text))
        meta = {"page": text_, "key": "", "place": '["joint", "x"]'}
        file.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
    none = SimpleNamespace(study=SimpleNamespace(name="none", instruments=(), followed=()))
    explorer = Explorer(lambda: none, path)  # pyright: ignore[reportArgumentType]
    client = TestClient(create_app(explorer, hosts_of("127.0.0.1")), base_url="http://127.0.0.1")
    assert client.get("/").text == text_
    for text in [*HOSTILE, EVIL]:
        answer = client.get("/api/features", params={"token": text})
        assert [row["description"] for row in answer.json()["rows"]] == [text]
        assert not re.search(rb"[<>&\x00-\x09\x80-\xff]", answer.content)


def test_a_study_of_stitches_alone_has_a_page_and_no_features(tmp_path):
    pair = {"stitch": {"pair": {"source": "base", "target": "other"}}, "hook_point": "blocks.0.hook_resid_post"}
    values = study_values(tmp_path / "text", case={}, **pair)
    base = values["model"]["base"]
    values["model"] = {"base": base, "other": {"train": base["train"] | {"d_model": 16}}}
    run, path = Run(Study.of(values, "pair", tmp_path / "text"), tmp_path), tmp_path / database.FILE
    assert not run.study.instruments
    database.build(run, path, "key", lambda done, total: None)
    client = TestClient(create_app(Explorer(lambda: run, path), hosts_of("127.0.0.1")), base_url="http://127.0.0.1")
    assert client.get("/").status_code == 200 and get(client, "/api/features")["total"] == 0
    assert "stitches alone" in get(client, "/api/feature", 404, id="base/1")["error"]
    answer = client.post("/api/try", json={"text": "x"})
    assert answer.status_code == 404 and "stitches alone" in answer.json()["error"]
    with pytest.raises(ValueError, match="stitches alone"):
        export_neuronpedia(run, tmp_path / "out", "x", lambda done, total: None)


def test_the_command_serves_until_it_is_interrupted(lineage, run):
    words = ["serve", str(lineage.path), "--runs", str(run.folder.parent), "--port", "0"]
    command_ = [sys.executable, "-m", "heredity", *words]
    with subprocess.Popen(command_, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = next(line for line in process.stderr if " at http://127.0.0.1:" in line)
        url = line.split(" at ")[1].split()[0]
        with urllib.request.urlopen(url) as answer:
            assert b"<title>s" in answer.read() and answer.headers["server"] is None
        with urllib.request.urlopen(f"{url}api/feature?id=base/1") as answer:
            assert json.load(answer)["feature"] == 1
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0


def test_the_command_refuses_what_it_cannot_serve(lineage, run, tmp_path, monkeypatch):
    with monkeypatch.context() as without:
        without.setattr("heredity.cli.serving._EXTRA", ("no_such_package",))
        refused = command("serve", lineage.path, "--runs", run.folder.parent, code=2).stderr
    assert f"heredity serve needs no_such_package; {install('serve')}" in " ".join(refused.split())
    refused = command("serve", lineage.path, "--runs", tmp_path, code=2).stderr
    assert "has not been run" in " ".join(refused.split())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = command("serve", lineage.path, "--runs", run.folder.parent, "--port", port, code=2).stderr
    assert f"127.0.0.1:{port}: cannot be listened on" in " ".join(refused.split())


def test_numpy_is_not_loaded_before_a_command_says_how_many_threads_it_has():
    code = "import sys, heredity.cli; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_server_starts_without_torch():
    modules = "heredity.cli.serving, heredity.serve.app, heredity.serve.database, heredity.serve.explorer"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
