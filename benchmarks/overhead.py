"""What metrics and the request log cost on the hot path.

Three servers of the same model, asked in turn: one that does everything, one without the request log, and one in which the
counting is taken out. The gateway's processor time for each request is what carries over: throughput also depends on who
else uses the machine.
"""

import sys
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import psutil

from benchmarks.bench import PORTS, Bench
from benchmarks.clients import over_rest, v2
from benchmarks.intervals import Interval, Promise, promises, ratio
from benchmarks.models import request
from benchmarks.started import Running, started
from benchmarks.tables import table

CALLERS = 8
BLIND = "blind"
ALL, METRICS, NEITHER = "metrics and request log", "metrics", "neither"
SERVERS = {
    ALL: ("seatrial", "serve", "--request-log"),
    METRICS: ("seatrial", "serve", "--no-request-log"),
    NEITHER: ("benchmarks.overhead", BLIND),
}


def measure(bench: Bench) -> str:
    bundle = bench.models.digits
    post = v2(bundle.manifest.model.name, request(bundle.manifest.signature))
    cpu_us, per_second = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    task = bench.progress.add_task("overhead", total=bench.rounds * len(SERVERS))
    with ExitStack() as stack:
        serve = {name: partial(started, *command, str(bundle.path), *PORTS) for name, command in SERVERS.items()}
        servers = {name: stack.enter_context(start()) for name, start in serve.items()}
        for number in range(bench.rounds):
            for name, server in list(servers.items())[:: 1 if number % 2 else -1]:
                server.forget_output()
                before = _gateway_s(server)
                result = over_rest(server.addresses["http"], post, callers=CALLERS, seconds=bench.seconds)
                cpu_us[name].append(1e6 * (_gateway_s(server) - before) / result.requests)
                per_second[name].append(result.per_second)
                bench.progress.advance(task)
    cost = {name: ratio(cpu_us[name], cpu_us[NEITHER]) for name in SERVERS}
    rows = [
        [
            name,
            f"{Interval.of(cpu_us[name]).middle:.0f} us",
            str(cost[name]),
            f"{Interval.of(per_second[name]).middle:,.0f}",
            str(ratio(per_second[name], per_second[NEITHER])),
        ]
        for name in SERVERS
    ]
    made = promises([Promise("CPU a request with both, to neither: <= 1.05", cost[ALL], at_most=1.05)])
    return f"{made}\n\n" + table(["server", "gateway's CPU a request", "to neither", "requests/s", "to neither"], rows)


def _gateway_s(server: Running) -> float:
    times = psutil.Process(server.process.pid).cpu_times()
    return float(times.user + times.system)


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
    serve_blindly(sys.argv[2:])
