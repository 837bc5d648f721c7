"""The study: one TOML file made into a model graph, with its edges, traces and everything that cannot be.

The graph is never declared twice: edges, the corpora a model has seen (its trace), the corpora both ends of an edge
have seen (the common trace) and the order of work all follow from the parents that the models name.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from heredity.study.faults import first_fault
from heredity.study.models import MergeConfig, ModelConfig
from heredity.study.overrides import set_value
from heredity.study.settings import StudyConfig
from heredity.study.table import Init

_SHARE_TOLERANCE = 1e-6


class StudyError(ValueError):
    """Something in a study file is wrong; the message names the file, the key, the value and the way out."""


class Edge(NamedTuple):
    """One step of the graph."""

    parent: str
    child: str

    @property
    def name(self) -> str:
        """`parent->child`, the key of the edge in every table."""
        return f"{self.parent}->{self.child}"

    @property
    def slug(self) -> str:
        """A name that can stand in a path."""
        return f"{self.parent}-to-{self.child}"


@dataclass(frozen=True)
class Study:
    """A validated study; made by `load_study` or `Study.of`."""

    name: str
    """Name of the study: its file's stem; results lie under `runs/<name>/`."""
    config: StudyConfig
    """The settings."""
    root: Path
    """Folder that relative paths in the study are taken from."""

    @classmethod
    def of(cls, values: Mapping[str, Any], name: str = "study", root: Path | None = None) -> Study:
        """Validate a parsed study.

        Raises StudyError for the first unknown key, wrong value or impossible relation, by name and place.
        """
        try:
            config = StudyConfig.model_validate(dict(values))
        except ValidationError as error:
            raise StudyError(f"{name}: {first_fault(error)}") from None
        study = cls(name, config, root or Path.cwd())
        study._check()
        return study

    # -- the graph ---------------------------------------------------------------------------------------------

    @cached_property
    def parents(self) -> dict[str, tuple[str, ...]]:
        """Parents of every model, in the order of the file."""
        return {name: _parents(model) for name, model in self.config.model.items()}

    @cached_property
    def order(self) -> tuple[str, ...]:
        """Models in an order in which every parent comes before its children."""
        done: list[str] = []
        waiting = list(self.config.model)
        while waiting:
            ready = [name for name in waiting if all(parent in done for parent in self.parents[name])]
            if not ready:
                raise StudyError(f"{self.name}: model.{waiting[0]}: {' -> '.join(self._cycle(waiting))} is a cycle")
            done += ready
            waiting = [name for name in waiting if name not in ready]
        return tuple(done)

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """Every parent -> child pair, in the order of the models."""
        return tuple(Edge(parent, child) for child in self.order for parent in self.parents[child])

    @cached_property
    def followed(self) -> tuple[str, ...]:
        """Models whose features are followed, in the order of work: all but those of stitches that are on no edge."""
        stitched = {end for stitch in self.config.stitch.values() for end in (stitch.source, stitch.target)}
        on_edges = {end for edge in self.edges for end in edge}
        return tuple(name for name in self.order if name in on_edges or name not in stitched)

    def ancestors(self, name: str) -> tuple[str, ...]:
        """All ancestors of a model, nearest first, without the model itself."""
        found: list[str] = []
        layer = list(self.parents[name])
        while layer:
            found += [model for model in layer if model not in found]
            layer = [parent for model in layer for parent in self.parents[model]]
        return tuple(found)

    def own_corpora(self, name: str) -> tuple[str, ...]:
        """Corpora that the model itself was trained on (none for a merge)."""
        model = self.config.model[name]
        return model.train.corpora if model.train else model.corpora

    def trace(self, name: str) -> tuple[str, ...]:
        """Union of the corpora of the model and its ancestors, in the order of [corpus]."""
        seen = {corpus for model in (name, *self.ancestors(name)) for corpus in self.own_corpora(model)}
        return tuple(corpus for corpus in self.config.corpus if corpus in seen)

    def common_trace(self, edge: Edge) -> tuple[str, ...]:
        """Corpora that both ends of an edge have in their trace."""
        child = self.trace(edge.child)
        return tuple(corpus for corpus in self.trace(edge.parent) if corpus in child)

    def common_ancestor(self, names: Sequence[str]) -> str | None:
        """The nearest model that all of these descend from (or are), or None."""
        lines = [(name, *self.ancestors(name)) for name in names]
        shared = [model for model in lines[0] if all(model in line for line in lines)]
        return shared[0] if shared else None

    def sae_parent(self, name: str) -> str | None:
        """The model whose SAE is continued on this one under `init = "parent"`: its parent, for a merge the nearest
        common ancestor of its parents (so that neither is favored), for a start model none."""
        parents = self.parents[name]
        return parents[0] if len(parents) == 1 else self.common_ancestor(parents) if parents else None

    @property
    def starts(self) -> tuple[str, ...]:
        """Models without a parent."""
        return tuple(name for name in self.order if not self.parents[name])

    def shares(self, name: str) -> dict[str, float]:
        """Share of tokens of each corpus in the training of a model; equal where the study gives none."""
        corpora = self.own_corpora(name)
        given = {corpus: self.config.corpus[corpus].share for corpus in corpora}
        if len(corpora) > 1 and any(share is not None for share in given.values()):
            return {corpus: float(share) for corpus, share in given.items() if share is not None}
        return {corpus: 1 / len(corpora) for corpus in corpora}

    def controls(self, name: str) -> int:
        """SAEs to train on this model, the measured one included."""
        named = self.config.controls.models
        wanted = name in named if named is not None else any(edge.parent == name for edge in self.edges)
        return self.config.controls.seeds if wanted else 1

    @property
    def instruments(self) -> tuple[Init, ...]:
        """Origins of the SAEs, the headline one first; none for a study of stitches alone."""
        return self.config.sae.instruments if self.edges or not self.config.stitch else ()

    @property
    def inits(self) -> tuple[Init, ...]:
        """See `instruments`."""
        return self.instruments

    def edge(self, name: str) -> Edge:
        """The edge `parent->child` of this name."""
        return next(edge for edge in self.edges if edge.name == name)

    def stitch_corpora(self, name: str) -> tuple[str, ...]:
        """Corpora that both models of a stitch have read, in the order of [corpus]."""
        stitch = self.config.stitch[name]
        return self.common_trace(Edge(stitch.source, stitch.target))

    @property
    def instrument(self) -> Init:
        """The instrument that headline numbers are reported for."""
        return self.config.sae.instruments[0]

    # -- what cannot be ----------------------------------------------------------------------------------------

    def _check(self) -> None:
        config = self.config
        tables = {"corpus": config.corpus, "model": config.model, "case": config.case, "stitch": config.stitch}
        for table, names in tables.items():
            for name in names:
                self._check_name(table, name)
        if not self.config.model:
            raise self._fault("model", "names no model; add a table [model.NAME]")
        for name, model in self.config.model.items():
            self._check_references(name, model)
        _ = self.order
        for name, model in self.config.model.items():
            self._check_shares(name)
            if not self.trace(name):
                raise self._fault(
                    f"model.{name}", "has no corpora in its trace; add corpora = [...] to say what it read"
                )
            if model.merge:
                self._check_merge(name, model.merge)
        for name in self.config.controls.models or ():
            if name not in self.config.model:
                raise self._fault("controls.models", self._unknown(name, self.config.model, "model"))
        for name in self.config.stitch:
            self._check_stitch(name)
        if self.instruments and not self.edges and len(self.config.model) > 1:
            raise self._fault("model", "has no parent -> child edge; give a model a parent or a merge, or add a stitch")

    def _check_name(self, table: str, name: str) -> None:
        # Names become folders and parts of file names.
        if not name.replace("_", "").replace("-", "").replace(".", "").isalnum():
            raise self._fault(f"{table}.{name}", f"names are letters, digits, '_', '-' and '.'; rename the {table}")

    def _check_references(self, name: str, model: ModelConfig) -> None:
        for corpus in self.own_corpora(name):
            if corpus not in self.config.corpus:
                raise self._fault(f"model.{name}.corpora", self._unknown(corpus, self.config.corpus, "corpus"))
        named = list(_parents(model))
        if model.merge and model.merge.base:
            named.append(model.merge.base)
        for parent in named:
            if parent not in self.config.model:
                raise self._fault(f"model.{name}", self._unknown(parent, self.config.model, "model") + " (parent)")
            if parent == name:
                raise self._fault(f"model.{name}", "is its own parent; name another model")

    def _check_shares(self, name: str) -> None:
        corpora = self.own_corpora(name)
        given = [self.config.corpus[corpus].share for corpus in corpora]
        if len(corpora) < 2 or all(share is None for share in given):
            return
        missing = [corpus for corpus, share in zip(corpora, given, strict=True) if share is None]
        if missing:
            raise self._fault(
                f"corpus.{missing[0]}", f"has no share, but other corpora of model {name} have; give all or none"
            )
        total = sum(share for share in given if share is not None)
        if abs(total - 1) > _SHARE_TOLERANCE:
            parts = " + ".join(f"{corpus} {share:g}" for corpus, share in zip(corpora, given, strict=True))
            raise self._fault("corpus", f"shares of model {name} sum to {total:g} ({parts}); make them sum to 1")

    def _check_merge(self, name: str, merge: MergeConfig) -> None:
        place = f"model.{name}.merge"
        if len(set(merge.parents)) != len(merge.parents):
            raise self._fault(place, f"parents={list(merge.parents)} names a model twice; merge different models")
        if merge.method == "slerp" and len(merge.parents) != 2:
            raise self._fault(place, f"slerp takes exactly two parents, not {len(merge.parents)}; use linear for more")
        if len(merge.parents) < 2 and merge.method == "linear":
            raise self._fault(place, "linear takes at least two parents; add one")
        if merge.weights is not None and len(merge.weights) != len(merge.parents):
            raise self._fault(
                place, f"{len(merge.weights)} weights for {len(merge.parents)} parents; give one weight a parent"
            )
        if merge.method == "slerp" and merge.weights is not None:
            raise self._fault(place, "slerp has no weights; give t, from 0 (first parent) to 1 (second parent)")
        uses_t = merge.method in ("slerp", "linear") and len(merge.parents) == 2 and merge.weights is None
        if not uses_t and "t" in merge.model_fields_set:
            raise self._fault(place, f"t={merge.t} has no effect on {merge.method} with weights; remove t or weights")
        if not uses_t and merge.weights is None:
            raise self._fault(place, f"{merge.method} of {len(merge.parents)} parents needs weights = [...]")
        if merge.method not in ("slerp", "linear") and self.merge_base(name) is None:
            raise self._fault(place, f"{merge.method} needs the model its parents descend from; add base = ...")
        shapes = {parent: self.architecture(parent) for parent in merge.parents}
        known = {parent: shape for parent, shape in shapes.items() if shape is not None}
        if len(set(known.values())) > 1:
            a, first = next(iter(known.items()))
            b, other = next(item for item in known.items() if item[1] != first)
            raise self._fault(place, f"{a} is {first} but {b} is {other}; only models of one shape can be merged")

    def _check_stitch(self, name: str) -> None:
        stitch, place = self.config.stitch[name], f"stitch.{name}"
        for end in (stitch.source, stitch.target):
            if end not in self.config.model:
                raise self._fault(place, self._unknown(end, self.config.model, "model"))
        common = self.stitch_corpora(name)
        if not common:
            raise self._fault(
                place, f"{stitch.source} and {stitch.target} have read no common corpus; a stitch is fitted on one"
            )
        prose = stitch.features.corpus
        if prose is not None and prose not in common:
            raise self._fault(f"{place}.features.corpus", f"{prose!r} is none that both have read: {', '.join(common)}")

    def merge_base(self, name: str) -> str | None:
        """The model that a merge's task vectors are taken from, if there is one."""
        merge = self.config.model[name].merge
        return None if merge is None else merge.base or self.common_ancestor(merge.parents)

    def architecture(self, name: str) -> str | None:
        """Shape of a model as far as the study itself says (None below a loaded model)."""
        model = self.config.model[name]
        if model.train:
            a = model.train
            return f"{a.n_layers} layers of d_model {a.d_model}, d_mlp {a.d_mlp}, {a.n_heads}/{a.kv_heads} heads"
        parents = self.parents[name]
        return None if model.load or not parents else self.architecture(parents[0])

    def _fault(self, place: str, message: str) -> StudyError:
        return StudyError(f"{self.name}: {place}: {message}")

    @staticmethod
    def _unknown(name: str, known: Mapping[str, object], what: str) -> str:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"defined are {', '.join(known)}"
        return f"{name!r} is no {what} of this study; {hint}"

    def _cycle(self, waiting: Sequence[str]) -> list[str]:
        path = [waiting[0]]
        while True:
            step = next(parent for parent in self.parents[path[-1]] if parent in waiting)
            if step in path:
                return [*path[path.index(step) :], step][::-1]
            path.append(step)


def load_study(name_or_path: str, overrides: Sequence[str] = ()) -> Study:
    """The study in a TOML file, or a built-in one by name (`demo`).

    `overrides` are `dotted.key=value` strings, the value in TOML syntax (a bare word is taken as a string).
    Raises StudyError when there is no such file, it is not TOML, or the study is not valid.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml" and not path.is_file():
        builtin = resources.files("heredity.demo") / f"{name_or_path}.toml"
        if not builtin.is_file():
            raise StudyError(f"{name_or_path}: no such file, and no built-in study of that name; built in is: demo")
        text, name, root = builtin.read_text(), name_or_path, Path.cwd()
    else:
        if not path.is_file():
            raise StudyError(f"{path}: no such study file; give the path of a .toml file, or `demo`")
        try:
            text, name, root = path.read_text(encoding="utf-8"), path.stem, path.resolve().parent
        except UnicodeDecodeError as error:
            raise StudyError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise StudyError(f"{name_or_path}: is not valid TOML: {error}") from None
    for override in overrides:
        try:
            set_value(values, override)
        except ValueError as error:
            raise StudyError(f"--set {override}: {error}") from None
    return Study.of(values, name=name, root=root)


def _parents(model: ModelConfig) -> tuple[str, ...]:
    if model.merge:
        return model.merge.parents
    return (model.parent,) if model.parent else ()
