"""Training steps and encoders of the peers, with given weights, driven as their own training loops drive them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from paired import peer
from torch import Tensor

from heredity.sae.step import BETAS, Weights

STEPS = 1_000_000
"""Length of the training that peers are told: far away, so that no schedule ends during a measurement."""


class Trained(NamedTuple):
    """A peer's SAE in training."""

    step: Callable[[Tensor], object]
    """One training step on vectors [n, d_in]."""
    acts: Callable[[Tensor], Tensor]
    """Dense activations [n, d_sae] of the weights as they are."""
    loss: Callable[[Tensor], float]
    """Loss as ours is written: mean squared error over elements, plus λ times the mean sum of activations."""


class Setting(NamedTuple):
    """What ours and a peer have in common."""

    batch: int
    k: int
    l1: float
    """λ of a loss whose error is a mean over elements; peers sum over d_in and get d_in times it."""
    lr: float


def saelens(kind: str, weights: Weights, setting: Setting, autocast: bool = False) -> Trained:
    """SAELens' SAETrainer.step on its training SAE; its defaults but for Adam's rates and the L1 coefficient.

    All peers run where the weights are. autocast: its own setting, bfloat16 products on a GPU.
    """
    lens, config, trainers = peer("sae_lens"), peer("sae_lens.config"), peer("sae_lens.training.sae_trainer")
    (d_sae, d_in), device = weights.w_enc.shape, str(weights.w_enc.device)
    names = {"relu": "StandardTrainingSAE", "topk": "TopKTrainingSAE", "batchtopk": "BatchTopKTrainingSAE"}
    own = {"l1_coefficient": setting.l1 * d_in} if kind == "relu" else {"k": setting.k}
    own |= {"d_in": d_in, "d_sae": d_sae, "device": device}
    sae = getattr(lens, names[kind])(getattr(lens, f"{names[kind]}Config")(**own)).to(device)
    _fill({"W_enc": weights.w_enc.T, "b_enc": weights.b_enc, "W_dec": weights.w_dec, "b_dec": weights.b_dec}, sae)
    told = config.SAETrainerConfig(
        total_training_samples=STEPS * setting.batch,
        train_batch_size_samples=setting.batch,
        lr=setting.lr,
        lr_end=setting.lr,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        device=device,
        autocast=autocast,
    )
    trainer = trainers.SAETrainer(told, sae, iter(()))

    def step(x: Tensor) -> None:
        trainer.step(x)
        trainer.n_training_steps += 1

    def loss(x: Tensor) -> float:
        given = peer("sae_lens.saes.sae").TrainStepInput(
            sae_in=x,
            coefficients=trainer.get_coefficients(),
            dead_neuron_mask=None,
            n_training_steps=0,
            is_logging_step=False,
        )
        with torch.no_grad():
            return float(sae.training_forward_pass(given).loss) / d_in

    return Trained(step, _without_gradient(sae.encode), loss)


def dictionary_learning(kind: str, weights: Weights, setting: Setting) -> Trained:
    """dictionary_learning's trainers through `update`, as its trainSAE calls them."""
    d_sae, d_in = weights.w_enc.shape
    shared = {"steps": STEPS, "activation_dim": d_in, "dict_size": d_sae, "layer": 0, "lm_name": ""}
    shared |= {"device": str(weights.w_enc.device)}
    if kind == "relu":
        module = peer("dictionary_learning.trainers.standard")
        # No warm-ups: the measured steps are the same work, and the loss is the full one.
        trainer = module.StandardTrainer(
            **shared, lr=setting.lr, l1_penalty=setting.l1 * d_in, warmup_steps=0, sparsity_warmup_steps=None
        )
        center = "bias"
    else:
        module = peer("dictionary_learning.trainers.top_k")
        trainer = module.TopKTrainer(**shared, lr=setting.lr, k=setting.k, warmup_steps=0)
        center = "b_dec"
    named = {"encoder.weight": weights.w_enc, "encoder.bias": weights.b_enc, "decoder.weight": weights.w_dec.T}
    _fill({**named, center: weights.b_dec}, trainer.ae)
    # From 1 on: step 0 of its TopK trainer replaces b_dec.
    steps = iter(range(1, STEPS))

    def loss(x: Tensor) -> float:
        with torch.no_grad():
            return float(trainer.loss(x, step=0)) / d_in

    return Trained(lambda x: trainer.update(next(steps), x), _without_gradient(trainer.ae.encode), loss)


def sparsify(kind: str, weights: Weights, setting: Setting) -> Trained:
    """sparsify's SparseCoder with torch's Adam, in the order of its Trainer.fit: normalize, forward, project, step."""
    assert kind == "topk", "sparsify has no other activation of ours"
    sae = sparsify_coder(weights, setting.k)
    optimizer = torch.optim.Adam(sae.parameters(), lr=setting.lr, betas=BETAS)

    def step(x: Tensor) -> None:
        sae.set_decoder_norm_to_unit_norm()
        sae(x).fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()

    def loss(x: Tensor) -> float:
        with torch.no_grad():
            return float(sae(x).fvu * (x - x.mean(0)).square().sum() / x.numel())

    def acts(x: Tensor) -> Tensor:
        return _scattered(encode(x), len(weights.w_enc))

    encode = _without_gradient(sae.encode)
    return Trained(step, acts, loss)


def sparsify_coder(weights: Weights, k: int) -> Any:
    """A SparseCoder with these weights."""
    d_sae, d_in = weights.w_enc.shape
    module = peer("sparsify")
    sae = module.SparseCoder(d_in, module.SparseCoderConfig(num_latents=d_sae, k=k)).to(weights.w_enc.device)
    named = {"encoder.weight": weights.w_enc, "encoder.bias": weights.b_enc, "W_dec": weights.w_dec}
    _fill({**named, "b_dec": weights.b_dec}, sae)
    return sae


class Encoder(NamedTuple):
    """A peer's trained SAE."""

    encode: Callable[[Tensor], Any]
    """Its `encode` on vectors [n, d_in], whatever it returns, without gradients."""
    dense: Callable[[Any], Tensor]
    """Activations [n, d_sae] from what it returns."""


def encoder(package: str, kind: str, weights: Weights, k: int) -> Encoder:
    """The peer's SAE for inference with these weights; a jumprelu's threshold is −b_enc and its bias 0."""
    d_sae, d_in = weights.w_enc.shape
    if package == "sae-lens":
        lens = peer("sae_lens")
        name = {"relu": "StandardSAE", "topk": "TopKSAE", "jumprelu": "JumpReLUSAE"}[kind]
        own = {"k": k} if kind == "topk" else {}
        sae = getattr(lens, name)(getattr(lens, f"{name}Config")(d_in=d_in, d_sae=d_sae, **own)).eval()
        sae = sae.to(weights.w_enc.device)
        named = {"W_enc": weights.w_enc.T, "b_enc": weights.b_enc, "W_dec": weights.w_dec, "b_dec": weights.b_dec}
        if kind == "jumprelu":
            named |= {"b_enc": torch.zeros_like(weights.b_enc), "threshold": -weights.b_enc}
        _fill(named, sae)
        return Encoder(_without_gradient(sae.encode), lambda acts: acts)
    if package == "eai-sparsify":
        coder = sparsify_coder(weights, k)
        return Encoder(_without_gradient(coder.encode), lambda made: _scattered(made, d_sae))
    trained = dictionary_learning(kind, weights, Setting(batch=0, k=k, l1=0.0, lr=1e-4))
    return Encoder(trained.acts, lambda acts: acts)


def _scattered(made: Any, d_sae: int) -> Tensor:
    """sparsify's values and indices as dense activations."""
    return made.top_acts.new_zeros(len(made.top_acts), d_sae).scatter_(1, made.top_indices, made.top_acts)


PEERS = {
    "sae-lens": (saelens, "sae_lens"),
    "dictionary-learning": (dictionary_learning, "dictionary_learning"),
    "eai-sparsify": (sparsify, "sparsify"),
}
"""By package: what makes its SAE, and the module it is imported as."""


def _without_gradient(encode: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    def encoded(x: Tensor) -> Any:
        with torch.no_grad():
            return encode(x)

    return encoded


def _fill(named: dict[str, Tensor], module: torch.nn.Module) -> None:
    """Copy tensors into a module's parameters, all of them."""
    parameters = dict(module.named_parameters())
    assert set(named) == set(parameters), f"{sorted(parameters)} are not {sorted(named)}"
    with torch.no_grad():
        for name, tensor in named.items():
            parameters[name].copy_(tensor)
