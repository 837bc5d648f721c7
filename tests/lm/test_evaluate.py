from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from heredity.kernels.torch_forms import native_bfloat16
from heredity.lm import loss
from heredity.lm.evaluate import evaluate, unigram_accuracy
from heredity.lm.load import mistral_config, new_model
from heredity.lm.loss import dtype_of
from heredity.study import ArchitectureConfig

VOCAB = 83


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loss, "_CPU_LOGITS", 1)
    monkeypatch.setattr(loss, "_MIN_ROWS", 7)  # divides nothing here, so that chunks end in odd places


@pytest.fixture
def blocks() -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCAB, (10, 12))


def mistral() -> torch.nn.Module:
    model = new_model(mistral_config(ArchitectureConfig(d_model=32, d_mlp=48, n_heads=4), VOCAB, 64, 0), 0)
    with torch.no_grad():  # larger weights make predictions that differ from token to token
        model.lm_head.weight *= 20
    return model


def gemma2() -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.Gemma2Config(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        pad_token_id=None,
        final_logit_softcapping=0.5,
    )
    return transformers.Gemma2ForCausalLM(config)


@pytest.mark.parametrize("make", [mistral, gemma2])
def test_loss_and_accuracy_equal_those_of_the_library_in_float32(make, blocks: np.ndarray):
    model = make().eval()
    found = evaluate(model, blocks, batch_size=4, precision="float32")
    ids = torch.from_numpy(blocks)
    with torch.no_grad():
        out = model(input_ids=ids, labels=ids)
    assert found.ce_loss == pytest.approx(float(out.loss), rel=1e-6)
    right = out.logits[:, :-1].argmax(-1) == ids[:, 1:]
    assert found.accuracy == pytest.approx(float(right.double().mean()), abs=1e-12)
    assert found.hits.tolist() == right.sum(1).tolist()
    assert found.tokens == 110


def test_soft_capped_logits_are_not_taken_for_a_plain_product():
    assert loss.trunk_and_head(gemma2()) is None
    assert loss.trunk_and_head(mistral()) is not None


def test_result_does_not_depend_on_the_batch_size(blocks: np.ndarray):
    model = mistral()
    one, many = (evaluate(model, blocks, batch_size=size, precision="float32") for size in (1, 64))
    assert one.ce_loss == pytest.approx(many.ce_loss, rel=1e-6)
    assert one.hits.tolist() == many.hits.tolist()


def test_bf16_is_close_to_float32(blocks: np.ndarray):
    model = mistral()
    exact, rough = evaluate(model, blocks, precision="float32"), evaluate(model, blocks)
    assert rough.ce_loss == pytest.approx(exact.ce_loss, rel=0.01)
    assert (rough.ce_loss != exact.ce_loss) == native_bfloat16()


def test_bf16_is_taken_only_where_the_processor_multiplies_it(monkeypatch: pytest.MonkeyPatch):
    for native, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr("heredity.lm.loss.native_bfloat16", lambda native=native: native)
        assert dtype_of("bf16", torch.device("cpu")) is expected
        assert dtype_of("float32", torch.device("cpu")) is torch.float32


def test_a_uniform_model_costs_log_of_the_vocabulary(blocks: np.ndarray):
    model = mistral()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert evaluate(model, blocks, precision="float32").ce_loss == pytest.approx(np.log(VOCAB), rel=1e-6)


def test_a_model_that_copies_its_input_is_right_on_constant_text():
    model = mistral()
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.lm_head.weight.copy_(model.model.embed_tokens.weight)
    constant = np.repeat(np.arange(6)[:, None], 9, axis=1)
    found = evaluate(model, constant, precision="float32")
    assert found.accuracy == 1.0 and found.hits.tolist() == [8] * 6


def test_mode_of_the_model_is_put_back(blocks: np.ndarray):
    model = mistral().train()
    evaluate(model, blocks)
    assert model.training
    evaluate(model.eval(), blocks)
    assert not model.training


def test_blocks_with_nothing_to_predict_or_foreign_tokens_are_refused(blocks: np.ndarray):
    with pytest.raises(ValueError, match=r"shape \[10, 1\] hold nothing to predict"):
        evaluate(mistral(), blocks[:, :1])
    with pytest.raises(ValueError, match="hold token 83, the model knows 83"):
        evaluate(mistral(), np.full((1, 4), VOCAB))


def test_unigram_accuracy_is_the_share_of_the_most_frequent_training_token():
    blocks = np.array([[3, 1, 1, 2], [1, 0, 1, 5]])
    assert unigram_accuracy(np.array([2, 9, 0, 1]), blocks) == pytest.approx(3 / 6)
    with pytest.raises(ValueError, match="all zero"):
        unigram_accuracy(np.zeros(4), blocks)


def test_chunked_loss_and_its_gradients_equal_the_plain_ones():
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(shape, generator=generator) for shape in ((50, 16), (VOCAB, 16)))
    labels = torch.randint(0, VOCAB, (50,), generator=generator)
    results = []
    for chunked in (True, False):
        x, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        value = (
            loss.linear_cross_entropy(x, w, labels, torch.float32)
            if chunked
            else torch.nn.functional.cross_entropy(x @ w.T, labels)
        )
        (value * 3).backward()
        results.append((value.detach(), x.grad, w.grad))
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-7)


def test_chunked_loss_under_bf16_is_as_close_to_float32_as_autocast_is():
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(shape, generator=generator) for shape in ((300, 64), (VOCAB, 64)))
    labels = torch.randint(0, VOCAB, (300,), generator=generator)

    def gradients(kind: str) -> tuple[torch.Tensor, ...]:
        x, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=kind != "float32"):
            if kind == "chunked":
                value = loss.linear_cross_entropy(x, w, labels, torch.bfloat16)
            else:
                value = torch.nn.functional.cross_entropy((x @ w.T).float(), labels)
        value.backward()
        assert x.grad is not None and w.grad is not None
        return value.detach(), x.grad, w.grad

    exact, cast, ours = (gradients(kind) for kind in ("float32", "autocast", "chunked"))
    for e, c, o in zip(exact, cast, ours, strict=True):
        assert float((o - e).norm()) <= 1.1 * float((c - e).norm()) + 1e-4 * float(e.norm())


def test_frozen_parts_get_no_gradient():
    hidden, weight = torch.randn(9, 4, requires_grad=True), torch.randn(VOCAB, 4)
    loss.linear_cross_entropy(hidden, weight, torch.zeros(9, dtype=torch.int64), torch.float32).backward()
    assert hidden.grad is not None and weight.grad is None
