"""Alias swaps and killed engines under open-loop load, at half of what the server can do.

The registry is a real one. Its alias is moved as a promotion moves it, without the gates: on a loaded machine they take ten
seconds each time, and they are no part of a swap. A round is a steady time, four swaps and one `kill -9` of an engine; fifty
rounds make 200 swaps and 50 kills. REST and gRPC are asked at the same time, each at a quarter of what it reached alone in a
closed loop with the same client. A swap counts from the alias's move until the server answers with the other version and the
old engines have gone.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import uvloop

from benchmarks.bench import PORTS, Bench
from benchmarks.intervals import Interval, Promise, promises
from benchmarks.models import DIGITS, VERSIONS
from benchmarks.open_loop import Asked, load
from benchmarks.rounds import Lost
from benchmarks.started import Running, started
from benchmarks.tables import table
from seatrial.registry.embedded import EmbeddedRegistry
from seatrial.settings import Settings
from seatrial_serving.bench import Plan, Protocol
from seatrial_serving.bench import bench as closed_loop
from seatrial_serving.engine_process import NAME as ENGINE
from tests.digits import ExportedDigits

ALIAS = "champion"
SWAPS, KILLS = 4, 1
"""In a round."""
SHARE = 0.5
CONNECTIONS = 64
CAPACITY_CALLERS = 32
QUEUE_S = 3.0
"""How many seconds of the load the queue has room for."""
MOST_S = 60.0
LOOK_EVERY_S = 0.02
WATCHER = "seatrial.registry.watch"
MB = 10**6

Window = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """When what was done in one round."""

    steady: Window
    swaps: list[Window]
    kills: list[Window]


def measure(bench: Bench) -> str:
    with tempfile.TemporaryDirectory(prefix="seatrial-swaps-") as place:
        settings = ExportedDigits(home=bench.models.digits_home).copy(Path(place) / "home").settings
        registry = EmbeddedRegistry(settings)
        _move(registry, VERSIONS[0])
        rates = _half(settings, bench.seconds)
        return _measure(bench, registry, _home(settings), rates)


def _measure(bench: Bench, registry: EmbeddedRegistry, home: dict[str, str], rates: dict[str, float]) -> str:
    task = bench.progress.add_task("swaps", total=bench.rounds)
    queue = {"SEATRIAL_SERVING__BATCHING__MAX_QUEUE": str(max(1024, round(QUEUE_S * sum(rates.values()))))}
    with (
        started("seatrial", "serve", f"{DIGITS}@{ALIAS}", *PORTS, environment=home | queue) as running,
        httpx.Client(base_url=f"http://{running.addresses['http']}", timeout=30) as http,
    ):
        server = Subject(running=running, registry=registry, http=http)
        running.settle()
        before, turns = server.own_bytes(), list[Turn]()
        with (
            load(_plan(running, "rest", rate=rates["rest"])) as rest,
            load(_plan(running, "grpc", rate=rates["grpc"])) as grpc,
        ):
            for _ in range(bench.rounds):
                running.forget_output()
                turns.append(_turn(server, bench.seconds))
                bench.progress.advance(task)
        after = server.own_bytes()
    return _found(turns, {"REST": rest, "gRPC": grpc}, rates, (before, after))


def _turn(server: "Subject", seconds: float) -> Turn:
    began = time.monotonic()
    time.sleep(seconds)
    steady = began, time.monotonic()
    swaps = [server.swap() for _ in range(SWAPS)]
    return Turn(steady=steady, swaps=swaps, kills=[server.kill() for _ in range(KILLS)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The server, and what is done to it."""

    running: Running
    registry: EmbeddedRegistry
    http: httpx.Client

    def swap(self) -> Window:
        to = VERSIONS[self.served() == VERSIONS[0]]
        old = set(self.engines())
        began = time.monotonic()
        _move(self.registry, to)
        _until(lambda: self.served() == to and not old & set(self.engines()), f"version {to} alone")
        return began, time.monotonic()

    def kill(self) -> Window:
        old = self.engines()
        began = time.monotonic()
        old[0].kill()
        _until(lambda: old[0] not in (now := self.engines()) and len(now) == len(old), "another engine")
        _until(lambda: self.http.get("/v2/health/ready").is_success, "readiness")
        return began, time.monotonic()

    def served(self) -> str:
        answer = self.http.get(f"/v2/models/{DIGITS}").raise_for_status()
        return str(answer.json()["versions"][0])

    def engines(self) -> list[psutil.Process]:
        return [process for process in self.running.processes if _name(process) == ENGINE]

    def own_bytes(self) -> int:
        """Without the watcher of the registry, which is MLflow's memory."""
        return sum(p.memory_full_info().pss for p in self.running.processes if WATCHER not in _command(p))


def _command(process: psutil.Process) -> str:
    """Empty for one that has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def _name(process: psutil.Process) -> str:
    """Empty for one that has ended."""
    try:
        return str(process.name())
    except psutil.NoSuchProcess:
        return ""


def _move(registry: EmbeddedRegistry, version: str) -> None:
    registry.client.set_registered_model_alias(DIGITS, ALIAS, version)


def _until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + MOST_S
    while not holds():
        if time.monotonic() > deadline:
            raise Lost(f"waited {MOST_S:g} s for {what}")
        time.sleep(LOOK_EVERY_S)


# The load


def _half(settings: Settings, seconds: float) -> dict[str, float]:
    """Half of what the server can do, requests a second: a half of each way's share."""
    rates: dict[str, float] = {}
    ways: tuple[Protocol, ...] = ("rest", "grpc")
    with started("seatrial", "serve", f"{DIGITS}@{ALIAS}", *PORTS, environment=_home(settings)) as server:
        for protocol in ways:
            plan = _plan(server, protocol, seconds=seconds, connections=CAPACITY_CALLERS)
            rates[protocol] = SHARE / 2 * uvloop.run(closed_loop(plan)).per_second
    return rates


def _plan(
    server: Running,
    protocol: Protocol,
    *,
    rate: float | None = None,
    seconds: float = 0,
    connections: int = CONNECTIONS,
) -> Plan:
    url = server.addresses["grpc" if protocol == "grpc" else "http"]
    return Plan(url=url, model=DIGITS, protocol=protocol, callers=connections, seconds=seconds, rate=rate)


def _home(settings: Settings) -> dict[str, str]:
    return {"SEATRIAL_HOME": str(settings.home), "SEATRIAL_REGISTRY__POLL_S": "0.25"}


# What was found


def _found(turns: list[Turn], asked: dict[str, Asked], rates: dict[str, float], own: tuple[int, int]) -> str:
    swaps = sum(len(turn.swaps) for turn in turns)
    kills = sum(len(turn.kills) for turn in turns)
    failed = sum(each.failed for each in asked.values())
    made = [
        Promise(f"{swaps} swaps and {kills} kills: no failed request", _exactly(failed), at_most=0),
        *(
            Promise(f"{way}: p99 during a swap <= 3 of steady", _slower(turns, each), at_most=3)
            for way, each in asked.items()
        ),
        Promise(f"PSS after {swaps} swaps <= 1.1 of before", _exactly(own[1] / own[0]), at_most=1.1),
    ]
    rows = [
        [
            way,
            f"{rate:,.0f}",
            f"{len(each.well):,}",
            str(each.failed),
            f"{each.p99_ms(*(turn.steady for turn in turns)):.1f}",
            f"{each.p99_ms(*(swap for turn in turns for swap in turn.swaps)):.1f}",
            f"{each.p99_ms(*(kill for turn in turns for kill in turn.kills)):.1f}",
            f"{1000 * each.took_s.max():.0f}",
        ]
        for (way, each), rate in zip(asked.items(), rates.values(), strict=True)
    ]
    took = Interval.of([end - begin for turn in turns for begin, end in turn.swaps])
    return "\n\n".join(
        [
            promises(made),
            table(
                ["", "requests/s", "asked", "failed", "p99 ms steady", "in a swap", "after a kill", "longest ms"], rows
            ),
            f"A swap took {took} s. PSS without the registry watcher: {own[0] / MB:.0f} MB before, {own[1] / MB:.0f} MB after.",
        ]
    )


def _exactly(value: float) -> Interval:
    return Interval(middle=value, low=value, high=value)


def _slower(turns: list[Turn], asked: Asked) -> Interval:
    return Interval.of([asked.p99_ms(*turn.swaps) / asked.p99_ms(turn.steady) for turn in turns])
