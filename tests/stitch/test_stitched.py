"""Through the identity and exact inverses a stitched model is the model; through anything else it is what it says."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from heredity.lm.evaluate import evaluate
from heredity.lm.hooks import capture
from heredity.lm.load import mistral_config, new_model
from heredity.stitch.affine import Affine
from heredity.stitch.stitched import stitched_loss, stitched_losses
from heredity.study import ArchitectureConfig

VOCAB, SMALL, LARGE = 90, 16, 24
A_HOOK, B_HOOK = "blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre"


@cache
def _made(d_model: int, n_layers: int) -> Any:
    shape = ArchitectureConfig(d_model=d_model, d_mlp=32, n_layers=n_layers, n_heads=4)
    made = new_model(mistral_config(shape, VOCAB, 64, 0), d_model).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter *= 6 if parameter.ndim == 2 else 1  # fresh weights are too small to tell models apart
    return made


def model(d_model: int, n_layers: int) -> Any:
    return copy.deepcopy(_made(d_model, n_layers))


def blocks(number: int = 9, context: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCAB, (number, context))


def maps() -> tuple[Affine, Affine]:
    """From 16 to 24 dimensions, and the exact way back."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.linalg.qr(torch.randn(LARGE, SMALL, generator=generator)).Q.T
    bias = torch.randn(LARGE, generator=generator)
    return Affine(weight, bias), Affine(weight.T.contiguous(), -bias @ weight.T)


def test_the_identity_on_one_model_is_the_model_itself():
    made, tokens = model(SMALL, 2), blocks()
    found = stitched_loss((made, A_HOOK), lambda x: x, (made, A_HOOK), tokens)
    own = evaluate(made, tokens, precision="float32")
    assert found.ce_loss == pytest.approx(own.ce_loss, rel=1e-6)
    assert found.accuracy == own.accuracy and found.tokens == own.tokens and np.array_equal(found.hits, own.hits)


def test_four_ways_of_two_models():
    a, b, (up, down), tokens = model(SMALL, 2), model(LARGE, 3), maps(), blocks()
    found = stitched_losses((a, A_HOOK), (b, B_HOOK), up, down, tokens)
    assert found.source.ce_loss == pytest.approx(evaluate(a, tokens, precision="float32").ce_loss, rel=1e-6)
    assert found.target.ce_loss == pytest.approx(evaluate(b, tokens, precision="float32").ce_loss, rel=1e-6)
    # Nothing of A is lost in the larger space; most of B is in the smaller one.
    assert found.source_round_trip.ce_loss == pytest.approx(found.source.ce_loss, rel=1e-5)
    assert found.increases["source_round_trip"] == pytest.approx(0, abs=1e-5)
    assert abs(found.target_round_trip.ce_loss - found.target.ce_loss) > 0.02
    assert found.increases["up"] == pytest.approx(found.up.ce_loss / found.target.ce_loss - 1)
    assert found.increases["down"] == pytest.approx(found.down.ce_loss / found.source.ce_loss - 1)


def test_the_back_half_reads_the_image_of_the_front_and_nothing_else():
    """Against the layers called one by one."""
    a, b, (up, _), tokens = model(SMALL, 2), model(LARGE, 3), maps(), blocks()
    ids = torch.from_numpy(tokens)
    with torch.no_grad():
        x = up(capture(a, A_HOOK, ids))
        places = torch.arange(ids.shape[1])[None]
        x = b.model.layers[2](x, position_embeddings=b.model.rotary_emb(x, places), attention_mask=None)
        logits = b.lm_head(b.model.norm(x))[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1).double(), ids[:, 1:].flatten())
    found = stitched_loss((a, A_HOOK), up, (b, B_HOOK), tokens)
    assert found.ce_loss == pytest.approx(float(expected), rel=1e-5)
    with torch.no_grad():
        b.model.embed_tokens.weight.zero_()  # the front half of B plays no part
    assert stitched_loss((a, A_HOOK), up, (b, B_HOOK), tokens).ce_loss == pytest.approx(found.ce_loss, rel=1e-6)


def test_batches_pool_and_special_tokens_do_not_count(monkeypatch):
    a, b, (up, _), tokens = model(SMALL, 2), model(LARGE, 3), maps(), blocks()
    whole = stitched_loss((a, A_HOOK), up, (b, B_HOOK), tokens)
    tokens[:, 3] = 7
    special = stitched_loss((a, A_HOOK), up, (b, B_HOOK), tokens, special=[7])
    plain = stitched_loss((a, A_HOOK), up, (b, B_HOOK), tokens)
    seven = tokens[:, 1:] == 7
    assert special.tokens == plain.tokens - seven.sum() < plain.tokens == whole.tokens
    ids = torch.from_numpy(tokens)
    from heredity.lm.hooks import replaced

    with torch.no_grad(), replaced(b, B_HOOK, lambda _: up(capture(a, A_HOOK, ids))):
        logits = b(input_ids=ids).logits[:, :-1]
    ce = torch.nn.functional.cross_entropy(logits.flatten(0, 1).double(), ids[:, 1:].flatten(), reduction="none")
    assert special.ce_loss == pytest.approx(float(ce.numpy()[~seven.flatten()].mean()), rel=1e-5)
    monkeypatch.setattr("heredity.stitch.stitched.chunk_rows", lambda *_: 32)
    again = stitched_loss((a, A_HOOK), up, (b, B_HOOK), tokens, special=[7])
    assert again.ce_loss == pytest.approx(special.ce_loss, rel=1e-6) and np.array_equal(again.hits, special.hits)


def test_models_come_back_as_they_were_and_misfits_are_refused():
    a, b, (up, down), tokens = model(SMALL, 2), model(LARGE, 3), maps(), blocks()
    b.train()
    stitched_loss((a, A_HOOK), up, (b, B_HOOK), tokens)
    assert b.training and not a.training
    with pytest.raises(ValueError, match="replacement at blocks.2.hook_resid_pre has shape"):
        stitched_loss((b, B_HOOK), lambda x: down(x), (b, B_HOOK), tokens)
    with pytest.raises(ValueError, match="must share a tokenizer"):
        stitched_loss((a, A_HOOK), up, (b, B_HOOK), tokens + 1)
    with pytest.raises(ValueError, match="hold nothing to predict"):
        stitched_loss((a, A_HOOK), up, (b, B_HOOK), tokens[:, :1])
    with pytest.raises(ValueError, match="hold nothing to predict"):
        stitched_loss((a, A_HOOK), up, (b, B_HOOK), tokens, special=range(VOCAB))
