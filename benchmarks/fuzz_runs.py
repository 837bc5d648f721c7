"""Doors of the fuzzer that need a finished run: its server, its folder; and what workers send each other.

The run is a study of two models that takes seconds, made once by a process of its own, in the folder `KEPT` if there is
one.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import pickle
import random
import subprocess
import sys
from concurrent.futures.process import _ExceptionWithTraceback  # pyright: ignore[reportAttributeAccessIssue]
from pathlib import Path
from typing import Any

Files = dict[str, bytes]
SMALL = {"tokens": 2000, "batch_size": 8, "context_size": 32, "lr": 5e-3, "precision": "float32"}
STUDY: dict[str, Any] = {
    "seed": 1, "hook_point": "blocks.0.mlp.hook_post", "tokenizer": {"vocab_size": 300},
    "corpus": {"words": {"source": "local:words.jsonl"}, "sums": {"source": "local:sums.jsonl"}},
    "model": {"base": {"train": {"corpora": ["words"], "d_model": 16, "d_mlp": 16, "n_heads": 2, **SMALL}},
              "sums": {"parent": "base", "corpora": ["sums"], **SMALL}},
    "sae": {"activation": "topk", "k": 4, "expansion": 4, "tokens": 6000, "lr": 2e-3, "batch_blocks": 16,
            "context_size": 16, "evaluation_tokens": 500},
    "lineage": {"tokens": 2000}, "report": {"tokens": 2000, "features": 2, "contexts": 2},
    "evaluation": {"tokens": 500}, "controls": {"resamples": 100, "newness": 0}, "explain": {"features": 4},
    "case": {"plus": {"tokens": [" plus"]}},
}  # fmt: skip


KEPT: Path | None = None  # where the finished run stays for the next time


class Refused(Exception):
    """A request was answered with a refusal."""


class Broken(Exception):
    """What was promised does not hold."""


def finished(folder: Path) -> Path:
    """The folder of a finished run, made where it is not there yet."""
    import tomli_w

    kept = KEPT or folder
    run = kept / "runs" / "s"
    if not (run / "summary.json").exists():
        kept.mkdir(parents=True, exist_ok=True)
        texts = {
            "words": [f"the cat sat on the {('mat', 'tree', 'house')[n % 3]} number {n}. " * 9 for n in range(120)],
            "sums": ["\n".join(f"{x} plus {n % 9} = {x + n % 9};" for x in range(12)) + f" {n}" for n in range(120)],
        }
        for name, lines in texts.items():
            (kept / f"{name}.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
        (kept / "s.toml").write_text(tomli_w.dumps(STUDY))
        command = [sys.executable, "-m", "heredity", "run", "s.toml"]
        subprocess.run(command, cwd=kept, check=True, capture_output=True)
    return run


def _content(file: Path) -> bytes:
    """What a case left of its file, which it may have deleted."""
    return file.read_bytes() if file.exists() else b""


# -- the server -------------------------------------------------------------------------------------------------

_place: dict[str, Any] = {}  # of this process: the run, and the application that serves it
ASKED: list[dict[str, Any]] = [
    {"path": "/"}, {"path": "/api/choices", "query": {"instrument": "joint"}},
    {"path": "/api/features", "query": {"model": "base", "verdict": "kept", "edge": "base->sums", "class": "word",
     "least_density": "0.01", "most_score": "0.9", "token": " the", "words": "fires on", "sort": "share", "down": "0",
     "start": "0", "size": "50"}},
    {"path": "/api/features", "query": {"instrument": "joint", "site": "blocks.0.mlp.hook_post", "words": "a b"}},
    {"path": "/api/feature", "query": {"id": "base/5"}}, {"path": "/api/logits", "query": {"id": "sums/7"}},
    {"path": "/api/notes"}, {"path": "/api/features", "raw": "token=%20%3D&sort=share&size=3"},
    {"path": "/api/try", "method": "POST", "body": {"text": "3 plus 4 = 7;", "instrument": "joint"}},
    {"path": "/api/try", "method": "POST", "body": {"text": "the cat"}, "headers": [["content-length", "18"]]},
]  # fmt: skip
HOST = [["host", "127.0.0.1:8377"]]


def server_seeds(folder: Path) -> list[Files]:
    _place["run"] = finished(folder.parent / "finished")
    return [{"request.json": json.dumps({"headers": HOST, **one}).encode()} for one in ASKED]


def ask(folder: Path, rng: random.Random) -> object:
    """One request, of whatever form its file has, against the application itself."""
    try:
        asked = json.loads(_content(folder / "request.json"))
        assert isinstance(asked, dict)
    except (ValueError, RecursionError, AssertionError):
        asked = {"path": "/api/features", "raw": _content(folder / "request.json").decode("latin-1")}
    scope, body = _scope(asked, rng)
    status, headers, answer = _answered(scope, body, rng.random() < 0.05)
    if status is None:
        return None  # who asked has gone
    if status not in (200, 307, 400, 404, 405, 409, 413, 414, 415, 421, 422, 429, 503):
        raise Broken(f"status {status}")
    if b"content-security-policy" not in headers or b"default-src 'none'" not in headers[b"content-security-policy"]:
        raise Broken("an answer without a policy")
    if scope["path"] != "/" and scope["method"] != "HEAD":
        if status == 200 and (any(one in answer for one in b"<>&") or not answer.isascii()):
            raise Broken("markup in an answer")
        if answer:
            json.loads(answer)
    if b"Traceback" in answer and b"Traceback" not in json.dumps(asked).encode():
        raise Broken("a traceback in an answer")
    if status >= 400:
        raise Refused
    return status


def _scope(asked: dict[str, Any], rng: random.Random) -> tuple[dict[str, Any], bytes]:
    """An ASGI scope and a body as a server makes them of a request."""
    from urllib.parse import unquote, urlencode

    def text(value: Any) -> str:
        return value if isinstance(value, str) else json.dumps(value)

    path, query, body = text(asked.get("path", "/")), asked.get("query", {}), asked.get("body")
    content = text(body).encode("utf-8", "surrogatepass") if body is not None else b""
    raw = asked.get("raw")
    if raw is None:
        pairs = query.items() if isinstance(query, dict) else [("id", query)]
        raw = urlencode([(text(name), text(value)) for name, value in pairs], errors="surrogatepass")
    headers = []
    for one in asked.get("headers") if isinstance(asked.get("headers"), list) else ():
        name, value = (one + ["", ""])[:2] if isinstance(one, list) else (one, "")
        headers.append((text(name).lower().encode("utf-8", "surrogatepass"), text(value).encode("utf-8", "replace")))
    if rng.random() < 0.9:  # else next to no request would come further
        headers = [*((name, value) for name, value in headers if name != b"host"), (b"host", b"127.0.0.1:8377")]
    named = {name for name, _ in headers}
    if content and rng.random() < 0.9:
        headers += [(b"content-type", b"application/json")] * (b"content-type" not in named)
        headers += [(b"content-length", str(len(content)).encode())] * (b"content-length" not in named)
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "root_path": ""}
    scope |= {"method": text(asked.get("method", "GET")), "path": unquote(path, errors="replace")}
    scope |= {"raw_path": path.encode("utf-8", "surrogatepass"), "headers": headers, "client": ("127.0.0.1", 5)}
    return scope | {"query_string": text(raw).encode("utf-8", "surrogatepass"), "server": ("127.0.0.1", 8377)}, content


def _answered(scope: dict[str, Any], body: bytes, gone: bool) -> tuple[int | None, dict[bytes, bytes], bytes]:
    """Status, headers and body of an answer; None where nobody waits for one any more."""
    if "app" not in _place:
        import torch

        import heredity
        from heredity.results import Run
        from heredity.serve import app, database, guard
        from heredity.serve.explorer import Explorer

        torch.set_num_threads(1)
        run: Run = heredity.open(_place["run"])
        path = run.folder / database.FILE
        key = database.key_of(run.pipeline, run.folder)
        if not database.is_current(path, key):
            database.build(run, path, key, lambda *_: None)
        guard.RATE = guard.BURST = 1e9
        _place["app"] = app.create_app(Explorer(lambda: run, path), guard.hosts_of("127.0.0.1"))
        _place["loop"] = asyncio.new_event_loop()
    found: list[dict[str, Any]] = []
    parts = [body[: len(body) // 2], body[len(body) // 2 :]]

    async def receive() -> dict[str, Any]:
        if parts and not gone:
            return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        found.append(message)

    _place["loop"].run_until_complete(_place["app"](scope, receive, send))
    if not found:
        if not gone:
            raise Broken("no answer")
        return None, {}, b""
    return found[0]["status"], dict(found[0]["headers"]), b"".join(one.get("body", b"") for one in found[1:])


# -- the folder of a run ----------------------------------------------------------------------------------------


def folder_seeds(folder: Path) -> list[Files]:
    """The files of one artifact each, and those beside them; all else of the run stays as it is."""
    run = _place["run"] = finished(folder.parent / "finished")
    parts = [[run / name for name in ("run.json", "summary.json")]]
    parts += [
        [file for file in one.parent.rglob("*") if file.is_file()] for one in sorted(run.glob("*/*/manifest.json"))
    ]
    return [{str(file.relative_to(run)): file.read_bytes() for file in part} for part in parts]


def look(folder: Path, rng: random.Random) -> object:
    """All that commands read of a run; half of the time with checksums that fit what was changed."""
    import heredity
    from heredity.analyses.inspector import Inspector
    from heredity.engine.store import Store, faults
    from heredity.show import markdown, page, summary

    own = {file.relative_to(folder).parts[:2] for file in folder.rglob("*") if file.is_file()}
    for part in _place["run"].iterdir():
        for one in part.iterdir() if part.is_dir() else [part]:
            if (
                not one.name.startswith(".")
                and one.relative_to(_place["run"]).parts not in own
                and one.suffix != ".sqlite"
            ):
                at = folder / one.relative_to(_place["run"])
                at.parent.mkdir(exist_ok=True)
                if not at.exists():
                    at.symlink_to(one)
    if rng.random() < 0.5:
        for manifest in folder.glob("*/*/manifest.json"):
            if not manifest.parent.is_symlink():
                _signed(manifest)
    for artifact in Store(folder).folders():
        faults(artifact)
    run = heredity.open(folder)
    _ = run.tables, run.seconds, run.peak_memory_gib
    if rng.random() < 0.3:
        summary.summarize(run)
        markdown.render(run)
        page.render(page.page_data(run))
    if rng.random() < 0.1:
        Inspector(run).shown("base", 5)
    return run


def _signed(manifest: Path) -> None:
    """Give a manifest the checksums of the files as they are."""
    try:
        value = json.loads(manifest.read_bytes())
        for name in value["files"]:
            value["files"][name] = hashlib.sha256((manifest.parent / name).read_bytes()).hexdigest()
        manifest.write_text(json.dumps(value))
    except (ValueError, LookupError, TypeError, OSError, RecursionError):
        return


# -- what workers send ------------------------------------------------------------------------------------------


class Choosy(Exception):
    """Cannot be made again from its message."""

    def __init__(self, first: object, second: object, *, third: object = None) -> None:
        super().__init__(f"{first} {second} {third}")


class Held(Exception):
    """Holds what cannot be sent."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.held = lambda: None


class Silent(Exception):
    """Has no words for itself."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


KINDS: dict[str, Any] = {
    **{kind.__name__: kind for kind in (ValueError, OSError, KeyError, MemoryError, SystemExit, RecursionError)},
    **{kind.__name__: kind for kind in (UnicodeDecodeError, StopIteration, GeneratorExit, BaseException, Held, Silent)},
    "Choosy": Choosy, "Local": type("Local", (Exception,), {}), "Base": type("Base", (BaseException,), {}),
}  # fmt: skip
SENT = [{"kind": kind, "arguments": ["a", 1]} for kind in KINDS]


def unit_seeds(_: Path) -> list[Files]:
    return [{"unit.json": json.dumps(one).encode()} for one in SENT]


def work(kind: str, arguments: list[Any]) -> object:
    made = KINDS.get(kind, ValueError)
    raise made("utf-8", b"a", 0, 1, str(arguments)) if made is UnicodeDecodeError else made(*arguments)


def unit(folder: Path, _: random.Random) -> object:
    """A unit of work that fails in one of many ways, as it arrives at the process that asked for it."""
    from heredity.engine import workers

    try:
        asked = json.loads(_content(folder / "unit.json"))
        kind, arguments = str(asked["kind"]), list(asked["arguments"])
    except (ValueError, LookupError, TypeError, RecursionError):
        kind, arguments = "ValueError", [_content(folder / "unit.json").decode("latin-1")]
    try:
        workers._unit(1, dict, lambda _, arguments: work(kind, arguments), arguments)
    except BaseException as error:
        arrived = pickle.loads(pickle.dumps(_ExceptionWithTraceback(error, error.__traceback__)))
        if isinstance(arrived, SystemExit) or not isinstance(arrived, BaseException):
            raise Broken("a request to exit was sent") from None
        return arrived
    raise Broken("the unit did not fail")
