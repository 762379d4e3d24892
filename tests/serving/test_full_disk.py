"""A disk without room: what is served goes on, what was half written is never used, and it mends itself when there is room."""

from itertools import repeat
from pathlib import Path

import httpx
import pytest

from seatrial.registry.embedded import EmbeddedRegistry
from seatrial.settings import Settings
from tests.conditions import until
from tests.disks import small_disk
from tests.registries import publish
from tests.servers import Server, serving
from tests.serving.models import LinearBundle, linear

X = [[1.0, 2.0, 3.0, 4.0]]
BODY = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": X}]}
SIZE_KIB = 128


def ask(server: Server, *, scale: float) -> None:
    answer = httpx.post(server.url("/v2/models/linear/infer"), json=BODY).json()
    assert answer["outputs"][0]["data"] == linear(X, scale=scale)[0].tolist()


def fill(disk: Path) -> Path:
    """A file that takes all the room that there is."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        file.writelines(repeat(bytes(1024)))
    return filler


@pytest.mark.slow
def test_a_bundle_that_does_not_fit_is_fetched_when_there_is_room_and_the_old_one_goes_on(
    settings: Settings, tmp_path: Path
) -> None:
    registry = EmbeddedRegistry(settings)
    publish(registry, LinearBundle(version="1").write(tmp_path))
    fast = {"SEATRIAL_REGISTRY__POLL_S": "0.1", "SEATRIAL_SERVING__ENGINES__COUNT": "1"}
    with (
        small_disk(settings.bundles, kib=SIZE_KIB) as store,
        serving("linear@champion", place=tmp_path / "server", environment=fast, within_s=150) as server,
    ):
        fetched = {path for path in store.iterdir() if path.name.startswith("sha256")}
        filler = fill(store)
        publish(registry, LinearBundle(version="2", scale=2).write(tmp_path))
        until(lambda: "no space left while writing" in server.err.read_text())
        ask(server, scale=1)
        assert httpx.get(server.url("/v2/health/ready")).status_code == 200
        until(lambda: server.total("seatrial_alias_drift_seconds") > 0)
        filler.unlink()
        until(lambda: server.total("seatrial_swaps_total", outcome="done") == 1)
        ask(server, scale=2)
        now = {path for path in store.iterdir() if path.name.startswith("sha256")}
        assert len(now - fetched) == 1
        assert not list(store.glob(".new-*")), "nothing is left of the attempts that failed"


def test_a_log_that_cannot_be_written_costs_no_request_and_is_written_later(tmp_path: Path) -> None:
    bundle = LinearBundle().write(tmp_path)
    with (
        small_disk(tmp_path / "disk", kib=SIZE_KIB) as disk,
        serving(bundle.path, place=disk, environment={"SEATRIAL_SERVING__ENGINES__COUNT": "1"}) as server,
    ):
        ask(server, scale=1)
        until(lambda: len(server.log()) == 1)
        filler = fill(disk)
        with httpx.Client() as client:
            for _ in range(100):  # more than there is room for in the block that was begun
                client.post(server.url("/v2/models/linear/infer"), json=BODY).raise_for_status()
        assert server.total("seatrial_request_log_written_total") < 101
        filler.unlink()
        until(lambda: server.total("seatrial_request_log_written_total") == 101)
        assert len(server.log()) == 101, "each is a line of its own, the one that was half written too"
        assert server.total("seatrial_request_log_dropped_total") == 0
