"""Ask a server everything, rightly and wrongly, while its engines are swapped, killed and hung: `python -m benchmarks.soak`.

Exits with 1 where a promise does not hold. The lines over time are drawn, and kept with all numbers as JSON.
"""

import asyncio
import json
import tempfile
from collections import Counter
from dataclasses import asdict
from datetime import date
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress

from benchmarks.soak.course import Course, run
from benchmarks.soak.picture import draw
from benchmarks.soak.subject import served
from benchmarks.soak.verdict import Finding, judge
from benchmarks.tables import table, write_section
from seatrial.machine import this_machine
from seatrial.settings import load_settings


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--minutes", default=10.0, show_default=True, type=click.FloatRange(min=0.1))
@click.option("--seed", default=1, show_default=True, help="Of what is asked and what happens, and in which order.")
@click.option(
    "--into", type=click.Path(path_type=Path, file_okay=False), help="Where soak.png and soak.json go. [the home]"
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.option("--write/--no-write", default=False, show_default=True, help="Whether to change benchmarks/README.md.")
def main(*, minutes: float, seed: int, into: Path | None, as_json: bool, write: bool) -> None:
    """\b
    Example:
      python -m benchmarks.soak --minutes 10
    """
    into = into or load_settings().home / "benchmarks"
    into.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="seatrial-soak-") as place,
        Progress(console=Console(stderr=True)) as progress,
    ):
        task = progress.add_task("soak", total=60 * minutes)
        with served(Path(place)) as subject:
            course = asyncio.run(
                run(subject, seconds=60 * minutes, seed=seed, tell=lambda at_s: progress.update(task, completed=at_s))
            )
            logged = subject.server.err.read_text()
    findings = judge(course, logged)
    draw(course, into / "soak.png")
    text = json.dumps(_plain(course, findings), indent=1)
    (into / "soak.json").write_text(text)
    (into / "soak.log").write_text(logged)
    summary = _summary(course, findings, minutes=minutes, seed=seed)
    click.echo(json.dumps([asdict(each) for each in findings]) if as_json else summary)
    click.echo(f"{into / 'soak.png'} shows the lines over time", err=True)
    if write:
        write_section("soak", summary)
    if not all(each.holds is not False for each in findings):
        raise SystemExit(1)


def _plain(course: Course, findings: list[Finding]) -> dict[str, object]:
    return {
        "findings": [asdict(each) for each in findings],
        "failures": course.ledger.failures,
        "seen": {" ".join(key): number for key, number in sorted(course.ledger.seen.items())},
        "counted": {" ".join(key): number for key, number in sorted(course.counted.items())},
        "mishaps": course.mishaps,
        "before": asdict(course.before),
        "after": asdict(course.after),
        "readings": [asdict(each) for each in course.readings],
    }


def _summary(course: Course, findings: list[Finding], *, minutes: float, seed: int) -> str:
    happened = Counter(name for _, name in course.mishaps)
    machine = this_machine()
    return "\n\n".join(
        [
            f"{date.today():%d %B %Y}, {machine.cpu}, {machine.cores} cores. {minutes:g} minutes, seed {seed}: "
            f"{course.ledger.answered:,} well-behaved requests, and "
            + ", ".join(f"{number} times: {name}" for name, number in sorted(happened.items()))
            + ".",
            table(["must hold", "found", "verdict"], [[each.promise, each.found, each.verdict] for each in findings]),
        ]
    )


if __name__ == "__main__":
    main()
