"""Horn & Elliott (arXiv 2410.12391), figure by figure, beside a run of their experiment.

The study has their graph: a start model, two fine-tunes of it, and the merge of both. Counts of features come from the
paper's rule (r > 0.8), for every instrument of the study; the paper's own instrument is `independent`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from heredity import format
from heredity.papers.beside import Range, Rows, ends, figure, one, rows, scale
from heredity.study import Study

D_SAE, TOKENS, R = 16_384, 335_600_000, 0.8
"""Features of an SAE, tokens of the base model's text by its tokenizer, and the threshold on r."""


class Roles(NamedTuple):
    """Who plays which part of the paper."""

    base: str  # BabyPython
    first: str  # Lua
    second: str  # TinyStories
    merge: str  # LuaStories


def roles_of(study: Study) -> Roles:
    """Models in the parts of the paper. Raises ValueError for a study without two fine-tunes of one model and a merge
    of both."""
    for merge in study.order:
        parents = study.parents[merge]
        base = study.common_ancestor(parents) if len(parents) == 2 else None
        if study.config.model[merge].merge and base and all(study.parents[parent] == (base,) for parent in parents):
            return Roles(base, parents[0], parents[1], merge)
    raise ValueError(
        f"study {study.name} has no merge of two fine-tunes of one model, which the tables of arXiv 2410.12391 are "
        "about; run studies/tracking.toml, or name the other paper with --paper stitching"
    )


def sizes(study: Study, tables: Rows) -> list[dict[str, Any]]:
    """Scale of the paper's experiment and of a run."""
    roles, sae = roles_of(study), one(tables, "saes", seed=0)
    models = {row["model"]: row for row in tables.get("models", ())}
    found: list[tuple[str, str, float, float | None]] = [
        ("weights", "each model", 35_130_000, models.get(roles.base, {}).get("parameters")),
        ("training tokens", roles.base, 3.0 * TOKENS, models.get(roles.base, {}).get("tokens")),
        ("features", "each SAE", D_SAE, sae.get("d_sae")),
        ("training vectors", "each SAE", 15_000_000, sae.get("tokens")),
        ("aligned tokens", "each edge", 3_000_000, one(tables, "edges").get("tokens")),
    ]
    return scale(found)


def figures(study: Study, tables: Rows) -> list[dict[str, Any]]:
    """Rows of `beside.BESIDE`, in the order of the paper."""
    roles = roles_of(study)
    parts = {
        "models": _models(study, tables, roles),
        "SAEs": _saes(study, tables),
        "matching and flow": _lineage(study, tables, roles),
        "merge": _merge(study, tables, roles),
        "kinds of features": _groups(study, tables, roles),
        "cases": _cases(study, tables, roles),
        "explanations": _explanations(study, tables, roles),
    }
    return [{"part": part} | row for part, found in parts.items() for row in found]


def by_paper(study: Study) -> list[str]:
    """Instruments, the paper's first."""
    return sorted(study.instruments, key=lambda name: name != "independent")


def judge_of(tables: Rows, instrument: str) -> str:
    """Who explained features, in words; empty where nobody did."""
    judge = one(tables, "labels", instrument=instrument).get("judge", "")
    return "statistics of the text" if judge == "offline" else judge


def _models(study: Study, tables: Rows, roles: Roles) -> Iterator[dict[str, Any]]:
    published = {roles.base: (3.1027, 0.4190), roles.first: (2.4518, 0.4941), roles.second: (2.0442, 0.5196)}
    for model, (loss, accuracy) in published.items():
        shares = study.shares(model)
        found = {row["corpus"]: row for row in rows(tables, "accuracy", model=model) if row["corpus"] in shares}
        whole = len(found) == len(shares)
        about = f"{model} on {format.listed(list(shares))}"
        for what, kind, paper, column in (
            ("held-out loss", "nats", loss, "ce_loss"),
            ("next-token accuracy", "share", accuracy, "accuracy"),
        ):
            here = sum(share * found[name][column] for name, share in shares.items()) if whole else None
            yield figure(6, "cards", what, about, kind, paper, here, remark="other text and vocabulary")


def _saes(study: Study, tables: Rows) -> Iterator[dict[str, Any]]:
    for instrument in by_paper(study):
        saes = rows(tables, "saes", instrument=instrument, seed=0)
        for element, place, what, kind, paper, column, extreme in (
            (17, "T App B", "mean L0", "number", Range(25.0, 35.0), "l0", None),
            (18, "T App B", "mean squared error", "number", Range(None, 0.0067), "mse", max),
            (19, "T App B", "loss explained", "share", Range(0.88, None), "ce_loss_recovered", min),
            (16, "T fn 4", "dead features", "share", "no significant share", "dead_share", max),
            (12, "T App B", "L1 coefficient", "number", 3e-4, "l1_coefficient", None),
        ):
            if element == 12 and study.config.sae.activation != "relu":
                continue  # no penalty
            known = [(row[column], row["model"]) for row in saes if row.get(column) is not None]
            remark = {
                12: "depends on the scale of the activations; ours is calibrated to the L0",
                18: "depends on the scale of the activations",
            }.get(element, "")
            if study.config.sae.l1_coefficient and element == 12:
                remark = "depends on the scale of the activations"
            shown = known if extreme is None else [extreme(known)] if known else []
            for here, model in shown or [(None, "every model")]:
                about = f"worst: {model}" if extreme and known else model
                yield figure(element, place, what, about, kind, paper, here, instrument=instrument, remark=remark)


def _lineage(study: Study, tables: Rows, roles: Roles) -> Iterator[dict[str, Any]]:
    traced = {"traced": (25, 1210), "emerged": (26, 729), "from base": (26, 481)}
    for instrument in by_paper(study):
        key = {"instrument": instrument, "rule": "paper"}
        sae = one(tables, "saes", instrument=instrument, seed=0, model=roles.base)
        remark = f"by r > {R}; shares of all {sae['d_sae']:,} features" if sae else ""
        reach = one(tables, "reach", model=roles.base, **key)
        kept = reach["features"] / sae["d_sae"] if reach and sae else None
        more = f"({reach['features']:,})" if reach else ""
        about = f"{roles.base} in {roles.first} or {roles.second}"
        what = "base's features that persist into a fine-tune"
        yield figure(
            24, "T 4.1", what, about, "share", 959 / D_SAE, kept, more=more, instrument=instrument, remark=remark
        )
        flow = {row["origin"]: row["features"] for row in rows(tables, "flow", model=roles.merge, **key)}
        counts: dict[str, int | None] = dict.fromkeys(traced)
        if flow:
            emerged = sum(count for origin, count in flow.items() if origin.startswith("emerged_in_"))
            counts = {"traced": flow["from_base"] + emerged, "emerged": emerged, "from base": flow["from_base"]}
        words = {
            "traced": "merge's features that trace to a fine-tune",
            "emerged": "of these, emerged in a fine-tune",
            "from base": "of these, from the base",
        }
        for name, (element, paper) in traced.items():
            count = counts[name]
            here = count / sae["d_sae"] if count is not None and sae else None
            shown = "" if count is None else f"({count:,})"
            yield figure(
                element,
                "T 4.1, Fig 2",
                words[name],
                roles.merge,
                "share",
                paper / D_SAE,
                here,
                more=shown,
                instrument=instrument,
                remark=remark,
            )
        total = counts["traced"]
        share = counts["emerged"] / total if total and counts["emerged"] is not None else None
        yield figure(
            26, "T 4.1", "emerged among the traced", roles.merge, "share", 729 / 1210, share, instrument=instrument
        )
        for edge in study.edges:
            row, twin = one(tables, "edges", edge=edge.name, **key), edge not in study.descent
            here = row["persist"] / row["parent_live"] if row else None
            low, high = (None if end is None else end / row["parent_live"] for end in ends(row, "persist"))
            what = (
                "live features found in another training of the recipe"
                if twin
                else "parent's live features that persist"
            )
            paper = "more than along edges" if twin else "drawn, no numbers"
            row = 53 if twin else 23, "T 5" if twin else "T Fig 2", what, edge.name, "share", paper, here, (low, high)
            yield figure(*row, instrument=instrument)
        yield from _same(tables, key)


def _same(tables: Rows, key: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    for row in rows(tables, "repeats_same", **key):
        here = row["in_all"] / row["followed"] if row["followed"] else None
        more = f"of {row['followed']:,}; {row['expected_all']:.0f} by chance"
        what, about = "features that persist in all repeats", f"{row['edge']}, {row['seeds']} trainings"
        yield figure(56, "review", what, about, "share", None, here, more=more, instrument=key["instrument"])


def _merge(study: Study, tables: Rows, roles: Roles) -> Iterator[dict[str, Any]]:
    row = one(tables, "merges", model=roles.merge)
    yield figure(
        32,
        "T 3.3, Fig 5",
        "t of equal accuracy",
        roles.merge,
        "number",
        0.58,
        row.get("t"),
        ends(row, "t"),
        remark="moves with how far each fine-tune went",
    )
    for parent in (roles.first, roles.second):
        for corpus in study.own_corpora(parent):
            for element, beside, paper in ((33, "specialist", -0.2), (34, "base", 0.2)):
                row = one(tables, "merge_accuracy", model=roles.merge, corpus=corpus, beside=beside)
                what, remark = f"accuracy of the merge over its {beside}'s, less 1", "relative; the paper does not say"
                value = row.get("relative")
                yield figure(
                    element, "T 3.3", what, corpus, "share", paper, value, ends(row, "relative"), remark=remark
                )
    for row in rows(tables, "merge_methods", model=roles.merge):
        if not row["taken"]:
            about, beyond = f"{row['method']} on {row['corpus']}", Range(None, 0.0)
            what = "accuracy less that of the merge taken, in points"
            yield figure(35, "T fn 6", what, about, "number", beyond, row["points"], ends(row, "points"))


def _groups(study: Study, tables: Rows, roles: Roles) -> Iterator[dict[str, Any]]:
    path, remark = f"{roles.base}->{roles.first}->{roles.merge}", "by rule from tokens; the paper's by hand"
    for instrument in by_paper(study):
        for element, group, paper in (
            (37, "punctuation", 0.20),
            (38, "formatting", 0.05),
            (39, "code", Range(0.5, None)),
        ):
            row = one(tables, "path_groups", instrument=instrument, path=path, rule="paper", group=group)
            what, more = f"{group} among what flows {path}", f"of {row['judged']:,}" if row else ""
            share, interval = row.get("share"), ends(row, "share")
            told = element, "T 4.1", what, group, "share", paper, share, interval
            yield figure(*told, instrument=instrument, more=more, remark=remark)


def _cases(study: Study, tables: Rows, roles: Roles) -> Iterator[dict[str, Any]]:
    published = {roles.base: 7.53, roles.first: 6.58, roles.second: 7.64, roles.merge: 7.19}
    if "assignment" in study.config.case:
        for instrument in by_paper(study):
            key = {"instrument": instrument, "case": "assignment"}
            for model, paper in published.items():
                row = one(tables, "cases", model=model, **key)
                yield figure(
                    41,
                    "T 4.2.1",
                    "LLR of assignment",
                    model,
                    "number",
                    paper,
                    row.get("llr"),
                    instrument=instrument,
                    remark=_bound(row),
                )
            mean = one(tables, "case_verdicts", **key).get("pairs_r")
            yield figure(
                42,
                "T Fig 3",
                "r of assignment, mean over pairs of models",
                "all models",
                "r",
                0.851,
                mean,
                instrument=instrument,
            )
    if "exception" in study.config.case:
        for instrument in by_paper(study):
            key = {"instrument": instrument, "case": "exception"}
            start = one(tables, "cases", model=roles.base, **key)
            child = one(tables, "case_misses", model=roles.first, **key)
            child = child or one(tables, "cases", model=roles.first, **key)
            yield figure(
                45,
                "T 4.2.2",
                "LLR of exception",
                roles.base,
                "number",
                11.38,
                start.get("llr"),
                instrument=instrument,
                remark=_bound(start),
            )
            for element, place, what, kind, paper, here in (
                (45, "T 4.2.2", "LLR of its closest match", "number", 8.59, child.get("llr")),
                (46, "T 4.2.2", "times as active on other tokens", "number", 7.0, _times(start, child)),
                (47, "T 4.2.2", "r with its closest match", "r", 0.4081, child.get("r")),
            ):
                yield figure(element, place, what, roles.first, kind, paper, here, instrument=instrument)


def _bound(row: Mapping[str, Any]) -> str:
    """An LLR cannot exceed minus the logarithm of the tokens' share."""
    from math import log

    rate = row.get("base_rate")
    return f"at most {-log(rate):.1f} in this text" if rate else ""


def _times(start: Mapping[str, Any], child: Mapping[str, Any]) -> float | None:
    """How much more active the child's feature is on tokens outside of the hypothesis than the base's."""
    own, other = start.get("elsewhere_mean"), child.get("elsewhere_mean")
    return other / own if own and other is not None else None


def _explanations(study: Study, tables: Rows, roles: Roles) -> Iterator[dict[str, Any]]:
    for instrument in by_paper(study):
        judge = judge_of(tables, instrument)
        row = one(tables, "explained", instrument=instrument, subject=f"{roles.first}->{roles.merge}")
        remark = f"explained by {judge}" if judge else ""
        for group in ("persisting", "others"):
            yield figure(
                52,
                "T App C, Fig 6",
                f"median score, {group}",
                f"{roles.first}->{roles.merge}",
                "r",
                "drawn, no numbers",
                row.get(f"{group}_median"),
                ends(row, f"{group}_median"),
                instrument=instrument,
                remark=remark,
            )
