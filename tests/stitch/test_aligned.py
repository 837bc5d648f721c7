"""Both models are read in one pass; different tokenizers are aligned where their tokens end alike, and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import processors
from torch.nn import functional

import tiny
from heredity.lm.hooks import HookPointError, capture
from heredity.lm.load import load_model, mistral_config, new_model
from heredity.stitch.affine import stitch_quality
from heredity.stitch.aligned import Points, aligned, aligned_texts, common_ends
from heredity.stitch.fit import fit
from heredity.stitch.moments import MomentStream, similarity
from heredity.study import ArchitectureConfig
from heredity.text.tokens import train_tokenizer

CONTEXT, D_A, D_B = 24, 24, 32
WORDS = ["the", "cat", "sat", "on", "a", "mat", "while", "every", "child", "sang", "about", "trees", "and", "water"]
EMBEDDING, LATER = "hook_embed", "blocks.0.hook_resid_post"


def test_both_models_are_read_at_all_points_in_one_pass(tmp_path: Path):
    small, large = (load_model(tiny.save_tiny_model(tmp_path / str(seed), seed=seed)) for seed in (0, 1))
    known = min(model.get_input_embeddings().num_embeddings for model in (small, large))
    blocks = np.random.default_rng(0).integers(1, known, (40, 16))
    blocks[:, 0] = 0
    places = ["blocks.0.hook_resid_post", "blocks.0.hook_resid_pre"]
    chunks = list(aligned(Points(small, places), Points(large, places[:1]), blocks, masked=[0]))
    kept = torch.from_numpy(blocks.ravel() != 0)
    for side, (model, names) in enumerate(((small, places), (large, places[:1]))):
        for point, name in enumerate(names):
            wanted = capture(model, name, torch.from_numpy(blocks)).flatten(0, 1)[kept]
            torch.testing.assert_close(torch.cat([chunk[side][point] for chunk in chunks]), wanted)
    stream = MomentStream()
    for a, b in aligned(Points(small, places), Points(small, places), blocks):
        stream.add(a, b)
    np.testing.assert_allclose(np.diag(similarity(stream).svcca), 1, atol=1e-4)
    with pytest.raises(HookPointError, match="unknown"):
        next(aligned(Points(small, ["blocks.0.nothing"]), Points(large, places), blocks))


def texts(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, 40)) + f". {number}" for number in range(count)]


@pytest.fixture(scope="module")
def coarse() -> Any:
    return train_tokenizer(texts(60), 380)


@pytest.fixture(scope="module")
def fine() -> Any:
    return train_tokenizer(texts(60, seed=1), 275)


def model(tokenizer: Any, d_model: int, seed: int) -> Any:
    shape = ArchitectureConfig(d_model=d_model, d_mlp=32, n_layers=2, n_heads=4)
    return new_model(mistral_config(shape, len(tokenizer), 64, 0), seed).eval()


def told(tokenizer: Any, d_model: int, by_letter: torch.Tensor) -> Any:
    """A model whose embedding says with which letter a token ends; by_letter: [401, d_model]."""
    made = model(tokenizer, d_model, 0)
    pieces = [tokenizer.convert_ids_to_tokens(number)[-1] for number in range(len(tokenizer))]
    with torch.no_grad():
        made.get_input_embeddings().weight.copy_(by_letter[[min(ord(piece), 400) for piece in pieces]])
    return made


def spelled(tokenizer: Any, text: str) -> list[tuple[int, int]]:
    """(end, id) of the tokens of plain ASCII, put together from the tokens themselves."""
    ids, end, found = tokenizer.encode(text, add_special_tokens=False)[:CONTEXT], 0, []
    for number in ids:
        end += len(tokenizer.convert_ids_to_tokens(number))
        found.append((end, number))
    return found


def test_rows_are_aligned_where_both_tokenizers_have_read_the_same_letters(coarse, fine):
    models = model(coarse, D_A, 1), model(fine, D_B, 2)
    some = texts(30)
    ends = [[dict(spelled(tokenizer, text)) for text in some] for tokenizer in (coarse, fine)]
    common = [sorted(x.keys() & y.keys()) for x, y in zip(*ends, strict=True)]
    assert 100 < sum(map(len, common)) < sum(map(len, ends[0])) < sum(map(len, ends[1])) + 1
    points = [Points(made, [EMBEDDING, LATER]) for made in models]
    ((of_a, of_b),) = aligned_texts(points[0], coarse, points[1], fine, some, CONTEXT)
    for made, own, (vectors, later) in zip(models, ends, (of_a, of_b), strict=True):
        ids = [found[end] for found, places in zip(own, common, strict=True) for end in places]
        torch.testing.assert_close(vectors, made.get_input_embeddings().weight[ids])
        assert len(later) == len(ids)


def test_one_tokenizer_twice_gives_what_aligned_gives(coarse, monkeypatch):
    made, some = model(coarse, D_A, 1), texts(7)
    blocks = np.array([coarse.encode(text, add_special_tokens=False)[:CONTEXT] for text in some])
    points = Points(made, [EMBEDDING, LATER]), Points(model(coarse, D_B, 3), [LATER])
    expected = list(aligned(*points, blocks))
    found = list(aligned_texts(points[0], coarse, points[1], coarse, some, CONTEXT))
    monkeypatch.setattr("heredity.stitch.aligned.blocks_at_once", lambda _: 3)
    parts = list(aligned_texts(points[0], coarse, points[1], coarse, some, CONTEXT))
    assert len(parts) == 3
    for side in (0, 1):
        for point, wanted in enumerate(expected[0][side]):
            torch.testing.assert_close(found[0][side][point], wanted)
            torch.testing.assert_close(torch.cat([part[side][point] for part in parts]), wanted, atol=1e-5, rtol=1e-4)


def test_a_character_of_several_tokens_ends_with_the_last_of_them(coarse, fine):
    """Bytes of one character have one offset; within the context, only the whole character counts."""
    text = "日本 cat"
    own = coarse(text, return_offsets_mapping=True)
    assert [end for _, end in own["offset_mapping"]][:6] == [1, 1, 1, 2, 2, 2]
    made = model(coarse, D_A, 1)
    points = Points(made, [EMBEDDING]), Points(model(fine, D_B, 2), [EMBEDDING])
    rows = made.get_input_embeddings().weight
    for context, last in ((3, [2]), (5, [2]), (6, [2, 5])):
        (((x,), _),) = aligned_texts(points[0], coarse, points[1], fine, [text], context)
        torch.testing.assert_close(x, rows[[own["input_ids"][place] for place in last]])
    with pytest.raises(ValueError, match="0 of 2 positions end where"):
        list(aligned_texts(points[0], coarse, points[1], fine, [text], 2))


def test_common_ends_know_empty_tokens_and_shared_ends():
    a, b = np.array([-1, 3, 5, 5, 9]), np.array([3, 4, 5, -1, 8, 9, -1])
    i, j = common_ends(a, b)
    assert i.tolist() == [1, 3, 4] and j.tolist() == [0, 2, 5]
    assert [len(part) for part in common_ends(a[:1], b)] == [0, 0]


def test_what_a_tokenizer_puts_around_is_left_out_and_trimmed_offsets_are_not_believed(coarse):
    """Two tokens more in front, and offsets that leave white space out, as GPT-2's do."""
    around = train_tokenizer(texts(60), 380)
    around.backend_tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]),
        ]
    )
    text = "the cat \n\n  sat on"
    made = model(coarse, D_A, 1)
    assert around.encode(text) == [0, *coarse.encode(text)]
    trimmed = around(text, return_offsets_mapping=True)["offset_mapping"]
    assert any(start == end for start, end in trimmed[1:])
    ((of_a, of_b),) = aligned_texts(
        Points(made, [EMBEDDING]), coarse, Points(made, [EMBEDDING]), around, [text], CONTEXT
    )
    torch.testing.assert_close(of_a[0], made.get_input_embeddings().weight[coarse.encode(text)])
    torch.testing.assert_close(of_a[0], of_b[0])


def test_a_stitch_across_tokenizers_finds_what_both_models_know(coarse, fine):
    """Each embedding tells the last letter in vectors of its own, so a linear map exists where letters are the same."""
    generator = torch.Generator().manual_seed(0)
    of_a = functional.normalize(torch.randn(401, D_A, generator=generator), dim=1)
    of_b = of_a @ torch.randn(D_A, D_B, generator=generator)
    points = [Points(told(coarse, D_A, of_a), [EMBEDDING]), Points(told(fine, D_B, of_b), [EMBEDDING])]
    moments = []
    for some in (texts(40), texts(40, seed=5)):
        stream = MomentStream()
        for rows in aligned_texts(points[0], coarse, points[1], fine, some, CONTEXT):
            stream.add(*rows)
        moments.append(stream.pair(0, 0))
    fitted = fit(moments[0], "ridge", held_out=moments[1]).stitch
    assert stitch_quality(fitted, moments[1], 1.0).up.r2 > 0.99


def test_models_that_read_letters_learn_from_each_others_maps(coarse, fine):
    """Two random models of one layer and more: what they share is the text."""
    points = [Points(model(coarse, D_A, 1), [LATER]), Points(model(fine, D_B, 2), [LATER])]
    moments = []
    for some in (texts(120), texts(40, seed=5)):
        stream = MomentStream()
        for rows in aligned_texts(points[0], coarse, points[1], fine, some, CONTEXT):
            stream.add(*rows)
        moments.append(stream.pair(0, 0))
    found = stitch_quality(fit(moments[0], "ridge", held_out=moments[1]).stitch, moments[1], 1.0)
    assert found.up.r2 > 0.3 and found.down.r2 > 0.3


def test_slow_tokenizers_and_those_of_other_models_are_refused(coarse, fine):
    class Slow:
        pass

    small, large = Points(model(fine, D_A, 1), [EMBEDDING]), Points(model(coarse, D_B, 2), [EMBEDDING])
    slow: Any = Slow()
    with pytest.raises(ValueError, match="tokenizer B is a Slow, which gives no offsets"):
        list(aligned_texts(small, fine, large, slow, texts(2), CONTEXT))
    with pytest.raises(ValueError, match="the tokenizer gives token 3.., its MistralForCausalLM knows 275"):
        list(aligned_texts(small, coarse, large, coarse, texts(2), CONTEXT))
