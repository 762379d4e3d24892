"""The command of monitoring: `monitor`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from seatrial.cli import EXIT_FAILED, json_option, show

if TYPE_CHECKING:
    from seatrial_monitoring.objectives import Objectives


@click.group()
def monitor() -> None:
    """Dashboard, alert rules and runbook for your objectives, and whether a live server feeds them."""


@monitor.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--objective", "objectives", multiple=True, metavar="NAME=PERCENT",
    help="availability (requests that do not end badly) or latency (requests within --latency-ms).  [default: 99.9, 99]",
)  # fmt: skip
@click.option("--latency-ms", type=click.FloatRange(min=0, min_open=True), help="[default: serving.latency_budget_ms]")
@click.option("--runbook-url", help="Where people will read the runbook.  [default: docs/runbook.md]")
@json_option
def write(
    folder: Path, *, objectives: tuple[str, ...], latency_ms: float | None, runbook_url: str | None, as_json: bool
) -> None:
    """Write a Grafana dashboard, Prometheus rules with their promtool tests, and the runbook, to DIR.

    The latency must be the server's own serving.latency_budget_ms, because it is counted by an edge of its histograms.

    \b
    Example:
      seatrial monitor write watching --objective availability=99.95 --latency-ms 50
      promtool test rules watching/prometheus-rules/*.test.yaml
    """
    from seatrial_monitoring import written

    files = written.write(folder, _promised(objectives, latency_ms=latency_ms, runbook_url=runbook_url))
    show([str(path) for path in files], as_json=as_json, text=lambda: "\n".join(map(str, files)))


@monitor.command()
@click.argument("url")
@click.option("--latency-ms", type=click.FloatRange(min=0, min_open=True), help="[default: serving.latency_budget_ms]")
@json_option
def check(url: str, *, latency_ms: float | None, as_json: bool) -> None:
    """Ask a live server for its metrics, and say which panels and rules would stay empty. Exit code 1 if any would.

    \b
    Example:
      seatrial monitor check localhost:8002
      seatrial monitor check http://localhost:3000/seatrial/metrics
    """
    from seatrial_monitoring.check import check as ask

    checked = ask(url, _promised((), latency_ms=latency_ms, runbook_url=None))

    def text() -> str:
        fed = f"{checked.series} samples; {checked.panels} panels and {checked.rules} rules"
        if not checked.gaps:
            return f"{fed}: each finds its series"
        return "\n".join([f"{fed}; empty:", *(f"  {gap.where}: {gap.missing}: {gap.reason}" for gap in checked.gaps)])

    show(asdict(checked), as_json=as_json, text=text)
    if checked.gaps:
        raise SystemExit(EXIT_FAILED)


def _promised(given: tuple[str, ...], *, latency_ms: float | None, runbook_url: str | None) -> "Objectives":
    """Raises `click.UsageError` for what cannot be read, `InvalidSettings` for what cannot be promised."""
    from seatrial.settings import load_settings
    from seatrial_monitoring.objectives import Objectives

    percents = dict(_parse(each) for each in given)
    budget_ms = load_settings().serving.latency_budget_ms if latency_ms is None else latency_ms
    where = {} if runbook_url is None else {"runbook": runbook_url}
    return Objectives(latency_s=budget_ms / 1000, **percents, **where)  # type: ignore[arg-type] # names are checked


def _parse(objective: str) -> tuple[str, float]:
    name, _, percent = objective.partition("=")
    if name not in ("availability", "latency"):
        raise click.BadParameter(
            f"{objective!r}: there are availability=PERCENT and latency=PERCENT", param_hint="--objective"
        )
    try:
        return name, round(float(percent) / 100, 12)
    except ValueError:
        raise click.BadParameter(f"{objective!r}: {percent!r} is no number", param_hint="--objective") from None
