"""Stages that fit probes in the source of a stitch and try them in its target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from heredity.engine.stage import Stage, Work
from heredity.engine.store import Artifact, write_json
from heredity.report.probing import ProbeMean, ProbeRow, ProbeSummary
from heredity.report.record import Number
from heredity.stages.models import seed_of
from heredity.stages.stitch import sides_of
from heredity.stages.text import tokenizer_of
from heredity.study import Precision, Study, StudyError
from heredity.study.stitch import HubTaskConfig, ProbesConfig, ProbeTask
from heredity.text.corpora import file_digest, read_corpus

if TYPE_CHECKING:
    from heredity.stitch.probe import Row, Views
    from heredity.stitch.probe_datasets import LabeledTexts

PROBES = "probes.json"
PROBES_TABLE = "probes.parquet"
_READ = 20  # documents a corpus that are looked at for each text wanted: tests may be few among files of code


def probe_stages(
    study: Study,
    name: str,
    inputs: Mapping[str, Stage],
    corpora: Mapping[str, Stage],
    source_sae: Stage,
    native_sae: Stage | None,
) -> list[Stage]:
    """`probes/STITCH-TASK` for every task of a stitch, those of the hub last.

    inputs: as `stitch_inputs` gives them. corpora: documents by name. source_sae, native_sae: of the source and of the
    target, where they are read. Raises StudyError, before anything runs, without scikit-learn, without an SAE of the
    target, and for a set of the hub that is called as a task of the corpora is.
    """
    config, place = study.config.stitch[name].probes, f"{study.name}: stitch.{name}.probes"
    if not config.tasks and not config.hub:
        return []
    require_sklearn(study, name, "probes.tasks = [], without probes.hub,")
    if native_sae is None:
        raise StudyError(f"{place}: there is no SAE of the target to compare with; add random to arms, or set tasks=[]")
    for task in config.hub:
        if task in get_args(ProbeTask):
            raise StudyError(f"{place}.hub.{task}: this is what telling apart the corpora is called; rename the set")
    common = study.stitch_corpora(name)
    read = {**inputs, "source_sae": source_sae, "native_sae": native_sae}
    documents = {f"corpus:{corpus}": corpora[corpus] for corpus in common}
    return [
        *(_probe_stage(study, name, task, None, {**read, **documents}) for task in config.tasks),
        *(_probe_stage(study, name, task, hub, read) for task, hub in config.hub.items()),
    ]


def require_sklearn(study: Study, name: str, without: str) -> None:
    """StudyError unless scikit-learn is there. without: the setting that does without it, in words."""
    if find_spec("sklearn") is None:
        raise StudyError(
            f"{study.name}: stitch.{name}: needs scikit-learn, which is not installed; pip install 'heredity[stitch]', "
            f"or set {without} to do without"
        )


def probes_of(artifact: Artifact) -> ProbeSummary:
    """The figures of a `probes` artifact."""
    return ProbeSummary.model_validate(artifact.json(PROBES))


def _probe_stage(study: Study, name: str, task: str, hub: HubTaskConfig | None, inputs: dict[str, Stage]) -> Stage:
    config = study.config.stitch[name].probes
    seed = seed_of(study, "probes", name, task)
    settings = {
        **config.model_dump(include={"sizes", "texts", "context_size", "draws"}),
        "task": task,
        "precision": study.config.precision,
        "seed": seed,
    }
    if hub is not None:
        settings["hub"] = {**hub.model_dump(), "content": _content(study.root / hub.dataset)}

    def make(work: Work) -> None:
        from heredity.stitch.probe_datasets import LabelError

        try:
            if hub is None:
                found, origin = _of_corpora(study, name, task, config.texts, seed, work)
            else:
                found, origin = _of_hub(hub, study.root, config.texts, seed)
        except LabelError as error:
            if hub is not None:
                raise StudyError(f"{study.name}: stitch.{name}.probes.hub.{task}: {error}") from error
            _write(work.folder, _nothing(task, str(error)), {})
            return
        work.progress(1, len(found.names) + 2)
        of_class, left_out = _probed(work, found, config, study.config.precision, seed)
        _write(work.folder, _summary(task, origin, found, of_class, left_out), of_class)

    return Stage("probes", f"{name}-{task}", settings, inputs, make)


def _of_corpora(study: Study, name: str, task: Any, texts: int, seed: int, work: Work) -> tuple[LabeledTexts, str]:
    """Texts of a task, of held-out documents if there are enough of them."""
    from heredity.stitch.probe_datasets import LabelError, labeled

    folders = {corpus: work.inputs[f"corpus:{corpus}"].folder for corpus in study.stitch_corpora(name)}

    def documents(split: Any) -> dict[str, list[str]]:
        return {corpus: list(islice(read_corpus(own, split), _READ * texts)) for corpus, own in folders.items()}

    held_out = documents("validation")
    try:
        found = labeled(held_out, task, most=texts, seed=seed)
    except LabelError:
        found = None
    if found is not None and len(found.texts) == texts * len(found.names):
        return found, "validation"
    train = documents("train")
    every = {corpus: held_out[corpus] + train[corpus] for corpus in folders}
    return labeled(every, task, most=texts, seed=seed), "validation and train"


def _of_hub(config: HubTaskConfig, root: Path, texts: int, seed: int) -> tuple[LabeledTexts, str]:
    """Texts of a data set with labels of its own."""
    from heredity.stitch.probe_datasets import from_hub

    path = root / config.dataset
    dataset = str(path) if path.exists() else config.dataset
    return from_hub(
        dataset, **config.model_dump(exclude={"dataset"}), most=texts, seed=seed
    ), f"hub: {config.dataset}" + (f", revision {config.revision}" if config.revision else "")


def _content(path: Path) -> str | None:
    """What identifies the files of a local folder; a data set of the hub identifies itself."""
    return file_digest(sorted(file for file in path.rglob("*") if file.is_file())) if path.is_dir() else None


def _probed(
    work: Work, found: LabeledTexts, config: ProbesConfig, precision: Precision, seed: int
) -> tuple[dict[str, list[Row]], list[int]]:
    """Probes by class, and the sizes that some class has none of."""
    from heredity.stitch.probe import probe_task
    from heredity.stitch.probe_datasets import binary_tasks

    seen = _views(work, found.texts, config.context_size, precision)
    tasks = binary_tasks(found, seed)
    work.progress(2, len(tasks) + 2)
    of_class, left_out = {}, set[int]()
    for done, (label, task) in enumerate(tasks.items(), 3):
        of_class[label], missing = probe_task(seen, *task, config.sizes, config.draws, seed)
        left_out |= set(missing)
        work.progress(done, len(tasks) + 2)
    return of_class, sorted(left_out)


def _views(work: Work, texts: Sequence[str], context_size: int, precision: Precision) -> Views:
    """What the arms see of texts."""
    from heredity.sae.formats import read_sae
    from heredity.stitch.probe import text_vectors, views

    sides, tokenizer = sides_of(work), tokenizer_of(work.inputs["tokenizer"])
    device = next(sides.target.parameters()).device
    ours, theirs = (read_sae(work.inputs[role] / "sae")[0].to(device) for role in ("source_sae", "native_sae"))
    source, target = (
        partial(text_vectors, model, tokenizer, point, context_size=context_size, precision=precision)
        for model, point in ((sides.source, sides.source_hook_point), (sides.target, sides.target_hook_point))
    )
    return views(texts, source, target, (ours, theirs), sides.stitch.down)


def _summary(
    task: str, origin: str, found: LabeledTexts, of_class: Mapping[str, list[Row]], left_out: Sequence[int]
) -> ProbeSummary:
    from heredity.stitch.probe import mean_over_draws

    rows = [
        ProbeRow(label=label, arm=row.arm, k=row.k, **row.score._asdict(), draws=row.draws, spread=row.spread)
        for label, own in of_class.items()
        for row in mean_over_draws(own)
    ]
    by_arm: dict[tuple[str, int], list[Number]] = {}
    for row in rows:
        by_arm.setdefault((row.arm, row.k), []).append(row.balanced_accuracy[0])
    return ProbeSummary(
        task=task,
        origin=origin,
        classes=found.names,
        fitted=int((~found.test).sum()),
        tested=int(found.test.sum()),
        least_share=float(np.bincount(found.y).min() / len(found.y)),
        left_out=tuple(left_out),
        rows=tuple(rows),
        means=tuple(
            ProbeMean(arm=arm, k=k, balanced_accuracy=float(np.array(own, np.float64).mean()), classes=len(own))
            for (arm, k), own in by_arm.items()
        ),
    )


def _nothing(task: str, reason: str) -> ProbeSummary:
    """A task that the corpora do not give."""
    return ProbeSummary(
        task=task,
        origin="validation and train",
        classes=(),
        fitted=0,
        tested=0,
        least_share=None,
        left_out=(),
        rows=(),
        means=(),
        reason=reason,
    )


_COLUMNS = pa.schema(
    [
        ("label", pa.string()),
        ("arm", pa.string()),
        ("k", pa.int32()),
        ("draw", pa.int32()),
        *(
            (f"{name}{end}", pa.float64())
            for name in ("accuracy", "balanced_accuracy", "auc")
            for end in ("", "_low", "_high")
        ),
    ]
)


def _write(folder: Path, summary: ProbeSummary, of_class: Mapping[str, Sequence[Row]]) -> None:
    """The summary, and every probe as a row of a table."""
    rows = [
        {"label": label, "arm": row.arm, "k": row.k, "draw": row.draw}
        | {
            f"{name}{end}": value
            for name, estimate in row.score._asdict().items()
            for end, value in zip(("", "_low", "_high"), estimate, strict=True)
        }
        for label, own in of_class.items()
        for row in own
    ]
    pq.write_table(pa.Table.from_pylist(rows, _COLUMNS), folder / PROBES_TABLE, compression="zstd")
    write_json(folder / PROBES, summary.model_dump(mode="json"))
