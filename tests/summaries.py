"""Parts of documents made from recorded summaries of runs: between `<!-- KIND NAME.json -->` and `<!-- end -->`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import summaries_stitch
from heredity.show.planted import markdown
from markdown_table import table

MARKED = re.compile(r"<!-- (\w+) (\w+\.json) -->\n(.*?)<!-- end -->", re.DOTALL)


def refreshed(text: str, folder: Path) -> str:
    """The document with every marked part made anew from the summaries in `folder`."""

    def made(found: re.Match[str]) -> str:
        kind, name = found[1], found[2]
        summary = json.loads((folder / name).read_text())
        return f"<!-- {kind} {name} -->\n{KINDS[kind](summary)}\n<!-- end -->"

    return MARKED.sub(made, text)


def edges(summary: dict[str, Any]) -> str:
    """What happened to the features along every edge."""

    def row(name: str, edge: dict[str, Any]) -> list[str]:
        live, paper = edge["parent_live"], edge.get("paper") or edge
        size = summary["saes"][name.split("->")[0]]["d_sae"]
        of_all = "" if live == size else f" / {edge['persist'] / size:.0%} of all"
        persist = f"{edge['persist']:,} ({edge['persist'] / live:.0%}{of_all}){interval(edge, 'persist')}"
        relative = "" if not edge["ceiling"] else f"{edge['persist'] / live / edge['ceiling']:.0%}"
        counts = [f"{edge[key]:,}" for key in ("disappear", "emerge")]
        at = f"{paper['persist']:,} ({paper['persist'] / live:.0%})"
        return [name, f"{live:,}", f"{edge['threshold']:.2f}", persist, relative, f"{edge['floor']:.1%}", *counts, at]

    names = ["edge", "live", "r >", "persist", "of ceiling", "floor", "disappear", "emerge", "persist at r > 0.8"]
    return table(names, (row(*item) for item in summary["edges"].items()))


def interval(edge: dict[str, Any], key: str) -> str:
    """The interval of a count, in brackets; nothing where there is none."""
    found = edge.get("intervals", {}).get(key)
    return f" [{found[0]:,.0f}, {found[1]:,.0f}]" if found else ""


def first_row(summary: dict[str, Any]) -> str:
    """How to read the first row of the table of edges."""
    name, edge = next(iter(summary["edges"].items()))
    parent, child = name.split("->")
    chance = "none would be" if edge["floor"] < 0.0005 else f"{edge['floor']:.1%} would be"
    low, high = edge["intervals"]["persist"]
    return (
        f"Read the first row so: of the {parent}'s {edge['parent_live']:,} live features {edge['persist']:,} are found "
        f"again in {child}\n({low:,.0f} to {high:,.0f} had other documents been read), at a threshold of "
        f"{edge['threshold']:.2f} on r, between what chance reaches and what\nan unchanged model would reach; "
        f"by chance {chance}. At the paper's 0.8 it would be {edge['paper']['persist']:,}."
    )


def ceilings(summary: dict[str, Any]) -> str:
    """What persists along every edge beside what persists between two SAEs of one model, at both thresholds."""

    def percent(value: float, ends: Sequence[float] | None) -> str:
        return f"{value:.1%}" + (f" [{ends[0]:.1%}, {ends[1]:.1%}]" if ends else "")

    rows = []
    for name, edge in summary["edges"].items():
        live, size = edge["parent_live"], edge["parent_features"]
        for found in (edge, edge["paper"]):
            ends = found["intervals"]
            persist = f"{found['persist']:,} ({found['persist'] / live:.1%} / {found['persist'] / size:.1%} of all)"
            rows.append([name, f"{found['threshold']:.2f}", persist + interval(found, "persist")])
            rows[-1] += [percent(found[key], ends.get(key)) for key in ("ceiling", "relative")]
            rows[-1].append(f"{found['floor']:.2%}")
    return table(["edge", "r >", "persist", "ceiling", "of ceiling", "floor"], rows)


def repeats(summary: dict[str, Any]) -> str:
    """How far what persists and emerges varies between trainings, in percent of live features."""

    def cell(row: dict[str, Any]) -> str:
        return f"{100 * row['mean']:.1f} ± {100 * row['standard_deviation']:.1f}"

    rows = [[name, cell(edge["persist"]), cell(edge["emerge"])] for name, edge in summary["repeats"]["edges"].items()]
    return table(["edge", "persist, %", "emerge, %"], rows)


def shifts(summary: dict[str, Any]) -> str:
    """How far data and weights turn features, median degrees in both orders, and what persists under each."""
    rows = []
    for name, edge in summary["edges"].items():
        found = edge["shift"]
        turned = (
            f"{found['data_first'][cause]['median']:.0f} / {found['model_first'][cause]['median']:.0f}"
            for cause in ("data", "model")
        )
        kept = (f"{found['persist'][cause]['share']:.0%}" for cause in ("noise", "data", "model", "both"))
        rows.append([name, f"{found['noise']['median']:.0f}", *turned, *kept])
    causes = ["continuing alone", "data", "model", "both"]
    return table(["edge", "noise", "data", "model", *(f"persist: {cause}" for cause in causes)], rows)


def rules(summary: dict[str, Any]) -> str:
    """Parent features that persist by each rule."""
    names = list(next(iter(summary["edges"].values()))["rules"])
    rows = [
        [name, *(f"{edge['rules'][rule]['persist']:,}" for rule in names), f"{edge['splits']:,}", f"{edge['merges']:,}"]
        for name, edge in summary["edges"].items()
    ]
    return table(["edge", *(rule.replace("_", " ") for rule in names), "splits", "merges"], rows)


def strata(summary: dict[str, Any]) -> str:
    """Parent features that persist, by how often they fire: of the live ones, and of all."""

    def cell(row: dict[str, Any]) -> str:
        return f"{row['matched']:,} of {row['features']:,} ({row['of_all']:.0%})" if row["features"] else "0"

    rows = [
        [name, *(cell(edge["strata"]["parent"][kind]) for kind in ("rare", "usual", "dense", "dead"))]
        for name, edge in summary["edges"].items()
    ]
    return table(["edge", "rare", "usual", "dense", "dead"], rows)


def newness(summary: dict[str, Any]) -> str:
    """What emerged features are, on the child's trace."""
    rows = []
    for name, edge in summary["edges"].items():
        found, splice = edge["newness"]["emerged"], edge["newness"]["splice"]
        counts = [f"{found[key]:,}" for key in ("features", "judged", "new", "turned", "missed")]
        kl = [
            f"{splice[key]:.3f}" if splice and splice[key] is not None else ""
            for key in ("before", "spliced", "control", "all")
        ]
        rows.append([name, *counts, *kl])
    names = ["edge", "emerged", "judged", "new", "of these turned", "missed by the parent's SAE"]
    return table([*names, "KL before", "with them", "with others", "with all"], rows)


def study(summary: dict[str, Any]) -> str:
    """Everything a run tells, as tables: accuracy, merge, SAEs, edges, flow, cases."""
    parts = ["Next-token accuracy on held-out text:", accuracy(summary)]
    for name, merge in summary["merges"].items():
        parts.append(
            f"{name} is the {merge['method']} of {merge['first']} (t = 0) and {merge['second']} (t = 1) at "
            f"t = {merge['t']:.3f}; {merge['linear_fallback']} tensors were nearly parallel and interpolated linearly."
        )
    also = summary.get("also") or {}
    instruments = {summary["instrument"]: summary} | also
    for instrument, found in instruments.items():
        parts += [f"SAEs, `init = {instrument}`:", saes(found), "Features along every edge:", edges(found)]
        if all(edge.get("rules") for edge in found["edges"].values()):
            parts += ["Persisting by rule:", rules(found), "Persisting by how often a feature fires:", strata(found)]
        if all(edge.get("newness") for edge in found["edges"].values()):
            parts += ["Are emerged features really new?", newness(found)]
        for name, flow in found["flow"].items():
            total = sum(flow.values())
            counts = ", ".join(f"{count:,} {kind.replace('_', ' ')}" for kind, count in flow.items())
            parts.append(f"Of {name}'s {total:,} live features: {counts}.")
        if found.get("classes"):
            parts += ["Classes of features, share of those that persist, are lost, or emerge:", classes(found)]
            parts += ["Features that flow two edges:", paths(found)]
        if found.get("explained"):
            told = found["explained"]
            parts += [
                f"Simulation scores of {told['judge']} explanations, median; {told['features']:,} features, "
                f"{told['explained']:,} explained, {told['kept']:,} labels inherited:",
                explained(found),
            ]
        if found.get("cases"):
            parts += ["Activation-weighted log-likelihood ratio of a token set:", cases(found)]
    minutes = (
        f"{summary['seconds'] / 60:.0f} minutes" if summary["seconds"] > 600 else f"{summary['seconds']:.0f} seconds"
    )
    return "\n\n".join([*parts, f"Work in all: {minutes}."])


def shared(share: dict[str, Any]) -> str:
    """A share with its interval."""
    if share["share"] is None:
        return "–"
    low, high = share["interval"]
    return f"{share['share']:.1%} [{100 * low:.1f}, {100 * high:.1f}]"


def classes(summary: dict[str, Any]) -> str:
    """Groups of classes among the features of every edge."""
    rows = []
    for name, edge in summary["classes"]["edges"].items():
        for fate in ("persist", "disappear", "emerge"):
            found = edge[fate]
            groups = [shared(found["groups"][group]) for group in ("punctuation", "formatting", "code", "single-token")]
            rows.append([name, fate, f"{found['judged']:,}", *groups])
    return table(["edge", "fate", "judged", "punctuation", "formatting", "code", "single token"], rows)


def paths(summary: dict[str, Any]) -> str:
    """The same of the features of a last model that flow the whole way from the first."""
    rows = [
        [name, f"{found['judged']:,}"]
        + [shared(found["groups"][group]) for group in ("punctuation", "formatting", "code", "single-token")]
        for name, found in summary["classes"]["paths"].items()
    ]
    return table(["way", "judged", "punctuation", "formatting", "code", "single token"], rows)


def explained(summary: dict[str, Any]) -> str:
    """Scores of features that persist beside others (the paper's Figure 6)."""

    def group(found: dict[str, Any]) -> str:
        if found["median"] is None:
            return "–"
        low, high = found["interval"]
        return f"{found['median']:.2f} [{low:.2f}, {high:.2f}], n = {found['n']:,}"

    rows = []
    for name, edge in (summary["explained"]["edges"] | summary["explained"]["merges"]).items():
        where = name if "->" in name else f"into {name}"
        effect = (
            "–"
            if edge["effect"] is None
            else f"{edge['effect']:.2f} [{edge['interval'][0]:.2f}, {edge['interval'][1]:.2f}]"
        )
        p = "–" if edge["p"] is None else f"{edge['p']:.1g}" if edge["p"] > 0 else "< 1e-300"
        rows.append([where, group(edge["persisting"]), group(edge["others"]), effect, p])
    return table(["edge", "persisting", "others", "chance that persisting scores higher", "p"], rows)


def accuracy(summary: dict[str, Any]) -> str:
    """Next-token accuracy of every model on every corpus."""
    models = summary["models"]
    corpora = list(next(iter(models.values()))["accuracy"])
    rows = [[name, *(f"{model['accuracy'][corpus]:.3f}" for corpus in corpora)] for name, model in models.items()]
    unigram = next(iter(models.values()))["unigram_accuracy"]
    return table(["model", *corpora], [*rows, ["(unigram)", *(f"{unigram[corpus]:.3f}" for corpus in corpora)]])


def saes(summary: dict[str, Any]) -> str:
    """Quality of every SAE."""
    keys: dict[str, Callable[[float], str]] = {
        "tokens": lambda value: f"{value:,}",
        "l0": lambda value: f"{value:.1f}",
        "explained_variance": lambda value: f"{value:.3f}",
        "ce_loss_recovered": lambda value: f"{value:.3f}",
        "dead_share": lambda value: f"{value:.1%}",
    }
    names = ["SAE", "tokens", "L0", "explained variance", "CE recovered", "dead"]
    return table(
        names, ([name, *(show(sae[key]) for key, show in keys.items())] for name, sae in summary["saes"].items())
    )


def cases(summary: dict[str, Any]) -> str:
    """Cases followed through the models."""
    models = list(summary["models"])
    rows = []
    for name, case in summary["cases"].items():
        mean_r = "–" if case["mean_r"] is None else f"{case['mean_r']:.3f}"
        rows.append([name, "family", *(llr_of(case, model) for model in models), mean_r, case.get("verdict", "")])
        best = [case.get(model, {}).get("best_llr") for model in models]
        rows.append(["", "best", *("–" if llr is None else f"{llr:.2f}" for llr in best), "", ""])
        misses = [(model, case[model]) for model in models if model in case and case[model].get("status") == "lost"]
        for model, miss in misses:
            nearest = (
                f"nearest miss {model}/{miss['feature']}: r {miss['r']:.2f}, LLR {miss['llr'] or float('nan'):.2f}"
            )
            rows.append(["", nearest, *("" for _ in models), "", ""])
    return table(["case", "", *models, "mean r", "verdict"], rows)


def llr_of(case: dict[str, Any], model: str) -> str:
    """LLR of a case in a model, a dash where no feature of the model belongs to it."""
    llr = case[model]["llr"] if model in case else None
    return "–" if llr is None else f"{llr:.2f}"


def beside_paper(summary: dict[str, Any]) -> str:
    """Figures of Horn & Elliott (2410.12391, sections 3 and 4) and those of a run of their experiment."""
    saes_, cases_ = summary["saes"].values(), summary["cases"]
    (flow,) = summary["flow"].values()
    emerged = sum(count for kind, count in flow.items() if kind.startswith("emerged"))
    live = sum(flow.values())
    base = next(iter(summary["models"]))
    persist = {name: edge for name, edge in summary["edges"].items() if name.startswith(f"{base}->")}

    def between(key: str, digits: int) -> str:
        values = [sae[key] for sae in saes_]
        return f"{min(values):.{digits}f} to {max(values):.{digits}f}"

    first, second = (f"{sae['tokens']:,}" for sae in list(saes_)[:2])
    vectors = f"{first} of all models" if summary["instrument"] == "joint" else f"{first} + {second}"

    def llr(case: str) -> str:
        return ", ".join(llr_of(cases_[case], model) for model in summary["models"])

    rows = [
        ["features of an SAE", "16,384", f"{next(iter(saes_))['d_sae']:,}"],
        ["vectors an SAE", "15,000,000", vectors],
        ["mean L0", "25 to 35", between("l0", 1)],
        ["explained loss, most likely CE recovered", "over 0.88", between("ce_loss_recovered", 3)],
        ["explained variance", "not said", between("explained_variance", 3)],
        ["dead features", "no significant share", between("dead_share", 3)],
        ["base's features found in a fine-tune", "959 in at least one (5.9%)"]
        + [
            ", ".join(f"{edge['persist']:,} ({edge['persist'] / edge['parent_live']:.1%})" for edge in persist.values())
        ],
        ["merge's features found in a parent", "1,210", f"{live - flow['novel']:,} of {live:,}"],
        ["of these, emerged in fine-tuning", "729", f"{emerged:,}"],
        ["of these, from the base", "481", f"{flow['from_base']:,}"],
        ["assignment, LLR along the lineage", "7.53, 6.58, 7.64, 7.19", llr("assignment")],
        ["assignment, mean r", "0.851", f"{cases_['assignment']['mean_r'] or float('nan'):.3f}"],
        ["exception, LLR", "11.38 in the base, 8.59 in Lua's best match", llr("exception")],
    ]
    if summary.get("classes"):
        groups = next(iter(summary["classes"]["paths"].values()))["groups"]
        rows += [
            [f"{group} among features that flow {way}", paper, shared(groups[group])]
            for way, group, paper in (("base, Lua, merge", "punctuation", "20%"), ("the same way", "formatting", "5%"))
        ]
    return table(["", "paper", "this run"], rows)


def planted(tables: dict[str, Any]) -> str:
    """Rules compared with planted truth."""
    return markdown(tables).rstrip()


def protocols(found: dict[str, Any]) -> str:
    """Ways of training the SAEs of an edge, on language models and in a planted world."""
    rows = []
    for name, row in found["language_models"].items():
        truth = found["planted"][name]
        kept, lost = list(truth["kept_called"].values()), list(truth["lost_recalled"].values())
        explained = " / ".join(f"{value:.3f}" for value in row["explained_variance"])
        rows.append(
            [name, f"{row['ceiling']['0.8']:.0%}", f"{row['persist']['0.8']:.0%}", f"{row['persist_by_evidence']:.0%}"]
            + [explained, f"{row['further_vectors'] / 1e6:.1f}M", f"{kept[0]:.0%} / {kept[-1]:.0%}"]
            + [f"{lost[0]:.0%} / {lost[-1]:.0%}"]
        )
    names = ["protocol", "ceiling at r > 0.8", "persist at r > 0.8", "by evidence", "explained variance", "vectors"]
    return table([*names, "planted: kept called", "planted: lost found"], rows)


KINDS = {
    "beside_paper": beside_paper,
    "ceilings": ceilings,
    "edges": edges,
    "first_row": first_row,
    "planted": planted,
    "protocols": protocols,
    "repeats": repeats,
    "rules": rules,
    "saes": saes,
    "shifts": shifts,
    "study": study,
    **summaries_stitch.KINDS,
}
