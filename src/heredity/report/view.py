"""The view-model of the page: the summary plus the distributions, features and provenance that it draws."""

from __future__ import annotations

import numpy as np
from pydantic import model_validator

from heredity.report.provenance import Provenance
from heredity.report.shown import CaseView, Highlight
from heredity.report.summary import Count, Frozen, Number, Summary
from heredity.study import Init

BINS = np.round(np.arange(-0.2, 1.0001, 0.05), 2)
"""Edges of the histograms of best r; what lies below the first edge is counted in the first bin."""
THRESHOLDS = np.round(np.arange(0.2, 0.9501, 0.01), 2)
"""Thresholds that the page can recount at."""
DENSITY_BINS = np.round(np.arange(-6.0, 0.0001, 0.25), 2)
"""Edges of the histogram of log10 density."""


class Node(Frozen):
    """A model in the study graph."""

    name: str
    """Its name."""
    parents: tuple[str, ...]
    """Models it was made from."""
    corpora: tuple[str, ...]
    """Corpora that it was itself trained on."""
    trace: tuple[str, ...]
    """Corpora of the model and its ancestors."""
    note: str = ""
    """A few words on how it was made, such as `LoRA, rank 8`."""


class CurvePoint(Frozen):
    """The counts of an edge at one threshold."""

    threshold: float
    """r must lie above it."""
    persist: Count
    """Parent features with a match."""
    disappear: Count
    """Live parent features without one."""
    emerge: Count
    """Live child features without one."""
    ceiling: Number = None
    """Share of live parent features that persist into another SAE of the same model."""
    floor: Number = None
    """The same under shuffled alignment."""


class MatchRow(Frozen):
    """One row of an edge's table."""

    parent: int
    """Parent feature."""
    child: int
    """Its best match."""
    r: Number
    """Their Pearson r."""
    parent_density: Number
    """Share of tokens on which the parent feature fires."""
    child_density: Number
    """The same of the child feature."""
    mutual: bool
    """Whether the parent feature is the best match of the child feature, too."""
    runner_up: Number = None
    """r of the second best match."""


class EdgeView(Frozen):
    """The distributions of one edge."""

    parent_histogram: tuple[Count, ...]
    """Live parent features by best r with a child feature, in `BINS`."""
    child_histogram: tuple[Count, ...]
    """Live child features by best r with a parent feature, in `BINS`."""
    parent_dead: Count
    """Parent features that never fired on these tokens."""
    child_dead: Count
    """Child features that never fired."""
    parent_median: Number
    """Median best r of the live parent features."""
    child_median: Number
    """Median best r of the live child features."""
    curve: tuple[CurvePoint, ...]
    """Counts at `THRESHOLDS`."""
    rows: tuple[MatchRow, ...] = ()
    """Pairs shown as a table, the highest r first."""
    chance: Number = None
    """Best r that all but one in a hundred live parent features stay below by chance; null for a given threshold."""
    same: Number = None
    """Best r that a kept feature reaches; the edge's threshold stands between both."""


class FlowLink(Frozen):
    """Features of a merge that are inherited through one parent."""

    source: str
    """The parent."""
    target: str
    """The merge."""
    origin: str
    """`base`; the name of the parent they emerged in; or `both` when they emerged in several."""
    count: Count
    """Live features of the target."""
    shared: Count = 0
    """How many of them are inherited through another parent as well."""


class Density(Frozen):
    """How often the features of one SAE fire."""

    histogram: tuple[Count, ...]
    """Live features by log10 of the share of tokens they fire on, in `DENSITY_BINS`."""
    dead: Count
    """Features that never fired."""
    median: Number
    """Median share of tokens of the live features."""


class Measurement(Frozen):
    """What the page draws for one `init`."""

    edges: dict[str, EdgeView]
    """By `parent->child`."""
    flows: dict[str, tuple[FlowLink, ...]]
    """By merge."""
    densities: dict[str, Density] = {}
    """By model."""
    kept: dict[str, Count] = {}
    """Features of a model that persist into at least one of its children."""


class TensorRow(Frozen):
    """What a merge did to one tensor."""

    name: str
    """Its name in the state dict."""
    angle_degrees: Number
    """Angle between the two parents' tensors."""
    cosine: Number
    """Its cosine."""
    method: str
    """slerp, linear or copied."""
    norm_ratio: Number
    """Norm of the result over the interpolated norm of the parents."""
    norm_a: Number
    """Norm in the first parent."""
    norm_b: Number
    """Norm in the second."""


class View(Frozen):
    """All the page needs."""

    summary: Summary
    """The figures."""
    graph: tuple[Node, ...]
    """Models, parents before children."""
    measured: dict[Init, Measurement]
    """Distributions of every init that the summary has figures for."""
    tensors: dict[str, tuple[TensorRow, ...]] = {}
    """By merge."""
    highlights: tuple[Highlight, ...] = ()
    """Features shown with their contexts."""
    cases: dict[str, CaseView] = {}
    """By name."""
    provenance: Provenance
    """Where it all comes from."""

    @model_validator(mode="after")
    def _fits_the_summary(self) -> View:
        names = [node.name for node in self.graph]
        if set(names) != set(self.summary.models):
            raise ValueError(f"the graph has {names}, the summary {list(self.summary.models)}; they must be the same")
        figures = {self.summary.instrument: self.summary, **self.summary.also}
        if set(figures) != set(self.measured):
            raise ValueError(f"measured has {list(self.measured)}, the summary {list(figures)}; they must be the same")
        for init, measured in self.measured.items():
            edges, flow = figures[init].edges, figures[init].flow
            if set(edges) != set(measured.edges):
                raise ValueError(
                    f"{init}: drawn are edges {list(measured.edges)}, counted {list(edges)}; draw the same"
                )
            if missing := [merge for merge in flow if merge not in measured.flows]:
                raise ValueError(f"{init}: the flow into {missing[0]} has no links; make them with flow_links")
        return self
