"""The stage finds planted classes among kept, lost and new features of a study's edges, on the study's own tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import tiny
from heredity.engine.stage import Stage, Work, run
from heredity.engine.store import Artifact, Store, write_json
from heredity.features.acts import FeatureActs
from heredity.features.classes import CLASSES
from heredity.features.correlate import correlate
from heredity.report.classes import ClassesSummary, ClassGroup
from heredity.stages import text
from heredity.stages.classes import classes_stage
from heredity.stages.lineage import COUNTS, acts_of, sampler_of, write_matches
from heredity.stages.models import seed_of
from heredity.stages.sample import sample_inputs
from heredity.study import Study, load_study

FEATURES: Mapping[str, tuple[str, ...]] = {
    "base": ("periods", "lines", "name", "words", "noise 1", "dead"),
    "sums": ("lines", "periods", "digits", "noise 2", "few", "dead"),
    "stories": ("periods", "lines", "name", "noise 3", "noise 4", "dead"),
    "both": ("lines", "digits", "noise 5", "dead", "periods", "name"),
}
"""What every feature of every model fires on; the same name fires on the same tokens, a noise on its own."""


def planted_acts(study: Study, model: str, tokens: dict[str, Stage]) -> Stage:
    """Activations of the features of a model on the study's sample."""
    size, count = study.config.sae.context_size, study.config.report.tokens
    seed = seed_of(study, "sample")

    def make(work: Work) -> None:
        sampler = sampler_of(work, "train", size, seed, "equal")
        blocks = -(-count // size)
        ids, corpus = sampler.take(0, blocks).ravel(), np.repeat(sampler.origin(0, blocks)[0], size)
        tokenizer = text.tokenizer_of(work.inputs["tokenizer"])
        words = np.array([str(tokenizer.decode([number])) for number in range(len(tokenizer))], object)[ids]
        columns = [_column(name, words, corpus == sampler.names.index("words")) for name in FEATURES[model]]
        FeatureActs.from_dense(np.stack(columns, 1)).save(work.folder / "acts.safetensors")

    inputs = {f"tokens:{name}": stage for name, stage in tokens.items()}
    return Stage("acts", model, {"seed": seed}, {"tokenizer": tokens_of(tokens), **inputs}, make)


def tokens_of(tokens: dict[str, Stage]) -> Stage:
    return next(iter(tokens.values())).inputs["tokenizer"]


def _column(name: str, words: np.ndarray, in_words: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(list(name.encode()))
    if name.startswith("noise"):
        return rng.random(len(words)) * (rng.random(len(words)) < 0.05)
    where = {
        "periods": words == ".",
        "lines": words == "\n",
        "name": words == " y",
        "digits": np.array([word.strip().isdigit() for word in words]),
        "words": in_words & (rng.random(len(words)) < 0.2),
        "few": (words == ".") & (np.cumsum(words == ".") <= 9),
        "dead": np.zeros(len(words), bool),
    }[name]
    return where * rng.uniform(0.9, 1.1, len(words))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("classes")
    study = load_study(tiny.toml(tiny.study_values(folder), folder / "s.toml"))
    corpora = {name: text.corpus_stage(study, name) for name in study.config.corpus}
    tokenizer = text.tokenizer_stage(study, corpora)
    tokens = {name: text.tokens_stage(name, corpus, tokenizer) for name, corpus in corpora.items()}
    acts = {model: planted_acts(study, model, tokens) for model in study.order}

    def matching(ends: dict[str, Stage], name: str) -> Stage:
        def make(work: Work) -> None:
            parent, child = (acts_of(work.inputs[end].folder) for end in ("parent", "child"))
            write_matches(correlate(parent, child, 2), work.folder)
            write_json(work.folder / COUNTS, {"threshold": 0.7})

        return Stage("match", name, {}, ends, make)

    matches = {
        edge: matching({"parent": acts[edge.parent], "child": acts[edge.child]}, edge.slug) for edge in study.edges
    }
    last = classes_stage(study, "parent", sample_inputs(acts, matches, tokens, tokenizer))
    stages = [*corpora.values(), tokenizer, *tokens.values(), *acts.values(), *matches.values(), last]
    return run(stages, Store(folder / "runs"))[last.label]


@pytest.fixture(scope="module")
def summary(done: Artifact) -> ClassesSummary:
    return ClassesSummary.model_validate_json((done / "classes.json").read_text())


def held(group: ClassGroup) -> dict[str, int]:
    return {name: share.count for name, share in group.classes.items() if share.count}


def test_models_have_the_planted_classes(summary: ClassesSummary):
    assert held(summary.models["base"]) == {
        "punctuation": 1, "line break": 1, "single-token": 1, "domain": 1, "mixed": 1
    }  # fmt: skip
    assert held(summary.models["sums"]) == {"punctuation": 1, "line break": 1, "number": 1, "mixed": 1}
    sums = summary.models["sums"]
    assert (sums.features, sums.judged, sums.rare, sums.silent) == (5, 4, 1, 0)
    assert summary.models["base"].domains["words"].count == 1
    assert summary.languages == {"words": "prose", "code": "python", "sums": "prose", "stories": "prose"}
    assert sum(rate or 0 for rate in summary.base_rates.values()) == pytest.approx(1)


def test_an_edge_keeps_punctuation_and_lines_loses_words_and_makes_digits(summary: ClassesSummary):
    edge = summary.edges["base->sums"]
    assert held(edge.persist) == {"punctuation": 1, "line break": 1}
    assert held(edge.disappear) == {"single-token": 1, "domain": 1, "mixed": 1}
    assert held(edge.emerge) == {"number": 1, "mixed": 1} and edge.emerge.rare == 1
    assert edge.live.features == edge.persist.features + edge.disappear.features == 5
    assert edge.child_live.features == edge.inherited.features + edge.emerge.features == 5
    shares = {name: share.share for name, share in edge.persist.groups.items()}
    assert shares == {"punctuation": 0.5, "formatting": 0.5, "code": 0.0, "single-token": 1.0}
    assert edge.group_gaps["formatting"].value == 0.5 and edge.class_gaps["mixed"].value == pytest.approx(-1 / 3)
    for share in edge.live.classes.values():
        low, high = share.interval
        assert share.share is not None and low is not None and high is not None and low <= share.share <= high
    low, high = edge.group_gaps["formatting"].interval
    assert low is not None and high is not None and low <= 0.5 <= high
    assert edge.class_gaps["upper-case"].interval == (None, None), "a class of neither group"


def test_what_flows_the_whole_way_is_counted_in_the_last_model(summary: ClassesSummary):
    assert held(summary.paths["base->sums->both"]) == {"punctuation": 1, "line break": 1}
    assert held(summary.paths["base->stories->both"]) == {"punctuation": 1, "line break": 1, "single-token": 1}
    assert set(summary.paths) == {"base->sums->both", "base->stories->both"}


def test_the_table_has_a_row_for_every_feature_that_fires(done: Artifact):
    table = pq.read_table(done / "classes.parquet")
    assert table.column_names == [
        "model", "feature", "class", "single_token", "domain", "domain_share", "firings", "top_token"
    ]  # fmt: skip
    rows = {(row["model"], FEATURES[row["model"]][row["feature"]]): row for row in table.to_pylist()}
    assert len(rows) == sum(name != "dead" for names in FEATURES.values() for name in names)
    assert {row["class"] for row in rows.values()} <= set(CLASSES)
    assert rows["base", "name"] | {"firings": 0, "feature": 0, "domain_share": 1} == {
        "model": "base", "feature": 0, "class": "single-token", "single_token": True, "domain": "code",
        "domain_share": 1, "firings": 0, "top_token": "y",
    }  # fmt: skip
    assert rows["sums", "few"]["class"] == "rare" and rows["sums", "few"]["firings"] == 9
    assert rows["base", "words"]["domain"] == "words" and rows["base", "words"]["domain_share"] == 1
    assert rows["base", "noise 1"]["domain"] is None and rows["base", "noise 1"]["class"] == "mixed"


def test_counts_that_do_not_add_up_are_refused(done: Artifact):
    values = json.loads((Path(done.folder) / "classes.json").read_text())
    values["models"]["base"]["judged"] += 1
    with pytest.raises(ValueError, match="classes hold 5 features, judged=6"):
        ClassesSummary.model_validate(values)
