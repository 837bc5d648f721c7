"""The findings of a stitch in plain sentences, each with the numbers it rests on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from heredity.report.carried import CarriedSummary, SavingRow
from heredity.report.probing import ProbeSummary, SteeringSummary
from heredity.report.stitch import MapsSummary, StitchSummary, efforts

Topic = Literal["maps", "SAEs", "training", "probes", "steering", "features", "lineage"]
_PROBED = 10  # features that a probe of the sentence reads, or the size next to that
_STARTS = {"transferred": "the carried SAE", "repaired": "the carried SAE, repaired,"}
_REPAIRED = {"bias": "with its bias refitted", "decoder": "with its decoder refitted", "density": "thresholds set anew"}


class Finding(NamedTuple):
    """One finding."""

    topic: Topic
    """What it is about."""
    text: str
    """A sentence."""
    evidence: tuple[str, ...]
    """The figures behind it."""


def stitch_findings(own: StitchSummary) -> list[Finding]:
    """What the maps of a stitch carry; what was not asked for, or could not be told, is left out."""
    parts = (_carried(own), _training(own), _probes(own), *_steering(own), _features(own), _lineage(own))
    return [_maps(own.maps), *(part for part in parts if part)]


def _maps(maps: MapsSummary) -> Finding:
    fit, ways = maps.fits[maps.method], maps.ways
    source, target = maps.source, maps.target
    rises = {way: ways[way].increase for way in ("up", "down", "source_round_trip", "target_round_trip") if way in ways}
    text = (
        f"Affine maps give {_percent(fit.r2.get('up'))} of the variance of {target} from {source} and "
        f"{_percent(fit.r2.get('down'))} of that of {source} from {target}. Where the front of {source} goes on in "
        f"{target}, cross-entropy {_change(rises.get('up'))}; the other way round it {_change(rises.get('down'))}."
    )
    evidence = [
        f"{maps.source_hook_point} ({maps.widths[0]:,} wide) and {maps.target_hook_point} ({maps.widths[1]:,})",
        f"{maps.method} fit on {fit.tokens:,} tokens, judged on {maps.held_out:,} others",
    ]
    if rises.get("source_round_trip") is not None:
        trips = f"{source} {_percent(rises['source_round_trip'])}, {target} {_percent(rises.get('target_round_trip'))}"
        evidence.append(f"there and back costs {trips}")
    evidence += fit_costs(maps)
    return Finding("maps", text, tuple(evidence))


def fit_costs(maps: MapsSummary) -> list[str]:
    """How the cost of the exact fit compares with that of the descent, for each loss that both reach."""
    told = []
    losses = "the exact fit's loss", "the descent's best loss"
    for effort, words in zip(efforts(maps), losses, strict=True):
        if effort is not None:
            times = f"{effort.adam / effort.joint:,.1f} times"
            told.append(
                f"within a percent of {words}, {effort.loss:.4g}: {effort.joint / 1e9:,.0f} GFLOP exactly, "
                f"{effort.adam / 1e9:,.0f} by descent, {times} as many"
            )
    if "adam" in maps.curves and efforts(maps)[0] is None:
        told.append(f"the descent never came within a percent of {losses[0]}, {_number(maps.fits['joint'].loss, 4)}")
    return told


def _carried(own: StitchSummary) -> Finding | None:
    if not own.carried:
        return None
    found = next(iter(own.carried.values()))
    mine, moved = found.figures.get("source"), found.figures.get("transferred")
    if mine is None or moved is None:
        return None
    source, target = own.maps.source, own.maps.target
    text = (
        f"An SAE of {source} with {found.d_sae:,} features leaves {_percent(moved.fvu)} of the variance unexplained in "
        f"{target}, without training there; in {source} itself {_percent(mine.fvu)}{_repair(found)}."
    )
    evidence = (
        f"cross-entropy rises by {_number(moved.delta_loss)} nats a token when it is spliced in ({source}: "
        f"{_number(mine.delta_loss)})",
        f"L0 {_number(moved.l0, 1)} ({_number(mine.l0, 1)})",
        f"dead {_percent(moved.dead_share)} ({_percent(mine.dead_share)})",
        f"{found.tokens:,} held-out tokens",
    )
    return Finding("SAEs", text, evidence)


def _repair(found: CarriedSummary) -> str:
    """What the best of the refitted ones leaves unexplained."""
    repaired = [(own.fvu, kind) for kind, own in found.figures.items() if kind in _REPAIRED and own.fvu is not None]
    if not repaired:
        return ""
    least, kind = min(repaired)
    return f"; {_REPAIRED[kind]} {_percent(least)}"


def _training(own: StitchSummary) -> Finding | None:
    """The highest level that a carried start and a random one both reach, at the first width."""
    rows = [row for row in own.savings if row.arm in ("transferred", "repaired")]
    if not rows:
        return None
    first = [row for row in rows if row.d_sae == rows[0].d_sae]
    reached = [row for row in first if row.saved_flops is not None]
    told = [row for row in own.savings if row.arm != "random" and row.d_sae == rows[0].d_sae]
    target, width = own.maps.target, f"{rows[0].d_sae:,} features"
    if not reached:
        levels = _list([f"{level:g}" for level in sorted({row.threshold or 0 for row in first})])
        text = f"Nothing can be said of savings in {target} ({width}): {_nobody(first)} reached {levels}."
        return Finding("training", text, ())
    best = max(reached, key=lambda row: (row.threshold or 0, row.saved_flops or 0))
    text = (
        f"To explain {_percent(best.threshold)} of the variance of {target} ({width}), an SAE that starts from "
        f"{_STARTS[best.arm]} takes {_fewer(best.saved_flops)} FLOPs than one from a random start, the maps included."
    )
    evidence = [_saving(row) for row in told if row.threshold == best.threshold]
    if best.saved_flops_with_source is not None:
        counted = _fewer(best.saved_flops_with_source)
        evidence.append(f"the training of {own.maps.source}'s SAE counted too: {counted}")
    return Finding("training", text, tuple(evidence))


def _nobody(rows: Sequence[SavingRow]) -> str:
    missing = {arm for row in rows for arm in row.never}
    return "the random start never" if missing == {"random"} else "one start or the other never"


def _fewer(saved: float | None) -> str:
    """A saving in words: `31 % fewer`."""
    return f"{_percent(None if saved is None else abs(saved))} {'more' if (saved or 0) < 0 else 'fewer'}"


def _saving(row: SavingRow) -> str:
    start = f"{row.arm} to {row.threshold:g}"
    if row.never:
        return f"{start}: {_list(list(row.never))} never"
    return f"{start}: {_fewer(row.saved_flops)}"


def _probes(own: StitchSummary) -> Finding | None:
    asked = {task: found for task, found in own.probes.items() if found.means}
    if not asked:
        return None
    sizes = {row.k for found in asked.values() for row in found.means if row.arm == "source"}
    if not sizes:
        return None
    k = min(sizes, key=lambda size: (abs(size - _PROBED), size))
    source, target = own.maps.source, own.maps.target
    at = {arm: _mean(asked.values(), arm, k) for arm in ("source", "native", "refitted", "unchanged", "random")}
    features = "feature" if k == 1 else "features"
    text = (
        f"Probes that read {k} {features} of {source} tell {_list(list(asked))} in {target} with a balanced "
        f"accuracy of {_percent(at['unchanged'])} as they are and {_percent(at['refitted'])} refitted; {target}'s own "
        f"features give {_percent(at['native'])}, random ones {_percent(at['random'])}."
    )
    evidence = [f"in {source} itself {_percent(at['source'])}"]
    for task, found in asked.items():
        here = (f"{_percent(_mean([found], arm, k))} {arm}" for arm in ("unchanged", "refitted", "native"))
        evidence.append(f"{task}: {', '.join(here)}, {found.tested:,} texts")
    return Finding("probes", text, tuple(evidence))


def _mean(tasks: Iterable[ProbeSummary], arm: str, k: int) -> float | None:
    """Balanced accuracy of an arm, over tasks."""
    return _average([row.balanced_accuracy for found in tasks for row in found.means if (row.arm, row.k) == (arm, k)])


def _steering(own: StitchSummary) -> list[Finding]:
    steering = own.steering
    if steering is None or steering.reason or not steering.rows:
        return []
    other = {own.maps.source: own.maps.target, own.maps.target: own.maps.source}
    return [_steered(steering, model, other[model]) for model in dict.fromkeys(row.model for row in steering.rows)]


def _steered(steering: SteeringSummary, model: str, other: str) -> Finding:
    wanted = [row.wanted for row in steering.rows if row.model == model and row.arm == "none"]
    shares = {
        arm: _average([row.share[0] for row in steering.rows if (row.model, row.arm) == (model, arm)])
        for arm in ("none", "random", "native", "carried")
    }
    text = (
        f"Steered by a direction of {other}, {model} writes like the wanted corpus in {_percent(shares['carried'])} of "
        f"its texts; by its own direction in {_percent(shares['native'])}, by a random one in "
        f"{_percent(shares['random'])}, unsteered in {_percent(shares['none'])}."
    )
    gaps = [f"{row.wanted}: {_number(row.gap)} of native" for row in steering.gaps if row.model == model]
    over = [f"mean over {_list(wanted)}"] if len(wanted) > 1 else []
    return Finding("steering", text, (*over, *gaps))


def _features(own: StitchSummary) -> Finding | None:
    kept = own.kept
    if kept is None or kept.activation.quantiles[2] is None:
        return None
    source, target = own.maps.source, own.maps.target
    text = (
        f"Half of the {kept.judged:,} judged features of {source} fire in {target} with an r above "
        f"{_number(kept.activation.quantiles[2])}"
    )
    evidence = [f"{kept.judged:,} of {kept.d_sae:,} features, {kept.tokens:,} tokens"]
    if pushed := kept.attribution:
        text += f"; {_percent(pushed.above)} push the same next tokens more than 95 % of random directions do"
        evidence.append(f"{_percent(pushed.negative)} push the other way, over {pushed.tokens:,} tokens")
    if split := kept.split:
        halves = (
            f"{kind} {_number(group.attribution.quantiles[2])} ({group.features:,})"
            for kind, group in (("structural", split.structural), ("semantic", split.semantic))
        )
        evidence.append(f"median r of attributions: {', '.join(halves)}")
    return Finding("features", f"{text}.", tuple(evidence))


def _lineage(own: StitchSummary) -> Finding | None:
    found = own.bridge.compared if own.bridge else None
    if found is None:
        return None
    text = (
        f"Carried by the maps, {found.carried.persisting:,} of {found.live:,} live features keep r > "
        f"{_number(found.threshold)} with themselves; by best match {found.matched:,} persist."
    )
    evidence = [f"{found.carried.both:,} persist by both, kappa {_number(found.carried.kappa)}"]
    if found.unchanged is not None:
        evidence.append(f"read as it is, the parent's SAE keeps {found.unchanged.persisting:,}")
    return Finding("lineage", text, tuple(evidence))


def _average(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _percent(value: float | None) -> str:
    """With a digit after the point below 10 %, unless that is 0."""
    if value is None:
        return "an unknown share"
    share = 100 * value
    return f"{share:.1f} %" if abs(share) < 10 and round(share, 1) % 1 else f"{share:.0f} %"


def _change(value: float | None) -> str:
    """Up or down, and by how much."""
    if value is None or value >= 0:
        return f"rises by {_percent(value)}"
    return f"falls by {_percent(-value)}"


def _number(value: float | None, digits: int = 2) -> str:
    return "unknown" if value is None else f"{value:.{digits}f}"


def _list(words: Sequence[str]) -> str:
    return "".join(words) if len(words) < 2 else f"{', '.join(words[:-1])} and {words[-1]}"
