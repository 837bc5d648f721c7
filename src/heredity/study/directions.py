"""Settings of a direction of one's own: a probe, a steering vector, a difference of means."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from heredity.study.models import Config

Pair = tuple[str, str]


class DirectionConfig(Config):
    """A direction that is followed through the models: read from a file, or made from text."""

    file: Annotated[str, Field(min_length=1)] | None = None
    """File of the vector: safetensors, npy, npz, or a pickle of torch (pt, pth, bin), read with `weights_only`."""
    tensor: str | None = None
    """Name of the tensor in the file; default the only one as wide as the hook point."""
    row: Annotated[int, Field(ge=0)] | None = None
    """Row of a tensor that holds several directions, such as one of each layer."""
    threshold: float | None = None
    """Readout (vector · activation) above which the direction says yes; default the file's bias, negated, or threshold,
    and without these the middle between the `separates` corpora in its model."""
    from_corpora: Pair | None = None
    """Make the direction from text in place of a file: the first corpus against the second, which `separates` then
    names."""
    how: Literal["means", "probe"] = "means"
    """What `from_corpora` makes: the difference of means over tokens, or a logistic probe of means over blocks."""
    separates: Pair | None = None
    """Corpora that the direction is to tell apart, the one it is high on first; without them nothing is classified."""
    model: str | None = None
    """Model that the direction was made on; it is followed through this model's descendants. Default the first model
    without a parent."""
    hook_point: str | None = None
    """Where the direction is read; default the study's `hook_point`."""

    @model_validator(mode="after")
    def _one_source(self) -> DirectionConfig:
        if (self.file is None) == (self.from_corpora is None):
            raise ValueError("needs a file or from_corpora, and not both")
        if self.from_corpora is not None:
            if given := self.model_fields_set & {"tensor", "row", "threshold", "separates"}:
                raise ValueError(f"{sorted(given)[0]} is of a file; leave it out beside from_corpora")
        elif "how" in self.model_fields_set:
            raise ValueError("how is of from_corpora; leave it out beside a file")
        for pair in (self.from_corpora, self.separates):
            if pair is not None and pair[0] == pair[1]:
                raise ValueError(f"{list(pair)} names one corpus twice; name two")
        return self

    @property
    def classes(self) -> Pair | None:
        """Corpora that it tells apart, if any."""
        return self.from_corpora or self.separates
