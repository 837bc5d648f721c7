"""The study: one TOML file made into a model graph, with its edges, traces and everything that cannot be.

The graph is never declared twice: edges, the corpora a model has seen (its trace), the corpora both ends of an edge
have seen (the common trace) and the order of work all follow from the parents that the models name.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin

from pydantic import ValidationError

from heredity.errors import reading, short
from heredity.study.models import DERIVED, Instrument, MergeConfig, ModelConfig
from heredity.study.places import local_path
from heredity.study.settings import StudyConfig

_SHARE_TOLERANCE = 1e-6
_LARGEST = 2**63 - 1  # an integer of TOML
_LONGEST_NAME = 64  # bytes of a name: three of them make the name of a folder
_DEEPEST = 64  # parts of a key; the parser's time grows with their square
_DOTS, _APART = re.compile(r"[\w\"'-][ \t]*\.(?=[ \t]*[\w\"'-])"), re.compile(r"[^\w.\"' \t-]")
_FORMS = {
    "tuple_type": 'give a list, such as ["a", "b"]',
    "string_too_short": "is empty; give a text, or leave the key out",
    "too_short": "is empty; give at least one",
    "string_type": 'give a text in quotes, such as "a"',
    "int_type": "give a whole number, without quotes",
    "int": "give a whole number, without quotes",
    "int_from_float": "give a whole number",
    "float_type": "give a number, without quotes",
    "float": "give a number, without quotes",
    "bool_type": "give true or false, without quotes",
    "bool": "give true or false, without quotes",
    "dict_type": "give a table",
    "model_type": "give a table, such as [NAME] with its keys below",
    "finite_number": "give a finite number",
}
"""What to write instead, by pydantic's name of the fault; in its own words for all others."""


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


GIVEN = "sae", "second_sae"
"""Keys of a model's table that name pretrained SAEs, one for each site."""


@dataclass(frozen=True)
class Study:
    """A validated study; made by `load_study` or `Study.of`."""

    name: str  # stem of its file; results lie under `runs/<name>/`
    config: StudyConfig
    root: Path  # folder at which relative paths in the study start
    recorded: Mapping[str, Any] = field(default_factory=dict)
    """What a run of it recorded of everything that lies outside the study file, by key; see `identity`."""
    read: dict[str, Any] = field(default_factory=dict)
    """The same as found now."""

    @classmethod
    def of(cls, values: Mapping[str, Any], name: str = "study", root: Path | None = None) -> Study:
        """Validate a parsed study.

        Raises StudyError for the first unknown key, wrong value or impossible relation, by name and place.
        """
        with reading(name, "correct the study", StudyError):
            for place, number in _beyond(values):
                raise StudyError(f"{name}: {place}: {short(number, 80)}: is beyond what a number can be; lower it")
            try:
                config = StudyConfig.model_validate(dict(values))
            except ValidationError as error:
                raise StudyError(f"{name}: {first_fault(error, values)}") from None
        study = cls(name, config.with_recipes(), root or Path.cwd())
        study = replace(study, config=config.model_copy(update={"model": study._with_revisions()}))
        study._check()
        return study

    def _with_revisions(self) -> dict[str, ModelConfig]:
        """The models, with the chain of its revisions in place of each that names some."""
        models = dict[str, ModelConfig]()
        for name, model in self.config.model.items():
            if model.revisions is None:
                models[name] = model
                continue
            parent, folder = model.parent, self.folder(f"model.{name}.load", model.load or "")
            for one in model.revisions:
                if folder is not None and not (folder / one).is_dir():
                    raise self._fault(f"model.{name}.revisions", f"{one}: {folder} has no such folder; correct it")
                place = {"load": f"{model.load}/{one}"} if folder else {"revision": one}
                models[f"{name}@{one}"] = model.model_copy(update={"revisions": None, "parent": parent, **place})
                parent = f"{name}@{one}"
        return models

    # -- the graph ---------------------------------------------------------------------------------------------

    @cached_property
    def parents(self) -> dict[str, tuple[str, ...]]:
        """Parents of every model, in the order of the file."""
        models = self.config.model.items()
        return {name: m.merge.parents if m.merge else (m.parent,) if m.parent else () for name, m in models}

    @cached_property
    def order(self) -> tuple[str, ...]:
        """Models in an order in which every parent comes before its children."""
        order, names = [], list(self.config.model)
        sorter = TopologicalSorter({name: (*self.parents[name], *self._repeated(name)) for name in names})
        try:
            sorter.prepare()
        except CycleError as error:
            raise self._fault(f"model.{error.args[1][0]}", f"{' -> '.join(error.args[1])} is a cycle") from None
        while ready := sorted(sorter.get_ready(), key=names.index):
            order += ready
            sorter.done(*ready)
        return tuple(order)

    @cached_property
    def descent(self) -> tuple[Edge, ...]:
        """Every parent -> child pair, in the order of the models."""
        return tuple(Edge(parent, child) for child in self.order for parent in self.parents[child])

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """All that features are matched and judged along: descent, and from a model to each that repeats its recipe."""
        twins = (Edge(other, name) for name in self.order for other in self._repeated(name))
        return tuple(sorted((*self.descent, *twins), key=lambda edge: self.order.index(edge.child)))

    def _repeated(self, name: str) -> tuple[str, ...]:
        """The model whose recipe this one repeats, if it does."""
        other = self.config.model[name].recipe_of
        return (other,) if other is not None else ()

    @cached_property
    def followed(self) -> tuple[str, ...]:
        """Models whose features are followed, in the order of work: all but those of stitches that are on no edge."""
        stitched = {end for stitch in self.config.stitch.values() for end in (stitch.source, stitch.target)}
        on_edges = {end for edge in self.edges for end in edge}
        return tuple(name for name in self.order if name in on_edges or name not in stitched)

    @property
    def starts(self) -> tuple[str, ...]:
        """Models without a parent."""
        return tuple(name for name in self.order if not self.parents[name])

    @property
    def instruments(self) -> tuple[Instrument, ...]:
        """Origins of the SAEs, the headline one first; none for a study of stitches alone."""
        return self.config.sae.instruments if self.edges or not self.config.stitch else ()

    @property
    def sites(self) -> tuple[str, ...]:
        """Where features are read in every model, the main site first."""
        return self.config.hook_point

    @property
    def site(self) -> str:
        """The site behind the headline numbers."""
        return self.sites[0]

    def at(self, site: str) -> Study:
        """The study with another of its sites as the main one. Raises StudyError for a place that is none of them."""
        if site not in self.sites:
            raise StudyError(f"site {site!r}: study {self.name} has {', '.join(self.sites)}")
        order = sorted(range(len(self.sites)), key=lambda place: self.sites[place] != site)
        models = dict[str, ModelConfig]()
        for name, model in self.config.model.items():  # which name SAEs by site
            given = {key: tuple(getattr(model, key)[place] for place in order) for key in GIVEN if getattr(model, key)}
            models[name] = model.model_copy(update=given)
        changed: dict[str, Any] = {"hook_point": tuple(self.sites[place] for place in order), "model": models}
        changed["direction"] = {  # which are read where they were, whatever the main site is now
            name: one.model_copy(update={"hook_point": one.hook_point or self.site})
            for name, one in self.config.direction.items()
        }
        return replace(self, config=self.config.model_copy(update=changed))

    @property
    def instrument(self) -> Instrument:
        """The instrument behind the headline numbers."""
        return self.config.sae.instruments[0]

    def edge(self, name: str) -> Edge:
        """The edge `parent->child` of this name."""
        return next(edge for edge in self.edges if edge.name == name)

    def ancestors(self, name: str) -> tuple[str, ...]:
        """All ancestors of a model, nearest first, without the model itself."""
        ancestors: list[str] = []
        layer = list(self.parents[name])
        while layer:
            ancestors += [model for model in layer if model not in ancestors]
            layer = [parent for model in layer for parent in self.parents[model]]
        return tuple(ancestors)

    def line_of(self, name: str) -> tuple[str, ...]:
        """A model and its descendants, parents before children."""
        return tuple(other for other in self.order if other == name or name in self.ancestors(other))

    def common_ancestor(self, names: Sequence[str]) -> str | None:
        """The nearest model that all of these descend from (or are), or None."""
        lines = [(name, *self.ancestors(name)) for name in names]
        return next((model for model in lines[0] if all(model in line for line in lines)), None)

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

    def text_corpora(self, edge: Edge, text: str) -> tuple[str, ...]:
        """Corpora behind a text of `verdicts.texts`; none for the own text of a child that has none."""
        common = self.common_trace(edge)
        own = tuple(corpus for corpus in self.own_corpora(edge.child) if corpus not in common)
        return {"common": common, "own": own}.get(text, (text,))

    def stitch_corpora(self, name: str) -> tuple[str, ...]:
        """Corpora that both models of a stitch have read, in the order of [corpus]."""
        stitch = self.config.stitch[name]
        return self.common_trace(Edge(stitch.source, stitch.target))

    def sae_parent(self, name: str) -> str | None:
        """The model whose SAE is continued on this one by the instrument `parent`: its parent, for a merge the nearest
        common ancestor of its parents (so that neither is favored), for a start model none."""
        parents = self.parents[name]
        return parents[0] if len(parents) == 1 else self.common_ancestor(parents) if parents else None

    def frozen_from(self, name: str) -> str:
        """The model whose SAE reads this one by the instrument `frozen`: the first of the line of SAE parents."""
        parent = self.sae_parent(name) or next(iter(self._repeated(name)), None)
        return self.frozen_from(parent) if parent else name

    def given_sae(self, name: str, key: str, site: str) -> str | None:
        """The pretrained SAE at a site that a model's table names under a key, `sae` or `second_sae`."""
        given = getattr(self.config.model[name], key)
        return given[self.sites.index(site)] if given else None

    def folder(self, key: str, reference: str) -> Path | None:
        """The local folder or file that the value of a key names, or None for what may lie on the hub.

        Raises StudyError where a variable of the environment is not set or the path cannot be followed.
        """
        try:
            path = local_path(reference, self.root)
        except ValueError as error:
            raise self._fault(key, f"{reference}: {error}") from None
        return path if path.exists() else None

    def identity(self, key: str, find: Callable[[], Any]) -> Any:
        """What identifies the content of a file or folder that the value of a key names, as JSON; None for what has no
        such place.

        Where it is no longer there, what the run recorded holds: results can be looked at without it. What has to read
        it anew fails then. Raises what `find` raises where nothing is recorded.
        """
        try:
            found = find()
        except ValueError:
            if key not in self.recorded:
                raise
            found = None
        if found is None:
            return self.recorded.get(key)
        self.read[key] = found
        return found

    def merge_base(self, name: str) -> str | None:
        """The model from which a merge's task vectors are taken, if there is one."""
        merge = self.config.model[name].merge
        return None if merge is None else merge.base or self.common_ancestor(merge.parents)

    def shares(self, name: str) -> dict[str, float]:
        """Share of tokens of each corpus in the training of a model; equal where the study gives none."""
        corpora = self.own_corpora(name)
        given = {corpus: share for corpus in corpora if (share := self.config.corpus[corpus].share) is not None}
        return given if len(corpora) > 1 and given else {corpus: 1 / len(corpora) for corpus in corpora}

    def controls(self, name: str) -> int:
        """SAEs to train on this model, the measured one included."""
        named = self.config.controls.models
        wanted = name in named if named is not None else any(edge.parent == name for edge in self.edges)
        return self.config.controls.seeds if wanted else 1

    # -- what cannot be ----------------------------------------------------------------------------------------

    def _check(self) -> None:
        for place, reason in self._faults():
            raise self._fault(place, reason)

    def _faults(self) -> Iterator[tuple[str, str]]:
        """What is wrong with the study, each with its place; a fault may rest on the absence of those before it."""
        config = self.config
        tables = {"corpus": config.corpus, "model": config.model, "case": config.case, "stitch": config.stitch}
        tables |= {"direction": config.direction}
        for table, names in tables.items():
            for name in names:  # names become folders and parts of file names
                own, _, revision = name.partition("@")  # as `revisions` names the models of a chain
                own += revision if table == "model" and own not in names else name[len(own) :]
                if not own.replace("_", "").replace("-", "").replace(".", "").isalnum() or name.startswith((".", "@")):
                    yield f"{table}.{short(name, 80)}", f"names are letters, digits, '_', '-', '.'; rename the {table}"
                if len(name.encode()) > _LONGEST_NAME:
                    yield f"{table}.{short(name, 80)}", f"has more than {_LONGEST_NAME} bytes; shorten the name"
        if not config.model:
            yield "model", "names no model; add a table [model.NAME]"
        if not self.sites or len(set(self.sites)) < len(self.sites):
            yield "hook_point", f"{list(self.sites)} must name at least one place, and none twice"
        for site in self.sites:  # which become names of folders where there are several
            if "/" in site or not site.strip():
                yield (
                    "hook_point",
                    f"{short(repr(site), 80)} is no place in a model; give one such as blocks.0.mlp.hook_post",
                )
        for name in config.stitch if len(self.sites) > 1 else ():
            yield "hook_point", f"names {len(self.sites)} places, and a study with a stitch ({name}) has one; give one"
        for name, model in config.model.items():
            for corpus in self.own_corpora(name):
                yield from _unknown(f"model.{name}.corpora", corpus, config.corpus, "corpus")
            bases = (model.merge.base,) if model.merge and model.merge.base else ()
            for other in self._repeated(name):
                yield from _unknown(f"model.{name}.recipe_of", other, config.model, "model")
                yield from self._faults_of_recipe(name, other)
            for parent in (*self.parents[name], *bases):
                yield from _unknown(f"model.{name}", parent, config.model, "model", " (parent)")
                if parent == name:
                    yield f"model.{name}", "is its own parent; name another model"
        _ = self.order
        for name, model in config.model.items():
            yield from self._faults_of_shares(name)
            if not self.trace(name):
                yield f"model.{name}", "has no corpora in its trace; add corpora = [...] to say what it read"
            if model.merge:
                for reason in self._faults_of_merge(name, model.merge):
                    yield f"model.{name}.merge", reason
            yield from self._faults_of_saes(name)
            if model.edit and model.edit.direction is not None:
                yield from self._faults_of_edit(name, model.edit.direction)
        if config.reading.skip_positions >= config.sae.context_size:
            least = f"leaves nothing of blocks of {config.sae.context_size} tokens (sae.context_size); lower it"
            yield "reading.skip_positions", f"{config.reading.skip_positions}: {least}"
        for text in config.verdicts.texts:
            if text not in ("common", "own", *config.corpus):
                yield "verdicts.texts", f"{text!r} is no text; choose of common, own, {', '.join(config.corpus)}"
        if config.explain.features and config.report.tokens <= config.sae.context_size:
            yield (
                "report.tokens",
                f"{config.report.tokens} fill no two blocks of sae.context_size={config.sae.context_size}, one to "
                "explain and one to score; raise it, or set explain.features = 0",
            )
        for corpus in config.report.case_corpora:
            yield from _unknown("report.case_corpora", corpus, config.corpus, "corpus")
        for name, direction in config.direction.items():
            if direction.model is not None:
                yield from _unknown(f"direction.{name}.model", direction.model, config.model, "model")
            for corpus in direction.classes or ():
                yield from _unknown(f"direction.{name}", corpus, config.corpus, "corpus")
        for name in config.controls.models or ():
            yield from _unknown("controls.models", name, config.model, "model")
        for name, stitch in config.stitch.items():
            for end in (stitch.source, stitch.target):
                yield from _unknown(f"stitch.{name}", end, config.model, "model")
            common, prose = self.stitch_corpora(name), stitch.features.corpus
            if not common:
                ends = f"{stitch.source} and {stitch.target}"
                yield f"stitch.{name}", f"{ends} have read no common corpus; a stitch is fitted on one"
            if prose is not None and prose not in common:
                yield f"stitch.{name}.features.corpus", f"{prose!r} is none that both have read: {', '.join(common)}"
        if self.instruments and not self.edges and len(config.model) > 1:
            yield "model", "has no parent -> child edge; give a model a parent or a merge, or add a stitch"

    def _faults_of_recipe(self, name: str, other: str) -> Iterator[tuple[str, str]]:
        place, kind = f"model.{name}.recipe_of", self.config.model[other].kind
        if other == name:
            yield place, "is the model itself; name another model"
        for first in self._repeated(other):
            yield place, f"{other} repeats a recipe itself; name {first}"
        if kind in ("load", "merge", *DERIVED):
            made = {"load": "loaded", "merge": "a merge"}.get(kind, f"made by {kind}")
            yield place, f"{other} is {made}, which no seed changes; name a model that the study trains"

    def _faults_of_edit(self, name: str, direction: str) -> Iterator[tuple[str, str]]:
        """What is wrong with projecting a direction of the study out of the parent of a model."""
        place, known = f"model.{name}.edit.project_out", self.config.direction
        yield from _unknown(place, direction, known, "direction")
        of = known[direction].model or self.starts[0]
        if of not in self.ancestors(name):
            yield (
                place,
                f"direction {direction} is of {of}, from which {name} does not descend; name one of an ancestor",
            )

    def _faults_of_saes(self, name: str) -> Iterator[tuple[str, str]]:
        model, instruments = self.config.model[name], self.config.sae.instruments
        for key in GIVEN:
            if (count := len(getattr(model, key))) not in (0, len(self.sites)):
                places = f"{len(self.sites)} hook points"
                yield f"model.{name}.{key}", f"names {count} SAEs for {places}; give one for each, in their order"
        if model.sae and model.sae == model.second_sae:
            yield f"model.{name}.second_sae", "is sae itself; give one of another seed, or leave it out to train one"
        readers = {"independent": True, "parent": not self.sae_parent(name), "frozen": self.frozen_from(name) == name}
        if model.sae and not any(readers.get(instrument) for instrument in instruments):
            ways = " or ".join(f'"{way}"' for way, reads in readers.items() if reads)
            yield f"model.{name}.sae", f"is read by no instrument of {list(instruments)}; set sae.instruments = {ways}"
        if "frozen" in instruments and model.merge and not self.sae_parent(name):
            reason = f"frozen reads {name} and its parents with one SAE, and these descend from no common model"
            yield "sae.instruments", f"{reason}; leave it out, or give them one parent"

    def _faults_of_shares(self, name: str) -> Iterator[tuple[str, str]]:
        given = {corpus: self.config.corpus[corpus].share for corpus in self.own_corpora(name)}
        shares = {corpus: share for corpus, share in given.items() if share is not None}
        if len(given) < 2 or not shares:
            return
        for corpus in (corpus for corpus in given if corpus not in shares):
            yield f"corpus.{corpus}", f"has no share, but other corpora of model {name} have; give all or none"
        if abs(sum(shares.values()) - 1) > _SHARE_TOLERANCE:
            parts = " + ".join(f"{corpus} {share:g}" for corpus, share in shares.items())
            yield "corpus", f"shares of model {name} sum to {sum(shares.values()):g} ({parts}); make them sum to 1"

    def _faults_of_merge(self, name: str, merge: MergeConfig) -> Iterator[str]:
        method, count, weights = merge.method, len(merge.parents), merge.weights
        if len(set(merge.parents)) != count:
            yield f"parents={list(merge.parents)} names a model twice; merge different models"
        if method == "slerp" and count != 2:
            yield f"slerp takes exactly two parents, not {count}; use linear for more"
        if method == "linear" and count < 2:
            yield "linear takes at least two parents; add one"
        if weights is not None and len(weights) != count:
            yield f"{len(weights)} weights for {count} parents; give one weight per parent"
        if method == "slerp" and weights is not None:
            yield "slerp has no weights; give t, from 0 (first parent) to 1 (second parent)"
        uses_t = method in ("slerp", "linear") and count == 2 and weights is None
        if not uses_t and "t" in merge.model_fields_set:
            yield f"t={merge.t} has no effect on {method} with weights; remove t or weights"
        if not uses_t and weights is None:
            yield f"{method} of {count} parents needs weights = [...]"
        if method not in ("slerp", "linear") and self.merge_base(name) is None:
            yield f"{method} needs the model its parents descend from; add base = ..."
        shapes = [(parent, shape) for parent in merge.parents if (shape := self._architecture(parent)) is not None]
        for parent, shape in shapes:
            if shape != shapes[0][1]:
                difference = f"{shapes[0][0]} is {shapes[0][1]} but {parent} is {shape}"
                yield f"{difference}; only models of one shape can be merged"

    def _architecture(self, name: str) -> str | None:
        """Shape of a model as far as the study itself says (None below a loaded model)."""
        model = self.config.model[name]
        if model.train:
            a = model.train
            return f"{a.n_layers} layers of d_model {a.d_model}, d_mlp {a.d_mlp}, {a.n_heads}/{a.kv_heads} heads"
        return None if model.load or not self.parents[name] else self._architecture(self.parents[name][0])

    def _fault(self, place: str, message: str) -> StudyError:
        return StudyError(f"{self.name}: {place}: {message}")


def _unknown(
    place: str, name: str, known: Mapping[str, object], table: str, role: str = ""
) -> Iterator[tuple[str, str]]:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        defined = f"defined are {', '.join(known)}" if known else f"it defines none; add a table [{table}.{name}]"
        hint = f"did you mean {near[0]!r}?" if near else defined
        yield place, f"{name!r} is no {table} of this study; {hint}{role}"


def load_study(name_or_path: str, overrides: Sequence[str] = ()) -> Study:
    """The study in a TOML file, or a built-in one by name (`demo`).

    `overrides` are `dotted.key=value` strings, the value in TOML syntax (a bare word is taken as a string).
    Raises StudyError when there is no such file, it is not TOML, or the study is not valid.
    """
    path, root = Path(name_or_path), None
    if path.suffix != ".toml" and not path.is_file():
        path, root = Path(str(resources.files("heredity.demo"))) / f"{name_or_path}.toml", Path.cwd()
    if not path.is_file():
        raise StudyError(f"{name_or_path}: no such study file; give the path of a .toml file; built in is: demo")
    if path.stem.startswith("."):
        reason = "runs lie in a folder of the study's name, which may not begin with a dot; rename the file"
        raise StudyError(f"{name_or_path}: {reason}")
    values = _parsed(path)
    for override in overrides:
        _set_value(values, override)
    return Study.of(values, name=path.stem, root=root or path.resolve().parent)


def _parsed(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises StudyError by file, and by line and text of the line where it is not TOML."""
    with reading(path, "correct the study file", StudyError):
        text = path.read_text(encoding="utf-8-sig")
        if any(len(_DOTS.findall(key)) > _DEEPEST for key in _APART.split(text)):
            raise StudyError(f"{path}: a key has more than {_DEEPEST} parts; correct it")
        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            message, line = str(error), re.search(r"line (\d+)", str(error))
            place = (
                f"{path}, line {line[1]}: {short(text.splitlines()[int(line[1]) - 1].strip(), 80)}" if line else path
            )
            if "overwrite a value" in message or "twice" in message:
                raise StudyError(f"{place}: this key or table is there already; keep one of them") from None
            raise StudyError(f"{place}: is not valid TOML: {message}; correct that line") from None


def first_fault(error: ValidationError, given_values: Mapping[str, Any] | None = None) -> str:
    """The first thing that is wrong in a study's settings, with its place and the given value, in words of the file.

    given_values: of the whole file, in which a key that is missing in one table is looked for in the others.
    """
    fault = error.errors(include_url=False)[0]
    # pydantic adds the tried type of a union to the place; nobody wrote that in the file
    parts = [str(part) for part in fault["loc"]]
    where = short(".".join(part for part in parts if not part.startswith(("constrained-", "literal[", "tuple["))), 80)
    if fault["type"] == "extra_forbidden":
        known = _keys_at(parts[:-1])
        near = difflib.get_close_matches(parts[-1][:_LONGEST_NAME], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}" if known else "remove it"
        if not near and len(parts) > 1 and parts[-1] in StudyConfig.model_fields:
            hint = f"it belongs above the first [table] of the file; move {parts[-1]} there"
        return f"{where}: unknown key; {hint}"
    if fault["type"] == "missing":
        tables = [name for name, table in (given_values or {}).items() if isinstance(table, dict) and where in table]
        moved = f"it stands in [{tables[0]}]; move it above the first [table] of the file" if tables else "add it"
        return f"{where}: is missing; {moved}"
    message, given = fault["msg"].removeprefix("Value error, "), fault.get("input")
    message = _FORMS.get(fault["type"].removesuffix("_parsing"), message)
    # what checks a whole table or list names its values itself
    whole = isinstance(given, dict) or (isinstance(given, list | tuple) and fault["type"] == "value_error")
    shown = "" if whole else f"{short(repr(given) if isinstance(given, str) else given, 80)}: "
    return f"{where or 'study'}: {shown}{message[0].lower() + message[1:]}"


def _beyond(value: object, place: str = "") -> Iterator[tuple[str, object]]:
    """Integers that are larger than any of TOML, with their place."""
    if isinstance(value, int) and not -_LARGEST <= value <= _LARGEST:
        yield place or "study", value
    elif isinstance(value, Mapping | list):
        for key, part in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _beyond(part, f"{place}.{key}" if place else str(key))


def _keys_at(place: Sequence[str]) -> list[str]:
    kind: Any = StudyConfig
    for part in place:
        if get_origin(kind) is dict:
            kind = get_args(kind)[1]
        elif part in getattr(kind, "model_fields", {}):
            annotation = kind.model_fields[part].annotation
            options = (annotation,) if get_origin(annotation) is dict else get_args(annotation) or (annotation,)
            kind = next((option for option in options if option is annotation or hasattr(option, "model_fields")), None)
        else:
            return []
    return sorted(getattr(kind, "model_fields", ()))


def _set_value(values: dict[str, Any], override: str) -> None:
    """Set one key of parsed TOML by `dotted.key=value`; missing tables are added."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise StudyError(f"--set {short(override, 80)}: must look like sae.tokens=1000000")
    if key.count(".") > _DEEPEST:
        raise StudyError(f"--set {short(override, 80)}: has more than {_DEEPEST} parts; correct it")
    with reading(f"--set {short(override, 80)}", "correct the value", StudyError):
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text.strip()
    *tables, last = key.strip().split(".")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise StudyError(
                f"--set {short(override, 80)}: {table} is a value, not a table; name one of its keys' tables"
            )
    if tables == ["sae"] and last in ("init", "instruments"):  # two names of one key: the override wins
        values.pop("init", None)
        last = "instruments"
    values[last] = value
