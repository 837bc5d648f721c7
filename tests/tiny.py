"""The smallest real things: a study of four models that runs in seconds, and models and SAEs saved in folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from heredity.study import ArchitectureConfig

HOOK = "blocks.0.mlp.hook_post"


def study_values(folder: Path, **changes: Any) -> dict[str, Any]:
    """A study over generated stories and two little corpora in `folder`; top-level tables replaced by `changes`."""
    write_corpora(folder)
    sae = {"activation": "topk", "k": 8, "expansion": 4, "tokens": 30_000, "continue_tokens": 10_000, "lr": 2e-3}
    small = {"batch_size": 8, "context_size": 32, "lr": 5e-3, "precision": "float32"}
    shape = {"d_model": 32, "d_mlp": 32, "n_heads": 4}
    return {
        "seed": 1,
        "hook_point": HOOK,
        "tokenizer": {"vocab_size": 320},
        "corpus": {
            "words": {"source": "local:words", "share": 0.5},
            "code": {"source": "local:code.jsonl", "share": 0.5},
            "sums": {"source": "local:sums"},
            "stories": {"source": "generated:stories", "max_bytes": 60_000},
        },
        "model": {
            "base": {"train": {"corpora": ["words", "code"], "tokens": 20_000} | shape | small},
            "sums": {"parent": "base", "corpora": ["sums"], "tokens": 8_000} | small,
            "stories": {"parent": "base", "corpora": ["stories"], "tokens": 8_000} | small,
            "both": {"merge": {"parents": ["sums", "stories"], "sweep_points": 3, "tolerance": 0.1}},
        },
        "sae": sae | {"batch_blocks": 16, "context_size": 16, "evaluation_tokens": 2_000},
        "lineage": {"tokens": 8_000},
        "report": {"tokens": 6_000, "features": 3, "contexts": 2},
        "evaluation": {"tokens": 2_000},
        "case": {"assignment": {"tokens": ["=", " ="]}, "nonsense": {"tokens": ["no such token"]}},
        **changes,
    }


def lineage_values(folder: Path) -> dict[str, Any]:
    """The study with every analysis of a lineage: three instruments, shifts, newness, cases and explanations."""
    values = study_values(
        folder,
        paper="tracking",
        controls={"shifts": True, "newness": 3_000, "passes": 1, "resamples": 100},
        explain={"features": 24, "drop": 0.05},
        lineage={"tokens": 4_000},
        report={"tokens": 3_000, "features": 3, "contexts": 2},
        verdicts={"examine": 6},
        direction={"code": {"from_corpora": ["code", "words"]}},
        evaluation={"tokens": 2_000, "merge_methods": True},
    )
    values["sae"] |= {"instruments": ["parent", "independent", "joint"], "tokens": 16_000, "continue_tokens": 5_000}
    return values


def write_corpora(folder: Path) -> None:
    """Three little corpora of local files: text, JSON lines and a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = ["the cat", "a dog", "my friend", "one bird", "this child"]
    deeds = ["sat on", "ran to", "looked at", "slept near", "sang about"]
    places = ["the mat", "a tree", "the old house", "some water", "the long road"]
    for name in ("words", "sums"):
        (folder / name).mkdir(exist_ok=True)
    code = []
    for i in range(160):
        text = " ".join(f"{kinds[i * j % 5]} {deeds[(i + j) % 5]} {places[(i + 2 * j) % 5]}." for j in range(12))
        (folder / "words" / f"{i}.txt").write_text(f"{text} {i}")
        text = f"def f{i}(x):\n    y = x + {i}\n    if y > {i % 7}:\n        y = y * 2\n    return y\n" * 3
        code.append(json.dumps({"text": text}))
    (folder / "code.jsonl").write_text("\n".join(code))
    for i in range(120):
        lines = [f"{a} plus {i % 9} = {a + i % 9};" for a in range(i % 11, i % 11 + 14)]
        (folder / "sums" / f"{i}.txt").write_text("\n".join(lines) + f"\nend {i}\n")


def toml(values: dict[str, Any], path: Path) -> Path:
    """The study as a file."""
    import tomli_w

    path.write_text(tomli_w.dumps(values))
    return path


def tiny_model(
    seed: int = 0, vocab: int = 300, d_model: int = 32, d_mlp: int = 48, layers: int = 1, end: int = 0
) -> Any:
    """A random Mistral."""
    from heredity.lm.load import mistral_config, new_model

    shape = ArchitectureConfig(d_model=d_model, d_mlp=d_mlp, n_layers=layers, n_heads=4)
    return new_model(mistral_config(shape, vocab, 64, end), seed).eval()


def save_tiny_model(
    folder: Path,
    seed: int = 0,
    d_model: int = 16,
    text: str = "the cat sat on the mat = 3; x = y + 1\n",
    layers: int = 1,
) -> Path:
    """A random Mistral with a tokenizer, as a Hugging Face folder."""
    from heredity.lm.load import save_model
    from heredity.text.tokens import train_tokenizer

    tokenizer = train_tokenizer([text] * 50 + [chr(code) for code in range(32, 127)], 300)
    model = tiny_model(seed, len(tokenizer), d_model, 2 * d_model, layers, tokenizer.eos_token_id)
    save_model(model, tokenizer, folder)
    return folder


def random_sae(activation: Any, d_in: int = 12, d_sae: int = 40, k: int = 5, seed: int = 0) -> Any:
    """An SAE with something in every parameter."""
    from heredity.sae.model import new_sae

    generator = torch.Generator().manual_seed(seed)
    sae = new_sae(d_in, d_sae, activation, k, generator)
    sae.W_enc += 0.1 * torch.randn(d_in, d_sae, generator=generator)
    sae.b_enc.copy_(0.1 * torch.randn(d_sae, generator=generator))
    sae.b_dec.copy_(torch.randn(d_in, generator=generator))
    assert (sae.threshold is None) == (activation in ("relu", "topk"))
    if sae.threshold is not None:
        sae.threshold.copy_(0.3 if activation == "batchtopk" else 0.6 * torch.rand(d_sae, generator=generator))
    return sae


def save_tiny_sae(folder: Path, d_in: int = 32, seed: int = 0, **metadata: Any) -> Path:
    """A random topk SAE in SAELens' format."""
    from heredity.sae.formats import write_sae
    from heredity.sae.model import new_sae

    sae = new_sae(d_in, 4 * d_in, "topk", 4, torch.Generator().manual_seed(seed))
    write_sae(sae, folder, {"hook_name": HOOK, "model_name": "tiny", **metadata})
    return folder


def command(*words: object, code: int = 0) -> Any:
    """Run `heredity WORDS` in this process, check how it ended, and return what it printed."""
    from typer.testing import CliRunner

    from heredity.cli import app

    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, (result.output, result.stderr, result.exception)
    return result


def run_study(path: Path, runs: Path) -> None:
    """Run a study file whole."""
    command("run", path, "--runs", runs)


def tiny_tokenizer() -> Any:
    """A byte-level tokenizer as studies train them."""
    from heredity.text.tokens import train_tokenizer

    return train_tokenizer(["a tiny text about nothing"] * 20, 280)


def sampler(blocks: Any) -> Any:
    """A sampler over these token blocks [n, context]."""
    from heredity.text.tokens import BlockSampler, PackedTokens

    ends = np.array([0, blocks.size], np.int64)
    return BlockSampler({"text": PackedTokens(blocks.ravel(), ends)}, blocks.shape[1], seed=0)
