"""Everything a user can get wrong gives one clear line on stderr and exit code 2, and leaves nothing half-written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import tiny
from heredity.cli import app


class Place(NamedTuple):
    """Where a case may write, with things to use."""

    folder: Path
    models: Path
    """`a`, `b` (other weights), `wide` (other shape), `other` (other tokenizer)."""
    saes: Path
    """`a`, `b` of width 32; `narrow` of width 16."""


class Case(NamedTuple):
    """One mistake."""

    name: str
    arguments: Callable[[Place], list[Any]]
    message: str
    """A part of the line that it gives."""


@pytest.fixture(scope="module")
def things(tmp_path_factory) -> tuple[Path, Path]:
    """Models and SAEs shared by all cases; they are only read."""
    models, saes = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("saes")
    tiny.save_tiny_model(models / "a", seed=0)
    tiny.save_tiny_model(models / "b", seed=1)
    tiny.save_tiny_model(models / "wide", seed=0, d_model=32)
    tiny.save_tiny_model(models / "other", seed=2, text="another text, of other words\n")
    tiny.save_tiny_sae(saes / "a", 32, seed=0)
    tiny.save_tiny_sae(saes / "b", 32, seed=1)
    tiny.save_tiny_sae(saes / "narrow", 16)
    return models, saes


@pytest.fixture
def place(things, tmp_path, monkeypatch) -> Place:
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path, *things)


def same(values: dict[str, Any]) -> None:
    """No change."""


def huge_batches(values: dict[str, Any]) -> None:
    values["sae"] |= {"context_size": 8192, "batch_blocks": 32}


def study(change: Callable[[dict[str, Any]], object], command: str = "run") -> Callable[[Place], list[Any]]:
    """Arguments that run the tiny study with one thing wrong in it."""

    def arguments(place: Place) -> list[Any]:
        values = tiny.study_values(place.folder)
        change(values)
        return [command, tiny.toml(values, place.folder / "s.toml"), "--runs", place.folder / "runs"]

    return arguments


def with_file(name: str, content: bytes, source: str, **settings: Any) -> Callable[[Place], list[Any]]:
    """Arguments that run the tiny study with one corpus read from a bad file."""

    def arguments(place: Place) -> list[Any]:
        values = tiny.study_values(place.folder)
        (place.folder / name).write_bytes(content)
        values["corpus"]["sums"] = {"source": source, **settings}
        return ["run", tiny.toml(values, place.folder / "s.toml"), "--runs", place.folder / "runs", "--until", "corpus"]

    return arguments


def track(parent: str = "a", child: str = "b", sae: str = "a", child_sae: str = "b", **options: Any):
    """Arguments that track one edge."""

    def arguments(place: Place) -> list[Any]:
        tiny.write_corpora(place.folder)
        return [
            "track",
            *(place.models / parent, place.models / child),
            *("--sae-parent", place.saes / sae, "--sae-child", place.saes / child_sae),
            *("--corpus", options.get("corpus", f"local:{place.folder / 'words'}")),
            *("--tokens", 500, "--context-size", 16, "-o", place.folder / "out"),
            *options.get("more", ()),
        ]

    return arguments


def merge(*models: str, more: tuple[Any, ...] = ()) -> Callable[[Place], list[Any]]:
    """Arguments that merge models."""
    return lambda place: ["merge", *(place.models / model for model in models), "-o", place.folder / "out", *more]


def broken_model(damage: Callable[[Path], object]) -> Callable[[Place], list[Any]]:
    """Arguments that merge model `a` with a damaged copy of `b`."""

    def made(place: Place) -> list[Any]:
        shutil.copytree(place.models / "b", place.folder / "broken")
        damage(place.folder / "broken")
        models = [place.models / "a", place.folder / "broken"]
        return ["merge", *models, "--t", "0.5", "-o", place.folder / "out"]

    return made


def only_pickles(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def poison(file: Path, name: str) -> None:
    """Put one NaN into a tensor."""
    tensors = load_file(file)
    tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, file, {"format": "pt"})


def track_broken(damage: Callable[[Path, Path], object]) -> Callable[[Place], list[Any]]:
    """Arguments that track with copies of model `b` and SAE `b` that `damage` has been at."""

    def made(place: Place) -> list[Any]:
        shutil.copytree(place.models / "b", place.folder / "model")
        shutil.copytree(place.saes / "b", place.folder / "sae")
        damage(place.folder / "model", place.folder / "sae")
        tiny.write_corpora(place.folder)
        arguments = ["track", place.models / "a", place.folder / "model", "--sae-parent", place.saes / "a"]
        arguments += ["--sae-child", place.folder / "sae", "--corpus", f"local:{place.folder / 'words'}"]
        return [*arguments, "--tokens", 500, "--context-size", 16, "-o", place.folder / "out"]

    return made


def poisoned_model(model: Path, sae: Path) -> None:
    poison(model / "model.safetensors", "model.layers.0.mlp.up_proj.weight")


def poisoned_sae(model: Path, sae: Path) -> None:
    poison(sae / "sae_weights.safetensors", "W_enc")


def not_toml(place: Place) -> list[Any]:
    (place.folder / "x.toml").write_text("a = [")
    return ["check", place.folder / "x.toml"]


def loaded(child: str) -> Callable[[Place], list[Any]]:
    """Arguments that run a study of two loaded models, `a` and a child that does not fit it."""

    def arguments(place: Place) -> list[Any]:
        def change(values: dict[str, Any]) -> None:
            names = {"base": "a", "child": child}
            values["model"] = {name: {"load": str(place.models / m), "corpora": ["words"]} for name, m in names.items()}
            values["model"]["child"]["parent"] = "base"

        return [*study(change)(place), "--until", "model"]

    return arguments


def output_in_use(place: Place) -> list[Any]:
    (place.folder / "out").mkdir()
    (place.folder / "out" / "x").touch()
    return merge("a", "b", more=("--t", "0.5"))(place)


def foreign_sae(model: Path, sae: Path) -> None:
    shutil.rmtree(sae)
    tiny.save_tiny_sae(sae, 32, seed=1, model_state="0" * 64)


def damaged_artifact(place: Place) -> list[Any]:
    arguments = study(same)(place) + ["--until", "corpus"]
    assert CliRunner().invoke(app, [str(word) for word in arguments]).exit_code == 0
    file = next((place.folder / "runs/s/corpus").glob("words-*/train.parquet"))
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    return arguments


def runs_is_a_file(place: Place) -> list[Any]:
    arguments = study(same)(place)
    (place.folder / "runs").write_text("x")
    return arguments


def set_(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Replace a value at a dotted path."""

    def change(values: dict[str, Any]) -> None:
        *tables, last = path.split(".")
        for table in tables:
            values = values.setdefault(table, {})
        values[last] = value

    return change


TIES_WITH_T = {"method": "ties", "parents": ["sums", "stories"], "weights": [0.5, 0.5], "t": 0.5}

CASES = [
    # the study file
    Case("missing study", lambda _: ["run", "nowhere.toml"], "nowhere.toml: no such study file"),
    Case("unknown built-in study", lambda _: ["run", "dmo"], "built in is: demo"),
    Case("not TOML", not_toml, "is not valid TOML"),
    Case("unknown key", study(set_("sae.expnsion", 4)), "sae.expnsion: unknown key; did you mean 'expansion'?"),
    Case(
        "corpus named like a path",
        study(lambda values: values["corpus"].update({"../escape": values["corpus"]["words"]})),
        "corpus.../escape: names are letters",
    ),
    Case("infinite learning rate", study(set_("sae.lr", float("inf"))), "sae.lr: inf: "),
    Case("no models", study(lambda values: values["model"].clear()), "model: names no model"),
    Case("cycle", study(set_("model.sums.parent", "both")), "is a cycle"),
    Case("missing parent", study(set_("model.sums.parent", "bse")), "did you mean 'base'?"),
    Case("shares", study(set_("corpus.words.share", 0.9)), "sum to 1.4"),
    Case("layer out of range", study(set_("hook_point", "blocks.7.mlp.hook_post")), "hook_point"),
    Case("unknown hook point", study(set_("hook_point", "blocks.0.mlp.hook_past")), "hook_post"),
    Case("bad --set", lambda p: [*study(same)(p), "--set", "sae.tokens"], "must look like sae.tokens=1000000"),
    Case("unknown stage", lambda p: [*study(same)(p), "--until", "nonsense"], "no such stage"),
    Case("huge batches", study(huge_batches), "262,144 vectors per batch"),
    Case("unknown activation", study(set_("sae.activation", "gated")), "'batchtopk' or 'jumprelu'"),
    Case("t without effect", study(set_("model.both.merge", TIES_WITH_T)), "t=0.5 has no effect on ties with weights"),
    Case("slerp with weights", study(set_("model.both.merge.weights", [1, 2])), "slerp has no weights; give t"),
    # corpora
    Case("missing corpus", study(set_("corpus.sums.source", "local:nowhere.txt")), "nowhere.txt"),
    Case("unknown kind of source", study(set_("corpus.sums.source", "ftp:x")), "ftp"),
    Case("unknown generator", study(set_("corpus.stories.source", "generated:poems")), "poems"),
    Case("unset variable", study(set_("corpus.sums.source", "local:$HEREDITY_NOT_SET/x")), "HEREDITY_NOT_SET"),
    Case("broken JSON lines", with_file("x.jsonl", b'{"text": "a"}\n{"text": \n', "local:x.jsonl"), "x.jsonl"),
    Case("missing key", with_file("x.jsonl", b'{"body": "a"}\n', "local:x.jsonl"), "text"),
    Case("not UTF-8", with_file("x.txt", b"abc \xff\xfe def", "local:x.txt"), "x.txt"),
    Case("broken zst", with_file("x.jsonl.zst", b"no zstandard", "local:x.jsonl.zst"), "x.jsonl.zst"),
    Case("empty corpus", with_file("x.txt", b"", "local:x.txt"), "x.txt"),
    # models and tensors
    Case("missing model", merge("a", "nowhere", more=("--t", "0.5")), "nowhere"),
    Case("only pickled weights", broken_model(only_pickles), "safetensors"),
    Case("no config", broken_model(lambda f: (f / "config.json").unlink()), "config.json"),
    Case(
        "shapes differ", merge("a", "wide", more=("--t", "0.5")), "is [273, 16] in parent 1 but [273, 32] in parent 2"
    ),
    Case("slerp without t", merge("a", "b"), "slerp needs --t"),
    Case("one model", merge("a", more=("--t", "0.5")), "at least two models"),
    Case("unknown method", merge("a", "b", more=("--method", "average", "--t", "0.5")), "average"),
    Case("NaN in the weights", track_broken(poisoned_model), "finite"),
    Case("identical weights", track(child="a"), "identical weights"),
    Case("tokenizers differ", track(child="other"), "different tokenizers"),
    Case("tokenizers in a study differ", loaded("other"), "models of one study must read the same tokens"),
    Case("widths in a study differ", loaded("wide"), "is 32 wide in the parent and 64 in the child"),
    # SAEs
    Case("missing SAE", track(sae="nowhere"), "nowhere"),
    Case("SAE of another width", track(sae="narrow"), "width 16"),
    Case("NaN in the SAE", track_broken(poisoned_sae), "W_enc"),
    Case("SAE of other weights", track_broken(foreign_sae), "trained on other weights"),
    # disk
    Case("damaged artifact", damaged_artifact, "differs from its recorded checksum"),
    Case("results folder is a file", runs_is_a_file, "runs"),
    Case("report before run", lambda p: [*study(same, "report")(p), "-o", p.folder / "r.html"], "run `heredity run"),
    Case("verify before run", study(same, "verify"), "holds no artifacts"),
    Case("stitch of a study without one", study(same, "stitch"), "has no stitch; add a table [stitch.NAME]"),
    Case(
        "stitch of no such name",
        lambda p: [*study(same, "stitch")(p), "--only", "nowhere"],
        "no stitch 'nowhere'; defined are none",
    ),
    Case(
        "unknown format",
        lambda p: [*study(same, "export")(p), "-o", p.folder / "t", "--format", "xlsx"],
        "must be one of csv, parquet, json",
    ),
    Case(
        "output folder in use",
        lambda p: (
            [(p.folder / "out").mkdir(), (p.folder / "out" / "x").touch()] and merge("a", "b", more=("--t", "0.5"))(p)
        ),
        "the folder is not empty",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_mistake_gives_one_clear_line_and_exit_code_2(case, place):
    arguments = [str(word) for word in case.arguments(place)]
    before = set(place.folder.rglob("out/*"))
    result = CliRunner().invoke(app, arguments)
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
    assert len(lines) == 1 and case.message in lines[0], result.stderr
    assert "Traceback" not in result.output
    assert set(place.folder.rglob("out/*")) == before, "something was half-written"


def test_there_are_twenty_kinds_and_more():
    assert len({case.name for case in CASES}) == len(CASES) >= 20


def test_debug_shows_the_traceback(place):
    result = CliRunner().invoke(app, ["run", "nowhere.toml", "--debug"])
    assert result.exit_code == 2 and "Traceback" in result.stderr
