"""Many connections that do nothing, more than there are descriptors for, and what is no request: a real server, raw sockets."""

import resource
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import cycle, islice, pairwise
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton_grpc
from hypothesis import given
from hypothesis import strategies as st

from seatrial_monitoring.series import Closing
from seatrial_serving.doors.closings import Closings
from tests.conditions import until
from tests.servers import Server, serving
from tests.serving.models import LinearBundle, linear
from tests.tools import tool

X = [[1.0, 2.0, 3.0, 4.0]]
BODY = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": X}]}
LEAVING = 20
"""What other tests' clients may have open when this one begins, and close meanwhile."""
SPARE = 200
"""Descriptors that this process needs for itself."""
IDLE_BYTES = 12 * 1024
"""What a connection that does nothing may take of the gateway."""
ENGINE = {"SEATRIAL_SERVING__ENGINES__COUNT": "1"}
HEADER_BYTES = 8192
LIMITS = {"SEATRIAL_SERVING__LIMITS__HEADER_BYTES": str(HEADER_BYTES), "SEATRIAL_SERVING__LIMITS__RECEIVE_S": "4"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("connections")
    with serving(LinearBundle().write(place).path, place=place / "server", environment=ENGINE | LIMITS) as running:
        yield running


def ask(client: httpx.Client) -> float:
    """Seconds until the right answer."""
    began = time.perf_counter()
    answer = client.post("/v2/models/linear/infer", json=BODY)
    took_s = time.perf_counter() - began
    assert answer.json()["outputs"][0]["data"] == linear(X)[0].tolist()
    return took_s


def ask_over_grpc(server: Server) -> None:
    tensor = triton_grpc.InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(np.array(X, np.float32))
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        assert client.infer("linear", [tensor]).as_numpy("y").tolist() == linear(X).tolist()


def closed(server: Server, reason: Closing) -> float:
    return server.total("seatrial_closed_connections_total", reason=reason)


# Idle ones


@contextmanager
def room_for(descriptors: int) -> Iterator[int]:
    """As many as this process may open at once, at most `descriptors`; whoever has few is told."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = min(hard, max(soft, descriptors + SPARE)) if hard != resource.RLIM_INFINITY else descriptors + SPARE
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    try:
        if most < descriptors + SPARE:
            pytest.skip(f"this process may open {most} files, and {descriptors + SPARE} are wanted")
        yield descriptors
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_idle_connections_cost_little_and_nobody_else_notices_them(server: Server) -> None:
    stay_idle(server, 500)


@pytest.mark.slow
def test_ten_thousand_idle_connections_do_not_either(tmp_path: Path) -> None:
    with serving(LinearBundle().write(tmp_path).path, place=tmp_path / "server", environment=ENGINE) as own:
        stay_idle(own, 10_000)


def stay_idle(server: Server, count: int) -> None:
    """So many do, half of them on each port, while others ask."""
    gateway = psutil.Process(server.process.pid)
    with room_for(count), httpx.Client(base_url=server.url(""), timeout=30) as client:
        alone_s = np.median([ask(client) for _ in range(100)])
        before, closings = resources(gateway), server.total("seatrial_closed_connections_total")
        with ExitStack() as idle:
            for address in islice(cycle((server.http, server.grpc)), count):
                idle.enter_context(connect(address))
            until(lambda: resources(gateway).descriptors >= before.descriptors + count - LEAVING)
            in_company_s = np.median([ask(client) for _ in range(100)])
            ask_over_grpc(server)
            assert in_company_s < 3 * alone_s
            assert (resources(gateway).private_bytes - before.private_bytes) / count < IDLE_BYTES
        until(lambda: resources(gateway).descriptors <= before.descriptors)
        ask(client)
        assert server.total("seatrial_closed_connections_total") == closings, "they went by themselves"


class Resources(NamedTuple):
    descriptors: int
    private_bytes: int


def resources(process: psutil.Process) -> Resources:
    return Resources(process.num_fds(), process.memory_full_info().uss)


def connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=30)


# Too many


def test_connections_never_get_the_last_descriptors(tmp_path: Path) -> None:
    """The server may open 300 files if it wants, of which it keeps half for itself."""
    limited = tool("prlimit"), "--nofile=200:300"
    bundle = LinearBundle().write(tmp_path)
    with (
        serving(bundle.path, place=tmp_path / "server", environment=ENGINE, under=limited) as server,
        httpx.Client(base_url=server.url(""), timeout=30) as client,
    ):
        assert psutil.Process(server.process.pid).rlimit(psutil.RLIMIT_NOFILE) == (300, 300)
        ask(client)
        with ExitStack() as crowd:
            taken = [crowd.enter_context(connect(server.http)) for _ in range(200)]
            until(lambda: closed(server, Closing.NO_ROOM) > 0)
            assert b"503 Service Unavailable\r\nretry-after: 1\r\n" in received(taken[-1])
            ask(client)
            before = closed(server, Closing.NO_ROOM)
            with connect(server.grpc) as late:
                received(late)
            assert closed(server, Closing.NO_ROOM) == before + 1
            [engine] = server.engines()
            engine.kill()
            until(lambda: [each.pid for each in server.engines()] not in ([], [engine.pid]))
            ask(client)
        until(lambda: psutil.Process(server.process.pid).num_fds() < 150)
        with httpx.Client(base_url=server.url(""), timeout=30) as newcomer:
            ask(newcomer)
        ask_over_grpc(server)
        said = [line for line in server.err.read_text().splitlines() if "LimitNOFILE" in line]
        assert 1 <= len(said) < closed(server, Closing.NO_ROOM) / 2, "a line a second for each door"


def received(connection: socket.socket) -> bytes:
    """All until the server closes, whether it has read what was sent or not."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


# No requests


def test_what_is_no_request_is_refused_counted_and_logged_once_a_second(server: Server) -> None:
    before = {reason: closed(server, reason) for reason in Closing}
    for _ in range(50):
        assert answer(server.http, b"\x16\x03\x01 hello\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert answer(server.http, b"GET / HTTP/1.1\r\nx-a: " + 2 * HEADER_BYTES * b"a").startswith(b"HTTP/1.1 431 ")
    assert answer(server.http, b"GET / HTTP/1.1\r\n").startswith(b"HTTP/1.1 408 ")
    assert b"this port speaks gRPC" in answer(server.grpc, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    assert {reason: closed(server, reason) - before[reason] for reason in Closing} == {
        Closing.MALFORMED: 51,
        Closing.HEADERS: 1,
        Closing.SLOW: 1,
        Closing.NO_ROOM: 0,
    }
    assert server.total("seatrial_closed_connections_total", protocol="grpc", reason="malformed") == 1
    said = server.err.read_text()
    assert said.count("REST connection was closed: what it sent is not the protocol of this port (1 so far)") == 1
    assert said.count("is not the protocol") < 10
    assert "Invalid HTTP request" not in said


def answer(address: str, sent: bytes) -> bytes:
    with connect(address) as connection:
        connection.sendall(sent)
        return received(connection)


@given(st.lists(st.floats(0, 3)))
def test_however_many_are_closed_each_reason_is_logged_once_a_second_at_most(waits: Sequence[float]) -> None:
    now = 0.0
    said: list[float] = []
    counts = dict.fromkeys(Closing, 0)
    closings = Closings("REST", counts, clock=lambda: now, say=lambda _: said.append(now))
    for wait in waits:
        now += wait
        closings.note(Closing.SLOW)
    assert counts == dict.fromkeys(Closing, 0) | {Closing.SLOW: len(waits)}
    assert all(later - earlier >= 1 for earlier, later in pairwise(said))
    assert bool(said) == bool(waits)
