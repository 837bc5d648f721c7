"""What the commands show that look at one thing: an edge, a merge, features that fit, explanations, a feature."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from heredity.features.null import PAPER
from heredity.report import console

_WIDTH = 100  # of what is shown of a feature; longer lines of text are hard to read
_TOKEN = 16  # cells of a token in a table or an example
_INDENT = 3  # spaces that are shown one by one; longer tokens of spaces are counted
_ROWS = 10  # tokens in a table
_BARS = " ▁▂▃▄▅▆▇█"
_HEAT = ("black on #ffe7c7", "black on #ffc37d", "bold black on #ff9a2e")  # activation: weak, middling, strong
_SHAPES = {" ": "␣", "\n": "↵", "\t": "→"}


def print_merge(result: Mapping[str, Any]) -> None:
    """`heredity merge`."""
    table = Table("tensor", "angle", "method", "norm ratio")
    for row in result["tensors"]:
        angle = f"{row['angle_degrees']:.2f}°" if row["angle_degrees"] is not None else ""
        ratio = f"{row['norm_ratio']:.4f}" if row["norm_ratio"] is not None else ""
        table.add_row(row["name"], angle, row["method"], ratio)
    console.out.print(table)
    console.out.print(f"{result['method']} of {', '.join(result['models'])} -> {result['out']}", markup=False)


def print_edge(result: Mapping[str, Any]) -> None:
    """`heredity track`."""
    table = console.table("", "", "count", "interval", "of live", "of all", f"at r > {PAPER:g}", "interval")
    paper = result["paper"]
    for name in ("persist", "disappear", "emerge", "one_to_one"):
        end = "child" if name == "emerge" else "parent"
        live, features = result[f"{end}_live"], result[f"{end}_features"]
        shares = console.share(result[name], live), console.share(result[name], features)
        own, theirs = (console.ends(found["intervals"].get(name)) for found in (result, paper))
        table.add_row(console.origin(name), f"{result[name]:,}", own, *shares, f"{paper[name]:,}", theirs)
    for name in ("ceiling", "floor", "relative"):
        label = "of ceiling" if name == "relative" else name
        own, theirs = (console.ends(found["intervals"].get(name), share=True) for found in (result, paper))
        table.add_row(label, "", own, console.percent(result[name]), "", console.percent(paper[name]), theirs)
    console.out.print(table)
    if result["ceiling"] is None:
        console.out.print("ceiling not measured: give --sae-control")
    chance = result["chance"]
    found = result.get("rules", {})
    how = console.thresholds(
        [(result["threshold"], result["threshold_by"], result["ceiling"], result["one_dictionary"])]
    )
    above = f"{chance['parent_above']:,} of {result['parent_live']:,} live features match better than chance"
    console.out.print(f"{result['tokens']:,} tokens; {how}", soft_wrap=True)
    tail = f"(false discovery rate {chance['rate']:.0%}); {result['level']:.0%} intervals"
    console.out.print(f"{above} {tail}", soft_wrap=True)
    if found:
        rules = ", ".join(
            f"{console.origin(rule)} {console.share(row['persist'], result['parent_live'])}"
            for rule, row in found.items()
        )
        console.out.print(f"persist by other rules: {rules}", soft_wrap=True)
        for rule, row in found.items():
            if row["flag"]:
                console.out.print(f"beware of {console.origin(rule)}: it {row['flag']}", soft_wrap=True, style="dim")


def print_found(found: Mapping[str, Any]) -> None:
    """`heredity find`: for each model the features that fit, best first."""
    console.out.print(
        f"{found['hits']:,} of {found['positions']:,} tokens of the sample fit ({found['base_rate']:.3%})\n"
    )
    if found["not_in_vocabulary"]:
        absent = ", ".join(map(repr, found["not_in_vocabulary"]))
        console.out.print(f"not single tokens here, and so not looked for: {absent}\n", markup=False)
    headings = ("feature", "LLR", "counted", "sensitivity", "elsewhere", "hits", "firings", "density", "best match")
    for model, rows in found["models"].items():
        table = console.table(f"{model}, by {found['by']}", *headings)
        table.columns[-1].justify, table.columns[-1].no_wrap = "left", False
        for row in rows:
            fit = [console.number(row[key]) for key in ("llr", "llr_counted", "sensitivity")]
            counts = f"{row['elsewhere']:.3g}x", f"{row['hits']:,}", f"{row['firings']:,}", f"{row['density']:.2%}"
            table.add_row(str(row["feature"]), *fit, *counts, ", ".join(map(_became, row["matches"])))
        console.out.print(
            table if rows else f"{model}: no feature fits and fires {found['minimum_firings']} times on them\n"
        )


def _became(match: Mapping[str, Any]) -> str:
    known = f"{match['feature']} r {match['r'] or 0:.2f}{'' if match['persists'] else ' (no match)'}"
    return f"{match['model']}/{known if match['r'] is not None else 'none'}"


def print_explained(found: Mapping[str, Any]) -> None:
    """`heredity explain`: what was explained, or with `--estimate` what it would take."""
    if "at_most" in found:
        most = found["at_most"]
        console.out.print(
            f"{found['features']:,} features of study {found['study']}, by {found['judge']}: at most "
            f"{most['requests']:,} requests; about {most['tokens_in']:,} tokens in and {most['tokens_out']:,} out for "
            f"all of them, ${most['cost']:,.2f} at the prices given",
            markup=False,
            soft_wrap=True,
        )
        return
    table = console.table(f"Explanations by {found['judge']}", "feature", "simulation", "label", "description")
    for column in table.columns[2:]:
        column.justify = "left"
    table.columns[3].no_wrap = False
    for row in found["examples"]:
        said = row["description"] if row["description"] is not None else f"none: {row['failure'].replace('_', ' ')}"
        origin = f"from {row['origin']}" if row["carried"] else "own"
        table.add_row(row["feature"], console.number(row["simulation"]), origin, Text(_seen(said, False)))
    if found["examples"]:
        console.out.print(table)
    lines = [console.labels(found)]
    if found["median_simulation"] is not None:
        lines.append(f"median simulation score {found['median_simulation']:.3f}")
    if found["failures"]:
        kinds = ", ".join(f"{kind.replace('_', ' ')} {count:,}" for kind, count in found["failures"].items())
        lines.append(f"answers that did not come: {kinds}")
    if found["ledger"] is not None:
        lines.append(_paid(found["ledger"]))
    if not found["complete"]:
        reasons = found["ledger"]["reasons"] if found["ledger"] else {}
        lines += [f"{kind}: {_seen(why, False)}" for kind, why in reasons.items()]
        lines.append(
            "not complete: raise the limit that was met, or mend what refused, and run the same command to go on"
        )
    lines.append(f"written to {found['out']}")
    console.out.print("\n".join(lines), markup=False, soft_wrap=True)


def _paid(ledger: Mapping[str, Any]) -> str:
    return (
        f"{ledger['requests']:,} requests in the ledger, {ledger['cached']:,} answers of this run were there already; "
        f"{ledger['tokens_in']:,} tokens in, {ledger['tokens_out']:,} out, ${ledger['cost']:,.2f}"
    )


def print_shown(found: Mapping[str, Any], top: int) -> None:
    """`heredity show`: one feature, with `top` examples of each sort, and of each interval of activation at least one.

    Active tokens are set off by color, stronger where the activation is; without color they stand in « ».
    """
    say, width = console.out.print, min(console.out.width, _WIDTH)
    say(*_head(found), sep="\n", width=width)
    if found["tokens"]:
        say(_tokens_of(found), width=width)
    if found["no_logits"]:
        say(Text(f"what it predicts is not known: {found['no_logits']}", "dim"), width=width)
    for table in (_matches_of(found), _family_of(found)):
        if table.row_count:
            say(table, width=width)
    filled = [level["examples"] for level in found["levels"] if level["examples"]]
    each = -(-top // max(len(filled), 1))
    sorts = {
        "Where it is strongest, and its family there": found["top"][:top],
        f"From each of {len(found['levels'])} intervals of activation": [
            one for level in filled for one in level[:each]
        ],
        "Firings at random": found["drawn"][:top],
        "Text where it is silent": found["silent"][:top],
    }
    corpora = max((len(one["corpus"]) for shown in sorts.values() for one in shown), default=0)
    for title, shown in sorts.items():
        if shown:
            say(Text(title, "bold"), *_lines(shown, found["max"], corpora, width), "", sep="\n", width=width)


def _head(found: Mapping[str, Any]) -> list[Text]:
    name, sort, said = f"{found['model']}/{found['feature']}", found["class"], found["explanation"]
    kind = "class not told: run the study until classes"
    if sort is not None:
        kind = sort["class"]
        kind += f", nearly all on {_visible(sort['top_token'], True)}" if sort["single_token"] else ""
        kind += f", {sort['domain_share']:.0%} in {sort['domain']}" if sort["domain"] else ""
    missing = f"no description: {said['failure'].replace('_', ' ')}"
    described = Text(_seen(said["description"] or missing, False), "italic" if said["description"] else "dim")
    scores = [name for name in ("simulation", "detection", "fuzzing", "intruder") if said[name] is not None]
    origin = "its own"
    if said["carried"]:
        origin = f"handed down from {said['origin_model']}/{said['origin_feature']}"
    elif said["re_explained"]:
        origin = "its own, as a match's fell short"
    elif said["on_the_spot"]:
        origin = "made just now, as the run did not explain this feature"
    judged = ", ".join([f"{name} {said[name]:.2f}" for name in scores] + [f"by {said['by']}", origin])
    count, positions = found["firings"], found["positions"]
    often = f"fires on {found['density']:.3%} of {positions:,} tokens of the sample ({count:,})"
    return [
        Text.assemble((name, "bold"), "  ", kind),
        described,
        Text(judged if said["description"] else origin, "dim"),
        Text(""),
        Text(
            f"{often}, at most {_figure(found['max'])}"
            if count
            else f"never fires on {positions:,} tokens of the sample"
        ),
        *([_bars(found["histogram"], found["max"])] if count else []),
    ]


def _bars(counts: Sequence[int], highest: float) -> Text:
    """Counts as characters of eight heights; a bin with a firing is never blank."""
    most = max(counts)
    drawn = "".join(_BARS[-(-count * (len(_BARS) - 1) // most)] for count in counts)
    return Text.assemble(("0 ", "dim"), (drawn, "yellow"), (f" {_figure(highest)}", "dim"), f"  fullest bin {most:,}")


def _tokens_of(found: Mapping[str, Any]) -> Table:
    """What it fires on, and beside it what it predicts."""
    made = console.table("", "fires on", "activation", "firings", "mean", "occurrences")
    made.title = None
    ends = [(found["promoted"], "promotes"), (found["suppressed"], "suppresses")] if found["promoted"] else []
    for _, heading in ends:
        made.add_column(heading, no_wrap=True)
        made.add_column("", justify="right", no_wrap=True)
    for place in range(min(_ROWS, max(len(rows) for rows in (found["tokens"], *(rows for rows, _ in ends))))):
        cells: list[str | Text] = [""] * 5
        if place < len(found["tokens"]):
            row = found["tokens"][place]
            counts = f"{row['share']:.1%}", f"{row['firings']:,}", _figure(row["mean"]), f"{row['fired']:.0%}"
            cells = [_table_token(row["token"]), *counts]
        for rows, _ in ends:
            pushed = rows[place] if place < len(rows) else None
            cells += ["", ""] if pushed is None else [_table_token(pushed["token"]), f"{pushed['weight']:+#.3g}"]
        made.add_row(*cells)
    return made


def _table_token(token: str) -> Text:
    return Text(_visible(token, True))


def _matches_of(found: Mapping[str, Any]) -> Table:
    made = console.table("Best match along every edge", "edge", "match", "r", "threshold", "")
    made.columns[1].justify = made.columns[4].justify = "left"
    for row in found["matches"]:
        match = f"{row['model']}/{row['feature']}" if row["feature"] is not None else "none"
        fate = Text("persists", "green") if row["persists"] else Text("does not persist", "red")
        made.add_row(row["edge"], match, console.number(row["r"]), console.number(row["threshold"]), fate)
    return made


def _family_of(found: Mapping[str, Any]) -> Table:
    made = console.table("Family: the best matches of best matches", "feature", "r", "with", "density", "highest")
    made.columns[2].justify = "left"
    for row in found["family"] if len(found["family"]) > 1 else ():
        name, strength = f"{row['model']}/{row['feature']}", (f"{row['density']:.3%}", _figure(row["max"]))
        made.add_row(name, console.number(row["r"]), row["via"] or "", *strength)
    return made


def _lines(shown: Iterable[Mapping[str, Any]], highest: float, corpora: int, width: int) -> Iterable[Text | Padding]:
    """Each example on a line, its firing below that of the others; below a strongest one what its family does there."""
    for one in shown:
        silent = "position" not in one
        value = "" if silent else _figure(one["values"][one["position"]])
        start = f"  {value:>6}  {one['corpus']:<{corpora}}  "
        text = _opening(one["tokens"], width - len(start)) if silent else _around(one, highest, width - len(start))
        yield Text.assemble((start, "dim"), text)
        if one.get("family"):
            others = [f"{model} {_figure(values[one['position']])}" for model, values in one["family"].items()]
            yield Padding(Text(" · ".join(others), "dim"), (0, 0, 0, len(start)), expand=False)


def _around(one: Mapping[str, Any], highest: float, width: int) -> Text:
    """The firing an example was chosen for, with as many whole tokens around it as there is room for."""
    at, strength = one["position"], [value / highest if highest > 0 else 0.0 for value in one["values"]]
    pieces = [_piece(*row) for row in zip(one["tokens"], strength, strict=True)]
    room = width * 5 // 9
    before = list(reversed(_fitting(list(reversed(pieces[:at])), room)))
    padding = " " * (room - sum(piece.cell_len for piece in before))
    after = _fitting(pieces[at + 1 :], width - room - pieces[at].cell_len)
    return Text.assemble(padding, *before, pieces[at], *after)


def _opening(tokens: Sequence[str], width: int) -> Text:
    return Text.assemble(*_fitting([_piece(token, 0.0) for token in tokens], width))


def _fitting(pieces: Sequence[Text], room: int) -> list[Text]:
    """As many pieces as fit, and an ellipsis where there are more."""
    taken = []
    for piece in pieces:
        room -= piece.cell_len
        if room < 1:
            return [*taken, Text("…")]
        taken.append(piece)
    return taken


def _piece(token: str, strength: float) -> Text:
    """A token in running text, set off by how strongly it is active: 1 the highest activation, 0 none."""
    if not strength:
        return Text(_visible(token, False))
    seen = _visible(token, True)
    if console.out.color_system is None or console.out.no_color:
        return Text(f"«{seen}»")
    return Text(seen, _HEAT[min(int(max(strength, 0.0) * len(_HEAT)), len(_HEAT) - 1)])


def _visible(token: str, spaces: bool) -> str:
    """A token as it is shown, cut where it is long."""
    if len(token) > _INDENT and not token.strip(" "):
        return f"␣×{len(token)}"
    shown = _seen(token, spaces)
    return shown if len(shown) <= _TOKEN else f"{shown[: _TOKEN - 1]}…"


def _seen(text: str, spaces: bool) -> str:
    """Characters that can be seen and do nothing to a terminal; `spaces`: the blank as well is made visible."""
    return "".join(one if one == " " and not spaces else _character(one) for one in text)


def _figure(value: float) -> str:
    return f"{value:#.3g}".removesuffix(".")


def _character(character: str) -> str:
    if character in _SHAPES:
        return _SHAPES[character]
    if character.isprintable():
        return character
    return chr(0x2400 + ord(character)) if ord(character) < 0x20 else "�"
