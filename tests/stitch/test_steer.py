"""A direction that decides what a little model writes is found, held, and does it; a random one does not."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from heredity.stitch.affine import Affine, Moments
from heredity.stitch.steer import (
    NONE,
    Steering,
    change,
    clamped,
    generate,
    interleave,
    leveled,
    longest_pieces,
    steering_arms,
    text_classifier,
    transfer_gap,
    with_change,
)
from heredity.text.tokens import train_tokenizer
from tiny import save_tiny_model

HOOK = "blocks.0.hook_resid_post"


def test_the_direction_between_two_kinds_is_found_with_its_level():
    rng = np.random.default_rng(0)
    truth = np.array([3.0, 4.0, 0.0, 0.0]) / 5
    base = rng.standard_normal((4000, 4)) + 2
    wanted = base[:2000] + 6 * truth
    found = leveled(wanted.mean(0) - base[2000:].mean(0), wanted)
    assert found.direction @ truth > 0.999 and np.linalg.norm(found.direction) == pytest.approx(1)
    assert found.level == pytest.approx(6 + 2 * 7 / 5, abs=0.1)


def test_clamping_sets_the_level_and_leaves_the_rest():
    generator = torch.Generator().manual_seed(0)
    h, v = torch.randn(2, 5, 8, generator=generator) * 3, torch.randn(8, generator=generator)
    steering = leveled(v.numpy(), np.ones((1, 8)))
    found, unit = clamped(h, steering), v / v.norm()
    torch.testing.assert_close(found @ unit, torch.full((2, 5), steering.level))
    away = torch.eye(8) - torch.outer(unit, unit)
    torch.testing.assert_close(found @ away, h @ away, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(clamped(found, steering), found)


def test_how_far_clamping_moves_vectors_is_told_and_can_be_chosen():
    rng = np.random.default_rng(0)
    h = rng.standard_normal((500, 6)) @ rng.standard_normal((6, 6)) + 3
    mean, covariance = h.mean(0), np.cov(h, rowvar=False, bias=True)
    v = rng.standard_normal(6)

    def moved(steering: Steering) -> float:
        away = clamped(torch.from_numpy(h), steering).numpy() - h
        return float(np.sqrt((away**2).sum(1).mean()))

    steering = leveled(v, h[:20] + 5)
    assert change(steering, mean, covariance) == pytest.approx(moved(steering), rel=1e-5)
    strong, weak = (with_change(v, wanted, mean, covariance) for wanted in (20.0, 0.01))
    assert moved(strong) == pytest.approx(20.0, rel=1e-5) and strong.level > mean @ strong.direction
    assert weak.level == pytest.approx(mean @ weak.direction)
    assert moved(weak) < moved(weak._replace(level=weak.level + 0.1)), "held anywhere else it moves them further"
    with pytest.raises(ValueError, match="length 0.0"):
        leveled(np.zeros(3), np.ones((4, 3)))


@pytest.mark.parametrize(
    ("transferred", "native", "gap"), [(0, 0, 0), (0.2, 0, 1), (0.3, 0.6, 0.5), (0.9, 0.3, 1), (0, 0.4, 0)]
)
def test_the_gap_is_clipped(transferred: float, native: float, gap: float):
    assert transfer_gap(transferred, native) == pytest.approx(gap)


def test_kinds_of_text_are_learned_from_their_characters():
    prose = [f"the cat {i} sat on a mat and slept" for i in range(30)]
    code = [f"x_{i} = f(y[{i}]) + 1" for i in range(30)]
    classify = text_classifier(prose[:20] + code[:20], np.repeat([0, 1], 20))
    assert classify(prose[20:] + code[20:]).tolist() == [0] * 10 + [1] * 10
    assert classify([" \n", prose[0]]).tolist() == [NONE, 0]
    with pytest.raises(ValueError, match="at least 2 classes"):
        text_classifier(prose, np.zeros(30))


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A model whose head says "=" where a planted direction is high, and "m" where it is low; nothing else is read."""
    from heredity.lm.load import load_model
    from heredity.text.tokens import load_tokenizer

    folder: Path = save_tiny_model(tmp_path_factory.mktemp("models") / "a", d_model=16)
    model: Any = load_model(folder)
    tokenizer = load_tokenizer(str(folder))
    high, low = (tokenizer(mark)["input_ids"][0] for mark in "=m")
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[high] = 3 * truth()
        model.lm_head.weight[low] = -3 * truth()
    return model, tokenizer


def truth() -> torch.Tensor:
    direction = torch.zeros(16)
    direction[[2, 5, 11]] = torch.tensor([2.0, -1.0, 2.0]) / 3
    return direction


PROMPTS = ["the cat", "a", "x = y + 1", "on the mat = 3; the cat", "sat", "cat on cat"]


@pytest.fixture(scope="module")
def sure(writer: tuple[Any, Any]) -> tuple[Any, Any]:
    """The same without any chance: what is drawn is the likeliest token."""
    model = copy.deepcopy(writer[0])
    with torch.no_grad():
        model.lm_head.weight *= 1e5
    return model, writer[1]


def test_steering_decides_what_is_written_and_a_random_direction_does_not(writer: tuple[Any, Any]):
    rng, v = np.random.default_rng(1), truth().double().numpy()
    base = rng.standard_normal((500, 16)) * 0.1
    native, rest = leveled(4 * v, base + 2 * v), rng.standard_normal(16)
    random = leveled(rest - (rest @ v) * v, base + 2 * v)

    def written(steering: Steering) -> list[str]:
        return generate(*writer, PROMPTS, HOOK, steering, max_tokens=6)

    assert written(native) == ["=" * 6] * 6 and written(native._replace(level=-native.level)) == ["m" * 6] * 6
    assert not all(text.count("=") > text.count("m") for text in written(random))


def test_writing_follows_from_the_seed_and_leaves_chance_and_model_alone(writer: tuple[Any, Any]):
    state = torch.random.get_rng_state()
    first, again, other = (generate(*writer, PROMPTS, HOOK, max_tokens=8, seed=seed) for seed in (0, 0, 1))
    assert first == again != other and torch.equal(torch.random.get_rng_state(), state)


def test_a_text_is_that_of_whole_passes_with_the_direction_held(sure: tuple[Any, Any]):
    """Without padding to the longest prompt, without a cache of keys and values, and with the hook put in by hand."""
    model, tokenizer = sure
    steering = Steering(np.eye(16)[2], 0.01)
    found = generate(model, tokenizer, PROMPTS, HOOK, steering, max_tokens=8)
    handle = model.model.layers[0].register_forward_hook(
        lambda _m, _a, out: (clamped(out[0], steering), *out[1:]) if isinstance(out, tuple) else clamped(out, steering)
    )
    for prompt, text in zip(PROMPTS, found, strict=True):
        ids = tokenizer(prompt)["input_ids"]
        length = len(ids)
        with torch.no_grad():
            for _ in range(8):
                ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        assert text == tokenizer.decode(ids[length:])
    handle.remove()


def test_in_chat_format_a_prompt_is_a_message_of_the_template(sure: tuple[Any, Any]):
    model, tokenizer = sure[0], copy.copy(sure[1])
    tokenizer.chat_template = "{% for m in messages %}x {{ m.role }}={{ m.content }};{% endfor %}cat"
    steering = Steering(np.eye(16)[2], 0.01)
    found = generate(model, tokenizer, PROMPTS, HOOK, steering, max_tokens=8, prompt_tokens=2, chat=True)
    cut = [tokenizer.decode(tokenizer(prompt)["input_ids"][:2]) for prompt in PROMPTS]
    framed = [f"x user={prompt};cat" for prompt in cut]
    assert found == generate(model, tokenizer, framed, HOOK, steering, max_tokens=8)
    assert found != generate(model, tokenizer, cut, HOOK, steering, max_tokens=8)


def test_prompts_that_cannot_be_continued_are_refused(writer: tuple[Any, Any]):
    model, tokenizer = writer
    with pytest.raises(ValueError, match="prompt 1, '', has no token"):
        generate(model, tokenizer, ["a", ""], HOOK)
    with pytest.raises(ValueError, match="60 more exceed the model's context of 64; lower max_tokens"):
        generate(model, tokenizer, ["x " * 30], HOOK, max_tokens=60)
    assert len(generate(model, tokenizer, ["x " * 30], HOOK, max_tokens=60, prompt_tokens=3)) == 1


def moments(mean_a: np.ndarray, mean_b: np.ndarray) -> Moments:
    a, b = len(mean_a), len(mean_b)
    return Moments(100, mean_a, mean_b, np.eye(a) / 4, np.zeros((a, b)), np.eye(b))


def test_arms_are_those_of_two_models_that_a_map_joins_exactly():
    """B has what A has, through a map with an offset: the carried direction and its level are the native ones."""
    rng = np.random.default_rng(0)
    weight, offset = np.linalg.qr(rng.standard_normal((6, 4)))[0], rng.standard_normal(4)
    b = rng.standard_normal((2, 6))
    own, others = (moments(mean @ weight + offset, mean) for mean in b)
    arriving = Affine(torch.from_numpy(weight).float(), torch.from_numpy(offset).float())
    arms: Any = steering_arms(own, others, arriving, np.random.default_rng(1))
    assert tuple(arms) == ("none", "native", "carried", "random") and arms["none"] is None
    np.testing.assert_allclose(arms["carried"].direction, arms["native"].direction, atol=1e-6)
    assert arms["carried"].level == pytest.approx(arms["native"].level, abs=1e-6)
    assert arms["native"].level == pytest.approx(own.mean_a @ arms["native"].direction)
    moved = [change(arms[arm], others.mean_a, others.aa) for arm in ("native", "random")]
    assert moved[0] == pytest.approx(moved[1]) and abs(arms["random"].direction @ arms["native"].direction) < 0.95
    distance = np.linalg.norm(own.mean_a - others.mean_a)
    assert moved[0] == pytest.approx(np.hypot(distance, 0.5))


def test_prompts_are_taken_from_the_corpora_in_turn():
    assert interleave([["a", "b", "c"], ["x"], ["u", "v"]]) == ["a", "x", "u", "b", "v", "c"]


def test_pieces_are_of_one_document_each():
    texts = ["one two", "three four five six seven eight", "nine"]
    tokenizer = train_tokenizer(texts * 20, 320)
    eos = tokenizer.eos_token_id
    tokens = np.array([id for text in texts for id in (*tokenizer(text)["input_ids"], eos)], np.int64)
    found = longest_pieces(tokens[: len(tokens) // 5 * 5].reshape(-1, 5), tokenizer, [eos])
    assert len(found) == len(tokens) // 5
    assert all(any(piece in text for text in texts) for piece in found)
    assert longest_pieces(tokens[None], tokenizer, [eos]) == ["three four five six seven eight"]
