"""Methods of merging by kinds of parents: is what `heredity merge` writes what mergekit writes?

Ours (linear, slerp, task arithmetic, TIES, from files, and in memory bit for bit the same) and every method of mergekit
followed through `heredity.lm.recipe` are compared with mergekit's own run of the same recipe, tensor by tensor, on tiny
random models. Where not all parents have all rows of the vocabulary, ours are compared with mergekit's of the rows that
all have, and beyond with the parent's that has them; recipes with `tokenizer: {source: union}`, which we add to them.

    python benchmarks/matrix_merges.py [KIND ...] [--json FILE] [--no-memory]

A cell is `right`, `refused` (reason below the table) or WRONG, also where head, type or vocabulary of the written
config are not those of its weights. Tolerance: 2⁻²² of a tensor's largest weight in float32, 2⁻⁸ in bfloat16. Left out
are elements of TIES whose change is exactly as large as the cut: which of equals are kept is the sorter's choice. Then
the peak memory of merging two models of 469 MiB by each of our methods, each in a process of its own; at most 1.3 times
one. The exit code is 1 for a WRONG cell and for more memory than that.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from heredity.lm.folders import merge_folders, merge_weights
from heredity.lm.load import load_model, quiet
from heredity.lm.merge import Mixing, merge_states
from heredity.lm.recipe import merge_recipe

VOCAB, LARGEST = 97, 1.3
OURS = {
    "linear": {"weights": [0.7, 0.4]},
    "slerp": {"t": 0.3},
    "task_arithmetic": {"weights": [0.6, 0.3]},
    "ties": {"weights": [0.5, 0.3], "density": 0.4},
}
BASE = ("task_arithmetic", "ties")
SHARED = {"nearswap": {"t": 0.1}, "sce": {"select_topk": 0.5}, "slerp": {"t": 0.3}}  # parameters for all models
EACH = {"weight": 0.4, "density": 0.6, "gamma": 0.05, "epsilon": 0.05}  # of each, where the method takes them
_SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
_SHAPE |= {"num_hidden_layers": 2, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 0, "eos_token_id": 0}
_TIED = {"tie_word_embeddings": True}
KINDS: dict[str, dict[str, Any]] = {  # what all parents have; of `second`, what the second one has besides
    "float32": {},
    "bfloat16": {"dtype": torch.bfloat16},
    "tied": _TIED,
    "gpt2": {"type": "gpt2"},
    "qwen2": {"type": "qwen2"},
    "gemma2": {"type": "gemma2", "head_dim": 8},
    "mixtral": {"type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    "tied + untied": {"second": {"own": True}, **_TIED},
    "padded rows": {"second": {"vocab": VOCAB + 31}},
    "added tokens": {"second": {"vocab": VOCAB + 3, "added": 3}, **_TIED},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kinds", nargs="*", help="default: all")
    parser.add_argument("--json", type=Path, help="also write the cells, with their reasons, here")
    parser.add_argument("--no-memory", action="store_true", help="leave the measurement of memory out")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    from mergekit.merge_methods.registry import registered_methods

    theirs = [method.spec.name for method in registered_methods()]
    columns = [*OURS, *(f"mergekit:{name}" for name in theirs)]
    start, rows = time.perf_counter(), {}
    for kind in chosen.kinds or KINDS:
        with tempfile.TemporaryDirectory() as folder, quiet():
            made(kind, Path(folder))
            rows[kind] = {column: cell(kind, column, Path(folder)) for column in columns}
        print(f"{kind:14}" + " ".join(f"{rows[kind][column][0]:7}" for column in columns), flush=True)
    print(f"{'':14}" + " ".join(f"{column.removeprefix('mergekit:')[:7]:7}" for column in columns))
    print(f"{'':14}ours, from files and in memory{'':3}through mergekit: {', '.join(theirs)}")
    counts = {kind: sum(one[0] == kind for row in rows.values() for one in row.values()) for kind in _KINDS}
    for kind, row in rows.items():
        for column, (found, why) in row.items():
            if why:
                print(f"{kind}, {column}: {found}: {why}")
    print(f"{len(rows)} kinds, {counts} in {time.perf_counter() - start:.0f} s")
    memory = {} if chosen.no_memory else peaks()
    if chosen.json:
        chosen.json.write_text(json.dumps({"cells": rows, "counts": counts, "memory": memory}, indent=1) + "\n")
    return int(counts["WRONG"] > 0 or any(ratio > LARGEST for ratio in memory.values()))


_KINDS = ("right", "refused", "WRONG")


def made(kind: str, folder: Path) -> None:
    """Write the base and two fine-tunes near it."""
    second = KINDS[kind].get("second", {})
    for seed, name in enumerate(("base", "a", "b")):
        own = KINDS[kind] | (second if name == "b" else {})
        model = random_model(
            {key: value for key, value in own.items() if key not in ("second", "dtype", "own", "added")}
        )
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in model.parameters():
                if seed:
                    weight.add_(0.02 * torch.randn(weight.shape, generator=generator))
        if own.get("own"):
            model.config.tie_word_embeddings = False
            head = model.get_input_embeddings().weight.detach()
            model.lm_head.weight = torch.nn.Parameter(head + 0.02 * torch.randn(head.shape, generator=generator))
        model.to(own.get("dtype", torch.float32)).save_pretrained(folder / name)
        tokenizer(own.get("added", 0)).save_pretrained(folder / name)


def random_model(own: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, vocab = own.get("type", "llama"), own.get("vocab", VOCAB)
    shape = {"vocab_size": vocab, **(_GPT2 if kind == "gpt2" else _SHAPE)}
    more = {key: value for key, value in own.items() if key not in ("type", "vocab")}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape | more))
    rows = model.get_input_embeddings().weight
    with torch.no_grad():  # wider vocabularies draw more numbers: make what all have the same
        for i, weight in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(i)
            size = (VOCAB, *weight.shape[1:]) if len(weight) == len(rows) else weight.shape
            weight[: size[0]].copy_(0.1 * torch.randn(size, generator=generator))
    return model


def tokenizer(added: int) -> Any:
    """One token a character."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"</s>": 0, "<unk>": 1} | {chr(code): code - 30 for code in range(32, 127)}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="<unk>")
    fast.add_tokens([f"<more{i}>" for i in range(added)], special_tokens=True)
    return fast


def recipe_for(method: str, folder: Path, dtype: str) -> dict[str, Any]:
    """A recipe for mergekit with numbers for every parameter that the method takes."""
    from mergekit.merge_methods import get

    spec = get(method).spec
    each = {parameter.name for parameter in spec.input_parameters}
    numbers = [{}, {}]
    if method in OURS:
        weights, density = OURS[method].get("weights", [0, 0]), OURS[method].get("density", 1.0)
        numbers = [{"weight": weight, "density": density} for weight in weights]
    own = [{key: value for key, value in {**EACH, **row}.items() if key in each} for row in numbers]
    models = [{"model": str(folder / name), "parameters": row} for name, row in zip("ab", own, strict=True)]
    if method in ("passthrough",):
        models = models[:1]
    base = str(folder / ("a" if method in ("slerp", "nearswap", "arcee_fusion") else "base"))
    recipe = {"merge_method": method, "models": models, "dtype": "float32", "out_dtype": dtype}
    recipe |= {"parameters": SHARED[method]} if method in SHARED else {}
    no_base = ("linear", "passthrough", "karcher", "multislerp", "nuslerp")
    return recipe if method in no_base else {**recipe, "base_model": base}


def by_mergekit(recipe: Mapping[str, Any], out: Path, cut: bool = False) -> dict[str, torch.Tensor]:
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    class Ordered(MergeConfiguration):
        def referenced_models(self) -> list[Any]:  # a set's order, which varies by process, and with it what is drawn
            return sorted(super().referenced_models(), key=lambda one: (one.model.path[-4:] != "base", one.model.path))

    options = MergeOptions(write_model_card=False, quiet=True, random_seed=0, unsafe_truncate_embeddings=cut)
    run_merge(Ordered.model_validate(recipe), str(out), options)
    return weights(out)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: one for file in sorted(folder.glob("*.safetensors")) for name, one in load_file(file).items()}


def cell(kind: str, column: str, folder: Path) -> tuple[str, str]:
    """Whether one merge is mergekit's, with the reason where it is not."""
    method, ours = column.removeprefix("mergekit:"), column in OURS
    dtype = str(KINDS[kind].get("dtype", torch.float32)).removeprefix("torch.")
    recipe, out, note = recipe_for(method, folder, dtype), folder / column, []
    try:
        wider = "vocab" in KINDS[kind].get("second", {})
        union = {"tokenizer": {"source": "union"}} if wider and not ours else {}
        expected = by_mergekit(recipe | union, folder / f"{column} by mergekit", wider and ours)
    except Exception as error:
        expected, note = {}, [_line(error)]
    try:
        if ours:
            base = str(folder / "base") if method in BASE else None
            merge_folders([str(folder / "a"), str(folder / "b")], out, method, base=base, **OURS[method])
        else:
            merge_recipe(recipe, out)
    except ValueError as error:
        return "refused", _line(error)
    except Exception as error:
        return "WRONG", f"{type(error).__name__}: {_line(error)}"
    if not expected:
        return "WRONG", f"mergekit refuses it: {note[0]}"
    found = weights(out)
    if ours and KINDS[kind].get("num_local_experts"):  # files hold experts apart, and mergekit's hold them stacked
        found, expected = (load_model(one).state_dict() for one in (out, folder / f"{column} by mergekit"))
    wrong = apart(kind, method, found, expected, folder, ours) or config_apart(out)
    if wrong is None and ours and kind not in ("mixtral", "bfloat16") and "second" not in KINDS[kind]:
        wrong = memory_apart(method, out, folder)
    return ("right", "") if wrong is None else ("WRONG", wrong)


def apart(
    kind: str, method: str, found: Mapping[str, Any], expected: Mapping[str, Any], folder: Path, ours: bool
) -> str | None:
    """How the child's tensors differ from mergekit's."""
    unit = 2**-8 if KINDS[kind].get("dtype") == torch.bfloat16 else 2**-22
    if missing := sorted(set(found) - set(expected)):
        return f"{missing[0]} is not in mergekit's"
    base, first, second = (weights(folder / name) for name in ("base", "a", "b"))
    for name, theirs in expected.items():
        if name not in found:
            same = name.startswith("lm_head") and KINDS[kind].get("tie_word_embeddings")
            if same:
                continue
            return f"{name} is missing"
        mine = found[name]
        if mine.dtype != theirs.dtype:
            return f"{name} is {mine.dtype}, mergekit's {theirs.dtype}"
        rows = min(len(mine), len(theirs))
        scale = unit * float(theirs.abs().max())
        off = (mine[:rows].float() - theirs[:rows].float()).abs()
        if ours and method == "ties" and name in base:
            off[at_the_cut(base[name][:rows], [state[name][:rows] for state in (first, second) if name in state])] = 0
        error = float(off.max()) if mine.numel() else 0.0
        if error > scale:
            return f"{name} differs by {error:.1e}, {error / scale * unit:.1e} of its largest weight"
        if ours and len(mine) > rows and not torch.equal(mine[rows:], second[name][rows : len(mine)]):
            return f"{name}: rows that only the second has are not the second's"
    return None


def at_the_cut(base: torch.Tensor, parents: list[torch.Tensor]) -> torch.Tensor:
    """Where a parent's change is as large as the least that is kept."""
    changes = [(parent.float() - base.float()).abs() for parent in parents]
    keep = max(1, int(OURS["ties"]["density"] * base.numel()))
    return torch.stack([change == change.flatten().sort(descending=True).values[keep - 1] for change in changes]).any(0)


def config_apart(out: Path) -> str | None:
    """How config.json belies the weights; that transformers reads the folder is part of it."""
    config, held = json.loads((out / "config.json").read_text()), weights(out)
    model = load_model(out)
    inside, outside = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    if any("lm_head" in name for name in held) and not torch.equal(inside, outside) and config["tie_word_embeddings"]:
        return "its head is its own, and config.json says tied"
    kind = str(next(iter(held.values())).dtype).removeprefix("torch.")
    if kind not in (config.get("dtype"), config.get("torch_dtype")):
        return f"its type is {kind}, and config.json says {config.get('dtype')}"
    return None


def memory_apart(method: str, out: Path, folder: Path) -> str | None:
    """How the merge in memory differs from that of files."""
    parents, base = [weights(folder / name) for name in "ab"], weights(folder / "base")
    merged, _ = merge_states(parents, method, base=base if method in BASE else None, **OURS[method])  # pyright: ignore[reportArgumentType]
    held = weights(out)
    wrong = next((name for name in merged if not torch.equal(merged[name], held[name])), None)
    return f"{wrong} differs between files and memory" if wrong else None


def peaks() -> dict[str, float]:
    """Peak memory of merging two models of 469 MiB by each method, over one model, in processes of their own."""
    ratios = {}
    with tempfile.TemporaryDirectory() as folder:
        size = {"n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 256}
        for seed, name in enumerate(("base", "a", "b")):
            from transformers import GPT2Config, GPT2LMHeadModel

            torch.manual_seed(seed)
            with quiet():
                GPT2LMHeadModel(GPT2Config(vocab_size=49_152, **size)).save_pretrained(Path(folder) / name)
            tokenizer(0).save_pretrained(Path(folder) / name)
        one = (Path(folder) / "a" / "model.safetensors").stat().st_size
        for method in OURS:
            words = [sys.executable, __file__, "--one", folder, method]
            run = subprocess.run(words, capture_output=True, text=True, check=True)
            before, most, seconds = map(float, run.stdout.split())
            ratios[method] = most / one
            print(
                f"{method}: peak {most / 2**20:.0f} MiB ({before / 2**20:.0f} before it) for two models of "
                f"{one / 2**20:.0f} MiB, {ratios[method]:.2f} x one, {seconds:.0f} s"
            )
    return ratios


def one_peak(folder: Path, method: str) -> None:
    """Merge, and print the peak memory of this process before and after, in bytes, and the seconds."""
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401 as any merge imports them

    before, start = peak(), time.perf_counter()
    own = OURS[method]
    mixing = Mixing(method, 2, own.get("t"), own.get("weights"), own.get("density", 0.5))  # pyright: ignore[reportArgumentType]
    merge_weights(
        [str(folder / name) for name in "ab"], folder / method, mixing, str(folder / "base") if method in BASE else None
    )
    print(before, peak(), time.perf_counter() - start)


def peak() -> int:
    """Peak resident memory of this process in bytes; getrusage would count what it was forked from."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one_peak(Path(sys.argv[2]), sys.argv[3])
    else:
        sys.exit(main())
