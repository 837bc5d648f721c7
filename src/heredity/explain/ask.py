"""Asks a judge all that the scores of one feature need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Literal, NamedTuple, get_args

import numpy as np

from heredity.explain.excerpts import Drawn
from heredity.explain.protocol import Failure, Judge
from heredity.explain.scores import (
    Agreement,
    DetectionSet,
    FuzzSet,
    IntruderSet,
    Odd,
    Simulation,
    agreement,
    detection_set,
    fuzz_set,
    intruder_set,
    simulation,
    told_apart,
)

MOST = 20
"""Questions of each sort: active and silent excerpts, right and wrong marks, intruder groups."""


Sort = Literal["simulation", "detection", "fuzzing", "intruder"]
"""What a feature may be asked."""
SORTS: tuple[Sort, ...] = get_args(Sort)


class Scores(NamedTuple):
    """What one description of one feature is worth."""

    simulation: Simulation
    """Predicting activations."""
    detection: Agreement
    """Telling excerpts that activate the feature from silent ones."""
    fuzzing: Agreement
    """Telling the tokens it is active on from others."""
    intruder: Odd
    """Telling the excerpt that does not belong; rests on no description."""
    failures: Mapping[str, int]
    """Answers that did not come, by kind of failure; a request counts once."""


class Sets(NamedTuple):
    """The questions about one feature."""

    detection: DetectionSet
    """Active and silent excerpts."""
    fuzzing: FuzzSet
    """Right and wrong marks."""
    odd: IntruderSet
    """Groups with one that does not belong."""


def question_sets(drawn: Drawn, seed: int, sorts: Collection[Sort] = SORTS) -> Sets:
    """The questions that `scored` asks, besides the simulation; empty sets for sorts that are not wanted."""
    active = [excerpt for excerpt in drawn.scoring if np.any(excerpt.values)]
    centered = [excerpt for excerpt in active if excerpt.values[excerpt.center]]
    return Sets(
        detection_set(active, drawn.silent, MOST if "detection" in sorts else 0, seed),
        fuzz_set(active, MOST if "fuzzing" in sorts else 0, seed),
        intruder_set(centered, drawn.silent, MOST if "intruder" in sorts else 0, seed),
    )


def scored(
    judge: Judge, feature: str, description: str, drawn: Drawn, seed: int, sorts: Collection[Sort] = SORTS
) -> Scores:
    """Ask a judge about the excerpts that score, and compare with the activations.

    seed: of the questions; the same for every judge and description makes their scores comparable. sorts: only these
    are asked; the others' scores are nan.
    """
    detection, fuzzing, odd = question_sets(drawn, seed, sorts)
    # What asks nothing is not sent: a request without texts costs as well.
    none = np.empty(0)
    told = drawn.scoring if "simulation" in sorts else ()
    simulated = judge.simulate(feature, description, told) if told else []
    detected = judge.detect(feature, description, detection.excerpts) if detection.excerpts else none
    fuzzed = judge.fuzz(feature, description, fuzzing.excerpts, fuzzing.marked) if fuzzing.excerpts else none
    intruders = judge.intruder(feature, odd.groups) if odd.groups else none
    parts = [simulated] if isinstance(simulated, Failure) else simulated
    # A request that fails fails all of its excerpts by one Failure, which counts once.
    answers = {id(answer): answer for answer in (*parts, detected, fuzzed, intruders)}.values()
    return Scores(
        simulation(told, simulated, drawn.highest),
        agreement(detection.active, detected),
        agreement(fuzzing.right, fuzzed),
        told_apart(odd.places, intruders),
        Counter(answer.kind for answer in answers if isinstance(answer, Failure)),
    )
