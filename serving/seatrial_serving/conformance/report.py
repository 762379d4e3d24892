"""What a run of the checks found: a table for people, a document for scripts, a column for the docs."""

import io
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from seatrial_serving.conformance.check import Check, Finding, Kind, Verdict

WIDTH = 118
STYLE = {Verdict.HOLDS: "green", Verdict.FAILS: "bold red", Verdict.NOT_OFFERED: "dim", Verdict.NOT_APPLICABLE: "dim"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A check, and what it found on each wire that was asked."""

    check: Check
    findings: Mapping[Kind, Finding]

    @property
    def fails(self) -> bool:
        return Verdict.FAILS in self.verdicts

    @property
    def verdicts(self) -> list[Verdict]:
        return [finding.verdict for finding in self.findings.values()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    url: str
    grpc: str
    server: str
    model: str
    rows: tuple[Row, ...]

    def failing(self, *, strict: bool = False) -> list[Row]:
        """The checks that do not hold: those that the protocol requires, or with `strict` all."""
        return [row for row in self.rows if row.fails and (strict or row.check.required)]

    def failures(self) -> Iterator[tuple[Kind, Check, Finding]]:
        for row in self.failing(strict=True):
            for kind, finding in row.findings.items():
                if finding.verdict is Verdict.FAILS:
                    yield kind, row.check, finding

    @property
    def applicable(self) -> list[Row]:
        """The checks that there was something to judge for."""
        return [row for row in self.rows if set(row.verdicts) != {Verdict.NOT_APPLICABLE}]

    def document(self, *, strict: bool = False) -> dict[str, Any]:
        return {
            "url": self.url,
            "grpc": self.grpc,
            "server": self.server,
            "model": self.model,
            "holds": not self.failing(strict=strict),
            "checks": [
                {
                    "id": row.check.id,
                    "title": row.check.title,
                    "clause": row.check.clause,
                    "required": row.check.required,
                }
                | {str(kind): _fields(finding) for kind, finding in row.findings.items()}
                for row in self.rows
            ],
        }

    def text(self, *, color: bool = False) -> str:
        """The table, then what failed and how, then the count."""
        console = Console(file=io.StringIO(), width=WIDTH, force_terminal=color, highlight=False)
        console.print(f"{escape(self.server)}, model {escape(self.model)}, at {escape(self.url)}\n")
        console.print(self._table())
        for kind, check, finding in self.failures():
            advice = "" if check.required else " (advice)"
            console.print(f"\n[bold]{check.id}[/] over {kind}{advice}: {check.title} ({check.clause})")
            console.print(f"  found     {escape(finding.found)}\n  expected  {escape(finding.expected)}")
        console.print(f"\n{self._counts()}")
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue().rstrip()

    def _counts(self) -> str:
        counted = Counter(verdict for row in self.rows for verdict in row.verdicts)
        return (
            f"{counted[Verdict.HOLDS]} hold, {counted[Verdict.FAILS]} fail ({len(self.failing())} required checks), "
            f"{counted[Verdict.NOT_OFFERED]} are not offered; "
            f"{len(self.rows) - len(self.applicable)} of {len(self.rows)} checks do not apply here"
        )

    def _table(self) -> Table:
        drawn = Table(box=None, pad_edge=False, header_style="dim")
        drawn.add_column("check", no_wrap=True)
        for kind in self.rows[0].findings:
            drawn.add_column(kind, no_wrap=True)
        drawn.add_column("clause, and what was met", overflow="fold")
        for row in self.applicable:
            verdicts = [f"[{STYLE[each.verdict]}]{brief(each.verdict)}[/]" for each in row.findings.values()]
            note = _notes(row)
            drawn.add_row(row.check.id, *verdicts, escape(f"{row.check.clause}: {note}" if note else row.check.clause))
        return drawn


def brief(verdict: Verdict) -> str:
    return "-" if verdict is Verdict.NOT_APPLICABLE else str(verdict)


def _notes(row: Row) -> str:
    """What was noted, REST first, once where it is the same."""
    return " / ".join(dict.fromkeys(finding.note for finding in row.findings.values() if finding.note))


def _fields(finding: Finding) -> dict[str, str]:
    fields = {
        "verdict": str(finding.verdict),
        "note": finding.note,
        "found": finding.found,
        "expected": finding.expected,
    }
    return {name: text for name, text in fields.items() if text}
