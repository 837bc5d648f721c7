"""How well each model predicts the next token, on the validation split of every corpus of the study."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from heredity.analyses.analysis import Analysis, Aside, Item, Results
from heredity.analyses.model import evaluation_cost, model_items, training_of
from heredity.analyses.reading import load, on_device, packs, validation_blocks
from heredity.analyses.text import tokens_for
from heredity.engine.stage import Work
from heredity.engine.store import Artifact
from heredity.study import Precision, Study, StudyError
from heredity.tables import Column, Plot, Table

if TYPE_CHECKING:
    import numpy as np

ACCURACY = Table(
    "accuracy",
    "Next-token prediction on the validation split of each corpus.",
    ("model", "corpus"),
    (
        Column("accuracy", "share", "Share of next tokens predicted correctly."),
        Column("ce_loss", "nats", "Cross-entropy per token."),
        Column("unigram", "share", "Accuracy of always predicting the corpus's most frequent token."),
    ),
    brief=("model", "corpus", "accuracy", "ce_loss", "unigram"),
    plot=Plot("heat", x="corpus", y="accuracy", by="model"),
)


_HITS = "hits.safetensors"


class QualitySettings(NamedTuple):
    context_size: int
    tokens: int
    precision: Precision
    place: Aside


def _settings(study: Study, item: Item) -> QualitySettings:
    training, tokens = training_of(study, item["model"]), study.config.evaluation.tokens
    place = Aside(f"{study.name}: model {item['model']}")
    return QualitySettings(training.context_size, tokens, training.precision, place)


def _run(work: Work, settings: QualitySettings) -> Results:
    from safetensors.numpy import save_file

    from heredity.lm.evaluate import evaluate, unigram_accuracy

    model, tokens, rows = on_device(load(work.inputs["model"])), work.inputs["tokens"], []
    train, hits = packs(tokens, "train"), {}
    for done, (corpus, pack) in enumerate(packs(tokens, "validation").items()):
        work.progress(done, len(tokens))
        blocks = validation_blocks(pack, settings.context_size, settings.tokens)
        figures = evaluate(model, blocks, precision=settings.precision)
        if not math.isfinite(figures.ce_loss):
            wrong = f"{settings.place} predicts NaN or infinity on {corpus}"
            bad = [key for key, weight in model.named_parameters() if not bool(weight.isfinite().all())]
            where = f"{bad[0]} of its weights holds such values" if bad else "its weights are finite, and overflow"
            raise StudyError(f"{wrong}: {where}; copy or train the model anew")
        unigram = unigram_accuracy(train[corpus].counts(model.config.get_text_config().vocab_size), blocks)
        rows.append({"corpus": corpus, "accuracy": figures.accuracy, "ce_loss": figures.ce_loss, "unigram": unigram})
        hits[corpus] = figures.hits / (blocks.shape[1] - 1)
    save_file(hits, work.folder / _HITS)
    return {"accuracy": rows}


def read_hits(artifact: Artifact) -> dict[str, np.ndarray]:
    """Share of the predicted tokens of each validation block that are correct, float64 [blocks] by corpus."""
    from safetensors.numpy import load_file

    return load_file(artifact / _HITS)


ANALYSIS = Analysis(
    kind="quality",
    version=2,
    title="Quality of the models",
    items=model_items,
    settings=_settings,
    needs=lambda study, item: {
        "model": ("model", item),
        "tokens": tokens_for(study, item["model"], study.config.corpus),
    },
    run=_run,
    tables=(ACCURACY,),
    cost=lambda study, item, shapes: evaluation_cost(len(study.config.corpus), study, item, shapes),
)
