"""A study done again with other seeds: its stages, what they cost, and how far the figures vary.

A repeat trains fine-tunes and SAEs with seeds of its own; what is made from them follows. All else is the first
repeat's: corpora, tokenizer, tokens, models that are loaded or trained from scratch, and the seeds of every
measurement, so that figures differ by the trainings alone. The first repeat is the plain study, with the same keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from heredity.engine.stage import Stage
from heredity.engine.store import Artifact, Store
from heredity.report.summary import AlsoRepeats, AlsoSummary, EdgeSummary, RepeatsSummary, Spread, Spreads, Summary
from heredity.stages import stages_of
from heredity.stages.models import seed_of
from heredity.stages.plan import Plan, PlannedStage, plan
from heredity.stages.results import summarize, write_results
from heredity.study import Study

SUMMARY = "summary.json"
_MARK = "~"  # no name of a study has it
_SHOWN = ("acts", "features")  # serve the lists and cases, which are the first repeat's


def all_stages(study: Study) -> list[Stage]:
    """Every stage of a study, each followed by its repeats, whose labels end in `~1`, `~2` and so on.

    Raises StudyError for a hook point that a model does not have, before anything runs.
    """
    stages = stages_of(study)
    repeats = [_repeat(study, stages, number) for number in range(1, study.config.repeat.seeds)]
    rows: list[Stage] = []
    for stage in stages:
        rows += [stage, *(repeat[stage.label] for repeat in repeats if stage.label in repeat)]
    return rows


def _repeat(study: Study, stages: Sequence[Stage], number: int) -> dict[str, Stage]:
    """The stages that a repeat makes anew, by the label of the plain study's."""
    other = replace(study, config=study.config.model_copy(update={"seed": seed_of(study, "repeat", number)}))
    reseeded = {stage.label: stage for stage in stages_of(other)}
    made: dict[str, Stage] = {}
    for stage in stages:
        trained = _is_trained(study, stage)
        if stage.kind in _SHOWN or not (trained or any(source.label in made for source in stage.inputs.values())):
            continue
        recipe = reseeded[stage.label] if trained else stage
        inputs = {role: made.get(source.label, source) for role, source in stage.inputs.items()}
        made[stage.label] = replace(recipe, name=f"{stage.name}{_MARK}{number}", inputs=inputs)
    return made


def _is_trained(study: Study, stage: Stage) -> bool:
    """Whether the stage has a seed of each repeat's own."""
    if stage.kind != "model":
        return stage.kind == "sae"
    model = study.config.model[stage.name]
    # Of the merges only dare's draws at random; the others differ as their parents do.
    return model.kind == "finetune" or (model.merge is not None and model.merge.method.startswith("dare"))


def plan_all(study: Study, store: Store) -> Plan:
    """Everything `heredity check` shows, the repeats' stages included: each costs what the first repeat's does."""
    found = plan(study, store)
    if study.config.repeat.seeds == 1:
        return found
    first = {row.stage: row for row in found.stages}
    cost = {row.stage: row for row in plan(study, Store(store.root / _MARK)).stages}  # where nothing is done yet
    rows = tuple(first.get(stage.label) or _planned(stage, cost, store) for stage in all_stages(study))
    left = [row for row in rows if not row.cached]
    return found.model_copy(
        update={
            "stages": rows,
            "tokens": sum(row.tokens for row in left),
            "flops": sum(row.flops for row in left),
            "memory_gib": max((row.memory_gib for row in left), default=0.0),
            "seconds": round(sum(row.seconds for row in left), 1),
        }
    )


def _planned(stage: Stage, cost: Mapping[str, PlannedStage], store: Store) -> PlannedStage:
    alike = cost[stage.label.rpartition(_MARK)[0]]
    cached = (store.path(stage.kind, stage.name, stage.key) / "manifest.json").exists()
    seconds = 0.0 if cached else alike.seconds
    return alike.model_copy(update={"stage": stage.label, "cached": cached, "seconds": seconds})


def write_all(study: Study, artifacts: Mapping[str, Artifact], folder: Path) -> tuple[Summary, Path]:
    """Write `summary.json` and `report.html` into the study's folder, the repeats in the summary; returns the summary
    and the report's path.

    artifacts: of every stage in `all_stages`, by label.
    """
    summary, page = write_results(study, artifacts, folder)
    if study.config.repeat.seeds > 1:
        summary = summary.model_copy(update={"repeats": repeats_of(study, artifacts, summary)})
        partial = folder / f".{SUMMARY}"
        partial.write_text(summary.to_json())
        partial.replace(folder / SUMMARY)
    return summary, page


def read_all(study: Study, artifacts: Mapping[str, Artifact], folder: Path) -> Summary:
    """The summary in a study's folder, if it is that of these artifacts.

    Raises ValueError when there is none, it cannot be read, or its edges are not those of the artifacts.
    """
    path, out = folder / SUMMARY, f"write it anew with `heredity run` of study {study.name}"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; {out}")
    try:
        summary = Summary.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        wrong = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise ValueError(f"{path}: is no summary of this version ({wrong}); {out}") from None
    if summary.edges != summarize(study, artifacts).edges:
        raise ValueError(f"{path}: belongs to an earlier state of the study; {out}")
    return summary


def repeats_of(study: Study, artifacts: Mapping[str, Artifact], first: Summary | None = None) -> RepeatsSummary:
    """How far every headline number of a study varies between its repeats.

    first: the summary of the first repeat; computed if it is not given.
    """
    seeds = study.config.repeat.seeds
    summaries = [first or summarize(study, artifacts)]
    summaries += [summarize(study, _artifacts_of(artifacts, number)) for number in range(1, seeds)]
    again = [name for name in study.order if f"quality/{name}{_MARK}1" in artifacts]
    found = between_seeds(summaries)
    return found.model_copy(update={"accuracy": {name: found.accuracy[name] for name in again}})


def _artifacts_of(artifacts: Mapping[str, Artifact], number: int) -> dict[str, Artifact]:
    """The artifacts of one repeat under the labels of the plain study."""
    mark = f"{_MARK}{number}"
    plain = {label: artifact for label, artifact in artifacts.items() if _MARK not in label}
    return plain | {label.removesuffix(mark): artifact for label, artifact in artifacts.items() if label.endswith(mark)}


def between_seeds(summaries: Sequence[Summary]) -> RepeatsSummary:
    """Mean, standard deviation, minimum and maximum of every headline number over summaries of one study.

    A number that a summary does not have (a ceiling without a second SAE) does not count; one that none has is left
    out.
    """
    first = summaries[0]
    sought = [name for name, merge in first.merges.items() if merge.crossed is not None]
    headline = _measured(summaries)
    return RepeatsSummary(
        seeds=len(summaries),
        accuracy=_spreads(first.models, lambda name: [found.models[name].accuracy for found in summaries]),
        merges=_spreads(sought, lambda name: [{"t": found.merges[name].t} for found in summaries]),
        saes=headline.saes,
        edges=headline.edges,
        also={init: _measured([found.also[init] for found in summaries]) for init in first.also},
    )


def _measured(found: Sequence[Summary | AlsoSummary]) -> AlsoRepeats:
    return AlsoRepeats(
        saes=_spreads(
            found[0].saes,
            lambda name: [
                one.saes[name].model_dump(include={"explained_variance", "l0", "ce_loss_recovered"}) for one in found
            ],
        ),
        edges=_spreads(found[0].edges, lambda name: [_shares(one.edges[name]) for one in found]),
    )


def _shares(edge: EdgeSummary) -> dict[str, float | None]:
    return {
        "persist": edge.persist / edge.parent_live if edge.parent_live else None,
        "emerge": edge.emerge / edge.child_live if edge.child_live else None,
        "ceiling": edge.ceiling,
        "floor": edge.floor,
    }


def _spreads(names: Iterable[str], rows: Callable[[str], Sequence[Mapping[str, float | None]]]) -> Spreads:
    """The spread of every number of every name; rows: a name -> its numbers in each repeat."""
    spreads: Spreads = {}
    for name in names:
        repeats = rows(name)
        found = {key: [row[key] for row in repeats] for key in repeats[0]}
        known = {key: [value for value in values if value is not None] for key, values in found.items()}
        spreads[name] = {key: spread(values) for key, values in known.items() if values}
    return spreads


def spread(values: Sequence[float]) -> Spread:
    """Mean, standard deviation (n - 1), minimum and maximum of at least one number."""
    found = np.asarray(values, dtype=np.float64)
    return Spread(
        mean=float(found.mean()),
        standard_deviation=float(found.std(ddof=1)) if len(found) > 1 else None,
        minimum=float(found.min()),
        maximum=float(found.max()),
        n=len(found),
    )
