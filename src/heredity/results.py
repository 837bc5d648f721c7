"""What a run holds: tables, matches, models, SAEs and features of a study, opened from its folder."""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from heredity import notebook
from heredity.analyses import TABLES, Pipeline, read_tables, statements_of
from heredity.analyses.analysis import Need, Statement
from heredity.analyses.sae import sae_need
from heredity.engine.shared import place
from heredity.engine.store import Artifact, ArtifactError, Store, write_json
from heredity.errors import read_json, reading, short
from heredity.study import Study, StudyError

if TYPE_CHECKING:
    import pyarrow as pa

    from heredity.features.acts import FeatureActs
    from heredity.features.correlate import Matches
    from heredity.sae.model import SAE

RUN = "run.json"
TRACKED = "track.json"
"""What `heredity track` leaves beside its tables."""


class Run:
    """A study that has been run, as far as it is done."""

    def __init__(
        self, study: Study, folder: Path, pipeline: Pipeline | None = None, again: str = "heredity run"
    ) -> None:
        """folder: `runs/<study>`. again: the command that runs it. Raises StudyError for a study that cannot work."""
        self.again = again
        self.study, self.folder, self.name = study, Path(folder), study.name
        self.pipeline = pipeline or Pipeline(study)
        store = Store(self.folder)
        found = {label: store.find(s.kind, s.name, s.key) for label, s in self.pipeline.stages.items()}
        self.artifacts = {label: artifact for label, artifact in found.items() if artifact is not None}
        """What is done, by label; those of training repeats end in `~1`, `~2` and so on."""
        self.missing = [label for label, artifact in found.items() if artifact is None]
        """Labels of stages that are not done."""

    def __repr__(self) -> str:
        left = f", {len(self.missing)} of {len(self.pipeline.stages)} stages missing" if self.missing else ""
        return f"<Run {self.name}: {', '.join(self.tables)}{left}>"

    @property
    def seconds(self) -> float:
        """Time spent on all that is done."""
        return sum(artifact.manifest["seconds"] for artifact in self.artifacts.values())

    @property
    def peak_memory_gib(self) -> float:
        """The most memory that a stage took, its workers' peaks included."""
        return max((artifact.manifest["peak_memory_gib"] for artifact in self.artifacts.values()), default=0.0)

    @cached_property
    def tables(self) -> dict[str, pa.Table]:
        """Every small table by name, as Arrow; `.to_pandas()` makes a data frame of one."""
        return read_tables(self.artifacts)

    def table(self, name: str) -> pa.Table:
        """One table by name, also a large one. Raises KeyError, by name, for a table that the run does not have."""
        tables = read_tables(self.artifacts, [name])
        if name in tables:
            return tables[name]
        if name in TABLES:
            hint = f"; {len(self.missing)} stages are not done with the inputs as they are now" if self.missing else ""
        else:
            near = difflib.get_close_matches(name, TABLES)
            hint = f"; did you mean {' or '.join(near)}?" if near else f"; it has {', '.join(self.tables)}"
        raise KeyError(f"run {self.name} has no table {name!r}{hint}")

    __getitem__ = table

    @cached_property
    def statements(self) -> list[Statement]:
        """Findings in sentences, each with the figures it rests on."""
        return statements_of({name: table.to_pylist() for name, table in self.tables.items()})

    def artifact(self, need: Need) -> Artifact:
        """The artifact of a stage, by kind and item. Raises ArtifactError, by label, for one that is not done."""
        stage = self.pipeline.stage(need)
        if stage.label not in self.artifacts:
            raise ArtifactError(f"{self.not_done(stage.label)}, until {stage.kind} at least")
        return self.artifacts[stage.label]

    def not_done(self, label: str) -> str:
        """What to say of a stage that is not done: that it, or the first before it, was made from something else."""
        store, again = Store(self.folder), f"run `{self.again}` first"
        for stage in self.pipeline.closure([label]):
            if stage.label not in self.artifacts and store.of_other_keys(stage.kind, stage.name, stage.key):
                changed = "has changed since the run: what is there was made from other inputs or settings, or by an"
                return f"{stage.label} of study {self.name} in {self.folder} {changed} earlier version; {again}"
        return f"{label} of study {self.name} is not done in {self.folder}; {again}"

    def find(self, need: Need) -> Artifact | None:
        """The artifact of a stage, by kind and item; None for one that is not done, or no stage of the study."""
        kind, item = need
        return self.artifacts.get(f"{kind}/{self.pipeline.name(item)}")

    def item(self, instrument: str | None = None, site: str | None = None, **key: str) -> dict[str, str]:
        """Key columns of a measured model or edge: by the study's first instrument and site unless others are named.

        Raises StudyError for an instrument, site, model or edge that the study does not have.
        """
        study, edges = self.study, [edge.name for edge in self.study.edges]
        known = {"instrument": study.instruments, "site": study.sites, "model": study.followed, "edge": edges}
        item = {"instrument": instrument or study.instrument, "site": site or study.site, **key}
        for name, value in item.items():
            if value not in known[name]:
                raise StudyError(f"{name} {value!r}: study {self.name} has {', '.join(known[name]) or 'none'}")
        return item

    def matches(self, edge: str, instrument: str | None = None, site: str | None = None) -> Matches:
        """Best matches of every feature along `parent->child`, both ways."""
        from heredity.analyses.match import read_matches

        return read_matches(self.artifact(("match", self.item(instrument, site, edge=edge))))

    def model(self, name: str) -> Any:
        """A language model of the study, as transformers loads it."""
        from heredity.analyses.reading import load

        if name not in self.study.order:
            raise StudyError(f"model {name!r}: study {self.name} has {', '.join(self.study.order)}")
        return load(self.artifact(("model", {"model": name})))

    def tokenizer(self) -> Any:
        """The tokenizer that the models share."""
        from heredity.analyses.reading import tokenizer_of
        from heredity.analyses.text import tokenizer_need

        return tokenizer_of(self.artifact(tokenizer_need(self.study)))

    def sae(self, model: str, instrument: str | None = None, site: str | None = None) -> SAE:
        """The SAE of a model."""
        from heredity.sae.formats import read_sae

        item = self.item(instrument, site, model=model)
        need = sae_need(self.study, model, item["instrument"], item["site"])
        return read_sae(self.artifact(need) / "sae")[0]

    def acts(self, model: str, instrument: str | None = None, site: str | None = None) -> FeatureActs:
        """Feature activations of a model on the study's token sample, sparse; rows align between models."""
        from heredity.analyses.sample import acts_of

        return acts_of(self.artifact(("acts", self.item(instrument, site, model=model))))

    def show(self) -> Overview:
        """Findings, notes and brief tables. HTML in a notebook; the whole report is a file of its own, by
        `heredity report`."""
        found = [one for one in self.statements if one.question != "note"]
        notes = list(dict.fromkeys(one.text for one in self.statements if one.question == "note"))
        tables = {name: (TABLES[name], rows.to_pylist()) for name, rows in self.tables.items()}
        html = notebook.overview(self.name, [(one.about, one.text, one.evidence) for one in found], notes, tables)
        return Overview(html, "\n".join([f"run {self.name}", *(one.text for one in found)]))

    def feature(self, model: str, index: int, site: str | None = None) -> Feature:
        """All that is known of one feature: class, explanation, tokens, matches, examples. HTML in a notebook.

        Raises StudyError for a model, a site or an index that the run does not have, TypeError for an index that is no
        integer.
        """
        from heredity.analyses.inspector import Inspector

        if not hasattr(index, "__index__"):
            raise TypeError(f"feature({model!r}, {index!r}): the index must be an integer, such as 158")
        return Feature(Inspector(self, site=site).show(model, index))


class Feature(NamedTuple):
    """One feature of a run; `values` as `heredity show --json` prints them."""

    values: dict[str, Any]

    def __repr__(self) -> str:
        name = f"{self.values['model']}/{self.values['feature']}"
        return f"<Feature {name}: {self.values['explanation']['description'] or 'not explained'}>"

    def _repr_html_(self) -> str:
        return notebook.feature(self.values)


class Overview(NamedTuple):
    """What a run found, for a notebook."""

    html: str
    text: str  # the findings, one a line

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return self.html


def record(study: Study, folder: Path) -> None:
    """Write what `open` needs into a run's folder: the study as it was run."""
    values = {"schema": 2, "study": study.name, "root": str(study.root), "toml": study.config.to_toml()}
    write_json(folder / RUN, values | {"read": study.read})


def as_recorded(study: Study, folder: Path) -> Study:
    """The study, which knows what a run of it read: models and corpora need not be there to look at results."""
    if not (recorded := Store(folder).file(RUN)).is_file():
        return study
    read = read_json(recorded, "run the study again", ArtifactError).get("read", {})
    return replace(study, recorded=read if isinstance(read, dict) else {})


def open(folder: str | Path) -> Run:  # noqa: A001 - heredity.open, as a file is opened
    """The run in a folder such as `runs/demo`, or at a URL such as `s3://bucket/prefix/demo`.

    Raises ArtifactError for a folder that holds no run, one of version 0.1.0, or what `heredity track` wrote.
    """
    text = str(folder).rstrip("/")
    place_ = place(text.rpartition("/")[0]) / text.rpartition("/")[2] if "://" in text else Path(folder)
    path = Store(place_).file(RUN)
    if not path.is_file():
        if (path.parent / TRACKED).exists():
            raise ArtifactError(
                f"{folder}: holds the tables of one edge that `heredity track` wrote, and no run of a study; read each "
                f"by itself, such as pandas.read_parquet({str(path.parent / 'evidence.parquet')!r})"
            )
        if (path.parent / "summary.json").exists():
            raise ArtifactError(f"{folder}: holds a run of heredity 0.1.0 (there is no {RUN}); run its study again")
        raise ArtifactError(f"{folder}: holds no run (there is no {RUN}); give a folder such as runs/demo")
    way_out = "run the study again"
    values = read_json(path, way_out, ArtifactError)
    with reading(path, way_out, ArtifactError):
        if not isinstance(values["study"], str):
            raise ValueError(f"study = {short(values['study'])} is no name")
        study = Study.of(tomllib.loads(values["toml"]), values["study"], Path(values["root"]))
    return Run(as_recorded(study, place_), place_)
