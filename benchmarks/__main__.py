"""Measure, print, and write the tables of `benchmarks/README.md`: `python -m benchmarks --help`."""

import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress

from benchmarks import int8, serving, startup
from benchmarks.tables import write_section
from seatrial.machine import this_machine

SECTIONS = ("serving", "startup", "int8")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("sections", nargs=-1, type=click.Choice(SECTIONS))
@click.option(
    "--bundle", type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="The digits bundle to serve. By default one is trained and exported first.",
)  # fmt: skip
@click.option(
    "--resnet", default="cifar10-resnet18/1", show_default=True, help="The model version that `int8` exports."
)
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
@click.option("--seconds", default=3, show_default=True, help="Of each measurement of a server.")
@click.option("--write/--no-write", default=True, show_default=True, help="Whether to change benchmarks/README.md.")
def main(
    sections: tuple[str, ...], *, bundle: Path | None, resnet: str, rounds: int, seconds: int, write: bool
) -> None:
    """Measure SECTIONS (all, unless named). `int8` wants a trained ResNet-18 in the home: seatrial train cifar10-resnet18.

    \b
    Example:
      python -m benchmarks
      python -m benchmarks serving --rounds 5
    """
    chosen = sections or SECTIONS
    with Progress(console=Console(stderr=True)) as progress, ExitStack() as stack:
        if bundle is None and {"serving", "startup"} & set(chosen):
            bundle = _digits(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="seatrial-bench-"))))
        for name in chosen:
            text = f"{_where()}\n\n{_measure(name, bundle, resnet, rounds, seconds, progress)}"
            click.echo(f"\n{name}\n\n{text}")
            if write:
                write_section(name, text)


def _measure(name: str, bundle: Path | None, model: str, rounds: int, seconds: int, progress: Progress) -> str:
    if name == "int8":
        return int8.measure(model, progress=progress)
    assert bundle is not None, "no digits were made: this is a bug"
    if name == "serving":
        return serving.measure(bundle, rounds=rounds, seconds=seconds, progress=progress)
    return startup.measure(bundle, rounds=rounds, progress=progress)


def _digits(home: Path) -> Path:
    """Train, export; the bundle."""
    model = _seatrial(home, "train", "digits-cnn")["model"]
    [bundle] = _seatrial(home, "export", model)["bundles"].values()
    return home / "bundles" / str(bundle).replace(":", "-")


def _seatrial(home: Path, *arguments: str) -> dict[str, Any]:
    environment = os.environ | {"SEATRIAL_HOME": str(home)}
    command = [sys.executable, "-m", "seatrial", *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment)
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def _where() -> str:
    machine = this_machine()
    features = ", ".join(machine.features) or "none that matter"
    return f"{date.today():%d %B %Y}, {machine.cpu}, {machine.cores} cores ({features}), no GPU used."


if __name__ == "__main__":
    main()
