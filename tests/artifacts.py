"""Artifacts made by hand, as stages write them, and the work of a stage that reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from heredity.analyses import match, write_tables
from heredity.engine.stage import Work
from heredity.engine.store import Artifact, write_json
from heredity.engine.workers import Here
from heredity.features.acts import FeatureActs
from heredity.features.correlate import correlate
from heredity.features.edge_statistics import Compared, Directions, Settings, edge_statistics
from heredity.features.null import floor
from heredity.study import Edge

SITE = {"instrument": "joint", "site": "blocks.0.mlp.hook_post"}


def table_of(artifact: Artifact, name: str) -> pa.Table:
    return pq.read_table(artifact / f"{name}.parquet")


def artifact(folder: Path) -> Artifact:
    folder.mkdir(parents=True, exist_ok=True)
    return Artifact(folder, str(folder))  # a key of its own, as what is read is held by it


def work_of(folder: Path, inputs: Mapping[str, Any], progress: Callable[[int, int], None] | None = None) -> Work:
    """Work in a folder; a stage's `run` is called with it."""
    folder.mkdir(parents=True, exist_ok=True)
    return Work(folder, inputs, {}, progress or (lambda done, total: None), Here())


def tokens_artifact(folder: Path, tokens: np.ndarray, documents: np.ndarray, split: str = "train") -> Artifact:
    """Packed tokens. documents: int [documents + 1], the start of each and the end of the last."""
    (folder / split).mkdir(parents=True)
    np.save(folder / split / "tokens.npy", np.asarray(tokens, np.uint16))
    np.save(folder / split / "documents.npy", np.asarray(documents, np.int64))
    return artifact(folder)


def tokenizer_artifact(folder: Path, tokenizer: Any) -> Artifact:
    tokenizer.save_pretrained(folder / "tokenizer")
    write_json(folder / "config.json", {})
    return artifact(folder)


def acts_artifact(folder: Path, acts: FeatureActs) -> Artifact:
    made = artifact(folder)
    acts.save(folder / "acts.safetensors")
    return made


def model_artifact(folder: Path, model: Any) -> Artifact:
    from heredity.lm.load import state_hash

    model.save_pretrained(folder / "model")
    write_json(folder / "record.json", {"state": state_hash(model.state_dict())})
    return artifact(folder)


def sae_artifact(folder: Path, sae: Any, **metadata: Any) -> Artifact:
    from heredity.sae.formats import write_sae

    write_sae(sae, folder / "sae", {"training_tokens": 0, "seed": 0, **metadata})
    return artifact(folder)


def match_artifact(
    folder: Path,
    edge: Edge,
    parent: FeatureActs,
    child: FeatureActs,
    threshold: float | None,
    *,
    spare: Sequence[FeatureActs] = (),
    documents: np.ndarray | None = None,
    ids: np.ndarray | None = None,
    directions: Directions | None = None,
    item: Mapping[str, Any] = SITE,
) -> Artifact:
    """An edge between activations on the same tokens. threshold: on r; None chooses by evidence."""
    matched = correlate(parent, child, 3), [correlate(parent, acts, 1) for acts in spare], floor(parent, child, 1, 0)
    documents, ids = (np.zeros(parent.tokens, np.int64) if given is None else given for given in (documents, ids))
    compared = Compared(parent, child, spare, *matched, documents, ids)
    statistics = edge_statistics(compared, Settings(threshold, 0.01, 100, 0.95, 0), directions)
    made = artifact(folder)
    write_tables(match.TABLES, match.rows_of_edge(compared, statistics, edge), folder, {**item, "edge": edge.name})
    return made
