"""The same verdicts where the answer is known: reference edges and untrained dictionaries beside an edge."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from heredity.study import ReferencesConfig

if TYPE_CHECKING:
    from heredity.features.ends import End, Judge
    from heredity.features.verdicts import Judged

MODELS = ("edit", "random", "sham", "twin")
"""References that are models of their own."""
UNTRAINED = ("codebook", "random decoder", "neurons", "token identity")
"""References that are dictionaries which nobody trained, with features of their own."""
GRADES = np.linspace(-0.2, 2.2, 25)
"""Edges of the bins of transmission."""
_REMOVED, _REMOVED_FIRINGS = 8, 100  # features that are removed for reference, and how often they fire at least


class EdgeJudged(NamedTuple):
    """An edge whose parent features were judged, and what its references are read from."""

    parent: End
    child: End
    judge: Judge
    """Of the parent's features."""
    judged: Judged
    evidence: Mapping[str, np.ndarray]
    read: Callable[[str], End]
    """Reads the reference model of a name with the parent's second SAE."""
    tokens: np.ndarray  # int64 [samples], the aligned tokens
    documents: np.ndarray  # int64 [samples]
    seed: int


class Reference(NamedTuple):
    """Verdicts on a reference."""

    judged: Judged
    evidence: Mapping[str, np.ndarray] = {}
    removed: np.ndarray | None = None  # features whose directions were taken out


def names_of(wanted: ReferencesConfig, models: Container[str]) -> list[str]:
    """References of an edge, in the order of the table. models: those of `MODELS` that there are."""
    names = []
    for name in (name.replace("_", " ") for name, is_wanted in wanted.model_dump().items() if is_wanted):
        if name not in MODELS or name in models:
            names += [name, "frozen"] if name == "twin" else [name]  # a twin is compared with the child, read alike
    return names


class References(NamedTuple):
    """What the references of an edge say."""

    rows: list[dict[str, Any]]
    """Of the table `references`."""
    retrained: dict[str, float]
    """Second intervals of the parent's row of `verdicts`; none without a twin."""
    grades: list[dict[str, Any]]
    """Of the table `grades`: those of the edge itself first."""
    usual: dict[str, np.ndarray] | None
    """Values of `changes_of` judged features under the random edit, float64 [stable] each."""
    sham: dict[str, np.ndarray] | None
    """Values of `changes_of` all features under the sham, float64 [d_sae] each; nan where they are not judged."""


def judge_references(
    names: Sequence[str], edge: EdgeJudged, row: Mapping[str, Any], step: Callable[[], None]
) -> References:
    """Judge the references of these names. row: that of the edge's parent features in `verdicts`; step: called after
    each."""
    found: dict[str, Reference] = {}
    for name in names:
        found[name] = _judge(name, edge)
        step()
    rows = [_row(name, reference, row) for name, reference in found.items()]
    again = _retrained(row, found["frozen"].judged, found["twin"].judged) if "twin" in found else {}
    lines = {"edge": Reference(edge.judged, edge.evidence), **found}
    grades = [grade for name, reference in lines.items() for grade in _grades(name, reference)]
    sham = values_of(found["sham"].evidence, found["sham"].judged.scale) if "sham" in found else None
    return References(rows, again, grades, _usual(found["edit"]) if "edit" in found else None, sham)


def _judge(name: str, edge: EdgeJudged) -> Reference:
    """Verdicts on a reference. Where it is read by the parent's SAEs, the features that are judged on the edge are."""
    from heredity.features import reference_edges
    from heredity.features.ends import Judge, end_of
    from heredity.features.verdicts import VERDICTS

    parent, child, given = edge.parent, edge.child, (edge.documents, edge.seed)

    def against(end: End, removed: np.ndarray | None = None) -> Reference:
        return Reference(*edge.judge.against(end), removed)

    match name:
        case "unchanged":
            return against(reference_edges.unchanged(parent))
        case "edit" | "random" | "sham" | "twin":
            return against(edge.read(name))
        case "frozen":
            return against(end_of(parent.saes[1:], child.x, child.fitting))
        case "removal":
            judgeable = (edge.judged.verdict != VERDICTS.index("unstable")) & (
                edge.evidence["firings"] >= _REMOVED_FIRINGS
            )
            removed = np.random.default_rng(edge.seed).permutation(np.flatnonzero(judgeable))[:_REMOVED]
            return against(reference_edges.without(parent, removed), removed)
        case "token identity":
            return Reference(reference_edges.judge_tokens(parent, child, edge.tokens, *given))
    kinds = {
        "codebook": reference_edges.codebook,
        "random decoder": reference_edges.random_decoder,
        "neurons": reference_edges.neurons,
    }
    own, other = reference_edges.untrained(parent, child, kinds[name], edge.seed)
    return Reference(*Judge(own, 0, *given).against(other))


def _row(name: str, reference: Reference, row: Mapping[str, Any]) -> dict[str, Any]:
    from heredity.features.ends import tally
    from heredity.features.verdicts import VERDICTS

    counts = tally(reference.judged)
    made = {"reference": name, **counts}
    if reference.removed is not None:
        lost = reference.judged.verdict[reference.removed] == VERDICTS.index("lost")
        made |= {"removed": len(lost), "removed_lost": int(lost.sum())}
    if not counts["stable"]:
        return made
    sizes = np.array([max(1, row["stable"]), counts["stable"]])
    shares = np.array([row["kept"], counts["kept"]]) / sizes
    difference, spread = shares[0] - shares[1], 1.96 * np.sqrt((shares * (1 - shares) / sizes).sum())
    ends = {"kept_difference_low": difference - spread, "kept_difference_high": difference + spread}
    return made | {"kept_difference": difference, **ends}


def _retrained(row: Mapping[str, Any], frozen: Judged, twin: Judged) -> dict[str, float]:
    """Second intervals of a row of `verdicts`, from the child and its twin, both read by the parent's SAEs alone."""
    from heredity.features.reference_edges import retrained_interval
    from heredity.features.verdicts import VERDICTS

    judged = frozen.verdict != VERDICTS.index("unstable")
    made = {}
    for name in ("kept", "lost"):
        counted = [one.verdict[judged] == VERDICTS.index(name) for one in (frozen, twin)]
        share, *ends = (row[f"{name}_share{end}"] for end in ("", "_low", "_high"))
        low, high = retrained_interval(share, (ends[0], ends[1]), *counted)
        made |= {f"{name}_share_retrained_low": low, f"{name}_share_retrained_high": high}
    return made


class Changes(NamedTuple):
    """How far features differ between both models in one respect, float64 [d_sae]; 0 is not at all."""

    value: np.ndarray
    low: np.ndarray
    """The least that the 95 % interval leaves."""


def changes_of(evidence: Mapping[str, np.ndarray], scale: float) -> dict[str, Changes]:
    """How far features differ between both models in each respect: effect, |transmission - 1|; r, 1 - the better of
    match_r and map_r; density, |log density_ratio|."""
    effect, margin = evidence["transmission"] / scale - 1, 1.96 * evidence["transmission_error"] / scale
    followed, most = (np.fmax(evidence[f"match_r{end}"], evidence[f"map_r{end}"]) for end in ("", "_high"))
    least = 1 / np.maximum(evidence["firings"], 1)  # a feature that never fires there counts as firing once
    ratio = [np.log(np.fmax(evidence[f"density_ratio{end}"], least)) for end in ("", "_low", "_high")]
    between = (ratio[1] < 0) & (ratio[2] > 0)
    return {
        "effect": Changes(np.abs(effect), np.maximum(np.abs(effect) - margin, 0)),
        # Of features without r nothing follows; one whose r rests on one group of documents may be followed wholly.
        "r": Changes(1 - np.nan_to_num(followed), np.where(np.isnan(followed), 1, 1 - np.nan_to_num(most, nan=1))),
        "density": Changes(np.abs(ratio[0]), np.where(between, 0, np.minimum(*np.abs(ratio[1:])))),
    }


def values_of(evidence: Mapping[str, np.ndarray], scale: float) -> dict[str, np.ndarray]:
    """`changes_of` features without their intervals."""
    return {name: change.value for name, change in changes_of(evidence, scale).items()}


def _usual(reference: Reference) -> dict[str, np.ndarray]:
    from heredity.features.verdicts import VERDICTS

    stable = reference.judged.verdict != VERDICTS.index("unstable")
    changes = values_of(reference.evidence, reference.judged.scale)
    return {name: change[stable] for name, change in changes.items()}


def _grades(name: str, reference: Reference) -> Iterator[dict[str, Any]]:
    """How many judged features have which transmission; none for what has no evidence of its own."""
    from heredity.features.verdicts import VERDICTS

    if "transmission" not in reference.evidence:
        return
    stable = reference.judged.verdict != VERDICTS.index("unstable")
    value = np.clip(reference.evidence["transmission"][stable] / reference.judged.scale, GRADES[0], GRADES[-1] - 1e-9)
    counts = np.histogram(value, GRADES)[0]
    for low, count in zip(GRADES[:-1], counts, strict=True):
        row = {"line": name, "transmission": round(float(low), 2), "features": int(count)}
        yield row | {"share": float(count) / max(1, int(stable.sum()))}
