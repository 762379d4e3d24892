"""Ready is what is all up. A swap for which memory is short changes nothing, or makes room first, as the settings want."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import psutil
import pytest
from prometheus_client import CollectorRegistry

from seatrial.errors import BundleCorrupt, NotEnoughMemory, NotReady, SeatrialError
from seatrial.machine import private_bytes
from seatrial.settings import Engines, Serving, Settings
from seatrial_monitoring.metrics import ServingMetrics
from seatrial_monitoring.series import Swap
from seatrial_serving.data_plane import DataPlane
from seatrial_serving.sources import OnDisk
from seatrial_serving.supervisor import Supervisor, Target
from tests.serving.models import linear_onnx

pytestmark = pytest.mark.anyio
PLENTY = 2**40


@dataclass(slots=True, kw_only=True)
class Place:
    """A supervisor of one model, `linear`, on a machine of which the test says how much memory is left."""

    supervisor: Supervisor
    plane: DataPlane
    source: OnDisk
    free: Callable[[int], None]
    readiness: list[bool] = field(default_factory=list)

    @property
    def pids(self) -> list[int]:
        return self.plane.find("linear").pids

    @property
    def swaps(self) -> dict[Swap, int]:
        return self.plane.metrics.swaps["linear"]


@asynccontextmanager
async def serving(
    tmp_path: Path, no_room: Literal["refuse", "unload_first"] = "refuse", *, beside: Sequence[str] = ()
) -> AsyncIterator[Place]:
    settings = Settings(home=tmp_path, serving=Serving(engines=Engines(count=1, no_room=no_room)))
    metrics = ServingMetrics(CollectorRegistry(), 0.1)
    plane = DataPlane(settings.serving, metrics)
    left = [0]
    source = OnDisk(path=linear_onnx(tmp_path / "linear.onnx"))
    readiness: list[bool] = []
    supervisor = Supervisor(settings, plane, metrics, lambda: readiness.append(plane.ready), free_bytes=lambda: left[0])
    others = [OnDisk(path=linear_onnx(tmp_path / f"{name}.onnx")) for name in beside]
    await supervisor.start([source, *others])
    assert readiness == [False, *(False for _ in others), True], "not ready before all of it is up"
    readiness.clear()
    try:
        yield Place(
            supervisor=supervisor,
            plane=plane,
            source=source,
            free=lambda size: left.__setitem__(0, size),
            readiness=readiness,
        )
    finally:
        await supervisor.stop()


async def test_it_is_ready_once_all_that_was_asked_for_is_up(tmp_path: Path) -> None:
    async with serving(tmp_path, beside=["other"]) as place:
        assert place.plane.ready
        assert place.plane.find("other").ready


async def test_a_swap_that_does_not_fit_is_refused_and_the_old_version_goes_on(tmp_path: Path) -> None:
    async with serving(tmp_path, "refuse") as place:
        [pid] = place.pids
        place.free(private_bytes(pid) // 2)
        with pytest.raises(NotEnoughMemory, match=r"linear/1 goes on: its engines take [1-9][0-9]* MiB"):
            await place.supervisor.load("linear")
        assert place.pids == [pid]
        assert place.readiness == []
        assert place.swaps == {Swap.DONE: 0, Swap.FAILED: 1}
        place.free(PLENTY)
        await place.supervisor.load("linear")
        assert place.pids != [pid]
        assert place.swaps == {Swap.DONE: 1, Swap.FAILED: 1}


async def test_room_is_made_first_where_the_settings_want_it(tmp_path: Path) -> None:
    async with serving(tmp_path, "unload_first") as place:
        [pid] = place.pids
        await place.supervisor.load("linear")
        assert not psutil.pid_exists(pid)
        assert place.pids != [pid]
        assert place.readiness == [False, True]


async def test_the_old_version_comes_back_where_room_was_made_for_one_that_cannot_start(tmp_path: Path) -> None:
    async with serving(tmp_path, "unload_first") as place:
        [pid] = place.pids
        broken = tmp_path / "new" / "linear.onnx"
        broken.parent.mkdir()
        broken.write_bytes(b"no model")
        with pytest.raises(SeatrialError):
            await place.supervisor._replace(place.source, Target(path=broken, digest="", alias=""))
        assert place.pids != [pid]
        assert place.plane.ready


async def test_while_nothing_is_up_callers_are_told_to_come_back(tmp_path: Path) -> None:
    async with serving(tmp_path, "unload_first") as place:
        place.source.path.write_bytes(b"no model")
        with pytest.raises(BundleCorrupt):
            await place.supervisor.load("linear")
        with pytest.raises(NotReady):
            place.plane.find("linear")
