"""The command `keys`: who may do what with a server."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import click

from seatrial.cli import json_option, show

ACTS = ("infer", "read", "manage")
DAY_S = 24 * 3600.0


@click.group()
def keys() -> None:
    """Say who may do what with a server that asks: keys, client certificates and tokens.

    The server asks once the setting serving.access.file names the file that these commands write, and reads it again
    within a second of every change.
    """


def _rights_options(command: "click.decorators.FC") -> "click.decorators.FC":
    for option in (
        click.option("--act", "acts", type=click.Choice(ACTS), multiple=True, default=("infer",), show_default=True),
        click.option(
            "--model", "models", multiple=True, default=("*",), show_default=True, help="A name; * and ? match."
        ),
        click.option("--expires", "days", type=click.FloatRange(0, min_open=True), metavar="DAYS", help="From now."),
        click.option("--requests-per-s", type=click.FloatRange(0, min_open=True), help="Instead of the quota for all."),
        click.option("--rows-per-s", type=click.FloatRange(0, min_open=True), help="Instead of the quota for all."),
        json_option,
    ):
        command = cast("click.decorators.FC", option(command))
    return command


@keys.command()
@click.argument("name")
@_rights_options
def create(
    name: str,
    *,
    acts: tuple[str, ...],
    models: tuple[str, ...],
    days: float | None,
    requests_per_s: float | None,
    rows_per_s: float | None,
    as_json: bool,
) -> None:
    """Make an API key for the caller NAME, and print it: it is kept nowhere. Two keys of one name share its quota.

    \b
    Example:
      seatrial keys create mobile-app --model 'digits*' --expires 90
      curl -H "Authorization: Bearer $KEY" localhost:8000/v2/models/digits-cnn/infer -d @request.json
    """
    if ":" in name:
        raise click.UsageError(f"a key's NAME has no ':'; did you mean `seatrial keys allow {name}`?")
    _add(name, acts, models, days, requests_per_s, rows_per_s, as_json=as_json)


@keys.command()
@click.argument("who")
@_rights_options
def allow(
    who: str,
    *,
    acts: tuple[str, ...],
    models: tuple[str, ...],
    days: float | None,
    requests_per_s: float | None,
    rows_per_s: float | None,
    as_json: bool,
) -> None:
    """Give rights to certificate:NAME, a client certificate with that name, or token:VALUE, a token with that subject.

    \b
    Example:
      seatrial keys allow certificate:ci.example.com --act read --act manage
      seatrial keys allow 'token:*' --model 'digits*'
    """
    if not who.startswith(("certificate:", "token:")):
        raise click.UsageError("WHO is certificate:NAME or token:VALUE; a key is made by `seatrial keys create`")
    _add(who, acts, models, days, requests_per_s, rows_per_s, as_json=as_json)


@keys.command(name="list")
@json_option
def list_(*, as_json: bool) -> None:
    """Who may do what: ids, names, rights; never a key.

    \b
    Example:
      seatrial keys list
    """
    import msgspec

    from seatrial_serving.access.grants import Grants, read

    file = _file()
    listed = (read(file) if file.exists() else Grants()).grants
    shown = [{k: v for k, v in msgspec.to_builtins(grant).items() if k != "key"} for grant in listed]

    def text() -> str:
        lines = []
        for grant in listed:
            until = (
                ""
                if grant.expires is None
                else f", until {datetime.fromtimestamp(grant.expires, UTC):%Y-%m-%d %H:%M} UTC"
            )
            gone = "" if grant.holds(time.time()) else " (expired)"
            lines.append(
                f"{grant.id}  {grant.name}: {', '.join(grant.acts)} with {', '.join(grant.models)}{until}{gone}"
            )
        return "\n".join(lines) or f"{file} has nobody"

    show(shown, as_json=as_json, text=text)


@keys.command()
@click.argument("id")
@json_option
def revoke(*, id: str, as_json: bool) -> None:  # noqa: A002 - the argument's name in the help
    """Take rights back, by the id that `list` shows and that every key has in it. Servers follow within two seconds.

    \b
    Example:
      seatrial keys revoke 5f0c61e2a9d4
    """
    from seatrial_serving.access.grants import remove

    gone = remove(_file(), id)
    show({"id": gone.id, "name": gone.name}, as_json=as_json, text=lambda: f"'{gone.name}' may no more ({gone.id})")


def _add(
    name: str,
    acts: tuple[str, ...],
    models: tuple[str, ...],
    days: float | None,
    requests_per_s: float | None,
    rows_per_s: float | None,
    *,
    as_json: bool,
) -> None:
    from seatrial_serving.access.grants import add, grant

    lasts_s = None if days is None else days * DAY_S
    made, key = grant(
        name, acts=acts, models=models, lasts_s=lasts_s, requests_per_s=requests_per_s, rows_per_s=rows_per_s
    )
    file = _file(say=True)
    add(file, made)
    result = {"id": made.id, "name": name, "file": str(file), **({"key": key} if key else {})}
    show(result, as_json=as_json, text=lambda: key or f"'{name}' may {', '.join(acts)} ({made.id})")


def _file(*, say: bool = False) -> Path:
    from seatrial.settings import load_settings

    settings = load_settings()
    if say and settings.serving.access.file is None:
        click.echo(
            f"servers do not ask yet: start them with SEATRIAL_SERVING__ACCESS__FILE={settings.access_file}", err=True
        )
    return settings.access_file
