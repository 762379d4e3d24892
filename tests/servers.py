"""A real `seatrial serve`, in a process of its own, on free ports."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from seatrial_serving.engine_process import NAME as ENGINE
from seatrial_serving.gateway_process import NAME as GATEWAY
from tests.conditions import until


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    process: subprocess.Popen[bytes]
    http: str
    grpc: str
    metrics_address: str
    models: tuple[str, ...]
    out: Path
    err: Path
    management: str = ""

    def url(self, path: str) -> str:
        return f"http://{self.http}{path}"

    def metrics(self) -> dict[str, float]:
        """Every sample, by its name and labels as the exposition writes them."""
        text = httpx.get(f"http://{self.metrics_address}/metrics").text
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def total(self, name: str, **labels: str) -> float:
        """The sum of the samples of `name` whose labels include `labels`."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(
            value
            for sample, value in self.metrics().items()
            if sample.partition("{")[0] == name and all(each in sample for each in wanted)
        )

    def engines(self) -> list[psutil.Process]:
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if _name(child) == ENGINE]

    def gateways(self) -> list[psutil.Process]:
        """The further ones."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if _name(child) == GATEWAY]

    @contextmanager
    def half_sent(self, path: str, body: object) -> Iterator[Callable[[], tuple[int, Any]]]:
        """A POST of which the server has the head and a few bytes, so that it has chosen who is to answer. What it gives
        sends the rest, and returns the status and the answer."""
        data, (host, _, port) = json.dumps(body).encode(), self.http.rpartition(":")
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n"
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(head.encode() + b"connection: close\r\nexpect: 100-continue\r\n\r\n" + data[:9])
            assert connection.recv(1024).startswith(b"HTTP/1.1 100 ")

            def send_the_rest() -> tuple[int, Any]:
                connection.sendall(data[9:])
                answer = b"".join(iter(lambda: connection.recv(65536), b""))
                return int(answer.split(maxsplit=2)[1]), json.loads(answer.partition(b"\r\n\r\n")[2])

            yield send_the_rest

    def log(self) -> list[dict[str, Any]]:
        """The request log: one record a request."""
        return [record for record in map(json.loads, self.out.read_text().splitlines()) if record["event"] == "request"]


def _name(process: psutil.Process) -> str:
    """Empty for one that has ended."""
    try:
        return str(process.name())
    except psutil.NoSuchProcess:
        return ""


@contextmanager
def serving(
    *what: object,
    place: Path,
    environment: dict[str, str] | None = None,
    within_s: float = 60,
    under: Sequence[str] = (),
) -> Iterator[Server]:
    """Serve `what` until the block ends, then stop it in peace and see that nothing is left."""
    process = start(*what, place=place, environment=environment, under=under)
    try:
        server = when_ready(process, place, within_s=within_s)
        yield server
        if process.poll() is None:
            children = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0, (place / "err").read_text()[-3000:]
            gone, alive = psutil.wait_procs(children, timeout=5)
            assert not alive, f"left behind: {alive}, gone: {gone}"
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def start(
    *what: object, place: Path, environment: dict[str, str] | None = None, under: Sequence[str] = ()
) -> subprocess.Popen[bytes]:
    """One gateway, unless `environment` says how many. `under` is the command that becomes the server's, such as `prlimit`."""
    place.mkdir(parents=True, exist_ok=True)
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    with (place / "out").open("wb") as out, (place / "err").open("wb") as err:
        return subprocess.Popen(
            [*under, sys.executable, "-m", "seatrial", "serve", *map(str, what), *ports, "--json"],
            stdout=out,
            stderr=err,
            env=os.environ | {"SEATRIAL_SERVING__GATEWAYS": "1"} | (environment or {}),
        )


def when_ready(process: subprocess.Popen[bytes], place: Path, *, within_s: float = 60) -> Server:
    def said() -> bool:
        assert process.poll() is None, f"the server ended:\n{(place / 'err').read_text()[-5000:]}"
        return b'"ready"' in (place / "out").read_bytes()

    until(said, within_s=within_s)
    ready = next(record for line in (place / "out").read_text().splitlines() if (record := json.loads(line)))
    return Server(
        process=process,
        http=ready["http"],
        grpc=ready["grpc"],
        metrics_address=ready["metrics"],
        models=tuple(ready["models"]),
        out=place / "out",
        err=place / "err",
        management=ready["management"],
    )
