"""One engine process: `python -m seatrial_serving.engine_process DESCRIPTOR`.

Receives what to load over the inherited socket, verifies it, warms it up, replays its golden requests, says that it is
ready, and from then on answers batches, one at a time. Holds no queue, knows no client, reads no setting. Ends within a
second when the gateway that started it is gone, even in the middle of a batch: a thread watches the socket for the hang-up.
Other gateways, which it may be given at any time, come and go.
"""

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias, TypeVar

from seatrial.bundle import MANIFEST, open_bundle
from seatrial.errors import EngineFailed, SeatrialError
from seatrial_serving.channel import MAX_MESSAGE, Failed, Ran, Ready, Run, Slot, Start, Unfit, decode_to_engine, encode
from seatrial_serving.engines import Engine, open_engine
from seatrial_serving.engines.proof import fastest_s, replay, warm_up
from seatrial_serving.engines.stateful import compute, state_bytes

NAME = "seatrial-engine"
"""What `ps` and `top` call it."""
MAX_SLOTS = 16
MAX_WORDS = 4000
LOW = 10
WORTH_ALL_CORES_S = 0.001
"""Of a row that takes less, a part for each core is not worth dividing."""


def main(descriptor: int) -> None:
    Path("/proc/self/comm").write_text(NAME)
    # Ctrl-C and a service manager signal the whole group; the gateway decides when we end, by hanging up.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    gateway = socket.socket(fileno=descriptor)
    threading.Thread(target=_end_with, args=(gateway,), daemon=True).start()
    message, descriptors, _, _ = socket.recv_fds(gateway, MAX_MESSAGE, MAX_SLOTS)
    start = decode_to_engine(message)
    assert isinstance(start, Start), f"the first message was {start!r}: this is a bug"
    others = socket.socket(fileno=descriptors.pop()) if start.shared else None
    slots = [Slot(received) for received in descriptors]
    try:
        engines = _load(start, gateway)
    except SeatrialError as error:
        gateway.send(encode(Unfit(type(error).__name__, str(error)[:MAX_WORDS])))
        return
    if others is None:
        _answer_batches(engines, slots, gateway)
    else:
        _answer_several(engines, Channel(gateway, slots), others)


T = TypeVar("T")

Engines: TypeAlias = tuple[Engine, Engine]
"""The one with this process's share of the cores, and the one with all of them; the same where that is not worth it."""


def _load(start: Start, gateway: socket.socket) -> Engines:
    began = time.monotonic()
    path = Path(start.path)
    open_narrow = partial(_open, path, start, threads=start.threads, wide=False)
    # An engine's own threads inherit the priority of the one that opens it, and could never raise it again.
    narrow, golden = _at_leisure(open_narrow) if start.gently and start.threads == 1 else open_narrow()
    wide, row_s = narrow, fastest_s(narrow) if narrow.on_cpu else 0.0
    if start.wide_threads > start.threads and row_s > WORTH_ALL_CORES_S:
        wide, _ = _open(path, start, threads=start.wide_threads, wide=True)
    took_s = time.monotonic() - began
    gateway.send(encode(Ready(dict(narrow.graphs), golden, took_s, wide is not narrow, state_bytes(narrow), row_s)))
    return narrow, wide


def _at_leisure(work: Callable[[], T]) -> T:
    """Do it in a thread of low priority, which still gets a tenth of a core that others want whole."""

    def yield_to_all() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOW)

    with ThreadPoolExecutor(1, initializer=yield_to_all) as thread:
        return thread.submit(work).result()


def _open(path: Path, start: Start, *, threads: int, wide: bool) -> tuple[Engine, int]:
    """An engine that is warm, and how many golden requests it has answered as it should."""
    if not path.is_dir():
        return _open_bare(path, start, threads=threads, wide=wide), 0
    if not (path / MANIFEST).exists():
        return _open_triton(path, start, threads=threads, wide=wide), 0
    bundle = open_bundle(path, expected=start.digest or None)
    bundle.verify()
    engine = open_engine(bundle, threads=threads, spinning=wide)
    warm_up(engine, batch_sizes=start.warm_up)
    return engine, replay(engine, bundle)


def _open_bare(path: Path, start: Start, *, threads: int, wide: bool) -> Engine:
    """A bare ONNX file has nothing to be verified against: it is warmed up and shown as unverified."""
    from seatrial_serving.engines.onnxruntime import OnnxRuntime, read_signature

    signature = read_signature(path)
    engine = OnnxRuntime({"main": path}, signature=signature, options={}, threads=threads, spinning=wide)
    warm_up(engine, batch_sizes=start.warm_up[:1])
    return engine


def _open_triton(path: Path, start: Start, *, threads: int, wide: bool) -> Engine:
    from seatrial_serving.triton.engine import open_model

    return open_model(path, digest=start.digest, threads=threads, spinning=wide)


def _answer_batches(engines: Engines, slots: list[Slot], gateway: socket.socket) -> None:
    while message := gateway.recv(MAX_MESSAGE):
        run = decode_to_engine(message)
        assert isinstance(run, Run), f"expected a batch, got {run!r}: this is a bug"
        gateway.send(encode(_answer(engines[run.wide], slots[run.slot], run)))


@dataclass(frozen=True, slots=True, eq=False)
class Channel:
    """To one of several gateways."""

    gateway: socket.socket
    slots: list[Slot]

    @classmethod
    def receive(cls, others: socket.socket) -> "Channel | None":
        """None where the server ends."""
        _, descriptors, _, _ = socket.recv_fds(others, 1, 1 + MAX_SLOTS)
        if not descriptors:
            return None
        return cls(socket.socket(fileno=descriptors[0]), [Slot(each) for each in descriptors[1:]])

    def read(self) -> Run | None:
        """None where the gateway has gone."""
        try:
            message = self.gateway.recv(MAX_MESSAGE)
        except ConnectionError:
            return None
        if not message:
            return None
        run = decode_to_engine(message)
        assert isinstance(run, Run), f"expected a batch, got {run!r}: this is a bug"
        return run

    def answer(self, engines: Engines, run: Run) -> None:
        answer = encode(_answer(engines[run.wide], self.slots[run.slot], run))
        with suppress(ConnectionError):  # the next look finds out that it has gone
            self.gateway.send(answer)

    def close(self) -> None:
        self.gateway.close()
        for slot in self.slots:
            slot.close()


def _answer_several(engines: Engines, first: Channel, others: socket.socket) -> None:
    """Of the batches that lie ready, whichever gateway sent them, the oldest is next."""
    channels = {first.gateway.fileno(): first}
    ready: list[tuple[Channel, Run]] = []
    poller = select.poll()
    poller.register(first.gateway, select.POLLIN)
    poller.register(others, select.POLLIN)
    while True:
        for descriptor, _ in poller.poll(0 if ready else None):
            if descriptor == others.fileno():
                channel = Channel.receive(others)
                if channel is None:
                    return
                channels[channel.gateway.fileno()] = channel
                poller.register(channel.gateway, select.POLLIN)
            elif (run := channels[descriptor].read()) is not None:
                ready.append((channels[descriptor], run))
            else:
                poller.unregister(descriptor)
                gone = channels.pop(descriptor)
                ready = [(channel, run) for channel, run in ready if channel is not gone]
                gone.close()
        if ready:
            oldest = min(ready, key=lambda each: each[1].sent)
            ready.remove(oldest)
            sender, run = oldest
            sender.answer(engines, run)


def _answer(engine: Engine, slot: Slot, run: Run) -> Ran | Failed:
    slot.begun = True
    signature = engine.graphs[run.graph]
    inputs = {
        spec.name: slot.read(part, spec.datatype, name=spec.name)
        for spec, part in zip(signature.inputs, run.inputs, strict=True)
    }
    began = time.perf_counter()
    try:
        outputs = compute(engine, inputs, graph=run.graph, turns=run.turns)
    except SeatrialError as error:
        return Failed(run.batch, run.slot, type(error).__name__, str(error)[:MAX_WORDS])
    except MemoryError as error:
        return Failed(run.batch, run.slot, EngineFailed.__name__, f"out of memory: {error}")
    compute_s = time.perf_counter() - began
    parts = slot.place([(spec.datatype, [outputs[spec.name]], None) for spec in signature.outputs])
    return Ran(run.batch, run.slot, parts, compute_s)


def _end_with(gateway: socket.socket) -> None:
    poller = select.poll()
    poller.register(gateway, 0)  # hang-up and error are reported without being asked for
    poller.poll()
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
