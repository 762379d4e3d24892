"""Measure, print, and write the tables of `benchmarks/README.md`: `python -m benchmarks --help`."""

from datetime import date
from importlib import import_module
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress

from benchmarks.bench import Bench
from benchmarks.models import Models
from benchmarks.rounds import Lost
from benchmarks.tables import write_section
from seatrial.machine import this_machine
from seatrial.settings import load_settings

SECTIONS = (
    "serving",
    "both-ends",
    "sequences",
    "peers",
    "swaps",
    "neighbour",
    "startup",
    "overhead",
    "exports",
    "olive",
    "mutants",
    "remeasured",
    "matrix",
)
"""Each is a module here, whose `measure` takes a `Bench` and returns its place in the README."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("sections", nargs=-1, type=click.Choice(SECTIONS))
@click.option(
    "--bundle", type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="The digits bundle to serve. By default one is trained and exported first, and kept.",
)  # fmt: skip
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
@click.option("--seconds", default=3, show_default=True, type=click.IntRange(1), help="Of each measurement.")
@click.option("--write/--no-write", default=True, show_default=True, help="Whether to change benchmarks/README.md.")
def main(sections: tuple[str, ...], *, bundle: Path | None, rounds: int, seconds: int, write: bool) -> None:
    """Measure SECTIONS (all, unless named). `exports` and `olive` want trained models in the home: seatrial train
    cifar10-resnet, seatrial train clinc150-minilm.

    \b
    Example:
      python -m benchmarks
      python -m benchmarks serving --rounds 9 --seconds 2
    """
    place = load_settings().home / "benchmarks"
    place.mkdir(parents=True, exist_ok=True)
    with Progress(console=Console(stderr=True)) as progress:
        models = Models(place=place, given=bundle)
        bench = Bench(models=models, place=place, rounds=rounds, seconds=seconds, progress=progress)
        for name in sections or SECTIONS:
            try:
                found = import_module(f"benchmarks.{name.replace('-', '_')}").measure(bench)
            except Lost as lost:
                raise SystemExit(f"{name}: {lost}") from lost
            text = f"{_where()}\n{rounds} rounds, {seconds} s a measurement.\n\n{found}"
            click.echo(f"\n{name}\n\n{text}")
            if write:
                write_section(name, text)


def _where() -> str:
    machine = this_machine()
    features = ", ".join(machine.features) or "none that matter"
    return f"{date.today():%d %B %Y}, {machine.cpu}, {machine.cores} cores ({features}), no GPU used."


if __name__ == "__main__":
    main()
