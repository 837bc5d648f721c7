"""Models and their SAEs opened for reading, in whichever process the reading is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from heredity.engine.store import Artifact
from heredity.features.collect import Reader
from heredity.sae.formats import read_sae
from heredity.stages.models import load, on_device
from heredity.study import Precision, Study


def reader_of(study: Study, model: Artifact, saes: Sequence[Artifact]) -> Callable[[], Reader]:
    """Opens a model of the study with SAEs of it; can be sent to another process."""
    folders = [sae / "sae" for sae in saes]
    return partial(_opened, model, folders, study.config.hook_point, study.config.precision)


def _opened(model: Artifact, saes: Sequence[Path], hook_point: str, precision: Precision) -> Reader:
    reader = on_device(load(model))
    device = next(reader.parameters()).device
    return Reader(reader, hook_point, [read_sae(folder)[0].to(device) for folder in saes], precision)
