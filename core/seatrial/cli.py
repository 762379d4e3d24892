"""The command `seatrial`: finds the subcommands that the components bring, and turns errors into exit codes.

Knows no component: each registers its commands as entry points. Nothing here or in any component's `cli.py` imports
more than the standard library and click at module level, so that `--help` answers at once.
"""

import functools
import json
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

import click

from seatrial import __version__
from seatrial.errors import MissingExtra, Misused, NotAdmitted, SeatrialError

P = ParamSpec("P")
R = TypeVar("R")

EXIT_FAILED, EXIT_USAGE, EXIT_NOT_ADMITTED = 1, 2, 3

_LIFE = (
    *("demo", "doctor", "train", "register", "export", "agent", "promote", "rollback", "history", "status"),
    *("serve", "keys", "bundle", "gc", "bench", "tune", "conformance", "triton", "bento", "monitor"),
)


class Shell(click.Group):
    """A group whose commands are the entry points of the group `seatrial.commands`, in the order of a model's life."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - the signature is click's
        return sorted(_entry_points(), key=lambda name: (_LIFE.index(name) if name in _LIFE else len(_LIFE), name))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        entry_point = _entry_points().get(cmd_name)
        if entry_point is None:
            return None
        command = entry_point.load()
        assert isinstance(command, click.Command), f"{entry_point} is not a command: this is a bug"
        return command


@functools.cache
def _entry_points() -> dict[str, EntryPoint]:
    return {entry_point.name: entry_point for entry_point in entry_points(group="seatrial.commands")}


@click.group(cls=Shell, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="seatrial")
def shell() -> None:
    """From a PyTorch model to a monitored endpoint, with proof at every step.

    \b
    The life of a model:
      seatrial train digits-cnn                train, and register a model version in MLflow
      seatrial export models:/digits-cnn/1     build variants, prove and measure them, choose one
      seatrial promote digits-cnn 1            run the gates, then point @champion at it
      seatrial serve digits-cnn@champion       REST on 8000, gRPC on 8001, metrics on 8002
      seatrial rollback digits-cnn             undo the last promotion

    `seatrial demo` runs all of it on real data. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 gate or budget not met.
    """


def json_option(command: Callable[P, R]) -> Callable[P, R]:
    """Add `--json` (parameter `as_json`): the result as one JSON document on standard output, errors too."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document, for scripts.")(command)


def show(result: Any, *, as_json: bool, text: Callable[[], str]) -> None:
    """Print `result` as JSON, or the words of `text` for a person."""
    click.echo(json.dumps(result, indent=2, default=str) if as_json else text())


def main() -> None:
    """Run the command line; the one place where an error becomes a message and an exit code."""
    as_json = "--json" in sys.argv
    try:
        sys.exit(shell(standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(EXIT_USAGE)
    except click.Abort:
        click.echo("interrupted", err=True)
        sys.exit(EXIT_FAILED)
    except SeatrialError as error:
        _report(error, as_json=as_json)
        sys.exit(_exit_code(error))
    except ModuleNotFoundError as error:
        missing = _as_missing_extra(error)
        if missing is None:
            raise
        _report(missing, as_json=as_json)
        sys.exit(EXIT_FAILED)


def _exit_code(error: SeatrialError) -> int:
    return EXIT_NOT_ADMITTED if isinstance(error, NotAdmitted) else EXIT_FAILED


def _report(error: SeatrialError, *, as_json: bool) -> None:
    kind = type(error).__name__
    if as_json:
        click.echo(json.dumps({"error": {"type": kind, "message": str(error)}}, indent=2))
    click.secho(f"{kind}: ", nl=False, err=True, bold=True, fg="yellow" if isinstance(error, NotAdmitted) else "red")
    click.echo(str(error), err=True)


def _as_missing_extra(error: ModuleNotFoundError) -> Misused | None:
    """Which extra of ours would have brought the module that a component failed to import; None if it is our own."""
    package = (error.name or "").partition(".")[0]
    if package.startswith("seatrial"):
        return None
    traceback: TracebackType | None = error.__traceback__
    component = None
    while traceback is not None:
        module = traceback.tb_frame.f_globals.get("__name__", "")
        if module.startswith("seatrial_"):
            component = module.partition(".")[0].removeprefix("seatrial_")
        traceback = traceback.tb_next
    return MissingExtra(package, extra=component) if component else None
