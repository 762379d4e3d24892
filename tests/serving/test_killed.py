"""`kill -9` of anything at every stage of a swap: callers get right answers, and what was wanted comes about."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from seatrial.registry.embedded import EmbeddedRegistry
from seatrial.settings import Settings
from tests.conditions import until
from tests.disks import kept_shut
from tests.registries import publish
from tests.servers import Server, serving, start, when_ready
from tests.serving.models import LinearBundle, linear

X = [[1.0, 2.0, 3.0, 4.0]]
BODY = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": X}]}
INFER, LOAD = "/v2/models/linear/infer", "/v2/repository/models/linear/load"
MANAGED = {"SEATRIAL_SERVING__REPOSITORY_CONTROL": "true"}
GONE_S = 10.0
"""A second, where nothing else runs; an engine that is still importing has to come to it first."""


@dataclass
class Served:
    """A server of what `place` points at: another bundle there, loaded again, is a swap."""

    server: Server
    place: Path
    threads: ThreadPoolExecutor
    client: httpx.Client

    def wish(self, version: int) -> None:
        """Let the place hold this version, which scales by its own number."""
        bundle = LinearBundle(version=str(version), scale=version).write(self.place.parent / "store")
        aside = self.place.with_suffix(".new")
        aside.symlink_to(bundle.path)
        aside.rename(self.place)

    def load(self) -> "Future[int]":
        """The status of loading what is wished for now."""
        return self.threads.submit(lambda: httpx.post(self.server.url(LOAD), json={}, timeout=60).status_code)

    def ask(self) -> int:
        """Which version answered, and rightly so."""
        answer = self.client.post(self.server.url(INFER), json=BODY).raise_for_status().json()
        version = int(answer["model_version"])
        assert answer["outputs"][0]["data"] == linear(X, scale=version)[0].tolist()
        return version

    def load_half(self) -> tuple["Future[int]", psutil.Process, psutil.Process]:
        """Load what is wished for, and the two engines of it: the second is held up until it is told to go on."""
        old = self.server.engines()
        with kept_shut(self.place / "model.onnx"):
            loading = self.load()
            until(lambda: len(self.server.engines()) == len(old) + 2)
            first, held = (engine for engine in self.server.engines() if engine not in old)
            held.suspend()
        return loading, first, held

    def settled(self, count: int = 2) -> bool:
        return len(self.server.engines()) == self.server.total("seatrial_engines") == count


@contextmanager
def served(place: Path) -> Iterator[Served]:
    current = place / "current"
    threads = ThreadPoolExecutor(4)
    current.symlink_to(LinearBundle(version="1").write(place / "store").path)
    with (
        serving(current, place=place / "server", environment=MANAGED) as server,
        threads,
        httpx.Client(timeout=60) as client,
    ):
        yield Served(server, current, threads, client)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("killed")) as running:
        yield running


def ready(engine: psutil.Process, like: psutil.Process) -> bool:
    """Whether it waits for batches as `like` does: both sleep, in the same call, with the same threads."""

    def state(process: psutil.Process) -> tuple[str, int, bool]:
        call = Path(f"/proc/{process.pid}/wchan").read_text()
        return call, process.num_threads(), process.status() == psutil.STATUS_SLEEPING

    return state(engine) == state(like)


# Of the generation that is to come


@pytest.mark.slow
def test_a_new_engine_killed_while_it_starts_fails_the_swap_and_nobody_else(one: Served) -> None:
    version, old = one.ask(), one.server.engines()
    one.wish(version + 1)
    loading, _, held = one.load_half()
    assert one.ask() == version
    held.kill()
    assert loading.result() == 500
    until(lambda: one.server.engines() == old)
    assert one.ask() == version
    assert one.load().result() == 200, "the next attempt is as good as the first"
    assert one.ask() == version + 1
    until(one.settled)


def test_a_new_engine_killed_when_it_was_verified_is_replaced(one: Served) -> None:
    version, old = one.ask(), one.server.engines()
    one.wish(version + 1)
    loading, first, held = one.load_half()
    until(lambda: ready(first, old[0]))
    first.kill()
    assert one.ask() == version
    held.resume()
    assert loading.result() == 200
    assert one.ask() == version + 1
    until(one.settled)
    assert first not in one.server.engines()


# Of the generation that is to go


@pytest.mark.slow
def test_an_old_engine_killed_while_its_successor_starts_costs_nobody_an_answer(one: Served) -> None:
    version, old = one.ask(), one.server.engines()
    one.wish(version + 1)
    loading, _, held = one.load_half()
    old[0].kill()
    assert {one.ask() for _ in range(20)} == {version}
    held.resume()
    assert loading.result() == 200
    assert one.ask() == version + 1
    until(one.settled)


def test_an_old_engine_killed_while_it_drains_has_its_requests_answered_by_its_sibling(one: Served) -> None:
    version, old = one.ask(), one.server.engines()
    for engine in old:
        engine.suspend()
    asked = [one.threads.submit(one.ask) for _ in range(2)]
    until(lambda: one.server.total("seatrial_inflight_requests", version=str(version)) == 2)
    one.wish(version + 1)
    assert one.load().result() == 200
    assert one.ask() == version + 1, "new requests do not wait for the old ones"
    deaths = one.server.total("seatrial_engine_deaths_total")
    old[0].kill()
    until(lambda: one.server.total("seatrial_engine_deaths_total") == deaths + 1)
    old[1].resume()
    assert [each.result() for each in asked] == [version, version]
    until(one.settled)


@pytest.mark.parametrize(
    ("path", "body", "found"),
    [
        (INFER, BODY, lambda said: said["outputs"][0]["data"]),
        pytest.param("/invocations", {"inputs": X}, lambda said: said["predictions"][0], marks=pytest.mark.slow),
    ],
)
def test_a_request_whose_body_comes_across_a_swap_is_answered_by_the_new_version(
    one: Served, path: str, body: dict[str, Any], found: Callable[[Any], list[float]]
) -> None:
    version = one.ask()
    with one.server.half_sent(path, body) as send_the_rest:
        one.wish(version + 1)
        assert one.load().result() == 200
        status, answer = send_the_rest()
    assert status == 200
    assert found(answer) == linear(X, scale=version + 1)[0].tolist()


# Of the server itself


def in_mid_swap(running: Served) -> list[psutil.Process]:
    """The new engines are up, and one of them is being loaded."""
    _, _, held = running.load_half()
    held.resume()
    return running.server.engines()


def while_it_drains(running: Served) -> list[psutil.Process]:
    """The new engines answer, and an old one still has a request."""
    engines = running.server.engines()
    for engine in engines:
        engine.suspend()
    running.threads.submit(httpx.post, running.server.url(INFER), json=BODY, timeout=60)
    until(lambda: running.server.total("seatrial_inflight_requests") == 1)
    assert running.load().result() == 200
    everybody = running.server.engines()
    for engine in engines:
        engine.resume()
    return everybody


@pytest.mark.slow
@pytest.mark.parametrize("stage", [in_mid_swap, while_it_drains])
def test_nothing_survives_a_server_killed_in_a_swap(
    stage: Callable[[Served], list[psutil.Process]], tmp_path: Path
) -> None:
    with served(tmp_path) as running:
        running.wish(2)
        engines = stage(running)
        running.server.process.kill()
        until(lambda: not any(map(alive, engines)), within_s=GONE_S)
        running.server.process.wait()
    with serving(running.place, place=tmp_path / "again") as again:
        answer = httpx.post(again.url(INFER), json=BODY).json()
        assert answer["outputs"][0]["data"] == linear(X, scale=2)[0].tolist()


@pytest.mark.slow
def test_a_server_told_to_end_in_mid_swap_ends_in_peace(tmp_path: Path) -> None:
    with served(tmp_path) as running:
        running.wish(2)
        in_mid_swap(running)


def alive(process: psutil.Process) -> bool:
    return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)


# With a registry


@pytest.mark.slow
def test_a_watcher_killed_when_the_alias_moves_and_a_server_killed_before_it_knew_lose_no_move(
    settings: Settings, tmp_path: Path
) -> None:
    registry = EmbeddedRegistry(settings)
    publish(registry, LinearBundle(version="1").write(tmp_path))
    environment = {"SEATRIAL_REGISTRY__POLL_S": "0.1", "SEATRIAL_SERVING__ENGINES__COUNT": "1"}
    process = start("linear@champion", place=tmp_path / "server", environment=environment)
    server = when_ready(process, tmp_path / "server")
    try:
        [watcher] = [each for each in psutil.Process(process.pid).children() if is_watcher(each)]
        watcher.suspend()
        publish(registry, LinearBundle(version="2", scale=2).write(tmp_path))
        children = psutil.Process(process.pid).children()
        watcher.kill()
    finally:
        process.kill()
        process.wait()
    until(lambda: not any(map(alive, children)), within_s=GONE_S)
    (settings.bundles / ".new-half").mkdir()
    (settings.bundles / ".new-half" / "bundle.json").write_text("half")
    with serving("linear@champion", place=tmp_path / "again", environment=environment) as again:
        answer = httpx.post(again.url(INFER), json=BODY).json()
        assert (answer["model_version"], answer["outputs"][0]["data"]) == ("2", linear(X, scale=2)[0].tolist())
    assert server.models == ("linear/1",)


def is_watcher(process: psutil.Process) -> bool:
    return "seatrial.registry.watch" in " ".join(process.cmdline())
