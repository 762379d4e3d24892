"""The real Prometheus of Debian, scraping one address twice a second, with the generated rules loaded."""

import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.conditions import until
from tests.tools import tool

Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prometheus:
    url: str
    client: httpx.Client

    def ask(self, path: str, **parameters: object) -> Any:
        answer = self.client.get(
            f"{self.url}/api/v1/{path}", params={name: str(value) for name, value in parameters.items()}
        )
        body = answer.json()
        assert body["status"] == "success", f"{parameters}: {body}"
        return body["data"]

    def now(self, expression: str) -> dict[Labels, float]:
        return {
            _labels(each["metric"]): float(each["value"][1]) for each in self.ask("query", query=expression)["result"]
        }

    def number(self, expression: str) -> float:
        """The only value of `expression`; 0 where it has none."""
        values = list(self.now(expression).values())
        assert len(values) <= 1, f"{expression} has {len(values)} values"
        return values[0] if values else 0.0

    def over(
        self, expression: str, *, start: float, end: float, step_s: float = 0.5
    ) -> dict[Labels, dict[float, float]]:
        """Values by time, for each series."""
        asked = self.ask("query_range", query=expression, start=start, end=end, step=step_s)
        return {_labels(each["metric"]): {at: float(value) for at, value in each["values"]} for each in asked["result"]}

    def firing(self) -> set[tuple[str, ...]]:
        """Name, severity and windows of the alerts that fire."""
        alerts = [alert for alert in self.ask("alerts")["alerts"] if alert["state"] == "firing"]
        return {
            tuple(alert["labels"].get(name, "") for name in ("alertname", "severity", "windows")) for alert in alerts
        }


def _labels(metric: Mapping[str, str]) -> Labels:
    return frozenset(metric.items())


@contextmanager
def scraping(address: str, rules: Path, place: Path) -> Iterator[Prometheus]:
    place.mkdir()
    configuration = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"},
        "rule_files": [str(rules)],
        "scrape_configs": [{"job_name": "seatrial", "static_configs": [{"targets": [address]}]}],
    }
    (place / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    listen = f"127.0.0.1:{_free_port()}"
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                tool("prometheus"),
                f"--config.file={place / 'prometheus.yml'}",
                f"--storage.tsdb.path={place / 'data'}",
                f"--web.listen-address={listen}",
                "--query.lookback-delta=2s",
                "--log.level=warn",
            ],
            stderr=log,
        )
    try:
        with httpx.Client() as client:
            prometheus = Prometheus(url=f"http://{listen}", client=client)

            def scraped() -> bool:
                assert process.poll() is None, (place / "log").read_text()[-3000:]
                try:
                    ready = client.get(f"{prometheus.url}/-/ready").is_success
                except httpx.TransportError:
                    return False
                return ready and prometheus.number("count_over_time(seatrial_ready[1m])") > 1

            until(scraped)
            yield prometheus
    finally:
        process.terminate()
        process.wait(30)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
