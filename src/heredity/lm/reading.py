"""How a model is read: what stands before every block, and which positions are no samples.

A decoder that was trained with a beginning-of-text token computes other things without it (Gemma 3 270M: a
cross-entropy of 5.3 in place of 3.7). And the first position of a text, whatever token is there, often holds massive
activations (Sun et al. 2024, arXiv 2402.17762), which would own the mean and the variance of everything measured. So
every forward pass of a model with a prefix reads that token before each row, and neither hook points nor outputs have
its position: blocks [n, context] give [n, context, d]. What is massive in spite of it is left out by its norm, or by
its place in the block.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

if TYPE_CHECKING:  # planning a study reads rules, and loads nothing heavy
    import numpy as np
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

Prefix = Literal["auto", "bos", "eos", "none"]
OUTLIERS = 10.0  # median norms above which a position of a loaded model is no sample, unless a study says otherwise

_READING = "heredity_reading"
_POSITIONS = re.compile(r"(wpe|embed_positions|position_embeddings|pos_emb)\.weight$")  # learned, one row for each


class Reading(NamedTuple):
    """The rules by which a model is read."""

    prefix: int | None = None  # id of the token before every row
    skip: int = 0  # first positions of a block that are no samples
    outliers: float = 0.0  # positions of more than so many median norms are no samples; 0 for no such rule


def prefix_of(tokenizer: PreTrainedTokenizerBase, rule: Prefix = "auto") -> int | None:
    """Id of the token that a rule puts before every block.

    auto: the beginning-of-text token where the tokenizer itself puts one before a text, otherwise the end-of-text
    token, behind which documents begin where they were packed. Raises ValueError for `bos` without such a token, and
    for a rule that is not known.
    """
    if rule not in get_args(Prefix):
        raise ValueError(f"prefix={rule!r}: must be {', '.join(map(repr, get_args(Prefix)))}")
    if rule == "none":
        return None
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if rule == "bos":
        if not isinstance(bos, int):
            raise ValueError('prefix="bos": the tokenizer has no beginning-of-text token; choose eos or none')
        return bos
    begins = rule == "auto" and isinstance(bos, int) and list(tokenizer("a")["input_ids"])[:1] == [bos]  # type: ignore[arg-type]
    return bos if begins else eos  # type: ignore[return-value]


def positions_of(config: Any) -> int | None:
    """Positions that a model was made for, as its configuration says; None where it does not."""
    most = getattr(config.get_text_config(), "max_position_embeddings", None)
    return most if isinstance(most, int) else None


def refuse_beyond_positions(model: Any, name: str, sizes: Mapping[str, int], behind_prefix: bool) -> None:
    """Raise ValueError, by its key, for blocks that do not fit the positions which a model has learned an embedding
    for, with the token before them. Rotary positions go on beyond what a model was trained with.

    sizes: tokens of a block by the key that says so.
    """
    most, before = positions_of(model.config), int(behind_prefix)
    if most is None or not any(_POSITIONS.search(tensor) for tensor in model.state_dict()):
        return
    for key, size in sizes.items():
        if most < size + before:
            behind = ", one of them for the token before every block" if before else ""
            way_out = f"set it to {most - before} or less"
            raise ValueError(f"{key}: {size}: model {name} has {most} positions{behind}; {way_out}")


def read_as(model: nn.Module, reading: Reading) -> None:
    """Read the model by these rules from now on, whatever calls it."""
    trunk = _trunk(model)
    if hasattr(trunk, _READING):
        setattr(trunk, _READING, reading)
        return
    setattr(trunk, _READING, reading)
    trunk.register_forward_pre_hook(_with_prefix, with_kwargs=True)
    trunk.register_forward_hook(_without_prefix)


def reading_of(model: nn.Module) -> Reading:
    """The rules by which a model is read; none of them for a model that has not been given any."""
    return getattr(_trunk(model), _READING, Reading())


@contextmanager
def read_by(model: nn.Module, reading: Reading) -> Iterator[None]:
    """While open, the model is read by these rules; afterwards by those of before."""
    before = reading_of(model)
    read_as(model, reading)
    try:
        yield
    finally:
        read_as(model, before)


def plainly(model: nn.Module) -> AbstractContextManager[None]:
    """While open, the model reads no more than it is given: for text that brings its own first token."""
    return read_by(model, reading_of(model)._replace(prefix=None))


def lead(model: nn.Module, module: nn.Module) -> int:
    """Positions before a row's own at a module: 1 inside the part of the model that reads the prefix, otherwise 0."""
    if reading_of(model).prefix is None:
        return 0
    trunk = _trunk(model)
    return int(module is not trunk and any(module is part for part in trunk.modules()))


def samples(model: nn.Module, x: Tensor, rows: np.ndarray | Tensor) -> Tensor | None:
    """Which of the vectors x [n, d] are samples, bool [n]; None where all are.

    rows: token blocks [blocks, context], of which x has all positions, or the place of each vector in its own row,
    int64 [n]. Masked tokens are no samples (see `BlockSampler.take`), nor is what the model's rules leave out. The
    median norm is over the vectors given, which are those of one forward pass.
    """
    import numpy as np
    import torch

    _, skip, outliers = reading_of(model)
    masked = not isinstance(rows, torch.Tensor) and np.ma.is_masked(rows)
    if not skip and not outliers and not masked:
        return None
    kept = torch.ones(len(x), dtype=torch.bool, device=x.device)
    if not isinstance(rows, torch.Tensor) and masked:
        kept &= torch.from_numpy(~np.ma.getmaskarray(rows).ravel()).to(x.device)
    if skip:
        places = rows if isinstance(rows, torch.Tensor) else torch.arange(len(x)) % rows.shape[1]
        kept &= (places >= skip).to(x.device)
    if outliers:
        norms = x.float().norm(dim=1)
        kept &= norms <= outliers * norms.median()
    return kept


def _trunk(model: nn.Module) -> nn.Module:
    """The part that turns token ids into hidden states: what a language-model head is put on, or all of it."""
    from torch import nn

    trunk = getattr(model, "base_model", None)
    return trunk if isinstance(trunk, nn.Module) else model


def _with_prefix(trunk: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    import torch

    prefix = getattr(trunk, _READING).prefix
    if prefix is None:
        return args, kwargs
    if kwargs.get("past_key_values") is not None:
        raise ValueError(
            "a model with a prefix is read in one pass; generate from it under heredity.lm.reading.plainly"
        )
    ids = args[0] if args else kwargs["input_ids"]
    longer = torch.cat([ids.new_full((len(ids), 1), prefix), ids], 1)
    if (mask := kwargs.get("attention_mask")) is not None and mask.dim() == 2:
        kwargs = kwargs | {"attention_mask": torch.cat([mask.new_ones(len(mask), 1), mask], 1)}
    return ((longer, *args[1:]), kwargs) if args else (args, kwargs | {"input_ids": longer})


def _without_prefix(trunk: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
    if getattr(trunk, _READING).prefix is None:
        return output
    if isinstance(output, tuple):
        return (output[0][:, 1:], *output[1:])
    for name in ("last_hidden_state", "logits"):
        if getattr(output, name, None) is not None:
            output[name] = output[name][:, 1:]
    return output
