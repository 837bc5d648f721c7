"""The console: progress bars, tables, and numbers as the command line writes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from heredity.report.record import Interval

out = Console(highlight=False)
if not out.is_terminal:
    out.width = max(out.width, 120)  # a file or a pipe has no width that tables would have to be cut to


class Bars:
    """Progress of a study: a line for every stage that is done, a bar with an estimate for the one at work."""

    def __init__(self, console: Console):
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description:<32}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._count = self._stages = 0

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def expect(self, stages: int) -> None:
        """Say how many stages there are."""
        self._stages = stages

    def start(self, stage: Any) -> None:
        """A stage begins."""
        self._count += 1
        self._task = self._progress.add_task(stage.label, total=None)

    def progress(self, stage: Any, done: int, total: int) -> None:  # noqa: ARG002 - the engine's protocol
        """A stage has come this far."""
        if self._task is not None:
            self._progress.update(self._task, completed=done, total=total)

    def end(self, stage: Any, seconds: float, cached: bool) -> None:
        """A stage is complete."""
        if self._task is not None:
            self._progress.remove_task(self._task)
        if not cached:
            place = f"{self._count:>{len(str(self._stages))}}/{self._stages}"
            self._console.print(f"  {place}  {stage.label:<44} {seconds:6.1f} s")

    def plain(self, label: str) -> Callable[[int, int], None]:
        """A progress callback for one piece of work outside a study."""
        task = self._progress.add_task(label, total=None)
        return lambda done, total: self._progress.update(task, completed=done, total=total)


def duration(seconds: float) -> str:
    """Seconds in words of the right size."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def origin(key: str) -> str:
    """`emerged_in_lua_stories` as words; names of models keep their underscores."""
    prefix = "emerged_in_"
    return f"emerged in {key.removeprefix(prefix)}" if key.startswith(prefix) else key.replace("_", " ")


def thresholds(rows: Sequence[tuple[float, str, float | None, bool]]) -> str:
    """How the thresholds of some edges came about; rows: threshold, by what, ceiling, one dictionary."""
    low, high = min(row[0] for row in rows), max(row[0] for row in rows)
    span = f"r > {low:.2f}" if low == high else f"r > {low:.2f} to {high:.2f}"
    if rows[0][1] == "study":
        return f"{span}, as given"
    if all(row[3] for row in rows):
        return f"{span}: between chance and 1; one SAE reads all models, so an unchanged one keeps everything"
    same = "the best matches of the edge" if all(row[2] is None for row in rows) else "two SAEs of one model"
    return f"{span}: between chance and {same}"


def labels(found: Mapping[str, Any]) -> str:
    """What handing labels down was worth; found: counts by name."""
    saved = f"{found['saved']:,} explanations saved"
    if found["saved_cost"]:
        saved += f" (${found['saved_cost']:.2f})"
    return (
        f"{found['features']:,} features asked about, {found['too_rare']:,} more too rare; {found['explained']:,} "
        f"explained, {found['carried']:,} tried with a match's label: {found['kept']:,} keep it, "
        f"{found['re_explained']:,} explained anew; {saved}; {found['failed']:,} failed"
    )


def table(title: str, *headings: str) -> Table:
    """A table whose first column is text and whose others are numbers."""
    made = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    made.padding, made.pad_edge = (0, 1, 0, 0), False
    for place, heading in enumerate(headings):
        made.add_column(heading, justify="right" if place else "left", no_wrap=True)
    return made


def number(value: float | None) -> str:
    """Three digits after the point; empty for None."""
    return "" if value is None else f"{value:.3f}"


def share(count: int, whole: int) -> str:
    """A count as a share of a whole; empty where there is nothing to share."""
    return f"{count / whole:.1%}" if whole else ""


def ratio(count: int, whole: int) -> float | None:
    """A count over a whole; None where there is nothing to share."""
    return count / whole if whole else None


def percent(value: float | None, digits: int = 1) -> str:
    """A share in percent; empty for None."""
    return "" if value is None else f"{value:.{digits}%}"


def ends(interval: Interval | None, share: bool = False) -> str:
    """`[1,640–1,702]`, or as shares; empty without an interval."""
    low, high = interval or (None, None)
    if low is None or high is None:
        return ""
    return f"[{100 * low:.1f}–{high:.1%}]" if share else f"[{low:,.0f}–{high:,.0f}]"
