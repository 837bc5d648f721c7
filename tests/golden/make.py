"""Make the stored inputs of the golden tests. Run by hand, from the root, when their form must change:

    PYTHONPATH=tests python tests/golden/make.py && HEREDITY_UPDATE_GOLDEN=1 python -m pytest tests/golden

Every number of the golden files then rests on new inputs: raise no version for it, but delete the JSON files first.

lineage.npz: the tiny study's models with SAEs of 64 features, read on a few hundred blocks of all corpora. Activations
are rounded to float16, so that they are stored exactly; of each set the firings per token, features and values. Packed
tokens and the starts of documents, by corpus. tokenizer/: the tokenizer. stitch-*.safetensors: moments of two tiny
models of different width, to fit maps on, to choose the ridge, and to judge.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import tiny
from heredity.analyses import Pipeline
from heredity.analyses.reading import packs, reader_of, tokenizer_of
from heredity.engine.stage import run
from heredity.engine.store import Store
from heredity.features.acts import FeatureActs
from heredity.features.collect import encoded
from heredity.lm.load import load_model
from heredity.stitch.affine import MomentStream
from heredity.stitch.aligned import Points, aligned
from heredity.study import load_study
from heredity.text.tokens import PackedTokens, load_tokenizer
from heredity.two_models import sampler_of

from golden.inputs import CONTEXT, CORPORA, FOLDER, MODELS, blocks_of  # isort: skip - a folder of the tests

TOKENS = 1_200  # per corpus
RESIDUAL = "blocks.0.hook_resid_post"


def rounded(acts: FeatureActs) -> FeatureActs:
    """The same in float16; what that rounds to zero is left out."""
    return FeatureActs.from_dense(acts.dense().astype(np.float16).astype(np.float32))


def lineage(folder: Path) -> dict[str, np.ndarray]:
    """Train the study as far as its SAEs, and read it."""
    values = tiny.study_values(folder)
    values["sae"] |= {"instruments": ["parent"], "expansion": 2, "k": 6, "tokens": 60_000, "continue_tokens": 20_000}
    pipeline = Pipeline(load_study(str(tiny.toml(values, folder / "s.toml"))))
    label = {name: f"sae/{name}@{'scratch' if name == 'base' else 'parent'}" for name in MODELS}
    label["control"] = "sae/base@control1-from-base"
    labels = [*label.values(), *(f"tokens/{name}" for name in CORPORA)]
    done = run(pipeline.closure(labels), Store(folder / "runs"))
    tokenizer_of(done["tokenizer/base"]).save_pretrained(FOLDER / "tokenizer")
    arrays: dict[str, np.ndarray] = {}
    own = packs({name: done[f"tokens/{name}"] for name in CORPORA}, "train")
    for name, pack in own.items():
        stop = int(np.searchsorted(pack.documents, TOKENS))
        arrays[f"documents/{name}"] = pack.documents[: stop + 1].astype(np.int32)
        arrays[f"tokens/{name}"] = np.asarray(pack.tokens[: pack.documents[stop]], np.uint16)
    cut = {name: PackedTokens(arrays[f"tokens/{name}"], arrays[f"documents/{name}"].astype(np.int64)) for name in own}
    ids = blocks_of(cut)[0]
    for name, sae in label.items():
        model = done[f"model/{'base' if name == 'control' else name}"]
        (acts,) = encoded(reader_of(model, [done[sae]], tiny.HOOK, "float32")(), ids)
        acts = rounded(acts)
        arrays[f"acts/{name}/counts"] = np.diff(acts.indptr).astype(np.uint8)
        arrays[f"acts/{name}/indices"] = acts.indices.astype(np.int16)
        arrays[f"acts/{name}/values"] = acts.values.astype(np.float16)
    return arrays


def stitch(folder: Path) -> None:
    """Moments between two tiny models that read generated lines."""
    widths: dict[str, Any] = {"a": 16, "b": 24}
    paths = [tiny.save_tiny_model(folder / name, seed, width) for seed, (name, width) in enumerate(widths.items())]
    models, tokenizer = [load_model(str(path)).eval() for path in paths], load_tokenizer(str(paths[0]))
    texts = [f"the cat {number % 9} sat on the mat = {number}; x = y + {number % 7}\n" * 4 for number in range(200)]
    sampler = sampler_of(texts, tokenizer, folder / "packed", CONTEXT, 0)
    blocks = sampler.take(0, sampler.blocks_per_pass)
    points = [Points(model, [RESIDUAL]) for model in models]
    for name, part in {"fit": blocks[200:], "tune": blocks[:100], "judge": blocks[100:200]}.items():
        stream = MomentStream()
        for a, b in aligned(*points, part, list(tokenizer.all_special_ids), "float32"):
            stream.add(a, b)
        stream.pair(0, 0).save(FOLDER / f"stitch-{name}.safetensors")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        np.savez_compressed(FOLDER / "lineage.npz", **lineage(Path(made) / "lineage"))  # pyright: ignore[reportArgumentType]
        stitch(Path(made))
