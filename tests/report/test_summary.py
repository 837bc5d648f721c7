"""The summary keeps its schema, refuses numbers that do not add up, and never writes nan."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from pydantic import ValidationError

from heredity.report.headline import headline, threshold_words
from heredity.report.summary import CaseMember, CaseSummary, EdgeSummary, SAESummary, Summary
from report import sample

DOCUMENTED = {
    "": "heredity study device notes seconds instrument models merges saes edges flow cases classes explained stitches "
    "also repeats",
    "models.base": "kind parents parameters tokens accuracy ce_loss",
    "merges.cpp_stories": "method t first second sweep linear_fallback",
    "saes.base": "d_in d_sae seed tokens l0 mse explained_variance ce_loss_recovered dead_share",
    "edges.base->cpp": "tokens threshold parent_live child_live persist disappear emerge one_to_one curve "
    "ceiling floor",
    "flow.cpp_stories": "from_base emerged_in_cpp emerged_in_stories emerged_in_both novel",
    "cases.assignment": "base cpp stories cpp_stories mean_r",
    "cases.assignment.base": "feature llr",
    "also.independent": "saes edges flow classes explained",
}


@pytest.fixture(scope="module")
def summary() -> Summary:
    return sample.sample_view().summary


def _edge(**changes) -> EdgeSummary:
    values = {"tokens": 10, "threshold": 0.8, "parent_live": 8, "child_live": 9, "persist": 3, "disappear": 5}
    values |= {"emerge": 6, "one_to_one": 2, "curve": {"0.80": 3}, "ceiling": 0.5, "floor": 0.0}
    return EdgeSummary.model_validate(values | changes)


@pytest.mark.parametrize("place", DOCUMENTED)
def test_every_documented_key_is_there(summary: Summary, place: str):
    value = json.loads(summary.to_json())
    for part in re.findall(r"[^.]+", place):
        value = value[part]
    assert set(DOCUMENTED[place].split()) <= set(value)
    if place in ("", "flow.cpp_stories", "also.independent"):
        assert set(DOCUMENTED[place].split()) == set(value)


def test_summary_survives_a_round_trip_through_json(summary: Summary):
    assert Summary.model_validate_json(summary.to_json()) == summary


def test_curve_runs_from_050_to_095_in_steps_of_005(summary: Summary):
    assert list(summary.edges["base->cpp"].curve) == [f"{t / 100:.2f}" for t in range(50, 100, 5)]


def test_nan_and_infinity_become_null():
    edge = _edge(ceiling=float("nan"), floor=np.float32("inf"))
    assert json.loads(edge.model_dump_json())["ceiling"] is None
    assert edge.floor is None
    assert CaseMember(feature=None, llr=float("-inf")).llr is None


def test_numpy_numbers_become_plain_ones():
    edge = _edge(persist=np.int64(3), ceiling=np.float32(0.5))
    assert type(edge.persist) is int
    assert type(edge.ceiling) is float


def test_fates_that_do_not_add_up_are_refused():
    with pytest.raises(ValidationError, match="do not add up to parent_live=8"):
        _edge(disappear=4)
    with pytest.raises(ValidationError, match="emerge=10 exceeds child_live=9"):
        _edge(emerge=10)


def test_unknown_keys_are_refused_by_name():
    with pytest.raises(ValidationError, match="persit"):
        _edge(persit=3)


def test_flow_with_a_wrong_or_missing_origin_is_refused(summary: Summary):
    values = summary.model_dump()
    values["flow"] = {"cpp_stories": {"from_base": 1, "emerged_in_both": 0}}
    with pytest.raises(ValidationError, match="novel is missing"):
        Summary.model_validate(values)
    values["flow"] = {"cpp_stories": {"from_base": 1, "emerged_in_both": 0, "novel": 0, "lost": 1}}
    with pytest.raises(ValidationError, match="lost is unknown"):
        Summary.model_validate(values)


def test_figures_of_a_model_that_is_not_there_are_refused(summary: Summary):
    values = summary.model_dump()
    values["edges"]["base->ghost"] = values["edges"]["base->cpp"]
    with pytest.raises(ValidationError, match="'ghost' is no model"):
        Summary.model_validate(values)


def test_case_knows_its_members_by_model():
    case = CaseSummary.of({"base": CaseMember(feature=3, llr=7.5)}, mean_r=None)
    assert case.members["base"].feature == 3
    assert CaseSummary.model_validate_json(case.model_dump_json()) == case


def test_every_field_is_documented():
    for model in (EdgeSummary, SAESummary, Summary, CaseMember):
        assert all(field.description for field in model.model_fields.values()), model


def test_headline_answers_four_questions_of_every_child(summary: Summary):
    statements = headline(summary)
    for child in ("cpp", "stories", "cpp_stories"):
        asked = {s.question for s in statements if s.about == child and s.instrument == "parent"}
        assert {"inherited", "lost", "new", "sure"} <= asked


def test_headline_gives_count_both_denominators_ceiling_and_floor(summary: Summary):
    edge = summary.edges["base->cpp"]
    mine = [s for s in headline(summary) if s.about == "cpp" and s.instrument == "parent"]
    said = " ".join([s.text + " ".join(s.evidence) for s in mine])
    for count in (edge.persist, edge.disappear, edge.emerge, edge.parent_live, edge.parent_features):
        assert f"{count:,}" in said
    assert "ceiling" in said
    assert "floor" in said


def test_headline_says_how_a_merge_was_mixed_and_that_its_parts_add_up(summary: Summary):
    said = " ".join(s.text for s in headline(summary) if s.about == "cpp_stories")
    assert "58 % cpp / 42 % stories" in said
    counts = summary.flow["cpp_stories"]
    assert f"{sum(counts.values()) - counts['novel']:,} of {sum(counts.values()):,}" in said


def test_headline_without_a_second_sae_says_that_it_does_not_know():
    chain = sample.chain_view().summary
    sure = [s.text for s in headline(chain) if s.question == "sure"]
    assert all("No second SAE" in text for text in sure)


def test_headline_says_when_the_curves_do_not_cross():
    said = [s.text for s in headline(sample.two_merges_view().summary) if s.question == "merge"]
    assert any("never cross" in text for text in said)
    assert any("ties merge" in text for text in said)


def test_study_without_edges_has_no_headline():
    assert headline(sample.single_view().summary) == ()


def test_headline_puts_an_interval_beside_every_count_of_an_edge(summary: Summary):
    edge = summary.edges["base->cpp"]
    said = {s.question: s for s in headline(summary) if s.about == "cpp" and s.instrument == "parent"}
    for question, fate, live in (
        ("inherited", "persist", edge.parent_live),
        ("lost", "disappear", edge.parent_live),
        ("new", "emerge", edge.child_live),
    ):
        low, high = edge.intervals[fate]
        assert low is not None and high is not None
        assert f"95 % interval {100 * low / live:.0f}–{100 * high / live:.0f} %" in said[question].text


def test_headline_says_where_the_threshold_stands_and_what_the_paper_would_count(summary: Summary):
    edge = summary.edges["base->cpp"]
    (said,) = [s for s in headline(summary) if (s.about, s.question, s.instrument) == ("cpp", "inherited", "parent")]
    evidence = " ".join(said.evidence)
    assert f"r > {edge.threshold:.2f}, between what chance reaches and what two SAEs" in evidence
    assert edge.paper is not None and f"r > 0.8: {edge.paper.persist:,} of {edge.parent_live:,}" in evidence
    given = edge.model_copy(update={"threshold_by": "study", "threshold": 0.8})
    assert threshold_words(given) == "r > 0.8 as the study sets it"


def test_headline_of_one_sae_for_all_does_not_speak_of_two():
    joint = [s for s in headline(sample.joint_view().summary) if s.instrument == "joint"]
    said = " ".join(s.text + " ".join(s.evidence) for s in joint)
    assert "wo SAEs" not in said and "second SAE" not in said
    sure = [s.text for s in joint if s.question == "sure"]
    assert sure and all("an unchanged model keeps everything" in text and "by construction" in text for text in sure)
    lost = [s.text for s in joint if s.question == "lost"]
    assert lost and all("an unchanged model loses none" in text for text in lost)


def test_headline_of_an_edge_without_intervals_names_none():
    said = " ".join(s.text for s in headline(sample.chain_view().summary))
    assert "interval" not in said


def test_headline_says_how_many_new_features_the_parent_does_not_hold():
    summary = sample.joint_view().summary
    found = summary.edges["base->cpp"].newness
    assert found is not None
    (said,) = [s for s in headline(summary) if (s.about, s.question, s.instrument) == ("cpp", "new", "joint")]
    alone = found.emerged.new - found.emerged.turned
    assert f"of the {found.emerged.judged:,} that" in " ".join(said.evidence)
    assert f"{alone:,} are in no direction" in " ".join(said.evidence)
