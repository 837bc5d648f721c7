"""Children that are made from their parent without training: each is what was asked, or refused by name."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import tiny
from artifacts import table_of
from heredity.analyses import Pipeline
from heredity.analyses.direction_vectors import VECTOR
from heredity.analyses.plan import check_inputs, plan
from heredity.analyses.reading import load
from heredity.engine.stage import run
from heredity.engine.store import Artifact, Store
from heredity.features.direction_files import read_direction
from heredity.lm.hooks import capture
from heredity.lm.load import load_model, quiet, state_hash
from heredity.study import Study, StudyError

IDS = torch.arange(24).reshape(2, 12)
STREAM = "blocks.0.hook_resid_post"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A loaded model, an adapter of it, a direction, and checkpoints."""
    import peft
    from safetensors.numpy import save_file

    root = tmp_path_factory.mktemp("derived")
    tiny.save_tiny_model(root / "base")
    for step, seed in ((500, 1), (1000, 2)):
        tiny.save_tiny_model(root / "out" / f"checkpoint-{step}", seed)
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    with quiet():
        adapted = peft.get_peft_model(load_model(root / "base"), config)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.copy_(0.1 * torch.randn_like(weight))
    adapted.save_pretrained(root / "adapter")
    for name, shape in (("wide", {"d_model": 24}), ("deep", {"layers": 2})):
        save_adapter(root / name, load_model(tiny.save_tiny_model(root / "other" / name, **shape)), "k_proj")
    save_adapter(root / "gpt2", GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=4)), "c_fc")
    rng = np.random.default_rng(0)
    save_file({"probe": rng.normal(size=16).astype(np.float32), "other": np.ones(3)}, root / "x.safetensors")
    return root


def save_adapter(folder: Path, model: Any, target: str) -> None:
    import peft

    config = peft.LoraConfig(r=2, target_modules=[target], fan_in_fan_out=target == "c_fc")
    with quiet():
        peft.get_peft_model(model, config).save_pretrained(folder)


def study_of(folder: Path, **models: Any) -> Study:
    values = tiny.study_values(folder)
    values["model"] = {"base": {"load": "base", "corpora": ["words", "code"]}, **models}
    return Study.of(values, root=folder)


def made(folder: Path, **models: Any) -> dict[str, Artifact]:
    study = study_of(folder, **models)
    check_inputs(study)
    stages = Pipeline(study).closure([f"model/{name}" for name in study.order])
    artifacts = run(stages, Store(folder / "runs"))
    return {label.partition("/")[2]: one for label, one in artifacts.items() if label.startswith("model/")}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("per", ["tensor", "row"])
def test_of_every_matrix_the_smallest_share_is_zero(folder, per):
    found = made(folder, sparse={"parent": "base", "prune": {"share": 0.3, "per": per}})
    base, child = load(found["base"]).state_dict(), load(found["sparse"]).state_dict()
    for name, weight in child.items():
        if "proj" not in name:
            assert torch.equal(weight, base[name]), "norms, embeddings and head stay"
            continue
        rows = [weight.reshape(-1)] if per == "tensor" else weight
        for row, before in zip(rows, [base[name].reshape(-1)] if per == "tensor" else base[name], strict=True):
            assert (row == 0).sum() == round(0.3 * len(row)), name
            assert before[row == 0].abs().max() <= before[row != 0].abs().min()
            assert torch.equal(row[row != 0], before[row != 0])


def test_permuted_neurons_change_nothing_in_the_stream(folder):
    found = made(folder, turned={"parent": "base", "edit": {"permute": "blocks.0.mlp"}})
    base, child = load(found["base"]), load(found["turned"])
    torch.testing.assert_close(logits(child), logits(base), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(capture(child, STREAM, IDS), capture(base, STREAM, IDS), rtol=1e-4, atol=1e-5)
    own, theirs = (capture(one, tiny.HOOK, IDS).flatten(0, 1) for one in (base, child))
    assert not torch.allclose(own, theirs, atol=1e-4)
    torch.testing.assert_close(own.sort().values, theirs.sort().values, rtol=1e-4, atol=1e-5)


def test_nothing_is_read_along_a_direction_that_was_projected_out(folder):
    edit = {"project_out": "x.safetensors", "tensor": "probe"}
    found = made(
        folder,
        gone={"parent": "base", "edit": edit},
        half={"parent": "base", "edit": edit | {"scale": 0.5, "layers": [0]}},
    )
    u = torch.from_numpy(np.random.default_rng(0).normal(size=16)).float()
    u /= u.norm()
    base, gone, half = (load(found[name]) for name in ("base", "gone", "half"))
    read = {name: capture(model, STREAM, IDS) @ u for name, model in (("base", base), ("gone", gone))}
    assert read["gone"].abs().max() < 1e-5 < 1e-2 < read["base"].abs().max()
    ends = [capture(model, "blocks.0.hook_attn_out", IDS) for model in (base, half)]
    torch.testing.assert_close(ends[1] @ u, ends[0] @ u / 2, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(half.model.embed_tokens.weight, base.model.embed_tokens.weight)


def test_a_direction_of_the_study_is_made_first_and_then_projected_out(folder):
    """What tells two corpora apart in the parent is made from text, and nothing of it is read in the child."""
    values = tiny.study_values(folder)
    edited = {"parent": "base", "edit": {"project_out": "direction:topic"}}
    values["model"] = {"base": {"load": "base", "corpora": ["words", "code"]}, "gone": edited}
    values["direction"] = {"topic": {"from_corpora": ["words", "code"], "hook_point": STREAM}}
    stages = Pipeline(Study.of(values, root=folder)).closure(["directions/study"])
    found = run(stages, Store(folder / "topical"))
    vector = read_direction(found["direction_vector/topic"] / VECTOR, 16).vector
    base, gone = (load(found[f"model/{name}"]) for name in ("base", "gone"))
    u = torch.from_numpy(vector / np.linalg.norm(vector)).float()
    read = [capture(model, STREAM, IDS) @ u for model in (base, gone)]
    assert read[1].abs().max() < 1e-5 < 1e-2 < read[0].abs().max()
    edges = table_of(found["directions/study"], "direction_edges").to_pylist()
    (own,) = (row for row in edges if row["line"] == "edge")
    assert own["verdict"] == "lost" and own["direction"] == "topic"


def test_a_direction_is_the_same_whichever_site_is_the_main_one(folder):
    values = tiny.study_values(folder, hook_point=[STREAM, tiny.HOOK])
    edited = {"parent": "base", "edit": {"project_out": "direction:topic"}}
    values["model"] = {"base": {"load": "base", "corpora": ["words", "code"]}, "gone": edited}
    values["direction"] = {"topic": {"from_corpora": ["words", "code"]}}
    study = Study.of(values, root=folder)
    keys, others = (
        {label: one.key for label, one in Pipeline(own).stages.items()} for own in (study, study.at(tiny.HOOK))
    )
    assert keys == others and "direction_vector/topic" in keys


def test_a_direction_of_the_study_that_cannot_be_projected_out_is_refused(folder):
    values = tiny.study_values(folder)
    edited = {"parent": "base", "edit": {"project_out": "direction:topic"}}
    values["model"] = {"base": {"load": "base", "corpora": ["words", "code"]}, "gone": edited}
    for direction, words in (
        ({}, "model.gone.edit.project_out: 'topic' is no direction of this study; it defines none; add a table"),
        ({"topic": {"model": "gone"}}, "direction topic is of gone, from which gone does not descend"),
        ({"topic": {}}, "blocks.0.mlp.hook_post is a part of a layer, and what is projected out is of the residual"),
    ):
        values["direction"] = {name: {"from_corpora": ["words", "code"], **one} for name, one in direction.items()}
        with pytest.raises(StudyError, match=re.escape(words)):
            Pipeline(Study.of(values, root=folder))


def test_an_adapter_is_merged_into_the_parent_as_peft_merges_it(folder):
    import peft

    found = made(folder, tuned={"parent": "base", "adapter": "adapter"})
    with quiet():
        merged: Any = peft.PeftModel.from_pretrained(load_model(folder / "base"), str(folder / "adapter"))
        expected = merged.merge_and_unload().state_dict()
    base, child = load(found["base"]).state_dict(), load(found["tuned"]).state_dict()
    assert expected.keys() == child.keys()
    for name, weight in child.items():
        assert (weight - expected[name]).abs().max() <= 1e-6, name
        assert torch.equal(weight, base[name]) != ("q_proj" in name or "down_proj" in name), name
    assert found["tuned"].json("record.json")["base"] is None


def test_an_adapter_of_another_model_is_said_and_its_content_is_in_the_key(folder):
    config = folder / "adapter" / "adapter_config.json"
    before = config.read_text()
    models = {"tuned": {"parent": "base", "adapter": "adapter"}}
    key = Pipeline(study_of(folder, **models)).stages["model/tuned"].key
    try:
        changed = json.loads(before) | {"base_model_name_or_path": str(folder / "out" / "checkpoint-500")}
        config.write_text(json.dumps(changed | {"lora_alpha": 4}))
        assert Pipeline(study_of(folder, **models)).stages["model/tuned"].key != key
        note = made(folder, **models)["tuned"].json("record.json")["base"]
        assert note.endswith("checkpoint-500, whose weights are not those of base")
        assert f"the adapter of tuned {note}" in plan(Pipeline(study_of(folder, **models)), Store(folder))["notes"]
    finally:
        config.write_text(before)


def test_revisions_are_a_chain_in_the_order_given(folder):
    chain = {"load": "out", "revisions": ["checkpoint-500", "checkpoint-1000"], "corpora": ["words"]}
    study = study_of(folder, run=chain, small={"parent": "run@checkpoint-1000", "quantize": {"bits": 8}})
    names = [edge.name for edge in study.edges]
    assert names == ["run@checkpoint-500->run@checkpoint-1000", "run@checkpoint-1000->small"]
    assert Study.of(tomllib.loads(study.config.to_toml()), root=folder).config == study.config
    found = made(folder, run=chain)
    for step in (500, 1000):
        own, other = load(found[f"run@checkpoint-{step}"]), load_model(folder / "out" / f"checkpoint-{step}")
        assert state_hash(own.state_dict()) == state_hash(other.state_dict())
    hub = study_of(folder, pythia={"load": "an/id", "revisions": ["step1", "step2"], "corpora": ["words"]})
    model = hub.config.model["pythia@step2"]
    assert (model.load, model.revision, model.parent) == ("an/id", "step2", "pythia@step1")


def test_each_kind_has_the_references_that_can_be(folder):
    edit = {"project_out": "x.safetensors", "tensor": "probe"}
    kinds = {
        "sparse": {"prune": {"share": 0.3}},
        "tuned": {"adapter": "adapter"},
        "gone": {"edit": edit},
        "int4": {"quantize": {"bits": 4}},
        "turned": {"edit": {"permute": "blocks.0.mlp"}},
    }
    values = tiny.study_values(folder, references={"twin": True})
    children = {name: {"parent": "base"} | how for name, how in kinds.items()}
    values["model"] = {"base": {"load": "base", "corpora": ["words", "code"]}, **children}
    pipeline = Pipeline(Study.of(values, root=folder))
    labels = [label for label, stage in pipeline.stages.items() if stage.kind == "reference_model"]
    assert labels == [f"reference_model/{name}@random" for name in ("sparse", "tuned", "gone")]
    done = run(pipeline.closure(labels), Store(folder / "runs"))
    base, sparse, tuned = (load(done[label]).state_dict() for label in ("model/base", *labels[:2]))
    name = "model.layers.0.self_attn.q_proj.weight"
    zeros = sparse[name] == 0
    assert zeros.sum() == round(0.3 * zeros.numel())
    assert base[name][zeros].abs().max() > base[name][~zeros].abs().min(), "not the smallest"
    changes = [one[name] - base[name] for one in (tuned, load(done["model/tuned"]).state_dict())]
    spectra = [torch.linalg.svdvals(change) for change in changes]
    torch.testing.assert_close(*spectra, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(*changes, atol=1e-3) and int((spectra[0] > 1e-5).sum()) == 2


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"prune": {"share": 1.2}}, "model.x.prune.share: 1.2: input should be less than 1"),
        ({"prune": {"share": 0.3, "method": "sparsegpt"}}, "model.x.prune.method: 'sparsegpt': input should be"),
        (
            {"prune": {"share": 0.3}, "adapter": "a"},
            "model.x: prune and adapter exclude each other; prune it in a table",
        ),
        ({"parent": None, "prune": {"share": 0.3}}, "model.x: prune changes a parent: add parent = ..."),
        ({"quantize": {"bits": 3, "method": "nf4"}}, "bits=3: nf4 has levels of 4 bits; give bits = 4"),
        ({"edit": {}}, "model.x.edit: gives project_out and permute, or neither; give exactly one"),
        ({"edit": {"permute": "blocks.0.mlp", "scale": 0.5}}, "edit: scale is of a direction that is projected out"),
        ({"edit": {"permute": "mlp"}}, "model.x.edit.permute: 'mlp': string should match pattern"),
        ({"edit": {"permute": "blocks.4.mlp"}}, "model.x.edit.permute: 4: base has blocks 0 to 0; correct it"),
        ({"edit": {"project_out": "x.safetensors", "scale": 1}}, "scale=1 changes nothing; give 0"),
        ({"edit": {"project_out": "y.npy"}}, "model.x.edit.project_out: y.npy: no such file; correct the path"),
        (
            {"edit": {"project_out": "x.safetensors", "tensor": "other"}},
            "x.safetensors: 0 directions of 16 numbers among other [3], probe [16]",
        ),
        ({"prune": {"share": 0.3}, "lr": 1e-3}, "model.x: lr is of training, and prune trains nothing; remove it"),
        ({"adapter": "words"}, "holds no adapter (there is no adapter_config.json); give the folder that peft wrote"),
        ({"adapter": "./none"}, "model.x.adapter: ./none: "),
        ({"adapter": "out/none"}, "out has no folder none; correct the path"),
        (
            {"adapter": "wide"},
            "k_proj.lora_A.weight of the adapter is [2, 24], and int8 takes [2, 16]; adapter",
        ),
        ({"adapter": "deep"}, "model.layers.1.self_attn.k_proj.lora_A.weight of the adapter is not in int8"),
        ({"adapter": "gpt2"}, "cannot attach its adapter to int8: Target modules {'c_fc'} not found in the base model"),
        ({"quantize": {"bits": 4, "group_size": 7}}, "model.x.quantize: group_size=7 does not divide the 16 columns"),
        ({"revisions": ["a"]}, "model.x: revisions are of load = ..."),
        ({"load": "out", "revisions": ["checkpoint-7"], "corpora": ["words"]}, "model.x.revisions: checkpoint-7: /"),
        ({"load": "out", "revisions": ["refs/pr/1"]}, "revisions: 'refs/pr/1': must be a name of letters, digits"),
        ({"recipe_of": "int8"}, "model.x.recipe_of: int8 is made by quantize, which no seed changes"),
    ],
)
def test_what_cannot_be_is_refused_by_name(folder, model, words):
    if "recipe_of" not in model:
        model = {"parent": "base"} | model
    if "adapter" in model:  # of a model of the same shape, made without training
        model["parent"] = "int8"
    model = {key: value for key, value in model.items() if value is not None}
    with pytest.raises(StudyError) as caught:
        study = study_of(folder, int8={"parent": "base", "quantize": {"bits": 8}}, x=model)
        plan(Pipeline(study), Store(folder / "runs"))
    assert words in str(caught.value)


def test_a_plan_has_the_memory_and_time_of_every_kind(folder, tmp_path):
    kinds = {
        "quantize": {"bits": 4, "method": "minmax", "group_size": 8},
        "prune": {"share": 0.5},
        "adapter": "adapter",
        "edit": {"permute": "blocks.*.mlp"},
    }
    study = study_of(folder, **{kind: {"parent": "base", kind: how} for kind, how in kinds.items()})
    found = plan(Pipeline(study), Store(tmp_path))
    assert {row["kind"] for row in found["plan_models"]} == {"load", *kinds}
    rows = {row["stage"]: row for row in found["plan_stages"]}
    assert all(rows[f"model/{kind}"]["memory_gib"] > 0 and rows[f"model/{kind}"]["seconds"] >= 1 for kind in kinds)
