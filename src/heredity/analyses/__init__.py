"""The pipeline: one ordered tuple of analyses, from text to findings, and the stages a study makes of it.

Adding a result touches one file of this folder, one line of the tuple, and one test.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from heredity.analyses import (
    alpha_ablation,
    classes,
    density_change,
    deviations,
    direction_vectors,
    directions,
    explain,
    feature_transfer,
    features,
    flow,
    layers,
    lineage_by_maps,
    lost_features,
    match,
    merges,
    model,
    newness,
    probes,
    quality,
    reference_models,
    repeats,
    sae,
    sae_transfer,
    sample,
    savings,
    shift,
    steering,
    stitch_maps,
    text,
    verdicts,
    warm_starts,
)
from heredity.analyses.analysis import Analysis, Item, Need, Statement, Tables, name_of, plain, seed_of
from heredity.engine.stage import Stage, Work
from heredity.engine.store import Artifact, ArtifactError
from heredity.errors import reading
from heredity.study import Study, StudyError
from heredity.tables import Table, TableError

ANALYSES: tuple[Analysis, ...] = (
    text.CORPUS,
    text.TOKENIZER,
    text.TOKENS,
    text.TOKENS_APART,
    model.MODEL,
    model.SWEEP,
    quality.ANALYSIS,
    merges.ACCURACY,
    merges.METHODS,
    direction_vectors.ANALYSIS,
    directions.ANALYSIS,
    sae.SAE_STREAM,
    sae.SAE,
    sae.SAE_QUALITY,
    reference_models.ANALYSIS,
    verdicts.ANALYSIS,
    layers.ANALYSIS,
    lost_features.ANALYSIS,
    match.ANALYSIS,
    density_change.ANALYSIS,
    flow.ANALYSIS,
    newness.ANALYSIS,
    shift.SHIFT_SAE,
    shift.SHIFT,
    repeats.ANALYSIS,
    sample.ANALYSIS,
    features.ANALYSIS,
    classes.ANALYSIS,
    explain.ANALYSIS,
    stitch_maps.ANALYSIS,
    directions.CARRIED,
    sae_transfer.SOURCE_SAE,
    sae_transfer.ANALYSIS,
    warm_starts.WARM_START,
    savings.ANALYSIS,
    alpha_ablation.ANALYSIS,
    probes.ANALYSIS,
    steering.ANALYSIS,
    feature_transfer.ANALYSIS,
    lineage_by_maps.ANALYSIS,
    deviations.ANALYSIS,
)
BY_KIND = {analysis.kind: analysis for analysis in ANALYSES}
TABLES = {table.name: table for analysis in ANALYSES for table in analysis.tables}


class Pipeline:
    """The stages of one study."""

    def __init__(self, study: Study, more: Iterable[Need] = ()) -> None:
        """more: what may be made besides the study's own stages. Raises StudyError for what cannot work, before
        anything runs."""
        from heredity.analyses.plan import check_shapes

        check_shapes(study)
        self.study = study
        self.stages: dict[str, Stage] = {}
        """By label, inputs before what is made from them."""
        self.items: dict[str, tuple[Analysis, Item, int]] = {}
        """Analysis, item and repeat of each stage, by label."""
        self._repeats: dict[int, Study] = {0: study}
        self._known: dict[tuple[str, str, int], Stage] = {}
        self._declared = {analysis.kind: {_frozen(item) for item in analysis.items(study)} for analysis in ANALYSES}
        for kind, item in more:
            self._declared[kind].add(_frozen(item))
        for analysis in ANALYSES:
            for item in analysis.items(study):
                self.stage((analysis.kind, item))

    def stage(self, need: Need, repeat: int = 0) -> Stage:
        """The stage of a kind and item, in a training repeat.

        A repeat has a stage of its own where a seed of its own enters, or anything that is made from such a stage;
        all else is the plain study's.
        """
        kind, item = need
        repeat = item.get("repeat", repeat)
        item = {key: value for key, value in item.items() if key != "repeat"}
        known = self._known.get((kind, _frozen(item), repeat))
        if known is not None:
            return known
        analysis = BY_KIND[kind]
        if _frozen(item) not in self._declared[kind]:
            raise StudyError(f"{self.study.name}: has no {kind}/{name_of(item)}, which another stage is made from")
        reseeded = repeat > 0 and analysis.reseeded(self.study, item)
        study = self._reseeded(repeat) if reseeded else self.study
        inputs = {
            role: self.stage(source, repeat)
            if isinstance(source, tuple)
            else {name: self.stage(one, repeat) for name, one in source.items()}
            for role, source in analysis.needs(self.study, item).items()
        }
        settings = analysis.settings(study, item)
        make, divided = partial(_make, kind, item, settings), analysis.divided(self.study, item)
        made = Stage(kind, self.name(item), plain(settings), inputs, make, analysis.version, divided)
        if repeat and not reseeded and all("~" not in source.name for _, source in made.sources()):
            made = self.stage((kind, item))
        elif repeat:
            made = replace(made, name=self.name(item, repeat))
        self._known[kind, _frozen(item), repeat] = made
        if made.label not in self.stages:
            self.stages[made.label] = made
            self.items[made.label] = analysis, item, repeat
        return made

    def name(self, item: Item, repeat: int = 0) -> str:
        """Name of the stage of an item; it says the site where the study has several."""
        site = {"site"} if len(self.study.sites) == 1 else set()
        return name_of({key: value for key, value in item.items() if key not in site}, repeat)

    def _reseeded(self, repeat: int) -> Study:
        if repeat not in self._repeats:
            config = self.study.config.model_copy(update={"seed": seed_of(self.study, "repeat", repeat)})
            self._repeats[repeat] = replace(self.study, config=config)
        return self._repeats[repeat]

    def closure(self, labels: Iterable[str]) -> list[Stage]:
        """Stages and all that they are made from, in the order of work."""
        needed, waiting = set(), [self.stages[label] for label in labels]
        while waiting:
            stage = waiting.pop()
            if stage.label not in needed:
                needed.add(stage.label)
                waiting += [source for _, source in stage.sources()]
        return [stage for label, stage in self.stages.items() if label in needed]


def stages_of(study: Study) -> list[Stage]:
    """Every stage of a study, inputs before what is made from them.

    Raises StudyError for what cannot work, before anything runs.
    """
    return list(Pipeline(study).stages.values())


def read_tables(folders: Mapping[str, Artifact], names: Iterable[str] | None = None) -> dict[str, pa.Table]:
    """Tables of a run by name, rows of all stages together; only those that some stage has written.

    folders: artifacts by label, repeats included, whose tables are left out. names: by default all small tables.
    Raises ArtifactError for a file that does not hold what its table declares.
    """
    wanted = set(names) if names is not None else {name for name, table in TABLES.items() if not table.large}
    parts: dict[str, list[pa.Table]] = {}
    for label, artifact in folders.items():
        if "~" in label:
            continue
        for table in BY_KIND[label.partition("/")[0]].tables:
            if table.name in wanted:
                parts.setdefault(table.name, []).append(_read(table, artifact / f"{table.name}.parquet"))
    return {name: pa.concat_tables(parts[name]) for name in TABLES if name in parts}


def _read(table: Table, path: Path) -> pa.Table:
    with reading(path, "delete its folder and run again", ArtifactError):
        rows = pq.read_table(path)
        if rows.schema.names != table.schema.names or rows.schema.types != table.schema.types:
            raise ValueError(f"its columns are not those of the table {table.name}")
        if not table.large:
            try:
                table.check(rows.to_pylist())
            except TableError as error:
                raise ArtifactError(f"{path}: {error}; delete its folder and run again") from None
    return rows


def statements_of(tables: Tables) -> list[Statement]:
    """Findings of all analyses, in the order of the pipeline; of several sites, each says its own."""
    sites = list(dict.fromkeys(row["site"] for rows in tables.values() for row in rows if row.get("site")))
    return [statement for analysis in ANALYSES for statement in _said(analysis, tables, sites)]


def _said(analysis: Analysis, tables: Tables, sites: Sequence[str]) -> Iterable[Statement]:
    """Findings of one analysis, under the name of their site where there are several."""
    if len(sites) < 2 or analysis.across_sites:
        return analysis.say(tables)
    said: list[tuple[str, Statement]] = []
    for site in sites:
        own = {name: [row for row in rows if row.get("site", site) == site] for name, rows in tables.items()}
        said += [(site, statement) for statement in analysis.say(own)]
    if not any("site" in table.key for table in analysis.tables):
        return dict.fromkeys(statement for _, statement in said)
    return [one._replace(text=f"{site}: {one.text}", site=site) for site, one in said]


def write_tables(tables: Iterable[Table], rows: Mapping[str, Any], folder: Any, item: Item) -> None:
    """Check the rows of every declared table and write them; key columns of the item are filled in."""
    declared = {table.name: table for table in tables}
    if wrong := set(rows) ^ set(declared):
        raise AssertionError(f"tables {sorted(wrong)} are declared and not made, or made and not declared")
    for name, table in declared.items():
        constants = {key: value for key, value in item.items() if key in table.key}
        pq.write_table(table.check(rows[name], **constants), folder / f"{name}.parquet", compression="zstd")


def _make(kind: str, item: Item, settings: Any, work: Work) -> None:
    """Fill the folder of a stage, in whichever process it is made."""
    analysis = BY_KIND[kind]
    write_tables(analysis.tables, analysis.run(work, settings), work.folder, item)


def _frozen(item: Item) -> str:
    return repr(sorted(item.items()))
