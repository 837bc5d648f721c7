"""One feature on the terminal: what it means, its matches, and the text it fires on (`heredity show`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice, zip_longest
from typing import Any

from rich.padding import Padding
from rich.text import Text

from heredity.show import terminal
from heredity.tables import Column, Table

_TOKEN = 16  # cells of a token in a table or an example
_INDENT = 3  # spaces that are shown one by one; longer tokens of spaces are counted
_ROWS = 10  # tokens in a table
_BARS = " ▁▂▃▄▅▆▇█"
_HEAT = ("black on #ffe7c7", "black on #ffc37d", "bold black on #ff9a2e")  # activation: weak, middling, strong
_SHAPES = {" ": "␣", "\n": "↵", "\t": "→"}

TOKENS = Table(
    "tokens",
    "Tokens it fires on, and tokens it predicts.",
    (),
    (
        Column("fires_on", "text", "Token."),
        Column("activation", "share", "The token's share of all its activation."),
        Column("firings", "count", "Firings on the token."),
        Column("mean", "number", "Mean activation of the firings."),
        Column("occurrences", "share", "Share of the token's occurrences on which it fires."),
        Column("promotes", "text", "Token that becomes likelier."),
        Column("logit", "number", "Weight in its logit."),
        Column("suppresses", "text", "Token that becomes less likely."),
        Column("logit_", "number", "Weight in its logit."),
    ),
)
MATCHES = Table(
    "matches",
    "Best match along every edge.",
    ("edge",),
    (
        Column("match", "text", "Feature of the other model."),
        Column("r", "r", "Pearson r."),
        Column("threshold", "r", "Of the edge."),
        Column("persists", "flag", "Whether r exceeds the threshold."),
    ),
)
FAMILY = Table(
    "family",
    "Family: the best matches of best matches.",
    ("feature",),
    (
        Column("feature", "text", "MODEL/FEATURE."),
        Column("r", "r", "With the match that leads to it."),
        Column("via", "text", "Model of that match."),
        Column("density", "share", "Share of tokens on which it fires."),
        Column("max", "number", "Highest activation."),
    ),
)


def print_shown(card: Mapping[str, Any], top: int) -> None:
    """A feature with `top` examples of each sort, and of each interval of activation at least one.

    Active tokens are set off by color, stronger where the activation is; without color they stand in « ».
    """
    width = min(terminal.out.width, terminal.WIDTH)
    terminal.out.print(*_head(card), sep="\n", width=width)
    rows = []
    for fired, up, down in islice(zip_longest(card["tokens"], card["promoted"], card["suppressed"]), _ROWS):
        row = fired | {"activation": fired["share"], "occurrences": fired["fired"]} if fired else {}
        for token, name, weight in ((fired, "fires_on", ""), (up, "promotes", "logit"), (down, "suppresses", "logit_")):
            if token:
                row |= {name: _visible(token["token"], True)} | ({weight: token["weight"]} if weight else {})
        rows.append(row)
    if rows:
        terminal.print_table(TOKENS, rows)
    if card["no_logits"]:
        terminal.say(f"what it predicts is not known: {card['no_logits']}")
    if card["verdicts"]:
        terminal.say(*map(_verdict, card["verdicts"]), "")
    matches = [row | {"match": _id(row) if row["feature"] is not None else "none"} for row in card["matches"]]
    family = [row | {"feature": _id(row)} for row in card["family"]]
    for table, part in ((MATCHES, matches), (FAMILY, family if len(family) > 1 else [])):
        if part:
            terminal.print_table(table, part)
    filled = [level["examples"] for level in card["levels"] if level["examples"]]
    each = -(-top // max(len(filled), 1))
    intervals = f"From each of {len(card['levels'])} intervals of activation"
    sorts = {
        "Where it is strongest, and its family there": card["top"][:top],
        intervals: [example for level in filled for example in level[:each]],
        "Firings at random": card["drawn"][:top],
        "Text where it is silent": card["silent"][:top],
    }
    corpora = max((len(example["corpus"]) for examples in sorts.values() for example in examples), default=0)
    for title, examples in sorts.items():
        if examples:
            lines = _lines(examples, card["max"], corpora, width)
            terminal.out.print(Text(title, "bold"), *lines, "", sep="\n", width=width)


def _id(row: Mapping[str, Any]) -> str:
    return f"{row['model']}/{row['feature']}"


def _verdict(row: Mapping[str, Any]) -> str:
    """`verdict in lua: changed (transmission 0.62, match r 0.55, stability 0.93): transmission 0.62 is outside ...`."""
    figures = {"transmission": "transmission", "match r": "match_r", "stability": "stability"}
    known = ", ".join(f"{words} {row[name]:.2f}" for words, name in figures.items() if row[name] is not None)
    place = f"in {row['model']}" if row["end"] == "parent" else f"compared with {row['model']}"
    return f"verdict {place}: {row['verdict']}{f' ({known})' if known else ''}: {row['reason']}"


def _head(card: Mapping[str, Any]) -> list[Text]:
    sort, label = card["class"], card["explanation"]
    kind = "class not known: run the study until classes"
    if sort is not None:
        kind = sort["class"]
        kind += f", nearly all on {_visible(sort['top_token'], True)}" if sort["single_token"] else ""
        kind += f", {sort['domain_share']:.0%} in {sort['domain']}" if sort["domain"] else ""
    origin = "its own"
    if label["carried"]:
        origin = f"handed down from {label['origin_model']}/{label['origin_feature']}"
    elif label["re_explained"]:
        origin = "its own, as a match's fell short"
    elif label["on_the_spot"]:
        origin = "made just now, as the run did not explain this feature"
    described, judged = Text(f"no description: {(label['failure'] or '').replace('_', ' ')}", "dim"), origin
    if label["description"]:
        described = Text(_seen(label["description"], False), "italic")
        scores = [name for name in ("simulation", "detection", "fuzzing", "intruder") if label[name] is not None]
        judged = ", ".join([*(f"{name} {label[name]:.2f}" for name in scores), f"by {label['by']}", origin])
    head = [Text.assemble((_id(card), "bold"), "  ", kind), described, Text(judged, "dim"), *_notes(card), Text("")]
    count, positions, highest = card["firings"], card["positions"], _figure(card["max"])
    if not count:
        return [*head, Text(f"never fires on {positions:,} tokens of the sample")]
    often = f"fires on {card['density']:.3%} of {positions:,} tokens of the sample ({count:,}), at most {highest}"
    # firings by activation as characters of eight heights; a bin with a firing is never blank
    most = max(card["histogram"])
    drawn = "".join(_BARS[-(-size * (len(_BARS) - 1) // most)] for size in card["histogram"])
    ends = ("0 ", "dim"), (drawn, "yellow"), (f" {highest}", "dim")
    return [*head, Text(often), Text.assemble(*ends, f"  fullest bin {most:,}")]


def _notes(card: Mapping[str, Any]) -> Iterable[Text]:
    """What people wrote: `note by ada: fires on sums #code`."""
    for note in card["notes"]:
        by = f" by {_seen(note['by'], False)}" if note["by"] else ""
        tags = "".join(f" #{_seen(tag, False)}" for tag in note["tags"])
        text = f" {_seen(note['text'], False)}" if note["text"] else ""
        yield Text.assemble((f"note{by}:", "bold"), text, (tags, "cyan"))


def _lines(examples: Iterable[Mapping[str, Any]], highest: float, corpora: int, width: int) -> Iterable[Text | Padding]:
    """Each example on a line, its firing below that of the others; below a strongest one what its family does there."""
    for example in examples:
        at = example.get("position")
        value = "" if at is None else _figure(example["values"][at])
        start = f"  {value:>6}  {example['corpus']:<{corpora}}  "
        yield Text.assemble((start, "dim"), _running(example, at, highest, width - len(start)))
        if example.get("family"):
            others = [f"{model} {_figure(values[at])}" for model, values in example["family"].items()]
            yield Padding(Text(" · ".join(others), "dim"), (0, 0, 0, len(start)), expand=False)


def _running(example: Mapping[str, Any], at: int | None, highest: float, width: int) -> Text:
    """The text of an example: the firing it was chosen for, `at`, with as many whole tokens as there is room for."""
    if at is None:
        return Text.assemble(*_fitting([_piece(token, 0.0) for token in example["tokens"]], width))
    strength = [value / highest if highest > 0 else 0.0 for value in example["values"]]
    pieces = [_piece(*row) for row in zip(example["tokens"], strength, strict=True)]
    room = width * 5 // 9
    before = _fitting(pieces[:at][::-1], room)[::-1]
    padding = " " * (room - sum(piece.cell_len for piece in before))
    after = _fitting(pieces[at + 1 :], width - room - pieces[at].cell_len)
    return Text.assemble(padding, *before, pieces[at], *after)


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
    shown = _visible(token, True)
    if terminal.out.color_system is None or terminal.out.no_color:
        return Text(f"«{shown}»")
    return Text(shown, _HEAT[min(int(max(strength, 0.0) * len(_HEAT)), len(_HEAT) - 1)])


def _visible(token: str, spaces: bool) -> str:
    """A token as it is shown, cut where it is long."""
    if len(token) > _INDENT and not token.strip(" "):
        return f"␣×{len(token)}"
    shown = _seen(token, spaces)
    return shown if len(shown) <= _TOKEN else f"{shown[: _TOKEN - 1]}…"


def _seen(text: str, spaces: bool) -> str:
    """Characters that can be seen and do nothing to a terminal; `spaces`: the blank as well is made visible."""

    def shown(character: str) -> str:
        if character.isprintable() or character in _SHAPES:
            return character if character == " " and not spaces else _SHAPES.get(character, character)
        return chr(0x2400 + ord(character)) if ord(character) < 0x20 else "�"

    return "".join(map(shown, text))


def _figure(value: float) -> str:
    return f"{value:#.3g}".removesuffix(".")
