"""The study of two stitched models, a child of one of them, and four stitches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiny

HOOK, TARGET_HOOK = "blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre"
WIDTH, K, CONTEXT, SEEN = 128, 8, 16, 3_000
CORPORA = ("code", "words", "sums")
STARTS = ["random", "transferred", "repaired", "geometry"]
SIZES = (1, 2, 5)


def values(folder: Path, **pair: Any) -> dict[str, Any]:
    """A small and a large model, a child of the small one, and stitches `pair`, `late`, `along` and `elsewhere`."""
    made = tiny.study_values(folder)
    small = {"batch_size": 8, "context_size": 32, "lr": 5e-3, "precision": "float32", "tokens": 20_000}
    small |= {"d_mlp": 32, "n_heads": 4, "corpora": list(CORPORA)}
    child = {"parent": "small", "corpora": ["stories"], "batch_size": 8, "context_size": 32, "lr": 5e-3}
    made["model"] = {
        "small": {"train": {"d_model": 32, "n_layers": 2, **small}},
        "large": {"train": {"d_model": 48, "n_layers": 3, **small}},
        "child": child | {"precision": "float32", "tokens": 8_000},
    }
    made["corpus"] = {name: made["corpus"][name] | {"validation": 0.3} for name in (*CORPORA, "stories")}
    for name in ("code", "words"):
        del made["corpus"][name]["share"]
    made |= {"hook_point": HOOK, "case": {}, "lineage": {"tokens": 4_000}}
    made |= {"controls": {"newness": 500}, "explain": {"features": 8}}
    made["sae"] |= {"tokens": 60_000, "lr": 1e-3, "init": "joint"}
    bare = {"arms": [], "probes": {"tasks": []}, "steering": {"prompts": 0}, "features": {"tokens": 0}}
    bare |= {"source": "small", "target": "large", "target_hook_point": HOOK, "widths": [WIDTH]}
    bare |= {"tokens": 6_000, "held_out": 2_000, "context_size": CONTEXT, "evaluation": 1_500, "adam": {"epochs": 0}}
    full = {
        "target_hook_point": TARGET_HOOK,
        "layers": True,
        "tokens": 20_000,
        "arms": STARTS,
        "thresholds": [0.5, 0.9999],
        "levels": [0.3, 0.5],
        "alphas": [0, 1],
        "adam": {"epochs": 2, "lr": 1e-2, "batch_tokens": 512},
        "probes": {"tasks": ["origin", "kind", "test"], "texts": 40, "sizes": [*SIZES, 129], "context_size": 24},
        "steering": {"prompts": 6, "prompt_tokens": 5, "max_tokens": 8, "vectors": 500},
        "features": {"tokens": SEEN, "prompts": 20, "rewrites": 2, "functional": 2},
    }
    stitches = {
        "pair": bare | full | pair,
        "late": bare | {"source_hook_point": "blocks.1.hook_resid_post", "widths": [64]}
        | {"features": full["features"] | {"corpus": "words", "tokens": 500}},
        "along": bare | {"target": "child"},
        "elsewhere": bare | {"target": "child", "target_hook_point": "blocks.0.hook_resid_pre"},
    }  # fmt: skip
    return made | {"stitch": stitches}


def topics(folder: Path, text: str = "body") -> dict[str, Any]:
    """A local set with labels of its own."""
    (folder / "topics").mkdir(exist_ok=True)
    rows = [{"body": f"the cat {i} " + ("sat on = " if i % 2 else "ran; ") * 4, "topic": i % 2} for i in range(60)]
    (folder / "topics" / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {"topics": {"source": "local:topics", "text": text, "label": "topic"}}


def stitch_values(folder: Path) -> dict[str, Any]:
    """The study that the fixture `stitch` runs."""
    made = values(folder)
    made["stitch"]["pair"]["probes"]["sets"] = topics(folder)
    return made
