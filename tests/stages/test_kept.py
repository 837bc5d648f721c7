"""What single features keep is told of a tiny pair of models, with numbers that a plain computation gives too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from heredity.features.strata import RARE_FIRINGS
from scipy.stats import mannwhitneyu

import tiny
from heredity.engine.stage import Stage, Work, run
from heredity.engine.store import Artifact, Store
from heredity.engine.workers import Here
from heredity.lm.hooks import capture
from heredity.report.kept import KeptSummary, quantiles, spread
from heredity.sae.formats import read_sae
from heredity.stages.kept import KEPT, kept_of, kept_stage, prose_corpus, rank_correlation
from heredity.stages.models import model_stage, seed_of
from heredity.stages.saes import training_stage
from heredity.stages.stitch import maps_stage, sides_of, stitch_blocks, stitch_inputs
from heredity.stages.text import corpus_stage, tokenizer_stage, tokens_stage
from heredity.stitch.functional import null_share
from heredity.stitch.transfer import transfer_sae
from heredity.study import Study

CONTEXT, SEEN = 16, 3_000


class World(NamedTuple):
    """A study and what its stages left."""

    study: Study
    stages: dict[str, Stage]
    artifacts: dict[str, Artifact]

    def work(self, stage: Stage, folder: Path) -> Work:
        """What a stage is given."""
        inputs = {role: self.artifacts[given.label] for role, given in stage.inputs.items()}
        return Work(folder, inputs, stage.config, lambda *_: None, Here())


def values(folder: Path) -> dict[str, Any]:
    """A small and a large model on the same text; `late` reads the small one after its last layer."""
    made = tiny.study_values(folder)
    small = made["model"]["base"]["train"] | {"n_layers": 2, "tokens": 12_000}
    made["model"] = {
        "small": {"train": small},
        "large": {"train": small | {"d_model": 48, "d_mlp": 48, "n_layers": 3}},
    }
    made["corpus"] = {name: made["corpus"][name] | {"validation": 0.3} for name in ("code", "words")}
    made["hook_point"], made["case"] = "blocks.1.hook_resid_pre", {}
    made["sae"] |= {"tokens": 20_000}
    pair = {
        "source": "small",
        "target": "large",
        "target_hook_point": "blocks.1.hook_resid_pre",
        "tokens": 6_000,
        "held_out": 1_000,
        "evaluation": 500,
        "context_size": CONTEXT,
        "adam": {"epochs": 0},
        "features": {"tokens": SEEN, "prompts": 20, "rewrites": 2, "functional": 2},
    }
    late = pair | {"source_hook_point": "blocks.1.hook_resid_post"}
    unasked = pair | {"features": {"tokens": 0}}
    return made | {"stitch": {"pair": pair, "late": late, "unasked": unasked}}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    folder = tmp_path_factory.mktemp("kept")
    study = Study.of(values(folder), root=folder)
    corpora = {name: corpus_stage(study, name) for name in study.config.corpus}
    tokenizer = tokenizer_stage(study, corpora)
    tokens = {name: tokens_stage(name, corpus, tokenizer) for name, corpus in corpora.items()}
    models = {name: model_stage(study, name, {}, tokens, tokenizer, None) for name in study.order}
    sae = training_stage(study, "pair-source", "small", models["small"], None, tokens)
    made = [*corpora.values(), tokenizer, *tokens.values(), *models.values(), sae]
    for name in ("pair", "late"):
        maps = maps_stage(study, name, models, tokens, tokenizer)
        inputs = stitch_inputs(study, name, models, maps, tokens, tokenizer)
        # Behind the name of the prose, `late` gets code.
        read = corpora if name == "pair" else dict.fromkeys(corpora, corpora["code"])
        kept = kept_stage(study, name, inputs, read, sae)
        assert kept is not None
        made += [maps, kept]
    assert kept_stage(study, "unasked", {}, corpora, sae) is None
    artifacts = run(made, Store(folder / "runs"))
    return World(study, {stage.label: stage for stage in made}, artifacts)


@pytest.fixture(scope="module")
def found(world: World) -> KeptSummary:
    return kept_of(world.artifacts["kept/pair"])


@pytest.fixture(scope="module")
def row(world: World) -> dict[str, np.ndarray]:
    table = pq.read_table(world.artifacts["kept/pair"] / "features.parquet")
    return {name: table[name].to_numpy() for name in table.column_names}


def test_every_part_is_told_and_the_record_comes_back(world: World, found: KeptSummary):
    assert found.reasons == {} and found.d_sae == 128 and 20 < found.judged < 128
    assert SEEN / 2 < found.tokens < SEEN + CONTEXT, "whole blocks"
    for part in (found.attribution, found.split, found.entropy, found.deactivation):
        assert part is not None
    assert KeptSummary.model_validate_json(found.model_dump_json()) == found
    assert {name for name in world.stages["kept/pair"].inputs if name.startswith("corpus:")} == {
        "corpus:words", "corpus:code",
    }  # fmt: skip


def test_activations_correlate_as_numpy_says(world: World, found: KeptSummary, row: dict, tmp_path: Path):
    work = world.work(world.stages["kept/pair"], tmp_path)
    sides, (sae, _) = sides_of(work), read_sae(work.inputs["source_sae"] / "sae")
    ids = torch.from_numpy(stitch_blocks(work, "validation", SEEN, CONTEXT, seed_of(world.study, "kept", "pair")))
    moved = transfer_sae(sae, *sides.stitch)
    a = sae.encode(capture(sides.source, sides.source_hook_point, ids).flatten(0, 1)).double().numpy()
    b = moved.encode(capture(sides.target, sides.target_hook_point, ids).flatten(0, 1)).double().numpy()
    assert ids.numel() == found.tokens and np.array_equal(row["source_firings"], (a > 0).sum(0))
    assert np.array_equal(row["judged"], (a > 0).sum(0) >= RARE_FIRINGS) and row["judged"].sum() == found.judged
    live = np.flatnonzero((a.std(0) > 0) & (b.std(0) > 0))
    expected = [np.corrcoef(a[:, i], b[:, i])[0, 1] for i in live]
    np.testing.assert_allclose(row["activation_r"][live], expected, atol=1e-4)
    np.testing.assert_allclose(row["source_peak"], a.max(0), rtol=1e-4)
    known = row["activation_r"][row["judged"] & np.isfinite(row["activation_r"])]
    assert found.activation.n == len(known) == sum(found.activation.histogram)
    expected = np.quantile(known, [0.05, 0.25, 0.5, 0.75, 0.95])
    np.testing.assert_allclose(np.array(found.activation.quantiles, float), expected)
    share = null_share(sides.target, sides.target_hook_point, moved.W_dec).share
    np.testing.assert_allclose(row["carried_null_share"], share, rtol=1e-5)


def test_trained_features_keep_more_of_what_they_push_than_random_ones(found: KeptSummary, row: dict):
    told = found.attribution
    assert told is not None and told.k == 8, "the L0 of a topk SAE is its k"
    own = row["attribution_r"][row["judged"]]
    own = own[np.isfinite(own)]
    assert told.trained.n == len(own) and told.cut == told.random.quantiles[-1]
    assert told.above == pytest.approx((own > told.cut).mean()) and told.negative == pytest.approx((own < 0).mean())
    assert told.random.n > 20 and sum(told.random.histogram) == told.random.n
    assert told.trained.quantiles[2] is not None and told.trained.quantiles[2] > 0.1


def test_structural_and_semantic_features_are_compared(found: KeptSummary, row: dict):
    told = found.split
    assert told is not None and told.corpus == "words", "code comes first, but is no prose"
    assert told.versions == 3 and told.prompts + told.unchanged == 20 and told.prompts > 10
    own = {name: row[name] & row["judged"] for name in ("structural", "semantic")}
    assert not (own["structural"] & own["semantic"]).any()
    assert told.structural.features == own["structural"].sum() > 0 < told.semantic.features == own["semantic"].sum()
    assert told.structural.features + told.semantic.features + told.neither == found.judged
    firings = row["source_firings"] / found.tokens
    assert told.structural.density == pytest.approx(np.median(firings[own["structural"]]))
    for name, each in {"activation": row["activation_r"], "density": firings}.items():
        groups = [each[mask] for mask in own.values()]
        groups = [group[np.isfinite(group)] for group in groups]
        test = mannwhitneyu(*groups, alternative="two-sided")
        assert told.tests[name].p == pytest.approx(test.pvalue)
        assert told.tests[name].effect == pytest.approx(test.statistic / (len(groups[0]) * len(groups[1])))
    assert set(told.tests) == {"attribution", "activation", "density"}


def test_features_with_a_job_are_the_highest_of_their_kind(found: KeptSummary, row: dict):
    entropy, heads = found.entropy, found.deactivation
    assert entropy is not None and heads is not None
    push = row["null_share"] * row["source_peak"]  # trained decoder rows have unit norm
    order = [i for i in np.argsort(-push, kind="stable") if row["judged"][i]]
    assert [each.feature for each in entropy.features] == order[:2]
    assert entropy.features[0].share == pytest.approx(row["null_share"][order[0]])
    assert entropy.dimensions == (1, 1) and entropy.by_chance == pytest.approx((32**-0.5, 48**-0.5))
    kept = row["judged"]
    ranks = [np.argsort(np.argsort(row[name][kept])) for name in ("null_share", "carried_null_share")]
    apart, n = np.square(ranks[0] - ranks[1]).sum(), kept.sum()
    assert entropy.rank == pytest.approx(1 - 6 * apart / (n * (n**2 - 1))), "no two are equal"
    best = [i for i in np.argsort(-row["head_score"], kind="stable") if row["judged"][i]]
    assert [each.feature for each in heads.features] == best[:2] and heads.first == "bos"
    for each in heads.features:
        assert each.source.score == pytest.approx(row["head_score"][each.feature])
        assert each.target.score == pytest.approx(row["carried_head_score"][each.feature])
        assert each.source.layer == 1 and each.target.layer in (1, 2) and each.source.tokens > 0
        assert each.source.attention is not None and 0 < each.source.attention < 1
        assert each.source.attention_drop is not None and each.source.norm is not None and each.source.norm > 0


def test_parts_that_cannot_be_told_say_why_and_the_others_are_there(world: World):
    found = kept_of(world.artifacts["kept/late"])
    assert found.split is None and found.deactivation is None
    assert "none is prose" in found.reasons["split"]
    assert "no attention follows blocks.1.hook_resid_post" in found.reasons["deactivation"]
    assert set(found.reasons) == {"split", "deactivation"} and found.attribution is not None and found.entropy
    table = pq.read_table(world.artifacts["kept/late"] / "features.parquet")
    assert table.num_rows == 128 and "structural" not in table.column_names and "null_share" in table.column_names


def test_the_stage_gives_the_same_again(world: World, tmp_path: Path):
    stage = world.stages["kept/pair"]
    stage.make(world.work(stage, tmp_path))
    assert json.loads((tmp_path / KEPT).read_text()) == world.artifacts["kept/pair"].json(KEPT)


def test_prose_is_found_or_named(world: World):
    corpora = {name: world.artifacts[f"corpus/{name}"] for name in ("code", "words")}
    assert prose_corpus(corpora, None) == "words" and prose_corpus(corpora, "code") == "code"
    with pytest.raises(ValueError, match="of the common corpora, code, none is prose"):
        prose_corpus({"code": corpora["code"]}, None)


def test_figures_of_few_values():
    assert quantiles(np.array([np.nan])) == (None,) * 5 and spread(np.array([0.5, np.nan, -1, 1])).n == 3
    assert spread(np.array([0.5, -1, 1])).histogram[0] == spread(np.array([1.0])).histogram[-1] == 1
    assert rank_correlation(np.array([1.0, 2, np.nan, 9]), np.array([3.0, 4, 5, 6])) == pytest.approx(1)
    assert rank_correlation(np.array([1.0, 1]), np.array([3.0, 4])) is None
