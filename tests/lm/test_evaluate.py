from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from heredity.kernels.torch_forms import native_bfloat16
from heredity.lm.evaluate import LinearCrossEntropy, dtype_of, evaluate, trunk_and_head, unigram_accuracy
from heredity.lm.load import mistral_config, new_model
from heredity.study import ArchitectureConfig

VOCAB = 83


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("heredity.lm.evaluate._CPU_LOGITS", 1)
    monkeypatch.setattr("heredity.lm.evaluate._MIN_ROWS", 7)  # divides nothing here, so that chunks end in odd places


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
    small = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, head_dim=8)
    small |= dict(vocab_size=VOCAB, num_key_value_heads=2, pad_token_id=None, final_logit_softcapping=0.5)
    return transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**small))


@pytest.mark.parametrize(("make", "plain"), [(mistral, True), (gemma2, False)])
def test_loss_and_accuracy_equal_those_of_the_library_in_float32(make, plain: bool, blocks: np.ndarray):
    model = make().eval()
    assert (trunk_and_head(model) is not None) == plain  # soft-capped logits are no plain product
    found = evaluate(model, blocks, batch_size=4, precision="float32")
    ids = torch.from_numpy(blocks)
    with torch.no_grad():
        out = model(input_ids=ids, labels=ids)
    assert found.ce_loss == pytest.approx(float(out.loss), rel=1e-6)
    right = out.logits[:, :-1].argmax(-1) == ids[:, 1:]
    assert found.accuracy == pytest.approx(float(right.double().mean()), abs=1e-12)
    assert found.hits.tolist() == right.sum(1).tolist()
    assert found.tokens == 110


def test_result_does_not_depend_on_the_batch_size_nor_on_the_mode(blocks: np.ndarray):
    model = mistral()
    one = evaluate(model.train(), blocks, batch_size=1, precision="float32")
    assert model.training, "the mode of the model is put back"
    many = evaluate(model.eval(), blocks, batch_size=64, precision="float32")
    assert not model.training
    assert one.ce_loss == pytest.approx(many.ce_loss, rel=1e-6)
    assert one.hits.tolist() == many.hits.tolist()


def test_bf16_is_close_to_float32(blocks: np.ndarray):
    model = mistral()
    exact, rough = evaluate(model, blocks, precision="float32"), evaluate(model, blocks)
    assert rough.ce_loss == pytest.approx(exact.ce_loss, rel=0.01)
    assert (rough.ce_loss != exact.ce_loss) == native_bfloat16()


def test_bf16_is_taken_only_where_the_processor_multiplies_it(monkeypatch: pytest.MonkeyPatch):
    for native, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr("heredity.lm.evaluate.native_bfloat16", lambda native=native: native)
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
    exact, ours = (gradients(kind, 50, 16) for kind in ("float32", "chunked float32"))
    for found, plain in zip(ours, exact, strict=True):
        torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-7)


def test_chunked_loss_under_bf16_is_as_close_to_float32_as_autocast_is():
    exact, cast, ours = (gradients(kind, 300, 64) for kind in ("float32", "autocast", "chunked"))
    for e, c, o in zip(exact, cast, ours, strict=True):
        assert float((o - e).norm()) <= 1.1 * float((c - e).norm()) + 1e-4 * float(e.norm())


def gradients(kind: str, rows: int, width: int) -> tuple[torch.Tensor, ...]:
    """Loss and its gradients by hidden states and weights, tripled."""
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(n, width, generator=generator).requires_grad_() for n in (rows, VOCAB))
    labels = torch.randint(0, VOCAB, (rows,), generator=generator)
    exact = "float32" in kind
    with torch.autocast("cpu", torch.bfloat16, enabled=not exact):
        if "chunked" in kind:
            value = LinearCrossEntropy.apply(x, w, labels, torch.float32 if exact else torch.bfloat16)
        else:
            value = torch.nn.functional.cross_entropy((x @ w.T).float(), labels)
    (value * 3).backward()
    assert x.grad is not None and w.grad is not None
    return value.detach(), x.grad, w.grad


def test_frozen_parts_get_no_gradient():
    hidden, weight = torch.randn(9, 4, requires_grad=True), torch.randn(VOCAB, 4)
    LinearCrossEntropy.apply(hidden, weight, torch.zeros(9, dtype=torch.int64), torch.float32).backward()
    assert hidden.grad is not None and weight.grad is None
