"""What metrics and the request log cost on the hot path: `python -m benchmarks.metrics_overhead BUNDLE_OR_ONNX`.

Three servers of the same model, asked in turn: one that does everything, one without the request log, and one in which the
counting is taken out. The gateway's processor time for each request is what carries over: throughput also depends on who
else uses the machine.
"""

import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import click
import psutil

from benchmarks.tables import table
from seatrial_serving.bench import Plan, bench

BLIND = "blind"
SERVERS = {
    "metrics and request log": ("seatrial", "serve", "--request-log"),
    "metrics": ("seatrial", "serve", "--no-request-log"),
    "neither": ("benchmarks.metrics_overhead", BLIND),
}


@dataclass(slots=True)
class Server:
    process: psutil.Process
    http: str
    cpu_us: list[float] = field(default_factory=list)
    per_second: list[float] = field(default_factory=list)

    def measure(self, *, model: str, callers: int, seconds: float) -> None:
        before = self._cpu_s()
        plan = Plan(url=self.http, model=model, callers=callers, seconds=seconds, warm_up_s=0.2)
        result = asyncio.run(bench(plan))
        warm_up = plan.warm_up_s / seconds
        self.cpu_us.append(1e6 * (self._cpu_s() - before) / (result.requests * (1 + warm_up)))
        self.per_second.append(result.per_second)

    def _cpu_s(self) -> float:
        times = self.process.cpu_times()
        return float(times.user + times.system)


@contextmanager
def _served(command: Sequence[str], what: Path) -> Iterator[Server]:
    ports = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--json")
    with tempfile.TemporaryDirectory() as place, (Path(place) / "out").open("wb") as out:  # a pipe would fill up
        process = subprocess.Popen(
            [sys.executable, "-m", *command, str(what), *ports], stdout=out, stderr=subprocess.DEVNULL
        )
        try:
            while not (lines := (Path(place) / "out").read_text().splitlines()):
                assert process.poll() is None, f"{' '.join(command)} did not start"
                os.sched_yield()
            yield Server(psutil.Process(process.pid), json.loads(lines[0])["http"])
        finally:
            process.send_signal(signal.SIGINT)
            process.wait()


@click.command()
@click.argument("what", type=click.Path(path_type=Path, exists=True))
@click.option("--model", required=True, help="Its name on the server.")
@click.option("--rounds", default=10, show_default=True)
@click.option("--seconds", default=2.0, show_default=True)
@click.option("--callers", default=8, show_default=True)
def main(what: Path, *, model: str, rounds: int, seconds: float, callers: int) -> None:
    """Measure WHAT, a bundle's directory or an ONNX file."""
    with ExitStack() as stack:
        servers = {name: stack.enter_context(_served(command, what)) for name, command in SERVERS.items()}
        for number in range(rounds):
            for server in list(servers.values())[:: 1 if number % 2 else -1]:
                server.measure(model=model, callers=callers, seconds=seconds)
    bare = servers["neither"]
    rows = [
        [
            name,
            f"{statistics.median(server.cpu_us):.0f} us",
            _ratio(server.cpu_us, bare.cpu_us),
            f"{statistics.median(server.per_second):,.0f}",
            _ratio(server.per_second, bare.per_second),
        ]
        for name, server in servers.items()
    ]
    print(table(["server", "gateway's CPU a request", "to neither", "requests/s", "to neither"], rows))


def _ratio(these: Sequence[float], those: Sequence[float]) -> str:
    """The median of the ratios round by round, and their quartiles."""
    ratios = [this / that for this, that in zip(these, those, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def serve_blindly(arguments: Sequence[str]) -> None:
    """`seatrial serve` with the counting taken out."""
    from seatrial.cli import shell
    from seatrial_monitoring.metrics import Histogram, ModelMetrics
    from seatrial_serving.data_plane import DataPlane

    def nothing(*_: object, **__: object) -> None:
        pass

    for owner, name in ((Histogram, "observe"), (ModelMetrics, "computed"), (DataPlane, "end")):
        setattr(owner, name, nothing)
    shell(["serve", *arguments, "--no-request-log"])


if __name__ == "__main__":
    serve_blindly(sys.argv[2:]) if sys.argv[1:2] == [BLIND] else main()
