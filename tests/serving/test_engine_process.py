"""One engine process and the gateway's end of it: starting, refusing, ending, and what a faulty one may claim."""

import asyncio
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest

from seatrial.bundle import Bundle
from seatrial.errors import BundleCorrupt, EngineFailed, GoldenMismatch, SeatrialError
from seatrial_serving import channel
from seatrial_serving.batching import Waiting
from seatrial_serving.engine_process import NAME
from seatrial_serving.remote import EngineProcess
from seatrial_serving.workers import Batch, Outputs, Request, Worker
from tests.conditions import until
from tests.serving.conftest import load
from tests.serving.models import SIGNATURE, LinearBundle

pytestmark = pytest.mark.anyio


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return LinearBundle().write(tmp_path)


async def test_it_is_ready_after_verification_and_golden_replay(bundle: Bundle) -> None:
    engine = await EngineProcess.start(load(bundle.path, bundle.digest))
    assert engine.graphs == {"main": SIGNATURE}
    assert engine.golden == 1
    await engine.close()


async def test_a_changed_bundle_is_refused(bundle: Bundle) -> None:
    model = bundle.file("model.onnx")
    model.write_bytes(model.read_bytes()[:-1] + b"!")
    with pytest.raises(BundleCorrupt, match="it was changed"):
        await EngineProcess.start(load(bundle.path, bundle.digest))


async def test_another_bundle_than_the_one_asked_for_is_refused(bundle: Bundle) -> None:
    with pytest.raises(BundleCorrupt, match="expected sha256:0"):
        await EngineProcess.start(load(bundle.path, "sha256:" + "0" * 64))


async def test_a_bundle_that_answers_differently_here_is_refused(tmp_path: Path) -> None:
    bundle = LinearBundle(golden_scale=1.5).write(tmp_path)
    with pytest.raises(GoldenMismatch, match="golden request 0"):
        await EngineProcess.start(load(bundle.path, bundle.digest))


async def test_one_that_is_too_slow_to_start_is_ended(bundle: Bundle) -> None:
    before = children()
    with pytest.raises(EngineFailed, match=r"not ready after 0\.001 s"):
        await EngineProcess.start(load(bundle.path, bundle.digest, start_s=0.001))
    assert children() == before


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children() if child.name() == NAME}


class RawEngine:
    """An engine process driven by hand."""

    def __init__(self, bundle: Bundle) -> None:
        self.link, theirs = channel.socket_pair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "seatrial_serving.engine_process", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
            )
        self.slot = channel.Slot.create(0)
        start = channel.Start(str(bundle.path), bundle.digest, 1, (1,))
        socket.send_fds(self.link, [channel.encode(start)], [self.slot.descriptor])
        ready = channel.decode_from_engine(self.link.recv(channel.MAX_MESSAGE))
        assert isinstance(ready, channel.Ready)

    def gone_within(self, seconds: float) -> bool:
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True


def test_it_ends_within_a_second_when_the_gateway_is_gone(bundle: Bundle) -> None:
    engine = RawEngine(bundle)
    engine.link.close()
    assert engine.gone_within(1.0)
    engine.slot.close()


def test_it_ends_when_the_gateway_is_killed(bundle: Bundle) -> None:
    """Not only when the socket is closed in peace."""
    gateway = subprocess.Popen([sys.executable, "-c", GATEWAY, str(bundle.path)], stdout=subprocess.PIPE, text=True)
    assert gateway.stdout is not None
    orphan = psutil.Process(int(gateway.stdout.readline()))
    assert orphan.is_running()
    gateway.kill()
    gateway.wait()
    gateway.stdout.close()
    until(lambda: ended(orphan), within_s=1.0)


def ended(process: psutil.Process) -> bool:
    """Ended, whether or not the system's first process has reaped it."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


GATEWAY = """
import asyncio, sys
from collections.abc import Sequence
from pathlib import Path
from seatrial_serving.batching import Waiting
from seatrial_serving.remote import EngineProcess
from seatrial_serving.workers import Batch, Outputs, Request, Worker
from tests.serving.conftest import load
async def main():
    engine = await EngineProcess.start(load(Path(sys.argv[1])))
    print(engine.pid, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_to_the_whole_group_do_not_end_it(bundle: Bundle, number: signal.Signals) -> None:
    engine = RawEngine(bundle)
    engine.process.send_signal(number)
    assert not engine.gone_within(0.2)
    engine.link.close()
    assert engine.gone_within(1.0)
    engine.slot.close()


# What a faulty engine may claim


class Heard:
    """An owner that only keeps why engines died."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def died(self, worker: Worker, held: Sequence[Batch], reason: str) -> None:  # noqa: ARG002 - the protocol's
        self.reasons.append(reason)

    def answered(self, worker: Worker, batch: Batch, outputs: Sequence[Outputs], compute_s: float) -> None:
        raise AssertionError((worker, batch, outputs, compute_s))

    def failed(self, worker: Worker, batch: Batch, error: SeatrialError) -> None:
        raise AssertionError((worker, batch, error))


def ran(*parts: channel.Part, batch: int = 1, slot: int = 0) -> bytes:
    return channel.encode(channel.Ran(batch, slot, parts, 0.0))


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (b"gibberish", "spoke nonsense"),
        (channel.encode(channel.Ready({"main": SIGNATURE}, 0, 0.0)), "a ready engine said"),
        (ran(batch=7), "batch 7 in slot 0, which it was not given"),
        (ran(slot=5), "in slot 5, which it was not given"),
        (ran(), "gave 0 outputs, the signature has 1"),
        (ran(channel.Part(0, 12, (2, 3))), "shape (2, 3) for a batch of 1 rows"),
        (ran(channel.Part(0, 8, (1, 3))), "takes 12 bytes, got 8"),
        (ran(channel.Part(10**9, 12, (1, 3))), "beyond the memory"),
    ],
)
async def test_an_engine_that_lies_is_ended_and_what_it_held_reported(message: bytes, words: str) -> None:
    ours, theirs = channel.socket_pair()
    ours.setblocking(False)
    process = await asyncio.create_subprocess_exec("sleep", "60")
    engine = EngineProcess(process, ours, channel.Ready({"main": SIGNATURE}, 0, 0.0), [channel.Slot.create(0)])
    heard = Heard()
    engine.attach(heard)
    x = np.zeros((1, 4), np.float32)
    answer: asyncio.Future[Outputs] = asyncio.get_running_loop().create_future()
    request: Request = Waiting(item=(x,), rows=1, size_bytes=16, kind=(), arrived=0, deadline=1, answer=answer)
    engine.run(Batch(requests=[request], rows=1))
    with theirs:
        theirs.send(message)
        await process.wait()
    assert len(heard.reasons) == 1
    assert words in heard.reasons[0]
    await engine.close()
