"""Published settings of "Transferring (Linear) Features Across Language Models With Model Stitching" (Chen, Merullo,
Stolfo and Pavlick 2025, arXiv 2506.06609)."""

from __future__ import annotations

from heredity.papers.published import Published as P

_PAIRS = (
    "EleutherAI/pythia-70m-deduped; EleutherAI/pythia-160m-deduped",
    "openai-community/gpt2; openai-community/gpt2-medium",
    "google/gemma-2-2b; google/gemma-2-9b",
)
SETTINGS = (
    P("stitch.models", _PAIRS, "table 1", "Pythia 70M and 160M, GPT-2 small and medium, Gemma 2 2B and 9B"),
    P("stitch.corpora", ("hub:Skylion007/openwebtext",), "appendix A", "OpenWebText"),
    P("stitch.tokens", (92_160_000,), "appendix A", "180,000 texts of 512 tokens"),
    P("stitch.context_size", (512, 128), "appendix A", "512 (Gemma 128)"),
    P("stitch.held_out", (512_000,), "appendix A", "1,000 texts of 512 tokens"),
    P("stitch.target_hook_point", ("by SVCCA",), "appendix A.1"),
    P("stitch.alpha", (1.0,), "appendix A.2"),
    P("stitch.method", ("published",), "appendix A", "descent by Adam"),
    P("stitch.adam.lr", (1e-4,), "appendix A"),
    P("stitch.adam.epochs", (2,), "appendix A"),
    P("stitch.adam.batch_tokens", (5120,), "table 3", "5,120, from 200 million tokens in 36,000 steps"),
    P("sae.activation", ("topk",), "appendix D"),
    P("sae.k", (64, 32), "appendix D", "64 (GPT-2 32)"),
    P("stitch.widths", ((4096, 8192, 16_384, 32_768, 65_536),), "appendix D"),
    P("sae.tokens", (4_000_000_000, 2_000_000_000), "appendix D", "4 billion in 120,000 steps (GPT-2 2 billion)"),
    P("sae.lr", (1e-4,), "appendix D"),
    P("sae.decay", (False,), "appendix D"),
    P("sae.warm_up", (0.0,), "appendix D", "none: the rate is constant"),
    P("sae.subtract_mean", (False,), "equation 4"),
    P("sae.encoder_start", ("transpose",), "appendix D"),
    P("sae.resample_every", (0,), "appendix D", "no auxiliary loss"),
    P("sae.normalize", (False,), "appendix D"),
    P("stitch.arms", ("random, transferred",), "appendix D"),
    P("stitch.probes.tasks", ("8 sets of SAEBench",), "figure 9"),
    P("stitch.probes.sizes", ((1, 2, 5, 10, 20, 50),), "section 3.2"),
    P("stitch.steering.prompts", (163,), "section 4", "163 of IFEval"),
    P("stitch.features.rewrites", (5,), "appendix H"),
)
