"""Which generation a name, a version or an alias means, as generations come and go."""

from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry

from seatrial.errors import UnknownModel
from seatrial.settings import Serving
from seatrial_monitoring.metrics import ServingMetrics
from seatrial_serving.data_plane import DataPlane
from seatrial_serving.generation import Generation
from tests.serving.scripted import ScriptedEngine, generation

pytestmark = pytest.mark.anyio


@pytest.fixture
def plane() -> DataPlane:
    return DataPlane(Serving(), ServingMetrics(CollectorRegistry(), 0.1))


def as_alias(made: Generation, alias: str) -> Generation:
    made.identity = replace(made.identity, alias=alias)
    return made


async def test_a_version_that_two_sources_mean_outlives_either(plane: DataPlane) -> None:
    async with generation(ScriptedEngine) as first, generation(ScriptedEngine) as second:
        plane.install(as_alias(first, "champion"), default=True)
        plane.install(as_alias(second, "challenger"), default=False)
        assert plane.find("linear", "1") is second
        plane.remove(second)
        assert plane.find("linear", "1") is first
        assert plane.find("linear", alias="champion") is plane.find("linear") is first
        with pytest.raises(UnknownModel, match="alias challenger"):
            plane.find("linear", alias="challenger")
        plane.remove(first)
        with pytest.raises(UnknownModel):
            plane.find("linear", "1")
        assert list(plane.generations()) == []


async def test_a_generation_that_follows_another_takes_everything_over(plane: DataPlane) -> None:
    async with generation(ScriptedEngine) as old, generation(ScriptedEngine) as new:
        plane.install(as_alias(old, "champion"), default=True)
        plane.install(as_alias(new, "champion"), default=True)
        plane.remove(old)
        assert plane.find("linear") is plane.find("linear", "1") is plane.find("linear", "@champion") is new


async def test_what_was_installed_last_is_asked_first(plane: DataPlane) -> None:
    async with generation(ScriptedEngine) as first, generation(ScriptedEngine) as second:
        plane.install(first, default=True)
        plane.install(second, default=False)
        plane.install(first, default=True)
        assert plane.find("linear", "1") is first
        plane.remove(first)
        assert plane.find("linear", "1") is second
