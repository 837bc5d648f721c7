"""Probes fitted in the source of a stitch and used in its target (Chen et al. 2025, section 3.2).

A probe is a logistic regression on the mean activations of k features over a text, chosen by the largest difference of
the classes' means (equation 7). Arms: `source`, the source's probe in the source; in the target, on vectors mapped down
and read by the source's SAE, `unchanged` (features and weights of the source's probe), `refitted` (its features) and
`random` (as many random features, refitted); `native`, on the target's own SAE; `dense_source`, `dense_native` and
`dense_unchanged`, on all dimensions of the vectors. Probes are fitted and judged on different texts; each class stands
against as many texts of the others in turn, of two classes the second against the first. Intervals: 95 %.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np

from heredity.analyses.analysis import Analysis, Aside, Item, Needs, Results, Statement, Tables, rows_of, seed_of
from heredity.analyses.sae_transfer import source_sae_need
from heredity.analyses.stitch_maps import Sides, by_stitch, pass_cost, percent, stitch_needs
from heredity.analyses.warm_starts import warm_start_need
from heredity.engine.stage import Work
from heredity.errors import install
from heredity.format import listed
from heredity.study import Precision, Study, StudyError
from heredity.study.stitch import ProbeSetConfig, ProbeTask, Sizes
from heredity.tables import Column, Plot, Table

if TYPE_CHECKING:
    from heredity.stitch.probe import Views
    from heredity.stitch.probe_datasets import LabeledTexts

KEY = ("stitch", "task")
_READ = 20  # documents per corpus that are looked at for each text wanted: tests may be few among files of code
_PROBED = 10  # features read by the probes of the finding, or the next size
_TASK = Column("task", "text", "What is classified: origin, kind, language, test, or a set of the study file.")
_LABEL = Column("label", "text", "Class to tell from the others, or from the only other one.")
_ARM = Column("arm", "text", "source, native, unchanged, refitted, random; dense_* on all dimensions of the vectors.")
_K = Column("k", "count", "Features read, or dimensions.")
_SCORES = (
    Column("accuracy", "share", "Share of right answers.", ci=True),
    Column("balanced_accuracy", "share", "Mean over both classes of the share of right answers.", ci=True),
    Column("auc", "r", "Area under the ROC curve.", ci=True),
)

PROBE_TASKS = Table(
    "probe_tasks",
    "Texts that probes are fitted and judged on.",
    KEY,
    (
        _TASK,
        Column("reason", "text", "Reason why the task cannot be made of the corpora; empty where it can."),
        Column("origin", "text", "validation, and train where held-out documents were few; or source and revision."),
        Column("classes", "text", "Names of the classes."),
        Column("fitted", "count", "Texts to fit on, all classes together."),
        Column("tested", "count", "Texts to judge on."),
        Column("least_share", "share", "Share of the rarest class."),
        Column("left_out", "text", "Sizes without probes for some class, because fewer features fire in the target."),
    ),
)
PROBES = Table(
    "probes",
    "Probes on texts that they were not fitted on.",
    (*KEY, "label", "arm", "k"),
    (
        _TASK,
        _LABEL,
        _ARM,
        _K,
        *_SCORES,
        Column("draws", "count", "Probes averaged, with the ends of their intervals: draws of random features, or 1."),
        Column("spread", "number", "Standard deviation of the balanced accuracy between draws; null for one."),
    ),
)
PROBE_MEANS = Table(
    "probe_means",
    "Balanced accuracy of probes, mean over classes.",
    (*KEY, "arm", "k"),
    (
        _TASK,
        _ARM,
        _K,
        Column("balanced_accuracy", "share", "Mean over classes."),
        Column("classes", "count", "Classes with a probe of this size."),
    ),
    brief=(*KEY, "arm", "k", "balanced_accuracy"),
    plot=Plot("lines", x="k", y="balanced_accuracy", by="arm"),
)
PROBE_DRAWS = Table(
    "probe_draws",
    "Every single probe.",
    (*KEY, "label", "arm", "k", "draw"),
    (_TASK, _LABEL, _ARM, _K, Column("draw", "count", "Draw of random features; 0 for other arms."), *_SCORES),
    large=True,
)


class ProbeSettings(NamedTuple):
    task: str
    labeled: ProbeSetConfig | None
    """Texts with labels of their own; None for a task of the corpora."""
    content: str | None
    """Digest of the files of a local set."""
    sizes: Sizes
    texts: int
    context_size: int
    draws: int
    precision: Precision
    seed: int
    place: Aside
    root: Aside


def _items(study: Study) -> Iterable[Item]:
    """Tasks of every stitch, those of sets with labels of their own last.

    Raises StudyError for what is missing, before anything runs.
    """
    for name, stitch in study.config.stitch.items():
        config, place = stitch.probes, f"{study.name}: stitch.{name}.probes"
        if not config.tasks and not config.sets:
            continue
        require_sklearn(study, name, "probes.tasks = [], without probes.sets,")
        if "random" not in stitch.arms:
            raise StudyError(
                f"{place}: there is no SAE of the target to compare with; add random to arms, or set tasks=[]"
            )
        for task in config.sets:
            if task in get_args(ProbeTask):
                raise StudyError(f"{place}.sets.{task}: {task} is a task of the corpora already; rename the set")
        yield from ({"stitch": name, "task": task} for task in (*config.tasks, *config.sets))


def require_sklearn(study: Study, name: str, without: str) -> None:
    """Raise StudyError unless scikit-learn is installed. without: the setting that does without it, in words."""
    if find_spec("sklearn") is None:
        raise StudyError(
            f"{study.name}: stitch.{name}: needs scikit-learn, which is not installed; {install('stitch')}; or set "
            f"{without} to do without"
        )


def _settings(study: Study, item: Item) -> ProbeSettings:
    from heredity.stitch.probe_datasets import LabelError
    from heredity.stitch.probe_sets import fingerprint

    name, task = item["stitch"], item["task"]
    config, place = study.config.stitch[name].probes, f"{study.name}: stitch.{name}.probes.sets.{task}"
    labeled = config.sets.get(task)
    try:
        content = fingerprint(labeled, study.root) if labeled else None
    except LabelError as error:
        raise StudyError(f"{place}: {error}") from None
    amounts = (config.sizes, config.texts, config.context_size, config.draws)
    others = study.config.precision, seed_of(study, "probes", name, task), Aside(place), Aside(study.root)
    return ProbeSettings(task, labeled, content, *amounts, *others)


def _needs(study: Study, item: Item) -> Needs:
    name = item["stitch"]
    config = study.config.stitch[name]
    saes = source_sae_need(name, config.widths[0]), warm_start_need(name, config.widths[0], "random")
    corpora = () if item["task"] in config.probes.sets else study.stitch_corpora(name)
    return stitch_needs(study, item, corpora, source_sae=saes[0], native_sae=saes[1])


def _run(work: Work, settings: ProbeSettings) -> Results:
    from heredity.stitch.probe import Views, mean_over_draws, probing
    from heredity.stitch.probe_datasets import LabelError, binary_tasks

    try:
        texts, origin = _of_set(settings) if settings.labeled else texts_of_corpora(work, settings)
    except LabelError as error:
        if settings.labeled:
            raise StudyError(f"{settings.place}: {error}") from error
        none = {"reason": str(error), "origin": "validation and train", "classes": "", "left_out": ""}
        return {"probe_tasks": [none | {"fitted": 0, "tested": 0}], "probes": [], "probe_means": [], "probe_draws": []}
    work.progress(1, len(texts.names) + 2)
    seen, tasks = _views(work, texts.texts, settings), binary_tasks(texts, settings.seed)
    work.progress(2, len(tasks) + 2)
    draws: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    left_out = set[int]()
    for done, (label, (chosen, y, test)) in enumerate(tasks.items(), 3):
        train, held = ((Views._make(part[chosen[of]] for part in seen), y[of]) for of in (~test, test))
        own = probing(train, held, settings.sizes, settings.draws, settings.seed)
        draws += [{"label": label, **row} for row in own]
        rows += [{"label": label, **row} for row in mean_over_draws(own)]
        left_out |= {*settings.sizes} - {row["k"] for row in own if row["arm"] == "source"}
        work.progress(done, len(tasks) + 2)
    by_arm: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        by_arm.setdefault((row["arm"], row["k"]), []).append(row["balanced_accuracy"])
    means = [
        {"arm": arm, "k": k, "balanced_accuracy": float(np.mean(own)), "classes": len(own)}
        for (arm, k), own in by_arm.items()
    ]
    tested, least = int(texts.test.sum()), float(np.bincount(texts.y).min() / len(texts.y))
    task = {"reason": "", "origin": origin, "classes": ", ".join(texts.names), "least_share": least, "tested": tested}
    task |= {"fitted": len(texts.y) - tested, "left_out": ", ".join(map(str, sorted(left_out)))}
    return {"probe_tasks": [task], "probes": rows, "probe_means": means, "probe_draws": draws}


def texts_of_corpora(work: Work, settings: ProbeSettings) -> tuple[LabeledTexts, str]:
    """Texts of a task, of held-out documents if there are enough of them; and the splits they come from."""
    from heredity.stitch.probe_datasets import LabelError, labeled
    from heredity.text.corpora import read_corpus

    def documents(split: Any) -> dict[str, list[str]]:
        return {
            corpus: list(islice(read_corpus(artifact / ".", split), _READ * settings.texts))
            for corpus, artifact in work.inputs["corpus"].items()
        }

    task: Any = settings.task
    choose = partial(labeled, task=task, most=settings.texts, seed=settings.seed)
    held_out = documents("validation")
    with suppress(LabelError):
        texts = choose(held_out)
        if len(texts.texts) == settings.texts * len(texts.names):
            return texts, "validation"
    train = documents("train")
    return choose({corpus: held_out[corpus] + train[corpus] for corpus in held_out}), "validation and train"


def _of_set(settings: ProbeSettings) -> tuple[LabeledTexts, str]:
    """Texts with labels of their own, and where they are from."""
    from heredity.stitch.probe_sets import labeled_set

    config: Any = settings.labeled
    texts = labeled_set(config, settings.root.value, most=settings.texts, seed=settings.seed)
    return texts, config.source + (f", revision {config.revision}" if config.revision else "")


def _views(work: Work, texts: Sequence[str], settings: ProbeSettings) -> Views:
    """Mean activations that the arms read."""
    from heredity.stitch.probe import text_vectors, views

    sides = Sides.of(work)

    def vectors(end: tuple[Any, str], tokenizer: Any, some: Sequence[str]) -> Any:
        return text_vectors(*end, tokenizer, some, settings.context_size, settings.precision)

    saes = sides.read_sae(work.inputs["source_sae"]), sides.read_sae(work.inputs["native_sae"])
    read = [partial(vectors, *end) for end in zip((sides.source, sides.target), sides.tokenizers, strict=True)]
    return views(texts, read[0], read[1], saes, sides.stitch.down)


def _say(tables: Tables) -> Iterable[Statement]:
    for name, (source, target), rows in by_stitch(tables, "probe_means"):
        sizes = {row["k"] for row in rows if row["arm"] == "source"}
        if not sizes:
            continue
        k = min(sizes, key=lambda size: (abs(size - _PROBED), size))
        tasks = list(dict.fromkeys(row["task"] for row in rows))

        def at(arm: str, *own: str, rows: Sequence[Mapping[str, Any]] = rows, k: int = k) -> str:
            some = [row for row in rows if (row["arm"], row["k"]) == (arm, k) and (not own or row["task"] in own)]
            values = [row["balanced_accuracy"] for row in some]
            return percent(sum(values) / len(values) if values else None)

        text = (
            f"Probes ({listed(tasks)}) on {k} {'feature' if k == 1 else 'features'} of {source} reach a balanced "
            f"accuracy of {at('unchanged')} in {target} as they are and {at('refitted')} refitted; {target}'s own "
            f"features reach {at('native')}, random ones {at('random')}."
        )
        evidence = [f"in {source} itself {at('source')}"]
        for task in tasks:
            tested = rows_of(tables, "probe_tasks", stitch=name, task=task)[0]["tested"]
            figures = ", ".join(f"{at(arm, task)} {arm}" for arm in ("unchanged", "refitted", "native"))
            evidence.append(f"{task}: {figures}, {tested:,} texts")
        yield Statement(f"stitch {name}", "probes", text, tuple(evidence))
    for row in rows_of(tables, "probe_tasks"):
        if row["reason"]:
            yield Statement(f"stitch {row['stitch']}", "note", f"no probes of {row['task']}: {row['reason']}")


ANALYSIS = Analysis(
    kind="probes",
    version=1,
    title="Probes across a stitch",
    items=_items,
    settings=_settings,
    needs=_needs,
    run=_run,
    tables=(PROBE_TASKS, PROBES, PROBE_MEANS, PROBE_DRAWS),
    cost=lambda study, item, shapes: pass_cost(study, item["stitch"], shapes, 4),
    say=_say,
)
