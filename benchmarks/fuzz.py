"""Mutated files at every door: nothing but an error of the package's own may come out, within 10 s and 1 GiB.

    python benchmarks/fuzz.py --cases 100000 [--seed 0] [--doors study,sae] [--state FOLDER] [--found FOLDER]

Seeds are small valid inputs that this script makes. A case is drawn by (seed, door, number) alone: structure-aware
mutations swap values of JSON, TOML and tensor headers for hostile ones, delete, rename and repeat keys; others flip,
cut, repeat and insert bytes. Cases run in forked batches, so that a crash or a hang ends its batch and is seen. What is
done stands in `--state`, and the same command goes on from there. Files of a new kind of failure are kept in `--found`,
and read again first by every later run. An error is the package's own if its class is, or if it is a ValueError that a
`raise` of the package raised. Exit code 1 if anything failed. `HEREDITY_SRC=PATH` fuzzes another copy of the package.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import hashlib
import io
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzz_runs

SECONDS, MEMORY, BATCH = 10.0, 2**30, 250
Files = dict[str, bytes]
RAW = {
    "@deep@": "[" * 3000 + "]" * 3000,
    "@maps@": '{"a":' * 1500 + "1" + "}" * 1500,
    "@open@": "[" * 100_000,
    "@digits@": "9" * 5000,
    "@float@": "1e999",
    "@nan@": "NaN",
    "@escape@": '"\\ud800"',
    "@null@": "null",
    "@date@": "2020-99-99",
}
"""Text that stands unquoted in place of a value, whatever a writer would make of it."""
HOSTILE: list[Any] = [
    *RAW, True, False, 0, 1, -1, 2, 0.5, -0.0, 1e308, 10**12, 2**31, 2**63 - 1, 10**30, 10**400, "", " ", "\0",
    "a\nb", "é" * 99,
    "x" * 10_000, "/", "..", "~nouser/x", "/dev/null", "$NOT_SET/x", "local:", "local:/", "hub:", "a->b",
    "\x1b[31m", "true", "1",
    [], {}, [[]], [None], [1, "a"], {"": 1}, {"a": {"b": []}}, ["a"] * 2000, [1] * 3, [0], [-1, -1],
]  # fmt: skip
INSERTED = [text.encode() for text in RAW.values()]
INSERTED += [
    b"\0",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b'"',
    b"'",
    b"{",
    b"[",
    b"}",
    b"\n",
    b"\\",
    b":",
    b"&a *a",
    b"!!python/object:os.system x",
]
INSERTED += [
    b"a." * 3000,
    b"<" * 500,
    b"(" * 3000,
    b"- " * 3000,
    b"? " * 300,
    b"&x [*x, *x]",
    b"\r",
    b"#",
    b"--- \n---\n",
    b"1e5",
    b"0x",
]


# -- mutations --------------------------------------------------------------------------------------------------


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all parts of a value of JSON."""
    found = [at] if at else []
    parts = value.items() if isinstance(value, dict) else enumerate(value[:40]) if isinstance(value, list) else ()
    for key, part in parts:
        found += places(part, (*at, key))
    return found


def mutated(value: Any, rng: random.Random) -> Any:
    """A value of JSON with one to three of its parts swapped, deleted, renamed, repeated or exchanged."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        known = places(value)
        if not known:
            return rng.choice(HOSTILE)
        *tables, last = rng.choice(known)
        inside = value
        for key in tables:
            inside = inside[key]
        kind = rng.random()
        if kind < 0.6:
            inside[last] = copy.deepcopy(rng.choice(HOSTILE))
        elif kind < 0.75:
            del inside[last]
        elif kind < 0.85 and isinstance(inside, dict):
            inside[rng.choice(("", "x" * 300, "\0", last + "s", "a.b", "é", "hook_point", "type"))] = inside.pop(last)
        else:
            *others, other = rng.choice(known)
            source = value
            with contextlib.suppress(LookupError, TypeError):
                for key in others:
                    source = source[key]
                inside[last] = copy.deepcopy(source[other])
    return value


def raw(text: str) -> str:
    for word, meant in RAW.items():
        text = text.replace(f'"{word}"', meant)
    return text


def as_json(value: Any) -> bytes:
    return raw(json.dumps(value)).encode()


def as_toml(value: Any) -> bytes:
    import tomli_w

    def plain(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: plain(one) for key, one in part.items() if one is not None}
        return [plain(one) for one in part if one is not None] if isinstance(part, list) else part

    return raw(tomli_w.dumps(plain(value))).encode("utf-8", "surrogatepass")


def bent(content: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, cut, repeated, or with others inserted."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, kind = rng.randrange(len(content) + 1), rng.random()
        if kind < 0.3 and content:
            content[at % len(content)] ^= 1 << rng.randrange(8)
        elif kind < 0.45:
            del content[at:]
        elif kind < 0.6:
            del content[at : at + rng.randrange(1, 40)]
        elif kind < 0.7:
            content[at:at] = content[at : at + rng.randrange(1, 200)]
        elif kind < 0.95:
            content[at:at] = rng.choice(INSERTED)
        else:
            content = bytearray(rng.randbytes(rng.randrange(64)))
    return bytes(content)


def safetensors(content: bytes, rng: random.Random) -> bytes:
    """The same weights under a header with hostile dtypes, shapes and offsets."""
    size = struct.unpack("<Q", content[:8])[0]
    header = as_json(mutated(json.loads(content[8 : 8 + size]), rng))
    length = len(header) if rng.random() < 0.9 else rng.choice((0, 2**63, 2**64 - 1, len(header) + 7))
    return struct.pack("<Q", length) + header + content[8 + size :]


def pickled(content: bytes, rng: random.Random) -> bytes:
    """Weights as torch saves them, with tensors of other shapes, sizes and types."""
    import torch

    hostile = [
        torch.zeros(1).expand(10**6, 10**6), torch.zeros(0, 4), torch.zeros(3, 3, dtype=torch.complex64),
        torch.tensor(2**62),
        torch.full((4, 8), float("nan")), torch.zeros(4, 8, dtype=torch.int8), torch.zeros(4, 8).to_sparse(), None,
        "x", [1], {1: 2},
        torch.tensor(float("inf")), torch.zeros(8, 4), torch.zeros(1, 1, 1), torch.zeros(4, 8, device="meta"),
    ]  # fmt: skip
    value = torch.load(io.BytesIO(content), weights_only=True)
    for _ in range(rng.choice((1, 2))):
        name = rng.choice(list(value))
        if rng.random() < 0.2:
            value[rng.choice((1, None, "", "W_enc", ("a",)))] = value.pop(name)
        else:
            value[name] = rng.choice(hostile)
        if not value:
            break
    stream = io.BytesIO()
    torch.save(value if rng.random() < 0.9 else rng.choice(hostile), stream)
    return stream.getvalue()


# -- doors: seeds, and what is called ---------------------------------------------------------------------------

DOORS: dict[str, tuple[Callable[[Path], list[Files]], Callable[[Path, random.Random], object]]] = {}


def door(name: str, seeds: Callable[[Path], list[Files]]) -> Callable[[Any], Any]:
    def register(call: Callable[[Path, random.Random], object]) -> Any:
        DOORS[name] = seeds, call
        return call

    return register


def folder_files(folder: Path) -> Files:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


SMALL = {"batch_size": 8, "context_size": 32, "lr": 5e-3, "precision": "float32"}
SHAPE = {"d_model": 16, "d_mlp": 16, "n_heads": 2}
STUDY: dict[str, Any] = {
    "seed": 1, "hook_point": "blocks.0.mlp.hook_post", "tokenizer": {"vocab_size": 320}, "text": "local",
    "corpus": {"words": {"source": "local:words.jsonl", "share": 0.5},
    "sums": {"source": {"local": "local:sums.csv"}, "share": 0.5},
               "tales": {"source": "generated:stories", "max_bytes": 60000, "license": "CC0", "column": "text"}},
    "model": {"base": {"train": {"corpora": ["words", "sums"], "tokens": 4000, **SHAPE, **SMALL}},
              "child": {"parent": "base", "corpora": ["tales"], "tokens": 2000, "lora": {"r": 2}, **SMALL},
              "twin": {"recipe_of": "child"}, "int4": {"parent": "base", "quantize": {"bits": 4, "group_size": 8}},
              "both": {"merge": {"parents": ["base", "child"], "method": "slerp", "t": 0.5, "sweep_points": 3}}},
    "sae": {"activation": "topk", "k": 4, "expansion": 4, "tokens": 6000, "instruments": ["joint", "parent"],
    "l0": [25, 35],
            "batch_blocks": 16, "context_size": 16},
    "lineage": {"tokens": 2000, "threshold": 0.7}, "controls": {"resamples": 100, "newness": 0, "seeds": 2,
    "models": ["base"]},
    "verdicts": {"texts": ["common", "words"], "tokens": 2000}, "report": {"tokens": 2000, "features": 2,
    "case_corpora": ["sums"]},
    "evaluation": {"tokens": 500}, "explain": {"features": 4, "drop": 0.1}, "repeat": {"seeds": 2},
    "case": {"plus": {"tokens": [" plus"]}, "digits": {"regex": " ?[0-9]+"}, "greek": {"script": "Greek"}},
}  # fmt: skip
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 16, "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 300, "head_dim": 8,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6, "rope_theta": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    "hidden_act": "silu",
    "tie_word_embeddings": True, "torch_dtype": "float32", "bos_token_id": 1, "eos_token_id": [2, 3],
}  # fmt: skip
NESTED = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3",
    "text_config": CONFIG | {"model_type": "gemma3_text"},
          "vision_config": {"hidden_size": 8, "model_type": "siglip_vision_model", "num_attention_heads": 2,
    "num_hidden_layers": 1, "intermediate_size": 8, "image_size": 14, "patch_size": 7}}  # fmt: skip
GPT2 = {
    "model_type": "gpt2",
    "n_embd": 16,
    "n_layer": 1,
    "n_head": 2,
    "n_inner": None,
    "vocab_size": 300,
    "n_positions": 64,
}
LOADED = {
    "hook_point": "blocks.0.mlp.hook_post", "corpus": {"words": {"source": "local:words.jsonl"}}, "sae": {"k": 4},
    "model": {"base": {"load": "model", "corpora": ["words"]}, "child": {"load": "model", "parent": "base",
    "corpora": ["words"]}},
}  # fmt: skip
RECORDS = b"".join(
    as_json({"text": f"the cat sat {n}", "source": "a", "license": "MIT", "more": [n, {"b": None}]}) + b"\n"
    for n in range(6)
)
CORPORA = {"words.jsonl": RECORDS, "sums.csv": b"text\none plus one\ntwo plus two\n"}


def planned(folder: Path, name: str, overrides: tuple[str, ...] = ()) -> object:
    """A study from its file as `heredity check` reads it."""
    from heredity.analyses import Pipeline, plan
    from heredity.engine.store import Store
    from heredity.study import load_study

    plan.Rates.of = lambda self, precision: 1e10  # noqa: ARG005
    study = load_study(str(folder / name), overrides)
    return plan.plan(Pipeline(study), Store(folder / "runs"))


@door("study", lambda _: [{"study.toml": as_toml(STUDY), **CORPORA}])
def _(folder: Path, rng: random.Random) -> object:
    keys = ("sae.k", "seed", "model.base", "a.b.c", "sae", "", "x" * 99, "corpus.words.source", "." * 70)
    overrides = [f"{rng.choice(keys)}={rng.choice(HOSTILE)}" for _ in range(rng.random() < 0.1)]
    return planned(folder, "study.toml", tuple(overrides))


def config_seeds(folder: Path) -> list[Files]:
    """Whole model folders: `check` looks at tokenizers, and at the names and shapes of tensors."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from heredity.text.tokens import train_tokenizer

    seeds, tokenizer = [], train_tokenizer(["the cat sat on the mat\n"] * 50, 300)
    for number, one in enumerate((CONFIG, NESTED, GPT2)):
        config = AutoConfig.for_model(**one)
        made = AutoModelForCausalLM.from_config(config)
        place = folder / str(number) / "model"
        made.save_pretrained(place)
        tokenizer.save_pretrained(place)
        seeds.append({"study.toml": as_toml(LOADED), **CORPORA, **folder_files(place.parent)})
    return seeds


@door("config", config_seeds)
def _(folder: Path, _rng: random.Random) -> object:
    return planned(folder, "study.toml")


def sae_seeds(folder: Path) -> list[Files]:
    import torch

    from heredity.sae.formats import write_sae
    from heredity.sae.model import new_sae

    seeds, kinds = [], {"saelens": ("relu", "topk", "batchtopk", "jumprelu"), "sparsify": ("topk",)}
    kinds["dictionary_learning"] = kinds["saelens"]
    for form, activations in kinds.items():
        for activation in activations:
            sae = new_sae(4, 8, activation, 2, torch.Generator().manual_seed(0))  # pyright: ignore[reportArgumentType]
            place = folder / form / activation
            write_sae(sae, place, {"model_name": "m", "hook_name": "blocks.0.hook_resid_post", "seed": 1}, form)  # pyright: ignore[reportArgumentType]
            seeds.append(folder_files(place))
    return seeds


@door("sae", sae_seeds)
def _(folder: Path, _rng: random.Random) -> object:
    from heredity.sae.formats import read_sae

    return read_sae(folder)


RECIPES = [
    {"merge_method": "slerp", "base_model": "a", "models": [{"model": "a"}, {"model": "b"}], "dtype": "float32",
     "parameters": {"t": [{"filter": "mlp", "value": [0, 0.5, 1]}, {"value": 0.5}]}},
    {"merge_method": "ties", "base_model": "a", "parameters": {"normalize": True}, "tokenizer_source": "union",
     "slices": [{"sources": [{"model": "b", "layer_range": [0, 2], "parameters": {"weight": 0.5, "density": 0.4}}]}]},
]  # fmt: skip
YAML = b"""merge_method: linear
base_model: &base a
models:
  - model: *base
    parameters: {weight: 0.5}
  - model: b
    parameters:
      weight: 0.5
dtype: bfloat16
"""


@door("recipe", lambda _: [{"recipe.yaml": YAML}, *({"recipe.yaml": as_json(one)} for one in RECIPES)])
def _(folder: Path, _rng: random.Random) -> object:
    from heredity.lm.recipe import parents_of, read_recipes

    return [parents_of(one) for one in read_recipes(folder / "recipe.yaml")]


ROW = {"edge": "base->lua", "instrument": "joint", "kept": 5, "kept_low": 3.0, "share": None}
SUMMARY = {
    "heredity": "0.2.0", "schema": 2, "study": "s", "seconds": 1.5, "peak_memory_gib": 0.5,
    "created": "2026-01-01T00:00:00Z",
    "machine": "m", "config": STUDY, "statements": [{"about": "a", "question": "loss", "text": "t",
    "evidence": ["e"], "instrument": "joint"}],
    "tables": {"edges": {"doc": "d", "key": ["edge"], "columns": {"edge": {"kind": "text", "doc": "d", "of": ""}},
    "rows": [ROW]}}, "notes": ["n"],
}  # fmt: skip


@door("summary", lambda _: [{"summary.json": as_json(SUMMARY)}])
def _(folder: Path, _rng: random.Random) -> object:
    from heredity.show.summary import read

    return read(folder)


def tokenizer_seeds(folder: Path) -> list[Files]:
    from heredity.text.tokens import train_tokenizer

    train_tokenizer(["the cat sat on the mat\n"] * 50, 300).save_pretrained(folder / "t")
    own = folder_files(folder / "t")
    core = json.loads(own["tokenizer.json"])
    words = {"<unk>": 0, "</s>": 1, "▁a": 2, "b": 3, "▁": 4}
    core |= {
        "model": {"type": "Unigram", "unk_id": 0, "vocab": [[word, -1.0] for word in words], "byte_fallback": False}
    }
    core |= {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, {"type": "NFKC"}]}}
    core |= {
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": False},
        "decoder": None,
    }
    return [own, own | {"tokenizer.json": as_json(core)}]


@door("tokenizer", tokenizer_seeds)
def _(folder: Path, _rng: random.Random) -> object:
    from heredity.text.tokens import fingerprint_tokenizer, load_tokenizer

    return fingerprint_tokenizer(load_tokenizer(str(folder)))


def records_seeds(folder: Path) -> list[Files]:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import zstandard

    table = pa.table({"text": ["the cat", "a dog", "x"], "source": ["a", "b", "c"], "n": [1, 2, 3]})
    pq.write_table(table, folder / "x.parquet")
    packed = zstandard.compress(RECORDS)
    return [
        {"x.jsonl": RECORDS},
        {"x.jsonl": RECORDS},
        {"x.txt": b"one\n\ntwo"},
        {"x.jsonl.zst": packed},
        folder_files(folder),
    ]


@door("records", records_seeds)
def _(folder: Path, rng: random.Random) -> object:
    from heredity.study import CorpusConfig
    from heredity.text.corpora import documents

    config = CorpusConfig(
        source=f"local:{rng.choice(('.', *map(os.path.basename, folder.iterdir())))}",
        max_bytes=rng.choice((None, 1000)),
    )
    return sum(len(one.text) for one in documents(config, 0, folder))


def run_seeds(folder: Path) -> list[Files]:
    import pyarrow.parquet as pq

    from heredity.analyses import Pipeline
    from heredity.engine.store import Store
    from heredity.results import record
    from heredity.study import Study

    for file, content in CORPORA.items():
        (folder / file).write_bytes(content)
    study = Study.of(STUDY, "s", folder)
    store, run = Store(folder / "s"), folder / "s"
    run.mkdir()
    record(study, run)
    pipeline = Pipeline(study)
    label, stage = next((label, stage) for label, stage in pipeline.stages.items() if stage.kind == "corpus")
    with store.writing(stage.kind, stage.name, stage.key, stage.config, {}) as partial:
        (partial / "x.json").write_text('{"a": 1}')
        for table in pipeline.items[label][0].tables:
            pq.write_table(table.check([]), partial / f"{table.name}.parquet")
    return [folder_files(run)]


@door("run", run_seeds)
def _(folder: Path, _rng: random.Random) -> object:
    import heredity
    from heredity.engine.store import Store, faults

    for artifact in Store(folder).folders():
        faults(artifact)
    run = heredity.open(folder)
    return run.tables, run.seconds, run.peak_memory_gib, [one.json("x.json") for one in run.artifacts.values()]


def ledger_seeds(folder: Path) -> list[Files]:
    import sqlite3

    from heredity.explain.ledger import Ledger
    from heredity.explain.protocol import Answer, Request

    class Asked:
        name, concurrency, identity = "m", 1, {"provider": "p", "model": "m", "parameters": {}}  # noqa: RUF012
        complete = staticmethod(lambda _: (Answer('{"explanation": "x"}', "stop", 10, 5), 1))
        stop = None

    with Ledger(folder / "ledger.sqlite") as ledger:
        ledger.ask(Request("base/1", "explain", "why?", 50), Asked(), lambda answer: answer)  # pyright: ignore[reportArgumentType]
    with contextlib.closing(sqlite3.connect(folder / "ledger.sqlite")) as base:
        base.execute("PRAGMA journal_mode=DELETE")
        base.execute("VACUUM")
    return [{"ledger.sqlite": (folder / "ledger.sqlite").read_bytes()}]


@door("ledger", ledger_seeds)
def _(folder: Path, _rng: random.Random) -> object:
    from heredity.explain.ledger import Ledger

    with Ledger(folder / "ledger.sqlite") as ledger:
        return ledger.summary()


BODY = {"id": "x", "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant",
    "content": '{"explanation": "x", "intruder": 1, "0": 3}',
        "reasoning_content": "hm"}, "logprobs": {"tokens": ["a", "b"], "top_logprobs": [None, {"1": -0.5}]}}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5}}  # fmt: skip
REFUSAL = {
    "error": {"message": "Unsupported parameter: 'seed'", "param": "seed"},
    "detail": [{"loc": ["body", "seed"], "msg": "no"}],
}


@door("answer", lambda _: [{"body": as_json(BODY)}, {"body": as_json(BODY)}, {"body": as_json(REFUSAL)}])
def _(folder: Path, rng: random.Random) -> object:
    from heredity.explain import endpoint, parse
    from heredity.explain.protocol import Answer

    text = (folder / "body").read_bytes().decode("utf-8", "replace")
    asked = endpoint.Endpoint("m", "http://127.0.0.1:9/v1", "", asks=False)
    if blamed := getattr(endpoint, "_blamed", None):
        blamed(text, {"seed": 0, "max_tokens": 1})
    answer = asked._read(text, rng.random() < 0.3)
    for one in (answer, Answer(text, rng.choice(("stop", "length")), 1, 1)):
        if isinstance(one, Answer):
            (
                parse.read_explanation(one),
                parse.read_levels(one, [1, 2]),
                parse.read_verdicts(one, 2),
            )
            parse.read_intruder(one, 3)
    return answer


def arrays_seeds(folder: Path) -> list[Files]:
    import numpy as np
    import torch

    from heredity.features.acts import FeatureActs
    from heredity.stitch.affine import Affine, Stitch

    FeatureActs(np.array([0, 1, 2]), np.array([0, 1], np.int32), np.array([1, 2], np.float32), 4).save(
        folder / "acts.safetensors"
    )
    up, down = Affine(torch.zeros(2, 3), torch.zeros(3)), Affine(torch.zeros(3, 2), torch.zeros(2))
    Stitch(up, down).save(folder)
    return [folder_files(folder)]


@door("arrays", arrays_seeds)
def _(folder: Path, rng: random.Random) -> object:
    from heredity.features.acts import FeatureActs
    from heredity.stitch.affine import Stitch

    return Stitch.load(folder) if rng.random() < 0.5 else FeatureActs.load(folder / "acts.safetensors").dense()


# -- doors of a finished run --------------------------------------------------------------------------------------

DOORS["server"] = fuzz_runs.server_seeds, fuzz_runs.ask
DOORS["folder"] = fuzz_runs.folder_seeds, fuzz_runs.look
DOORS["unit"] = fuzz_runs.unit_seeds, fuzz_runs.unit


# -- cases --------------------------------------------------------------------------------------------------------


def case(name: str, seeds: list[Files], seed: int, number: int) -> tuple[Files, random.Random]:
    """Files of a case; the seed, the door and its number decide all of it."""
    rng = random.Random(f"{seed}/{name}/{number}")
    files = dict(rng.choice(seeds))
    target = rng.choice([file for file in files if not (name in ("study", "config") and file in CORPORA)])
    content, structured = files[target], rng.random() < 0.65
    if structured and target.endswith(".safetensors"):
        files[target] = safetensors(content, rng)
    elif structured and target.endswith(".pt"):
        files[target] = pickled(content, rng)
    elif structured and target.endswith(".toml"):
        import tomllib

        files[target] = as_toml(mutated(tomllib.loads(content.decode()), rng))
    elif structured and target.endswith(".jsonl"):
        lines = content.splitlines()
        at = rng.randrange(len(lines))
        lines[at] = as_json(mutated(json.loads(lines[at]), rng))
        files[target] = b"\n".join(lines) + b"\n"
    elif structured and content[:1] in b"{[":
        files[target] = as_json(mutated(json.loads(content), rng))
    elif rng.random() < 0.03 and target != "body":
        del files[target]
    else:
        files[target] = bent(content, rng)
    return files, rng


LINES: dict[str, list[str]] = {}
"""Source of the package by file, read before a case can leave no memory to read it."""


def own(error: BaseException) -> bool:
    """Whether an error is one that the package means to raise, or a refusal of the server's."""
    if isinstance(error, fuzz_runs.Refused):
        return True
    if type(error).__module__.partition(".")[0] == "heredity":
        return True
    frame = traceback.extract_tb(error.__traceback__)[-1]
    line = LINES.get(frame.filename, [""] * (frame.lineno or 0))[(frame.lineno or 0) - 1].strip()
    return type(error) is ValueError and f"{os.sep}heredity{os.sep}" in frame.filename and line.startswith("raise")


def tried(name: str, files: Files, rng: random.Random, folder: Path) -> str:
    """`accepted`, `refused`, or the kind of failure."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file, content in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        DOORS[name][1](folder, rng)
        outcome = "accepted"
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        outcome = "refused" if own(error) else f"{type(error).__name__} at {Path(frame.filename).name}:{frame.name}"
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before > MEMORY / 1024:
        outcome = "more than 1 GiB"
    return "more than 10 s" if time.process_time() - start > SECONDS else outcome


def spent(process: int) -> float:
    """Seconds of processor time that a process has taken."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def batch(name: str, cases: list[tuple[int, Files, random.Random]], folder: Path) -> list[tuple[int, str]]:
    """Outcomes of cases by number, in forked processes: one that crashes or hangs is told by `crashed` or `hung`."""
    outcomes: list[tuple[int, str]] = []
    while len(outcomes) < len(cases):
        reader, writer = os.pipe()
        if (child := os.fork()) == 0:
            null = os.open(os.devnull, os.O_RDWR)
            for handle in (0, 1, 2):  # what libraries print about a damaged file
                os.dup2(null, handle)
            limit = int(Path("/proc/self/statm").read_text().split()[0]) * 4096 + 3 * MEMORY
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            for one in (signal.SIGINT, signal.SIGTERM):
                signal.signal(one, signal.SIG_DFL)
            for number, files, rng in cases[len(outcomes) :]:
                os.write(writer, f"{number}\t{tried(name, files, rng, folder)}\n".encode())
            os._exit(0)
        os.close(writer)
        os.set_blocking(reader, False)
        text, ended, hung, last, before = b"", False, False, time.monotonic(), 0.0
        while not ended:
            time.sleep(0.002)
            with contextlib.suppress(BlockingIOError):
                piece = os.read(reader, 65536)
                text, last, before, ended = text + piece, time.monotonic(), spent(child), not piece
            # On a busy machine a case may wait; what waits for ever is told by the clock.
            hung = not ended and (spent(child) - before > 3 * SECONDS or time.monotonic() - last > 90 * SECONDS)
            if hung:
                os.kill(child, signal.SIGKILL)
                ended = True
        os.waitpid(child, 0)
        os.close(reader)
        for line in text.decode().splitlines():
            number, outcome = line.split("\t")
            outcomes.append((int(number), outcome))
        if len(outcomes) < len(cases):
            outcomes.append((cases[len(outcomes)][0], "hung" if hung else "crashed"))
    return outcomes


def keep(found: Path, name: str, files: Files, outcome: str) -> None:
    """Keep the files of the first case of a kind of failure."""
    where = found / f"{name}-{hashlib.sha256(outcome.encode()).hexdigest()[:8]}"
    if not where.exists() and sum(map(len, files.values())) < 2**17:
        where.mkdir(parents=True)
        for file, content in files.items():
            (where / file).parent.mkdir(parents=True, exist_ok=True)
            (where / file).write_bytes(content)
        (where / "outcome").write_text(f"{outcome}\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--doors", help="some of them, with commas")
    parser.add_argument("--state", type=Path, help="folder in which what is done is kept, to go on after a stop")
    parser.add_argument("--found", type=Path, default=Path(__file__).parent / "fuzz_found", help="kept failures")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that temporary folders go
    import transformers

    import heredity.analyses.plan  # noqa: F401 - loaded once, before the forks

    transformers.logging.set_verbosity(50)
    for source in Path(heredity.__file__).parent.rglob("*.py"):
        LINES[str(source)] = source.read_text().splitlines()
    fuzz_runs.KEPT = options.state and options.state.resolve() / "finished"
    names = options.doors.split(",") if options.doors else list(DOORS)
    counts: dict[str, Counter[str]] = {name: Counter() for name in names}
    start, done = time.monotonic(), dict.fromkeys(names, 0)
    if options.state and (options.state / "done.json").exists():
        state = json.loads((options.state / "done.json").read_text())
        if state["seed"] == options.seed:
            done |= {name: count for name, count in state["done"].items() if name in done}
            counts |= {name: Counter(own) for name, own in state["counts"].items() if name in counts}
            start -= state["seconds"]
    with tempfile.TemporaryDirectory(prefix="fuzz", dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as place:
        seeds = {}
        for name in names:
            (Path(place) / name).mkdir()
            seeds[name] = DOORS[name][0](Path(place) / name)
            # A seed that is refused would make all of its mutations cheap.
            drawn = [(n, one, random.Random(1)) for n, one in enumerate(seeds[name])]
            fine = {outcome for _, outcome in batch(name, drawn, Path(place) / "case")}
            assert "accepted" in fine and fine <= {"accepted", "refused"}, (name, fine)
            kept = sorted(options.found.glob(f"{name}-*"))
            again = [
                {file: content for file, content in folder_files(one).items() if file != "outcome"} for one in kept
            ]
            drawn = [(n, one, random.Random(n)) for n, one in enumerate(again)]
            for number, outcome in batch(name, drawn, Path(place) / "case"):
                if outcome not in ("accepted", "refused"):
                    counts[name][f"{outcome} (again, {kept[number].name})"] += 1
        share = -(-options.cases // len(names))
        while any(done[name] < share for name in names):
            for name in names:
                last = min(done[name] + BATCH, share)
                drawn = [(n, *case(name, seeds[name], options.seed, n)) for n in range(done[name], last)]
                for number, outcome in batch(name, drawn, Path(place) / "case") if drawn else ():
                    counts[name][outcome] += 1
                    if outcome not in ("accepted", "refused"):
                        keep(options.found, name, drawn[number - done[name]][1], outcome)
                done[name] = last
                if options.state:
                    options.state.mkdir(parents=True, exist_ok=True)
                    whole = {"seed": options.seed, "done": done, "counts": counts, "seconds": time.monotonic() - start}
                    (options.state / "done.json").write_text(json.dumps(whole))
    failed = 0
    print(f"{'door':10} {'cases':>8} {'accepted':>9} {'refused':>8} {'failed':>7}")
    for name in names:
        bad = sum(count for outcome, count in counts[name].items() if outcome not in ("accepted", "refused"))
        failed += bad
        print(f"{name:10} {done[name]:8,} {counts[name]['accepted']:9,} {counts[name]['refused']:8,} {bad:7,}")
        for outcome, count in counts[name].most_common():
            if outcome not in ("accepted", "refused"):
                print(f"    {count:6,} {outcome}")
    print(f"{sum(done.values()):,} cases, {failed:,} failed, {time.monotonic() - start:.0f} s")
    return int(failed > 0)


if __name__ == "__main__":
    sys.path[:0] = [os.environ["HEREDITY_SRC"]] if "HEREDITY_SRC" in os.environ else []
    sys.exit(main())
