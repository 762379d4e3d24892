"""Tuning on a terminal: how much time is left and what was found last, and a table and the lines to paste at the end."""

import io
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from seatrial_serving.tune.advice import as_toml, as_variables
from seatrial_serving.tune.search import Measured
from seatrial_serving.tune.tuned import Tuned

WIDTH = 118


class Progress:
    """One line that shows the time go by and what was found last. Where nobody watches (a log file), a line for each."""

    def __init__(self, *, minutes: float, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bars = Bars(
            BarColumn(bar_width=20), TimeRemainingColumn(), TextColumn("{task.description}", markup=False),
            console=self._console, disable=not self._console.is_terminal, transient=True,
        )  # fmt: skip
        self._task = self._bars.add_task("starting the server as it is set now", total=60 * minutes)

    def __enter__(self) -> "Progress":
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bars.stop()

    def tell(self, words: str) -> None:
        if self._console.is_terminal:
            elapsed_s = self._bars.tasks[self._task].elapsed or 0.0
            self._bars.update(self._task, completed=elapsed_s, description=words)
        else:
            self._console.print(words, highlight=False, markup=False, soft_wrap=True)


def summary(tuned: Tuned, evidence: Path | None, why_not: str) -> str:
    """What was measured, what is advised, and where it is kept, or `why_not`."""
    console = Console(file=io.StringIO(), width=WIDTH, force_terminal=False)

    def say(words: str = "") -> None:
        console.print(words, highlight=False, markup=False, soft_wrap=True)

    request = tuned.request
    say(
        f"{request.what}, p99 within {request.p99_ms:g} ms, {tuned.traffic}, {request.protocol}; {tuned.machine.cores} cores, "
        f"the callers' share included; {len(tuned.found)} configurations in {tuned.took_s:.0f} s"
        f"{', interrupted' if tuned.interrupted else ''}"
    )
    console.print(table(tuned))
    say(tuned.verdict.words)
    if tuned.held is not None:
        held = tuned.held
        say(
            f"it holds when callers do not wait for it, too: {held.per_second:,.0f} requests/s, p99 {held.p99_ms:.3g} ms"
        )
    if tuned.advice:
        say()
        say(f"{as_toml(tuned.advice)}\n\nor {as_variables(tuned.advice)}")
    elif tuned.verdict.chosen is None and tuned.best is not None and not tuned.unmet:
        say(f"best so far: {tuned.best.configuration.beside(tuned.present)}")
    say()
    if evidence is not None:
        say(f"evidence {evidence}")
        say(f"next     seatrial serve {request.what} --tuned, from the same home: what the registry holds is as it was")
    else:
        say(f"evidence none was written: {why_not}")
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().rstrip()


def table(tuned: Tuned) -> Table:
    drawn = Table(box=None, pad_edge=False, header_style="dim")
    drawn.add_column("configuration")
    for heading in ("requests/s", "p99 ms", "callers", "MB"):
        drawn.add_column(heading, justify="right", no_wrap=True)
    drawn.add_column("")
    for measured in tuned.found:
        name = measured.configuration.beside(tuned.present)
        drawn.add_row(*map(escape, (name, *figures(measured, tuned.request.p99_ms))))
    return drawn


def figures(measured: Measured, p99_ms: float) -> tuple[str, str, str, str, str]:
    point = measured.best(p99_ms) or measured.closest
    memory = f"{measured.memory_bytes / 1e6:,.0f}" if measured.memory_bytes else ""
    if point is None:
        return "", "", "", memory, measured.lost
    failed = f"{point.failed} requests failed" if point.failed else "above the bound"
    why = measured.lost or ("" if point.keeps(p99_ms) else failed)
    return f"{point.per_second:,.0f}", f"{point.p99_ms:.3g}", str(point.callers), memory, why
