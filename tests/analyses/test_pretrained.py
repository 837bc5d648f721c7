"""SAEs that a study names stand where trained ones would, and one that is frozen finds what a child's weights lost."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from artifacts import table_of
from heredity import two_models
from heredity.analyses import Pipeline, statements_of
from heredity.analyses.analysis import seed_of
from heredity.analyses.plan import check_inputs
from heredity.analyses.verdicts import text_seed
from heredity.engine.stage import run
from heredity.engine.store import Artifact, Store
from heredity.lm.load import save_model
from heredity.sae.formats import read_sae, write_sae
from heredity.sae.model import new_sae
from heredity.study import Study, StudyError
from heredity.text.corpora import read_corpus
from heredity.text.tokens import train_tokenizer
from heredity.two_models import compare

HOOK, UNITS, SILENT = "blocks.1.mlp.hook_post", 32, (2, 5, 11)
"""Units of the child that are off."""
GONE = [*SILENT, *(UNITS + unit for unit in SILENT)]


def units(seed: int) -> Any:
    """One feature for each unit and sign, in an order of its own."""
    sae = new_sae(UNITS, 2 * UNITS, "relu")
    order = np.random.default_rng(seed).permutation(2 * UNITS) if seed else np.arange(2 * UNITS)
    sae.W_enc.copy_(torch.cat([torch.eye(UNITS), -torch.eye(UNITS)], dim=1)[:, order])
    sae.W_dec.copy_(sae.W_enc.T)
    return sae


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a child without some of its units, two SAEs of the first, and text of random letters."""
    folder, rng = tmp_path_factory.mktemp("pretrained"), np.random.default_rng(0)
    letters = [chr(code) for code in range(33, 127)]
    tokenizer = train_tokenizer(letters, 350)
    base = tiny.tiny_model(0, len(tokenizer), 24, UNITS, 2, tokenizer.eos_token_id)
    save_model(base, tokenizer, folder / "base")
    with torch.no_grad():
        base.model.layers[1].mlp.up_proj.weight[list(SILENT)] = 0
    save_model(base, tokenizer, folder / "pruned")
    for name, seed in (("sae", 0), ("second", 1)):
        write_sae(units(seed), folder / name, {"hook_name": HOOK, "model_name": "base"})
    (folder / "text").mkdir()
    for number in range(200):
        (folder / "text" / f"{number}.txt").write_text("".join(rng.choice(letters, 100)))
    return folder


def values(**base: Any) -> dict[str, Any]:
    models = {
        "base": {"load": "base", "corpora": ["text"], "sae": "sae", "second_sae": "second"} | base,
        "pruned": {"load": "pruned", "parent": "base"},
    }
    small = {"tokens": 4_000, "batch_blocks": 16, "context_size": 16, "evaluation_tokens": 1_000, "expansion": 2}
    return {
        "hook_point": HOOK,
        "corpus": {"text": {"source": "local:text"}},
        "model": {name: {k: v for k, v in model.items() if v is not None} for name, model in models.items()},
        "sae": {"instruments": "frozen", "lr": 6e-3} | small,
        "verdicts": {"tokens": 8_000, "examine": 6},
        "lineage": {"tokens": 4_000},
    }


def done(project: Path, until: str, folder: str = "runs", **base: Any) -> dict[str, Artifact]:
    study = Study.of(values(**base), "s", project)
    return run(list(Pipeline(study).stages.values()), Store(project / folder), until=until)


@pytest.fixture(scope="module")
def frozen(project: Path) -> dict[str, Artifact]:
    return done(project, "lost_features")


def test_features_whose_units_the_child_lost_are_lost_and_the_others_kept(frozen):
    evidence = table_of(frozen["verdicts/base+pruned@common@frozen"], "evidence").to_pandas()
    assert set(evidence.end) == {"parent"}, "what is new in the child no such SAE can say"
    assert set(evidence.verdict[GONE]) == {"lost"} and set(evidence.verdict.drop(GONE)) == {"kept"}
    assert evidence.same_r[GONE].isna().all() and (evidence.same_r.drop(GONE) > 0.999).all()
    assert (evidence.stability > 0.999).all()
    [row] = table_of(frozen["verdicts/base+pruned@common@frozen"], "verdicts").to_pylist()
    assert (row["stable"], row["lost"], row["kept"]) == (64, 6, 58)


def test_one_sae_reads_both_models_and_is_judged_in_both(frozen):
    rows = {name: table_of(frozen[f"sae_quality/{name}@frozen"], "saes").to_pylist()[0] for name in ("base", "pruned")}
    assert all(row["explained_variance"] > 0.999 and row["ce_loss_recovered"] > 0.99 for row in rows.values())
    assert rows["base"]["dead_share"] == 0 and rows["pruned"]["dead_share"] == len(GONE) / 64
    assert "sae/pruned@scratch" not in frozen and "sae/joint" not in frozen
    said = statements_of({"saes": [{"instrument": "frozen", "seed": 0, **row} for row in rows.values()]})
    assert any("that reads all of them is 1.000 in base and 1.000 in pruned" in one.text for one in said)


def test_a_run_and_compare_say_the_same_of_one_edge(project, frozen, monkeypatch):
    artifact, study = frozen["verdicts/base+pruned@common@frozen"], Study.of(values(), "s", project)
    # A study draws the text of all edges by one seed, and groups of documents and random changes by one of the edge.
    seed, own_seed = text_seed(study, study.edges[0], "common"), seed_of(study, "verdicts", "base->pruned")
    settings = two_models._settings
    monkeypatch.setattr(two_models, "_settings", lambda *of: settings(*of)._replace(seed=own_seed))
    texts = list(read_corpus(frozen["corpus/text"].folder, "train"))
    result = compare(
        project / "base", project / "pruned", project / "sae", texts, controls=[project / "second"],
        names=("base", "pruned"), tokens=8_000, context_size=16, seed=seed, say=lambda line: None,
    )  # fmt: skip
    for name in ("verdicts", "evidence", "references", "grades", "changed_most"):
        own, other = (table.to_pandas() for table in (table_of(artifact, name), result.tables[name]))
        here = own.drop(columns=["corpora", "identical"], errors="ignore")
        assert here.equals(other[list(here)]), name


def test_a_second_sae_is_trained_in_the_shape_of_the_one_that_is_named(project):
    made = done(project, "sae", second_sae=None)
    sae, metadata = read_sae(made["sae/base@control1-independent"] / "sae")
    assert (sae.d_in, sae.d_sae, sae.activation) == (UNITS, 2 * UNITS, "topk") and metadata["training_tokens"] >= 4_000
    assert sae.k == 32, "as many as are active of a unit's two signs"
    given, metadata = read_sae(made["sae/base@scratch"] / "sae")
    assert given.W_enc.equal(units(0).W_enc) and metadata["hook_name"] == HOOK


def test_an_sae_is_known_by_its_content(project, tmp_path):
    def key(root: Path) -> str:
        return Pipeline(Study.of(values(), "s", root)).stages["sae/base@scratch"].key

    before, moved = key(project), shutil.copytree(project, tmp_path / "moved", ignore=shutil.ignore_patterns("runs"))
    assert key(moved) == before
    write_sae(units(3), moved / "sae", {"hook_name": HOOK})
    assert key(moved) != before


def test_what_does_not_belong_is_refused_by_name(project, tmp_path):
    def folder(name: str, sae: Any = None, **metadata: Any) -> str:
        write_sae(sae or units(4), tmp_path / name, {"hook_name": HOOK, **metadata})
        return str(tmp_path / name)

    before: list[tuple[dict[str, Any], str]] = [  # told before any weights are read
        ({"sae": "nowhere"}, r"s: model.base.sae: nowhere: no such folder; correct the path, or write saelens:"),
        (
            {"sae": folder("wide", new_sae(48, 96, "relu"))},
            "model.base.sae: .*wide reads vectors of width 48, and .* 32",
        ),
        (
            {"sae": folder("place", hook_name="blocks.0.mlp.hook_post")},
            "place was made for blocks.0.mlp.hook_post, and",
        ),
        ({"sae": "base"}, "model.base.sae: .*base holds no SAE"),
        ({"second_sae": "sae"}, "model.base.second_sae: is sae itself; give one of another seed"),
        (
            {"sae": ["sae", "second"]},
            "model.base.sae: names 2 SAEs for 1 hook points; give one for each",
        ),
        ({"sae": None}, "second_sae stands beside an sae"),
    ]
    for given, message in before:
        with pytest.raises(StudyError, match=message):
            check_inputs(Study.of(values(**given), "s", project))
    in_time: list[tuple[dict[str, Any], str]] = [
        ({"sae": folder("owned", model_state="another")}, "owned was trained on other weights than those of base"),
        ({"sae": folder("bare", prepend_bos=False)}, r'bare was trained on blocks behind nothing, .* prefix = "none"'),
        ({"second_sae": folder("twin", units(0))}, "twin is the SAE itself"),
    ]
    for given, message in in_time:
        with pytest.raises(StudyError, match=message):
            done(project, "sae", **given)


def test_an_sae_that_no_instrument_reads_is_refused(project):
    named = values()
    with pytest.raises(StudyError, match=r'model.base.sae: is read by no instrument of \[\'joint\'\]; .* "frozen"'):
        Study.of(named | {"sae": {"instruments": "joint"}}, "s", project)
    named["model"]["apart"] = {"load": "pruned", "corpora": ["text"]}
    named["model"]["merged"] = {"merge": {"parents": ["base", "apart"], "t": 0.5}}
    with pytest.raises(StudyError, match="sae.instruments: frozen reads merged and its parents with one SAE"):
        Study.of(named, "s", project)


def test_the_sae_of_another_model_by_name_is_noted(project, tmp_path):
    write_sae(units(0), tmp_path / "other", {"hook_name": HOOK, "model_name": "llama"})
    made = done(project, "sae_quality", sae=str(tmp_path / "other"))
    [row] = table_of(made["sae_quality/base@frozen"], "saes").to_pylist()
    assert row["notes"].endswith("other was made for the model llama, and is read in base")
