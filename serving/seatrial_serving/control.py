"""How the supervisor and a further gateway talk: small typed messages over a Unix socket, file descriptors along with them.

Each end tells or asks; messages arrive in the order in which they were sent, so that what is told before a question has been
done when the answer comes. What is too long for the socket lies in anonymous memory, whose descriptor is sent in its place.
"""

import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeAlias

import msgspec

from seatrial.errors import NotReady
from seatrial.tensors import Signature
from seatrial_monitoring.metrics import Counted
from seatrial_serving.channel import Ready
from seatrial_serving.ensemble import Plan
from seatrial_serving.generation import Identity
from seatrial_serving.remote import named_error
from seatrial_serving.repository import Listed
from seatrial_serving.workers import SLOTS

LONGEST = 32 * 1024
MOST_DESCRIPTORS = 1 + 1 + SLOTS
SAYS_NOTHING = "a message that says nothing: this is a bug"

log = logging.getLogger(__name__)


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Base of all that is said."""


# To the further gateway


class Begin(Message, frozen=True):
    """First of all, with the sockets for REST and gRPC, bound and not yet listening, and the lock of the request log.
    `serving` is `settings.Serving` in JSON."""

    serving: str
    gateways: int


class Expect(Message, frozen=True):
    name: str


class Forget(Message, frozen=True):
    name: str


class Introduce(Message, frozen=True):
    """A generation, known by its number from now on. Its engines are told next, its pipelines the gateway has itself.
    `example` is the identity's, as the body of a request. `serving` is in JSON."""

    number: int
    identity: Identity
    example: bytes
    example_json: int
    graphs: dict[str, Signature]
    serving: str
    plan: Plan | None


class Engine(Message, frozen=True):
    """An engine of a generation, with the descriptors of a channel to it: socket, slots."""

    number: int
    pid: int
    ready: Ready


class Install(Message, frozen=True):
    """Requests go to the generation from now on; the bare name means it if `default`."""

    number: int
    default: bool


class Remove(Message, frozen=True):
    """No request goes to the generation any more. Answered when its last one is."""

    number: int


class Listen(Message, frozen=True):
    """Take connections. Answered when they are taken."""


class Drain(Message, frozen=True):
    """Readiness says no; requests are answered."""


class Stop(Message, frozen=True):
    """Take no connection any more, answer what is in flight, end."""


class Settle(Message, frozen=True):
    """Answered when all that was told before is done."""


class Count(Message, frozen=True):
    """Answered with `Told`: what this gateway has counted."""


# To the supervisor


class Kill(Message, frozen=True):
    """The engine process hangs, or answers what it should not."""

    pid: int


class Load(Message, frozen=True):
    name: str


class Unload(Message, frozen=True):
    name: str


class Index(Message, frozen=True):
    """Answered with `Listing`."""


class Total(Message, frozen=True):
    """Answered with `Told`: what all gateways have counted."""


# Answers


class Done(Message, frozen=True):
    pass


class Told(Message, frozen=True):
    counted: Counted


class Listing(Message, frozen=True):
    listed: tuple[Listed, ...]


class Refusal(Message, frozen=True):
    """`kind` names one of our error types."""

    kind: str
    words: str


Said: TypeAlias = (
    Begin | Expect | Forget | Introduce | Engine | Install | Remove | Listen | Drain | Stop | Settle | Count
    | Kill | Load | Unload | Index | Total
    | Done | Told | Listing | Refusal
)  # fmt: skip


class Frame(msgspec.Struct, frozen=True, array_like=True):
    """`number` is that of a question, 0 for what wants no answer; None said: it lies in the memory of the first descriptor."""

    number: int
    answers: bool
    said: Said | None


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Frame).decode

Heard: TypeAlias = Callable[[Said, list[int], int], None]
"""Called with what was said, the descriptors that came along, which are its to close, and the number to answer."""


def receive(end: socket.socket) -> tuple[Said, list[int]]:
    """The first message, waited for: before there is an event loop. Raises `EOFError` where the other end has gone."""
    data, descriptors, _, _ = socket.recv_fds(end, LONGEST, MOST_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
    if not data:
        raise EOFError("the supervisor has gone")
    frame, descriptors = _unfold(data, descriptors)
    assert frame.said is not None, SAYS_NOTHING
    return frame.said, descriptors


class Link:
    """One end. Lives on one event loop; `lost` is called once, when the other end has gone or talks nonsense."""

    def __init__(self, end: socket.socket, heard: Heard, lost: Callable[[], None]) -> None:
        end.setblocking(False)
        self._end, self._heard, self._lost = end, heard, lost
        self._unsent: deque[tuple[bytes, Sequence[int]]] = deque()
        self._asked: dict[int, asyncio.Future[Said]] = {}
        self._last = 0
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(end, self._read)

    def tell(self, said: Said, descriptors: Sequence[int] = ()) -> None:
        """The `descriptors` are the link's from now on: they are closed once they are sent."""
        self._send(Frame(0, answers=False, said=said), descriptors)

    def ask(self, said: Said) -> "asyncio.Future[Said]":
        """The answer, or the error that the other end answers with; `NotReady` where it goes before."""
        self._last += 1
        answer = self._asked[self._last] = self._loop.create_future()
        self._send(Frame(self._last, answers=False, said=said), ())
        return answer

    def answer(self, number: int, said: Said) -> None:
        self._send(Frame(number, answers=True, said=said), ())

    def close(self) -> None:
        if self._end.fileno() < 0:
            return
        self._loop.remove_reader(self._end)
        self._loop.remove_writer(self._end)
        self._end.close()
        for _, descriptors in self._unsent:
            _close(descriptors)
        self._unsent.clear()
        self._give_up()

    def _send(self, frame: Frame, descriptors: Sequence[int]) -> None:
        if self._end.fileno() < 0:
            _close(descriptors)
            self._give_up()
            return
        data = _encode(frame)
        if len(data) > LONGEST:
            descriptors = (_memory(data), *descriptors)
            data = _encode(Frame(frame.number, frame.answers, None))
        self._unsent.append((data, descriptors))
        if len(self._unsent) == 1:
            self._flush()

    def _flush(self) -> None:
        while self._unsent:
            data, descriptors = self._unsent[0]
            try:
                if descriptors:
                    socket.send_fds(self._end, [data], descriptors)
                else:
                    self._end.send(data)
            except BlockingIOError:
                self._loop.add_writer(self._end, self._flush)
                return
            except OSError:
                return  # reading finds out, and closes
            self._unsent.popleft()
            _close(descriptors)
        self._loop.remove_writer(self._end)

    def _read(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._end, LONGEST, MOST_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors = b"", []
        if not data:
            self._go()
            return
        try:
            frame, descriptors = _unfold(data, descriptors)
        except msgspec.MsgspecError as error:
            log.error("a gateway and the supervisor do not understand each other: %s", error)
            self._go()
            return
        assert frame.said is not None, SAYS_NOTHING
        if frame.answers:
            self._take(frame.number, frame.said)
        else:
            self._heard(frame.said, descriptors, frame.number)

    def _take(self, number: int, said: Said) -> None:
        answer = self._asked.pop(number, None)
        if answer is None or answer.done():
            return
        if isinstance(said, Refusal):
            answer.set_exception(named_error(said.kind, said.words))
        else:
            answer.set_result(said)

    def _give_up(self) -> None:
        """No question will be answered any more."""
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(NotReady("the gateway ended before it answered"))
                answer.exception()  # nobody need ask
        self._asked.clear()

    def _go(self) -> None:
        self.close()
        self._lost()


def _unfold(data: bytes, descriptors: list[int]) -> tuple[Frame, list[int]]:
    """What was said, wherever it lies, and the descriptors that belong to it."""
    frame = _decode(data)
    if frame.said is not None:
        return frame, descriptors
    with open(descriptors[0], "rb") as memory:  # noqa: PTH123 - a descriptor has no path
        return _decode(memory.read()), descriptors[1:]


def _memory(data: bytes) -> int:
    descriptor = os.memfd_create("seatrial-message", os.MFD_CLOEXEC)
    os.pwrite(descriptor, data, 0)
    return descriptor


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
