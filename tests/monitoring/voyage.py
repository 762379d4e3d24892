"""A server that goes through everything that can happen to one, while Prometheus looks on.

Two models with one engine each: `linear@champion` from a registry, and a bare `gather.onnx`, whose engine refuses a batch
when one of its requests holds a wrong id.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import tritonclient.grpc as triton_grpc

from seatrial.registry.embedded import EmbeddedRegistry
from seatrial.settings import Settings
from seatrial_monitoring.objectives import Objectives
from seatrial_monitoring.series import Outcome
from seatrial_monitoring.written import RULES_PATH, watching
from tests.conditions import until
from tests.disks import kept_shut
from tests.monitoring.prometheus import Prometheus, scraping
from tests.registries import publish
from tests.servers import Server
from tests.serving.models import LinearBundle, gather_onnx, laborious_linear_onnx

ROW = [[1, 2, 3, 4]]
OUTCOMES = {
    200: Outcome.OK,
    400: Outcome.CLIENT_ERROR,
    500: Outcome.SERVER_ERROR,
    503: Outcome.REFUSED,
    504: Outcome.DEADLINE,
}
SURROUNDINGS = {
    "SEATRIAL_REGISTRY__POLL_S": "0.05",
    "SEATRIAL_SERVING__GATEWAYS": "1",
    "SEATRIAL_SERVING__ENGINES__COUNT": "1",
    "SEATRIAL_SERVING__ENGINES__MAX_DEATHS": "1",
    "SEATRIAL_SERVING__BATCHING__MAX_QUEUE": "4",
    "SEATRIAL_SERVING__BATCHING__MAX_SIZE": "2",
    "SEATRIAL_SERVING__BATCHING__MAX_DELAY_MS": "10",
    "SEATRIAL_SERVING__LIMITS__REQUEST_S": "2",
}

MUST_FIRE = {
    ("SeatrialAvailabilityBurn", "page", "1h/5m"),
    ("SeatrialAvailabilityBurn", "page", "6h/30m"),
    ("SeatrialAvailabilityBurn", "ticket", "1d/2h"),
    ("SeatrialAvailabilityBurn", "ticket", "3d/6h"),
    ("SeatrialRequestQuarantined", "ticket", ""),
    ("SeatrialRequestLogLosing", "ticket", ""),
}
"""Name, severity and windows of the alerts that are to fire in the end."""


@dataclass(slots=True, kw_only=True)
class Voyage:
    """`idle` to `sailed`: nobody asks; `sailed` to `landed`: everything happens. Times are Prometheus's, in seconds."""

    server: Server
    prometheus: Prometheus
    registry: EmbeddedRegistry
    home: Path
    place: Path
    client: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=20))
    sent: Counter[Outcome] = field(default_factory=Counter)
    """How the requests for the linear model ended, as their callers saw it."""
    killed: int = 0
    """Engines."""
    firing_while_idle: set[tuple[str, ...]] = field(default_factory=set)
    idle: float = 0.0
    sailed: float = 0.0
    landed: float = 0.0

    def sail(self) -> None:
        self.idle = time.time()
        until(
            lambda: (
                self.seen("count_over_time(slo:sli_bad:increase1h{slo='seatrial-latency'}[1m])") > 3
                and self.idled() > 2
            )
        )
        self.firing_while_idle = self.prometheus.firing()
        self.sailed = time.time()
        self.ask_well_and_badly()
        self.overload()
        self.spoil_a_batch()
        self.kill_an_engine()
        self.swap()
        self.lose_the_registry()
        self.lose_the_log_s_reader()
        until(lambda: self.prometheus.firing() >= MUST_FIRE)
        self.landed = time.time()

    def idled(self) -> float:
        return time.time() - self.idle

    def seen(self, expression: str) -> float:
        """The sum of `expression`, as Prometheus has it."""
        return self.prometheus.number(f"sum({expression})")

    def linear_engine(self) -> psutil.Process:
        """What lies on this disk is started first, so the engine for the registry's model is the younger one."""
        return max(self.server.engines(), key=lambda process: float(process.create_time()))

    def await_replacement_of(self, killed: psutil.Process) -> None:
        """A killed process is still listed until the kernel has ended it."""
        until(lambda: killed not in (now := self.server.engines()) and len(now) == 2)

    # What happens

    def ask_well_and_badly(self) -> None:
        for _ in range(30):
            self.ask(ROW)
        for _ in range(10):
            self.ask(2 * ROW)
        for _ in range(7):
            self.ask([["not", "four", "num", "bers"]], datatype="BYTES")
        for _ in range(5):
            assert self.client.post(self.server.url("/v2/models/nobody/infer"), json=_body(ROW)).status_code == 404
        self.ask_by_grpc(12)
        self.gather([[1, 2]])
        self.say_nonsense()

    def say_nonsense(self) -> None:
        host, _, port = self.server.http.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(b"no request\r\n\r\n")
            assert connection.recv(1024).startswith(b"HTTP/1.1 400 ")

    def overload(self) -> None:
        """More than fits while the engine stands still: some are refused, the others too late, one caller leaves."""
        engine = self.linear_engine()
        engine.suspend()
        with ThreadPoolExecutor(14) as callers:
            leaving = callers.submit(self.ask_and_leave)
            until(lambda: self.server.total("seatrial_inflight_requests", model="linear") > 0)
            asked = [callers.submit(self.ask, ROW) for _ in range(12)]
            until(lambda: self.seen("seatrial_queue_depth") > 0 and self.seen("seatrial_inflight_requests") > 0)
            leaving.result()
            for each in asked:
                each.result()
        engine.resume()
        self.ask(ROW)

    def spoil_a_batch(self) -> None:
        """A wrong id makes the engine refuse the batch; whoever shared it is tried again, alone."""

        async def together() -> list[int]:
            async with httpx.AsyncClient(base_url=self.server.url("")) as client:
                return [
                    answer.status_code
                    for answer in await asyncio.gather(
                        *(
                            client.post("/v2/models/gather/infer", json=_body([ids], name="ids", datatype="INT64"))
                            for ids in ([1, 2], [1, 99])
                        )
                    )
                ]

        def tried_again() -> bool:
            [good, bad] = asyncio.run(together())
            assert good == 200
            assert bad >= 400
            return self.server.total("seatrial_retried_requests_total", model="gather") > 0

        until(tried_again)

    def kill_an_engine(self) -> None:
        """In the middle of a batch, whose request is given up at the first death."""
        [model] = (self.home / "bundles").glob("*/model.onnx")
        while self.sent[Outcome.SERVER_ERROR] == 0:
            engine = self.linear_engine()
            with kept_shut(model), ThreadPoolExecutor(1) as caller:  # its replacement has to wait
                asking = threading.Event()
                asked = caller.submit(self.ask_until, asking)
                until(lambda engine=engine: stopped_in_a_batch(engine))  # type: ignore[misc]
                engine.kill()
                self.killed += 1
                asking.set()
                asked.result()
                until(lambda: self.seen("seatrial_ready") == 0)
            self.await_replacement_of(engine)
        until(lambda: self.seen("seatrial_ready") == 1)

    def swap(self) -> None:
        """To a version that answers as it did where it was built, then to one that does not."""
        publish(self.registry, LinearBundle(version="2", scale=2).write(self.place))
        until(lambda: self.seen("seatrial_swaps_total{outcome='done'}") == 1)
        for _ in range(5):
            self.ask(ROW)
        publish(self.registry, LinearBundle(version="3", golden_scale=9).write(self.place))
        until(lambda: self.seen("seatrial_swaps_total{outcome='failed'}") == 1)
        until(lambda: self.seen("seatrial_alias_drift_seconds") > 0)

    def lose_the_registry(self) -> None:
        [watcher] = [
            child
            for child in psutil.Process(self.server.process.pid).children()
            if "seatrial.registry.watch" in " ".join(child.cmdline())
        ]
        watcher.suspend()
        until(lambda: self.seen("seatrial_registry_age_seconds") > 1.5)
        watcher.resume()
        until(lambda: self.seen("seatrial_registry_age_seconds") < 1)

    def lose_the_log_s_reader(self) -> None:
        assert self.server.process.stdout is not None
        until(lambda: self.seen("seatrial_request_log_written_total") > 0)
        self.server.process.stdout.close()
        self.ask(ROW)
        until(lambda: self.seen("min_over_time(seatrial_request_log_dropped_total[2s])") > 0)

    # Asking

    def ask(self, rows: list[list[Any]], *, datatype: str = "FP32") -> Outcome:
        answer = self.client.post(self.server.url("/v2/models/linear/infer"), json=_body(rows, datatype=datatype))
        outcome = OUTCOMES[answer.status_code]
        self.sent[outcome] += 1
        return outcome

    def ask_until(self, enough: threading.Event) -> None:
        while not enough.is_set():
            self.ask(ROW)

    def ask_and_leave(self) -> None:
        try:
            self.client.post(self.server.url("/v2/models/linear/infer"), json=_body(ROW), timeout=0.5)
        except httpx.ReadTimeout:
            self.sent[Outcome.ABANDONED] += 1

    def ask_by_grpc(self, times: int) -> None:
        tensor = triton_grpc.InferInput("x", [1, 4], "FP32")
        tensor.set_data_from_numpy(np.array(ROW, np.float32))
        with triton_grpc.InferenceServerClient(self.server.grpc) as client:
            for _ in range(times):
                client.infer("linear", [tensor])
                self.sent[Outcome.OK] += 1

    def gather(self, ids: list[list[int]]) -> None:
        body = _body(ids, name="ids", datatype="INT64")
        assert self.client.post(self.server.url("/v2/models/gather/infer"), json=body).status_code == 200


def stopped_in_a_batch(engine: psutil.Process) -> bool:
    """Stop `engine`; if it waits for a batch, as it does most of the time, let it go on."""
    engine.suspend()
    until(lambda: engine.status() == psutil.STATUS_STOPPED)
    if Path(f"/proc/{engine.pid}/syscall").read_text().startswith("-1 "):  # in no system call: it computes
        return True
    engine.resume()
    return False


@contextmanager
def voyage(home: Path, place: Path) -> Iterator[Voyage]:
    """The server's standard output is a pipe, so that its reader can go."""
    registry = EmbeddedRegistry(Settings(home=home))
    slow = laborious_linear_onnx(place / "laborious.onnx")  # so that an engine can be met in a batch
    publish(registry, LinearBundle(version="1", model=slow).write(place))
    command = [sys.executable, "-m", "seatrial", "serve", "linear@champion", str(gather_onnx(place / "gather.onnx"))]
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    environment = os.environ | SURROUNDINGS | {"SEATRIAL_HOME": str(home)}
    with (place / "err").open("wb") as err:
        process = subprocess.Popen([*command, *ports, "--json"], stdout=subprocess.PIPE, stderr=err, env=environment)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, (place / "err").read_text()[-3000:]
        ready = json.loads(line)
        server = Server(
            process=process,
            http=ready["http"],
            grpc=ready["grpc"],
            metrics_address=ready["metrics"],
            models=tuple(ready["models"]),
            out=place / "out",
            err=place / "err",
        )
        rules = place / "rules.yaml"
        rules.write_text(watching(Objectives())[RULES_PATH])
        with scraping(server.metrics_address, rules, place / "prometheus") as prometheus:
            sailing = Voyage(server=server, prometheus=prometheus, registry=registry, home=home, place=place)
            with sailing.client:
                yield sailing
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def _body(rows: list[list[Any]], *, name: str = "x", datatype: str = "FP32") -> dict[str, Any]:
    return {"inputs": [{"name": name, "datatype": datatype, "shape": [len(rows), len(rows[0])], "data": rows}]}
