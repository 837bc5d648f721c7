"""Runs the stages of a study in order, skipping what is there and resuming what is not."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from heredity.engine.ranks import ALONE, Ranks
from heredity.engine.store import Artifact, ArtifactError, Store, digest
from heredity.engine.workers import Here, Shards
from heredity.kernels.processors import retake_processors, return_freed_memory


@dataclass(frozen=True)
class Stage:
    """One step of a study: inputs -> artifact."""

    kind: str  # kind of result and name of its folder: `corpus`, `model`, `sae`, `match` ...
    name: str  # name within its kind
    config: Mapping[str, Any]  # every setting that `make` reads: a change of any of them remakes the artifact
    inputs: Mapping[str, Stage | Mapping[str, Stage]]  # what it is made from, by role; a role may hold several by name
    make: Callable[[Work], None] = field(compare=False)  # fills `Work.folder`
    version: int = 0  # of the code: raised when a change of it changes numbers, so that older results are not reused
    divided: bool = field(default=False, compare=False)  # ranks make it together, each with a share of the work

    @cached_property
    def key(self) -> str:
        """Hash of the recipe, with those of the inputs."""
        inputs = {role: source.key for role, source in self.sources()}
        return digest([self.kind, self.name, self.version, dict(self.config), inputs])

    @property
    def label(self) -> str:
        """`kind/name`, as shown."""
        return f"{self.kind}/{self.name}"

    def sources(self) -> Iterator[tuple[str, Stage]]:
        """Every input with its role, `role:name` where a role holds several."""
        for role, source in self.inputs.items():
            if isinstance(source, Stage):
                yield role, source
            else:
                yield from ((f"{role}:{name}", one) for name, one in source.items())


@dataclass(frozen=True)
class Work:
    """Everything that a stage works with."""

    folder: Path  # working folder; what a killed run left is still in it. Becomes the artifact
    inputs: Mapping[str, Any]  # complete artifacts by role; a role with several holds them by name
    config: Mapping[str, Any]  # the stage's settings
    progress: Callable[[int, int], None]  # call with (done, total)
    shards: Shards  # workers for work that can be divided; no result depends on their number
    ranks: Ranks = ALONE  # processes that make a divided stage together; only the first writes into the folder


class Watcher:
    """Follows a run. This one ignores it; the command line draws progress bars with its own."""

    def start(self, stage: Stage) -> None: ...

    def progress(self, stage: Stage, done: int, total: int) -> None: ...

    def again(self, stage: Stage) -> None: ...

    def end(self, stage: Stage, seconds: float, cached: bool) -> None: ...


def run(
    stages: Sequence[Stage],
    store: Store,
    watcher: Watcher | None = None,
    until: str | None = None,
    shards: Shards | None = None,
    ranks: Ranks | None = None,
) -> dict[str, Artifact]:
    """Run what is missing, in the order given, and return every artifact by its label.

    `until` ends after the last stage of that kind, or of that `kind/name`. `shards` does what can be divided of a
    stage; by default this process does all of it. `ranks`: this process is the first of several, of which the others
    `follow`. Raises ArtifactError when `until` names no stage.
    """
    stages = up_to(stages, until)
    with store.lock():
        given = store, watcher or Watcher(), shards or Here(), ranks or ALONE
        return {stage.label: made(stage, *given) for stage in stages}


def follow(stages: Sequence[Stage], store: Store, ranks: Ranks, until: str | None = None) -> None:
    """Take part in the divided stages that the first rank makes in `run`, of the same stages.

    It works in a folder of its own, to which comes what the first goes on from: it need not see the first's, and writes
    nothing there.
    """
    for stage in up_to(stages, until):
        if not stage.divided or (key := ranks.told(None)) is None:
            continue
        if key != stage.key:
            raise ArtifactError(
                f"{stage.label}: process {ranks.number} reads another study, text or model than the first; give it the "
                "same files"
            )
        with tempfile.TemporaryDirectory() as folder:
            ranks.copy(Path(folder))
            stage.make(Work(Path(folder), inputs_of(stage, store), stage.config, lambda *_: None, Here(), ranks))


def up_to(stages: Sequence[Stage], until: str | None) -> Sequence[Stage]:
    """The stages up to the last of a kind, or of that `kind/name`; all for None. Raises ArtifactError where there is
    none."""
    if until is None:
        return stages
    last = [number for number, stage in enumerate(stages) if until in (stage.kind, stage.label)]
    if not last:
        kinds = ", ".join(dict.fromkeys(stage.kind for stage in stages))
        raise ArtifactError(f"--until {until}: no such stage; kinds of stages are {kinds}")
    return stages[: last[-1] + 1]


def made(stage: Stage, store: Store, watcher: Watcher, shards: Shards, ranks: Ranks = ALONE) -> Artifact:
    """The artifact of a stage, made where it is not there; its inputs must be."""
    start = time.monotonic()
    watcher.start(stage)
    artifact = store.find(stage.kind, stage.name, stage.key)
    cached = artifact is not None
    if cached and stage.divided:
        ranks.told(None)
    if artifact is None:
        retake_processors()
        return_freed_memory()
        inputs = inputs_of(stage, store)
        keys = {role: source.key for role, source in stage.sources()}
        with store.writing(stage.kind, stage.name, stage.key, stage.config, keys) as folder:
            if stage.divided:
                ranks.told(stage.key)
                ranks.copy(folder)
            stage.make(Work(folder, inputs, stage.config, partial(watcher.progress, stage), shards, ranks))
        artifact = store.find(stage.kind, stage.name, stage.key)
        if artifact is None:
            raise ArtifactError(f"{stage.label}: its folder vanished while it was written; is another process at work?")
    watcher.end(stage, time.monotonic() - start, cached)
    return artifact


def inputs_of(stage: Stage, store: Store) -> dict[str, Any]:
    """The artifacts from which a stage is made, by role. Raises ArtifactError for a missing one."""

    def artifact(role: str, source: Stage) -> Artifact:
        made = store.find(source.kind, source.name, source.key)
        if made is None:
            raise ArtifactError(f"{stage.label}: its input {role} ({source.label}) is not there; run the study again")
        return made

    return {
        role: artifact(role, source)
        if isinstance(source, Stage)
        else {name: artifact(f"{role}:{name}", one) for name, one in source.items()}
        for role, source in stage.inputs.items()
    }
