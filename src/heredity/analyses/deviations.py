"""What a study does otherwise than the paper it follows, setting by setting: made from the study, not from memory.

A study says which paper it follows (`paper = "tracking"` or `"stitching"`). Its settings are compared with the
published ones (`heredity.papers`), of several stitches the first. A reason or an effect stands beside a difference
where a rule gives one; no rule knows what the author of a study had in mind.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from heredity import format
from heredity.analyses.analysis import Analysis, Item
from heredity.analyses.sae_transfer import PUBLISHED
from heredity.papers import stitching_settings, tracking_settings
from heredity.papers.published import Published
from heredity.study import RANKED, ModelConfig, Study
from heredity.tables import Column, Table

PAPERS = {"tracking": tracking_settings.SETTINGS, "stitching": stitching_settings.SETTINGS}
# Settings whose size is work, by the last part of their key.
_WORK = {"d_model", "d_mlp", "n_layers", "tokens", "case_tokens", "context_size", "batch_size", "batch_blocks"}
_WORK |= {"expansion", "held_out", "prompts", "epochs", "tokenizer", "widths"}
_OWN = ("local:", "installed:", "generated:")

DEVIATIONS = Table(
    "deviations",
    "Settings of the study beside those that the paper it follows publishes.",
    ("paper", "setting"),
    (
        Column("paper", "text", "tracking (arXiv 2410.12391) or stitching (arXiv 2506.06609)."),
        Column("setting", "text", "Setting; base, finetune and merge are models by how they are made."),
        Column("published", "text", "Published value."),
        Column(
            "ours", "text", "The study's; of models that differ, each by name. Null where it has nothing of the kind."
        ),
        Column("same", "flag", "Whether they are equal; null for what a loaded model does not tell."),
        Column("why", "text", "Reason or effect of a difference, where a rule gives one."),
        Column("place", "text", "Where it is published."),
    ),
    brief=("setting", "published", "ours", "same", "why"),
)


class DeviationsSettings(NamedTuple):
    rows: tuple[dict[str, Any], ...]


def _settings(study: Study, item: Item) -> DeviationsSettings:
    paper = study.config.paper or ""
    return DeviationsSettings(tuple({"paper": paper, **compared(study, one)} for one in PAPERS[paper]))


def compared(study: Study, published: Published) -> dict[str, Any]:
    """A row of `deviations` but for the paper."""
    found = _ours(study, published.setting)
    row = {"setting": published.setting, "published": published.said or _text(published.values[0])}
    row |= {"place": published.place, "ours": None, "same": None, "why": ""}
    if not found:
        return row | {"same": False, "why": "the study has none"}
    values = list(found.values())
    if all(value is None for value in values):
        return row | {"why": "loaded, not trained here"}
    alike = all(value == values[0] for value in values)
    texts = [_text(value) if alike else f"{name} {_text(value)}" for name, value in found.items()]
    same = all(any(value == known for known in published.values) for value in values)
    why = "" if same else next((why for value in values if (why := _why(study, published, value))), "")
    return row | {"ours": texts[0] if alike else ", ".join(texts), "same": same, "why": why}


def _ours(study: Study, setting: str) -> dict[str, Any]:
    """The study's value of a setting, by model where models have it; None where a loaded model does not tell."""
    config, (root, _, path) = study.config, setting.partition(".")
    if root in ("base", "finetune", "merge"):
        kinds = {"base": ("train", "load"), "finetune": ("finetune",), "merge": ("merge",)}[root]
        made = {name: config.model[name] for name in study.order if not config.model[name].recipe_of}
        chosen = {name: model for name, model in made.items() if model.kind in kinds}
        if path == "corpora":  # of several models in the order of the file
            return {"": "; ".join(_sources(study, study.own_corpora(name)) for name in chosen)} if chosen else {}
        return {name: _of_model(model, path) for name, model in chosen.items()}
    if root == "stitch":
        return {"": _of_stitch(study, path)} if config.stitch else {}
    return {"": _of_study(study, setting)}


def _of_model(model: ModelConfig, path: str) -> Any:
    if model.kind == "load":
        return None
    if model.merge is not None:
        return getattr(model.merge, path)
    made = model.train or model
    if path == "tokens" and made.tokens is None:
        return f"{made.epochs:g} epoch{'s' if made.epochs != 1 else ''}"
    if path == "lr" and made.lr is None:
        return 6e-4 if model.train else 2e-5
    return getattr(made, path)


def _of_stitch(study: Study, path: str) -> Any:
    name, stitch = next(iter(study.config.stitch.items()))
    if path == "models":
        ends = (study.config.model[end] for end in (stitch.source, stitch.target))
        return "; ".join(end.load or "trained here" for end in ends)
    if path == "corpora":
        return _sources(study, study.stitch_corpora(name))
    if path == "arms":  # those beyond the paper's are no difference
        return "random, transferred" if {"random", "transferred"} <= set(stitch.arms) else stitch.arms
    if path == "target_hook_point":
        return stitch.target_hook_point or "by SVCCA"
    if path == "probes.tasks":
        return (*stitch.probes.tasks, *stitch.probes.sets)
    return _followed(stitch, path)


def _of_study(study: Study, setting: str) -> Any:
    config = study.config
    if setting == "hook_point":
        return study.site if len(study.sites) == 1 else study.sites
    if setting == "tokenizer":
        return config.tokenizer.load or config.tokenizer.vocab_size
    if setting == "sae.instruments":  # those beyond the paper's are no difference
        return "independent" if "independent" in config.sae.instruments else config.sae.instruments
    if setting == "sae.betas":
        from heredity.kernels.step import BETAS

        return BETAS
    if setting == "sae.l1_coefficient":
        return "none" if config.sae.activation in RANKED else config.sae.l1_coefficient or "calibrated"
    if setting == "sae.resample_every" and config.sae.resample_every is None:
        return "a tenth of the training"
    if setting == "report.case_tokens":
        return config.report.case_tokens or config.report.tokens
    return _followed(config, setting)


def _followed(start: Any, path: str) -> Any:
    for name in path.split("."):
        start = getattr(start, name)
    return start


def _sources(study: Study, corpora: tuple[str, ...]) -> str:
    return ", ".join(study.config.corpus[name].source for name in corpora)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(map(_text, value))
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)


def _why(study: Study, published: Published, ours: Any) -> str:
    """What is known of a difference by rule; empty where no rule applies."""
    config, setting = study.config, published.setting
    sae, last = config.sae, setting.rpartition(".")[2]
    if setting == "sae.activation" and ours in RANKED:
        return f"L0 is set by k = {sae.k}, and no penalty shrinks activations"
    if setting == "sae.l1_coefficient":
        if ours == "none":
            return f"L0 is set by k = {sae.k}"
        reported = ", the range that the paper reports" if sae.l0 == (25, 35) else ""
        return f"calibrated to an L0 of {sae.l0[0]:g} to {sae.l0[1]:g}{reported}" if ours == "calibrated" else ""
    descents = next((one.descents for one in config.stitch.values()), {})
    beside = "the published descent stands beside" if "published" in descents else ""
    if config.paper == "stitching":
        published_arms = [name for name, one in config.stitch.items() if one.arms_recipe == "published"]
        if published_arms and setting.removeprefix("sae.") in PUBLISHED:
            return f"as published in stitch {', '.join(published_arms)}"
        if setting.startswith("stitch.adam.") and beside:
            return beside
    known = {
        "sae.subtract_mean": "b_enc can take the mean up: the same functions, another course of training",
        "sae.normalize": "the same optimum; biases move by steps of another size",
        "sae.resample_every": "dead features get new directions; a short training has none to give",
        "lineage.threshold": "counts at 0.8 stand beside (table edges, rule paper)",
        "stitch.method": "; ".join(filter(None, ("the exact minimum of the same loss", beside))),
    }
    if setting in known:
        return known[setting]
    if last == "corpora":
        return "text of this machine" if all(one.startswith(_OWN) for one in ours.replace(";", ",").split(", ")) else ""
    if last == "lr" and isinstance(ours, float) and ours > published.values[0]:
        return "higher, for a shorter training" if _shorter(study, setting) else ""
    if last in _WORK:
        return _smaller(published.values[0], ours)
    return ""


def _shorter(study: Study, setting: str) -> bool:
    """Whether the part of a setting is trained on fewer tokens than published."""
    tokens = next((one for one in PAPERS[study.config.paper or ""] if one.setting == f"{setting[:-3]}.tokens"), None)
    return tokens is not None and bool(_smaller(tokens.values[0], next(iter(_ours(study, tokens.setting).values()))))


def _smaller(published: Any, ours: Any) -> str:
    """How much less work a smaller size is."""
    if isinstance(published, tuple) and isinstance(ours, tuple):
        published, ours = max(published), max(ours)
    if isinstance(published, str) and isinstance(ours, int):
        return "a number of tokens in place of whole passes: less to compute"
    if not isinstance(published, int) or not isinstance(ours, int) or ours >= published:
        return ""
    return f"{format.percent(ours / published)} of it: less to compute"


ANALYSIS = Analysis(
    kind="deviations",
    version=1,
    title="What differs from the paper, and why",
    items=lambda study: [{}] if study.config.paper else [],
    settings=_settings,
    needs=lambda study, item: {},
    run=lambda work, settings: {"deviations": list(settings.rows)},
    tables=(DEVIATIONS,),
)
