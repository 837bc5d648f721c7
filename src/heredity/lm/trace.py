"""What passes a hook point of a model that is not there yet: its forward pass traced without weights or numbers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from heredity.errors import reading
from heredity.lm.checkpoint import ModelError, Source, tensors_of
from heredity.lm.hooks import HookPointError, caught_at, resolve
from heredity.lm.load import quiet, refuse_other_adapter


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


def check_adapter(config: Any, source: Source, base: str, trust_remote_code: bool = False) -> None:
    """Attach a peft adapter to a model of a configuration without weights. Raises ModelError, by tensor, for one that
    does not fit. base: what the model is called in errors."""
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    with quiet(), torch.device("meta"):  # peft cannot work on the tensors of `skeleton`
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        try:
            adapted = get_peft_model(model, PeftConfig.from_pretrained(str(source.folder)), low_cpu_mem_usage=True)
            taken = {name: tuple(one.shape) for name, one in get_peft_model_state_dict(adapted).items()}
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise ModelError(f"{source.name}: cannot attach its adapter to {base}: {reason}") from error
    stored = tensors_of(source.folder / "adapter_model.safetensors", source.name)
    refuse_other_adapter(source.name, base, {name: one.shape for name, one in stored.items()}, taken)


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
