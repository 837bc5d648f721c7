"""The model graph follows from the parents that models name."""

from __future__ import annotations

import copy
import tomllib

import pytest

import tiny
from heredity.analyses.model import MODEL
from heredity.analyses.sample import instrument_items, match_needs
from heredity.analyses.verdicts import ANALYSIS
from heredity.study import Edge, ReferencesConfig, Study, StudyConfig, StudyError, load_study


def values(**changes) -> dict:
    """The paper's four models, with top-level tables replaced by `changes`."""
    graph = {
        "seed": 0,
        "hook_point": "blocks.0.mlp.hook_post",
        "corpus": {
            "english": {"source": "local:e.txt", "share": 0.5},
            "python": {"source": "local:p.txt", "share": 0.5},
            "lua": {"source": "local:l.txt"},
            "stories": {"source": "generated:stories"},
        },
        "model": {
            "base": {"train": {"corpora": ["english", "python"], "d_model": 32, "d_mlp": 64, "n_heads": 4}},
            "lua": {"parent": "base", "corpora": ["lua"]},
            "stories": {"parent": "base", "corpora": ["stories"]},
            "lua_stories": {"merge": {"method": "slerp", "parents": ["lua", "stories"]}},
        },
    }
    return copy.deepcopy({**graph, **changes})


def test_edges_traces_and_the_saes_continued_follow_from_the_parents_that_models_name():
    study = Study.of(values())
    edges = "base->lua base->stories lua->lua_stories stories->lua_stories"
    assert [edge.name for edge in study.edges] == edges.split()
    assert study.trace("base") == ("english", "python")
    assert study.trace("lua") == ("english", "python", "lua")
    assert study.trace("lua_stories") == ("english", "python", "lua", "stories")
    assert study.common_trace(Edge("base", "lua")) == ("english", "python")
    assert study.common_trace(Edge("lua", "lua_stories")) == ("english", "python", "lua")
    assert study.text_corpora(Edge("base", "lua"), "own") == ("lua",) == study.text_corpora(Edge("base", "lua"), "lua")
    assert study.text_corpora(Edge("lua", "lua_stories"), "own") == ()
    assert [study.sae_parent(name) for name in study.order] == [None, "base", "base", "base"]


def test_a_corpus_that_no_model_read_can_be_a_probe():
    graph = values(verdicts={"texts": ["common", "news"], "tokens": 2000})
    study = Study.of({**graph, "corpus": graph["corpus"] | {"news": {"source": "local:n.txt"}}})
    items = [item for item in ANALYSIS.items(study) if item["edge"] == "lua->lua_stories"]
    assert [item["text"] for item in items] == ["common", "news"]
    assert [list(ANALYSIS.needs(study, item)["tokens"]) for item in items] == [["english", "python", "lua"], ["news"]]
    settings = [ANALYSIS.settings(study, item) for item in items]
    assert [one.tokens for one in settings] == [2000, 1000]
    assert settings[0].references == ReferencesConfig()
    wanted = {name for name, is_wanted in settings[1].references.model_dump().items() if is_wanted}
    assert wanted == {"unchanged", "edit", "sham"}


def test_parents_come_before_children_whatever_the_order_of_the_file():
    models = values()["model"]
    study = Study.of(values(model=dict(reversed(models.items()))))
    assert study.order.index("base") < study.order.index("lua") < study.order.index("lua_stories")


def test_a_model_that_repeats_a_recipe_is_a_sibling_of_its_model_with_an_edge_between_them():
    """Whatever the order of the file; a twin of a fine-tune is a fine-tune of the same parent as well."""
    models = {"twin": {"recipe_of": "base"}, "again": {"recipe_of": "lua"}, **values()["model"]}
    study = Study.of(values(model=models))
    assert [edge.name for edge in study.edges if edge not in study.descent] == ["base->twin", "lua->again"]
    assert Edge("base", "again") in study.descent and study.parents["twin"] == () == study.ancestors("twin")
    for name, other in (("twin", "base"), ("again", "lua")):
        assert study.order.index(other) < study.order.index(name) and study.trace(name) == study.trace(other)
        assert study.config.model[name] == study.config.model[other].model_copy(update={"recipe_of": other})
        one, two = (MODEL.settings(study, {"model": one}) for one in (name, other))
        assert one.seed != two.seed and one._replace(seed=two.seed) == two
    assert study.starts[0] == "base" and study.common_trace(Edge("base", "twin")) == ("english", "python")
    assert Study.of(tomllib.loads(study.config.to_toml())).config == study.config
    read = {edge for item in instrument_items(study) for edge in match_needs(study, item)}
    assert read == {edge.name for edge in study.descent}, "flow, families and classes follow descent alone"


def test_controls_default_to_the_models_that_have_children():
    study = Study.of(values(controls={"seeds": 3}))
    assert {name: study.controls(name) for name in study.order} == {"base": 3, "lua": 3, "stories": 3, "lua_stories": 1}
    named = Study.of(values(controls={"seeds": 2, "models": ["base"]}))
    assert [named.controls(name) for name in ("base", "lua")] == [2, 1]


@pytest.mark.parametrize("written", ["init", "instruments"])
@pytest.mark.parametrize("override", ["sae.init=parent", "sae.instruments=parent"])
def test_an_override_wins_by_either_name_of_the_instruments(written, override, tmp_path):
    values = tiny.study_values(tmp_path)
    values["sae"] = {**{k: v for k, v in values["sae"].items() if k not in ("init", "instruments")}, written: "joint"}
    assert load_study(str(tiny.toml(values, tmp_path / "s.toml")), [override]).instruments == ("parent",)


def test_overrides_reach_nested_keys_and_keep_toml_types(tmp_path):
    path = tmp_path / "s.toml"
    path.write_text(
        'hook_point = "blocks.0.hook_resid_post"\n[corpus]\na = { source = "local:x" }\n'
        '[model.m]\ntrain = { corpora = ["a"] }\n'
    )
    study = load_study(str(path), ["sae.tokens=1000", "sae.activation=topk", "model.m.train.lr=1e-3"])
    assert study.config.sae.tokens == 1000 and study.config.sae.activation == "topk"
    assert study.config.model["m"].train is not None and study.config.model["m"].train.lr == 1e-3
    assert study.name == "s" and study.root == tmp_path


def test_the_built_in_study_is_valid():
    study = load_study("demo")
    assert study.order == ("base", "cpp", "stories", "cpp_stories")


def test_a_study_survives_the_way_through_its_dump_and_licence_is_accepted():
    corpus = values()["corpus"]
    corpus["lua"]["licence"], corpus["stories"]["license"] = "MIT", "CC0-1.0"
    config = Study.of(values(corpus=corpus)).config
    assert [config.corpus[name].license for name in ("lua", "stories")] == ["MIT", "CC0-1.0"]
    assert StudyConfig.model_validate(config.model_dump()) == config
    assert StudyConfig.model_validate(tomllib.loads(config.to_toml())) == config


PAIR = {"source": "base", "target": "child"}
OTHER = {"train": {"corpora": ["lua"], "d_model": 64, "d_mlp": 64, "n_heads": 4}}


def broken(path: str, value: object) -> dict:
    """The four models with one value replaced at a dotted path (or removed, for None)."""
    found = values()
    *tables, last = path.split(".")
    place = found
    for table in tables:
        place = place.setdefault(table, {})
    if value is None:
        place.pop(last)
    else:
        place[last] = value
    return found


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("sae.expnsion", 4, "sae.expnsion: unknown key; did you mean 'expansion'?"),
        ("modell", {}, "modell: unknown key; did you mean 'model'?"),
        ("stitch.pair", PAIR | {"wdths": [3]}, "stitch.pair.wdths: unknown key; did you mean 'widths'?"),
        ("stitch.pair", PAIR | {"adam": {"epoch": 1}}, "stitch.pair.adam.epoch: unknown key; did you mean 'epochs'?"),
        ("corpus.english.shar", 1, "corpus.english.shar: unknown key; did you mean 'share'?"),
        ("model.base.train.d_modell", 1, "model.base.train.d_modell: unknown key; did you mean 'd_model'?"),
        ("hook_point", None, "hook_point: is missing; add it"),
        ("sae.expansion", 0, "sae.expansion: 0: input should be greater than 0"),
        ("sae.init", "child", "'child': input should be 'joint', 'parent', 'independent' or 'frozen'"),
        ("sae.l0", [35, 25], "must be a rising pair such as [25, 35]"),
        ("corpus.english.share", 0.7, "corpus: shares of model base sum to 1.2 (english 0.7 + python 0.5); make them"),
        ("corpus.english.share", None, "corpus.english: has no share, but other corpora of model base have; give all"),
        ("model.lua.parent", "bse", "model.lua: 'bse' is no model of this study; did you mean 'base'? (parent)"),
        ("model.lua.corpora", ["luas"], "model.lua.corpora: 'luas' is no corpus of this study; did you mean 'lua'?"),
        ("model.lua.parent", "lua_stories", ": lua_stories -> lua -> lua_stories is a cycle"),
        ("model.lua.parent", "lua", "is its own parent"),
        ("model.lua", {}, "model.lua: says neither train, load, merge, recipe_of nor parent"),
        ("model.lua.parent", "", "model.lua.parent"),
        ("model.lua", {"parent": "base"}, "model.lua: has a parent but no corpora"),
        ("model.lua_stories.merge.t", 1.2, "model.lua_stories.merge.t: 1.2: must be a number from 0 (first parent) to"),
        ("model.lua_stories.merge.parents", ["lua", "lua"], "names a model twice"),
        ("model.lua_stories.merge.parents", ["lua", "stories", "base"], "slerp takes exactly two parents, not 3; use"),
        ("model.lua_stories.merge.method", "ties", "ties of 2 parents needs weights = [...]"),
        ("model.base.train.n_heads", 5, "n_heads=5 does not divide d_model=32; choose a divisor"),
        ("report.tokens", 24, "report.tokens: 24 fill no two blocks of sae.context_size=24, one to explain and one to"),
        ("controls.models", ["x"], "controls.models: 'x' is no model of this study"),
        ("model.stories", OTHER, "lua is 1 layers of d_model 32, d_mlp 64, 4/2 heads but stories is 1 layers of d_m"),
        (
            "verdicts.texts",
            ["common", "mine"],
            "verdicts.texts: 'mine' is no text; choose of common, own, english, pyth",
        ),
        ("verdicts.texts", ["own"], "verdicts.texts: ['own'] must name common"),
        (
            "model.twin",
            {"recipe_of": "bse"},
            "model.twin.recipe_of: 'bse' is no model of this study; did you mean 'base'",
        ),
        ("model.twin", {"recipe_of": "twin"}, "model.twin.recipe_of: is the model itself; name another model"),
        (
            "model.twin",
            {"recipe_of": "lua_stories"},
            "model.twin.recipe_of: lua_stories is a merge, which no seed chang",
        ),
        (
            "model",
            {"a": {"load": "a", "corpora": ["lua"]}, "twin": {"recipe_of": "a"}},
            "recipe_of: a is loaded, which",
        ),
        ("model.twin", OTHER | {"recipe_of": "base"}, "model.twin: train and recipe_of exclude each other; keep one"),
        (
            "model.twin",
            {"recipe_of": "lua", "lr": 1, "corpora": ["lua"]},
            "takes everything from lua; remove corpora, lr",
        ),
        ("model.int4", {"parent": "base", "quantize": {"bits": 1}}, "model.int4.quantize.bits: 1: input should be gre"),
        (
            "model.int4",
            {"parent": "base", "corpora": ["lua"], "quantize": {"bits": 4}},
            "model.int4: quantize and corpora exclude each other; leave it out, it has read its parent's",
        ),
        ("model.lua.lora", {"r": 0}, "model.lua.lora.r: 0: input should be greater than 0"),
        ("text", ["local"], "text: ['local']: give a text in quotes"),
        ("report.case_corpora", "lua", 'report.case_corpora: \'lua\': give a list, such as ["a", "b"]'),
        ("sae.tokens", 10**30, "sae.tokens: 1000000000000000000000000000000: is beyond what a number can be"),
        ("sae.k", "many", "sae.k: 'many': give a whole number, without quotes"),
        ("model.lua", 3, "model.lua: 3: give a table"),
        ("model", {".lua": OTHER}, "model..lua: names are letters"),
        ("model", {"é" * 40: OTHER}, "has more than 64 bytes; shorten the name"),
    ],
)
def test_a_fault_names_value_place_and_way_out(path, value, message):
    with pytest.raises(StudyError) as caught:
        Study.of(broken(path, value))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed = 1\nseed = 2\n", "line 2: seed = 2: this key or table is there already; keep one"),
        ("[sae]\nk = 4\n[sae]\n", "line 3: [sae]: this key or table is there already"),
        ("a = [", "is not valid TOML"),
        ("\ufeffa = 1", "hook_point: is missing"),
        ("a = " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("a = " + "9" * 5000, "more than 4,300 digits"),
        ("a." * 20_000 + "a = 1", "more than 64 parts"),
        ('hook_points = "x"\n[sae]\nhook_point = "x"', "hook_point: is missing; it stands in [sae]; move it above"),
        ("key = '" + "x" * 5000 + "\nb", "is not valid TOML"),
    ],
)
def test_a_file_that_is_no_study_is_one_short_line_with_its_name(text, words, tmp_path):
    (tmp_path / "x.toml").write_text(text, encoding="utf-8")
    with pytest.raises(StudyError) as caught:
        load_study(str(tmp_path / "x.toml"))
    assert words in str(caught.value) and "x" in str(caught.value) and len(str(caught.value)) < 600
