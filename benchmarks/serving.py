"""The digits model, one row a request: our server, Triton on the same bundle, a bare HTTP server, the raw engine.

All servers run from the beginning to the end, idle but for the one that is being asked. Every round asks each of them at
every concurrency, starting with another one, so that what disturbs the machine disturbs all alike; a figure is the
median over the rounds. One client process, ours, asks all of them, on the same cores as the servers.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import uvloop
from rich.progress import Progress

from benchmarks.raw import rows_per_second
from benchmarks.started import started
from benchmarks.tables import table
from seatrial.bundle import open_bundle
from seatrial_serving.bench import Plan, Protocol, Result, bench

CALLERS = (1, 8, 32, 64)
PORTS = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--json")
RAW = ((1, 1), (2, 1), (2, 64))
"""Callers and batch of the raw engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    name: str
    url: str
    protocol: Protocol


def measure(bundle: Path, *, rounds: int, seconds: float, progress: Progress) -> str:
    """The section of `benchmarks/README.md`."""
    model = open_bundle(bundle).manifest.model.name
    results: dict[tuple[str, int], list[Result]] = {}
    raw: dict[tuple[int, int], list[float]] = {}
    with ExitStack() as running:
        contenders = list(_contenders(bundle, running))
        task = progress.add_task("serving", total=rounds * (len(contenders) * len(CALLERS) + len(RAW)))
        for number in range(rounds):
            for contender in contenders[number % len(contenders) :] + contenders[: number % len(contenders)]:
                for callers in CALLERS:
                    plan = Plan(
                        url=contender.url, model=model, protocol=contender.protocol, callers=callers, seconds=seconds,
                        warm_up_s=0.5,
                    )  # fmt: skip
                    result = uvloop.run(bench(plan))
                    if result.failed:
                        raise SystemExit(f"{contender.name} failed: {result.outcomes}")
                    results.setdefault((contender.name, callers), []).append(result)
                    progress.advance(task)
            for callers, batch in RAW:
                found = rows_per_second(bundle, callers=callers, batch=batch, seconds=seconds)
                raw.setdefault((callers, batch), []).append(found)
                progress.advance(task)
    return "\n".join([_throughput(contenders, results), "", _latency(contenders, results), "", _raw(raw)])


def _contenders(bundle: Path, running: ExitStack) -> Iterator[Contender]:
    ours = running.enter_context(started("seatrial", "serve", str(bundle), "--no-request-log", *PORTS)).addresses
    triton = running.enter_context(started("seatrial", "triton", "serve", str(bundle), *PORTS)).addresses
    hello = running.enter_context(started("benchmarks.hello")).addresses
    yield Contender(name="Seatrial, REST binary", url=ours["http"], protocol="rest")
    yield Contender(name="Seatrial, gRPC", url=ours["grpc"], protocol="grpc")
    yield Contender(name="Triton, REST binary", url=triton["http"], protocol="rest")
    yield Contender(name="Triton, gRPC", url=triton["grpc"], protocol="grpc")
    yield Contender(name="bare ASGI hello", url=hello["http"], protocol="rest")


Results = dict[tuple[str, int], list[Result]]


def _throughput(contenders: list[Contender], results: Results) -> str:
    rows = [
        [each.name, *(f"{median(r.per_second for r in results[each.name, c]):,.0f}" for c in CALLERS)]
        for each in contenders
    ]
    return table(["requests/s", *(f"c={callers}" for callers in CALLERS)], rows)


def _latency(contenders: list[Contender], results: Results) -> str:
    def cell(name: str, callers: int) -> str:
        found = results[name, callers]
        return f"{median(r.p50_ms for r in found):.2f} / {median(r.p99_ms for r in found):.2f}"

    rows = [[each.name, *(cell(each.name, callers) for callers in CALLERS)] for each in contenders]
    return table(["p50 / p99 ms", *(f"c={callers}" for callers in CALLERS)], rows)


def _raw(raw: dict[tuple[int, int], list[float]]) -> str:
    rows = [
        [f"{callers} of one thread, batch {batch}", f"{median(found):,.0f}"] for (callers, batch), found in raw.items()
    ]
    return table(["raw ONNX Runtime", "rows/s"], rows)
