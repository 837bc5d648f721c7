"""Faults of what is read: hostile texts, studies, models and SAEs are refused by place, and nothing in them runs."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import struct
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zstandard

from faults.table import STUDY, Fault, Faults, Place
from heredity.features import hypothesis
from heredity.features.acts import FeatureActs
from heredity.features.correlate import correlate
from heredity.kernels import torch_forms
from heredity.lm.checkpoint import ModelError
from heredity.lm.load import load_model
from heredity.sae.formats import read_sae
from heredity.study import CorpusConfig, StudyError, load_study
from heredity.text.corpora import documents
from heredity.text.patterns import matching
from heredity.text.readers import CorpusError
from heredity.text.tokens import load_tokenizer
from tiny import save_tiny_model, save_tiny_sae

FAULTS = Faults()
fault = FAULTS
GIB = 2**30


@pytest.mark.parametrize("one", FAULTS.rows)
def test_a_fault_of_what_is_read_ends_as_promised(one: Fault, tried):
    tried(one)


def read(place: Place, name: str, **config: Any) -> int:
    """Characters of a corpus."""
    return sum(len(one.text) for one in documents(CorpusConfig(source=f"local:{name}", **config), 0, place.folder))


def refused(place: Place, name: str, words: str, **config: Any) -> str:
    with pytest.raises(CorpusError, match=words) as told:
        read(place, name, **config)
    return str(told.value)


# -- texts ------------------------------------------------------------------------------------------------------


@fault("JSON lines nested 100,000 deep, of 5,000 digits, with half a character", "refused by file and line")
def _(place: Place) -> str:
    said = ""
    for line in ("[" * 100_000, '{"text": ' + "9" * 5000 + "}", '{"text": "\\ud800"}', "{", "7", '{"text": [1]}'):
        (place.folder / "x.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
        said = refused(place, "x.jsonl", r"x\.jsonl.*line 2")
    return said


@fault("text that is not UTF-8", "refused by file and byte")
def _(place: Place) -> str:
    (place.folder / "x.txt").write_bytes(b"fine\n" * 100 + b"\xff\xfe\xfd")
    return refused(place, "x.txt", r"x\.txt.*byte 500")


@fault("packed files cut short", "refused by file")
def _(place: Place) -> str:
    line, said = b'{"text": "the cat sat"}\n' * 2000, ""
    packed = {"gz": gzip.compress(line), "zst": zstandard.compress(line)}
    for suffix, content in packed.items():
        (place.folder / f"x.jsonl.{suffix}").write_bytes(content[: len(content) // 2])
        said = refused(place, f"x.jsonl.{suffix}", "broken")
    pq.write_table(pa.table({"text": ["the cat"] * 1000}), place.folder / "x.parquet")
    content = (place.folder / "x.parquet").read_bytes()
    (place.folder / "x.parquet").write_bytes(content[:-20])
    refused(place, "x.parquet", "broken Parquet")
    return said


@fault("a pipe, a socket and a device in a corpus folder", "left out or refused; nothing hangs")
def _(place: Place) -> str:
    folder = place.folder / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("the cat sat")
    os.mkfifo(folder / "pipe.txt")
    (folder / "zero.txt").symlink_to("/dev/zero")
    start = time.monotonic()
    try:
        said = f"{read(place, 'texts')} characters read"
    except CorpusError as error:
        said = str(error)
    assert time.monotonic() - start < 10
    (place.folder / "pipe.txt").symlink_to(folder / "pipe.txt")
    refused(place, "pipe.txt", r"pipe\.txt")
    refused(place, "/dev/zero", "zero")
    return said


@fault("links in circles in a corpus folder", "each text is read once")
def _(place: Place) -> str:
    folder = place.folder / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("the cat sat")
    for number in range(30):
        (folder / f"circle{number}").symlink_to(folder)
    assert read(place, "texts") == 11
    return "11 of 11 characters"


@fault("a corpus that changes after its fingerprint was taken", "refused; the old key never holds the new text")
def _(place: Place) -> str:
    from heredity.analyses import Pipeline
    from heredity.engine.stage import run
    from heredity.engine.store import Store

    study = load_study(str(place.study()))
    stages = list(Pipeline(study).stages.values())
    file = place.folder / "words.jsonl"
    before = file.read_text()
    file.write_text(before.replace("cat", "EVIL"))
    with pytest.raises(CorpusError, match="words.*chang") as told:
        run(stages, Store(place.run_folder), until="corpus/words")
    assert not list(place.run_folder.glob("corpus/words-*"))
    return str(told.value)


def bounded(place: Place, name: str, config: str = "", gib: float = 1.0) -> str:
    """Read a corpus in a process that takes at most so much memory beyond what it has when all is loaded."""
    code = f"""
import resource, sys
from pathlib import Path
from heredity.study import CorpusConfig
from heredity.text.corpora import documents
import heredity.text.readers, pyarrow.parquet, zstandard, pyarrow.dataset
def most():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:"))
before = most()
held = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (held + int({gib} * 2**30), -1))
try:
    n = sum(len(one.text) for one in documents(CorpusConfig(source="local:{name}"{config}), 0, Path(".")))
    said = f"{{n:,}} characters read"
except ValueError as error:
    said = str(error)
mib = (most() - before) / 1024
print(f"{{mib:.0f}} MiB more at most; {{said}}")
"""
    import sys

    done = place.process([sys.executable, "-c", code])
    done.well()
    mib = float(done.out.split()[0])
    assert mib < gib * 1024
    return done.out.strip()


@fault("a line of 200 MB", "refused within 1 GiB", slow=True)
def _(place: Place) -> str:
    with open(place.folder / "x.jsonl", "wb") as file:
        file.write(b'{"text": "')
        for _ in range(200):
            file.write(b"a" * 10**6)
        file.write(b'"}\n')
    said = bounded(place, "x.jsonl")
    assert "line 1: longer than 67,108,864 bytes; split that record" in said, said
    return said


@fault("a zstd file of some kB that unpacks to 4 GB", "refused within 1 GiB", slow=True)
def _(place: Place) -> str:
    with open(place.folder / "x.jsonl.zst", "wb") as file, zstandard.ZstdCompressor().stream_writer(file) as out:
        line = b'{"text": "' + b"a" * 2**20 + b'"}\n'
        for _ in range(4096):
            out.write(line)
    said = bounded(place, "x.jsonl.zst")
    assert "which no text does; leave the file out" in said, said
    return said


@fault("a Parquet file of some kB with a text of 256 MiB", "refused within 1 GiB", slow=True)
def _(place: Place) -> str:
    pq.write_table(pa.table({"text": ["z" * 2**28 + "y"]}), place.folder / "x.parquet", compression="zstd")
    said = bounded(place, "x.parquet")
    assert "which no text does" in said, said
    return said


@fault("a Parquet file of 748 bytes that names one text of 8 MiB 200 times", "read once, within 1 GiB", slow=True)
def _(place: Place) -> str:
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 200, pa.int32()), pa.array(["z" * 2**23]))
    pq.write_table(pa.table({"text": texts}), place.folder / "x.parquet", compression="zstd")
    del texts
    said = bounded(place, "x.parquet")
    assert f"{2**23:,} characters read" in said, said
    return said


@fault("gzip and zip bombs", "refused within 1 GiB", slow=True)
def _(place: Place) -> str:
    zeros = b"\0" * 2**20
    with gzip.open(place.folder / "x.txt.gz", "wb") as out:
        for _ in range(1200):
            out.write(zeros)
    with (
        zipfile.ZipFile(place.folder / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.txt", "w") as out,
    ):
        for _ in range(1200):
            out.write(zeros)
    said = [bounded(place, name) for name in ("x.txt.gz", "x.zip")]
    assert all("which no text does" in one for one in said), said
    return said[1]


# -- studies ----------------------------------------------------------------------------------------------------


@fault("study files that are deep, long-numbered, endless, no UTF-8, folders, devices", "refused by file, in seconds")
def _(place: Place) -> str:
    start, said = time.monotonic(), ""
    contents = [b"a = " + b"[" * 100_000, b"a = " + b"9" * 5000, b"\xff", b"a", b"a." * 20_000 + b"b = 1", b"[a]\n" * 9]
    for content in contents:
        (place.folder / "x.toml").write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.toml") as told:
            load_study(str(place.folder / "x.toml"))
        said = str(told.value)
    for name in ("/dev/null", str(place.folder), "/dev/zero"):
        with pytest.raises((ValueError, OSError)):
            load_study(name)
    assert time.monotonic() - start < 60
    return said


@fault("values of a study that no number, path or pattern can hold", "refused by key, in `check`")
def _(place: Place) -> str:
    case, corpus = {"tokens": [" plus"]}, STUDY["corpus"]["words"]
    changes: list[tuple[str, dict[str, Any]]] = [
        ("case.plus", {"case": {"plus": case | {"regex": "a{99999999999}"}}}),
        ("case.plus", {"case": {"plus": {"regex": "(" * 3000 + ")" * 3000}}}),
        ("predicate 'os:system'", {"case": {"plus": {"predicate": "os:system"}}}),
        ("text", {"text": ["local"]}),
        ("model.base", {"model": {"base": {"load": "", "corpora": ["words"]}}, "tokenizer": {}}),
        ("corpus.words", {"corpus": STUDY["corpus"] | {"words": corpus | {"source": "local:~nouser/x"}}}),
        ("corpus.words", {"corpus": STUDY["corpus"] | {"words": corpus | {"source": "local:a\0b"}}}),
        ("sae.tokens", {"sae": STUDY["sae"] | {"tokens": 10**30}}),
        ("repeat.seeds", {"repeat": {"seeds": 10**6}}),
        ("report.tokens", {"report": {"tokens": 16}}),
    ]
    start, said = time.monotonic(), ""
    for key, change in changes:
        place.study(**change)
        said = place.inside("check").refused(key)
    assert time.monotonic() - start < 120
    return f"{len(changes)} of {len(changes)} refused, the last: {said}"


@fault("a model folder that is not there", "told by `check`, which says nothing of a hub")
def _(place: Place) -> str:
    (place.folder / "models").mkdir()
    said = ""
    for path in (
        "./nowhere/base",
        "models/base",
    ):  # the name of a repository has the second form, but its folder is here
        place.study(model={"base": {"load": path, "corpora": ["words"]}}, tokenizer={})
        said = place.inside("check").refused(rf"model\.base\.load: {path}: ")
        assert "huggingface" not in said
    return said


@fault("edges whose names run together", "each has stages of its own")
def _(place: Place) -> str:
    from heredity.analyses import Pipeline

    fine = STUDY["model"]["sums"]
    names = {"b-to-c": fine, "base-to-b": fine, "c": fine | {"parent": "base-to-b"}}
    stages = Pipeline(load_study(str(place.study(model={"base": STUDY["model"]["base"]} | names)))).stages
    found = sorted(label for label in stages if label.startswith("match/"))
    assert {"base+b-to-c", "base-to-b+c"} <= {label.removeprefix("match/").partition("@")[0] for label in found}, found
    return f"{len(found)} stages of {len(set(found))} names"


@fault("merge recipes and overrides that are deep, long-numbered or no text", "refused by file or by key")
def _(place: Place) -> str:
    from heredity.lm.recipe import read_recipes

    path, said = place.folder / "r.yaml", ""
    for content in (
        b"[" * 100_000,
        b"a: " + b"9" * 5000,
        b"\xff\xfe",
        b"",
        b"- 1",
        b"a: &a [*a]",
        b"!!python/name:os.system",
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"r\.yaml") as told:
            read_recipes(path)
        said = str(told.value)
    study = str(place.study())
    for override in ("sae.k=" + "[" * 5000, "sae.k=" + "9" * 5000, "." * 70 + "=1", "=", "sae.k=\ud800"):
        with pytest.raises(ValueError, match=r"sae\.k|--set"):
            load_study(study, (override,))
    return f"12 of 12 refused; of a recipe: {said}"


@fault("a pattern that never ends", "ended, and told by name")
def _(place: Place) -> str:
    texts = [*(" the", "42"), "a" * 60 + "b" * 0 + "c"]
    with pytest.raises(ValueError, match=r"regex '\(a\+\)\+b': does not end within 0\.5 s on 3 texts") as told:
        matching("(a+)+b", texts, seconds=0.5)
    hits = hypothesis.hits(hypothesis.Hypothesis(regex=" ?[0-9]+"), np.array([[0, 1]]), texts)
    assert hits.mask.tolist() == [False, True]
    return str(told.value)


@fault("a predicate that exits, recurses and raises no Exception", "told by name; never code 0")
def _(place: Place) -> str:
    bodies = ("import sys; sys.exit(0)", "import os\ndef f(a, b): raise SystemExit(0)", "def f(a, b): return f(a, b)")
    said = ""
    for number, body in enumerate(bodies):
        (place.folder / f"p{number}.py").write_text(body + "\ndef f2(a, b): return a == a\n")
        path = place.study(case={"odd": {"predicate": f"p{number}:f"}})
        with pytest.raises(StudyError, match=r"predicate 'p\d:f'") as told:
            from heredity.analyses.hypotheses import hypothesis_of

            found = hypothesis_of(load_study(str(path)).config.case["odd"], place.folder)
            hypothesis.hits(found, np.zeros((2, 2), int), ["a"])
        said = str(told.value)
    return said


@fault("names that would lead out of the folder of runs", "refused by name")
def _(place: Place) -> str:
    text, said = place.study().read_text(), ""
    for name in ("...toml", "..toml", ".hidden.toml"):
        (place.folder / name).write_text(text)
        with pytest.raises(ValueError) as told:
            load_study(str(place.folder / name))
        said = str(told.value)
    for bad in ("../up", "a/b", "a\0b", "", "a->b", "."):
        with pytest.raises(ValueError):
            load_study(str(place.study(model={bad: STUDY["model"]["base"]})))
    return said


# -- models and SAEs --------------------------------------------------------------------------------------------


class Owned:
    """What a pickle would run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@fault("pickles in the place of weights", "refused, and not run")
def _(place: Place) -> str:
    model, owned = save_tiny_model(place.folder / "m"), place.folder / "owned"
    (model / "model.safetensors").unlink()
    said = ""
    for content in (pickle.dumps(Owned(owned)), None):
        if content is None:
            torch.save({"weight": Owned(owned)}, model / "pytorch_model.bin")
        else:
            (model / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(ModelError) as told:
            load_model(model)
        said = str(told.value)
    sae = place.folder / "sae"
    sae.mkdir()
    (sae / "config.json").write_text(json.dumps({"trainer": {"dict_class": "AutoEncoderTopK", "k": 2}}))
    torch.save(Owned(owned), sae / "ae.pt")
    with pytest.raises(ValueError):
        read_sae(sae)
    assert not owned.exists()
    return said


@fault("code in the folders of a model and of its tokenizer", "refused, not run, and nobody is asked")
def _(place: Place) -> str:
    model, owned = save_tiny_model(place.folder / "m"), place.folder / "owned"
    (model / "evil.py").write_text(f"import os; os.system('touch {owned}')\nclass Evil: pass\n")
    for file, more in (
        (
            "config.json",
            {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}},
        ),
        (
            "tokenizer_config.json",
            {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}},
        ),
    ):
        value = json.loads((model / file).read_text())
        (model / file).write_text(json.dumps(value | more))
    with pytest.raises(ValueError) as told:
        load_tokenizer(str(model))
    with pytest.raises(ModelError):
        load_model(model)
    assert not owned.exists()
    return str(told.value)


@fault("configurations that are deep, lists, empty, or of a billion layers", "refused by file, in seconds")
def _(place: Place) -> str:
    whole = save_tiny_model(place.folder / "m")
    config, said, start = json.loads((whole / "config.json").read_text()), "", time.monotonic()
    contents = [
        "[" * 100_000,
        "[]",
        "",
        "null",
        "9" * 5000,
        json.dumps({}),
        json.dumps(config | {"hidden_size": 10**12}),
    ]
    contents += [json.dumps(config | {"num_hidden_layers": 10**9}), json.dumps(config | {"num_hidden_layers": -1})]
    for content in contents:
        (whole / "config.json").write_text(content)
        with pytest.raises(ModelError, match=r"/m") as told:
            load_model(whole)
        said = str(told.value)
    assert time.monotonic() - start < 60
    return said


@fault("headers of safetensors that lie about size, shape and place", "refused by file")
def _(place: Place) -> str:
    model = save_tiny_model(place.folder / "m")
    file = model / "model.safetensors"
    content = file.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header, said = json.loads(content[8 : 8 + size]), ""
    name = next(key for key in header if key != "__metadata__")
    forms: list[bytes] = [struct.pack("<Q", 2**63) + content[8:], struct.pack("<Q", 0), content[: size // 2], b""]
    for change in ({"shape": [10**9, 10**9]}, {"data_offsets": [0, 2**62]}, {"dtype": "F1"}, {"shape": [-1]}):
        bent = json.dumps(header | {name: header[name] | change}).encode()
        forms.append(struct.pack("<Q", len(bent)) + bent + content[8 + size :])
    for form in forms:
        file.write_bytes(form)
        with pytest.raises(ModelError, match="/m") as told:
            load_model(model)
        said = str(told.value)
    return f"{len(forms)} of {len(forms)} refused, the last: {said}"


@fault("NaN and infinity in weights of models and SAEs", "refused by tensor")
def _(place: Place) -> str:
    from safetensors.torch import load_file, save_file

    said = ""
    for value in (float("nan"), float("inf")):
        model, sae = save_tiny_model(place.folder / f"m{value}"), save_tiny_sae(place.folder / f"s{value}")
        for file in (model / "model.safetensors", next(sae.glob("*.safetensors"))):
            tensors = load_file(file)
            next(iter(tensors.values())).view(-1)[0] = value
            save_file(tensors, file, {"format": "pt"})
        with pytest.raises(ModelError, match="is not finite"):
            load_model(model)
        with pytest.raises(ValueError, match="finite|NaN") as told:
            read_sae(sae)
        said = str(told.value)
    return said


@fault("settings of SAEs of other forms", "refused by file")
def _(place: Place) -> str:
    whole, said = save_tiny_sae(place.folder / "sae"), ""
    config = json.loads((whole / "cfg.json").read_text())
    forms: list[Any] = ["[" * 100_000, "[]", "", "{}", json.dumps(config | {"d_sae": 10**12})]
    forms += [json.dumps(config | {"architecture": {"a": []}}), json.dumps(config | {"d_in": "x"}), "9" * 5000]
    for form in forms:
        (whole / "cfg.json").write_text(form)
        with pytest.raises(ValueError, match="sae") as told:
            read_sae(whole)
        said = str(told.value)
    return f"{len(forms)} of {len(forms)} refused, the last: {said}"


@fault("a model that is silent at the hook point", "one line with the model and the hook point", slow=True)
def _(place: Place) -> str:
    from safetensors.torch import load_file, save_file

    file = save_tiny_model(place.folder / "m") / "model.safetensors"
    tensors = {name: value * ("up_proj" not in name) for name, value in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})
    place.study(model={"base": {"load": "m", "corpora": ["words"]}}, tokenizer={}, case={})
    return place.command("run", "s.toml", "--until", "sae").refused(r"base at blocks\.0\.mlp\.hook_post: .*constant")


# -- allocators -------------------------------------------------------------------------------------------------


@fault("a GPU without memory for the tiles of a match", "smaller tiles, the same matches")
def _(place: Place) -> str:
    rng = np.random.default_rng(0)
    parent, child = (FeatureActs.from_dense(rng.random((400, 64)) * (rng.random((400, 64)) < 0.1)) for _ in range(2))
    expected, real, refused_at = correlate(parent, child), torch_forms.top_pearson_torch, []

    def scarce(*arguments: Any, memory: int, **more: Any) -> Any:
        if memory > 2**30:
            refused_at.append(memory)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(*arguments[:3], "cpu", *arguments[4:], memory=memory, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_forms, "top_pearson_torch", scarce)
        found = correlate(parent, child, device="cuda")
        np.testing.assert_allclose(found.parent_r, expected.parent_r, atol=1e-12)
        patch.setattr(
            torch_forms, "top_pearson_torch", lambda *_, **__: (_ for _ in ()).throw(torch.OutOfMemoryError("x"))
        )
        with pytest.raises(torch.OutOfMemoryError):
            correlate(parent, child, device="cuda")
    return f"refused at {', '.join(f'{m / GIB:g}' for m in refused_at)} GiB, then matched with half"


@fault("a text of 20,000 documents in a tenth of its size", "read, in bounded memory", slow=True)
def _(place: Place) -> str:
    with open(place.folder / "x.jsonl", "w") as file:
        for number in range(20_000):
            file.write(json.dumps({"text": f"{number} the cat sat on the mat. " * 800}) + "\n")
    size = (place.folder / "x.jsonl").stat().st_size
    said = bounded(place, "x.jsonl", gib=size / 10 / GIB)
    assert "characters read" in said, said
    return f"{size / 2**20:.0f} MiB of text, {said}"
