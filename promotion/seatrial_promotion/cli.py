"""The commands of promotion: `promote`, `rollback`, `history`, `status`, `demo`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from seatrial.cli import json_option, show

if TYPE_CHECKING:
    from seatrial_promotion.entry import Entry

alias_option = click.option("--alias", default="champion", show_default=True, help="The alias to move.")
by_option = click.option("--by", help="Who decided; in the ledger.  [default: the login name]")
reason_option = click.option("--reason", default="", help="Why; in the ledger.")
wait_option = click.option(
    "--server",
    "servers",
    multiple=True,
    metavar="URL",
    help="Wait until this server answers with the new version, and prove it by asking (with the key in SEATRIAL_API_KEY); "
    "may be repeated.",
)
within_option = click.option(
    "--within", "within_s", type=float, default=60.0, show_default=True, help="Seconds to wait for the servers."
)


@click.command()
@click.argument("name")
@click.argument("version")
@alias_option
@click.option("--margin", type=float, default=0.01, show_default=True, help="How much accuracy may at worst be lost.")
@click.option("--waive", "waivers", multiple=True, metavar="GATE=REASON", help="Go on although this gate says no.")
@by_option
@reason_option
@wait_option
@within_option
@json_option
def promote(
    name: str,
    version: str,
    *,
    alias: str,
    margin: float,
    waivers: tuple[str, ...],
    by: str | None,
    reason: str,
    servers: tuple[str, ...],
    within_s: float,
    as_json: bool,
) -> None:
    """Point an alias at VERSION of the model NAME, once every gate has passed. Servers follow by themselves.

    The gates: the bundle is whole, answers its golden requests here and met its budget; and on the same held-out rows
    its quality is not worse than the champion's beyond the margin. Verdict and evidence go into the ledger. A gate that
    says no is exit code 3.

    \b
    Example:
      seatrial promote digits-cnn 2
      seatrial promote digits-cnn 2 --alias challenger
      seatrial promote digits-cnn 2 --server http://localhost:8000
    """
    import getpass

    from seatrial.settings import load_settings
    from seatrial_promotion.promote import Promotion
    from seatrial_promotion.promote import promote as run

    promotion = Promotion(
        name=name,
        version=version,
        alias=alias,
        margin=margin,
        waivers=_waivers(waivers),
        by=by or getpass.getuser(),
        reason=reason,
    )
    entry = run(promotion, load_settings(), tell=_tell)
    _wait(entry, servers, within_s)
    show(_as_dict(entry), as_json=as_json, text=lambda: _words(entry, servers))


@click.command()
@click.argument("name")
@alias_option
@by_option
@reason_option
@wait_option
@within_option
@json_option
def rollback(
    name: str, *, alias: str, by: str | None, reason: str, servers: tuple[str, ...], within_s: float, as_json: bool
) -> None:
    """Point the alias of the model NAME back at the version before the last promotion. No gate: it has served before.

    \b
    Example:
      seatrial rollback digits-cnn --reason "wrong answers for sevens"
      seatrial rollback digits-cnn --server http://localhost:8000
    """
    from seatrial.settings import load_settings
    from seatrial_promotion.rollback import rollback as run

    entry = run(name, load_settings(), alias=alias, reason=reason, by=by or "", tell=_tell)
    _wait(entry, servers, within_s)
    show(_as_dict(entry), as_json=as_json, text=lambda: _words(entry, servers))


@click.command()
@click.argument("name")
@json_option
def history(name: str, *, as_json: bool) -> None:
    """Show who moved which alias of the model NAME, when, from where to where, and what the gates said.

    \b
    Example:
      seatrial history digits-cnn
    """
    from seatrial.errors import LedgerBroken
    from seatrial.registry.embedded import EmbeddedRegistry
    from seatrial.settings import load_settings
    from seatrial_promotion.entry import broken_links
    from seatrial_promotion.ledger import Ledger

    entries = Ledger(EmbeddedRegistry(load_settings())).entries(name)
    broken = broken_links(entries)

    def text() -> str:
        if not entries:
            return f"the ledger has no entry for {name}"
        lines = []
        for entry in entries:
            lines.append(
                f"{entry.at}  {entry.verdict:<9}  {entry.act} @{entry.alias} {entry.before or '-'} -> {entry.after}"
                f"  by {entry.by}{'  ' + entry.reason if entry.reason else ''}"
            )
            lines += [
                f"    {'passed' if gate.passed else 'WAIVED' if gate.waiver else 'REFUSED'}  {gate.gate}: {gate.reason}"
                f"{' (waived: ' + gate.waiver + ')' if gate.waiver else ''}"
                for gate in entry.gates
            ]
        return "\n".join(lines)

    show({"entries": [_as_dict(entry) for entry in entries], "broken": broken}, as_json=as_json, text=text)
    if broken:
        raise LedgerBroken("the ledger was tampered with, or two machines wrote at once:\n  " + "\n  ".join(broken))


@click.command()
@click.option(
    "--server",
    "servers",
    multiple=True,
    metavar="URL",
    help="Ask this server what it answers with (with the key in SEATRIAL_API_KEY).",
)
@json_option
def status(*, servers: tuple[str, ...], as_json: bool) -> None:
    """Show every alias with its version and bundle, what the ledger and running servers say, and where they disagree.

    \b
    Example:
      seatrial status --server http://localhost:8000
    """
    from seatrial.settings import load_settings
    from seatrial_promotion.status import Standing
    from seatrial_promotion.status import status as look

    standings = look(load_settings(), servers=servers)

    def as_dict(each: Standing) -> dict[str, object]:
        return {
            "model": each.version.name,
            "alias": each.alias,
            "version": each.version.version,
            "bundles": each.bundles,
            "last_move": _as_dict(each.entry) if each.entry else None,
            "servers": [asdict(answer) for answer in each.answers],
            "warnings": each.warnings,
        }

    def text() -> str:
        if not standings:
            return "no model has an alias yet; `seatrial promote NAME VERSION` gives one"
        lines = []
        for each in standings:
            lines.append(f"{each.version.name}@{each.alias} -> version {each.version.version}")
            lines += [f"  bundle {target}: {digest}" for target, digest in sorted(each.bundles.items())]
            if each.entry:
                lines.append(f"  {each.entry.act} by {each.entry.by} at {each.entry.at}")
            lines += [
                f"  {answer.server}: {'version ' + answer.version if answer.version else answer.error}"
                for answer in each.answers
            ]
            lines += [f"  WARNING: {warning}" for warning in each.warnings]
        return "\n".join(lines)

    show({"aliases": [as_dict(each) for each in standings]}, as_json=as_json, text=text)


def _waivers(given: tuple[str, ...]) -> dict[str, str]:
    waivers = {}
    for each in given:
        gate, equals, reason = each.partition("=")
        if not equals or not reason.strip():
            raise click.BadParameter(f"--waive {each}: write GATE=REASON; the reason goes into the ledger")
        waivers[gate] = reason.strip()
    return waivers


def _wait(entry: "Entry", servers: tuple[str, ...], within_s: float) -> None:
    from seatrial.settings import load_settings
    from seatrial_promotion.status import wait_for

    if servers:
        _tell(f"waiting until {', '.join(servers)} answer with version {entry.after}")
        wait_for(servers, entry.model, entry.after, shown=load_settings().credentials, within_s=within_s)


def _tell(words: str) -> None:
    click.echo(words, err=True)


def _as_dict(entry: "Entry") -> dict[str, object]:
    return asdict(entry)


def _words(entry: "Entry", servers: tuple[str, ...]) -> str:
    lines = [f"{entry.model}@{entry.alias} points at version {entry.after} (before: {entry.before or 'nothing'})"]
    lines += [
        f"  {gate.gate}: {gate.reason}{' (waived: ' + gate.waiver + ')' if gate.waiver else ''}" for gate in entry.gates
    ]
    lines += [f"  {server} answers with version {entry.after}" for server in servers]
    if not servers:
        lines.append(f"  servers that follow {entry.model}@{entry.alias} swap by themselves")
    return "\n".join(lines)


@click.command()
@click.option("--home", type=click.Path(path_type=Path), help="Where to live it.  [default: a new temporary directory]")
@json_option
def demo(*, home: Path | None, as_json: bool) -> None:
    """Live the whole life of a model on real data: train, register, export, prove, promote, serve, ask, measure.

    Takes about a minute, needs no network, and leaves no process behind. What it made stays in its home, to be looked at.

    \b
    Example:
      seatrial demo
      seatrial demo --home .seatrial
    """
    import tempfile

    from rich.console import Console

    from seatrial.settings import load_settings

    settings = load_settings(home=home or Path(tempfile.mkdtemp(prefix="seatrial-demo-")))
    console = Console(stderr=as_json, highlight=False)
    console.print(f"[bold]seatrial demo[/]  [dim]in {settings.home}; loading torch and MLflow takes a few seconds[/]")

    from seatrial_promotion.demo import farewell, live

    lived = live(settings, console)
    result = {
        "home": str(settings.home),
        "model": str(lived.registered.version),
        "accuracy": lived.registered.trained.score.value,
        "chosen": lived.exported.report.chosen,
        "bundle": lived.bundle.digest,
        "report": lived.exported.page,
        "correct": lived.correct,
        "asked": lived.asked,
        "served": lived.served,
        "measured": {protocol: asdict(result) for protocol, result in lived.measured.items()},
        "seconds": lived.seconds,
    }
    show(result, as_json=as_json, text=lambda: farewell(lived, settings))
