"""The export for Neuronpedia is read back by a reader that knows its columns and nothing of how they were written."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heredity import neuronpedia
from heredity.analyses.inspector import Inspector
from heredity.neuronpedia import export_neuronpedia
from tiny import command

# Columns of Neuronpedia's database that an export of it has, with their types: `?` may be null, `[]` is a list.
FEATURES = """modelId:str layer:str index:str maxActApprox:float creatorId:str frac_nonzero:float
freq_hist_data_bar_heights:float[] freq_hist_data_bar_values:float[] logits_hist_data_bar_heights:float[]
logits_hist_data_bar_values:float[] neuron_alignment_indices:int[] neuron_alignment_l1:float[]
neuron_alignment_values:float[] correlated_neurons_indices:int[] correlated_neurons_l1:float[]
correlated_neurons_pearson:float[] correlated_features_indices:int[] correlated_features_pearson:float[]
correlated_features_l1:float[] decoder_weights_dist:float[] neg_str:str[] neg_values:float[] pos_str:str[]
pos_values:float[] sourceSetName:str topkCosSimIndices:int[] topkCosSimValues:float[] vector:float[] vectorLabel:str?
hookName:str vectorDefaultSteerStrength:float hasVector:bool"""
EXPLANATIONS = """id:str modelId:str layer:str index:str authorId:str description:str embedding:str? typeName:str?
explanationModelName:str? notes:str umap_x:float umap_y:float umap_cluster:int umap_log_feature_sparsity:float"""
ACTIVATIONS = """id:str modelId:str layer:str index:str creatorId:str dataSource:str dataIndex:str tokens:str[]
maxValue:float minValue:float values:float[] maxValueTokenIndex:int qualifyingTokenIndex:int dfaValues:float[]
dfaMaxValue:float? dfaTargetIndex:int? binContains:float? binMin:float? binMax:float?"""
HEADS = {
    "model": """id:str displayNameShort:str displayName:str creatorId:str tlensId:str? dimension:int? thinking:bool
visibility:str defaultSourceSetName:str defaultSourceId:str inferenceEnabled:bool instruct:bool layers:int
neuronsPerLayer:int createdAt:str owner:str updatedAt:str website:str?""",
    "source": """id:str modelId:str hasDashboards:bool inferenceEnabled:bool saelensConfig:str? saelensRelease:str?
saelensSaeId:str? hfRepoId:str? hfFolderId:str? visibility:str setName:str creatorId:str hasUmap:bool
hasUmapLogSparsity:bool hasUmapClusters:bool num_prompts:int num_tokens_in_prompt:int dataset:str notes:str
cosSimMatchModelId:str? cosSimMatchSourceId:str? createdAt:str""",
    "sourceset": """modelId:str name:str hasDashboards:bool allowInferenceSearch:bool visibility:str description:str
type:str creatorName:str urls:str[] creatorEmail:str? creatorId:str releaseName:str hasGraphs:bool graphEnabled:bool
similarityMatrixEnabled:bool defaultRange:int defaultShowBreaks:bool showDfa:bool showCorrelated:bool
showHeadAttribution:bool showUmap:bool createdAt:str""",
    "release": """name:str visibility:str isNewUi:bool featured:bool description:str descriptionShort:str urls:str[]
creatorEmail:str? creatorName:str creatorNameShort:str creatorId:str defaultSourceSetName:str defaultSourceId:str
defaultUmapSourceIds:str[] createdAt:str""",
}
_KINDS = {"str": str, "int": int, "float": (int, float), "bool": bool}


def read(path: Path, columns: str) -> list[dict[str, Any]]:
    """Rows of a table, each checked against its columns."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    rows = [json.loads(line) for line in raw.decode().splitlines()]
    types = dict(column.split(":") for column in columns.split())
    for row in rows:
        assert row.keys() == types.keys(), row.keys() ^ types.keys()
        for name, kind in types.items():
            values = row[name] if kind.endswith("[]") else [row[name]]
            for value in values:
                optional = kind.endswith("?") and value is None
                fits = isinstance(value, _KINDS[kind.rstrip("[]?")]) and (kind[:4] == "bool") == isinstance(value, bool)
                assert optional or fits, (path.name, name, value)
                assert not isinstance(value, str) or "\0" not in value
    return rows


def batches(folder: Path, columns: str) -> list[dict[str, Any]]:
    """Rows of all files of a table, in the order of their numbers."""
    files = sorted(folder.glob("batch-*.jsonl.gz"), key=lambda file: int(re.findall(r"\d+", file.name)[0]))
    assert [file.name for file in files] == [f"batch-{number}.jsonl.gz" for number in range(len(files))]
    return [row for file in files for row in read(file, columns)]


@pytest.fixture(scope="module")
def exported(lineage, tmp_path_factory) -> dict[str, Path]:
    """Folders of the sources, by model of the study."""
    out = tmp_path_factory.mktemp("neuronpedia")
    folders = export_neuronpedia(lineage.run, out, "somebody", lambda done, total: None)
    assert sorted(folder.relative_to(out).parts[0] for folder in folders) == ["s-base", "s-both", "s-stories", "s-sums"]
    return {folder.parent.name.removeprefix("s-"): folder for folder in folders}


def test_heads_name_each_other(exported, lineage):
    for model, folder in exported.items():
        heads = {name: read(folder / f"{name}.jsonl", columns)[0] for name, columns in HEADS.items()}
        own, source, sets = heads["model"], heads["source"], heads["sourceset"]
        assert (own["id"], source["id"]) == (folder.parent.name, folder.name) and own["creatorId"] == "somebody"
        assert source["modelId"] == sets["modelId"] == own["id"] and source["setName"] == sets["name"]
        assert own["defaultSourceId"] == source["id"] and sets["releaseName"] == heads["release"]["name"]
        assert own["layers"] == 1 and own["dimension"] == 32
        assert re.fullmatch(r"[a-z0-9-_]+", own["id"]) and re.fullmatch(r"\d+-[a-z0-9-]+", source["id"])
        parents = lineage.run.study.parents[model]
        assert source["cosSimMatchModelId"] == (f"s-{parents[0]}" if parents else None)


def test_features_are_those_of_the_tables(exported, lineage):
    run, edges = lineage.run, {"sums": "base->sums", "both": "sums->both"}
    for model, folder in exported.items():
        rows = batches(folder / "features", FEATURES)
        assert [row["index"] for row in rows] == [str(number) for number in range(128)]
        acts = run.acts(model)
        np.testing.assert_allclose([row["frac_nonzero"] for row in rows], acts.density())
        assert [sum(row["freq_hist_data_bar_heights"]) for row in rows] == acts.firings().tolist()
        assert all(len(row["pos_str"]) == len(row["pos_values"]) == 10 for row in rows)
        if model in edges:
            matches = run.matches(edges[model])
            for feature, row in enumerate(rows):
                known = matches.child_match[feature] >= 0
                assert row["correlated_features_indices"] == matches.child_match[feature][known].tolist()
                assert row["correlated_features_pearson"] == matches.child_r[feature][known].tolist()
        elif model == "base":
            assert not any(row["correlated_features_indices"] for row in rows)
    shown = Inspector(run).show("sums", 5)
    row = batches(exported["sums"] / "features", FEATURES)[5]
    assert row["pos_str"] == [one["token"] for one in shown["promoted"]] and row["maxActApprox"] == shown["max"]


def test_more_features_than_a_file_holds_are_in_several(exported, lineage, tmp_path, monkeypatch):
    monkeypatch.setattr(neuronpedia, "BATCH", 50)
    done = []
    folders = export_neuronpedia(lineage.run, tmp_path, "somebody", lambda count, total: done.append((count, total)))
    assert done[0] == (50, 512) and done[-1] == (512, 512)
    for folder in folders:
        whole = exported[folder.parent.name.removeprefix("s-")]
        assert len(list((folder / "features").iterdir())) == 3
        for name, columns in (("features", FEATURES), ("activations", ACTIVATIONS), ("explanations", EXPLANATIONS)):
            rows = [batches(one / name, columns) for one in (folder, whole)]
            for row in (*rows[0], *rows[1]):  # products of matrices of other shapes round differently
                row |= {key: np.round(row[key], 4).tolist() for key in ("pos_values", "neg_values") if key in row}
            assert rows[0] == rows[1]


def test_explanations_are_those_of_the_table(exported, lineage):
    key = {"instrument": lineage.run.study.instrument}
    for model, folder in exported.items():
        rows = batches(folder / "explanations", EXPLANATIONS)
        known = [row for row in lineage.rows("explanations", model=model, **key) if row["description"]]
        assert [(int(row["index"]), row["description"]) for row in rows] == [
            (row["feature"], row["description"]) for row in known
        ]
        assert known and len({row["id"] for row in rows}) == len(rows)


def test_activations_are_those_of_the_sample(exported, lineage):
    for model, folder in exported.items():
        rows = batches(folder / "activations", ACTIVATIONS)
        acts = lineage.run.acts(model)
        context = len(rows[0]["tokens"])
        dense = acts.dense().reshape(-1, context, 128)
        firing = {int(row["index"]) for row in rows}
        assert firing == set(np.flatnonzero(acts.firings()).tolist()) and len({row["id"] for row in rows}) == len(rows)
        for row in rows:
            own = dense[int(row["dataIndex"]), :, int(row["index"])]
            np.testing.assert_allclose(row["values"], own, atol=1e-5)
            assert len(row["tokens"]) == context and row["maxValue"] == pytest.approx(own.max())
            assert own[row["maxValueTokenIndex"]] == own.max()
            if row["binMin"] is not None:
                assert row["binMin"] - 1e-4 <= own[row["qualifyingTokenIndex"]] <= row["binMax"] + 1e-4
                assert 0 < row["binContains"] <= 1
        first = [row for row in rows if row["binMin"] is None and row["index"] == rows[0]["index"]]
        assert [row["maxValue"] for row in first] == sorted((row["maxValue"] for row in first), reverse=True)


def test_lineage_stands_beside_the_tables(exported, lineage):
    inspector = Inspector(lineage.run)
    rows = [json.loads(line) for line in (exported["sums"] / "lineage.jsonl").read_text().splitlines()]
    assert len(rows) == 128
    shown = json.loads(json.dumps(inspector.shown("sums", 5)))
    assert rows[5]["matches"] == shown["matches"] and rows[5]["verdicts"] == shown["verdicts"]
    members = {(row["modelId"], row["index"], row["r"]) for row in rows[5]["family"]}
    assert members == {(f"s-{one['model']}", str(one["feature"]), one["r"]) for one in shown["family"][1:]}


def test_the_client_itself_reads_the_rows_back(exported, lineage, monkeypatch):
    """As an instance that imported them would answer it: rows of the database, with `layer` called `source` too."""
    pytest.importorskip("neuronpedia")
    from neuronpedia.np_feature import Feature
    from neuronpedia.np_source_set import SourceSet
    from neuronpedia.requests.base_request import NPRequest

    folder = exported["sums"]
    parts = {"explanations": EXPLANATIONS, "activations": ACTIVATIONS}
    rows = {name: batches(folder / name, columns) for name, columns in parts.items()}
    features = batches(folder / "features", FEATURES)

    def answer(self: Any, *, uri: str, **_: Any) -> dict[str, Any]:
        index = uri.rpartition("/")[2]
        own = {
            name: [row | {"source": row["layer"]} for row in part if row["index"] == index]
            for name, part in rows.items()
        }
        return features[int(index)] | own

    monkeypatch.setattr(NPRequest, "send_request", answer)
    monkeypatch.setenv("NEURONPEDIA_API_KEY", "none")
    inspector = Inspector(lineage.run)
    for index in (5, int(rows["explanations"][0]["index"])):
        feature, shown = Feature.get("s-sums", folder.name, index), inspector.shown("sums", index)
        assert (feature.modelId, feature.source, feature.density) == ("s-sums", folder.name, shown["density"])
        own = [row for row in rows["activations"] if row["index"] == str(index)]
        assert [(one.tokens, one.values) for one in feature.activations] == [(r["tokens"], r["values"]) for r in own]
        assert feature.activations[0].tokens == shown["top"][0]["tokens"]
    assert [one.text for one in feature.explanations] == [shown["explanation"]["description"]]
    (sets,), (source,) = (read(folder / f"{name}.jsonl", HEADS[name]) for name in ("sourceset", "source"))
    assert SourceSet.from_np_db_json(sets | {"sources": [source]}).get_source_for_layer_number(0).id == folder.name


def test_the_command_writes_whole_folders_and_refuses_what_has_no_effect(lineage, exported, tmp_path):
    result = command(
        "export", lineage.path, "--runs", lineage.runs, "--format", "neuronpedia", "-o", tmp_path, "--json"
    )
    files = [Path(file) for file in json.loads(result.stdout)["files"]]
    assert len(files) == 4 and not [path for path in tmp_path.rglob(".*")]
    name = "features/batch-0.jsonl.gz"
    again, before = (gzip.decompress((folder / name).read_bytes()) for folder in (files[0], exported["base"]))
    assert again == before.replace(b'"somebody"', b'"heredity"'), "the same run gives the same rows"
    refused = command("export", lineage.path, "--runs", lineage.runs, "-o", tmp_path, "--creator", "x", code=2).stderr
    assert "means nothing to --format csv" in " ".join(refused.split())
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file; give the name of a folder"):
        export_neuronpedia(lineage.run, tmp_path / "file", "x", lambda done, total: None)
