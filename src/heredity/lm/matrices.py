"""The weights of a model's matrix products: what is rounded and pruned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd


def matrices(model: Any, embeddings: bool) -> Iterator[tuple[str, Tensor]]:
    """Weights of matrix products by name, each once, as views [outputs, inputs]; of fused experts [rows, columns], all
    experts below each other. Convolutions, and parameters that are no weights of a linear map, are none of them.

    embeddings: whether token and position embeddings and the output head are among them.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    seen = set() if embeddings or head is None else {id(head.weight)}
    for path, module in model.named_modules():
        if isinstance(module, _ConvNd) or (isinstance(module, nn.Embedding) and not embeddings):
            continue
        for name, weight in module.named_parameters(recurse=False):
            linear = weight.dim() == 2 and name == "weight"
            experts = weight.dim() == 3 and min(weight.shape[1:]) > 1
            if (linear or experts) and id(weight) not in seen:
                seen.add(id(weight))
                flat = weight.view(-1, weight.shape[-1])
                # GPT-2's Conv1D has its weight the other way round.
                yield f"{path}.{name}", flat.T if type(module).__name__ == "Conv1D" else flat
