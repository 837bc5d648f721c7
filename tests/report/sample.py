"""Made-up studies with realistic numbers, for the tests of the report and for looking at the page.

`python tests/report/sample.py FOLDER` writes one page for each kind of study.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from heredity.report.distributions import density_view, flow_links
from heredity.report.provenance import ArtifactView, CorpusView, Provenance
from heredity.report.render import render
from heredity.report.shown import (
    CaseMemberView,
    CaseView,
    Context,
    FamilyMatch,
    FeatureView,
    FitView,
    Highlight,
    NearestMiss,
    TopToken,
)
from heredity.report.summary import (
    AlsoRepeats,
    AlsoSummary,
    CaseMember,
    CaseSummary,
    EdgeSummary,
    MergeSummary,
    ModelSummary,
    RepeatsSummary,
    SAESummary,
    Spread,
    Summary,
    SweepPoint,
)
from heredity.report.view import Measurement, Node, TensorRow, View
from report.sample_edges import D_SAE, edge_of, newness, shift
from report.sample_meaning import card, classes, explained, label

CORPORA = ("english", "python", "cpp", "stories")
_ACCURACY = {
    "base": (0.172, 0.231, 0.107, 0.159),
    "cpp": (0.117, 0.172, 0.251, 0.133),
    "stories": (0.120, 0.155, 0.070, 0.347),
    "cpp_stories": (0.131, 0.176, 0.204, 0.201),
}
_UNIGRAM = (0.041, 0.082, 0.079, 0.062)
_PARENTS = {"base": (), "cpp": ("base",), "stories": ("base",), "cpp_stories": ("cpp", "stories")}
_OWN = {"base": ("english", "python"), "cpp": ("cpp",), "stories": ("stories",), "cpp_stories": ()}

CODE = [
    "\n",
    "\t",
    "if",
    " (",
    "x",
    " ==",
    ' "',
    "<script>alert(1)</script>",
    '"',
    " &&",
    " y",
    " =",
    " '",
    "&lt;",
    "'",
    ";",
    "\n",
    "\u2028",
]
STORY = [
    "Once",
    " upon",
    " a",
    " time",
    ",",
    " Lily",
    " said",
    ",",
    ' "',
    "Look",
    " 🦆",
    "!",
    '"',
    "\n",
    "<!--",
    " ]]>",
    " שלום",
]
PYTHON = [
    "def",
    " f",
    "(",
    "self",
    "):",
    "\n",
    "    ",
    "try",
    ":",
    "\n",
    "        ",
    "value",
    " =",
    " data",
    "[",
    "'",
    "k",
    "']",
    "\n",
    "    ",
    "except",
    " KeyError",
    ":",
    "</script>",
]


def sample_view() -> View:
    """The full study: base, two children, their merge; SAEs continued from the parent and independent ones."""
    measured = {"parent": _measure("parent", 1), "independent": _measure("independent", 2)}
    summary = Summary(
        heredity="0.1.0",
        study="demo",
        seconds=412.7,
        instrument="parent",
        models={name: _model(name) for name in _ACCURACY},
        merges={"cpp_stories": _merge()},
        cases=_case_summaries(),
        stitches={},
        also={"independent": AlsoSummary(**measured["independent"][0])},
        **measured["parent"][0],
    )
    return View(
        summary=summary,
        graph=tuple(_node(name) for name in _ACCURACY),
        measured={init: drawn for init, (_, drawn) in measured.items()},
        tensors={"cpp_stories": _tensors()},
        highlights=_highlights(),
        cases=_cases(),
        provenance=_provenance(),
    )


def joint_view() -> View:
    """One SAE for all models beside continued ones, with everything an edge can know, run with three seeds."""
    full = sample_view()
    measured = {"joint": _measure("joint", 4), "parent": _measure("parent", 1)}
    edges = {
        name: edge.model_copy(update={"newness": newness(edge), "shift": shift(edge)})
        for name, edge in measured["joint"][0]["edges"].items()
    }
    values = dict(full.summary) | measured["joint"][0] | {"instrument": "joint", "edges": edges}
    values |= {"also": {"parent": AlsoSummary(**measured["parent"][0])}, "repeats": _repeats(edges)}
    drawn = {init: shown for init, (_, shown) in measured.items()}
    return View(**{**dict(full), "summary": Summary(**values), "measured": drawn})


def chain_view() -> View:
    """Two fine-tunes in a row, no merge, no second SAE, no cases."""
    full = sample_view()
    keep = ("base", "cpp", "stories")
    summary = full.summary.model_dump()
    summary["models"] = {name: summary["models"][name] for name in keep}
    summary["models"]["stories"]["parents"] = ("cpp",)
    summary["saes"] = {name: summary["saes"][name] for name in keep}
    edges = {"base->cpp": summary["edges"]["base->cpp"], "cpp->stories": summary["edges"]["base->stories"]}
    without = {"ceiling": None, "relative": None, "corrected": None, "intervals": {}, "paper": None, "rules": {}}
    summary["edges"] = {name: {**edge, **without} for name, edge in edges.items()}
    summary |= {"merges": {}, "flow": {}, "cases": {}, "also": {}, "classes": None, "explained": None}
    drawn = full.measured["parent"]
    shown = {"base->cpp": drawn.edges["base->cpp"], "cpp->stories": drawn.edges["base->stories"]}
    graph = (full.graph[0], full.graph[1], full.graph[2].model_copy(update={"parents": ("cpp",)}))
    return View(
        summary=Summary.model_validate(summary),
        graph=graph,
        measured={"parent": Measurement(edges=shown, flows={})},
        provenance=full.provenance,
    )


def single_view() -> View:
    """One model, no edge at all."""
    full = sample_view()
    summary = full.summary.model_dump()
    summary |= {"models": {"base": summary["models"]["base"]}, "saes": {"base": summary["saes"]["base"]}}
    summary |= {"merges": {}, "edges": {}, "flow": {}, "cases": {}, "also": {}, "explained": None}
    summary["classes"] |= {"edges": {}, "paths": {}}
    return View(
        summary=Summary.model_validate(summary),
        graph=full.graph[:1],
        measured={"parent": Measurement(edges={}, flows={})},
        provenance=Provenance(config="", hook_point="blocks.0.mlp.hook_post", seed=0),
    )


def two_merges_view() -> View:
    """Two merges of the same parents: one by slerp, one by TIES with weights and no sweep."""
    full = sample_view()
    summary = full.summary.model_dump()
    summary["models"]["ties_with_a_rather_long_name"] = summary["models"]["cpp_stories"]
    summary["saes"]["ties_with_a_rather_long_name"] = summary["saes"]["cpp_stories"]
    summary["merges"]["ties_with_a_rather_long_name"] = MergeSummary(
        method="ties", t=None, first="cpp", second="stories", sweep=(), linear_fallback=0, weights=(1.0, 1.0)
    ).model_dump()
    summary["merges"]["cpp_stories"] |= {"crossed": False, "t": 0.0, "interval": None}
    summary["flow"]["ties_with_a_rather_long_name"] = summary["flow"]["cpp_stories"]
    drawn = full.measured["parent"]
    edges = dict(drawn.edges)
    for parent in ("cpp", "stories"):
        name = f"{parent}->ties_with_a_rather_long_name"
        summary["edges"][name] = summary["edges"][f"{parent}->cpp_stories"]
        edges[name] = drawn.edges[f"{parent}->cpp_stories"]
    summary["also"] = {}
    flows = {
        merge: tuple(link.model_copy(update={"target": merge}) for link in drawn.flows["cpp_stories"])
        for merge in summary["flow"]
    }
    second = full.graph[3].model_copy(update={"name": "ties_with_a_rather_long_name"})
    return View(
        summary=Summary.model_validate(summary),
        graph=(*full.graph, second),
        measured={"parent": Measurement(edges=edges, flows=flows, densities=drawn.densities)},
        highlights=full.highlights[:3],
        provenance=full.provenance,
    )


def _model(name: str) -> ModelSummary:
    rows = dict(zip(CORPORA, _ACCURACY[name], strict=True))
    kind = "train" if not _PARENTS[name] else "merge" if len(_PARENTS[name]) > 1 else "finetune"
    return ModelSummary(
        kind=kind,
        parents=_PARENTS[name],
        parameters=2_885_888,
        tokens={"train": 3_000_000, "finetune": 1_000_000, "merge": 0}[kind],
        accuracy=rows,
        ce_loss={corpus: 7.2 - 9 * value for corpus, value in rows.items()},
        unigram_accuracy=dict(zip(CORPORA, _UNIGRAM, strict=True)),
    )


def _node(name: str) -> Node:
    trace = [corpus for corpus in CORPORA if corpus in _OWN["base"] or corpus in _OWN[name] or name == "cpp_stories"]
    return Node(name=name, parents=_PARENTS[name], corpora=_OWN[name], trace=tuple(trace))


def _merge() -> MergeSummary:
    grid = [0.0, 0.1, 0.2, 0.3, 0.4, 0.42, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    first = np.interp(grid, [0, 0.2, 0.4, 0.5, 0.6, 0.8, 1], [0.251, 0.241, 0.208, 0.177, 0.135, 0.093, 0.070])
    second = np.interp(grid, [0, 0.2, 0.4, 0.5, 0.6, 0.8, 1], [0.133, 0.153, 0.192, 0.232, 0.285, 0.328, 0.347])
    points = tuple(
        SweepPoint(
            t=t,
            accuracy={"cpp": a, "stories": b},
            interval={"cpp": (a - 0.004, a + 0.004), "stories": (b - 0.005, b + 0.005)},
        )
        for t, a, b in zip(grid, first.tolist(), second.tolist(), strict=True)
    )
    return MergeSummary(
        method="slerp",
        t=0.42,
        first="cpp",
        second="stories",
        sweep=points,
        linear_fallback=3,
        interval=(0.411, 0.428),
        crossed=True,
    )


def _tensors() -> tuple[TensorRow, ...]:
    names = [f"model.layers.0.{part}.weight" for part in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj")]
    rows = [(name, 8.0 + number, "slerp") for number, name in enumerate(("model.embed_tokens.weight", *names))]
    rows += [("model.layers.0.input_layernorm.weight", 0.9, "linear"), ("model.norm.weight", 1.1, "linear")]
    return tuple(
        TensorRow(
            name=name,
            angle_degrees=angle,
            cosine=float(np.cos(np.radians(angle))),
            method=method,
            norm_ratio=1.0 if method == "slerp" else 0.9998,
            norm_a=31.4,
            norm_b=31.9,
        )
        for name, angle, method in rows
    )


def _best(rng: np.random.Generator, center: float, spread: float, tail: float, dead: int) -> np.ndarray:
    """Best r of every feature: a peak, a tail of features that match nothing well, and dead ones."""
    peak = 1 - np.abs(1 - center) * rng.gamma(1 / spread, spread, D_SAE)
    low = rng.normal(0.3, 0.15, D_SAE)
    r = np.clip(np.where(rng.random(D_SAE) < tail, low, peak), -0.19, 0.9999)
    r[rng.choice(D_SAE, dead, replace=False)] = np.nan
    return r


def _measure(init: str, seed: int) -> tuple[dict, Measurement]:
    rng = np.random.default_rng(seed)
    continued, joint = init != "independent", init == "joint"
    centers = {"base->cpp": 0.74, "base->stories": 0.73, "cpp->cpp_stories": 0.84, "stories->cpp_stories": 0.87}
    edges, drawn, best = {}, {}, {}
    for name, center in centers.items():
        parent = _best(rng, center if continued else center - 0.2, 0.4, 0.12 if continued else 0.2, 130)
        child = _best(rng, center if continued else center - 0.2, 0.4, 0.14 if continued else 0.2, 118)
        ceiling = _best(rng, 0.93 if continued else 0.58, 0.5, 0.05 if continued else 0.15, 130)
        floor = [np.abs(rng.normal(0.02, 0.02, D_SAE)) for _ in range(4)]
        kept = np.where(np.isfinite(parent), 1.0, np.nan)
        edges[name], drawn[name] = edge_of(rng, parent, child, kept if joint else ceiling, floor, joint)
        best[name] = parent > edges[name].threshold
    live = np.arange(D_SAE) < 3978
    through = {
        "cpp": live & (rng.random(D_SAE) < (0.55 if continued else 0.2)),
        "stories": live & (rng.random(D_SAE) < (0.62 if continued else 0.23)),
    }
    based = (through["cpp"] | through["stories"]) & (rng.random(D_SAE) < 0.61)
    either = through["cpp"] | through["stories"]
    both = through["cpp"] & through["stories"]
    flow = {
        "from_base": int(based.sum()),
        "emerged_in_cpp": int((through["cpp"] & ~both & ~based).sum()),
        "emerged_in_stories": int((through["stories"] & ~both & ~based).sum()),
        "emerged_in_both": int((both & ~based).sum()),
        "novel": int((live & ~either).sum()),
    }
    density = {name: np.where(rng.random(D_SAE) < 0.03, 0, 10 ** rng.normal(-2.6, 0.6, D_SAE)) for name in _ACCURACY}
    figures = {"saes": {n: _sae(n) for n in _ACCURACY}, "edges": edges, "flow": {"cpp_stories": flow}}
    figures["classes"] = classes(edges, CORPORA, seed)
    figures["explained"] = explained(edges, ["cpp_stories"], "some-model" if joint else "offline", seed)
    links = flow_links("cpp_stories", through, {name: found & based for name, found in through.items()})
    densities = {name: density_view(np.minimum(found, 1)) for name, found in density.items()}
    shown = Measurement(
        edges=drawn,
        flows={"cpp_stories": links},
        densities=densities,
        kept={"base": int((best["base->cpp"] | best["base->stories"]).sum())},
    )
    return figures, shown


def _repeats(edges: dict[str, EdgeSummary]) -> RepeatsSummary:
    def spread(mean: float, wide: float) -> Spread:
        return Spread(mean=mean, standard_deviation=wide, minimum=mean - wide, maximum=mean + 1.2 * wide, n=3)

    rows = {
        name: {
            "persist": spread(edge.persist / edge.parent_live, 0.006),
            "emerge": spread(edge.emerge / edge.child_live, 0.007),
            "ceiling": Spread(mean=1.0, standard_deviation=0.0, minimum=1.0, maximum=1.0, n=3),
            "floor": spread(0.001, 0.0002),
        }
        for name, edge in edges.items()
    }
    quality = {
        "explained_variance": spread(0.934, 0.001),
        "l0": spread(31.9, 0.1),
        "ce_loss_recovered": spread(0.96, 0.002),
    }
    return RepeatsSummary(
        seeds=3,
        accuracy={
            "cpp": {corpus: spread(value, 0.002) for corpus, value in zip(CORPORA, _ACCURACY["cpp"], strict=True)}
        },
        merges={"cpp_stories": {"t": spread(0.42, 0.011)}},
        saes=dict.fromkeys(_ACCURACY, quality),
        edges=rows,
        also={"parent": AlsoRepeats(saes={}, edges={name: {"persist": row["persist"]} for name, row in rows.items()})},
    )


def _sae(name: str) -> SAESummary:
    return SAESummary(
        d_in=512,
        d_sae=D_SAE,
        seed=0,
        tokens=1_800_000,
        l0=31.9,
        mse=0.00081,
        explained_variance=0.934 + 0.002 * len(name) / 11,
        ce_loss_recovered=0.962,
        dead_share=0.029,
    )


def _context(rng: np.random.Generator, tokens: Sequence[str], at: int, corpus: str, fade: float) -> Context:
    values = np.where(rng.random(len(tokens)) < 0.15, rng.random(len(tokens)) * 1.5, 0.0)
    values[at] = 6.4 * fade
    others = {name: values * scale for name, scale in (("cpp", 0.8), ("stories", 0.9), ("cpp_stories", 0.7))}
    return Context(tokens=tuple(tokens), values=values, focus=at, corpus=corpus, others=others)


def _highlights() -> tuple[Highlight, ...]:
    rng = np.random.default_rng(3)
    lists = {"most persistent": 0.97, "most changed": 0.38, "emerged in cpp": 0.55, "emerged in cpp_stories": 0.6}
    shown = [(name, base, number) for name, base in lists.items() for number in range(10 if "most" in name else 3)]
    shown += [("case:assignment", 0.92, 0), ("case:exception", 0.55, 0)]
    found = []
    for name, best, number in shown:
        model = name.removeprefix("emerged in ") if name.startswith("emerged") else "base"
        text, at, corpus = ((CODE, 11, "cpp"), (PYTHON, 12, "python"), (STORY, 8, "stories"))[number % 3]
        index = int(rng.integers(D_SAE))
        contexts = tuple(_context(rng, text, at, corpus, 1 - 0.05 * rank) for rank in range(6))
        feature = FeatureView(
            id=f"{model}/{index}",
            model=model,
            index=index,
            density=0.004,
            max_act=6.4,
            contexts=contexts,
            card=card(contexts[0], 6.4, number),
            label=label(model, index, number),
        )
        matches = [
            FamilyMatch(
                model=other,
                index=int(rng.integers(D_SAE)),
                r=best - 0.012 * number - 0.02 * step,
                along="cpp->cpp_stories" if other == "cpp_stories" else f"base->{other}",
                max_act=5.2,
            )
            for step, other in enumerate(name for name in _ACCURACY if name != model)
        ]
        if number == 4:
            matches[1] = FamilyMatch(model=matches[1].model, index=None, r=float("nan"))
        found.append(Highlight(list=name, feature=feature, matches=tuple(matches)))
    return tuple(found)


_LLR = {
    "assignment": {"base": (7.53, None), "cpp": (6.58, 0.87), "stories": (7.64, 0.91), "cpp_stories": (7.19, 0.85)},
    "exception": {"base": (11.38, None), "cpp": (8.59, 0.408), "stories": (9.1, 0.83), "cpp_stories": (8.2, 0.7)},
}


def _case_summaries() -> dict[str, CaseSummary]:
    return {
        name: CaseSummary.of(
            {
                model: CaseMember(feature=100 + number, llr=llr, llr_count=llr - 0.4, r=r)
                for number, (model, (llr, r)) in enumerate(rows.items())
            },
            mean_r=float(np.mean([r for _, r in rows.values() if r is not None])),
        )
        for name, rows in _LLR.items()
    }


_STATUS = {("exception", "cpp"): "lost", ("exception", "cpp_stories"): "beyond"}


def _cases() -> dict[str, CaseView]:
    cases = {}
    for name, rows in _LLR.items():
        members = tuple(
            CaseMemberView(
                model=model,
                feature=100 + number,
                llr=llr,
                llr_count=llr - 0.4,
                r=r,
                previous="" if r is None else "base" if model != "cpp_stories" else "cpp",
                status="start" if r is None else _STATUS.get((name, model), "kept"),
                sensitivity=0.83 - 0.07 * number,
                elsewhere=0.4 + 0.3 * number,
                hits=400 - 9 * number,
            )
            for number, (model, (llr, r)) in enumerate(rows.items())
        )
        lost = name == "exception"
        cases[name] = CaseView(
            tokens=("=", " =", "\t=") if not lost else ("except", " except", "\nexcept"),
            not_in_vocabulary=() if not lost else ("\nexcept",),
            set_size=3 - lost,
            base_rate=1e-5 if lost else 4e-4,
            members=members,
            verdict="disappears on base->cpp" if lost else "persists",
            best={"base": FitView(feature=100, llr=rows["base"][0], r=1.0), "cpp": FitView(feature=77, llr=6.1, r=0.2)},
            top_tokens=(TopToken(token=" except" if lost else " =", share=0.62, llr=9.1),),
            nearest_misses=(
                (NearestMiss(model="cpp", feature=101, r=0.408, threshold=0.6, llr=8.59, elsewhere=7.0),)
                if lost
                else ()
            ),
        )
    return cases


def _provenance() -> Provenance:
    corpora = tuple(
        CorpusView(
            name=name,
            source=f"installed:{name}",
            documents_train=2_400,
            documents_validation=130,
            bytes_train=5_700_000,
            bytes_validation=300_000,
            duplicates=17,
            sha256="9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            licences={"Apache-2.0": 2_000, "PSF-2.0": 530},
        )
        for name in CORPORA
    )
    stages = [("model", name) for name in _ACCURACY] + [("sae", name) for name in _ACCURACY]
    return Provenance(
        config='seed = 0\nhook_point = "blocks.0.mlp.hook_post"\n\n[corpus]\nenglish = { source = "installed:x" }\n',
        hook_point="blocks.0.mlp.hook_post",
        seed=0,
        seeds={"tokenizer": 12, "model.base": 77_123_991},
        versions={"heredity": "0.1.0", "torch": "2.13.0", "numpy": "2.4.0"},
        device="2 cores, no GPU",
        created="2026-11-21",
        corpora=corpora,
        artifacts=tuple(
            ArtifactView(stage=stage, name=name, key="5f4dcc3b5aa765d61d8327deb882cf99", seconds=31.2)
            for stage, name in stages
        ),
    )


KINDS = {
    "full": sample_view,
    "joint": joint_view,
    "chain": chain_view,
    "single": single_view,
    "two-merges": two_merges_view,
}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, view in KINDS.items():
        (folder / f"{name}.html").write_text(render(view()), encoding="utf-8")
