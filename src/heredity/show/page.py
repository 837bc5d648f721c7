"""The report page: one HTML file with its style, script and data inside, without any request to the network.

Script and style are built from `web/` (`make page`) and are the same whether the page is a file or is served. Cells of
tables are text made by `heredity.format`; the page writes only figures that it computes itself.
"""

from __future__ import annotations

import base64
import hashlib
import html
import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heredity import format
from heredity.analyses import ANALYSES, TABLES
from heredity.analyses.analysis import Item
from heredity.analyses.feature_columns import columns_of_run, packed
from heredity.analyses.query import verdicts_of
from heredity.engine.store import whole
from heredity.show.markdown import LIMITS
from heredity.show.summary import summarize
from heredity.study import DERIVED, Config
from heredity.tables import Table

if TYPE_CHECKING:
    from heredity.results import Run
    from heredity.study import Study

_PARTS = ("page.js", "page.css", "template.html")
_ASKS = "; connect-src 'self'"  # what a served page may besides: ask its server


def write(run: Run, out: Path) -> None:
    """Write the page of a run, whole or not at all."""
    text = render(page_data(run, columns_of_run(run)))
    with whole(out) as partial:
        partial.write_text(text, encoding="utf-8")


def page_data(run: Run, columns: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None) -> dict[str, Any]:
    """Everything the page shows, as JSON.

    columns: of all features, by instrument and site (`columns_of_run`); a page that is served asks for them instead.
    """
    summary, config = summarize(run), run.study.config
    tables = {name: table_data(TABLES[name], part["rows"]) for name, part in summary.pop("tables").items()}
    manifests = {label: artifact.manifest for label, artifact in run.artifacts.items()}
    return {
        **summary,
        "tables": {name: table for name, table in tables.items() if table["rows"]},
        "sections": _sections(run),
        "limits": LIMITS if "verdicts" in run.tables else (),
        "graph": _graph(run.study),
        "instruments": list(run.study.instruments),
        "inspector": _inspector(run),
        "features": {
            instrument: {site: embedded(one) for site, one in sites.items()}
            for instrument, sites in (columns or {}).items()
        },
        "served": False,
        "toml": config.to_toml(),
        "sites": run.study.sites,
        "seed": config.seed,
        "versions": next(iter(manifests.values()), {}).get("versions", {}),
        "artifacts": [
            {"stage": label, "key": manifest["key"], "seconds": format.value("seconds", manifest["seconds"])}
            for label, manifest in manifests.items()
        ],
    }


def table_data(table: Table, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A table for the page: values and text by column."""
    text = {column.name: [format.cell(column, row) for row in rows] for column in table.all_columns}
    return {
        "name": table.name,
        "doc": table.doc,
        "columns": [column._asdict() | {"key": column.name in table.key} for column in table.all_columns],
        "brief": list(table.brief),
        "plot": table.plot._asdict() if table.plot else None,
        "rows": len(rows),
        "values": {name: [_short(row[name]) for row in rows] for name in table.schema.names},
        "text": {name: cells for name, cells in text.items() if cells != [row[name] for row in rows]},
    }


def _short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


_LABEL = ["instrument", "site", "model", "feature", "description", "failure", "by", "origin_model", "origin_feature"]
_LABEL += ["carried", "re_explained", "simulation", "detection", "fuzzing"]
_BETWEEN = {"edge", "origin", "about", "case", "subject", "stitch"}  # key columns of what relates models


def _sections(run: Run) -> list[dict[str, Any]]:
    """Analyses with rows to show: title, definition and names of tables.

    Findings between models come first, then what describes single models and SAEs.
    """
    parts, defined = [], set()
    for analysis in ANALYSES:
        names = [table.name for table in analysis.tables if len(run.tables.get(table.name, ()))]
        module = analysis.run.__module__
        doc = "" if module in defined else inspect.cleandoc(sys.modules[module].__doc__ or "")
        if names or (analysis.kind == "features" and any(label.startswith("features/") for label in run.artifacts)):
            defined.add(module)
            finds = any(set(table.key) & _BETWEEN for table in analysis.tables)
            parts.append({"kind": analysis.kind, "title": analysis.title, "doc": doc, "tables": names, "finds": finds})
    return sorted(parts, key=lambda part: not part["finds"])


_MADE = {
    "train": "trained from scratch",
    "finetune": "fine-tuned",
    "load": "loaded",
    "merge": "merge",
    "quantize": "quantized",
    "prune": "pruned",
    "adapter": "adapter merged",
    "edit": "weights edited",
}
"""How a model came to be, by its kind."""


def _graph(study: Study) -> list[dict[str, Any]]:
    """Models, parents before children."""
    nodes = []
    for name in study.order:
        model = study.config.model[name]
        note, how = f"LoRA, rank {model.lora.r}" if model.lora else "", getattr(model, model.kind, None)
        if model.kind in DERIVED:
            given = how.model_dump(exclude_unset=True) if isinstance(how, Config) else {"adapter": how}
            note = ", ".join(f"{key} {value}" for key, value in given.items())
        node = {
            "name": name,
            "kind": model.kind,
            "made": _MADE[model.kind],
            "parents": study.parents[name],
            "note": note,
        }
        node |= {"recipe_of": model.recipe_of}
        nodes.append(node | {"corpora": study.own_corpora(name), "trace": study.trace(name)})
    return nodes


def _inspector(run: Run) -> dict[str, Any]:
    """Feature cards and cases by site and instrument, with the explanation of each feature where there is one."""
    try:
        rows = run.table("explanations").select(_LABEL).to_pylist()
    except KeyError:
        rows = []
    labels = {tuple(row[name] for name in ("instrument", "site", "model", "feature")): row for row in rows}
    shown: dict[str, Any] = {}
    for label, artifact in run.artifacts.items():
        analysis, item, repeat = run.pipeline.items[label]
        if analysis.kind == "features" and not repeat:
            place, cards = (item["instrument"], item["site"]), artifact.json("features.json")
            cards = [_card(run, item, card, labels.get((*place, card["model"], card["feature"]))) for card in cards]
            own = {"cards": cards, "cases": artifact.json("cases.json")}
            shown.setdefault(item["site"], {})[item["instrument"]] = own
    return shown


def _card(run: Run, place: Item, card: Mapping[str, Any], label: Mapping[str, Any] | None) -> dict[str, Any]:
    verdicts = verdicts_of(run, place, card["model"], card["feature"])
    return {**card, "label": label, "verdicts": verdicts}


def render(data: Mapping[str, Any]) -> str:
    """The page as the text of one HTML file.

    Everything that a corpus, a tokenizer or a study file can put into it travels as packed JSON and is shown as text;
    the page forbids itself every script but its own, by hash, and every request.
    """
    return _rendered(data, "")[0]


def served(data: Mapping[str, Any]) -> tuple[str, str]:
    """The page as a server gives it, and its policy: the same page, which may ask its server and nothing else."""
    return _rendered({**data, "served": True}, _ASKS)


def served_policy() -> str:
    """The policy of the page that a server gives, from the package alone: no file of a run has a say in it."""
    return _policy(_ASKS)


def source() -> str:
    """Hash of all that the page is made of besides its data."""
    return hashlib.sha256("\0".join(map(_file, _PARTS)).encode()).hexdigest()


def _policy(allowed: str) -> str:
    digest = base64.b64encode(hashlib.sha256(_file("page.js").encode()).digest()).decode()
    # blob: pictures that the script itself makes of its charts, to be saved
    own = f"style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src blob:"
    return f"default-src 'none'; {own}{allowed}"


def _rendered(data: Mapping[str, Any], allowed: str) -> tuple[str, str]:
    """The page of this data, and its policy. allowed: what the policy has beside its own script and style."""
    policy = _policy(allowed)
    parts = {
        "title": html.escape(data["study"]),
        "policy": policy,
        "style": _file("page.css"),
        "script": _file("page.js"),
        "findings": _plain(data).encode(errors="replace").decode(),  # half a character cannot be written
        "data": embedded(data),
    }
    # one pass, so that nothing that is put in can be taken for a place to put something
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _file("template.html")), policy


def embedded(value: object) -> str:
    """A value as the page holds it: compressed JSON in base64, in which nothing can end the element that it stands in.

    Raises ValueError for nan or infinity.
    """
    return base64.b64encode(packed(value)).decode()


def _plain(data: Mapping[str, Any]) -> str:
    """Findings for a reader without scripts."""
    first = (*data["instruments"][:1], "")
    notes = [f"<p>Note: {html.escape(note)}</p>" for note in data["notes"]]
    return "\n".join(
        notes
        + [
            f"<p>{html.escape(row['text'])} <small>{html.escape('; '.join(row['evidence']))}</small></p>"
            for row in data["statements"]
            if row["instrument"] in first
        ]
    )


def _file(name: str) -> str:
    return (resources.files("heredity.show") / "page" / name).read_text(encoding="utf-8")
