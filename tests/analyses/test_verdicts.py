"""Verdicts on an edge are what was done to the child's weights; references stand beside them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import artifacts
from heredity.analyses import one_sae, verdicts
from heredity.analyses.aligned_ends import Sample, read_ends, sample_of
from heredity.analyses.match import MatchSettings, directions_of, match_edge
from heredity.analyses.verdicts import VerdictSettings
from heredity.engine.workers import Here
from heredity.features.collect import Reader
from heredity.lm.load import mistral_config, new_model
from heredity.sae.model import SAE, new_sae
from heredity.study import ArchitectureConfig, Edge, LineageConfig, ReferencesConfig
from heredity.synthetic.surgery import shaken
from heredity.text.tokens import BlockSampler, PackedTokens

VOCAB, D_MODEL, UNITS, LAST = 90, 24, 32, "blocks.1.mlp.hook_post"
SILENT, SWAPPED, FAINT, UNSTABLE = (2, 5, 11), (20, 21), (7, 8), (30, 31)
"""Units of the child that are off, changed places, are weaker; and units that only one SAE of the parent reads."""
ALSO_SILENT = (*SILENT[:2], 13, 14)
"""Units that are off in the child's twin."""


def model() -> Any:
    shape = ArchitectureConfig(d_model=D_MODEL, d_mlp=UNITS, n_layers=2, n_heads=4)
    return new_model(mistral_config(shape, VOCAB, 64, 0), 0).eval()


def child_model(silent: tuple[int, ...] = SILENT) -> Any:
    made = model()
    mlp = made.model.layers[1].mlp
    a, b = list(SWAPPED), list(SWAPPED[::-1])
    with torch.no_grad():
        mlp.up_proj.weight[list(silent)] = 0
        mlp.up_proj.weight[list(FAINT)] *= 0.3
        mlp.gate_proj.weight[a], mlp.up_proj.weight[a] = mlp.gate_proj.weight[b], mlp.up_proj.weight[b]
    return made


def units(seed: int, unread: tuple[int, ...] = ()) -> SAE:
    """One feature for each unit and sign, in an order of its own, but none for some units."""
    sae = new_sae(UNITS, 2 * UNITS, "relu")
    order = np.random.default_rng(seed).permutation(2 * UNITS) if seed else np.arange(2 * UNITS)
    sae.W_enc.copy_(torch.cat([torch.eye(UNITS), -torch.eye(UNITS)], dim=1)[:, order])
    sae.W_dec.copy_(sae.W_enc.T)
    for unit in unread:
        sae.b_enc[torch.from_numpy(np.isin(order, [unit, unit + UNITS]))] = -1e6
    return sae


def both(unit: tuple[int, ...]) -> list[int]:
    return [*unit, *(UNITS + one for one in unit)]


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> dict[str, Any]:
    folder, rng = tmp_path_factory.mktemp("verdicts"), np.random.default_rng(0)
    ids, documents = rng.integers(0, VOCAB, 16 * 1200), np.arange(0, 16 * 1200 + 1, 64)
    sae = {
        f"{end}{n}": artifacts.sae_artifact(folder / f"{end}{n}", units(seed, unread))
        for end, n, seed, unread in (("p", 0, 0, ()), ("p", 1, 1, UNSTABLE), ("c", 0, 2, ()), ("c", 1, 3, ()))
    }
    inputs = {
        "parent": artifacts.model_artifact(folder / "parent", model()),
        "child": artifacts.model_artifact(folder / "child", child_model()),
        "sham": artifacts.model_artifact(folder / "sham", shaken(model(), child_model(), 1)),
        "twin": artifacts.model_artifact(folder / "twin", child_model(ALSO_SILENT)),
        "parent_saes": {"0": sae["p0"], "1": sae["p1"]},
        "child_saes": {"0": sae["c0"], "1": sae["c1"]},
        "tokens": {"words": artifacts.tokens_artifact(folder / "tokens", ids, documents)},
    }
    steps: list[tuple[int, int]] = []
    work = artifacts.work_of(folder / "work", inputs, lambda *step: steps.append(step))
    edge = Edge("base", "tuned")
    references = ReferencesConfig(twin=True, random_decoder=True, neurons=True)
    settings = VerdictSettings(edge, LAST, "float32", 9_600, 16, "tokens", references, "independent", 4, 4)
    rows = verdicts.ANALYSIS.run(work, settings)
    assert steps == [(done, 14) for done in range(1, 15)]
    item = {**artifacts.SITE, "edge": edge.name, "text": "common"}
    checked = {table.name: table.check(rows[table.name], **item) for table in verdicts.ANALYSIS.tables}
    return {name: table.to_pylist() for name, table in checked.items()}


def of(tables: dict[str, Any], end: str) -> np.ndarray:
    return np.array([row["verdict"] for row in tables["evidence"] if row["end"] == end])


def test_verdicts_on_parent_features_are_what_was_done_to_the_child(tables):
    verdict = of(tables, "parent")
    assert set(verdict[both(SILENT)]) == {"lost"} and set(verdict[both(FAINT)]) == {"changed"}
    assert set(verdict[both(UNSTABLE)]) == {"unstable"}
    left = np.setdiff1d(np.arange(2 * UNITS), [*both(SILENT), *both(FAINT), *both(UNSTABLE)])
    assert set(verdict[left]) == {"kept"}, "units that changed places among them: the same in another basis"
    parent = next(row for row in tables["verdicts"] if row["end"] == "parent")
    assert (parent["stable"], parent["lost"], parent["changed"], parent["undecided"]) == (60, 6, 4, 0)
    assert parent["lost_share_low"] < 0.1 < parent["lost_share_high"] and parent["agreement"] == 1


def test_child_features_have_their_own_words(tables):
    # What is silent in the child is no feature of it; what it has weaker, the parent has three times as strong.
    child = next(row for row in tables["verdicts"] if row["end"] == "child")
    assert child["live"] == 2 * UNITS - 2 * len(SILENT) and child["lost"] == 0
    assert set(of(tables, "child")) == {"inherited", "changed", "unstable"}


def test_references_keep_what_nothing_was_done_to(tables):
    by_name = {row["reference"]: row for row in tables["references"]}
    same, made = ["unchanged", "edit", "sham"], ["codebook", "random decoder", "token identity"]
    assert list(by_name) == [*same, "twin", "frozen", "removal", *made[:2], "neurons", *made[2:]]
    assert all(by_name[name]["lost"] == 0 for name in same + made), "a random change of the same size loses nothing"
    assert by_name["unchanged"]["kept"] == by_name["sham"]["stable"] == 60
    assert by_name["random decoder"]["stable"] == 0, "random directions of two seeds have nothing in common"
    assert by_name["neurons"]["lost"] == 2 * len(SILENT), "units are what these models' features are"
    removal = by_name["removal"]
    assert removal["removed"] == removal["removed_lost"] == 8 <= removal["lost"] <= 16, "and their other signs"


def test_grades_are_shares_of_judged_features_by_effect(tables):
    lines = {row["line"]: {} for row in tables["grades"]}
    for row in tables["grades"]:
        lines[row["line"]][row["transmission"]] = row["features"]
    assert {"edge", "unchanged", "edit", "sham", "removal", "codebook"} <= set(lines)
    assert "token identity" not in lines, "it has no evidence of its own"
    assert sum(lines["edge"].values()) == sum(lines["unchanged"].values()) == 60
    assert lines["edge"][0.0] + lines["edge"][-0.1] == 6, "silent units, at 0"
    assert lines["unchanged"][0.9] + lines["unchanged"][1.0] == 60


def test_a_twin_gives_an_interval_that_covers_another_training(tables):
    by_name = {row["reference"]: row for row in tables["references"]}
    assert (by_name["frozen"]["lost"], by_name["twin"]["lost"]) == (2 * len(SILENT), 2 * len(ALSO_SILENT))
    parent, child = (next(row for row in tables["verdicts"] if row["end"] == end) for end in ("parent", "child"))
    spread = 1.96 * math.sqrt(2 + 4) / 60  # one unit is silent in the child alone, two in the twin alone, both signs
    for name in ("kept", "lost"):
        share, *ends = (parent[f"{name}_share{end}"] for end in ("", "_low", "_high"))
        wide = [parent[f"{name}_share_retrained_{end}"] for end in ("low", "high")]
        sides = [math.hypot(end - share, spread) for end in ends]
        assert wide == pytest.approx([share - sides[0], share + sides[1]]), name
        assert child[f"{name}_share_retrained_low"] is None, "of the parent alone"


def test_what_changed_most_is_what_was_changed_most(tables):
    ranked = [row["feature"] for row in tables["changed_most"] if row["end"] == "parent"]
    assert set(ranked) == {*both(SILENT), *both(FAINT)}
    assert all(row["transmission_low"] <= row["transmission"] for row in tables["changed_most"])
    for row in (row for row in tables["changed_most"] if row["end"] == "parent"):
        assert row["sham"] < row["change"] / 3 and row["seed"] > row["change"] / 3, "not by the sham, by both seeds"


def test_with_one_sae_the_evidence_is_told_without_verdicts():
    ids, documents = np.random.default_rng(0).integers(0, VOCAB, (1200, 16)), np.repeat(np.arange(300), 64)
    sample = Sample(ids[:600], ids[600:], documents[: 600 * 16])
    sae = units(0)
    readers = {end: Reader(made, LAST, [sae]) for end, made in (("parent", model()), ("child", child_model()))}
    columns, same = one_sae.evidence(*read_ends(readers, sample), 4, pytest.fail)
    assert not same
    verdicts.EVIDENCE.check(columns, **artifacts.SITE, edge="base->tuned", text="common")
    assert set(columns["verdict"]) == {"stability unknown"} and set(columns["end"]) == {"parent"}
    left = np.setdiff1d(np.arange(2 * UNITS), [*both(SILENT), *both(FAINT), *both(SWAPPED)])
    assert (columns["p_lost"][both(SILENT)] < 0.01).all() and (columns["p_lost"][left] > 0.9).all()
    assert np.abs(columns["transmission"][left] - 1).max() < 0.1 and columns["transmission"][both(FAINT)].max() < 0.5


def test_positions_that_are_no_samples_have_no_say():
    """A child that reads other tokens than an assistant's otherwise has all features unchanged on the assistant's."""

    def token_by_token(made: Any) -> Any:
        with torch.no_grad():
            for layer in made.model.layers:
                layer.self_attn.o_proj.weight.zero_()
        return made

    theirs, child = np.arange(VOCAB) < VOCAB // 2, token_by_token(model())
    with torch.no_grad():
        order = torch.randperm(VOCAB // 2, generator=torch.Generator().manual_seed(0))
        child.model.embed_tokens.weight[theirs] = child.model.embed_tokens.weight[theirs][order]
    ids = np.random.default_rng(0).integers(0, VOCAB, (1200, 16))
    packed = PackedTokens(ids.ravel(), np.arange(0, ids.size + 1, 64), spoken=~theirs[ids].ravel())
    readers = {"parent": Reader(token_by_token(model()), LAST, [units(0)]), "child": Reader(child, LAST, [units(0)])}
    told = {}
    for name, pack in (("all", replace(packed, spoken=None)), ("assistant", packed)):
        sampler = BlockSampler({"talks": pack}, 16, 0)
        columns, same = one_sae.evidence(*read_ends(readers, sample_of(sampler, 9_600)), 4, pytest.fail)
        jobs = (Here().job(lambda end=end: readers[end]) for end in ("parent", "child"))
        lineage = LineageConfig(threshold=0.9, tokens=9_600)
        end = Edge("base", "tuned"), LAST, "float32"
        settings = MatchSettings(*end, lineage, 1, 0.05, 50, 0.95, 16, "tokens", 4, 4)
        rows = match_edge(tuple(jobs), directions_of(*[units(0)] * 2), sampler, settings)
        told[name] = columns, same, rows["edges"][0]["tokens"]
        kept = np.ma.getmaskarray(sampler.take(0, 600))
        assert told[name][2] == (~kept).sum()
    columns, same, _ = told["assistant"]
    assert same and np.allclose(columns["transmission"], 1)
    columns, same, _ = told["all"]
    assert not same and np.median(np.abs(columns["transmission"] - 1)) > 0.1


def test_statements_hold_counts_intervals_and_references(tables):
    said = list(verdicts.ANALYSIS.say(tables))
    lost = next(one for one in said if one.question == "lost")
    assert "lost 6 of 60 stable features of base (10 %, 95 % CI " in lost.text and "none are undecided" in lost.text
    assert any("random weight changes" in line for one in said for line in one.evidence)
    sure = " ".join(one.text for one in said if one.question == "sure")
    assert "The lost share of base is 4.7–20 % over SAE seeds and features of these two models, and 0.4–23 % " in sure
    assert "Of 60 stable features of base, training on with its own text, by the recipe of tuned, loses 0 " in sure
    untrained = sure[sure.index("tuned keeps 83 %; of dictionaries that nobody trained, ") :]
    assert "as many, within error, of single neurons" in untrained or "more of single neurons" in untrained, untrained


def test_verdicts_of_a_study_add_up_for_every_instrument(lineage):
    rows = lineage.run["verdicts"].to_pylist()
    assert {row["instrument"] for row in rows} == {"parent", "independent", "joint"}
    evidence = lineage.run["evidence"].to_pandas()
    assert {(row["edge"], row["text"]) for row in rows if row["text"] != "common"} == {
        ("base->sums", "own"),
        ("base->stories", "own"),
    }, "a merge has no text of its own"
    for row in rows:
        mine = evidence[(evidence.instrument == row["instrument"]) & (evidence.edge == row["edge"])]
        mine = mine[(mine.end == row["end"]) & (mine.text == row["text"])]
        word = "kept" if row["end"] == "parent" else "inherited"
        assert (mine.verdict == word).sum() == row["kept"] and (mine.verdict != "unstable").sum() == row["stable"]
        assert mine.owned.all() or row["instrument"] == "joint"


# -- other texts --------------------------------------------------------------------------------------------------

LEARNED, WORDS = 12, range(70, 90)
"""A unit that only the child has, and the tokens that it fires on, which its own text alone holds."""


def learned(made: Any, taught: bool) -> Any:
    """A model in which no unit but this one reads the last dimension, which tells those tokens from all others."""
    with torch.no_grad():
        embedding, (first, last) = made.model.embed_tokens.weight, made.model.layers
        embedding[:, -1] = 0
        embedding[list(WORDS), -1] = embedding.std() * 8
        for into in (first.self_attn.o_proj, first.mlp.down_proj, last.self_attn.o_proj):
            into.weight[-1] = 0
        for out in (last.mlp.gate_proj, last.mlp.up_proj):
            out.weight[:, -1] = 0
            out.weight[LEARNED] = 0
            out.weight[LEARNED, -1] = 0.03 if taught else 0
    return made


def test_what_the_child_learned_shows_on_its_own_text_and_not_on_the_common_one():
    own = units(0), units(1)
    readers = {"parent": Reader(learned(model(), False), LAST, own), "child": Reader(learned(model(), True), LAST, own)}
    nothing = ReferencesConfig(**dict.fromkeys(ReferencesConfig.model_fields, False))
    settings = VerdictSettings(
        Edge("base", "tuned"), LAST, "float32", 9_600, 16, "tokens", nothing, "independent", 4, 4
    )
    rng, starts = np.random.default_rng(0), np.arange(0, 16 * 1200 + 1, 64)
    said = {}
    for text, words in (("common", VOCAB - len(WORDS)), ("own", VOCAB)):
        sampler = BlockSampler({text: PackedTokens(rng.integers(0, words, 16 * 1200), starts)}, 16, 0)
        ends, sample = read_ends(readers, sample_of(sampler, 9_600))
        rows = verdicts.rows_of_ends(ends, readers["parent"], sample, settings, {})
        said[text] = np.array(
            [rows["evidence"]["verdict"][rows["evidence"]["end"] == end] for end in ("parent", "child")]
        )
        child = rows["verdicts"][1]
        assert child["lost"] == (text == "own") and child["live"] == 2 * UNITS - 2 + child["lost"]
    assert said["common"][1, LEARNED] == "unstable" and said["own"][1, LEARNED] == "new"
    assert set(said["own"][0]) == {"kept", "unstable"}, "the parent lost nothing on either text"


def test_what_changed_most_is_told_in_units_of_the_random_edit():
    rng = np.random.default_rng(0)
    usual = {"effect": rng.random(200) / 10, "r": rng.random(200) / 20, "density": rng.random(200) / 5}
    columns = {
        "verdict": np.array(["kept"] * 5 + ["unstable"], object),
        "transmission": np.array([2.0, 2.6, 2.0, 2.0, 2.0, 9.0]),  # of a scale of 2
        "map_r": np.array([1.0, 1.0, 0.9, 1.0, np.nan, 1.0]),
        "match_r": np.array([0.8, 0.8, 0.8, np.nan, np.nan, 0.8]),
        "density_ratio": np.array([1.0, 1.0, 1.0, 2.0, 0.0, 1.0]),
        "firings": np.full(6, 100),
    }
    columns |= {
        f"{name}_{end}": columns[name] for name in ("match_r", "map_r", "density_ratio") for end in ("low", "high")
    }
    columns |= {"strength": np.ones(6), "strength_error": np.ones(6), "transmission_error": np.zeros(6)}
    sham = {name: np.full(6, 0.06) for name in usual}
    rows = verdicts._changed_most("child", columns, 2.0, usual, {"sham": sham})
    assert rows[2]["sham"] == pytest.approx(0.06 / np.quantile(usual["effect"], 0.95)) and "seed" not in rows[2]
    assert [(row["feature"], row["by"]) for row in rows] == [
        (4, "density"),
        (3, "density"),
        (1, "effect"),
        (2, "r"),
        (0, "effect"),
    ]
    assert rows[2]["change"] == pytest.approx(0.3 / np.quantile(usual["effect"], 0.95))
    assert [row["beyond_edit"] for row in rows] == [True, True, True, True, False]
    uncertain = columns | {"transmission_error": np.array([0, 0.25, 0, 0, 0, 0]), "density_ratio_low": np.full(6, 0.9)}
    again = verdicts._changed_most("child", uncertain, 2.0, usual, {"sham": sham})
    assert [row["feature"] for row in again] == [4, 2, 1, 0, 3], "what may be no change stands last"
    assert again[2]["change"] == rows[2]["change"] > again[2]["least_change"] > 0
    alone = verdicts._changed_most("child", columns, 2.0, None, {"sham": sham})
    assert alone[0]["feature"] == 1 and {row["by"] for row in alone} == {"effect"} and "change" not in alone[0]
