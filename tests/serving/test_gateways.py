"""Several gateways share the ports and the engines, and are one server to whoever asks: in answers, counters and its end."""

import http.client
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton_grpc

from seatrial.machine import cores as cores_here
from seatrial.registry.embedded import EmbeddedRegistry
from seatrial.settings import Serving, Settings
from seatrial_serving import fork_server
from seatrial_serving.gateway import how_many
from tests.conditions import until
from tests.registries import publish
from tests.servers import Server, serving, start, when_ready
from tests.serving.models import LinearBundle, laborious_onnx, linear, write_purse

X = [[1.0, 2.0, 3.0, 4.0]]
BODY = json.dumps({"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": X}]})
TWO = {"SEATRIAL_SERVING__GATEWAYS": "2", "SEATRIAL_SERVING__REPOSITORY_CONTROL": "true"}
INFER = "/v2/models/linear/infer"


@dataclass
class Client:
    """One connection, to a gateway that the test has chosen."""

    connection: http.client.HTTPConnection

    def ask(self, path: str = INFER, body: str | None = BODY) -> tuple[int, str]:
        self.connection.request("GET" if body is None else "POST", path, body)
        answer = self.connection.getresponse()
        return answer.status, answer.read().decode()

    def infer(self) -> list[float]:
        status, text = self.ask()
        assert status == 200, text
        values: list[float] = json.loads(text)["outputs"][0]["data"]
        return values


@contextmanager
def client_of(server: Server, pid: int) -> Iterator[Client]:
    """Connect until the system gives the connection to the gateway `pid`."""
    host, port = server.http.split(":")
    while True:
        connection = http.client.HTTPConnection(host, int(port), timeout=30)
        connection.connect()
        with closing(connection):
            if _held_by(server, connection.sock.getsockname()) == pid:
                yield Client(connection)
                return


def _held_by(server: Server, address: tuple[str, int]) -> int:
    holders: list[int] = []

    def look() -> bool:
        for process in (psutil.Process(server.process.pid), *server.gateways()):
            with suppress(psutil.NoSuchProcess):
                holders.extend(process.pid for each in process.net_connections("tcp") if each.raddr == address)
        return bool(holders)

    until(look)
    return holders[0]


def pids(server: Server) -> tuple[int, int]:
    [further] = server.gateways()
    return server.process.pid, further.pid


@dataclass
class Seen:
    versions: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@contextmanager
def load(server: Server, *gateways: int) -> Iterator[list[Seen]]:
    """A connection to each of `gateways` that asks without a pause until the block ends."""
    stop = threading.Event()
    seen = [Seen() for _ in gateways]

    def keep_asking(pid: int, noting: Seen) -> None:
        with client_of(server, pid) as client:
            while not stop.is_set():
                status, text = client.ask()
                if status == 200:
                    noting.versions.append(json.loads(text)["model_version"])
                else:
                    noting.errors.append(text)

    with ThreadPoolExecutor(len(gateways)) as clients:
        running = [clients.submit(keep_asking, pid, noting) for pid, noting in zip(gateways, seen, strict=True)]
        try:
            until(lambda: all(len(each.versions) > 20 for each in seen))
            yield seen
            enough = [len(each.versions) + 20 for each in seen]
            until(lambda: all(len(each.versions) > least for each, least in zip(seen, enough, strict=True)))
        finally:
            stop.set()
    for each in running:
        each.result()
    assert [each.errors for each in seen] == [[] for _ in seen]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gateways")


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Server]:
    """The linear model from the directory `served`, and an ensemble that it is the only step of."""
    environment = TWO | {"SEATRIAL_SERVING__ENGINES__ANSWER_S": "4", "SEATRIAL_SERVING__DRAIN_S": "3"}
    LinearBundle().write(place).path.rename(place / "served")
    ensemble = place / "chain.toml"
    ensemble.write_text('name = "chain"\noutputs = ["y"]\nsteps = [{model = "linear"}]')
    with serving(place / "served", ensemble, place=place / "server", environment=environment) as server:
        yield server


# One server to whoever asks


def test_all_gateways_answer_the_same_and_count_together(server: Server) -> None:
    asked = 'seatrial_requests_total{model="linear",outcome="ok",protocol="rest",variant="fp32",version="1"}'
    before, written = server.metrics()[asked], len(server.log())
    for pid in pids(server):
        with client_of(server, pid) as client:
            for _ in range(10):
                assert client.infer() == linear(X)[0].tolist()
            told = json.loads(client.ask("/v2/models/linear/stats", None)[1])["model_stats"][0]
            assert told["inference_stats"]["success"]["count"] == server.metrics()[asked]
    assert server.metrics()[asked] == before + 20
    until(lambda: len(server.log()) == written + 20)
    assert server.total("seatrial_gateways") == 2
    assert server.total("seatrial_engines", model="linear") == 2
    assert server.total("seatrial_model_loaded_info", model="linear") == 1


def test_an_ensemble_is_put_together_in_each_gateway(server: Server) -> None:
    for pid in pids(server):
        with client_of(server, pid) as client:
            status, text = client.ask("/v2/models/chain/infer")
            assert (status, json.loads(text)["outputs"][0]["data"]) == (200, linear(X)[0].tolist())


def test_grpc_is_shared_too(server: Server) -> None:
    tensor = triton_grpc.InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(np.array(X, np.float32))
    port = int(server.grpc.rpartition(":")[2])
    further = server.gateways()[0]
    reached = False
    while not reached:
        alone = [("grpc.use_local_subchannel_pool", 1)]
        with triton_grpc.InferenceServerClient(server.grpc, channel_args=alone) as client:
            assert client.infer("linear", [tensor]).as_numpy("y").tolist() == linear(X).tolist()
            assert client.is_server_ready()
            assert client.get_model_repository_index(as_json=True)["models"][0]["state"] == "READY"
            reached = any(each.laddr.port == port and each.raddr for each in further.net_connections("tcp"))


def test_what_is_loaded_at_one_gateway_is_served_by_all(server: Server) -> None:
    first, further = pids(server)
    with client_of(server, first) as here, client_of(server, further) as there:
        assert there.ask("/v2/repository/models/linear/load", "{}")[0] == 200
        assert here.infer() == there.infer() == linear(X)[0].tolist()
        assert there.ask("/v2/repository/models/linear/unload", "{}")[0] == 200
        assert here.ask()[0] == there.ask()[0] == 404
        until(lambda: not server.engines())
        listed = [json.loads(client.ask("/v2/repository/index", "{}")[1]) for client in (here, there)]
        assert listed[0] == listed[1]
        assert listed[0][0]["state"] == "UNAVAILABLE"
        status, text = there.ask("/v2/repository/models/unheard-of/load", "{}")
        assert (status, "unheard-of" in text) == (404, True)
        assert there.ask("/v2/repository/models/linear/load", "{}")[0] == 200
        assert here.infer() == there.infer() == linear(X)[0].tolist()


def test_the_port_is_not_shared_with_another_server(server: Server, tmp_path: Path) -> None:
    ports = ("--http-port", server.http.rpartition(":")[2], "--grpc-port", "0", "--metrics-port", "0")
    second = subprocess.run(
        [sys.executable, "-m", "seatrial", "serve", str(LinearBundle().write(tmp_path).path), "--gateways", "2", *ports],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert second.returncode == 1
    assert "PortInUse" in second.stderr


# Losing parts of itself


def test_a_killed_gateway_is_back_and_nobody_else_has_noticed(server: Server) -> None:
    first, further = pids(server)
    with client_of(server, further) as theirs:
        theirs.infer()
    before, deaths = (
        server.total("seatrial_requests_total", outcome="ok"),
        server.total("seatrial_gateway_deaths_total"),
    )
    with load(server, first):
        psutil.Process(further).kill()
        until(lambda: server.total("seatrial_gateway_deaths_total") == deaths + 1)
        assert server.total("seatrial_requests_total", outcome="ok") > before
        until(server.gateways)
    [again] = [gateway.pid for gateway in server.gateways()]
    assert again != further
    with client_of(server, again) as client:
        assert client.infer() == linear(X)[0].tolist()
        assert client.ask("/readyz", None)[0] == 200


def test_killed_engines_under_load_are_back_in_all_gateways_and_no_client_saw_an_error(server: Server) -> None:
    before = server.total("seatrial_engine_deaths_total")
    with load(server, *pids(server)):
        for kills in range(1, 4):
            until(lambda: server.total("seatrial_engines", model="linear") == 2)
            server.engines()[0].send_signal(signal.SIGKILL)
            until(lambda n=kills: server.total("seatrial_engine_deaths_total") == before + n)  # type: ignore[misc] # n
        until(lambda: server.total("seatrial_engines", model="linear") == 2)


def test_what_forks_gateways_and_engines_may_be_killed_too(server: Server) -> None:
    children = psutil.Process(server.process.pid).children(recursive=True)
    forks = [child for child in children if child.name() == fork_server.NAME]
    assert len(forks) == 2
    for process in forks:
        process.kill()
    # Orphans are adopted.
    until(lambda: set(children) - set(forks) <= set(psutil.Process(server.process.pid).children()))
    test_a_killed_gateway_is_back_and_nobody_else_has_noticed(server)
    test_killed_engines_under_load_are_back_in_all_gateways_and_no_client_saw_an_error(server)


def test_an_engine_that_hangs_for_a_further_gateway_is_killed(server: Server) -> None:
    until(lambda: server.total("seatrial_engines", model="linear") == 2)
    with client_of(server, pids(server)[1]) as client, ThreadPoolExecutor(1) as asking:
        engines = server.engines()
        for engine in engines:
            engine.suspend()
        asked = asking.submit(client.infer)
        until(lambda: any(gone(engine) for engine in engines))
        for engine in engines:
            with suppress(psutil.NoSuchProcess):
                engine.resume()
        assert asked.result() == linear(X)[0].tolist()


# Swapping


def test_a_swap_is_everywhere_and_fails_no_request(server: Server, place: Path) -> None:
    served = place / "served"
    with load(server, *pids(server)) as seen:
        served.rename(place / "old")
        LinearBundle(version="2", scale=3).write(place / "new").path.rename(served)
        assert httpx.post(server.url("/v2/repository/models/linear/load"), json={}, timeout=30).status_code == 200
        until(lambda: all(each.versions[-1] == "2" for each in seen))
    assert {version for each in seen for version in each.versions} == {"1", "2"}
    for pid in pids(server):
        with client_of(server, pid) as client:
            assert client.infer() == linear(X, scale=3)[0].tolist()
    until(lambda: len(server.engines()) == 2)


@pytest.mark.slow
def test_an_alias_that_moves_swaps_everywhere_without_a_failed_request(settings: Settings, tmp_path: Path) -> None:
    registry = EmbeddedRegistry(settings)
    versions = [publish(registry, LinearBundle().write(tmp_path))]
    environment = TWO | {"SEATRIAL_REGISTRY__POLL_S": "0.1"}
    with serving("linear@champion", place=tmp_path / "server", environment=environment) as server:
        for version in range(2, 12):
            with load(server, *pids(server)) as seen:
                new = publish(registry, LinearBundle(version=str(version), scale=version).write(tmp_path))
                until(lambda: all(each.versions[-1] == versions[-1] for each in seen))
                until(lambda new=new: all(each.versions[-1] == new for each in seen))  # type: ignore[misc] # new
            assert {version for each in seen for version in each.versions} == {versions[-1], new}
            versions.append(new)
        until(lambda: len(server.engines()) == 2)


# How many


def test_a_model_with_a_memory_has_it_in_one_gateway(tmp_path: Path) -> None:
    one = TWO | {"SEATRIAL_SERVING__ENGINES__COUNT": "1"}
    bundles = [LinearBundle().write(tmp_path / "linear").path, write_purse(tmp_path / "purse").path]
    with serving(*bundles, place=tmp_path / "server", environment=one) as server:
        until(lambda: not server.gateways())
        for coin, total in ((1, 10), (2, 110)):
            asked = {"name": "coin", "shape": [1, 1], "datatype": "INT64", "data": [coin]}
            parameters = {"sequence_id": 7, "sequence_start": coin == 1}
            answer = httpx.post(
                server.url("/v2/models/purse/infer"), json={"inputs": [asked], "parameters": parameters}
            )
            assert answer.json()["outputs"][0]["data"] == [total]
        assert httpx.post(server.url(INFER), content=BODY).status_code == 200
        assert (server.total("seatrial_gateways"), server.total("seatrial_gateway_deaths_total")) == (1, 0)


@pytest.mark.parametrize(("cores", "gateways"), [(1, 1), (2, 2), (7, 2), (8, 3), (13, 3), (14, 4)])
def test_there_are_more_gateways_where_there_are_more_cores(cores: int, gateways: int) -> None:
    assert how_many(Serving(), cores=cores) == gateways
    assert how_many(Serving(gateways=5), cores=cores) == 5


@pytest.mark.parametrize("shared", [{"cache_bytes": 1}, {"access": {"file": "keys.json"}}], ids=str)
def test_there_is_one_gateway_where_callers_would_get_a_share_only(shared: dict[str, Any]) -> None:
    assert how_many(Serving.model_validate(shared), cores=8) == 1


def test_there_are_several_once_a_model_is_served_whose_rows_are_computed_sooner_than_one_can_bring_them(
    tmp_path: Path,
) -> None:
    laborious, brief = laborious_onnx(tmp_path / "laborious.onnx"), LinearBundle().write(tmp_path).path
    left_alone = ("env", "-u", "SEATRIAL_SERVING__GATEWAYS")
    with serving(laborious, place=tmp_path / "one", under=left_alone) as server:
        assert server.gateways() == []
        assert server.total("seatrial_gateways") == 1
    with serving(laborious, brief, place=tmp_path / "several", under=left_alone) as server:
        assert len(server.gateways()) == how_many(Serving(), cores=cores_here()) - 1
        assert server.total("seatrial_gateways") == how_many(Serving(), cores=cores_here())
        for pid in (server.process.pid, *(each.pid for each in server.gateways())):
            with client_of(server, pid) as client:
                assert client.infer() == linear(X)[0].tolist()


# Ending


def test_nothing_survives_a_killed_server(tmp_path: Path) -> None:
    process = start(LinearBundle().write(tmp_path).path, place=tmp_path / "server", environment=TWO)
    children = psutil.Process(when_ready(process, tmp_path / "server").process.pid).children(recursive=True)
    assert len(children) == 5, "a gateway, two engines, and what forks each kind"
    process.kill()
    process.wait()
    until(lambda: all(gone(each) for each in children), within_s=1)


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_on_sigterm_no_gateway_is_ready_and_all_answer_what_they_have(server: Server) -> None:
    """The last one: the server of the others ends."""
    engines = server.engines()
    first, further = pids(server)
    with (
        client_of(server, first) as here,
        client_of(server, further) as there,
        client_of(server, further) as waiting,
        ThreadPoolExecutor(1) as asking,
    ):
        server.process.send_signal(signal.SIGTERM)
        until(lambda: here.ask("/readyz", None)[0] == there.ask("/readyz", None)[0] == 503, within_s=2)
        assert here.infer() == there.infer()
        for engine in engines:
            engine.suspend()
        asked = asking.submit(waiting.infer)
        until(lambda: server.total("seatrial_inflight_requests", model="linear") == 1)
        until(lambda: _refuses(server))
        for engine in engines:
            engine.resume()
        assert asked.result() == linear(X, scale=3)[0].tolist()
    assert server.process.wait(30) == 0


def _refuses(server: Server) -> bool:
    try:
        httpx.get(server.url("/livez"))
    except httpx.TransportError:
        return True
    return False
