"""Verdicts on edits of a real model whose truth is exact, because its weights were edited so.

A change of basis keeps everything; a direction that is projected out of all that writes into the residual stream is
lost and nothing else is; a scaled one is changed. Two models of random weights share nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from heredity.features.ends import End, end_of, judge_end, tally
from heredity.features.verdicts import VERDICTS
from heredity.lm.activations import activations
from heredity.synthetic.saes import Training, train_sae
from heredity.synthetic.surgery import Model, permuted, projected, quantized, rotated, shaken
from heredity.tables import Column, Table

PLANTED = 8  # directions that are projected out or scaled
_SCALED = 0.3
_LEAST_FIRINGS = 100  # of a feature whose direction is edited
TRAINING = Training(epochs=1, k=16, expansion=4, lr=6e-3)
"""Of SAEs, on all vectors of their half of the blocks."""

EDITS = Table(
    "proof_of_edits",
    "Verdicts on edits of a model's weights.",
    ("edit",),
    (
        Column("edit", "text", "What was done to the weights."),
        Column("truth", "text", "What a right verdict is."),
        Column("stable", "count", "Features of the model's SAE that are judged."),
        *(Column(name, "count", f"Of them {name}.", of="stable") for name in VERDICTS[:4]),
        Column("planted", "count", "Features whose decoder direction was edited."),
        Column("planted_right", "count", "Of these, with the verdict that is right.", of="planted"),
        Column("others_lost", "count", "Lost features whose direction was not edited."),
    ),
    brief=("edit", "truth", "stable", *VERDICTS[:4], "planted", "planted_right", "others_lost"),
)


class _Edit(NamedTuple):
    name: str
    truth: str
    made: Callable[[Model], Model]
    hook: str = "hook_resid_post"
    planted: np.ndarray = np.empty(0, np.int64)
    right: str = ""


def prove_edits(
    model: Model,
    child: Model,
    blocks: np.ndarray,
    documents: np.ndarray,
    layer: int = 0,
    seed: int = 0,
    training: Training = TRAINING,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Rows of `EDITS`: the features of a model in edits of it, each read by two SAEs of its own.

    model: of the Llama family; child: a fine-tune of it, whose size of change the random edit has. blocks: int [blocks,
    context], half of them to train SAEs on, a quarter to judge, a quarter to fit maps. documents: int [blocks].
    """
    half, quarter = len(blocks) // 2, len(blocks) // 4
    texts = np.repeat(documents[half : half + quarter], blocks.shape[1])

    def read(one: Model, hook: str) -> list[np.ndarray]:
        parts = blocks[:half], blocks[half : half + quarter], blocks[half + quarter :]
        name = f"blocks.{layer}.{hook}"
        return [np.concatenate([x.numpy() for x in activations(one, name, part)]) for part in parts]

    def end(one: Model, hook: str, number: int) -> End:
        train, judged, fitting = read(one, hook)
        x, first = torch.from_numpy(train), (seed, 2 * number)
        saes = [train_sae(x, training, (seed, 2 * number + each), beside=first) for each in (0, 1)]
        return end_of(saes, judged, fitting)

    own = {hook: end(model, hook, 0) for hook in ("hook_resid_post", "mlp.hook_post")}
    stream = own["hook_resid_post"]
    verdict = judge_end(stream, stream, 0, texts, seed)[0].verdict
    frequent = np.flatnonzero((verdict != VERDICTS.index("unstable")) & (stream.acts[0].firings() >= _LEAST_FIRINGS))
    chosen = np.random.default_rng(seed).permutation(frequent)[:PLANTED]
    rows = stream.saes[0].W_dec.detach().numpy()
    one, many = chosen[:1], chosen
    weak = partial(projected, directions=rows[many], keep=_SCALED)

    def gone(features: np.ndarray) -> Callable[[Model], Model]:
        return partial(projected, directions=rows[features])

    edits = (
        _Edit("copy", "all kept", copy.deepcopy),
        _Edit("neurons permuted", "all kept", permuted, "mlp.hook_post"),
        _Edit("residual stream rotated", "all kept", rotated),
        _Edit("random change of a fine-tune's size", "none lost", partial(shaken, like=child, seed=seed)),
        _Edit("int8", "none lost", partial(quantized, bits=8)),
        _Edit("int4", "none lost", partial(quantized, bits=4)),
        _Edit("1 direction projected out", "it is lost", gone(one), planted=one, right="lost"),
        _Edit(f"{len(many)} projected out", "they are lost", gone(many), planted=many, right="lost"),
        _Edit(f"{len(many)} scaled to {_SCALED}", "they are changed", weak, planted=many, right="changed"),
    )
    table = []
    for number, edit in enumerate(edits, 1):
        result = judge_end(own[edit.hook], end(edit.made(model), edit.hook, number), 0, texts, seed)[0]
        lost = np.flatnonzero(result.verdict == VERDICTS.index("lost"))
        right = int((result.verdict[edit.planted] == VERDICTS.index(edit.right)).sum()) if edit.right else 0
        counts = {"planted": len(edit.planted), "planted_right": right}
        counts |= {"others_lost": len(np.setdiff1d(lost, edit.planted))}
        table.append({"edit": edit.name, "truth": edit.truth, **tally(result), **counts})
        if progress:
            progress(number, len(edits) + 1)
    first, second = (end(_random(model, seed + number), "hook_resid_post", 20 + number) for number in (1, 2))
    result = judge_end(first, second, 0, texts, seed)[0]
    counts = {"planted": 0, "planted_right": 0, "others_lost": tally(result)["lost"]}
    table.append(
        {"edit": "two models of random weights", "truth": "cannot tell, or none kept", **tally(result), **counts}
    )
    if progress:
        progress(len(edits) + 1, len(edits) + 1)
    return {"proof_of_edits": table}


def _random(model: Model, seed: int) -> Model:
    """The model with every matrix drawn anew, at its own scale."""
    made, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in made.parameters():
            if weight.dim() == 2:
                weight.copy_(torch.randn(weight.shape, generator=generator) * weight.std())
    return made
