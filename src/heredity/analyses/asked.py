"""What language models said of a feature, how well that predicts it, and what they were asked: read back from what
`heredity explain` leaves beside a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow.parquet as pq

from heredity.analyses.explain_on_demand import FOLDER, LEDGER, TABLE
from heredity.errors import reading

if TYPE_CHECKING:
    from heredity.explain.propagate import Asking
    from heredity.explain.protocol import Levels
    from heredity.explain.recall import Sent
    from heredity.results import Run

_SAID = ["by", "description", "failure", "carried", "origin_model", "origin_feature", "re_explained", "simulation"]
_SAID += ["detection", "fuzzing", "intruder", "cost"]


class Asked(NamedTuple):
    """The requests about one explanation of a feature."""

    requests: list[Sent]  # answered ones in the order of the questions, then those without an answer
    others: int  # further answered requests about the feature: about a description given up, or for other SAEs
    levels: Levels  # expected level of every token of the scoring excerpts


def said_of(run: Run, place: dict[str, Any], model: str, feature: int) -> list[dict[str, Any]]:
    """Explanations of a feature by language models: `folder`, and columns of table `explanations`, null where a score
    does not exist. Raises ValueError for a file that cannot be read."""
    rows, key = [], [*place.items(), ("model", model), ("feature", feature)]
    for path in sorted((run.folder / FOLDER).glob(f"*/{TABLE}")):
        if not (path.parent / LEDGER).exists():  # by statistics
            continue
        with reading(path, "move it away, or explain the features anew"):
            found = pq.read_table(path, columns=_SAID, filters=[(name, "==", value) for name, value in key]).to_pylist()
        undefined = [{name: None if value != value else value for name, value in row.items()} for row in found]
        rows += [{"folder": path.parent.name, **row} for row in undefined]
    return rows


def asked(asking: Asking, ledger: Path, said: dict[str, Any], model: str, feature: int) -> Asked:
    """What was asked for an explanation of `said_of`, whose questions are put anew to its ledger.

    Raises LedgerError for a ledger that cannot be read.
    """
    from heredity.explain.protocol import Failure
    from heredity.explain.recall import Recalled, answers_about
    from heredity.explain.scores import SORTS, scored

    own, origin = f"{model}/{feature}", (model, feature)
    if said["carried"]:
        origin = said["origin_model"], said["origin_feature"]
    made_for = f"{origin[0]}/{origin[1]}"
    answers, unanswered = answers_about(ledger, [*dict.fromkeys((own, made_for))])
    simulated = [row for rows in answers.values() for row in rows if row["question"] == "simulate"]
    judge = Recalled(answers, "echo" if simulated and simulated[-1]["answer"].tokens else "sparse")
    if first := asking.drawn(*origin):
        judge.explain(made_for, first.explaining)
    levels: Levels = Failure("empty", "there is no description")
    if (drawn := asking.drawn(model, feature)) and said["description"]:
        levels = judge.simulate(own, said["description"], drawn.scoring)
        scored(judge, own, said["description"], drawn, asking.seed, [sort for sort in SORTS if sort != "simulation"])
    every = sum(row["feature"] == own for rows in answers.values() for row in rows)
    others = every - sum(one.feature == own for one in judge.met)
    return Asked([*judge.met, *unanswered], others, levels)
