"""Engines that are forked are engines like any others, and outlive the process that forked them."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from seatrial.bundle import Bundle
from seatrial.errors import GoldenMismatch
from seatrial_serving import channel, fork_server
from seatrial_serving.engine_process import NAME
from seatrial_serving.fork_server import ENGINES, ForkServer
from seatrial_serving.remote import EngineProcess
from tests.conditions import soon, until
from tests.serving.conftest import load
from tests.serving.models import SIGNATURE, LinearBundle

pytestmark = pytest.mark.anyio


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return LinearBundle().write(tmp_path)


@asynccontextmanager
async def starting() -> AsyncIterator[ForkServer]:
    forks = ForkServer(ENGINES)
    yield forks
    forks.close()


def server() -> psutil.Process:
    [found] = [child for child in psutil.Process().children() if child.name() == fork_server.NAME]
    return found


async def test_an_engine_is_forked_without_what_is_not_its_own(bundle: Bundle) -> None:
    async with starting() as forks:
        first = await EngineProcess.start(load(bundle.path, bundle.digest), forks=forks)
        second = await EngineProcess.start(load(bundle.path, bundle.digest), forks=forks)
        assert [child.name() for child in server().children()] == [NAME, NAME]
        assert second.graphs == {"main": SIGNATURE}
        assert second.golden == 1
        sockets = [psutil.Process(engine.pid).num_fds() for engine in (first, second)]
        assert sockets[0] == sockets[1], "the second holds nothing of the first's, nor the fork server's link"
        await first.close()
        await second.close()
        assert not server().children()


async def test_what_a_forked_engine_refuses_with_is_told(tmp_path: Path) -> None:
    bundle = LinearBundle(golden_scale=1.5).write(tmp_path)
    async with starting() as forks:
        with pytest.raises(GoldenMismatch, match="golden request 0"):
            await EngineProcess.start(load(bundle.path, bundle.digest), forks=forks)
        assert not server().children()


async def test_how_a_forked_process_ended_is_told() -> None:
    async with starting() as forks:
        link, other = channel.socket_pair()
        with link, other:
            forked = await forks.fork(other)
            forked.kill()
            assert await forked.wait() == -signal.SIGKILL
            forked.kill()  # which it may be told at any time


async def test_engines_outlive_the_fork_server_and_the_next_one_comes_from_another(bundle: Bundle) -> None:
    async with starting() as forks:
        engine = await EngineProcess.start(load(bundle.path, bundle.digest), forks=forks)
        before = server()
        before.kill()
        await soon(lambda: not before.is_running() or before.status() == psutil.STATUS_ZOMBIE)
        await soon(lambda: forks._link is None)
        another = await EngineProcess.start(load(bundle.path, bundle.digest), forks=forks)
        assert server().pid != before.pid
        for each in (engine, another):
            process = psutil.Process(each.pid)
            assert process.is_running()
            await each.close()
            assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("gently", [False, True])
async def test_one_that_was_loaded_gently_computes_as_eagerly_as_any(bundle: Bundle, gently: bool) -> None:
    engine = await EngineProcess.start(replace(load(bundle.path, bundle.digest), gently=gently))
    priority = os.getpriority(os.PRIO_PROCESS, engine.pid)  # of its main thread, which computes
    await engine.close()
    assert priority == os.getpriority(os.PRIO_PROCESS, 0)
    assert engine.golden == 1


def test_nothing_is_left_when_the_gateway_is_killed(bundle: Bundle) -> None:
    gateway = subprocess.Popen([sys.executable, "-c", GATEWAY, str(bundle.path)], stdout=subprocess.PIPE, text=True)
    assert gateway.stdout is not None
    left = [psutil.Process(int(pid)) for pid in gateway.stdout.readline().split()]
    gateway.kill()
    gateway.wait()
    gateway.stdout.close()
    until(lambda: not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in left), within_s=2)


GATEWAY = """
import asyncio, sys
from pathlib import Path
import psutil
from seatrial_serving.fork_server import ENGINES, ForkServer
from seatrial_serving.remote import EngineProcess
from tests.serving.conftest import load
async def main():
    engine = await EngineProcess.start(load(Path(sys.argv[1])), forks=ForkServer(ENGINES))
    print(*(child.pid for child in psutil.Process().children(recursive=True)), flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""
