"""An export on a terminal: a line for each candidate while it runs, a table at the end."""

import io
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress as Bars
from rich.progress import SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from seatrial_export.export import Exported
from seatrial_export.report import Report, Row

WIDTH = 118
FRONT_MARK = "*"
"""At the name of a variant on the Pareto front."""


class Progress:
    """One line for each subject. Where nobody watches (a log file), a line for each change instead."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bars = Bars(
            SpinnerColumn(finished_text=" "), TextColumn("{task.description}"), TimeElapsedColumn(),
            console=self._console, disable=not self._console.is_terminal, transient=True,
        )  # fmt: skip
        self._lines: dict[str, TaskID] = {}

    def __enter__(self) -> "Progress":
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bars.stop()

    def tell(self, subject: str, words: str) -> None:
        text = f"{subject}: {words}" if words else subject
        if not self._console.is_terminal:
            self._console.print(text, highlight=False)
        elif subject in self._lines:
            self._bars.update(self._lines[subject], description=text)
        else:
            self._lines[subject] = self._bars.add_task(text, total=None)


def summary(exported: Exported) -> str:
    """The verdict, the table of candidates, and what to type next."""
    report = exported.report
    console = Console(file=io.StringIO(), width=WIDTH, force_terminal=False)
    for sentence in (report.verdict, report.basis, *(f"Note: {note}." for note in report.notes)):
        console.print(sentence, highlight=False, markup=False)
    console.print(table(report))
    console.print(
        f"{FRONT_MARK} no other is as good, fast, small and light in memory, and better in one", highlight=False
    )
    console.print(f"report   {exported.page}", highlight=False, markup=False, soft_wrap=True)
    for name in report.elsewhere:
        those = ", ".join(dict.fromkeys(row.target for row in report.rows if row.on == name))
        console.print(f"on       {name}: {those}", highlight=False, markup=False, soft_wrap=True)
    for target, bundle in exported.bundles.items():
        console.print(f"bundle   {target}: {bundle.path}", highlight=False, markup=False, soft_wrap=True)
    for row in report.rows:
        if row.files:
            place = f"{exported.artifacts}/{row.files}"
            console.print(f"files    {row.name}, unverified: {place}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"next     {_next(exported)}", highlight=False, markup=False)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().rstrip()


def _next(exported: Exported) -> str:
    name, version = exported.report.model.removeprefix("models:/").rsplit("/", 1)
    if exported.unmet:
        return f"seatrial export {name}/{version} --budget KEY=VALUE, with a limit that can be met"
    return f"seatrial promote {name} {version}"


def table(report: Report) -> Table:
    drawn = Table(box=None, pad_edge=False, header_style="dim")
    drawn.add_column("candidate", no_wrap=True)
    for heading in ("quality", "row ms", "MB", "RAM MB"):
        drawn.add_column(heading, justify="right", no_wrap=True)
    drawn.add_column("verdict")
    for row in report.rows:
        name = f"{row.name} {FRONT_MARK}" if row.on_front else row.name
        drawn.add_row(*map(escape, (name, *_numbers(row), f"{row.verdict}: {row.reason}")))
    return drawn


def _numbers(row: Row) -> tuple[str, str, str, str]:
    if row.quality is None or row.row_ms is None or row.size_bytes is None or row.memory_bytes is None:
        return "", "", "", ""
    sizes = f"{row.size_bytes / 1e6:.3g}", f"{row.memory_bytes / 1e6:.3g}"
    return f"{row.quality.value:.4f}", f"{row.row_ms:.4g}", *sizes
