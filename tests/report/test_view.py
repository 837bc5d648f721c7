"""Arrays become the binned records of the view; the tables hold the same numbers."""

from __future__ import annotations

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
from pydantic import ValidationError

from heredity.explain import scores as compare
from heredity.report import tables
from heredity.report.distributions import density_view, edge_view, flow_links, match_rows
from heredity.report.shown import Context
from heredity.report.view import BINS, THRESHOLDS, View
from report import sample

NAN = float("nan")


@pytest.fixture(scope="module")
def full_view() -> View:
    return sample.sample_view()


def test_histogram_counts_every_live_feature_once():
    view = edge_view(np.array([-0.9, -0.2, 0.0, 0.81, 1.0, NAN]), np.array([0.5, NAN, NAN]))
    assert sum(view.parent_histogram) == 5
    assert len(view.parent_histogram) == len(BINS) - 1 == 24
    assert view.parent_histogram[0] == 2  # what lies below the first edge is counted in the first bin
    assert view.parent_histogram[-1] == 1
    assert (view.parent_dead, view.child_dead) == (1, 2)


def test_curve_recounts_all_three_fates_at_every_threshold():
    rng = np.random.default_rng(0)
    parent, child = rng.uniform(0, 1, 200), rng.uniform(0, 1, 100)
    parent[:20], child[:10] = NAN, NAN
    view = edge_view(parent, child)
    assert [point.threshold for point in view.curve] == THRESHOLDS.tolist()
    for point in view.curve:
        assert point.persist == int(np.sum(parent > point.threshold))
        assert point.persist + point.disappear == 180
        assert point.emerge == int(np.sum(child <= point.threshold))
        assert point.ceiling is None


def test_a_feature_that_fires_but_matches_nothing_disappears():
    live = (np.array([True, True]), np.array([True, False]))
    point = edge_view(np.array([0.9, NAN]), np.array([NAN, NAN]), live=live).curve[0]
    assert (point.persist, point.disappear, point.emerge) == (1, 1, 1)


def test_a_feature_exactly_at_the_threshold_does_not_persist():
    point = next(p for p in edge_view(np.array([0.8]), np.array([0.8])).curve if p.threshold == 0.8)
    assert (point.persist, point.disappear, point.emerge) == (0, 1, 1)


def test_ceiling_is_the_mean_share_of_live_parent_features():
    parent = np.array([0.9, 0.9, 0.1, NAN])
    view = edge_view(parent, parent, ceiling_r=[np.array([1.0, 1.0, 1.0, NAN]), np.array([1.0, 0.0, 0.0, NAN])])
    assert view.curve[0].ceiling == pytest.approx((3 + 1) / 2 / 3, abs=1e-6)


def test_rows_are_the_closest_pairs_and_say_whether_they_are_mutual():
    match = np.array([[1, 0], [0, 1], [-1, -1]])
    r = np.array([[0.7, 0.1], [0.9, 0.2], [NAN, NAN]])
    rows = match_rows(match, r, np.array([[1], [1]]), np.full(3, 0.1), np.full(2, 0.2), count=5)
    assert [(row.parent, row.child, row.mutual) for row in rows] == [(1, 0, True), (0, 1, False)]
    assert rows[0].runner_up == 0.2


def test_links_into_a_merge_add_up_to_its_flow():
    rng = np.random.default_rng(1)
    through = {"a": rng.random(500) < 0.5, "b": rng.random(500) < 0.4}
    based = (through["a"] | through["b"]) & (rng.random(500) < 0.5)
    links = flow_links("m", through, {name: found & based for name, found in through.items()})
    sizes = {(link.source, link.origin): link for link in links}
    base_a, base_b = sizes["a", "base"], sizes["b", "base"]
    assert base_a.count + base_b.count - base_a.shared == int(based.sum())
    assert base_a.shared == base_b.shared
    assert sizes["a", "both"].count == sizes["b", "both"].count == int((through["a"] & through["b"] & ~based).sum())
    assert sizes["a", "a"].count == int((through["a"] & ~through["b"] & ~based).sum())


def test_density_counts_dead_features_apart():
    view = density_view(np.array([0.0, 0.01, 1.0, 1e-9]))
    assert (view.dead, sum(view.histogram)) == (1, 3)


def test_context_with_values_of_another_length_is_refused():
    with pytest.raises(ValidationError, match="2 tokens but 1 values"):
        Context(tokens=("a", "b"), values=[1.0], focus=0, corpus="c")
    with pytest.raises(ValidationError, match="1 values of child"):
        Context(tokens=("a", "b"), values=[1.0, 0.0], focus=0, corpus="c", others={"child": [1.0]})
    with pytest.raises(ValidationError, match="focus=2 is outside"):
        Context(tokens=("a", "b"), values=[1.0, 0.0], focus=2, corpus="c")


def test_view_that_does_not_fit_its_summary_is_refused(full_view: View):
    values = dict(full_view)
    with pytest.raises(ValidationError, match="must be the same"):
        View(**{**values, "graph": full_view.graph[:2]})
    without = {init: m.model_copy(update={"flows": {}}) for init, m in full_view.measured.items()}
    with pytest.raises(ValidationError, match="has no links"):
        View(**{**values, "measured": without})
    undrawn = {init: m.model_copy(update={"edges": {}}) for init, m in full_view.measured.items()}
    with pytest.raises(ValidationError, match="draw the same"):
        View(**{**values, "measured": undrawn})
    with pytest.raises(ValidationError, match="measured has"):
        View(**{**values, "measured": {"parent": full_view.measured["parent"]}})


def test_view_survives_a_round_trip_through_json(full_view: View):
    assert View.model_validate_json(full_view.model_dump_json()) == full_view


def test_match_table_leaves_out_what_has_no_match():
    table = tables.matches("a->b", "parent", np.array([[3, -1], [-1, -1]]), np.array([[0.5, NAN], [NAN, NAN]]))
    assert table.to_pylist() == [{"edge": "a->b", "end": "parent", "feature": 0, "rank": 1, "match": 3, "r": 0.5}]
    with pytest.raises(ValueError, match="one r a match"):
        tables.matches("a->b", "parent", np.zeros((2, 2)), np.zeros((2, 1)))


def test_tables_of_a_study_hold_the_summary(full_view: View):
    summary = full_view.summary
    assert tables.models(summary.models).num_rows == 16
    assert tables.saes(summary.saes, "parent")["d_sae"].to_pylist() == [4096] * 4
    edges = tables.edges(summary.edges, "parent")
    assert edges["persist"].to_pylist() == [edge.persist for edge in summary.edges.values()]
    assert tables.curves(summary.edges, "parent").num_rows == 40
    assert sum(tables.flows(summary.flow, "parent")["features"].to_pylist()) == sum(
        summary.flow["cpp_stories"].values()
    )
    merge = tables.merges(summary.merges).to_pylist()[0]
    assert (merge["t"], merge["t_low"], merge["crossed"]) == (0.42, 0.411, True)
    assert tables.sweeps(summary.merges).num_rows == 24
    assert tables.tensors("cpp_stories", full_view.tensors["cpp_stories"])["method"].to_pylist().count("linear") == 2
    assert tables.features("base", np.array([0.0, 0.5]))["dead"].to_pylist() == [True, False]


def test_empty_tables_keep_their_columns():
    assert tables.edges({}, "parent").column_names[:2] == ["init", "edge"]
    assert tables.merges({}).num_rows == 0


def test_nan_is_an_empty_cell_and_files_read_back(tmp_path):
    table = tables.features("base", np.array([NAN, 0.2]))
    tables.write_csv(table, tmp_path / "t.csv")
    tables.write_parquet(table, tmp_path / "t.parquet")
    assert pyarrow.csv.read_csv(tmp_path / "t.csv")["density"].to_pylist() == [None, 0.2]
    assert pyarrow.parquet.read_table(tmp_path / "t.parquet").equals(table)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.csv", "t.parquet"]


def test_an_edge_in_a_table_has_its_intervals_and_the_papers_figures(full_view: View):
    edge = full_view.summary.edges["base->cpp"]
    row = tables.edges({"base->cpp": edge}, "parent").to_pylist()[0]
    assert (row["persist_low"], row["persist_high"]) == edge.intervals["persist"]
    assert edge.paper and edge.chance and edge.corrected
    assert (row["paper_persist"], row["paper_ceiling"]) == (edge.paper.persist, edge.paper.ceiling)
    assert (row["paper_persist_low"], row["paper_emerge_high"]) == (
        edge.paper.intervals["persist"][0],
        edge.paper.intervals["emerge"][1],
    )
    assert (row["threshold_by"], row["one_dictionary"], row["relative"]) == ("evidence", False, edge.relative)
    assert (row["chance_parent_above"], row["corrected_persist"]) == (edge.chance.parent_above, edge.corrected.persist)
    bare = edge.model_copy(update={"paper": None, "chance": None, "corrected": None, "intervals": {}})
    row = tables.edges({"base->cpp": bare}, "parent").to_pylist()[0]
    assert row["paper_persist"] is row["chance_parent_above"] is row["persist_low"] is row["corrected_median"] is None


def test_rules_and_strata_have_tables_of_their_own(full_view: View):
    edges = full_view.summary.edges
    edge = edges["base->cpp"]
    rules = tables.rules(edges, "parent").to_pylist()
    assert len(rules) == len(edges) * len(edge.rules)
    (flagged,) = [row for row in rules if row["edge"] == "base->cpp" and row["flag"]]
    assert flagged["rule"] == "token_types"
    assert flagged["of_live"] == edge.rules["token_types"].persist / edge.parent_live
    strata = tables.strata(edges, "parent").to_pylist()
    own = [row for row in strata if (row["edge"], row["end"]) == ("base->cpp", "parent")]
    assert sum(row["matched"] for row in own) == edge.persist
    assert {row["stratum"]: row["of_live"] for row in own}["dead"] is None


def test_an_edge_drawn_keeps_what_its_threshold_stands_between():
    view = edge_view(np.array([0.9]), np.array([0.9]), evidence=(0.1, 0.9))
    assert (view.chance, view.same) == (0.1, 0.9)
    assert edge_view(np.array([0.9]), np.array([0.9])).chance is None


def test_scores_of_explanations_are_counted_in_the_bins_that_the_page_draws():
    assert np.array_equal(compare.BINS, BINS)
