"""What passes a hook point of a model that is not there yet: its forward pass traced without weights or numbers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from heredity.errors import reading
from heredity.lm.checkpoint import ModelError
from heredity.lm.hooks import HookPointError, caught_at, resolve
from heredity.lm.load import quiet


def shape_at(config: Any, hook_point: str, trust_remote_code: bool = False) -> list[int] | None:
    """Shape of what passes a hook point, [2, 5, width] for 2 x 5 tokens, from a configuration alone: the model is built
    without weights and its forward pass traced without numbers.

    None where that forward pass cannot be traced, as with experts that are chosen by the numbers. Raises HookPointError
    for a place that the model does not have, and where something else than [batch, context, width] passes; ModelError
    for a configuration from which no model can be built.
    """
    with skeleton(config, trust_remote_code) as model:
        resolve(model, hook_point)
        try:
            return list(caught_at(model.eval(), (hook_point,), torch.zeros(2, 5, dtype=torch.long))[0].shape)
        except HookPointError:
            raise
        except Exception:
            return None


@contextmanager
def skeleton(config: Any, trust_remote_code: bool = False) -> Iterator[Any]:
    """The model of a configuration without weights, while open. Raises ModelError where none can be built."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    with _silent(), FakeTensorMode(), no_init_weights():
        with reading("the model that config.json describes", "mend config.json", ModelError):  # built from its numbers
            made = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, trust_remote_code=trust_remote_code)
        yield made


@contextmanager
def _silent() -> Iterator[None]:
    """No lines of torch's and transformers' own about a trace that fails."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with quiet():
            yield
    finally:
        logger.setLevel(level)
