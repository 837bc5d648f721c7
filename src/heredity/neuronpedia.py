"""A run as the bulk tables of Neuronpedia: what an instance of it exports, and can take in.

`out/MODEL/SOURCE/` for every model and site: `model.jsonl`, `source.jsonl`, `sourceset.jsonl`, `release.jsonl`, and
`features/`, `explanations/` and `activations/batch-N.jsonl.gz`, each of 1,024 features. The columns are those of its
database. `correlated_features_*` holds the best matches in the first parent, with Pearson's r; the source of that
parent is the one that is named for matching. All else about the lineage is in `lineage.jsonl`, which is no table
there. What is not computed here (logit histograms, neuron alignment, embeddings) is empty or null. Its database keeps
no NUL in text: tokens have U+2400 in its place.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from heredity import __version__
from heredity.analyses.features import predicted
from heredity.analyses.inspector import Inspector
from heredity.analyses.query import matches_of, rows_of_stage, verdicts_of
from heredity.analyses.sample import sample_settings
from heredity.engine.store import ArtifactError, digest, whole
from heredity.study import StudyError

if TYPE_CHECKING:
    from heredity.features.cards import Card
    from heredity.results import Run

BATCH = 1_024  # features of a file
_TOP, _LEVELS, _EACH = 10, 5, 3  # strongest texts of a feature; intervals of its activation, and texts from each


class _Source(NamedTuple):
    """One model at one site, by the names that Neuronpedia has for it."""

    inspector: Inspector
    name: str  # of the model in the study
    model: str
    set: str
    id: str
    creator: str
    created: str

    @property
    def key(self) -> dict[str, str]:
        """Columns that every row of a source begins with."""
        return {"modelId": self.model, "layer": self.id}

    def of(self, other: str) -> _Source:
        """The source of another model at the same site."""
        return self._replace(name=other, model=_model_id(self.inspector.run.name, other))


def export_neuronpedia(
    run: Run, out: Path, creator: str, progress: Callable[[int, int], None], instrument: str | None = None
) -> list[Path]:
    """Write the sources of a run, parents before children; returns their folders, each of which is whole or not there.

    creator: id of the user of the instance who owns the rows. progress: features done, and their number. Raises
    ValueError for two models whose ids would be the same, a study of stitches alone, and `out` that is a file.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"-o {out}: is a file; give the name of a folder")
    created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S+00:00")
    sources = []
    for site in run.study.sites:
        inspector = Inspector(run, instrument, site)
        models = inspector.sample.models
        layer, name = _site(site)
        own = f"{name}-{inspector.place['instrument']}"
        for model in models:
            at = (_model_id(run.name, model), own, f"{layer}-{own}")
            sources.append(_Source(inspector, model, *at, creator, created))
    places = [(source.model, source.id) for source in sources]
    if twice := [place for place in places if places.count(place) > 1]:
        raise ValueError(f"two models would both be {'/'.join(twice[0])} in Neuronpedia; rename one of them")
    total, done, folders = sum(_size(source) for source in sources), 0, []
    for source in sources:
        folder = out / source.model / source.id
        folder.parent.mkdir(parents=True, exist_ok=True)
        with whole(folder) as unfinished:
            unfinished.mkdir()
            for count in _write(source, unfinished):
                progress(done := done + count, total)
        folders.append(folder)
    return folders


def _write(source: _Source, folder: Path) -> Iterator[int]:
    """Fill the folder of a source; yields the number of features after each batch."""
    for name, row in _heads(source).items():
        _jsonl(folder / f"{name}.jsonl", [row])
    known = rows_of_stage(source.inspector.run, "explain", source.inspector.place, "explanations", model=source.name)
    described = {row["feature"]: row for row in known or () if row["description"]}
    explained = [_explanation(source, row) for row in described.values()]
    for number, start in enumerate(range(0, len(explained), BATCH)):
        _jsonl(folder / "explanations" / f"batch-{number}.jsonl.gz", explained[start : start + BATCH])
    with open(folder / "lineage.jsonl", "w", encoding="ascii") as lineage:
        for number, start in enumerate(range(0, _size(source), BATCH)):
            features = np.arange(start, min(start + BATCH, _size(source)))
            cards = _cards(source, features)
            rows = _features(source, cards)
            _jsonl(folder / "features" / f"batch-{number}.jsonl.gz", rows)
            activations = (row for card in cards for row in _activations(source, card))
            _jsonl(folder / "activations" / f"batch-{number}.jsonl.gz", activations)
            lineage.writelines(_line(_lineage(source, card.feature)) for card in cards)
            yield len(features)


def _size(source: _Source) -> int:
    return source.inspector.sample.acts[source.name].d_sae


def _heads(source: _Source) -> dict[str, dict[str, Any]]:
    """Rows of the model, the source, its set and the release."""
    inspector, study = source.inspector, source.inspector.run.study
    sample, config = inspector.sample, _config(source)
    place = f"{inspector.place['site']}, {inspector.place['instrument']} SAEs"
    base = {"creatorId": source.creator, "createdAt": source.created, "visibility": "PRIVATE"}
    parents = [edge.parent for edge in sample.edges if edge.child == source.name]
    match = source.of(parents[0]) if parents else None
    words = f"Study {study.name}, {place}, by heredity {__version__}."
    default = {"defaultSourceSetName": source.set, "defaultSourceId": source.id}
    by = {"creatorName": "heredity", "creatorEmail": None, "urls": []}
    return {
        "model": base | default | {
            "id": source.model,
            "displayNameShort": source.name,
            "displayName": f"{study.name} {source.name}",
            "tlensId": None,
            "dimension": config.get("hidden_size"),
            "thinking": False,
            "inferenceEnabled": False,
            "instruct": False,
            "layers": config.get("num_hidden_layers") or 0,
            "neuronsPerLayer": config.get("intermediate_size") or 0,
            "owner": "heredity",
            "updatedAt": source.created,
            "website": None,
        },
        "source": base | {
            "id": source.id,
            "modelId": source.model,
            "setName": source.set,
            "hasDashboards": True,
            "inferenceEnabled": False,
            "saelensConfig": None,
            "saelensRelease": None,
            "saelensSaeId": None,
            "hfRepoId": None,
            "hfFolderId": None,
            "hasUmap": False,
            "hasUmapLogSparsity": False,
            "hasUmapClusters": False,
            "num_prompts": sample.ids.shape[0],
            "num_tokens_in_prompt": sample.ids.shape[1],
            "dataset": ", ".join(sample.corpora),
            "notes": words,
            "cosSimMatchModelId": match and match.model,
            "cosSimMatchSourceId": match and match.id,
        },
        "sourceset": base | by | {
            "modelId": source.model,
            "name": source.set,
            "hasDashboards": True,
            "allowInferenceSearch": False,
            "description": words,
            "type": "",
            "releaseName": _slug(study.name),
            "hasGraphs": False,
            "graphEnabled": False,
            "similarityMatrixEnabled": False,
            "defaultRange": 2,
            "defaultShowBreaks": True,
            "showDfa": False,
            "showCorrelated": True,
            "showHeadAttribution": False,
            "showUmap": False,
        },
        "release": base | by | default | {
            "name": _slug(study.name),
            "isNewUi": False,
            "featured": False,
            "description": f"Features of the models of study {study.name}, and what became of them.",
            "descriptionShort": study.name,
            "creatorNameShort": "heredity",
            "defaultUmapSourceIds": [],
        },
    }  # fmt: skip


def _config(source: _Source) -> Mapping[str, Any]:
    """The configuration of the model's decoder; nothing where the model has gone since the run."""
    try:
        model = source.inspector.reader(source.name).model
    except (ArtifactError, StudyError):
        return {}
    config: Any = model.config
    return config.get_text_config().to_dict()


def _cards(source: _Source, features: np.ndarray) -> list[Card]:
    """Where features fire and what they predict, int [n]."""
    from heredity.features.cards import Sizes, cards

    inspector = source.inspector
    sample, sizes = inspector.sample, Sizes(_TOP, _LEVELS, _EACH, drawn=0, silent=0, tokens=1)
    logits, seed = inspector.logits(source.name, features), sample_settings(inspector.run.study).seed
    columns = inspector.columns[source.name]
    return cards(sample.acts[source.name], sample.ids, features, sizes, seed, logits, columns)


def _features(source: _Source, cards: Sequence[Card]) -> Iterator[dict[str, Any]]:
    """Rows of the table of features."""
    inspector = source.inspector
    incoming = [edge for edge in inspector.sample.edges if edge.child == source.name]
    for card in cards:
        pushed = predicted(inspector.sample, card.logits or card.no_logits)
        matches: list[tuple[int, float]] = []
        if incoming:
            found = inspector.sample.matches[incoming[0]]
            pairs = zip(found.child_match[card.feature].tolist(), found.child_r[card.feature].tolist(), strict=True)
            matches = [(match, r) for match, r in pairs if match >= 0 and np.isfinite(r)]
        step = card.highest / len(card.histogram)
        yield source.key | {
            "index": str(card.feature),
            "creatorId": source.creator,
            "sourceSetName": source.set,
            "maxActApprox": card.highest,
            "frac_nonzero": card.density,
            "freq_hist_data_bar_heights": card.histogram.tolist(),
            "freq_hist_data_bar_values": [step * place for place in range(len(card.histogram))],
            "logits_hist_data_bar_heights": [],
            "logits_hist_data_bar_values": [],
            "neuron_alignment_indices": [],
            "neuron_alignment_l1": [],
            "neuron_alignment_values": [],
            "correlated_neurons_indices": [],
            "correlated_neurons_l1": [],
            "correlated_neurons_pearson": [],
            "correlated_features_indices": [match for match, _ in matches],
            "correlated_features_l1": [],
            "correlated_features_pearson": [r for _, r in matches],
            "decoder_weights_dist": [],
            "pos_str": [_text(row["token"]) for row in pushed["promoted"]],
            "pos_values": [row["weight"] for row in pushed["promoted"]],
            "neg_str": [_text(row["token"]) for row in pushed["suppressed"]],
            "neg_values": [row["weight"] for row in pushed["suppressed"]],
            "topkCosSimIndices": [],
            "topkCosSimValues": [],
            "vector": [],
            "vectorLabel": None,
            "vectorDefaultSteerStrength": 10.0,
            "hasVector": False,
            "hookName": inspector.place["site"],
        }


def _explanation(source: _Source, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the table of explanations; its judge is no type that an instance knows, and stands in the notes."""
    score = "" if row["simulation"] is None else f", simulation score {row['simulation']:.3f}"
    return source.key | {
        "id": _id(source, "explanation", row["feature"]),
        "index": str(row["feature"]),
        "authorId": source.creator,
        "description": _text(row["description"]),
        "notes": f"by {row['by']}{score}",
        "embedding": None,
        "typeName": None,
        "explanationModelName": None,
        "umap_x": 0.0,
        "umap_y": 0.0,
        "umap_cluster": 0,
        "umap_log_feature_sparsity": 0.0,
    }


def _activations(source: _Source, card: Card) -> Iterator[dict[str, Any]]:
    """Rows of the table of activations: strongest texts, without an interval, then some of every interval."""
    sample, fired = source.inspector.sample, max(card.firings, 1)
    parts: list[tuple[Any, dict[str, float | None]]] = [(card.top, dict.fromkeys(("binMin", "binMax", "binContains")))]
    bins = card.histogram.reshape(_LEVELS, -1).sum(1)[::-1]
    for place, (places, count) in enumerate(zip(card.levels, bins.tolist(), strict=True)):
        low, high = (card.highest * (_LEVELS - step - place) / _LEVELS for step in (1, 0))
        parts.append((places, {"binMin": low, "binMax": high, "binContains": count / fired}))
    for part, (places, interval) in enumerate(parts):
        for row, values in zip(places.rows.tolist(), places.values, strict=True):
            block, position = divmod(row, sample.ids.shape[1])
            text = sample.block(block)
            yield (
                source.key
                | interval
                | {
                    "id": _id(source, "activation", card.feature, part, row),
                    "index": str(card.feature),
                    "creatorId": source.creator,
                    "dataIndex": str(block),
                    "dataSource": text["corpus"],
                    "tokens": [_text(token) for token in text["tokens"]],
                    "values": [round(float(value), 6) for value in values],
                    "maxValue": float(values.max()),
                    "minValue": float(values.min()),
                    "maxValueTokenIndex": int(values.argmax()),
                    "qualifyingTokenIndex": position,
                    "dfaValues": [],
                    "dfaMaxValue": None,
                    "dfaTargetIndex": None,
                }
            )


def _lineage(source: _Source, feature: int) -> dict[str, Any]:
    """What became of a feature: its family, and matches and verdicts along every edge of its model."""
    from heredity.features.families import family

    inspector, sample = source.inspector, source.inspector.sample
    named = {model: _model_id(inspector.run.name, model) for model in sample.models}
    members = family(source.name, feature, sample.edges, sample.matches)[1:]
    rows = [
        {
            "modelId": named[one.model],
            "layer": source.id,
            "index": str(one.feature),
            "r": one.r,
            "via": named[one.via or ""],
        }
        for one in members
    ]
    matches = matches_of(sample, source.name, feature)
    verdicts = verdicts_of(inspector.run, inspector.place, source.name, feature)
    return source.key | {"index": str(feature), "family": rows, "matches": matches, "verdicts": verdicts}


def _model_id(study: str, model: str) -> str:
    return _slug(f"{study}-{model}")


def _slug(name: str) -> str:
    """A name of lower-case letters, digits, underscores and dashes; told apart from others that it could be of."""
    plain = re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-")
    return plain if plain == name else f"{plain}-{digest(name)[:6]}"


def _site(site: str) -> tuple[int, str]:
    """Layer of a hook point, 0 where it names none, and a name for the rest."""
    layer = re.search(r"(?:^|\.)(\d+)(?:\.|$)", site)
    rest = site.replace(layer[0], ".", 1) if layer else site
    return int(layer[1]) if layer else 0, re.sub(r"[^a-z0-9]+", "-", rest.removeprefix("blocks.").lower()).strip("-")


def _id(source: _Source, *of: object) -> str:
    """An id of a row, the same for the same row of every export."""
    return f"c{digest([source.model, source.id, *of])[:24]}"


def _text(text: str) -> str:
    return text.replace("\0", "\u2400")


def _jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as lines of JSON, compressed by the file's name."""
    path.parent.mkdir(exist_ok=True)
    # without a time of day in it, the same rows are the same bytes
    with gzip.GzipFile(path, "wb", 5, mtime=0) if path.suffix == ".gz" else open(path, "wb") as file:
        file.writelines(_line(row).encode("ascii") for row in rows)


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"
