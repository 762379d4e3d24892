"""The load that `seatrial bench` puts on a server is the load that the server counts."""

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from seatrial.errors import InvalidSource, NotReady
from seatrial.protocol import InferRequest, Tensor
from seatrial.tensors import DataType
from seatrial_serving.bench import OK, Plan, Protocol, _open_loop, bench
from tests.commands import type_seatrial
from tests.servers import Server, serving
from tests.serving.models import LinearBundle


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("bench")
    with serving(LinearBundle().write(place / "store").path, place=place, environment=SHORT_BODIES) as running:
        yield running


SHORT_BODIES = {"SEATRIAL_SERVING__LIMITS__BODY_BYTES": "4096"}


@pytest.mark.parametrize("protocol", ["rest", "rest-json", "grpc"])
def test_every_request_is_sent_answered_and_counted_once(server: Server, protocol: Protocol) -> None:
    def answered() -> float:
        return server.total("seatrial_requests_total", model="linear", outcome="ok")

    before = answered()
    url = server.grpc if protocol == "grpc" else server.http
    plan = Plan(url=url, model="linear", protocol=protocol, callers=3, seconds=0.3, warm_up_s=0.0)
    result = asyncio.run(bench(plan))
    assert result.outcomes == {"ok": result.requests}
    assert result.requests == answered() - before > 3
    assert 0 < result.p50_ms <= result.p90_ms <= result.p99_ms <= result.max_ms
    assert result.per_second == pytest.approx(result.requests / result.seconds)


def test_an_open_loop_sends_what_is_due_and_counts_the_wait(server: Server) -> None:
    """One caller cannot keep up with so many: latency counts from when each was due, and so it grows."""
    plan = Plan(url=server.http, model="linear", callers=1, seconds=0.1, warm_up_s=0.0, rate=20_000)
    result = asyncio.run(bench(plan))
    assert result.requests == 2_000
    assert result.p99_ms > 1.2 * result.p50_ms > 100


def test_samples_are_sent_as_they_are(server: Server, tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", x=np.ones((300, 4), np.float32))
    plan = Plan(
        url=server.http, model="linear", callers=1, seconds=0.05, warm_up_s=0.0, samples=tmp_path / "rows.npz", rows=300
    )
    assert set(asyncio.run(bench(plan)).outcomes) == {"413"}, "300 rows of 16 bytes are over this server's limit"


@pytest.mark.parametrize("protocol", ["rest", "rest-json", "grpc"])
@pytest.mark.parametrize("rate", [None, 200])
def test_several_requests_are_asked_in_turn(server: Server, protocol: Protocol, rate: float | None) -> None:
    """Every third has too many columns: in whatever order callers come by, a third of all fails."""
    url = server.grpc if protocol == "grpc" else server.http
    requests = tuple(InferRequest((Tensor("x", DataType.FP32, np.zeros((1, size), np.float32)),)) for size in (4, 4, 5))
    plan = Plan(
        url=url, model="linear", protocol=protocol, callers=2, seconds=0.3, warm_up_s=0.0, rate=rate, requests=requests
    )
    result = asyncio.run(bench(plan))
    refused = result.outcomes["INVALID_ARGUMENT" if protocol == "grpc" else "400"]
    assert set(result.outcomes) == {"ok", "INVALID_ARGUMENT" if protocol == "grpc" else "400"}
    assert abs(refused - result.requests / 3) <= 2


def test_requests_are_due_in_their_rhythm() -> None:
    """Three a round, the second and third together: none is asked before it is due, and the mean rate is kept."""
    asked: list[tuple[int, float]] = []

    async def call(number: int = 0) -> str:
        asked.append((number, time.perf_counter() - began))
        return OK

    plan = Plan(url="", model="", rate=100, due=(0.0, 0.5, 0.5))
    began = time.perf_counter()
    asyncio.run(_open_loop([call], plan, 0.12))
    assert [number for number, _ in asked] == list(range(12))
    due = [0.03 * (number // 3) + (0.015 if number % 3 else 0.0) for number in range(12)]
    assert all(at >= moment for (_, at), moment in zip(asked, due, strict=True))


def test_what_cannot_be_asked_is_said(server: Server, tmp_path: Path) -> None:
    with pytest.raises(NotReady, match="does not describe the model 'nobody'"):
        asyncio.run(bench(Plan(url=server.http, model="nobody")))
    with pytest.raises(NotReady, match="does not describe"):
        asyncio.run(bench(Plan(url="127.0.0.1:1", model="linear")))
    np.savez(tmp_path / "rows.npz", z=np.ones(4))
    with pytest.raises(InvalidSource, match="has no array 'x'; it has \\['z'\\]"):
        asyncio.run(bench(Plan(url=server.http, model="linear", samples=tmp_path / "rows.npz")))


def test_the_command_fails_where_requests_did(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("bench", server.http, "--model", "linear", "-c", 1, "-s", 0.1, "--json")
    typed = type_seatrial(*arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert typed.code == 0
    assert json.loads(typed.out)["outcomes"].keys() == {"ok"}
    typed = type_seatrial(*arguments, "--rows", 300, monkeypatch=monkeypatch, capsys=capsys)
    assert typed.code == 1
    assert json.loads(typed.out)["outcomes"].keys() == {"413"}
