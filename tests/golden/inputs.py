"""The stored inputs, as artifacts and moments."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import artifacts
from heredity.analyses.sample import SampleSettings
from heredity.engine.store import Artifact, write_json
from heredity.features.acts import FeatureActs
from heredity.study import Edge
from heredity.text.tokens import BlockSampler, PackedTokens, load_tokenizer

FOLDER = Path(__file__).parent
CORPORA = ("words", "code", "sums", "stories")
MODELS = ("base", "sums", "stories", "both")
EDGES = (Edge("base", "sums"), Edge("base", "stories"), Edge("sums", "both"), Edge("stories", "both"))
CONTEXT, BLOCKS, SEED = 16, 240, 7
SAMPLE = SampleSettings(CONTEXT * BLOCKS, CONTEXT, SEED, MODELS, EDGES)


def blocks_of(packs: Mapping[str, PackedTokens]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids [blocks, context] of the sample, and the document of each token."""
    sampler = BlockSampler(packs, CONTEXT, SEED, {name: 1 / len(packs) for name in packs})
    return sampler.take(0, BLOCKS), np.repeat(sampler.documents(0, BLOCKS), CONTEXT)


def lineage(folder: Path) -> dict[str, Any]:
    """Inputs of an analysis that reads a `Sample`: artifacts of fake stages in a folder."""
    with np.load(FOLDER / "lineage.npz") as file:
        arrays = dict(file)
    packs: dict[str, PackedTokens] = {}
    tokens: dict[str, Artifact] = {}
    for name in CORPORA:
        ids, documents = arrays[f"tokens/{name}"], arrays[f"documents/{name}"].astype(np.int64)
        packs[name] = PackedTokens(ids, documents)
        tokens[name] = artifacts.tokens_artifact(folder / f"tokens-{name}", ids, documents)
    acts: dict[str, FeatureActs] = {}
    for name in (*MODELS, "control"):
        counts, indices, values = (arrays[f"acts/{name}/{part}"] for part in ("counts", "indices", "values"))
        acts[name] = FeatureActs(np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]), indices, values, 64)
    ids, documents = blocks_of(packs)
    match = {
        edge.name: artifacts.match_artifact(
            folder / edge.name.replace("->", "+"), edge, acts[edge.parent], acts[edge.child], None,
            spare=[acts["control"]] if edge.parent == "base" else [], documents=documents, ids=ids.ravel(),
        )
        for edge in EDGES
    }  # fmt: skip
    shown = artifacts.artifact(folder / "shown")
    write_json(shown / "features.json", [])
    return {
        "tokenizer": artifacts.tokenizer_artifact(folder / "tokenizer", load_tokenizer(str(FOLDER / "tokenizer"))),
        "tokens": tokens,
        "acts": {name: artifacts.acts_artifact(folder / f"acts-{name}", acts[name]) for name in MODELS},
        "match": match,
        "shown": shown,
    }
