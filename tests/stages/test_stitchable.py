"""What is refused of a stitch before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from heredity.stages.stitchable import check_stitch, is_residual
from heredity.study import Study, StudyError, load_study


@pytest.mark.parametrize(
    "point",
    [
        "blocks.1.hook_resid_pre",
        "blocks.0.hook_resid_mid",
        "model.layers.3",
        "model.layers.3:input",
        "model.layers.3.post_attention_layernorm:input",
        "transformer.h.2.ln_1:input",
        "model.norm:input",
    ],
)
def test_places_that_the_residual_stream_passes(point):
    assert is_residual(point)


@pytest.mark.parametrize(
    "point",
    [
        "blocks.1.mlp.hook_post",
        "blocks.1.hook_mlp_out",
        "model.layers.3.mlp",
        "model.layers.3.input_layernorm",
        "model.layers.3.self_attn.q_norm:input",
    ],
)
def test_parts_of_a_layer_are_no_place_for_a_stitch(point):
    assert not is_residual(point)


def _study(**settings) -> Study:
    values = [f"stitch.small-large.{key}={json.dumps(value)}" for key, value in settings.items()]
    return load_study(str(Path(__file__).parents[2] / "studies" / "stitching.toml"), values)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"target_hook_point": "blocks.1.hook_mlp_out"},
            r"small-large\.target_hook_point: blocks\.1\.hook_mlp_out is a part",
        ),
        ({"held_out": 1}, r"stitch\.small-large\.held_out: 1 tokens do not fill .* at least 256"),
        ({"tokens": 100}, r"stitch\.small-large\.tokens: 100 tokens .* at least 128"),
        ({"widths": [16]}, r"sae\.k: 32 is more than the 16 features"),
    ],
)
def test_what_cannot_work_is_refused_with_its_key(settings, message):
    with pytest.raises(StudyError, match=message):
        check_stitch(_study(**settings), "small-large", {"source": None, "target": None})


def test_procrustes_into_a_narrower_model_is_refused():
    shapes = {end: SimpleNamespace(hidden_size=d, num_hidden_layers=4) for end, d in (("source", 64), ("target", 32))}
    study = _study(method="procrustes")
    with pytest.raises(StudyError, match=r"method: procrustes .* large \(32\) is narrower than small \(64\)"):
        check_stitch(study, "small-large", shapes)
