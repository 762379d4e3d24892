"""The life of a server: start, swap, lose engines, drain, end. Real processes, real registry, real clients under load."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton_grpc

from seatrial.registry.embedded import EmbeddedRegistry
from seatrial.settings import Settings
from tests.commands import type_seatrial
from tests.conditions import soon, until
from tests.registries import publish
from tests.servers import Server, serving, start, when_ready
from tests.serving.models import LinearBundle, linear, linear_onnx

X = [[1.0, 2.0, 3.0, 4.0]]
BODY = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": X}]}
FAST_POLL = {"SEATRIAL_REGISTRY__POLL_S": "0.1"}
ONE_ENGINE = {"SEATRIAL_SERVING__ENGINES__COUNT": "1"}


def ask(server: Server, model: str = "linear") -> httpx.Response:
    return httpx.post(server.url(f"/v2/models/{model}/infer"), json=BODY, timeout=30)


def answered(server: Server) -> list[float]:
    values: list[float] = ask(server).json()["outputs"][0]["data"]
    return values


@dataclass
class Load:
    """What clients saw while they kept asking."""

    rest: list[tuple[int, str]] = field(default_factory=list)
    grpc: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)


@contextmanager
def load(server: Server) -> Iterator[Load]:
    """Two REST and two gRPC clients that ask without a pause until the block ends."""
    seen = Load()

    def rest() -> None:
        with httpx.Client(timeout=30) as client:
            while not seen.stop.is_set():
                answer = client.post(server.url("/v2/models/linear/infer"), json=BODY)
                text = answer.text if answer.is_error else answer.json()["model_version"]
                seen.rest.append((answer.status_code, text))

    def grpc() -> None:
        tensor = triton_grpc.InferInput("x", [1, 4], "FP32")
        tensor.set_data_from_numpy(np.array(X, np.float32))
        with triton_grpc.InferenceServerClient(server.grpc) as client:
            while not seen.stop.is_set():
                seen.grpc.append(client.infer("linear", [tensor]).get_response().model_version)

    with ThreadPoolExecutor(4) as clients:
        running = [clients.submit(each) for each in (rest, rest, grpc, grpc)]
        try:
            until(lambda: len(seen.rest) > 20 and len(seen.grpc) > 20)
            yield seen
            enough = len(seen.rest) + 20, len(seen.grpc) + 20
            until(lambda: len(seen.rest) > enough[0] and len(seen.grpc) > enough[1])
        finally:
            seen.stop.set()
            seen.errors += [str(each.exception()) for each in running if each.exception() is not None]
    assert seen.errors == []
    assert {status for status, _ in seen.rest} == {200}, [text for status, text in seen.rest if status != 200][:3]


# Starting


def test_a_bundle_and_a_bare_file_are_served_side_by_side(tmp_path: Path) -> None:
    bundle = LinearBundle(version="7").write(tmp_path)
    bare = linear_onnx(tmp_path / "bare.onnx", scale=2)
    with serving(bundle.path, bare, place=tmp_path / "server") as server:
        assert set(server.models) == {"linear/7", "bare/1"}
        assert ask(server).json()["outputs"][0]["data"] == linear(X)[0].tolist()
        assert ask(server, "bare").json()["outputs"][0]["data"] == linear(X, scale=2)[0].tolist()
        assert "UNVERIFIED" in server.err.read_text()
        assert server.total("seatrial_model_loaded_info", model="bare", verified="false") == 1
        assert server.total("seatrial_model_loaded_info", model="linear", verified="true", digest=bundle.digest) == 1


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("nothing.onnx", "there is no file nothing.onnx"),
        ("not a model", "names no model version"),
        (".", "is no bundle"),
        pytest.param("unheard-of@champion", "unheard-of@champion", marks=pytest.mark.slow),
    ],
)
def test_what_cannot_be_served_is_said_at_once(home: Path, tmp_path: Path, what: str, words: str) -> None:
    assert home.exists()
    failed = subprocess.run(
        [sys.executable, "-m", "seatrial", "serve", what, *("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")],
        capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert failed.returncode == 1
    assert words in failed.stderr
    assert "Traceback" not in failed.stderr


def test_a_bundle_that_answers_differently_here_never_takes_traffic(tmp_path: Path) -> None:
    wrong = LinearBundle(golden_scale=1.1).write(tmp_path)
    process = start(wrong.path, place=tmp_path / "server")
    assert process.wait(60) == 1
    said = (tmp_path / "server" / "err").read_text()
    assert "GoldenMismatch" in said
    assert "CPU features" in said
    assert '"ready"' not in (tmp_path / "server" / "out").read_text()


@pytest.mark.parametrize("option", ["--http-port", "--grpc-port", "--metrics-port"])
def test_a_port_in_use_is_named_with_the_way_out(tmp_path: Path, option: str) -> None:
    path = linear_onnx(tmp_path / "bare.onnx")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = {"--http-port": "0", "--grpc-port": "0", "--metrics-port": "0"} | {option: str(taken.getsockname()[1])}
        failed = subprocess.run(
            [sys.executable, "-m", "seatrial", "serve", str(path), *(word for pair in ports.items() for word in pair)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert failed.returncode == 1
    assert "PortInUse" in failed.stderr
    assert option in failed.stderr


def test_a_model_without_a_bundle_says_how_to_build_one(settings: Settings, tmp_path: Path) -> None:
    registry = EmbeddedRegistry(settings)
    registry.client.create_registered_model("linear")
    version = registry.client.create_model_version("linear", source=str(tmp_path))
    registry.client.set_registered_model_alias("linear", "champion", version.version)
    process = start("linear@champion", place=tmp_path / "server")
    assert process.wait(60) == 1
    assert "seatrial export models:/linear/1" in (tmp_path / "server" / "err").read_text()


@pytest.mark.slow
def test_an_unreachable_registry_is_said_and_a_remembered_bundle_is_served(settings: Settings, tmp_path: Path) -> None:
    publish(EmbeddedRegistry(settings), LinearBundle().write(tmp_path))
    with serving("linear@champion", place=tmp_path / "first"):
        pass
    gone = {"SEATRIAL_REGISTRY__TRACKING_URI": "http://127.0.0.1:9"}
    with serving("linear@champion", place=tmp_path / "second", environment=gone) as server:
        assert ask(server).status_code == 200
        assert "as it was known last" in server.err.read_text()
        assert server.total("seatrial_registry_age_seconds") > 0, "since it was first asked"
    process = start("other@champion", place=tmp_path / "third", environment=gone)
    assert process.wait(60) == 1
    assert "MLFLOW_TRACKING_URI" in (tmp_path / "third" / "err").read_text()


def test_what_is_served_is_never_collected(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = LinearBundle().write(home / "bundles")

    def collect() -> str:
        return type_seatrial("gc", "--yes", "--unused-for", "0", monkeypatch=monkeypatch, capsys=capsys).out

    with serving(bundle.path, place=tmp_path / "server", environment=ONE_ENGINE) as server:
        assert "a running server" in collect()
        server.engines()[0].kill()
        until(lambda: server.total("seatrial_engine_deaths_total") == 1 and server.total("seatrial_engines") == 1)
        assert answered(server) == linear(X)[0].tolist()
    assert "removed 1 of 1" in collect()
    assert not bundle.path.exists()


# Swapping


def test_an_alias_that_moves_swaps_without_a_failed_request(settings: Settings, tmp_path: Path) -> None:
    registry = EmbeddedRegistry(settings)
    first = publish(registry, LinearBundle(version="1").write(tmp_path))
    with serving("linear@champion", place=tmp_path / "server", environment=FAST_POLL) as server:
        old = {engine.pid for engine in server.engines()}
        assert answered(server) == linear(X)[0].tolist()
        with load(server) as seen:
            second = publish(registry, LinearBundle(version="2", scale=3).write(tmp_path))
            until(lambda: seen.rest[-1] == (200, second) and seen.grpc[-1] == second)
        versions = [version for _, version in seen.rest]
        assert set(versions) == {first, second}
        assert set(seen.grpc) == {first, second}
        assert answered(server) == linear(X, scale=3)[0].tolist()
        until(lambda: not old & {engine.pid for engine in server.engines()})
        assert len(server.engines()) == len(old)
        assert server.total("seatrial_swaps_total", model="linear", outcome="done") == 1
        assert httpx.post(server.url("/v2/models/linear/versions/1/infer"), json=BODY).status_code == 404

        registry.client.set_registered_model_alias("linear", "champion", first)
        until(lambda: answered(server) == linear(X)[0].tolist())


def test_a_swap_to_what_cannot_be_served_changes_nothing(settings: Settings, tmp_path: Path) -> None:
    registry = EmbeddedRegistry(settings)
    publish(registry, LinearBundle(version="1").write(tmp_path))
    with serving("linear@champion", place=tmp_path / "server", environment=FAST_POLL) as server:
        with load(server) as seen:
            publish(registry, LinearBundle(version="2", golden_scale=9).write(tmp_path))
            until(lambda: server.total("seatrial_swaps_total", model="linear", outcome="failed") == 1)
        assert {version for _, version in seen.rest} == {"1"}
        assert "GoldenMismatch" in server.err.read_text() or "answered differently" in server.err.read_text()
        assert httpx.get(server.url("/v2/health/ready")).status_code == 200

        good = publish(registry, LinearBundle(version="3", scale=5).write(tmp_path))
        until(lambda: ask(server).json()["model_version"] == good)


@pytest.mark.slow
def test_two_aliases_of_a_model_are_served_beside_each_other(settings: Settings, tmp_path: Path) -> None:
    registry = EmbeddedRegistry(settings)
    publish(registry, LinearBundle(version="1").write(tmp_path))
    publish(registry, LinearBundle(version="2", scale=2).write(tmp_path), alias="challenger")
    registry.client.set_registered_model_alias("linear", "stable", "1")
    what = "linear@champion", "linear@challenger", "linear@stable"
    with serving(*what, place=tmp_path / "server", environment=ONE_ENGINE) as server:
        assert ask(server).json()["model_version"] == "1"
        for version, scale in (("1", 1), ("2", 2)):
            answer = httpx.post(server.url(f"/v2/models/linear/versions/{version}/infer"), json=BODY).json()
            assert answer["outputs"][0]["data"] == linear(X, scale=scale)[0].tolist()
        assert httpx.get(server.url("/v2/models/linear")).json()["versions"] == ["1", "2"]
        statistics = httpx.get(server.url("/v2/models/linear/stats")).json()["model_stats"]
        assert [each["version"] for each in statistics] == ["1", "2"]
        text = httpx.get(f"http://{server.metrics_address}/metrics").text
        samples = [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]
        assert len(samples) == len(set(samples)), "Prometheus takes no sample twice"
        assert [server.total("seatrial_engines", version=version) for version in ("1", "2")] == [2, 1]
        assert server.total("seatrial_model_loaded_info", version="1") == 2, "champion and stable"


# Losing parts of itself


def test_killed_engines_under_load_are_back_and_no_client_saw_an_error(tmp_path: Path) -> None:
    bundle = LinearBundle().write(tmp_path)
    with serving(bundle.path, place=tmp_path / "server") as server:
        with load(server):
            for kills in range(1, 4):
                until(lambda: server.total("seatrial_engines", model="linear") == 2)
                server.engines()[0].send_signal(signal.SIGKILL)
                until(lambda n=kills: server.total("seatrial_engine_deaths_total") == n)  # type: ignore[misc] # n
        until(lambda: server.total("seatrial_engines", model="linear") == 2)
        assert answered(server) == linear(X)[0].tolist()


@pytest.mark.slow  # `test_killed` kills it in the middle of a swap, too
def test_a_killed_watcher_is_started_again(settings: Settings, tmp_path: Path) -> None:
    registry = EmbeddedRegistry(settings)
    publish(registry, LinearBundle(version="1").write(tmp_path))
    with serving("linear@champion", place=tmp_path / "server", environment=FAST_POLL) as server:
        [watcher] = [
            child
            for child in psutil.Process(server.process.pid).children()
            if "seatrial.registry.watch" in " ".join(child.cmdline())
        ]
        watcher.kill()
        second = publish(registry, LinearBundle(version="2", scale=2).write(tmp_path))
        until(lambda: ask(server).json()["model_version"] == second)


def test_nothing_survives_a_killed_server(tmp_path: Path) -> None:
    bundle = LinearBundle().write(tmp_path)
    process = start(bundle.path, place=tmp_path / "server")
    server = when_ready(process, tmp_path / "server")
    engines = server.engines()
    process.kill()
    process.wait()
    until(lambda: all(gone(engine) for engine in engines), within_s=2)


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


# Ending


def test_on_sigterm_readiness_goes_first_and_requests_are_served_while_it_drains(tmp_path: Path) -> None:
    bundle = LinearBundle().write(tmp_path)
    drain = {"SEATRIAL_SERVING__DRAIN_S": "1.5"}
    with serving(bundle.path, place=tmp_path / "server", environment=drain) as server, httpx.Client() as client:
        assert client.get(server.url("/readyz")).status_code == 200
        server.process.send_signal(signal.SIGTERM)
        until(lambda: client.get(server.url("/readyz")).status_code == 503, within_s=1)
        assert client.get(server.url("/v2/health/ready")).status_code == 400
        assert client.get(server.url("/v2/health/live")).status_code == 200
        assert ask(server).status_code == 200, "a new connection is still served"
        assert server.process.wait(10) == 0


def test_a_request_in_flight_is_answered_before_the_end(tmp_path: Path) -> None:
    bundle = LinearBundle().write(tmp_path)
    place = tmp_path / "server"
    with serving(bundle.path, place=place) as server, ThreadPoolExecutor(1) as client:
        engines = server.engines()
        for engine in engines:
            engine.suspend()
        asked = client.submit(ask, server)
        until(lambda: server.total("seatrial_inflight_requests", model="linear") == 1)
        server.process.send_signal(signal.SIGINT)
        for engine in engines:
            engine.resume()
        assert asked.result().status_code == 200
        assert server.process.wait(30) == 0


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    bundle = LinearBundle().write(tmp_path)
    process = start(bundle.path, place=tmp_path / "server", environment={"SEATRIAL_SERVING__DRAIN_S": "60"})
    server = when_ready(process, tmp_path / "server")
    process.send_signal(signal.SIGTERM)
    until(lambda: httpx.get(server.url("/readyz")).status_code == 503)
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == 128 + signal.SIGTERM


def test_a_caller_who_leaves_is_counted_and_costs_no_compute(tmp_path: Path) -> None:
    bundle = LinearBundle().write(tmp_path)
    one = {"SEATRIAL_SERVING__ENGINES__COUNT": "1", "SEATRIAL_SERVING__BATCHING__MAX_SIZE": "1"}
    with serving(bundle.path, place=tmp_path / "server", environment=one) as server:
        [engine] = server.engines()
        engine.suspend()

        async def ask_and_leave() -> None:
            async with httpx.AsyncClient() as client:
                asked = [
                    asyncio.create_task(client.post(server.url("/v2/models/linear/infer"), json=BODY)) for _ in range(5)
                ]
                await soon(lambda: server.total("seatrial_queue_depth") == 3)
                for each in asked:
                    each.cancel()

        asyncio.run(ask_and_leave())
        until(lambda: server.total("seatrial_requests_total", model="linear", outcome="abandoned") == 5)
        engine.resume()
        assert answered(server) == linear(X)[0].tolist()
        ran = server.total("seatrial_batch_size_sum", model="linear")
        assert ran == 3, "the two that the engine had in hand, and the last one: who only queued was never run"


def test_overload_is_refused_with_retry_after_and_forgotten(tmp_path: Path) -> None:
    bundle = LinearBundle().write(tmp_path)
    small = {"SEATRIAL_SERVING__BATCHING__MAX_QUEUE": "2", "SEATRIAL_SERVING__ENGINES__COUNT": "1"}
    with (
        serving(bundle.path, place=tmp_path / "server", environment=small) as server,
        ThreadPoolExecutor(12) as clients,
    ):
        [engine] = server.engines()
        engine.suspend()
        asked = [clients.submit(ask, server) for _ in range(12)]
        until(lambda: server.total("seatrial_requests_total", model="linear", outcome="refused") > 0)
        engine.resume()
        answers = [each.result() for each in asked]
        refused = [answer for answer in answers if answer.status_code != 200]
        assert {answer.status_code for answer in refused} == {503}
        assert refused[0].headers["retry-after"] == "1"
        assert ask(server).status_code == 200


def test_engines_share_the_cores_and_no_more(tmp_path: Path) -> None:
    bundle = LinearBundle().write(tmp_path)
    with serving(bundle.path, place=tmp_path / "server") as server:
        threads = [engine.num_threads() for engine in server.engines()]
        cores = len(os.sched_getaffinity(0))
        assert len(threads) == 2
        assert all(count <= 2 + max(1, cores // 2) for count in threads), (
            "the engine's own, the one that watches for the end, and one that importing ONNX Runtime starts"
        )
