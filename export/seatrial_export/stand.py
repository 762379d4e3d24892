"""The stand on which engines are asked and timed: each in a process of its own, which makes a call only when it is told to.

One process for each engine's library, `python -P -m seatrial_export.stand PACKAGE DESCRIPTOR`, imports that and nothing that
the engine does not need, and forks: an engine is opened in a fresh process, as often as wanted, at no import's cost. An engine
that crashes, hangs or eats memory loses only itself. Knows nothing of rounds, and nothing of who is better.
"""

import gc
import importlib
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self, TypeVar

import msgspec
import numpy as np

from seatrial.bundle import Bundle, open_bundle
from seatrial.engines import ENGINES
from seatrial.errors import ConversionFailed, EngineFailed, SeatrialError, WrongInput
from seatrial.machine import anonymous_bytes
from seatrial_export import child
from seatrial_export.child import Limits
from seatrial_export.samples import Inputs, Outputs, Predict, read_arrays, write_arrays
from seatrial_serving.engines import Engine, open_engine, proof

IMPORTED_AHEAD = ("onnxruntime", "torch")
"""Packages whose import starts no thread, so that what has imported them may be forked. Others are imported after that, as
OpenVINO, which starts one."""
FRUGAL = {
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
    "TOKENIZERS_PARALLELISM": "0",
    "ORT_DISABLE_TELEMETRY": "1",
}
"""As a server starts its engine processes: no threads but the engine's own."""
LOADS, LOAD_FOR_S = 3, 2.0
"""An engine is loaded so many times, in fresh processes; a slow one twice."""
LOOK_EVERY_S = 0.1
MAX_MESSAGE = 2**18
LOG = "log.txt"


class Start(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """To a library's process, with the engine's socket: open `bundle` in a fork pinned to `cores`, ask it `inputs` once, if there
    are any, and with `replay` its golden requests."""

    bundle: str
    inputs: str
    replay: bool
    threads: int
    cores: tuple[int, ...]


class Started(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    pid: int


class Reap(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """To a library's process: how did this one end, which has ended or was killed?"""

    pid: int


class Ended(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """`code` as `subprocess` gives it: below zero for a signal."""

    code: int


class Opened(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """From an engine: it is ready, so long after it began to open the bundle. Importing its library is not in it."""

    load_s: float


class Call(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """To an engine: make so many calls with the arrays in the file `inputs`."""

    inputs: str
    calls: int


class Took(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """From an engine: how long each call took, and what it holds of memory, beyond its inputs."""

    ms: tuple[float, ...]
    memory_bytes: int


class Ask(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """To an engine: answer the arrays in the file `inputs`, into the file `outputs`."""

    inputs: str
    outputs: str


class Answered(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """From an engine: it has, unless there is a `refusal`."""

    refusal: str = ""


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """From an engine: it could not, and ends."""

    reason: str


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(
    Start | Started | Reap | Ended | Opened | Call | Took | Ask | Answered | Failed
).decode

Answer = TypeVar("Answer", Started, Ended, Opened, Took, Answered)


# The parent's half


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """Under which an engine is timed: its threads, and the cores that they are pinned to. An answer may take `call_s`."""

    threads: int
    cores: tuple[int, ...]
    call_s: float
    limits: Limits

    @staticmethod
    def of(limits: Limits, *, threads: int, call_s: float) -> "Terms":
        """On the last of our cores, as many as threads: the first one has most of the interrupts, and whoever asks."""
        cores = sorted(os.sched_getaffinity(0))[-threads:]
        return Terms(threads=threads, cores=tuple(cores), call_s=call_s, limits=limits)


class Stand:
    """Keeps its logs below `folder`. No process of it outlives the block."""

    def __init__(self, folder: Path, terms: Terms) -> None:
        self._folder, self._terms = folder, terms
        self._libraries: dict[str, _Library] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    @property
    def threads(self) -> int:
        return self._terms.threads

    def prepare(self, engine: str) -> "_Library":
        """Have the library of `engine` imported, in the background, if it has not been."""
        package = ENGINES[engine].library
        if package not in self._libraries:
            library = _Library(package, self._folder / f"stand-{package or engine}", self._terms)
            self._libraries[package] = self._stack.enter_context(closing(library))
        return self._libraries[package]

    def mount(self, bundle: Bundle, *, inputs: Path) -> "Mounted":
        """Open `bundle` for its first answer, to `inputs`. Raises `ConversionFailed`, which says why it could not be."""
        library = self.prepare(bundle.manifest.engine.name)
        loads: list[float] = []
        while len(loads) < LOADS - 1 and (not loads or sum(loads) < LOAD_FOR_S):
            with closing(Mounted(library, bundle, self._terms, inputs=inputs)) as once:
                loads.append(once.load_s)
        mounted = Mounted(library, bundle, self._terms, inputs=inputs)
        mounted.load_s = float(np.median([*loads, mounted.load_s]))
        return mounted

    @contextmanager
    def opened(self, bundle: Bundle) -> Iterator[Predict]:
        """Ask `bundle` on any core. Raises `ConversionFailed` where it cannot be opened, and where its process is lost later."""
        with closing(self._on_any_core(bundle)) as mounted:
            yield mounted.predict

    def answers(self, bundle: Bundle, calls: Sequence[Inputs]) -> Sequence[Outputs]:
        """As `opened`; raises `EngineFailed` too, where the engine refuses a call."""
        with self.opened(bundle) as predict:
            return [predict(inputs) for inputs in calls]

    def replay(self, bundle: Bundle) -> None:
        """Raises `ConversionFailed` where it does not repeat its golden requests on an engine that is new."""
        self._on_any_core(bundle, replay=True).close()

    def _on_any_core(self, bundle: Bundle, *, replay: bool = False) -> "Mounted":
        terms = replace(self._terms, cores=tuple(sorted(os.sched_getaffinity(0))))
        return Mounted(self.prepare(bundle.manifest.engine.name), bundle, terms, replay=replay)


class Mounted:
    """An engine in its process. What raises `ConversionFailed` has ended it.

    `load_s` is the time from opening the bundle to the first answer, to `inputs`; `memory_bytes` the most that it was seen to
    hold.
    """

    def __init__(
        self, library: "_Library", bundle: Bundle, terms: Terms, *, inputs: Path | None = None, replay: bool = False
    ) -> None:
        self._library, self._terms = library, terms
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket, self.pid, self.memory_bytes = ours, 0, 0
        start = Start(
            bundle=str(bundle.path), inputs=str(inputs or ""), replay=replay, threads=terms.threads, cores=terms.cores
        )
        try:
            with theirs:
                self.pid = library.start(start, theirs)
        except ConversionFailed:
            ours.close()
            raise
        self.load_s = self._answer(Opened, within_s=terms.limits.time_s).load_s

    def call(self, inputs: Path, calls: int) -> Sequence[float]:
        """Make so many calls, one after the other; how many milliseconds each took. All of them may take `call_s`."""
        self._check_memory()
        with suppress(ConnectionError):  # then there is no answer either, and how it ended is told
            self._socket.send(_encode(Call(inputs=str(inputs), calls=calls)))
        took = self._answer(Took, within_s=self._terms.call_s)
        self.memory_bytes = max(self.memory_bytes, took.memory_bytes)
        return took.ms

    def predict(self, inputs: Inputs) -> Outputs:
        """Raises `EngineFailed` where the engine refuses them, and is none the worse for it."""
        self._check_memory()
        with tempfile.TemporaryDirectory(dir=self._library.log.parent) as aside:
            asked, answered = Path(aside, "asked.npz"), Path(aside, "answered.npz")
            write_arrays(asked, inputs)
            with suppress(ConnectionError):
                self._socket.send(_encode(Ask(inputs=str(asked), outputs=str(answered))))
            if refusal := self._answer(Answered, within_s=self._terms.call_s).refusal:
                raise EngineFailed(refusal)
            return read_arrays(answered)

    def close(self) -> int:
        """End the process; how it ended, as `subprocess` gives it, if it had already."""
        if not self.pid:
            return 0
        self._socket.close()
        code, self.pid = self._library.end(self.pid), 0
        return code

    def _answer(self, kind: type[Answer], *, within_s: float) -> Answer:
        deadline = time.monotonic() + within_s
        while not _readable(self._socket):
            self._check_memory()
            if time.monotonic() > deadline:
                raise self._lost(f"did not answer within {within_s:g} s and was killed")
        answer = _receive(self._socket)
        if isinstance(answer, Failed):
            raise self._lost(answer.reason)
        if answer is None:
            raise self._lost("")
        assert isinstance(answer, kind), f"an engine said {answer!r}: this is a bug"
        return answer

    def _check_memory(self) -> None:
        taken, allowed = child.resident_bytes(self.pid), self._terms.limits.memory_bytes
        if taken > allowed:
            raise self._lost(
                f"took {taken / 2**20:.0f} MiB of memory, more than the {allowed / 2**20:.0f} allowed, and was killed"
            )

    def _lost(self, reason: str) -> ConversionFailed:
        """`reason` is empty where it ended by itself."""
        code = self.close()
        return ConversionFailed(reason or child.ending(code), log=str(self._library.log))


class _Library:
    """The process that has imported an engine's library, and forks those that open engines."""

    def __init__(self, package: str, folder: Path, terms: Terms) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / LOG
        self._terms = terms
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, package, str(theirs.fileno())],
                cwd=folder, pass_fds=[theirs.fileno()], start_new_session=True,
                env=child.environment(os.environ, threads=terms.threads, home=folder) | FRUGAL | {"TMPDIR": str(folder)},
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def start(self, start: Start, theirs: socket.socket) -> int:
        return self._ask(start, Started, [theirs.fileno()]).pid

    def end(self, pid: int) -> int:
        """Kill it, if it has not ended by itself; how it ended. Where this process is gone, so is all that it had forked."""
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # no other has this number before it is reaped
            with suppress(ConversionFailed):
                return self._ask(Reap(pid=pid), Ended).code
        return -signal.SIGKILL

    def close(self) -> None:
        self._socket.close()
        child.kill_session(self._process)

    def _ask(self, message: msgspec.Struct, kind: type[Answer], descriptors: Sequence[int] = ()) -> Answer:
        with suppress(ConnectionError):
            socket.send_fds(self._socket, [_encode(message)], descriptors)
        deadline = time.monotonic() + self._terms.limits.time_s
        while not _readable(self._socket):
            if time.monotonic() > deadline:
                self._process.kill()
        answer = _receive(self._socket)
        if answer is None:
            reason = child.ending(self._process.wait())
            raise ConversionFailed(f"the process that imports its library {reason}", log=str(self.log))
        assert isinstance(answer, kind), f"a library said {answer!r}: this is a bug"
        return answer


def _readable(sock: socket.socket) -> bool:
    """Whether there is an answer, or an end; waits a little."""
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    return bool(poller.poll(LOOK_EVERY_S * 1000))


def _receive(sock: socket.socket) -> object:
    """None where the other end is gone."""
    try:
        message = sock.recv(MAX_MESSAGE)
    except ConnectionError:
        return None
    return _decode(message) if message else None


# The child's half


def main(package: str, descriptor: int) -> None:
    child.die_with_parent()
    control = socket.socket(fileno=descriptor)
    if package in IMPORTED_AHEAD:
        importlib.import_module(package)
    gc.freeze()
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, MAX_MESSAGE, 1)
        if not message:
            return
        told = _decode(message)
        if isinstance(told, Start):
            with socket.socket(fileno=descriptors[0]) as engine:
                pid = os.fork()
                if not pid:
                    control.close()
                    _be_engine(told, package, engine)
            control.send(_encode(Started(pid=pid)))
        else:
            assert isinstance(told, Reap), f"the parent said {told!r}: this is a bug"
            _, status = os.waitpid(told.pid, 0)
            control.send(_encode(Ended(code=os.waitstatus_to_exitcode(status))))


def _be_engine(start: Start, package: str, parent: socket.socket) -> NoReturn:
    """The whole life of a fork, which runs nothing of what its parent would do at its own end."""
    child.die_with_parent()
    try:
        os.sched_setaffinity(0, start.cores)
        if package:
            importlib.import_module(package)
        _answer_calls(start, parent)
    except SeatrialError as error:
        parent.send(_encode(Failed(reason=str(error))))
    except ConnectionError:
        pass  # nobody waits any more
    except BaseException as error:  # noqa: BLE001 - the process ends here; its parent tells
        traceback.print_exc()
        parent.send(_encode(Failed(reason=f"{type(error).__name__}: {error}")))
    finally:
        os._exit(0)


def _answer_calls(start: Start, parent: socket.socket) -> None:
    known: dict[str, Inputs] = {name: read_arrays(Path(name)) for name in [start.inputs] if name}
    before = _memory_bytes(known)
    began = time.perf_counter()
    bundle = open_bundle(Path(start.bundle))
    engine = open_engine(bundle, threads=start.threads)
    for inputs in known.values():
        engine.predict(inputs)
    if start.replay:
        proof.replay(engine, bundle)
    parent.send(_encode(Opened(load_s=time.perf_counter() - began)))
    gc.collect()
    gc.disable()  # it would strike whoever happens to be timed
    while message := parent.recv(MAX_MESSAGE):
        told = _decode(message)
        if isinstance(told, Ask):
            parent.send(_encode(Answered(refusal=_refusal(engine, told))))
            continue
        assert isinstance(told, Call), f"the parent said {told!r}: this is a bug"
        if told.inputs not in known:
            known[told.inputs] = read_arrays(Path(told.inputs))
        ms = _timed(engine, known[told.inputs], told.calls)
        parent.send(_encode(Took(ms=ms, memory_bytes=max(0, _memory_bytes(known) - before))))


def _refusal(engine: Engine, ask: Ask) -> str:
    try:
        outputs = engine.predict(read_arrays(Path(ask.inputs)))
    except (EngineFailed, WrongInput) as error:
        return str(error)
    write_arrays(Path(ask.outputs), outputs)
    return ""


def _timed(engine: Engine, inputs: Inputs, calls: int) -> tuple[float, ...]:
    took = []
    for _ in range(calls):
        began = time.perf_counter()
        engine.predict(inputs)
        took.append((time.perf_counter() - began) * 1000)
    return tuple(took)


def _memory_bytes(known: Mapping[str, Inputs]) -> int:
    """Of our own, and of the processes that an engine runs in, beside the inputs: pages that no file is behind, which nobody
    can take away from us.

    Pages of libraries are shared with every other process that runs the same engine.
    """
    return anonymous_bytes(os.getpid()) - sum(array.nbytes for arrays in known.values() for array in arrays.values())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
