"""How far the work has come, on stderr: bars in a terminal, plain lines in a log, JSON lines for a program."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, Literal, get_args

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from heredity import format
from heredity.engine.stage import Watcher
from heredity.show import seen

Form = Literal["auto", "bars", "lines", "json"]
_LINE_SECONDS = 30.0  # between two lines of one stage in a log
_EVENT_SECONDS = 1.0  # between two events of one stage
_RESUMED = "its worker was lost, another one goes on"


def watcher_of(form: str, console: Console) -> Following:
    """The watcher of a form; `auto` is bars in a terminal and lines elsewhere. Raises ValueError for another."""
    if form not in get_args(Form):
        raise ValueError(f"--progress {form}: must be auto, bars, lines or json")
    if form == "auto":
        form = "bars" if console.is_terminal else "lines"
    return {"bars": Bars, "lines": Lines, "json": Events}[form](console)


class Following(Watcher):
    """Follows stages and single pieces of work; forms say what is written of them."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.stages = 0  # how many there are
        self.at_work: dict[str, int] = {}  # label of each stage at work, with its number: stages begun until then
        self.count = 0  # stages begun
        self.worked: list[str] = []  # labels of the stages that were done, and not found done already

    @property
    def stage(self) -> str:
        """Label of the stage at work; empty where there is none, or several."""
        return next(iter(self.at_work)) if len(self.at_work) == 1 else ""

    def __enter__(self) -> Following:
        return self

    def __exit__(self, *_: object) -> None: ...

    def start(self, stage: Any) -> None:
        """A stage begins."""
        self.count += 1
        self.at_work[stage.label] = self.count
        self.began(stage.label)

    def progress(self, stage: Any, done: int, total: int) -> None:
        """A stage has come this far."""
        self.came(stage.label, done, total)

    def again(self, stage: Any) -> None:
        """The worker of a stage was lost, and another one goes on with it."""
        self.resumed(stage.label)

    def end(self, stage: Any, seconds: float, cached: bool) -> None:
        """A stage is complete."""
        if not cached:
            self.worked.append(stage.label)
        self.ended(stage.label, seconds, cached)
        del self.at_work[stage.label]

    def plain(self, label: str) -> Callable[[int, int], None]:
        """A progress callback for one piece of work outside a study."""
        self.began(label)
        return lambda done, total: self.came(label, done, total)

    def place(self, label: str) -> str:
        """`3/40`: a stage at work, of all; nothing of work outside a study."""
        if not self.stages:
            return ""
        return f"{self.at_work.get(label, self.count):>{len(str(self.stages))}}/{self.stages}"

    def began(self, label: str) -> None: ...

    def came(self, label: str, done: int, total: int) -> None: ...

    def resumed(self, label: str) -> None: ...

    def ended(self, label: str, seconds: float, cached: bool) -> None: ...


class Bars(Following):
    """A line for every stage that is done, a bar with an estimate for each one at work."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        share, left = TextColumn("{task.percentage:>3.0f} %"), TextColumn("left")
        columns = (TextColumn("{task.description:<32}"), BarColumn(), share, TimeElapsedColumn(), left)
        self._progress = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def began(self, label: str) -> None:
        self._tasks[label] = self._progress.add_task(label, total=None)

    def came(self, label: str, done: int, total: int) -> None:
        self._progress.update(self._tasks[label], completed=done, total=total)

    def resumed(self, label: str) -> None:
        self.console.print(Text(f"  {self.place(label)}  {label:<44} {_RESUMED}"))

    def ended(self, label: str, seconds: float, cached: bool) -> None:
        self._progress.remove_task(self._tasks.pop(label))
        if not cached:
            self.console.print(Text(f"  {self.place(label)}  {label:<44} {seconds:6.1f} s"))


class _Paced(Following):
    """A form that says how far a stage is at intervals."""

    seconds = 0.0  # between two of them

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(console)
        self.clock = clock
        self._began: dict[str, float] = {}
        self._first: dict[str, tuple[float, int]] = {}  # when the first progress came, and how much was done then
        self._said: dict[str, float] = {}

    def began(self, label: str) -> None:
        self._began[label] = self._said[label] = self.clock()
        self._first.pop(label, None)

    def came(self, label: str, done: int, total: int) -> None:
        now = self.clock()
        at, first = self._first.setdefault(label, (now, done))  # what a killed run had done tells no speed
        if now - self._said[label] < self.seconds:
            return
        self._said[label] = now
        left = (now - at) * (total - done) / (done - first) if done > first and total > done else None
        self.say(label, done, total, now - self._began.get(label, now), left)

    def say(self, label: str, done: int, total: int, seconds: float, left: float | None) -> None: ...


class Lines(_Paced):
    """Plain lines, for a log: one for every stage that is done, and one every half minute for each one at work."""

    seconds = _LINE_SECONDS

    def say(self, label: str, done: int, total: int, seconds: float, left: float | None) -> None:
        share = f"{100 * done / total:.0f} %" if total else f"{done:,}"
        estimate = f", about {format.duration(left)} left" if left is not None else ""
        self._line(f"  {self.place(label)}  {label:<44} {share} after {format.duration(seconds)}{estimate}")

    def resumed(self, label: str) -> None:
        self._line(f"  {self.place(label)}  {label:<44} {_RESUMED}")

    def ended(self, label: str, seconds: float, cached: bool) -> None:
        if not cached:
            self._line(f"  {self.place(label)}  {label:<44} {seconds:6.1f} s")

    def _line(self, text: str) -> None:
        self.console.print(Text(seen(text)))


class Events(_Paced):
    """One JSON object a line, for a program: `event` (`start`, `progress`, `again` where a cluster lost its worker,
    `end`), `stage`, `number`, `stages`; with progress also `done`, `total`, `seconds` and `left` (an estimate, or
    null), with the end `seconds` and `cached`."""

    seconds = _EVENT_SECONDS

    def began(self, label: str) -> None:
        super().began(label)
        self._event("start", label)

    def say(self, label: str, done: int, total: int, seconds: float, left: float | None) -> None:
        estimate = None if left is None else round(left, 1)
        self._event("progress", label, done=done, total=total, seconds=round(seconds, 1), left=estimate)

    def resumed(self, label: str) -> None:
        self._event("again", label)

    def ended(self, label: str, seconds: float, cached: bool) -> None:
        self._event("end", label, seconds=round(seconds, 3), cached=cached)

    def _event(self, event: str, label: str, **more: Any) -> None:
        number = self.at_work.get(label, self.count)
        line = {"event": event, "stage": label, "number": number, "stages": self.stages, **more}
        self.console.file.write(json.dumps(line) + "\n")
        self.console.file.flush()
