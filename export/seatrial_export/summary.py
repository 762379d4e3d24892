"""An export on a terminal: a line for each candidate while it runs, a table at the end."""

import io
from types import TracebackType

from rich.console import Console
from rich.progress import Progress as Bars
from rich.progress import SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from seatrial_export.export import Exported
from seatrial_export.report import Report, Row

WIDTH = 118


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
    console = Console(file=io.StringIO(), width=WIDTH, force_terminal=False)
    console.print(exported.report.verdict, highlight=False)
    console.print(exported.report.basis, highlight=False)
    console.print(table(exported.report))
    name, version = exported.report.model.removeprefix("models:/").rsplit("/", 1)
    console.print(f"report   {exported.page}", highlight=False, soft_wrap=True)
    for target, bundle in exported.bundles.items():
        console.print(f"bundle   {target}: {bundle.path}", highlight=False, soft_wrap=True)
    console.print(f"next     seatrial promote {name} {version}", highlight=False)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().rstrip()


def table(report: Report) -> Table:
    drawn = Table(box=None, pad_edge=False, header_style="dim")
    drawn.add_column("candidate", no_wrap=True)
    for heading in ("quality", "row ms", "MB"):
        drawn.add_column(heading, justify="right", no_wrap=True)
    drawn.add_column("verdict")
    for row in report.rows:
        drawn.add_row(row.name, *_numbers(row), f"{row.verdict}: {row.reason}")
    return drawn


def _numbers(row: Row) -> tuple[str, str, str]:
    if row.quality is None or row.row_ms is None or row.size_bytes is None:
        return "", "", ""
    return f"{row.quality.value:.4f}", f"{row.row_ms:.4g}", f"{row.size_bytes / 1e6:.3g}"
