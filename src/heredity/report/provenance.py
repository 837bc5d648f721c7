"""The part of the view-model that says where the numbers come from."""

from __future__ import annotations

from heredity.report.summary import Count, Frozen, Number


class CorpusView(Frozen):
    """A corpus as it was read."""

    name: str
    """Its name in the study."""
    source: str
    """Its specification."""
    documents_train: Count
    """Documents trained on."""
    documents_validation: Count
    """Documents held out."""
    bytes_train: Count
    """UTF-8 bytes trained on."""
    bytes_validation: Count
    """UTF-8 bytes held out."""
    duplicates: Count
    """Exact duplicates removed."""
    sha256: str
    """Hash of all texts in order."""
    licences: dict[str, Count]
    """Documents by licence."""


class ArtifactView(Frozen):
    """A stage's result."""

    stage: str
    """Kind of stage."""
    name: str
    """What it was made for."""
    key: str
    """Hash of its recipe."""
    seconds: Number = None
    """Time it took."""


class Provenance(Frozen):
    """Everything needed to make the numbers again."""

    config: str
    """The study as TOML."""
    hook_point: str
    """Where activations were read."""
    seed: int
    """The seed that every other one follows from."""
    seeds: dict[str, int] = {}
    """Seeds of the parts, by name."""
    versions: dict[str, str] = {}
    """Packages that numbers depend on."""
    device: str = ""
    """The kind of machine, in words."""
    created: str = ""
    """When the report was made."""
    corpora: tuple[CorpusView, ...] = ()
    """What was read."""
    artifacts: tuple[ArtifactView, ...] = ()
    """What was made."""
