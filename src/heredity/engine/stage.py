"""Run the stages of a study in order: those that are there are skipped, begun ones resumed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from heredity.engine.store import Artifact, ArtifactError, Store, digest
from heredity.engine.workers import Here, Shards


@dataclass(frozen=True)
class Stage:
    """One step of a study: (inputs) -> artifact."""

    kind: str
    """Kind of result and name of its folder: `corpus`, `model`, `sae`, `match` ..."""
    name: str
    """Name within its kind."""
    config: Mapping[str, Any]
    """The settings that matter to the result and no others: a change of them makes it anew."""
    inputs: Mapping[str, Stage]
    """Stages that it is made from, by role."""
    make: Callable[[Work], None] = field(compare=False)
    """Fills `Work.folder`."""

    @cached_property
    def key(self) -> str:
        """Hash of the recipe, that of the inputs included."""
        inputs = {role: stage.key for role, stage in self.inputs.items()}
        return digest([self.kind, self.name, dict(self.config), inputs])

    @property
    def label(self) -> str:
        """`kind/name`, as shown."""
        return f"{self.kind}/{self.name}"


@dataclass(frozen=True)
class Work:
    """Everything that a stage works with."""

    folder: Path
    """Working folder, with the files that a killed run left; becomes the artifact."""
    inputs: Mapping[str, Artifact]
    """Complete artifacts, by role."""
    config: Mapping[str, Any]
    """The stage's settings."""
    progress: Callable[[int, int], None]
    """Call with (done, total)."""
    shards: Shards
    """Workers for work that can be divided; no result depends on their number."""

    def group(self, prefix: str) -> dict[str, Artifact]:
        """The inputs whose role is `prefix:NAME`, by NAME."""
        return {
            role.removeprefix(f"{prefix}:"): artifact
            for role, artifact in self.inputs.items()
            if role.startswith(f"{prefix}:")
        }


class Watcher(Protocol):
    """Observer of a run; the command line draws bars with it."""

    def start(self, stage: Stage) -> None:
        """A stage begins."""
        ...

    def progress(self, stage: Stage, done: int, total: int) -> None:
        """A stage has come this far."""
        ...

    def end(self, stage: Stage, seconds: float, cached: bool) -> None:
        """A stage is complete."""
        ...


class Silent:
    """A watcher that reports nothing."""

    def start(self, stage: Stage) -> None:
        """Nothing."""

    def progress(self, stage: Stage, done: int, total: int) -> None:
        """Nothing."""

    def end(self, stage: Stage, seconds: float, cached: bool) -> None:
        """Nothing."""


def run(
    stages: Sequence[Stage],
    store: Store,
    watcher: Watcher | None = None,
    until: str | None = None,
    shards: Shards | None = None,
) -> dict[str, Artifact]:
    """Run what is missing, in the order given, and return every artifact by its label.

    `until` ends after the last stage of that kind, or of that `kind/name`; ArtifactError when there is none. `shards`
    does the work that can be divided; by default this process does all of it.
    """
    watcher = watcher or Silent()
    if until is not None:
        last = [number for number, stage in enumerate(stages) if until in (stage.kind, stage.label)]
        if not last:
            kinds = ", ".join(dict.fromkeys(stage.kind for stage in stages))
            raise ArtifactError(f"--until {until}: no such stage; kinds of stages are {kinds}")
        stages = stages[: last[-1] + 1]
    with store.lock():
        return {stage.label: _one(stage, store, watcher, shards or Here()) for stage in stages}


def _one(stage: Stage, store: Store, watcher: Watcher, shards: Shards) -> Artifact:
    start = time.monotonic()
    watcher.start(stage)
    artifact = store.find(stage.kind, stage.name, stage.key)
    cached = artifact is not None
    if artifact is None:
        inputs = {role: _input(role, source, stage, store) for role, source in stage.inputs.items()}
        keys = {role: source.key for role, source in stage.inputs.items()}
        with store.writing(stage.kind, stage.name, stage.key, stage.config, keys) as folder:

            def progress(done: int, total: int) -> None:
                watcher.progress(stage, done, total)

            stage.make(Work(folder, inputs, stage.config, progress, shards))
        artifact = store.find(stage.kind, stage.name, stage.key)
        if artifact is None:
            raise ArtifactError(f"{stage.label}: its folder vanished while it was written; is another process at work?")
    watcher.end(stage, time.monotonic() - start, cached)
    return artifact


def _input(role: str, source: Stage, stage: Stage, store: Store) -> Artifact:
    artifact = store.find(source.kind, source.name, source.key)
    if artifact is None:
        raise ArtifactError(f"{stage.label}: its input {role} ({source.label}) is not there; run the study again")
    return artifact
