"""The one-file page of a run beside SAEDashboard's page of one of its SAEs: time to make, size, first paint.

    python benchmarks/dashboards.py FOLDER --theirs PYTHON --scripts FOLDER [--features 16384] [--numbers 256 1024]

The run is that of `serve.py`, made in FOLDER where it is not there yet. SAEDashboard gets the SAE, the weights and the
token sample of its first model, and makes a page of some of the features that fire there, with its own defaults. It
needs other versions of numpy and transformers than ours, so that PYTHON is the interpreter of an environment of its
own. Its page loads d3 and plotly from the network; here they come from a folder that npm has installed them in, so
that no network is measured. Needs playwright. Prints one JSON object: seconds, megabytes, milliseconds, and how far
both sides' densities of the same features are apart.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from serve import Size, make

SITE = "blocks.0.mlp.hook_post"
SCRIPTS = {
    "https://d3js.org/d3.v6.min.js": "d3/dist/d3.min.js",
    "https://cdn.plot.ly/plotly-latest.min.js": "plotly.js-dist-min/plotly.min.js",
}
BEHIND = ("acts", "features", "classes", "explain")  # stages that are there for what a page shows of a feature
PAINTED = "performance.getEntriesByName('first-contentful-paint').length > 0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--theirs", help="Python with sae-dashboard; without it this one, which makes its page alone")
    parser.add_argument("--scripts", type=Path, help="node_modules of `npm install d3@6 plotly.js-dist-min@1.58.5`")
    parser.add_argument("--features", type=int, default=16_384, help="of each model of the run")
    parser.add_argument("--numbers", type=int, nargs="+", default=[256, 1024], help="features of its pages")
    options = parser.parse_args()
    if options.theirs is None:
        print(json.dumps(their_page(options.folder)))
        return
    from page_speed import first_paint
    from pages import chromium

    study = make(options.folder, Size(4, options.features))
    run = study.parent / "runs" / "wide"
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        work = Path(folder)
        found: dict[str, Any] = {"heredity": our_page(study, run, work / "ours.html"), "sae_dashboard": []}
        found["heredity"]["first_paint_ms"] = first_paint(browser, (work / "ours.html").as_uri())
        for number in options.numbers:
            density = handed(run, work, number)
            command = [options.theirs, __file__, str(work)]
            made = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            apart = float(np.abs(np.array(made.pop("densities")) - density).max())
            page = work / "theirs.html"
            text = page.read_text(encoding="utf-8")
            made |= {"features": number, "megabytes": round(len(text.encode()) / 1e6, 2), "densities_apart": apart}
            for address, script in SCRIPTS.items():
                text = text.replace(address, (options.scripts.absolute() / script).as_uri())
            page.write_text(text, encoding="utf-8")
            made["first_paint_ms"] = first_paint(
                browser, page.as_uri(), lambda window: window.wait_for_function(PAINTED, timeout=120_000)
            )
            found["sae_dashboard"].append(made)
    print(json.dumps(found))


def our_page(study: Path, run: Path, page: Path) -> dict[str, Any]:
    """Figures of `heredity report`, a process of its own, and of the stages behind the page."""
    from heredity import __version__
    from heredity.results import open as open_run

    start = time.perf_counter()
    command = [sys.executable, "-m", "heredity", "report", str(study), "--runs", str(run.parent), "--out", str(page)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    taken = time.perf_counter() - start
    spent = [(label, artifact.manifest["seconds"]) for label, artifact in open_run(run).artifacts.items()]
    stages = {kind: sum(seconds for label, seconds in spent if label.startswith(f"{kind}/")) for kind in BEHIND}
    return {
        "version": __version__,
        "seconds": round(taken, 2),
        "stages_seconds": {kind: round(seconds, 2) for kind, seconds in stages.items()},
        "megabytes": round(page.stat().st_size / 1e6, 2),
    }


def handed(run: Path, work: Path, number: int) -> np.ndarray:
    """Write what SAEDashboard is given into a folder; returns the density of each feature that is drawn."""
    from heredity.analyses.inspector import Inspector
    from heredity.analyses.sae import sae_need
    from heredity.analyses.sample import MIN_FIRINGS
    from heredity.results import open as open_run

    opened = open_run(run)
    inspector, model = Inspector(opened), opened.study.order[0]
    sample, place = inspector.sample, inspector.place
    often = sample.firings[model]
    features = np.random.default_rng(0).choice(np.flatnonzero(often >= MIN_FIRINGS), number, replace=False)
    np.save(work / "tokens.npy", sample.ids)
    paths = {
        "model": opened.artifact(("model", {"model": model})) / "model",
        "sae": opened.artifact(sae_need(opened.study, model, place["instrument"], place["site"])) / "sae",
    }
    given = {name: str(path) for name, path in paths.items()} | {"features": features.tolist()}
    (work / "given.json").write_text(json.dumps(given))
    return often[features] / sample.ids.size


def their_page(work: Path) -> dict[str, Any]:
    """SAEDashboard's page of what `handed` wrote: seconds without imports and loading, and densities as it has them."""
    from importlib import metadata

    import torch
    from sae_dashboard.data_writing_fns import save_feature_centric_vis
    from sae_dashboard.sae_vis_data import SaeVisConfig
    from sae_dashboard.sae_vis_runner import SaeVisRunner
    from sae_lens import SAE

    given = json.loads((work / "given.json").read_text())
    sae, model = SAE.load_from_disk(given["sae"]), hooked(given["model"])
    # It folds the norms of the decoder's rows, and refuses to where that could change which features are active; these
    # are 1, so that saying that they count changes nothing.
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(sae.cfg.d_sae))
    sae.cfg.rescale_acts_by_decoder_norm = True
    tokens = torch.from_numpy(np.load(work / "tokens.npy"))
    start = time.perf_counter()
    data = SaeVisRunner(SaeVisConfig(hook_point=SITE, features=given["features"])).run(sae, model, tokens)
    gathered = time.perf_counter() - start
    save_feature_centric_vis(data, work / "theirs.html")
    titles = [data.feature_data_dict[one].acts_histogram_data.title for one in given["features"]]
    return {
        "version": metadata.version("sae-dashboard"),
        "seconds": round(time.perf_counter() - start, 1),
        "gathering_seconds": round(gathered, 1),
        "densities": [float(title.split("= ")[1].rstrip("%")) / 100 for title in titles],
    }


def hooked(folder: str) -> Any:
    """A Mistral model as TransformerLens has it, which loads only models that it knows by name."""
    import torch
    from sae_lens import HookedSAETransformer
    from transformer_lens import HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_mistral_weights
    from transformers import MistralForCausalLM, PreTrainedTokenizerFast

    theirs = MistralForCausalLM.from_pretrained(folder)
    config = theirs.config
    own = HookedTransformerConfig(
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        n_ctx=config.max_position_embeddings,
        n_heads=config.num_attention_heads,
        n_key_value_heads=config.num_key_value_heads,
        d_head=config.head_dim,
        d_mlp=config.intermediate_size,
        d_vocab=config.vocab_size,
        act_fn="silu",
        gated_mlp=True,
        normalization_type="RMS",
        final_rms=True,
        eps=config.rms_norm_eps,
        positional_embedding_type="rotary",
        rotary_dim=config.head_dim,
        rotary_base=int(config.rope_theta),
    )
    model = HookedSAETransformer(own, tokenizer=PreTrainedTokenizerFast.from_pretrained(folder))
    model.load_state_dict(convert_mistral_weights(theirs, own), strict=False)  # without masks, which it makes itself
    ids = torch.arange(100)[None]
    with torch.no_grad():
        assert torch.allclose(model(ids), theirs(ids).logits, atol=1e-4), "the model is not the same"
    return model


if __name__ == "__main__":
    main()
