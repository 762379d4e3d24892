"""Judge our server, Triton and BentoML, and write what was found into `conformance.md`: `make conformance`.

`tests/serving/test_conformance.py` runs it against the same three and holds the page to what it finds.
"""

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks.started import started
from benchmarks.tables import table
from seatrial.settings import Settings
from seatrial_serving.conformance.check import CHECKS, Kind
from seatrial_serving.conformance.report import Report, Row, brief
from seatrial_serving.conformance.suite import Plan, judge
from tests.serving.models import LinearBundle

PAGE = Path(__file__).with_suffix(".md")
BEGIN, END = "<!-- found -->\n", "<!-- end of found -->"
COMMANDS = {"Seatrial": ("serve",), "Triton": ("triton", "serve"), "BentoML": ("bento", "serve")}
HOSTILE = ("Seatrial", "Triton")
"""BentoML is spared: after a client that left half-way, its worker does not end when it is told to."""
PORTS = {"Seatrial": ("http", "grpc", "metrics"), "Triton": ("http", "grpc", "metrics"), "BentoML": ("http",)}


def columns(runtime: str) -> list[str]:
    return [f"{runtime} {kind}" for kind in Kind if kind.lower() in PORTS[runtime] or kind is Kind.REST]


def cells(runtime: str) -> Mapping[str, list[str]]:
    """What the page says of `runtime`: the verdicts by check."""
    heading, _, *rows = [
        line.strip("| \n").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ")
    ]
    at = [heading.index(column) for column in columns(runtime)]
    return {row[0].strip("`"): [row[index] for index in at] for row in rows}


def section(reports: Mapping[str, Report]) -> str:
    """The table, and how each failure looks."""
    found = {(runtime, row.check.id): row for runtime, report in reports.items() for row in report.applicable}
    judged = [check for check in CHECKS.values() if any((runtime, check.id) in found for runtime in reports)]
    rows = [
        [
            f"`{check.id}`",
            check.title,
            *(cell for runtime in reports for cell in _cells(found.get((runtime, check.id)), runtime)),
        ]
        for check in judged
    ]
    heading = ["check", "what must hold", *(column for runtime in reports for column in columns(runtime))]
    versions = ", ".join(f"{runtime}: {report.server}" for runtime, report in reports.items())
    return "\n".join([f"{versions}; the linear model of the tests.", "", table(heading, rows), "", *_failures(reports)])


def _cells(row: Row | None, runtime: str) -> list[str]:
    return list(map(brief, row.verdicts)) if row else ["-"] * len(columns(runtime))


def _failures(reports: Mapping[str, Report]) -> list[str]:
    lines = [
        f"- {runtime}, {kind}, `{check.id}`: {finding.found}"
        for runtime, report in reports.items()
        for kind, check, finding in report.failures()
    ]
    return ["What was found where it fails:", "", *lines] if lines else ["Nothing fails."]


def main() -> None:
    os.environ.setdefault("SEATRIAL_TRITON__ENVIRONMENT", str(Settings().triton_environment.absolute()))
    reports = {}
    with tempfile.TemporaryDirectory(prefix="seatrial-conformance-") as place:
        bundle = LinearBundle(version="3", labels=("a", "b", "c")).write(Path(place))
        for runtime, command in COMMANDS.items():
            ports = [text for name in PORTS[runtime] for text in (f"--{name}-port", "0")]
            with started("seatrial", *command, str(bundle.path), *ports, "--json") as running:
                there = running.addresses
                plan = Plan(url=there["http"], grpc=there.get("grpc", ""), model="linear", hostile=runtime in HOSTILE)
                reports[runtime] = judge(plan)
    page = PAGE.read_text()
    written, times = re.subn(f"{BEGIN}.*?{END}", lambda _: f"{BEGIN}{section(reports)}\n{END}", page, flags=re.DOTALL)
    assert times == 1, f"{PAGE} has no place for what was found: this is a bug"
    PAGE.write_text(written)
    print(PAGE.name)


if __name__ == "__main__":
    main()
