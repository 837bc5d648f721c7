"""Both models are read in one pass; tokenizers are aligned where their tokens end alike; stitched models go on from
each other's front, through the identity as the model itself does, and through anything else as the map says."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import processors
from torch.nn import functional

import tiny
from heredity.lm.evaluate import evaluate
from heredity.lm.hooks import HookPointError, capture, replaced
from heredity.lm.load import load_model, mistral_config, new_model
from heredity.lm.reading import Reading, read_as
from heredity.stitch.affine import Affine, MomentStream, similarity, stitch_quality
from heredity.stitch.aligned import Points, aligned, aligned_texts, common_ends, stitched_loss, stitched_losses
from heredity.stitch.fit import fit
from heredity.study import ArchitectureConfig
from heredity.text.tokens import train_tokenizer
from stitch.test_affine import random

CONTEXT, D_A, D_B = 24, 24, 32
WORDS = ["the", "cat", "sat", "on", "a", "mat", "while", "every", "child", "sang", "about", "trees", "and", "water"]
EMBEDDING, LATER = "hook_embed", "blocks.0.hook_resid_post"


def model(known: int, d_model: int, seed: int, n_layers: int = 2) -> Any:
    shape = ArchitectureConfig(d_model=d_model, d_mlp=32, n_layers=n_layers, n_heads=4)
    return new_model(mistral_config(shape, known, 64, 0), seed).eval()


def test_both_models_are_read_at_all_points_in_one_pass(tmp_path: Path):
    small, large = (load_model(tiny.save_tiny_model(tmp_path / str(seed), seed=seed)) for seed in (0, 1))
    known = min(model.get_input_embeddings().num_embeddings for model in (small, large))
    blocks = np.random.default_rng(0).integers(1, known, (40, 16))
    blocks[:, 0] = 0
    places = ["blocks.0.hook_resid_post", "blocks.0.hook_resid_pre"]
    chunks = list(aligned(Points(small, places), Points(large, places[:1]), blocks, masked=[0]))
    kept = torch.from_numpy(blocks.ravel() != 0)
    for side, (read, names) in enumerate(((small, places), (large, places[:1]))):
        for point, name in enumerate(names):
            wanted = capture(read, name, torch.from_numpy(blocks)).flatten(0, 1)[kept]
            torch.testing.assert_close(torch.cat([chunk[side][point] for chunk in chunks]), wanted)
    stream = MomentStream().extend(aligned(Points(small, places), Points(small, places), blocks))
    np.testing.assert_allclose(np.diag(similarity(stream)[0]), 1, atol=1e-4)
    with pytest.raises(HookPointError, match="unknown"):
        next(aligned(Points(small, ["blocks.0.nothing"]), Points(large, places), blocks))


# -- across tokenizers ------------------------------------------------------------------------------------------------


def texts(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, 40)) + f". {number}" for number in range(count)]


@pytest.fixture(scope="module")
def coarse() -> Any:
    return train_tokenizer(texts(60), 380)


@pytest.fixture(scope="module")
def fine() -> Any:
    return train_tokenizer(texts(60, seed=1), 275)


def points_of(coarse: Any, fine: Any, *places: str) -> tuple[Points, Points]:
    return Points(model(len(coarse), D_A, 1), places), Points(model(len(fine), D_B, 2), places)


def told(tokenizer: Any, by_letter: torch.Tensor) -> Points:
    """A model whose embedding says with which letter a token ends; by_letter: [401, d_model]."""
    made = model(len(tokenizer), by_letter.shape[1], 0)
    pieces = [tokenizer.convert_ids_to_tokens(number)[-1] for number in range(len(tokenizer))]
    with torch.no_grad():
        made.get_input_embeddings().weight.copy_(by_letter[[min(ord(piece), 400) for piece in pieces]])
    return Points(made, [EMBEDDING])


def spelled(tokenizer: Any, text: str) -> dict[int, int]:
    """Ids of the tokens of plain ASCII by their end, put together from the tokens themselves."""
    ids, end, found = tokenizer.encode(text, add_special_tokens=False)[:CONTEXT], 0, {}
    for number in ids:
        end += len(tokenizer.convert_ids_to_tokens(number))
        found[end] = number
    return found


def test_rows_are_aligned_where_both_tokenizers_have_read_the_same_letters(coarse, fine):
    points, some = points_of(coarse, fine, EMBEDDING, LATER), texts(30)
    ends = [[spelled(tokenizer, text) for text in some] for tokenizer in (coarse, fine)]
    common = [sorted(x.keys() & y.keys()) for x, y in zip(*ends, strict=True)]
    assert 100 < sum(map(len, common)) < sum(map(len, ends[0])) < sum(map(len, ends[1])) + 1
    (found,) = aligned_texts(points[0], coarse, points[1], fine, some, CONTEXT)
    for (made, _), own, (vectors, later) in zip(points, ends, found, strict=True):
        ids = [tokens[end] for tokens, places in zip(own, common, strict=True) for end in places]
        torch.testing.assert_close(vectors, made.get_input_embeddings().weight[ids])
        assert len(later) == len(ids)


@pytest.mark.parametrize("rules", [Reading(), Reading(prefix=0, skip=2, outliers=1.05)])
def test_one_tokenizer_twice_gives_what_aligned_gives(coarse, monkeypatch, rules):
    """By the same rules of reading: behind a prefix, without first positions and large vectors."""
    some = texts(7)
    blocks = np.array([coarse.encode(text, add_special_tokens=False)[:CONTEXT] for text in some])
    points = Points(model(len(coarse), D_A, 1), [EMBEDDING, LATER]), Points(model(len(coarse), D_B, 3), [LATER])
    (everything,) = aligned(*points, blocks)
    for side in points:
        read_as(side.model, rules)
    (expected,) = aligned(*points, blocks)
    assert len(expected[0][0]) == len(everything[0][0]) if rules == Reading() else (7 < len(expected[0][0]) < 7 * 22)
    (found,) = aligned_texts(points[0], coarse, points[1], coarse, some, CONTEXT)
    if rules.outliers:  # a median is that of a forward pass
        return
    monkeypatch.setattr("heredity.stitch.aligned.blocks_at_once", lambda _: 3)
    parts = list(aligned_texts(points[0], coarse, points[1], coarse, some, CONTEXT))
    assert len(parts) == 3
    for side in (0, 1):
        for point, wanted in enumerate(expected[side]):
            torch.testing.assert_close(found[side][point], wanted)
            torch.testing.assert_close(torch.cat([part[side][point] for part in parts]), wanted, atol=1e-5, rtol=1e-4)


def test_a_character_of_several_tokens_ends_with_the_last_of_them(coarse, fine):
    """Bytes of one character have one offset; within the context, only the whole character counts."""
    text, points = "日本 cat", points_of(coarse, fine, EMBEDDING)
    own = coarse(text, return_offsets_mapping=True)
    assert [end for _, end in own["offset_mapping"]][:6] == [1, 1, 1, 2, 2, 2]
    rows = points[0].model.get_input_embeddings().weight  # type: ignore[operator]
    for context, last in ((3, [2]), (5, [2]), (6, [2, 5])):
        (((x,), _),) = aligned_texts(points[0], coarse, points[1], fine, [text], context)
        torch.testing.assert_close(x, rows[[own["input_ids"][place] for place in last]])
    with pytest.raises(ValueError, match="0 of 2 positions end where"):
        list(aligned_texts(points[0], coarse, points[1], fine, [text], 2))


def test_common_ends_know_empty_tokens_and_shared_ends():
    a, b = np.array([-1, 3, 5, 5, 9]), np.array([3, 4, 5, -1, 8, 9, -1])
    assert [part.tolist() for part in common_ends(a, b)] == [[1, 3, 4], [0, 2, 5]]
    assert [len(part) for part in common_ends(a[:1], b)] == [0, 0]


def test_what_a_tokenizer_puts_around_is_left_out_and_trimmed_offsets_are_not_believed(coarse):
    """One token more in front, and offsets that leave white space out, as GPT-2's do."""
    around = train_tokenizer(texts(60), 380)
    template = processors.TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    around.backend_tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), template])
    text, point = "the cat \n\n  sat on", Points(model(len(coarse), D_A, 1), [EMBEDDING])
    assert around.encode(text) == [0, *coarse.encode(text)]
    trimmed = around(text, return_offsets_mapping=True)["offset_mapping"]
    assert any(start == end for start, end in trimmed[1:])
    ((of_a, of_b),) = aligned_texts(point, coarse, point, around, [text], CONTEXT)
    torch.testing.assert_close(of_a[0], point.model.get_input_embeddings().weight[coarse.encode(text)])  # type: ignore[operator]
    torch.testing.assert_close(of_a[0], of_b[0])


@pytest.mark.parametrize("known", [True, False])
def test_a_stitch_across_tokenizers_finds_what_both_models_know(coarse, fine, known):
    """Each embedding tells the last letter in vectors of its own, so that a linear map exists where letters are the
    same; two random models of a layer share the text alone."""
    of_a = functional.normalize(random(401, D_A, seed=0), dim=1)
    letters = of_a, of_a @ random(D_A, D_B, seed=1)
    points = [told(coarse, letters[0]), told(fine, letters[1])] if known else points_of(coarse, fine, LATER)
    fitted, held = (
        MomentStream().extend(aligned_texts(points[0], coarse, points[1], fine, some, CONTEXT)).pair()
        for some in (texts(40 if known else 120), texts(40, seed=5))
    )
    found = stitch_quality(fit(fitted, "ridge", held_out=held).stitch, held)
    assert found.up.r2 > (0.99 if known else 0.3) and (known or found.down.r2 > 0.3)


def test_slow_tokenizers_and_those_of_other_models_are_refused(coarse, fine):
    class Slow:
        pass

    small, large = Points(model(len(fine), D_A, 1), [EMBEDDING]), Points(model(len(coarse), D_B, 2), [EMBEDDING])
    slow: Any = Slow()
    with pytest.raises(ValueError, match="tokenizer B is a Slow, which gives no offsets"):
        list(aligned_texts(small, fine, large, slow, texts(2), CONTEXT))
    with pytest.raises(ValueError, match="the tokenizer gives token 3.., its MistralForCausalLM knows 275"):
        list(aligned_texts(small, coarse, large, coarse, texts(2), CONTEXT))


# -- stitched models --------------------------------------------------------------------------------------------------

VOCAB, SMALL, LARGE = 90, 16, 24
A_HOOK, B_HOOK = "blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre"


@cache
def _louder(d_model: int, n_layers: int) -> dict[str, torch.Tensor]:
    """Fresh weights are too small to tell models apart."""
    state = model(VOCAB, d_model, d_model, n_layers).state_dict()
    return {name: weight * (6 if weight.ndim == 2 else 1) for name, weight in state.items()}


def places() -> tuple[tuple[Any, str], tuple[Any, str]]:
    made = []
    for d_model, n_layers, hook in ((SMALL, 2, A_HOOK), (LARGE, 3, B_HOOK)):
        fresh = model(VOCAB, d_model, d_model, n_layers)
        fresh.load_state_dict(_louder(d_model, n_layers))
        made.append((fresh, hook))
    return made[0], made[1]


def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCAB, (9, 16))


def maps() -> tuple[Affine, Affine]:
    """From 16 to 24 dimensions, and the exact way back."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.linalg.qr(torch.randn(LARGE, SMALL, generator=generator)).Q.T
    bias = torch.randn(LARGE, generator=generator)
    return Affine(weight, bias), Affine(weight.T.contiguous(), -bias @ weight.T)


def test_the_identity_on_one_model_is_the_model_itself():
    a, _ = places()
    found, own = stitched_loss(a, lambda x: x, a, tokens()), evaluate(a[0], tokens(), precision="float32")
    assert found.ce_loss == pytest.approx(own.ce_loss, rel=1e-6)
    assert found.accuracy == own.accuracy and found.tokens == own.tokens and np.array_equal(found.hits, own.hits)


def test_four_ways_of_two_models():
    (a, b), (up, down) = places(), maps()
    found = {way: own.ce_loss for way, own in stitched_losses(a, b, up, down, tokens()).items()}
    assert list(found) == ["source", "target", "up", "down", "source_round_trip", "target_round_trip"]
    for name, (whole, _) in (("source", a), ("target", b)):
        assert found[name] == pytest.approx(evaluate(whole, tokens(), precision="float32").ce_loss, rel=1e-6)
    # Nothing of A is lost in the larger space; most of B is in the smaller one.
    assert found["source_round_trip"] == pytest.approx(found["source"], rel=1e-5)
    assert abs(found["target_round_trip"] - found["target"]) > 0.02
    apart = stitched_losses(a, b, up, down, tokens()[:4], apart=(tokens()[4:], ()))
    assert list(apart) == ["source", "target", "source_round_trip", "target_round_trip"]
    assert apart["target"].ce_loss == pytest.approx(evaluate(b[0], tokens()[4:], precision="float32").ce_loss, rel=1e-6)
    assert found["up"] == stitched_loss(a, up, b, tokens()).ce_loss
    assert found["down"] == stitched_loss(b, down, a, tokens()).ce_loss


def test_the_back_half_reads_the_image_of_the_front_and_nothing_else():
    """Against the layers called one by one."""
    (a, b), (up, _), ids = places(), maps(), torch.from_numpy(tokens())
    back = b[0].model
    with torch.no_grad():
        x = up(capture(*a, ids))
        x = back.layers[2](x, position_embeddings=back.rotary_emb(x, torch.arange(16)[None]), attention_mask=None)
        logits = b[0].lm_head(back.norm(x))[:, :-1]
    expected = functional.cross_entropy(logits.flatten(0, 1).double(), ids[:, 1:].flatten())
    found = stitched_loss(a, up, b, tokens())
    assert found.ce_loss == pytest.approx(float(expected), rel=1e-5)
    with torch.no_grad():
        back.embed_tokens.weight.zero_()  # the front half of B plays no part
    assert stitched_loss(a, up, b, tokens()).ce_loss == pytest.approx(found.ce_loss, rel=1e-6)


def test_batches_pool_and_special_tokens_do_not_count(monkeypatch):
    (a, b), (up, _), blocks = places(), maps(), tokens()
    blocks[:, 3] = 7
    loss = partial(stitched_loss, a, up, b, blocks, special=[7])
    special, ids, seven = loss(), torch.from_numpy(blocks), blocks[:, 1:] == 7
    assert special.tokens == stitched_loss(a, up, b, blocks).tokens - seven.sum() == 9 * 15 - seven.sum()
    with torch.no_grad(), replaced(*b, lambda _: up(capture(*a, ids))):
        logits = b[0](input_ids=ids).logits[:, :-1]
    ce = functional.cross_entropy(logits.flatten(0, 1).double(), ids[:, 1:].flatten(), reduction="none")
    assert special.ce_loss == pytest.approx(float(ce.numpy()[~seven.flatten()].mean()), rel=1e-5)
    monkeypatch.setattr("heredity.stitch.aligned.chunk_rows", lambda *_: 32)
    again = loss()
    assert again.ce_loss == pytest.approx(special.ce_loss, rel=1e-6) and np.array_equal(again.hits, special.hits)


def test_models_come_back_as_they_were_and_misfits_are_refused():
    (a, b), (up, down) = places(), maps()
    b[0].train()
    stitched_loss(a, up, b, tokens())
    assert b[0].training and not a[0].training
    with pytest.raises(ValueError, match="replacement at blocks.2.hook_resid_pre has shape"):
        stitched_loss(b, down, b, tokens())
    with pytest.raises(ValueError, match="must share a tokenizer"):
        stitched_loss(a, up, b, tokens() + 1)
    for blocks, special in ((tokens()[:, :1], ()), (tokens(), range(VOCAB))):
        with pytest.raises(ValueError, match="hold nothing to predict"):
            stitched_loss(a, up, b, blocks, special=special)
