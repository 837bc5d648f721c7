"""Published settings of "Tracking Universal Features Through Fine-Tuning and Model Merging" (Horn and Elliott 2024,
arXiv 2410.12391), with the cards of its models and its code where the text says less."""

from __future__ import annotations

from heredity.papers.published import Published as P

_CARD = "model cards"
SETTINGS = (
    P("base.d_model", (512,), _CARD),
    P("base.d_mlp", (1024,), _CARD),
    P("base.n_layers", (1,), "section 3"),
    P("base.n_heads", (16,), _CARD),
    P("base.kv_heads", (8,), _CARD),
    P("base.tie_embeddings", (False,), _CARD),
    P("tokenizer", (32_000, "mistralai/Mistral-7B-v0.1"), _CARD, "mistralai/Mistral-7B-v0.1, 32,000 tokens"),
    P(
        *("base.corpora", ("hub:babylm, hub:stack-python",), "section 3.1"),
        "BabyLM 100M and a tenth of The Stack's Python, as many tokens of each",
    ),
    P(
        *("base.tokens", (1_006_800_000, "3 epochs"), "footnote 3, model cards"),
        "3 epochs of 335.6 million tokens (in the code 4)",
    ),
    P("base.lr", (6e-4,), _CARD),
    P("base.warmup_steps", (0,), _CARD),
    P("base.weight_decay", (0.1,), "code"),
    P("base.batch_size", (64,), "code"),
    P("base.context_size", (256,), "code"),
    P(
        *("finetune.corpora", ("hub:stack-lua; hub:tinystories",), "section 3.1"),
        "Lua of The Stack; TinyStories",
    ),
    P("finetune.tokens", ("1 epoch",), _CARD),
    P("finetune.lr", (2e-5,), _CARD),
    P("finetune.warmup_steps", (500,), _CARD),
    P("finetune.weight_decay", (0.01,), "code"),
    P("finetune.batch_size", (64,), "code"),
    P("finetune.context_size", (256,), "code"),
    P("merge.method", ("slerp",), "section 3.3"),
    P("merge.t", ("equilibrium", 0.58), "section 3.3", "equilibrium (0.58)"),
    P("hook_point", ("blocks.0.mlp.hook_post",), "section 3.2"),
    P("sae.instruments", ("independent",), "section 3.2"),
    P("sae.activation", ("relu",), "appendix B, equation 2"),
    P("sae.expansion", (16,), "appendix B"),
    P("sae.tokens", (15_000_000,), "appendix B"),
    P("sae.context_size", (24,), "appendix B"),
    P("sae.batch_blocks", (128,), "appendix B"),
    P("sae.mix", ("tokens",), "footnote 5", "tokens (uniform over the union)"),
    P("sae.lr", (1e-4,), "appendix B"),
    P("sae.decay", (False,), "appendix B"),
    P("sae.betas", ((0.9, 0.9999),), "appendix B"),
    P("sae.l1_coefficient", (3e-4,), "appendix B", "3e-4 (in the code 3e-3 for TinyStories)"),
    P("sae.subtract_mean", (True,), "appendix B, equation 1"),
    P("sae.encoder_start", ("kaiming",), "appendix B, by Bricken et al. 2023"),
    P("sae.resample_every", (0,), "footnote 4", "no dead features to treat"),
    P("sae.normalize", (False,), "appendix B"),
    P("lineage.tokens", (3_000_000,), "footnote 7"),
    P("lineage.threshold", (0.8,), "section 3.4"),
    P("report.case_tokens", (3_000_000,), "section 4.2.1", "3,000,000, of Python, English and Lua together"),
)
