"""The digits model, one row a request: our server, Triton on the same bundle, bare servers, the raw engine.

All servers run from the beginning to the end, idle but for the one that is being asked. Every round asks each of them at
every concurrency, starting with another one, so that what disturbs the machine disturbs all alike; a figure is the
median over the rounds. The clients run on the same cores as the servers.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from rich.progress import Progress

from benchmarks import clients
from benchmarks.raw import rows_per_second
from benchmarks.started import started
from benchmarks.tables import table
from seatrial.bundle import open_bundle
from seatrial.protocol import InferRequest, Tensor
from seatrial_serving.bench import Result

CALLERS = (1, 8, 32, 64)
PORTS = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--json")
RAW = ((1, 1), (2, 1), (2, 64))
"""Callers and batch of the raw engine."""
COMPARED = {"REST binary": ("Triton, REST binary", "bare ASGI"), "gRPC": ("Triton, gRPC", "bare grpc.aio")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    name: str
    ask: Callable[..., Result]
    address: str


def measure(bundle: Path, *, rounds: int, seconds: int, progress: Progress) -> str:
    """The section of `benchmarks/README.md`."""
    manifest = open_bundle(bundle).manifest
    rows = [
        Tensor(spec.name, spec.datatype, np.zeros([1, *spec.shape[1:]], spec.datatype.numpy))
        for spec in manifest.signature.inputs
    ]
    request = InferRequest(tuple(rows), parameters={"binary_data_output": True})
    results: dict[tuple[str, int], list[Result]] = {}
    raw: dict[tuple[int, int], list[float]] = {}
    with ExitStack() as running:
        contenders = list(_contenders(bundle, running))
        task = progress.add_task("serving", total=rounds * (len(contenders) * len(CALLERS) + len(RAW)))
        for number in range(rounds):
            for contender in contenders[number % len(contenders) :] + contenders[: number % len(contenders)]:
                for callers in CALLERS:
                    result = contender.ask(
                        contender.address, manifest.model.name, request, callers=callers, seconds=seconds
                    )
                    if result.failed:
                        raise SystemExit(f"{contender.name} failed: {result.outcomes}")
                    results.setdefault((contender.name, callers), []).append(result)
                    progress.advance(task)
            for callers, batch in RAW:
                found = rows_per_second(bundle, callers=callers, batch=batch, seconds=seconds)
                raw.setdefault((callers, batch), []).append(found)
                progress.advance(task)
    parts = (_throughput(contenders, results), _ratios(results), _latency(contenders, results), _raw(raw))
    return "\n\n".join(parts)


def _contenders(bundle: Path, running: ExitStack) -> Iterator[Contender]:
    ours = running.enter_context(started("seatrial", "serve", str(bundle), "--no-request-log", *PORTS)).addresses
    triton = running.enter_context(started("seatrial", "triton", "serve", str(bundle), *PORTS)).addresses
    hello = running.enter_context(started("benchmarks.hello")).addresses
    yield Contender(name="Seatrial, REST binary", ask=clients.rest, address=ours["http"])
    yield Contender(name="Triton, REST binary", ask=clients.rest, address=triton["http"])
    yield Contender(name="bare ASGI", ask=clients.rest, address=hello["http"])
    yield Contender(name="Seatrial, gRPC", ask=clients.over_grpc, address=ours["grpc"])
    yield Contender(name="Triton, gRPC", ask=clients.over_grpc, address=triton["grpc"])
    yield Contender(name="bare grpc.aio", ask=clients.over_grpc, address=hello["grpc"])


Results = dict[tuple[str, int], list[Result]]


def _throughput(contenders: list[Contender], results: Results) -> str:
    rows = [
        [each.name, *(f"{median(r.per_second for r in results[each.name, c]):,.0f}" for c in CALLERS)]
        for each in contenders
    ]
    return table(["requests/s", *(f"c={callers}" for callers in CALLERS)], rows)


def _ratios(results: Results) -> str:
    """Round by round, so that what disturbs a round disturbs both; the median, and the range that holds 90 % of medians."""

    def cell(name: str, other: str, callers: int) -> str:
        pairs = zip(results[name, callers], results[other, callers], strict=True)
        ratios = np.array([this.per_second / that.per_second for this, that in pairs])
        drawn = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
        low, high = np.percentile(np.median(drawn, axis=1), (5, 95))
        return f"{np.median(ratios):.2f} ({low:.2f} to {high:.2f})"

    compared = [(f"Seatrial, {way}", other) for way, others in COMPARED.items() for other in others]
    rows = [[f"{name}, to {other}", *(cell(name, other, c) for c in CALLERS)] for name, other in compared]
    return table(["requests/s, ratio", *(f"c={callers}" for callers in CALLERS)], rows)


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
