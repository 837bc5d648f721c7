"""What verdicts and matches say of an edge, in which order, and under which question."""

from __future__ import annotations

from typing import Any

import pytest

from heredity.analyses import match_findings, statements_of, verdicts
from heredity.analyses.verdict_findings import FEW_STABLE
from show.runs import fates, judged

EDGE = "base->sums"


def rows(**changes: Any) -> dict[str, list[dict[str, Any]]]:
    """Tables of one edge, with verdicts on both of its ends."""
    ends = [judged(EDGE, "joint", end, 80, 5) | changes for end in ("parent", "child")]
    known = {
        "instrument": "joint",
        "site": ends[0]["site"],
        "edge": EDGE,
        "text": "common",
        "stable": 50,
        "changed": 0,
        "undecided": 0,
    }
    known |= {"kept": 45, "lost": 0, "kept_difference_low": 0.01}
    references = [known | {"reference": name} for name in ("edit", "codebook", "token identity")]
    return {"verdicts": ends, "references": references, "edges": [fates(EDGE, "joint", "evidence", 90)]}


def test_verdicts_say_what_was_kept_lost_and_new_and_how_sure_that_is():
    said = {one.question: one for one in verdicts.ANALYSIS.say(rows())}
    assert {one.about for one in said.values()} == {"sums"}
    covered = "over SAE seeds and features"
    assert {question: one.text for question, one in said.items()} == {
        "inherited": f"sums kept 80 of 100 stable features of base (80 %, 95 % CI 78–82 % {covered}) and changed 13 "
        "(13 %).",
        "lost": f"sums lost 5 of 100 stable features of base (5 %, 95 % CI 3–7 % {covered}); 2 are undecided.",
        "new": f"5 of 100 stable features of sums are new compared with base (5 %, 95 % CI 3–7 % {covered}); 80 are "
        "inherited, 13 changed, 2 are undecided.",
        "sure": "Judged with SAEs of another seed, 90 % of 90 features of base get the same verdict in sums.",
    }
    assert [line.split(": ")[1] for line in said["sure"].evidence] == ["45 of 50 (90 %) kept, 0 lost"] * 3
    assert said["new"].evidence == (
        "28 of 128 live features of sums are unstable (not found again by an SAE of another seed) and not judged",
    )


def test_what_is_new_or_lost_on_another_text_names_that_text():
    tables = rows()
    tables["verdicts"] += [row | {"text": "own", "corpora": "sums"} for row in tables["verdicts"]]
    tables["verdicts"] += [tables["verdicts"][0] | {"text": "news", "corpora": "news"}]
    said = [one for one in verdicts.ANALYSIS.say(tables) if one.text.startswith("On ")]
    own, share = "On sums, the text it was fine-tuned on, ", "(5 %, 95 % CI 3–7 % over SAE seeds and features)"
    rest, found = (f"{word} and changed 13; 2 are undecided." for word in ("kept 80", "80 inherited"))
    assert [(one.about, one.question, one.text) for one in said] == [
        ("sums", "lost", f"{own}sums lost 5 of 100 stable features of base {share}, {rest}"),
        ("sums", "new", f"{own}5 of 100 stable features of sums are new compared with base {share}, {found}"),
        ("sums", "lost", f"On news, sums lost 5 of 100 stable features of base {share}, {rest}"),
    ]


@pytest.mark.parametrize(("stable", "noted"), [(round(FEW_STABLE * 100), False), (29, True), (0, True)])
def test_too_few_stable_features_are_noted_once_for_all_models(stable, noted):
    tables = rows(live=100, stable=stable, kept=stable, changed=0, lost=0, undecided=0)
    tables["verdicts"] *= 2
    said = list(verdicts.ANALYSIS.say(tables))
    notes = [one.text for one in said if one.question == "note"]
    share = {29: "29", 0: "0"}.get(stable)
    words = (
        f"SAEs of base and sums (instrument joint): {stable} of 100 ({share} %) and {stable} of 100 ({share} %) live"
    )
    assert len(notes) == int(noted) and all(note.startswith(words) for note in notes)
    assert (len(said) > len(notes)) == (stable > 0)


def test_verdicts_come_first_and_matches_say_what_they_count():
    said = statements_of(rows())
    assert [one.question for one in said] == ["inherited", "lost", "sure", "new", *["matches"] * 4]
    for one in said[4:]:
        assert one.text.startswith("By matches alone (r > 0.50, all live features, unstable ones included): ")


def test_no_interval_of_what_the_instrument_can_show_reaches_beyond_all_of_it():
    own = {"persist": 110, "disappear": 18, "ceiling": 0.88, "relative": 0.977, "relative_low": 0.97}
    for high, words in ((1.03, "98 % (95 % CI 97–100 %) of what"), (0.99, "98 % (95 % CI 97–99 %) of what")):
        tables = {"edges": [fates(EDGE, "joint", "evidence", 90) | own | {"relative_high": high}]}
        assert any(words in one.text for one in statements_of(tables))


def test_edges_that_one_note_is_about_are_named_in_it():
    own = [fates(edge, "joint", "evidence", 90) | {"threshold": 0.2} for edge in (EDGE, "base->tuned")]
    rare = [{"end": "parent", "stratum": "rare", "features": 64, "matched": 1, **one} for one in own]
    said = [one.text for one in match_findings.findings({"edges": own, "strata": rare}) if one.question == "note"]
    place = "edges base->sums and base->tuned (instrument joint)"
    assert [text.partition(";")[0] for text in said] == [
        f"{place}: SAEs of one model agree so little that evidence puts the threshold at 0.2",
        f"{place}: 64 of 128 and 64 of 128 live features fire on fewer than 30 of the tokens, too few to tell lost "
        "from kept",
    ]


def test_matches_answer_the_questions_where_there_are_no_verdicts():
    for tables in ({"edges": rows()["edges"]}, rows(stable=0)):
        said = list(match_findings.findings(tables))
        assert [one.question for one in said] == ["inherited", "lost", "new", "sure"]
        assert "90 of 128 (70 %, 95 % CI 87–93) live features of base persist in sums." in said[0].text
        assert (
            "38 of 128 (30 %, 95 % CI 35–41) live features of base disappear in sums; 13 would between two"
            in said[1].text
        )
