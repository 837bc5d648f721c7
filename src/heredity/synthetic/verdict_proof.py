"""Verdicts compared with planted truth, as a user reads them: at both ends of edges of realistic size.

Every model gets two SAEs, the features of both ends are judged as `analyses.verdicts` judges them, and every listed
feature counts, whatever it follows: a latent that follows no true feature (r of 0.5 or less with all of them) and is
listed as lost or new is an error. Features that are undecided or unstable are misses.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from heredity.engine.workers import Here, Shards
from heredity.features.acts import FeatureActs
from heredity.features.ends import agreement, encode, end_of, judge_end, tally
from heredity.features.verdicts import RATE, VERDICTS, Judged, owned, share_interval
from heredity.metrics import Variance
from heredity.sae.model import SAE
from heredity.synthetic.planted_edges import PLANTED, EdgeConfig, EdgeEnd, PlantedEdge
from heredity.synthetic.saes import Training, label, train_sae
from heredity.synthetic.synthsaebench import SynthSAEBenchConfig, SynthSAEBenchEdge, available
from heredity.tables import Column, Table

Row = dict[str, Any]
FOUND = 0.8
"""r with a true feature above which an SAE has found it."""
LEAST_LOST = 0.05
"""Share of features lost from which on kappa is a target."""
_DRAWS = {"training": 0, "fitting": 1, "judging": 2}  # seeds of the texts
_SEEDS = (0, 1)  # of the SAEs


class EdgeCondition(NamedTuple):
    """A planted edge, the training of its SAEs, and what it was used for."""

    name: str
    edge: EdgeConfig | SynthSAEBenchConfig = EdgeConfig()
    use: Literal["choice", "proof"] = "proof"
    """choice: the rule's margins were chosen on edges of this kind, of other seeds; proof: none was ever looked at."""
    training: Training = Training(tokens=100_000, k=12, expansion=8)
    init: Literal["independent", "joint"] = "independent"


_KEPT = EdgeConfig(rotated=0, turned=0, faint=0, narrowed=0, split=0, absorbed=0, lost=0, new=0)  # all of them
EDGE_CONDITIONS = (
    EdgeCondition("flat", EdgeConfig(), "choice"),
    EdgeCondition("trees", EdgeConfig(structure="trees"), "choice"),
    EdgeCondition("pairs", EdgeConfig(structure="pairs"), "choice"),
    EdgeCondition("nothing lost", _KEPT, "choice"),
    EdgeCondition("mostly lost", replace(_KEPT, lost=0.67, new=0.67), "choice"),
    EdgeCondition("2,000 in 128", EdgeConfig(features=2000, l0=16), "choice"),
    EdgeCondition("few lost", replace(_KEPT, lost=0.02, new=0.02)),
    EdgeCondition("space rotated", replace(_KEPT, rotate_space=True)),
    EdgeCondition("nested trees", EdgeConfig(structure="nested"), "choice"),
    EdgeCondition("chains", EdgeConfig(structure="chains"), "choice"),
    EdgeCondition("heavy bursts", EdgeConfig(sigma=1.0, burst=16)),
    EdgeCondition("4,000 in 256", EdgeConfig(features=4000, d=256, l0=20), training=Training(
        tokens=100_000, k=20, expansion=8)),
    EdgeCondition("flat, joint", EdgeConfig(), init="joint"),
    EdgeCondition("nothing lost, joint", _KEPT, init="joint"),
    EdgeCondition("SynthSAEBench", SynthSAEBenchConfig(), training=Training(tokens=100_000, k=8, expansion=8)),
)  # fmt: skip
"""From what the rule was chosen on to what only proves it."""

_SMALL = {"features": 300, "d": 64, "l0": 6, "topics": 10}
_SHORT = Training(tokens=40_000, k=6, expansion=6)
SMALL_CONDITIONS = (
    EdgeCondition("small flat", replace(EdgeConfig(), **_SMALL), "choice", _SHORT),
    EdgeCondition("small trees, nothing lost", replace(_KEPT, **_SMALL, structure="trees"), "choice", _SHORT),
)
"""Two that take a quarter of a minute each."""

_QUALITY = (
    Column("explained_variance", "r", "Explained variance of the SAE that is judged, on held-out tokens."),
    Column("recovered", "share", "Share of true features that either SAE follows at r >= 0.8."),
    Column("live", "count", "SAE features that fired on the aligned tokens."),
    Column("stable", "count", "Live features that the second SAE has too; only they are judged.", of="live"),
)
_LISTED = (
    Column("listed", "count", "Features listed as lost (parent) or new (child).", of="stable"),
    Column("true", "count", "Listed features that follow a truly lost (new) one.", of="listed"),
    Column("changed", "count", "Listed features that follow one of another fate.", of="listed"),
    Column("kept", "count", "Listed features that follow a kept one.", of="listed"),
    Column("nothing", "count", "Listed features that follow none (r of 0.5 or less with each).", of="listed"),
)
_SHARES = (
    Column("precision", "share", "true over listed."),
    Column("not_kept", "share", "Listed features that follow a lost (new) or changed one, over listed."),
    Column("recall", "share", "Lost (new) features that either SAE follows at r >= 0.8 and that are listed."),
    Column("said", "share", "Listed over stable.", ci=True),
    Column("truth", "share", "Truly lost (new) over all true features of the end."),
    Column("kept_kept", "share", "Judged features that follow a kept one and are called kept (inherited)."),
    Column("agreement", "share", "Share of features judged under both SAE seeds with the same verdict."),
    Column("kappa", "number", "Cohen's kappa of these verdicts; null where all are the same."),
)
_FATES = tuple(
    Column(name, "count", f"{name}; features of the end's SAE that follow one of this fate.") for name in VERDICTS
)
TABLES = (
    Table(
        "proof_targets",
        "Targets of verdicts, over all planted edges and both ends.",
        ("target",),
        (
            Column("target", "text", "What is asked."),
            Column("asked", "text", "Asked value."),
            Column("worst", "number", "Worst end of any edge."),
            Column("worst_at", "text", "Edge and end of the worst value."),
            Column("mean", "number", "Mean over edges and ends."),
            Column("holds", "share", "Share of ends that meet it."),
            Column("met", "flag", "Whether the worst meets it; for rates over edges, whether the mean does."),
        ),
        brief=("target", "asked", "worst", "mean", "holds", "met"),
    ),
    Table(
        "proof_means",
        "Verdicts on planted edges, mean over seeds.",
        ("condition", "end"),
        (
            Column("condition", "text", "Planted edge."),
            Column("end", "text", "Whose features: parent (lost) or child (new)."),
            Column("use", "text", "choice: margins were chosen on such edges; proof: not looked at before."),
            Column("edges", "count", "Planted edges."),
            Column("stable_share", "share", "Judged over live features."),
            *(column for column in _QUALITY[:2]),
            *(column._replace(ci=False) for column in _SHARES),
        ),
        brief=("condition", "end", "recovered", "stable_share", *(column.name for column in _SHARES)),
    ),
    Table(
        "proof_edges",
        "Verdicts on each planted edge.",
        ("condition", "seed", "end"),
        (
            Column("condition", "text", "Planted edge."),
            Column("seed", "count", "Seed of edge and training."),
            Column("end", "text", "Whose features: parent (lost) or child (new)."),
            Column("use", "text", "choice: margins were chosen on such edges; proof: not looked at before."),
            *_QUALITY,
            *_LISTED,
            Column("found", "count", "Lost (new) features that either SAE follows at r >= 0.8."),
            Column("hit", "count", "Of them, those that a listed feature follows.", of="found"),
            *_SHARES,
            Column("covered", "flag", "Whether the interval of said holds the truth."),
            Column("twice", "count", "Features of a joint SAE listed as lost and as new; null for two SAEs."),
        ),
        sums=(("listed", "true", "changed", "kept", "nothing"),),
    ),
    Table(
        "proof_fates",
        "Verdicts by the true fate of what a feature follows.",
        ("condition", "seed", "end", "fate"),
        (
            Column("condition", "text", "Planted edge."),
            Column("seed", "count", "Seed of edge and training."),
            Column("end", "text", "Whose features: parent or child."),
            Column("fate", "text", "Planted fate; nothing: the feature follows no true one."),
            *_FATES,
        ),
    ),
)
"""Tables of `prove_verdicts`; those with brief columns are for the terminal."""


def prove_verdicts(
    conditions: Sequence[EdgeCondition],
    seeds: int,
    tokens: int = 60_000,
    progress: Callable[[int, int], None] | None = None,
    shards: Shards | None = None,
    kept: Path | None = None,
) -> dict[str, list[Row]]:
    """Judge both ends of each condition and seed, and compare with the truth.

    tokens: held-out aligned tokens; as many more fit the maps. shards: processes that share the edges. kept: file for
    the rows of edges as they are done, from which an interrupted proof by the same code goes on; it is removed at the
    end. Rows by name of the table, see `TABLES`; a share without a denominator is None.
    """
    jobs = [(condition, seed, tokens) for condition in conditions for seed in range(seeds)]
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    code = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    keys = [f"{job} {code}" for job in jobs]
    lines = kept.read_text(encoding="utf-8").splitlines() if kept and kept.exists() else []
    done = {line["key"]: line["tables"] for line in map(_line, lines) if line.get("key") in keys}
    waiting = {key: job for key, job in zip(keys, jobs, strict=True) if key not in done}
    results = (shards or Here()).job(_nothing).map(_proven, waiting.values())
    for key, made in zip(waiting, results, strict=True):
        done[key] = made
        if kept:
            with kept.open("a", encoding="utf-8") as file:
                file.write("\n" + json.dumps({"key": key, "tables": made}))  # the line before may have been cut off
        if progress:
            progress(len(done), len(jobs))
    if kept:
        kept.unlink(missing_ok=True)
    names = "proof_edges", "proof_fates"
    return summarized({name: [row for key in keys for row in done[key][name]] for name in names})


def _line(text: str) -> dict[str, Any]:
    """One line of kept rows; nothing for one that a killed process did not finish."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return {}


def _nothing() -> None:
    """What edges share between them."""


def _proven(_: None, job: tuple[EdgeCondition, int, int]) -> dict[str, list[Row]]:
    return proven(*job)


def installed(conditions: Sequence[EdgeCondition]) -> list[EdgeCondition]:
    """The conditions without those whose generator is not installed."""
    return [one for one in conditions if available() or not isinstance(one.edge, SynthSAEBenchConfig)]


def summarized(tables: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """Tables `proof_edges` and `proof_fates` after those that follow from them."""
    edges = tables["proof_edges"]
    return {"proof_targets": targets(edges), "proof_means": _means(edges)} | tables


def proven(condition: EdgeCondition, seed: int, tokens: int = 60_000) -> dict[str, list[Row]]:
    """Train the SAEs of one planted edge, judge both its ends and compare them with the truth."""
    made, training = condition.edge, condition.training
    edge = PlantedEdge(made, seed) if isinstance(made, EdgeConfig) else SynthSAEBenchEdge(made, seed)
    joint = condition.init == "joint"
    x = [torch.from_numpy(part) for part in edge.draw(training.tokens, _DRAWS["training"]).x]
    if joint:
        both, wide = torch.cat(x), replace(training, expansion=2 * training.expansion)
        one = [train_sae(both, wide, (seed, number), beside=(seed, 0)) for number in _SEEDS]
        saes = [one, one]
    else:
        saes = [
            [train_sae(x[end], training, (seed, 2 * end + number), beside=(seed, 2 * end)) for number in _SEEDS]
            for end in (0, 1)
        ]
    fitting, sample = edge.draw(tokens, _DRAWS["fitting"]).x, edge.draw(tokens, _DRAWS["judging"])
    ends = [end_of(saes[end], sample.x[end], fitting[end]) for end in (0, 1)]
    rows: dict[str, list[Row]] = {"proof_edges": [], "proof_fates": []}
    listed = []
    for at, model in enumerate((edge.parent, edge.child)):
        own, other = ends[at], ends[1 - at]
        judged = []
        for number in _SEEDS:
            mine = owned(own.acts[number], encode(own.saes[number], other.x)) if joint else None
            judged.append(judge_end(own, other, number, sample.document, seed, mine)[0])
        key = {"condition": condition.name, "seed": seed, "end": ("parent", "child")[at]}
        variance = {"explained_variance": _explained(own.saes[0], own.x)}
        row, by_fate = compared(own.acts, judged, sample.acts[at], model, ("lost", "new")[at])
        row = {**key, "use": condition.use, **variance, **row, **agreement(own, judged), "twice": None}
        row.pop("pairs")
        rows["proof_edges"].append(row)
        rows["proof_fates"] += [key | each for each in by_fate]
        listed.append(judged[0].verdict == VERDICTS.index("lost"))
    if joint:
        for row in rows["proof_edges"]:
            row["twice"] = int((listed[0] & listed[1]).sum())
    return rows


def compared(
    acts: Sequence[FeatureActs], judged: Sequence[Judged], true_acts: FeatureActs, model: EdgeEnd, gone: str
) -> tuple[Row, list[Row]]:
    """Verdicts on the first of two SAEs compared with the truth: a row of `proof_edges`, and rows of `proof_fates`.

    acts: of both SAEs, true_acts: of the model's true features, on the same tokens. gone: lost, or new of a child.
    """
    labels = [label(each, true_acts, model.fate) for each in acts]
    verdict, fate = judged[0].verdict, labels[0].fate
    stable, listed = verdict != VERDICTS.index("unstable"), verdict == VERDICTS.index("lost")
    kept, lost, nothing = fate == PLANTED.index("kept"), fate == PLANTED.index(gone), fate < 0
    either = np.fmax(labels[0].true_r, labels[1].true_r) >= FOUND
    found = np.flatnonzero(either & (model.fate == PLANTED.index(gone)))
    hit = np.isin(found, labels[0].feature[listed])
    count, hits = int(listed.sum()), int((listed & lost).sum())
    wrong = {"kept": int((listed & kept).sum()), "nothing": int((listed & nothing).sum())}
    changed = count - hits - sum(wrong.values())
    of_other = tally(judged[1])
    others = (of_other["lost"] / of_other["stable"],) if of_other["stable"] else ()
    low, high = share_interval(count, int(stable.sum()), others)
    truth = float((model.fate == PLANTED.index(gone)).mean())
    row: Row = {
        "recovered": float(either.mean()),
        "live": int((acts[0].firings() > 0).sum()),
        "stable": int(stable.sum()),
        "listed": count,
        "true": hits,
        "changed": changed,
        **wrong,
        "found": len(found),
        "hit": int(hit.sum()),
        "precision": _share(hits, count),
        "not_kept": _share(hits + changed, count),
        "recall": _share(int(hit.sum()), len(found)),
        "said": _share(count, int(stable.sum())),
        "said_low": low if stable.any() else None,
        "said_high": high if stable.any() else None,
        "truth": truth,
        "kept_kept": _share(int((kept & (verdict == VERDICTS.index("kept"))).sum()), int((kept & stable).sum())),
        "covered": bool(low <= truth <= high) if stable.any() else None,
    }
    by_fate = []
    for number, name in [*enumerate(PLANTED), (-1, "nothing")]:
        group = (fate == number) & (acts[0].firings() > 0)
        if group.any():
            each = {called: int((verdict[group] == i).sum()) for i, called in enumerate(VERDICTS)}
            by_fate.append({"fate": name, **each})
    return row, by_fate


class _Target(NamedTuple):
    """One figure that the proof asks for."""

    name: str
    asked: str
    value: Callable[[Row], float | None]  # of a row of `proof_edges`: a number, or None where the target does not apply
    meets: Callable[[float], bool]  # of a number
    high: bool  # whether more is better
    of_mean: bool = False  # whether the mean over edges is what is asked


def _targets() -> tuple[_Target, ...]:
    def lossless(row: Row) -> bool:
        return not row["truth"]

    def often(row: Row, name: str) -> float | None:
        return row[name] if row["truth"] >= LEAST_LOST else None

    return (
        _Target("said lost or new where nothing is", "<= 0.01", lambda r: r["said"] if lossless(r) else None,
                lambda v: v <= 0.01, False),
        _Target("listed losses that are true", ">= 0.80", lambda r: None if lossless(r) else r["precision"],
                lambda v: v >= 0.8, True),
        _Target("listed losses that are not kept features", ">= 0.97", lambda r: None if lossless(r) else r["not_kept"],
                lambda v: v >= 0.97, True),
        _Target("found losses listed", ">= 0.75", lambda r: r["recall"], lambda v: v >= 0.75, True),
        _Target("difference of said and true share", "<= 0.08", lambda r: abs(r["said"] - r["truth"]),
                lambda v: v <= 0.08, False),
        _Target("realized over nominal false discovery rate", "<= 1.2",
                lambda r: (1 - r["precision"]) / RATE if r["precision"] is not None else 0.0,
                lambda v: v <= 1.2, False, True),
        _Target("latents of a joint SAE both lost and new", "0", lambda r: r["twice"], lambda v: v == 0, False),
        _Target("agreement between SAE seeds", ">= 0.97", lambda r: r["agreement"], lambda v: v >= 0.97, True),
        _Target("kappa between SAE seeds, 5 % lost or more", ">= 0.80", lambda r: often(r, "kappa"),
                lambda v: v >= 0.8, True),
        _Target("kept features called kept where nothing is lost", ">= 0.98",
                lambda r: r["kept_kept"] if lossless(r) else None, lambda v: v >= 0.98, True),
        _Target("judged share of live features", ">= 0.50", lambda r: r["stable"] / max(1, r["live"]),
                lambda v: v >= 0.5, True),
        _Target("intervals that cover the true share", ">= 0.93", lambda r: float(r["covered"]),
                lambda v: v >= 0.93, True, True),
        _Target("width of intervals", "<= 0.10", lambda r: r["said_high"] - r["said_low"], lambda v: v <= 0.1, False),
    )  # fmt: skip


def targets(edges: Sequence[Row]) -> list[Row]:
    """Table proof_targets of the rows of proof_edges; targets that apply to no row are left out."""
    rows = []
    for name, asked, value, meets, high, of_mean in _targets():
        known = [(number, row) for row in edges if row["stable"] and (number := value(row)) is not None]
        if not known:
            continue
        worst, at = (min if high else max)(known, key=lambda pair: pair[0])
        mean = float(np.mean([number for number, _ in known]))
        rows.append(
            {
                "target": name,
                "asked": asked,
                "worst": float(worst),
                "worst_at": f"{at['condition']}, seed {at['seed']}, {at['end']}",
                "mean": mean,
                "holds": float(np.mean([meets(number) for number, _ in known])),
                "met": bool(meets(mean if of_mean else worst)),
            }
        )
    return rows


def _means(edges: Sequence[Row]) -> list[Row]:
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in edges:
        groups.setdefault((row["condition"], row["end"]), []).append(row)
    rows = []
    for (condition, end), group in groups.items():
        row: Row = {"condition": condition, "end": end, "use": group[0]["use"], "edges": len(group)}
        row["stable_share"] = _share(sum(each["stable"] for each in group), sum(each["live"] for each in group))
        for column in (*_QUALITY[:2], *_SHARES):
            known = [each[column.name] for each in group if each[column.name] is not None]
            row[column.name] = float(np.mean(known)) if known else None
        rows.append(row)
    return rows


def _explained(sae: SAE, x: np.ndarray) -> float:
    variance = Variance()
    for part in torch.from_numpy(x).split(4096):
        variance.update(part, sae.decode_sparse(*sae.encode_sparse(part)))
    return variance.result().explained_variance


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
