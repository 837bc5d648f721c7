"""A run of one of the papers' experiments beside the paper: scale, figures, claims."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

from heredity.papers import claims, stitching, tracking
from heredity.papers.beside import Rows
from heredity.study import Study

Paper = Literal["tracking", "stitching"]
NAMES: dict[Paper, str] = {
    "tracking": "Horn & Elliott, Tracking Universal Features Through Fine-Tuning and Model Merging (arXiv 2410.12391)",
    "stitching": "Chen et al., Transferring Features Across Language Models With Model Stitching (arXiv 2506.06609)",
}


class Reproduction(NamedTuple):
    """Rows of `beside.SCALE`, `beside.BESIDE` and `beside.CLAIMS`."""

    paper: Paper
    scale: list[dict[str, Any]]
    beside_paper: list[dict[str, Any]]
    claims: list[dict[str, Any]]


def reproduction(study: Study, tables: Rows, paper: str | None = None) -> Reproduction:
    """Set a run beside a paper, by default the one that the study names or is built like.

    tables: rows of every table of the run, by name; what is not done is `not measured`. Raises ValueError for an
    unknown paper, and for a study that has nothing of the paper's graph.
    """
    if paper not in (None, *get_args(Paper)):
        raise ValueError(f"--paper {paper}: must be {' or '.join(get_args(Paper))}")
    if paper is None:
        merges = any(model.merge for model in study.config.model.values())
        paper = study.config.paper or ("tracking" if merges and not study.config.stitch else "stitching")
    if paper == "tracking":
        parts = tracking.sizes(study, tables), tracking.figures(study, tables), claims.tracking(study, tables)
        return Reproduction("tracking", *parts)
    parts = stitching.sizes(study, tables), stitching.figures(study, tables), claims.stitching(study, tables)
    return Reproduction("stitching", *parts)
