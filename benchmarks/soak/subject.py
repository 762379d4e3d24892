"""The server that is soaked: a real registry, every kind of source, and bounds short enough to be met in a run."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from seatrial.registry.embedded import EmbeddedRegistry
from seatrial.settings import Registry, Settings
from tests.registries import publish
from tests.servers import Server, serving
from tests.serving.models import EncoderBundle, LinearBundle, linear_onnx

MODEL, ALIAS, ENCODER, SPARE = "linear", "champion", "encoder", "spare"
SCALES: Mapping[str, float] = {"1": 1.0, "2": 3.0}
"""What each version that can be served multiplies by."""
BROKEN = "3"
"""The version that answers otherwise than its golden requests say."""
SPARE_SCALE = 5.0
HEADER_BYTES = 8192
RECEIVE_S, ANSWER_S = 3.0, 2.0
WATCHER, FORK_SERVER = "seatrial.registry.watch", "seatrial_serving.fork_server"
MB = 10**6
ENVIRONMENT = {
    "SEATRIAL_REGISTRY__POLL_S": "0.25",
    "SEATRIAL_SERVING__REPOSITORY_CONTROL": "true",
    "SEATRIAL_SERVING__DOORS__MODEL": MODEL,
    "SEATRIAL_SERVING__ENGINES__ANSWER_S": str(ANSWER_S),
    "SEATRIAL_SERVING__LIMITS__HEADER_BYTES": str(HEADER_BYTES),
    "SEATRIAL_SERVING__LIMITS__RECEIVE_S": str(RECEIVE_S),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What the server's processes hold, and how many there are."""

    gateway_mb: float
    engines_mb: float
    watcher_mb: float
    descriptors: int
    threads: int
    children: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    server: Server
    registry: EmbeddedRegistry

    def point(self, version: str) -> None:
        """Let the alias mean this version."""
        self.registry.client.set_registered_model_alias(MODEL, ALIAS, version)

    def served(self) -> str:
        answer = httpx.get(self.server.url(f"/v2/models/{MODEL}"), timeout=30).raise_for_status()
        return str(answer.json()["versions"][0])

    def child(self, module: str) -> psutil.Process | None:
        children = psutil.Process(self.server.process.pid).children()
        return next((child for child in children if module in _command(child)), None)

    def taken(self) -> Taken:
        """The gateway by what is its own alone, the others with their part of what they share. Descriptors and threads are
        the gateway's."""
        gateway = psutil.Process(self.server.process.pid)
        children = gateway.children(recursive=True)
        watcher = self.child(WATCHER)
        return Taken(
            gateway_mb=gateway.memory_full_info().uss / MB,
            engines_mb=sum(map(_shared_fairly, (child for child in children if child != watcher))) / MB,
            watcher_mb=0.0 if watcher is None else _shared_fairly(watcher) / MB,
            descriptors=gateway.num_fds(),
            threads=gateway.num_threads(),
            children=len(children),
        )


def _command(process: psutil.Process) -> list[str]:
    """Empty for one that has ended."""
    try:
        return list(process.cmdline())
    except psutil.NoSuchProcess:
        return []


def _shared_fairly(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.NoSuchProcess:
        return 0


@contextmanager
def served(place: Path) -> Iterator[Subject]:
    home = place / "home"
    database = f"sqlite:///{home}/mlflow.db"
    registry = EmbeddedRegistry(Settings(home=home, registry=Registry(tracking_uri=database)))
    for version, scale in SCALES.items():
        publish(registry, LinearBundle(name=MODEL, version=version, scale=scale).write(place / "store"))
    publish(registry, LinearBundle(name=MODEL, version=BROKEN, golden_scale=9).write(place / "store"))
    registry.client.set_registered_model_alias(MODEL, ALIAS, next(iter(SCALES)))
    encoder = EncoderBundle().write(place / "store")
    spare = linear_onnx(place / f"{SPARE}.onnx", scale=SPARE_SCALE)
    environment = ENVIRONMENT | {"SEATRIAL_HOME": str(home), "SEATRIAL_REGISTRY__TRACKING_URI": database}
    what = f"{MODEL}@{ALIAS}", encoder.path, spare
    with serving(*what, place=place / "server", environment=environment) as server:
        yield Subject(server=server, registry=registry)
