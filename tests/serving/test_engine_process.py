"""One engine process and the gateway's end of it: starting, refusing, ending, and what a faulty one may claim."""

import asyncio
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
from onnx import TensorProto, helper

from seatrial.bundle import Bundle
from seatrial.errors import BundleCorrupt, EngineFailed, GoldenMismatch, SeatrialError
from seatrial.tensors import Array, DataType, Signature
from seatrial_serving import channel
from seatrial_serving.batching import Waiting
from seatrial_serving.engine_process import NAME, Channel, _answer_several
from seatrial_serving.remote import EngineChannel, EngineProcess
from seatrial_serving.workers import Batch, Outputs, Request, Worker
from tests.conditions import soon, until
from tests.serving.conftest import load
from tests.serving.models import SIGNATURE, LinearBundle, linear, save

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


# Several gateways


@asynccontextmanager
async def shared(path: Path, *owners: "Kept") -> AsyncIterator[list[EngineChannel]]:
    """An engine process, and a channel to it for each of `owners`: the first that of the gateway that started it."""
    engine = await EngineProcess.start(load(path), shared=True)
    channels = [engine, *(further(engine) for _ in owners[1:])]
    try:
        for each, owner in zip(channels, owners, strict=True):
            each.attach(owner)
            each.run(batch(0))
        await soon(lambda: all(each.answers for each in owners))
        yield channels
    finally:
        for each in reversed(channels):
            await each.close()


def further(engine: EngineProcess) -> EngineChannel:
    link, *memory = engine.share()
    theirs = socket.socket(fileno=link)
    theirs.setblocking(False)
    slots = [channel.Slot(each) for each in memory]
    return EngineChannel(engine.pid, theirs, engine.ready, slots, kill=engine.kill)


def batch(value: float) -> Batch:
    answer: asyncio.Future[Outputs] = asyncio.get_running_loop().create_future()
    x = np.full((1, 4), value, np.float32)
    request: Request = Waiting(item=(x,), rows=1, size_bytes=16, kind=(), arrived=0, deadline=1, answer=answer)
    return Batch(requests=[request], rows=1, sent=time.monotonic())


class Kept:
    """An owner that keeps what it hears: of which requests, by the number that they ask."""

    def __init__(self) -> None:
        self.answers: list[float] = []
        self.lost: list[tuple[float, bool]] = []

    def answered(self, worker: Worker, batch: Batch, outputs: Sequence[Outputs], compute_s: float) -> None:  # noqa: ARG002
        [[y]] = outputs
        x = batch.requests[0].item[0]
        assert y.array.tolist() in (linear(x).tolist(), x.tolist())
        self.answers.append(float(x[0, 0]))

    def died(self, worker: Worker, held: Sequence[Batch], reason: str) -> None:  # noqa: ARG002 - the protocol's
        self.lost += [(float(each.requests[0].item[0][0, 0]), each.begun) for each in held]

    def failed(self, worker: Worker, batch: Batch, error: SeatrialError) -> None:
        raise AssertionError((worker, batch, error))


async def test_each_of_several_gateways_gets_its_own_answers(bundle: Bundle) -> None:
    owners = [Kept(), Kept(), Kept()]
    async with shared(bundle.path, *owners) as channels:
        for value, number in enumerate([2, 0, 1, 1, 2, 0], 1):
            channels[number].run(batch(value))
        await soon(lambda: all(len(each.answers) == 3 for each in owners))
        assert [each.answers for each in owners] == [[0, 2, 6], [0, 3, 4], [0, 1, 5]]


class Gated:
    """An engine that keeps what it is asked, and answers the first time when the gate opens."""

    graphs: Mapping[str, Signature] = {"main": SIGNATURE}
    max_batch_size, on_cpu = 64, True

    def __init__(self) -> None:
        self.asked: list[float] = []
        self.gate = threading.Event()

    def predict(self, inputs: Mapping[str, Array], *, graph: str) -> dict[str, Array]:  # noqa: ARG002
        self.asked.append(float(inputs["x"][0, 0]))
        assert self.gate.wait(30)
        return {"y": linear(inputs["x"])}

    def close(self) -> None: ...


def test_of_several_gateways_batches_the_oldest_is_first() -> None:
    engine, slots = Gated(), [channel.Slot.create(0) for _ in range(3)]
    engine.gate.set()
    ours, theirs = zip(*(channel.socket_pair() for _ in range(3)), strict=True)
    others, asking = channel.socket_pair()
    for end, slot in zip(theirs[1:], slots[1:], strict=True):
        socket.send_fds(others, [b"+"], [end.fileno(), slot.descriptor])
    first = Channel(theirs[0], slots[:1])
    answering = threading.Thread(target=_answer_several, args=((engine, engine), first, asking))
    answering.start()

    def send(number: int, value: float) -> None:
        parts = slots[number].place([(DataType.FP32, [np.full((1, 4), value, np.float32)], None)])
        ours[number].send(channel.encode(channel.Run(1, 0, "main", parts, sent=value)))

    send(2, 0)  # the last one that it is given
    assert ours[2].recv(channel.MAX_MESSAGE)
    engine.gate.clear()
    send(0, 1)
    until(lambda: engine.asked == [0, 1])
    send(1, 4)
    send(2, 3)
    engine.gate.set()
    until(lambda: engine.asked == [0, 1, 3, 4])
    for end in ours:
        assert isinstance(channel.decode_from_engine(end.recv(channel.MAX_MESSAGE)), channel.Ran)
    for end in reversed(ours):
        end.close()
    until(lambda: theirs[0].fileno() < 0)  # it has seen them go
    others.close()
    answering.join()
    for end in (*theirs, asking):
        end.close()
    for slot in slots:
        slot.close()


async def test_a_gateway_that_goes_costs_the_others_nothing(bundle: Bundle) -> None:
    first, gone, stays, late = (Kept() for _ in range(4))
    async with shared(bundle.path, first, gone, stays) as channels:
        engine, goes, other = channels
        assert isinstance(engine, EngineProcess)
        psutil.Process(engine.pid).suspend()
        goes.run(batch(1))
        goes.run(batch(2))
        other.run(batch(3))
        await goes.close()
        channels.append(further(engine))
        channels[-1].attach(late)
        channels[-1].run(batch(4))
        psutil.Process(engine.pid).resume()
        await soon(lambda: stays.answers == [0, 3] and late.answers == [4])
        engine.run(batch(5))
        await soon(lambda: first.answers == [0, 5])


async def test_of_what_a_dead_engine_held_only_what_it_had_come_to_is_suspect(tmp_path: Path) -> None:
    """Else the neighbours of a request that kills engines would be suspected with it, whichever gateway they came to."""
    innocent, suspect = Kept(), Kept()
    async with shared(endless_onnx(tmp_path / "endless.onnx"), innocent, suspect) as (engine, other):
        process = psutil.Process(engine.pid)
        before = process.cpu_times().user
        other.run(batch(1e12))
        await soon(lambda: process.cpu_times().user > before + 0.1)
        engine.run(batch(1))
        engine.kill()
        await soon(lambda: suspect.lost and innocent.lost)
    assert suspect.lost == [(float(np.float32(1e12)), True)]
    assert innocent.lost == [(1, False)]


def endless_onnx(path: Path) -> Path:
    """x, after as many turns of a loop as the sum of its elements."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["going"], ["goes"]), helper.make_node("Identity", ["x"], ["same"])],
        "turn",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4]),
        ],
        [
            helper.make_tensor_value_info("goes", TensorProto.BOOL, []),
            helper.make_tensor_value_info("same", TensorProto.FLOAT, ["batch", 4]),
        ],
    )
    return save(
        path,
        [
            helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
            helper.make_node("Cast", ["sum"], ["turns"], to=TensorProto.INT64),
            helper.make_node("Loop", ["turns", "", "x"], ["y"], body=body),
        ],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
    )


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
