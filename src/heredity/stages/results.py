"""From a study's artifacts to what people and other tools read: summary.json and the one-file report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from heredity.engine.store import Artifact, versions
from heredity.features.correlate import Matches
from heredity.features.fates import flow
from heredity.report.classes import ClassesSummary
from heredity.report.edge import NewnessSummary, ShiftSummary
from heredity.report.explained import ExplainedSummary
from heredity.report.summary import (
    AlsoSummary,
    CaseMember,
    CaseSummary,
    EdgeSummary,
    MergeSummary,
    ModelSummary,
    SAESummary,
    Summary,
    SweepPoint,
)
from heredity.stages.cases import CASES, kind_of
from heredity.stages.classes import CLASSES_JSON
from heredity.stages.explain import EXPLAINED
from heredity.stages.lineage import COUNTS, read_matches
from heredity.stages.models import RECORD, machine
from heredity.stages.newness import NEWNESS
from heredity.stages.saes import QUALITY
from heredity.stages.shift import SHIFT
from heredity.study import RANKED, Edge, Init, Study

Artifacts = Mapping[str, Artifact]

_LEAST_EXPLAINED = 0.8  # docs/planted.json: trained until they explain more, SAEs keep what is kept
_LEAST_THRESHOLD = 0.35
_MOST_RARE = 0.25  # share of live features that are too rare to be judged


def write_results(study: Study, artifacts: Artifacts, folder: Path) -> tuple[Summary, Path]:
    """Write `summary.json` and `report.html` into the study's folder; returns the summary and the report's path."""
    from heredity.stages.page import write_page

    summary = summarize(study, artifacts)
    partial = folder / ".summary.json"
    partial.write_text(summary.to_json())
    partial.replace(folder / "summary.json")
    page = folder / "report.html"
    write_page(study, artifacts, summary, page)
    return summary, page


def write_report(study: Study, artifacts: Artifacts, out: Path) -> None:
    """Write the one-file report."""
    from heredity.stages.page import write_page

    if out.is_dir():
        raise ValueError(f"-o {out}: is a folder; give the name of an HTML file")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_page(study, artifacts, summarize(study, artifacts), out)


def summarize(study: Study, artifacts: Artifacts) -> Summary:
    """All figures of a study that has been run."""
    seconds = sum(artifact.manifest["seconds"] for artifact in artifacts.values())
    further: dict[Init, AlsoSummary] = {
        init: AlsoSummary(**_measured(study, artifacts, init)) for init in study.inits[1:]
    }
    return Summary(
        heredity=versions().get("heredity", "0"),
        study=study.name,
        device=machine(),
        notes=tuple(_notes(study, artifacts)),
        seconds=round(seconds, 1),
        instrument=study.instrument,
        models={name: _model(study, artifacts, name) for name in study.order},
        merges={name: _merge(study, artifacts, name) for name in study.order if study.config.model[name].merge},
        cases=_cases(_shown_cases(study, artifacts)),
        stitches={},
        also=further,
        **_measured(study, artifacts, study.instrument),
    )


def _notes(study: Study, artifacts: Artifacts) -> Iterator[str]:
    """What to know before relying on a figure of this study."""
    sae = study.config.sae
    if sae.activation not in RANKED and sae.l1_coefficient is None:
        least, most = sae.l0
        for name, init in ((name, init) for init in study.inits for name in study.followed):
            l0 = artifacts[f"sae_quality/{name}-{init}"].json(QUALITY)["l0"]
            if not least <= l0 <= most:
                yield (
                    f"the SAE of {name} (init {init}) has L0 {l0:.1f} on held-out text, not in [{least:g}, {most:g}]: "
                    "train longer, raise sae.calibration, or widen sae.l0"
                )
    for init in study.inits:
        yield from _regime(study, artifacts, init)
    for name, case in _shown_cases(study, artifacts).items():
        missing = case["not_in_vocabulary"]
        if missing and len(missing) == len(case["tokens"]):
            yield f"case {name}: {', '.join(map(repr, missing))}: no single token of this vocabulary, not looked for"
        elif not case["hits"]:
            yield f"case {name}: nothing in the sample fits {kind_of(case['hypothesis'])}"


def _regime(study: Study, artifacts: Artifacts, init: Init) -> Iterator[str]:
    """Where planted worlds show that losses cannot be relied on: SAEs that explain little, many rare features."""
    rows = {name: artifacts[f"sae_quality/{name}-{init}"].json(QUALITY) for name in study.followed}
    poor = [name for name, row in rows.items() if row["explained_variance"] < _LEAST_EXPLAINED]
    if poor:
        least = min(rows[name]["explained_variance"] for name in poor)
        yield (
            f"SAEs of {', '.join(poor)} (init {init}) explain as little as {least:.2f} of the variance: in planted "
            f"worlds, SAEs that were trained too little, and explain less than {_LEAST_EXPLAINED:g}, call kept "
            "features lost; train longer"
        )
    for edge in study.edges:
        counts = artifacts[match_label(edge, init)].json(COUNTS)
        if counts["threshold_by"] == "evidence" and counts["threshold"] < _LEAST_THRESHOLD:
            yield (
                f"edge {edge.name} (init {init}): SAEs of one model agree so little that evidence puts the threshold "
                f"at {counts['threshold']:g}; a feature that persists there may be kept in part only: train longer, or "
                "use another init"
            )
        strata = counts["strata"]["parent"]
        live = sum(strata[name]["features"] for name in ("rare", "usual", "dense"))
        if live and strata["rare"]["features"] > _MOST_RARE * live:
            yield (
                f"edge {edge.name} (init {init}): {strata['rare']['features']:,} of {live:,} live features fire on "
                "fewer than 30 of the tokens, too few to tell lost from kept; raise lineage.tokens"
            )


def _model(study: Study, artifacts: Artifacts, name: str) -> ModelSummary:
    record = artifacts[f"model/{name}"].json(RECORD)
    quality = artifacts[f"quality/{name}"].json("quality.json")
    return ModelSummary(
        kind=study.config.model[name].kind,
        parents=study.parents[name],
        parameters=record["parameters"],
        tokens=record["tokens"],
        accuracy={corpus: row["accuracy"] for corpus, row in quality.items()},
        ce_loss={corpus: row["ce_loss"] for corpus, row in quality.items()},
        unigram_accuracy={corpus: row["unigram_accuracy"] for corpus, row in quality.items()},
    )


def _merge(study: Study, artifacts: Artifacts, name: str) -> MergeSummary:
    config = study.config.model[name].merge
    assert config is not None
    made = artifacts[f"model/{name}"].json("merge.json")
    sweep = artifacts[f"sweep/{name}"].json("sweep.json") if f"sweep/{name}" in artifacts else None
    found = config.t == "equilibrium" and sweep is not None
    two = len(config.parents) == 2
    return MergeSummary(
        method=config.method,
        t=made["t"],
        first=config.parents[0],
        second=config.parents[1] if two else None,
        sweep=tuple(SweepPoint(**point) for point in sweep["points"]) if sweep else (),
        linear_fallback=sum(row["method"] == "linear" for row in made["tensors"]) if config.method == "slerp" else 0,
        weights=config.weights,
        parents=config.parents,
        interval=tuple(sweep["interval"]) if found and sweep else None,
        crossed=sweep["crossed"] if found and sweep else None,
    )


def _measured(study: Study, artifacts: Artifacts, init: Init) -> dict:
    if not study.inits:
        return {"saes": {}, "edges": {}, "flow": {}}
    return {
        "saes": {name: _sae(artifacts[f"sae_quality/{name}-{init}"]) for name in study.followed},
        "edges": {edge.name: _edge(study, artifacts, edge, init) for edge in study.edges},
        "flow": {
            name: flow_counts(study, name, {edge: inherited(artifacts, edge, init) for edge in study.edges})
            for name in study.order
            if study.config.model[name].merge
        },
        "classes": ClassesSummary(**artifacts[f"classes/{init}"].json(CLASSES_JSON)),
        "explained": ExplainedSummary(**asked.json(EXPLAINED)) if (asked := artifacts.get(f"explain/{init}")) else None,
    }


def _edge(study: Study, artifacts: Artifacts, edge: Edge, init: Init) -> EdgeSummary:
    shift = artifacts.get(f"shift/{edge.slug}") if init == study.instrument else None
    counts = artifacts[match_label(edge, init)].json(COUNTS)
    asked = artifacts.get(f"newness/{edge.slug}-{init}")
    newness = NewnessSummary(**asked.json(NEWNESS)) if asked else None
    return EdgeSummary(**counts, newness=newness, shift=ShiftSummary(**shift.json(SHIFT)) if shift else None)


def _sae(artifact: Artifact) -> SAESummary:
    row = artifact.json(QUALITY)
    return SAESummary(
        tokens=row["trained_tokens"],
        **{key: row[key] for key in SAESummary.model_fields if key in row and key != "tokens"},
    )


def match_label(edge: Edge, init: Init) -> str:
    """The stage that matched an edge."""
    return f"match/{edge.slug}-{init}"


def matches_of(artifacts: Artifacts, edge: Edge, init: Init) -> Matches:
    """Matches of an edge."""
    return read_matches(artifacts[match_label(edge, init)].folder)


def inherited(artifacts: Artifacts, edge: Edge, init: Init) -> Matches:
    """The matches of an edge that its threshold lets count."""
    return matches_of(artifacts, edge, init).above(artifacts[match_label(edge, init)].json(COUNTS)["threshold"])


def flow_edges(
    study: Study, merge: str, matches: Mapping[Edge, Matches]
) -> tuple[dict[str, list[Matches]], dict[str, Matches]]:
    """The edges that lead into a merge's parents, by parent, and those that lead from them into the merge."""
    into = {edge.parent: matches[edge] for edge in study.edges if edge.child == merge}
    before = {parent: [matches[edge] for edge in study.edges if edge.child == parent] for parent in into}
    return {parent: rows for parent, rows in before.items() if rows}, into


def bases_of(study: Study, merge: str) -> list[str]:
    """Parents of a merge that its other parents descend from."""
    parents = study.parents[merge]
    return [name for name in parents if any(name in study.ancestors(other) for other in parents if other != name)]


def flow_counts(study: Study, merge: str, matches: Mapping[Edge, Matches]) -> dict[str, int]:
    """Where the live features of a merge come from; the counts add up to all of them. matches: those that count."""
    found = flow(*flow_edges(study, merge, matches), 0.0, bases_of(study, merge))
    return {
        "from_base": found.from_base,
        **{f"emerged_in_{parent}": count for parent, count in found.emerged.items()},
        "emerged_in_both": found.emerged_in_both,
        "novel": found.novel,
    }


def _shown_cases(study: Study, artifacts: Artifacts) -> dict[str, dict[str, Any]]:
    return artifacts[f"features/{study.instrument}"].json(CASES) if study.inits else {}


def _cases(found: Mapping[str, dict[str, Any]]) -> dict[str, CaseSummary]:
    return {name: CaseSummary.of(_members(case), case["mean_r"], case["verdict"]) for name, case in found.items()}


def _members(case: Mapping[str, Any]) -> dict[str, CaseMember]:
    """The family's feature and the best one, for every model that has either; none where no model has."""
    members = {}
    for model, best in case["best"].items() if case["start"] else ():
        row, best = case["models"].get(model, {}), best or {}
        kept = {key: row[key] for key in CaseMember.model_fields if key in row}
        members[model] = CaseMember(
            **{"feature": None, "llr": None, **kept},
            llr_count=row.get("llr_counted"),
            best_feature=best.get("feature"),
            best_llr=best.get("llr"),
            best_sensitivity=best.get("sensitivity"),
            best_r=best.get("r"),
        )
    return members
