"""What the operations page tells people to type, to set and to read exists."""

import configparser
import re
from importlib.metadata import entry_points

import click
import pytest

from seatrial.settings import Settings, setting_names
from tests.kubernetes.manifests import BASE, ROOT, pod, rendered

TEXT = {name: (ROOT / name).read_text() for name in ("docs/operations.md", "k8s/README.md")}
COMMANDS = sorted(set(re.findall(r"(?:^|`|/bin/)seatrial ([a-z][^`\n]*)", TEXT["docs/operations.md"], re.MULTILINE)))


@pytest.mark.parametrize("typed", COMMANDS)
def test_every_command_exists_and_takes_its_options(typed: str) -> None:
    command: click.Command = click.Group(
        commands={entry.name: entry.load() for entry in entry_points(group="seatrial.commands")}
    )
    words = typed.split()
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


def test_enough_commands_were_found_for_that_to_mean_something() -> None:
    assert {typed.split()[0] for typed in COMMANDS} >= {"serve", "promote", "rollback", "status", "bench", "triton"}


@pytest.mark.parametrize("name", TEXT)
def test_every_variable_is_a_setting_with_the_default_that_is_told(name: str) -> None:
    known = {"SEATRIAL_" + setting.replace(".", "__").upper() for setting in setting_names(Settings)}
    told = set(re.findall(r"SEATRIAL_[A-Z0-9_]+[A-Z0-9]", TEXT[name])) - {"SEATRIAL_PORT"}
    assert told <= known


def test_defaults_are_told_as_they_are() -> None:
    rows = re.findall(r"^\| `SEATRIAL_([A-Z0-9_]+)` \| ([0-9]+)(?: MiB)? \|", TEXT["docs/operations.md"], re.MULTILINE)
    assert len(rows) >= 5
    for variable, told in rows:
        value: object = Settings()
        for part in variable.lower().split("__"):
            value = getattr(value, part)
        assert value in (float(told), float(told) * 2**20), variable


@pytest.mark.parametrize("name", TEXT)
def test_every_file_that_is_named_exists(name: str) -> None:
    named = re.findall(r"`((?:docs|k8s|serving|tests|components|overlays)/[\w./-]+|[a-z]+\.md)`", TEXT[name])
    assert named
    for path in named:
        assert any((place / path).exists() for place in (ROOT, ROOT / "docs", ROOT / "k8s")), path


def test_the_unit_stops_only_the_gateway_and_as_patiently_as_kubernetes() -> None:
    [text] = re.findall(r"```ini\n(.*?)```", TEXT["docs/operations.md"], re.DOTALL)
    unit = configparser.RawConfigParser(strict=False)
    unit.read_string(text)
    assert unit["Service"]["KillMode"] == "mixed"
    assert int(unit["Service"]["TimeoutStopSec"]) == pod(rendered(BASE))["spec"]["terminationGracePeriodSeconds"]
