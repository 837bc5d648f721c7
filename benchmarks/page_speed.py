"""The one-file page of 4 models x 16,384 features in a browser: size, first paint, slider; needs playwright.

    python benchmarks/page_speed.py STUDY [--runs RUNS] [--features 16384] [--models 4] [--keep FILE]
    python benchmarks/page_speed.py PAGE.html  # a page as it is

Columns of a finished run are widened: features are drawn from those it has, each with new figures, so that texts are as
long and as many as real ones and no two rows are alike. More models are further children of the first. Prints one JSON
object: megabytes, and milliseconds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from pages import chromium, drawn

from heredity.analyses.feature_columns import NONE, columns_of_run
from heredity.results import open as open_run
from heredity.show import page

BY_FEATURE = ("firings", "max", "class", "domain", "text", "score")


def widened(columns: dict[str, Any], size: int, rng: np.random.Generator) -> dict[str, Any]:
    """The columns with `size` features of every model. Whatever stands on one feature is drawn with it."""
    unit = columns["unit"]
    models, rows, texts = {}, {}, 0
    for name, own in columns["models"].items():
        drawn_ = rows[name] = rng.integers(0, len(own["firings"]), size)
        made = {key: [own[key][at] for at in drawn_] for key in BY_FEATURE}
        made["firings"] = [int(one * rng.uniform(0.5, 1.5)) for one in made["firings"]]
        made["max"] = [float(f"{one * rng.uniform(0.5, 1.5):.3g}") for one in made["max"]]
        explained = [text for text in own["text"] if text]
        # as many explanations as a study of all features has, each with a word of its own
        made["text"] = [
            f"{explained[rng.integers(len(explained))]}, {rng.integers(size)}" if rng.random() < 0.6 else None
            for _ in drawn_
        ]
        texts += sum(text is not None for text in made["text"])
        made["score"] = [int(rng.integers(20, 99)) if text else None for text in made["text"]]
        for key in ("top", "share"):
            made[key] = np.array(own[key]).reshape(-1, 3)[drawn_].ravel().tolist()
        models[name] = own | made

    def moved(values: list[int], at: np.ndarray) -> list[int]:
        found = np.array(values)[at]
        near = np.clip(found + rng.integers(-300, 300, size), 0, unit)
        return np.where(found == NONE, NONE, near).tolist()

    def end(own: dict[str, Any], at: np.ndarray) -> dict[str, Any]:
        figures = {key: [own[key][one] for one in at] for key in own if key not in ("r", "match", "examined")}
        return figures | {"r": moved(own["r"], at), "match": rng.integers(0, size, size).tolist(), "examined": {}}

    edges = [
        edge | {"ends": {name: end(edge["ends"][name], rows[edge[name]]) for name in ("parent", "child")}}
        for edge in columns["edges"]
    ]
    chains = {
        name: {
            parent: {"r": moved(own["r"], rows[name]), "own": [own["own"][one] for one in rows[name]]}
            for parent, own in into.items()
        }
        for name, into in columns["chains"].items()
    }
    return columns | {"models": models, "edges": edges, "chains": chains}


def with_children(data: dict[str, Any], columns: dict[str, Any], more: int) -> None:
    """Add children of the first model, each a copy of its first child by another name."""
    (parent, *_), edge = columns["models"], columns["edges"][0]
    for number in range(more):
        name = f"{edge['child']}_{number + 2}"
        columns["models"][name] = columns["models"][edge["child"]]
        columns["edges"].append(edge | {"edge": f"{parent}->{name}", "child": name})
        node = next(one for one in data["graph"] if one["name"] == edge["child"])
        data["graph"].append(node | {"name": name})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="name of a finished run, or a page (.html), of which nothing is widened")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--features", type=int, default=16_384)
    parser.add_argument("--models", type=int, default=4)
    parser.add_argument("--keep", type=Path, help="write the page here")
    options = parser.parse_args()
    if options.study.endswith(".html"):
        print(json.dumps(timed(Path(options.study))))
        return
    run, rng = open_run(options.runs / options.study), np.random.default_rng(0)
    data = page.page_data(run)
    instrument, site = run.study.instruments[0], run.study.sites[0]
    columns = widened(columns_of_run(run)[instrument][site], options.features, rng)
    with_children(data, columns, options.models - len(columns["models"]))
    data["features"] = {instrument: {site: page.embedded(columns)}}
    with tempfile.TemporaryDirectory() as folder:
        file = options.keep or Path(folder) / "page.html"
        file.write_text(page.render(data), encoding="utf-8")
        found = {"models": len(columns["models"]), "features": options.features * len(columns["models"])}
        print(json.dumps(found | timed(file)))


PAINT = "performance.getEntriesByType('paint').find((one) => one.name === 'first-contentful-paint').startTime"
STEP = """async (slider) => {
  const spent = [];
  const next = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));  // after a frame was drawn
  for (let at = 0; at < 40; at++) {
    await next();
    const start = performance.now();
    slider.value = (0.2 + 0.015 * at).toFixed(2);
    slider.dispatchEvent(new Event("input", { bubbles: true }));
    await Promise.resolve();
    document.body.getBoundingClientRect();  // layout, too
    spent.push(performance.now() - start);
  }
  return spent;
}"""


def first_paint(browser: Any, url: str, ready: Callable[[Any], object] = drawn) -> int:
    """Milliseconds until anything of a page is seen: median of five windows, each open until it is ready."""
    paints = []
    for _ in range(5):
        window = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
        window.goto(url, timeout=120_000)
        ready(window)
        paints.append(window.evaluate(PAINT))
        window.close()
    return round(median(paints))


def timed(file: Path) -> dict[str, Any]:
    """Megabytes of a page, and milliseconds in a browser, each address in a window of its own."""
    url = file.absolute().as_uri()
    found: dict[str, Any] = {"megabytes": round(file.stat().st_size / 1e6, 2)}
    with chromium() as browser:
        found["first_paint_ms"] = first_paint(browser, url)
        window = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
        window.goto(f"{url}#/flow")
        drawn(window)
        steps = window.get_by_role("slider").evaluate(STEP)
        found |= {"slider_median_ms": round(median(steps), 1), "slider_most_ms": round(max(steps), 1)}
        for name, address, there in (
            ("features", "#/features", "main [role=row] .name"),
            ("filtered", "#/features?verdict=kept&sort=r", "main .chosen"),
        ):
            ready = window.evaluate(
                """async ([address, there]) => {
                  const start = performance.now();
                  location.hash = address;
                  while (!document.querySelector(there)) await new Promise((done) => setTimeout(done, 1));
                  return performance.now() - start;
                }""",
                [address, there],
            )
            found[f"{name}_ms"] = round(ready)
        window.close()
    return found


if __name__ == "__main__":
    main()
