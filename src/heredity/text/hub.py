"""`hub:NAME`: data sets of the Hugging Face hub, streamed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from heredity.study import CorpusConfig
from heredity.text.documents import CorpusError, Document, Found
from heredity.text.local import document_of

_SHUFFLE_BUFFER = 10_000


class Preset(NamedTuple):
    """Where a named corpus lives on the hub."""

    dataset: str
    subset: str | None = None
    """Configuration name, or data folder when it contains a slash."""
    column: str = "text"
    keep: Mapping[str, tuple[float, float]] = {}
    """Rows are kept when each of these numeric columns lies in its closed range."""
    licence: str = "unknown"


# The ranges drop minified and generated files: the filters usual for The Stack.
_READABLE_CODE = {"avg_line_length": (0, 100), "max_line_length": (0, 1000), "alphanum_fraction": (0.25, 1)}

PRESETS = {
    "babylm": Preset("nilq/babylm-100M"),
    "stack-lua": Preset("bigcode/the-stack-dedup", "data/lua", "content", _READABLE_CODE, "permissive (The Stack)"),
    "stack-python": Preset(
        "bigcode/the-stack-dedup", "data/python", "content", _READABLE_CODE, "permissive (The Stack)"
    ),
    "tinystories": Preset("roneneldan/TinyStories", licence="CDLA-Sharing-1.0"),
}


def preset(config: CorpusConfig, spec: str) -> Preset:
    """What `spec` and the settings of the corpus name; settings win over the preset's.

    Raises:
        CorpusError: neither a preset nor an `owner/name`.
    """
    chosen = PRESETS.get(spec)
    if chosen is None:
        if spec.count("/") != 1:
            raise CorpusError(f"hub:{spec}: unknown name; use one of {', '.join(PRESETS)} or hub:OWNER/NAME")
        chosen = Preset(spec)
    return chosen._replace(
        subset=config.subset or chosen.subset,
        column=chosen.column if config.column == "text" else config.column,
        licence=config.licence or chosen.licence,
    )


def found(config: CorpusConfig, spec: str, seed: int) -> Iterator[Found]:
    """Rows of the data set's `train` split; shuffled through a buffer when `config.max_bytes` cuts it short.

    Raises:
        CorpusError: the data set cannot be reached, or the column is missing or no text.
    """
    chosen = preset(config, spec)
    try:
        rows = _rows(chosen, config.revision)
        if config.max_bytes is not None:
            rows = rows.shuffle(seed=seed, buffer_size=_SHUFFLE_BUFFER)
        for number, row in enumerate(rows):
            if all(low <= row.get(name, low) <= high for name, (low, high) in chosen.keep.items()):
                yield Found(_document(row, chosen, f"hub:{spec}, row {number}"), None)
    except CorpusError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CorpusError(
            f"hub:{spec}: {chosen.dataset} cannot be read ({reason}); check name, subset, revision and network, accept "
            f"its terms and log in if it is gated, or use local:PATH"
        ) from error


def _rows(chosen: Preset, revision: str | None) -> Any:
    from datasets import load_dataset

    folder = chosen.subset if chosen.subset and "/" in chosen.subset else None
    return load_dataset(
        chosen.dataset,
        name=None if folder else chosen.subset,
        data_dir=folder,
        split="train",
        revision=revision,
        streaming=True,
    )


def _document(row: dict[str, Any], chosen: Preset, place: str) -> Document:
    document = document_of(row, chosen.column, place, chosen.dataset, chosen.licence)
    stated = row.get("max_stars_repo_licenses")
    if stated:
        document = document._replace(licence=" AND ".join(map(str, stated)))
    repository = row.get("max_stars_repo_name")
    return document._replace(source=f"{chosen.dataset}/{repository}") if repository else document
