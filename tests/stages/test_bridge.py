"""An edge that is a stitch too: features carried by the maps beside the matches, and the calls of both counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import tiny
from heredity import metrics
from heredity.engine.stage import Stage, Work, run
from heredity.engine.store import Artifact, Store
from heredity.engine.workers import Here
from heredity.lm.hooks import capture
from heredity.report.bridge import BridgeSummary
from heredity.sae.formats import read_sae
from heredity.stages.bridge import bridge_edge, bridge_of, bridge_stage
from heredity.stages.lineage import COUNTS, match_stage, read_matches
from heredity.stages.models import model_stage, seed_of
from heredity.stages.saes import sae_stage
from heredity.stages.stitch import maps_stage, sides_of, stitch_blocks, stitch_inputs
from heredity.stages.text import corpus_stage, tokenizer_stage, tokens_stage
from heredity.stitch.transfer import transfer_sae
from heredity.study import Edge, Study

HOOK, CONTEXT, SEEN = "blocks.0.hook_resid_post", 16, 2_000


class World(NamedTuple):
    """A study and what its stages left."""

    study: Study
    stages: dict[str, Stage]
    artifacts: dict[str, Artifact]


def values(folder: Path) -> dict[str, Any]:
    """A parent and its child; `elsewhere` reads the child at another place, `back` goes against the edge."""
    made = tiny.study_values(folder)
    made["model"] = {name: made["model"][name] for name in ("base", "sums")}
    made["corpus"] = {name: made["corpus"][name] | {"validation": 0.3} for name in ("words", "code", "sums")}
    made["hook_point"], made["case"] = HOOK, {}
    made["sae"] |= {"init": "joint", "tokens": 15_000}
    made["lineage"] = {"tokens": 4_000}
    stitch = {
        "source": "base",
        "target": "sums",
        "target_hook_point": HOOK,
        "tokens": 6_000,
        "held_out": 1_000,
        "evaluation": SEEN,
        "context_size": CONTEXT,
        "adam": {"epochs": 0},
    }
    elsewhere = {key: value for key, value in stitch.items() if key != "target_hook_point"}
    back = stitch | {"source": "sums", "target": "base"}
    return made | {"stitch": {"along": stitch, "elsewhere": elsewhere, "back": back}}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    folder = tmp_path_factory.mktemp("bridge")
    study = Study.of(values(folder), root=folder)
    corpora = {name: corpus_stage(study, name) for name in study.config.corpus}
    tokenizer = tokenizer_stage(study, corpora)
    tokens = {name: tokens_stage(name, corpus, tokenizer) for name, corpus in corpora.items()}
    models: dict[str, Stage] = {}
    for name in study.order:
        models[name] = model_stage(study, name, models, tokens, tokenizer, None)
    saes: dict[str, Stage] = {}
    for name in study.order:
        saes[name] = sae_stage(study, name, "joint", models, saes, tokens)
    match = match_stage(study, Edge("base", "sums"), "joint", models, saes, [], tokens)
    made = [*corpora.values(), tokenizer, *tokens.values(), *models.values(), saes["base"], match]
    for name in ("along", "elsewhere"):
        maps = maps_stage(study, name, models, tokens, tokenizer)
        inputs = stitch_inputs(study, name, models, maps, tokens, tokenizer)
        made += [maps, bridge_stage(study, name, inputs, match, saes["base"])]
    return World(study, {stage.label: stage for stage in made}, run(made, Store(folder / "runs")))


def test_only_a_stitch_from_parent_to_child_is_a_bridge(world: World):
    assert bridge_edge(world.study, "along") == Edge("base", "sums")
    assert bridge_edge(world.study, "back") is None


def test_the_counts_and_correlations_are_those_of_a_plain_computation(world: World, tmp_path: Path):
    told = bridge_of(world.artifacts["bridge/along"])
    found = told.compared
    assert told.edge == "base->sums" and told.reason == "" and found is not None and found.one_sae
    assert BridgeSummary.model_validate_json(told.model_dump_json()) == told
    stage = world.stages["bridge/along"]
    inputs = {role: world.artifacts[given.label] for role, given in stage.inputs.items()}
    work = Work(tmp_path, inputs, stage.config, lambda *_: None, Here())
    sides, (sae, _) = sides_of(work), read_sae(work.inputs["parent_sae"] / "sae")
    ids = torch.from_numpy(stitch_blocks(work, "validation", SEEN, CONTEXT, seed_of(world.study, "bridge", "along")))
    assert found.tokens == ids.numel() > SEEN / 2 and found.hook_point == HOOK
    x, y = (capture(model, HOOK, ids).flatten(0, 1) for model in (sides.source, sides.target))
    carried = transfer_sae(sae, *sides.stitch)
    table = pq.read_table(world.artifacts["bridge/along"] / "bridge.parquet")
    row = {name: table[name].to_numpy() for name in table.column_names}
    a = sae.encode(x).double().numpy()
    for arm, reader in (("carried", carried), ("unchanged", sae)):
        b = reader.encode(y).double().numpy()
        live = np.flatnonzero((a.std(0) > 0) & (b.std(0) > 0))
        expected = [np.corrcoef(a[:, i], b[:, i])[0, 1] for i in live]
        assert len(live) > 30
        np.testing.assert_allclose(row[f"{arm}_r"][live], expected, atol=1e-4)
        variance = getattr(found, f"{arm}_explained_variance")
        assert variance == pytest.approx(metrics.explained_variance(y, reader(y)), abs=1e-4)
    assert found.parent_explained_variance == pytest.approx(metrics.explained_variance(x, sae(x)), abs=1e-4)
    matches = read_matches(inputs["match"].folder)
    np.testing.assert_array_equal(row["matched_r"], matches.parent_r[:, 0])
    assert found.threshold == inputs["match"].json(COUNTS)["threshold"]
    assert found.matched == (matches.parent_r[:, 0] > found.threshold).sum()
    assert found.live == np.isfinite(matches.parent_r[:, 0]).sum() and found.unchanged is not None
    for each in (found.carried, found.unchanged):
        assert each.both + each.only == each.persisting and each.both + each.only_matched == found.matched
        assert each.persisting + each.only_matched + each.neither == found.live
        assert each.rank is not None and each.rank > 0, "what is kept, is kept by either"


def test_maps_between_other_places_give_a_reason(world: World):
    told = bridge_of(world.artifacts["bridge/elsewhere"])
    assert told.compared is None and not (world.artifacts["bridge/elsewhere"] / "bridge.parquet").exists()
    assert f"from {HOOK} to blocks.0.hook_resid_pre, but features are followed at {HOOK}" in told.reason
