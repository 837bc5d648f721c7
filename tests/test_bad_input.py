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
    models: Path  # `a`, `b` (other weights), `wide` (other shape), `other` (other tokenizer)
    saes: Path  # `a`, `b` of width 32; `narrow` of width 16


Arguments = Callable[[Place], list[Any]]
Values = dict[str, Any]


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


def study(change: Callable[[Values], object] | None = None, command: str = "run", *more: Any) -> Arguments:
    """Arguments that run the tiny study with one thing wrong in it."""

    def arguments(place: Place) -> list[Any]:
        values = tiny.study_values(place.folder)
        if change:
            change(values)
        return [command, tiny.toml(values, place.folder / "s.toml"), "--runs", place.folder / "runs", *more]

    return arguments


def set_(path: str, value: Any) -> Arguments:
    """Arguments that run the tiny study with another value at a dotted path."""

    def change(values: Values) -> None:
        *tables, last = path.split(".")
        for table in tables:
            values = values.setdefault(table, {})
        values[last] = value

    return study(change)


def loaded(child: str) -> Arguments:
    """Arguments that run a study of two loaded models, `a` and a child that does not fit it."""

    def arguments(place: Place) -> list[Any]:
        models = {name: {"load": str(place.models / m)} for name, m in (("base", "a"), ("child", child))}
        models = {name: model | {"corpora": ["words"]} for name, model in models.items()}
        models["child"]["parent"] = "base"
        return study(lambda values: values.update(model=models), "run", "--until", "model")(place)

    return arguments


def checked(load: str, column: str = "text") -> Arguments:
    """Arguments that check a study of two loaded models, the child at a path below the study's folder."""

    def arguments(place: Place) -> list[Any]:
        shutil.copytree(place.models / "a", place.folder / "models/a")
        shutil.copytree(place.models / "a", place.folder / "models/again")
        ends = {"base": {"load": "models/a"}, "child": {"load": load, "parent": "base"}}
        (place.folder / "x.jsonl").write_text('{"text": "a"}\n')
        corpus = {"words": {"source": "local:x.jsonl", "column": column}}
        models = {name: model | {"corpora": ["words"]} for name, model in ends.items()}
        return study(lambda values: values.update(model=models, corpus=corpus, case={}), "check")(place)

    return arguments


def with_file(name: str, content: bytes) -> Arguments:
    """Arguments that run the tiny study with one corpus read from a bad file."""

    def arguments(place: Place) -> list[Any]:
        (place.folder / name).write_bytes(content)
        return [*set_("corpus.sums", {"source": f"local:{name}"})(place), "--until", "corpus"]

    return arguments


def track(
    child: str = "b", sae: str = "a", child_sae: str = "b", damage: Callable[[Path, Path], object] | None = None
) -> Arguments:
    """Arguments that track one edge; `damage` has been at copies of the child and its SAE."""

    def arguments(place: Place) -> list[Any]:
        tiny.write_corpora(place.folder)
        model, own = place.models / child, place.saes / child_sae
        if damage:
            model, own = (shutil.copytree(path, place.folder / path.parent.name) for path in (model, own))
            damage(model, own)
        words = ["track", place.models / "a", model, "--sae-parent", place.saes / sae, "--sae-child", own]
        words += ["--corpus", f"local:{place.folder / 'words'}", "--tokens", 500, "--context-size", 16]
        return [*words, "-o", place.folder / "out"]

    return arguments


def poison(file: Path, name: str) -> None:
    """Put one NaN into a tensor."""
    tensors = load_file(file)
    tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, file, {"format": "pt"})


def foreign(model: Path, sae: Path) -> None:
    shutil.rmtree(sae)
    tiny.save_tiny_sae(sae, 32, seed=1, model_state="0" * 64)


def merge(*models: str, more: tuple[Any, ...] = ("--t", "0.5"), damage: Any = None) -> Arguments:
    """Arguments that merge models; `damage` has been at a copy of the last one."""

    def arguments(place: Place) -> list[Any]:
        folders = [place.models / model for model in models]
        if damage:
            folders[-1] = shutil.copytree(folders[-1], place.folder / "broken")
            damage(folders[-1])
        return ["merge", *folders, "-o", place.folder / "out", *more]

    return arguments


def written(path: str, content: str, arguments: Arguments) -> Arguments:
    """Arguments with a file in their way."""

    def made(place: Place) -> list[Any]:
        words = arguments(place)
        (place.folder / path).parent.mkdir(exist_ok=True)
        (place.folder / path).write_text(content)
        return words

    return made


def damaged_artifact(place: Place) -> list[Any]:
    arguments = study(None, "run", "--until", "corpus")(place)
    assert CliRunner().invoke(app, [str(word) for word in arguments]).exit_code == 0
    file = next((place.folder / "runs/s/corpus").glob("words-*/train.parquet"))
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    return arguments


TIES_WITH_T = {"method": "ties", "parents": ["sums", "stories"], "weights": [0.5, 0.5], "t": 0.5}
UP_PROJ = "model.layers.0.mlp.up_proj.weight"

CASES: dict[str, tuple[Arguments, str]] = {
    # the study file
    "missing study": (lambda _: ["run", "nowhere.toml"], "nowhere.toml: no such study file"),
    "unknown built-in study": (lambda _: ["run", "dmo"], "built in is: demo"),
    "not TOML": (written("x.toml", "a = [", lambda p: ["check", p.folder / "x.toml"]), "is not valid TOML"),
    "unknown key": (set_("sae.expnsion", 4), "sae.expnsion: unknown key; did you mean 'expansion'?"),
    "corpus named like a path": (
        study(lambda values: values["corpus"].update({"../escape": values["corpus"]["words"]})),
        "corpus.../escape: names are letters",
    ),
    "infinite learning rate": (set_("sae.lr", float("inf")), "sae.lr: inf: "),
    "no models": (set_("model", {}), "model: names no model"),
    "cycle": (set_("model.sums.parent", "both"), "is a cycle"),
    "missing parent": (set_("model.sums.parent", "bse"), "did you mean 'base'?"),
    "shares": (set_("corpus.words.share", 0.9), "sum to 1.4"),
    "layer out of range": (set_("hook_point", "blocks.7.mlp.hook_post"), "hook_point"),
    "unknown hook point": (set_("hook_point", "blocks.0.mlp.hook_past"), "hook_post"),
    "bad --set": (study(None, "run", "--set", "sae.tokens"), "must look like sae.tokens=1000000"),
    "unknown stage": (study(None, "run", "--until", "nonsense"), "no such stage"),
    "huge batches": (
        study(lambda values: values["sae"].update(context_size=8192, batch_blocks=32)),
        "262,144 vectors per batch",
    ),
    "check: missing model": (checked("models/nowhere"), "s: model.child.load: models/nowhere: "),
    "check: missing path": (checked("./models/nowhere"), "s: model.child.load: ./models/nowhere: no such folder"),
    "check: no model there": (checked("models"), "s: model.child.load: "),
    "check: wrong column": (checked("models/again", "body"), 's: corpus.words: '),
    "unknown activation": (set_("sae.activation", "gated"), "'batchtopk' or 'jumprelu'"),
    "t without effect": (set_("model.both.merge", TIES_WITH_T), "t=0.5 has no effect on ties with weights"),
    "slerp with weights": (set_("model.both.merge.weights", [1, 2]), "slerp has no weights; give t"),
    # corpora
    "missing corpus": (set_("corpus.sums.source", "local:nowhere.txt"), "nowhere.txt"),
    "unknown kind of source": (set_("corpus.sums.source", "ftp:x"), "ftp"),
    "unknown generator": (set_("corpus.stories.source", "generated:poems"), "poems"),
    "unset variable": (set_("corpus.sums.source", "local:$HEREDITY_NOT_SET/x"), "HEREDITY_NOT_SET"),
    "broken JSON lines": (with_file("x.jsonl", b'{"text": "a"}\n{"text": \n'), "x.jsonl"),
    "missing key": (with_file("x.jsonl", b'{"body": "a"}\n'), "text"),
    "not UTF-8": (with_file("x.txt", b"abc \xff\xfe def"), "x.txt"),
    "broken zst": (with_file("x.jsonl.zst", b"no zstandard"), "x.jsonl.zst"),
    "empty corpus": (with_file("x.txt", b""), "x.txt"),
    # models and tensors
    "missing model": (merge("a", "nowhere"), "nowhere"),
    "only pickled weights": (
        merge("a", "b", damage=lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin")),
        "safetensors",
    ),
    "no config": (merge("a", "b", damage=lambda f: (f / "config.json").unlink()), "config.json"),
    "shapes differ": (merge("a", "wide"), "; hidden_size is 16 in "),
    "slerp without t": (merge("a", "b", more=()), "slerp needs --t"),
    "one model": (merge("a"), "at least two models"),
    "unknown method": (merge("a", "b", more=("--method", "average", "--t", "0.5")), "average"),
    "NaN in the weights": (track(damage=lambda m, _: poison(m / "model.safetensors", UP_PROJ)), "finite"),
    "identical weights": (track(child="a"), "identical weights"),
    "tokenizers differ": (track(child="other"), "different tokenizers"),
    "tokenizers in a study differ": (loaded("other"), "models of one study must read the same tokens"),
    "widths in a study differ": (loaded("wide"), "is 32 wide in the parent and 64 in the child"),
    # SAEs
    "missing SAE": (track(sae="nowhere"), "nowhere"),
    "SAE of another width": (track(sae="narrow"), "width 16"),
    "NaN in the SAE": (track(damage=lambda _, s: poison(s / "sae_weights.safetensors", "W_enc")), "W_enc"),
    "SAE of other weights": (track(damage=foreign), "trained on other weights"),
    # disk
    "damaged artifact": (damaged_artifact, "differs from its recorded checksum"),
    "results folder is a file": (written("runs", "x", study()), "runs"),
    "report before run": (study(None, "report", "-o", "r.html"), "run `heredity run"),
    "verify before run": (study(None, "verify"), "holds no artifacts"),
    "stitch of a study without one": (study(None, "stitch"), "has no stitch; add a table [stitch.NAME]"),
    "stitch of no such name": (
        study(None, "stitch", "--only", "nowhere"), "no stitch 'nowhere'; defined are none",
    ),
    "unknown format": (
        study(None, "export", "-o", "t", "--format", "xlsx"), "must be one of csv, parquet, json",
    ),
    "output folder in use": (written("out/x", "", merge("a", "b")), "the folder is not empty"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_gives_one_clear_line_and_exit_code_2(name, place):
    make, message = CASES[name]
    arguments = [str(word) for word in make(place)]
    before = set(place.folder.rglob("out/*"))
    result = CliRunner().invoke(app, arguments)
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
    assert len(lines) == 1 and message in lines[0], result.stderr
    assert "Traceback" not in result.output
    assert set(place.folder.rglob("out/*")) == before, "something was half-written"


def test_debug_shows_the_traceback(place):
    result = CliRunner().invoke(app, ["run", "nowhere.toml", "--debug"])
    assert result.exit_code == 2 and "Traceback" in result.stderr
