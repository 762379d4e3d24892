"""How a gateway and an engine process talk: small typed messages over a Unix socket, tensors in shared memory.

The memory is anonymous (`memfd`): it has no name in the file system, and dies with the last process that maps it. It is
sealed against shrinking, so that no process can make the other fault by cutting it off. The messages are never pickles.
Each slot is memory of its own: a batch is written into a free one, answered in the same one, and only then is it free.

Several gateways may share an engine process: each has a channel, a socket and slots, of its own.
"""

import fcntl
import math
import mmap
import os
import socket
from collections.abc import Sequence
from typing import Any, TypeAlias

import msgspec
import numpy as np

from seatrial.errors import EngineFailed
from seatrial.protocol import element_count, read_tensor, write_tensor
from seatrial.tensors import Array, DataType, Signature
from seatrial_serving.engines.stateful import Turn
from seatrial_serving.padding import Pad, lay_together, shape_together

ALIGNMENT = 64
HEAD = ALIGNMENT
"""Bytes at the beginning of a slot that no tensor lies in."""
MAX_MESSAGE = 128 * 1024


class Start(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """To the engine, first of all, with the file descriptors of its slots. `path` is a bundle's directory, that of a version
    in a Triton repository, or an ONNX file, which has no digest. Where it is to answer several gateways, one more descriptor
    is a socket, on which those of further channels come: of each its socket first, then its slots.
    """

    path: str
    digest: str
    threads: int
    warm_up: tuple[int, ...]
    wide_threads: int = 0
    """Threads of a second session, for batches that are alone; 0 for none."""
    gently: bool = False
    """Take the processor only while nobody else wants it, until ready."""
    shared: bool = False
    """There is that one more descriptor."""


class Ready(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """From the engine: loaded, verified, warm. `golden` requests were replayed."""

    graphs: dict[str, Signature]
    golden: int
    load_s: float
    wide: bool = False
    """There is a second session, on all cores."""
    state_bytes: int | None = None
    """What one sequence takes; None where the model has no memory."""
    row_s: float = 0.0
    """How long a row takes at best on the CPU, alone in a batch; 0 where it runs elsewhere."""


class Unfit(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """From the engine, instead of `Ready`: it cannot serve. `kind` names one of our error types."""

    kind: str
    message: str


class Part(msgspec.Struct, frozen=True, array_like=True):
    """Where one tensor lies in a slot. The datatype is the signature's."""

    offset: int
    size: int
    shape: tuple[int, ...]


class Run(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """To the engine: run `graph` on what lies in `slot`, one part per input in the order of its signature."""

    batch: int
    slot: int
    graph: str
    inputs: tuple[Part, ...]
    wide: bool = False
    turns: tuple[Turn, ...] = ()
    """Whose rows they are, of a model with a memory."""
    sent: float = 0.0
    """By the monotonic clock, which is the same for all processes: of several gateways' batches the oldest goes first."""


class Ran(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """From the engine: the outputs lie in `slot`, in the order of the signature."""

    batch: int
    slot: int
    outputs: tuple[Part, ...]
    compute_s: float


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """From the engine: the batch could not be run; the engine itself is well."""

    batch: int
    slot: int
    kind: str
    message: str


ToEngine: TypeAlias = Start | Run
FromEngine: TypeAlias = Ready | Unfit | Ran | Failed

encode = msgspec.msgpack.Encoder().encode
_decode_to_engine = msgspec.msgpack.Decoder(ToEngine).decode
_decode_from_engine = msgspec.msgpack.Decoder(FromEngine).decode


def decode_to_engine(message: bytes) -> ToEngine:
    decoded: ToEngine = _decode_to_engine(message)
    return decoded


def decode_from_engine(message: bytes) -> FromEngine:
    """Raises `EngineFailed` for what no well engine would say."""
    try:
        decoded: FromEngine = _decode_from_engine(message)
    except msgspec.MsgspecError as error:
        raise EngineFailed(f"the engine process spoke nonsense: {error}") from error
    return decoded


Laid: TypeAlias = tuple[DataType, Sequence[Array], Pad | None]
"""A tensor to lay down, as the pieces to put together along its first axis, and how to pad those that are short."""


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends that keep message boundaries."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def slot_memory(size: int = 0) -> int:
    """The descriptor of memory for a slot, the caller's to close."""
    descriptor = os.memfd_create("seatrial-slot", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, _page_multiple(size))
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return descriptor


class Slot:
    """Memory that two processes share, and that either may make larger but neither smaller."""

    def __init__(self, descriptor: int) -> None:
        """Map the memory behind `descriptor`, which this object then owns."""
        self.descriptor = descriptor
        self._map()

    @classmethod
    def create(cls, size: int) -> "Slot":
        return cls(slot_memory(size))

    @property
    def begun(self) -> bool:
        """Whether the engine has come to the batch that lies here: true to the end, however the process ends."""
        return self._memory[0] != 0

    @begun.setter
    def begun(self, value: bool) -> None:
        self._memory[0] = value

    def reserve(self, size: int) -> None:
        """Make it at least `size` bytes large; arrays that lie in it stay valid."""
        if size > self.size:
            if size > os.fstat(self.descriptor).st_size:
                os.ftruncate(self.descriptor, _page_multiple(max(size, 2 * self.size)))
            self._map()

    def place(self, tensors: Sequence[Laid]) -> tuple[Part, ...]:
        """Lay tensors down one behind the other."""
        parts, laid, end = [], [], HEAD
        for tensor in tensors:
            size, shape, pieces, pad = _layout(*tensor)
            parts.append(Part(end, size, shape))
            laid.append((end, shape, pieces, pad))
            end = _aligned(end + size)
        self.reserve(end)
        for offset, shape, pieces, pad in laid:
            if pad is None:
                self._lay_down(offset, pieces)
            else:
                lay_together(np.ndarray(shape, pieces[0].dtype, self._memory, offset), pieces, pad)
        return tuple(parts)

    def read(self, part: Part, datatype: DataType, *, name: str) -> Array:
        """The tensor that lies at `part`: a view, except for BYTES. Raises where the claim leaves the memory."""
        if part.offset < 0 or part.size < 0:
            raise EngineFailed(f"tensor '{name}' is said to lie at {part.offset}, {part.size} bytes long")
        if part.offset + part.size > self.size:
            if part.offset + part.size > os.fstat(self.descriptor).st_size:
                raise EngineFailed(f"tensor '{name}' is said to end at {part.offset + part.size}, beyond the memory")
            self._map()
        if datatype is not DataType.BYTES:
            dtype = datatype.numpy
            if part.size == element_count(part.shape, name=name) * dtype.itemsize:
                return np.ndarray(part.shape, dtype, self._memory, part.offset)
        data = memoryview(self._memory)[part.offset : part.offset + part.size]
        return read_tensor(data, datatype, part.shape, name=name)

    def close(self) -> None:
        """Give the memory back once no array lies in it any more."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
            del self._memory

    def _map(self) -> None:
        # A map with arrays in it cannot be resized or closed: the old one goes when its last array goes.
        self.size = os.fstat(self.descriptor).st_size
        self._memory = mmap.mmap(self.descriptor, self.size)

    def _lay_down(self, offset: int, pieces: Sequence[Any]) -> None:
        for piece in pieces:
            end = offset + (piece.nbytes if isinstance(piece, np.ndarray) else len(piece))
            self._memory[offset:end] = piece
            offset = end


def _layout(
    datatype: DataType, pieces: Sequence[Array], pad: Pad | None
) -> tuple[int, tuple[int, ...], Sequence[Any], Pad | None]:
    """Bytes, shape, and what to write, for `pieces` put together along the first axis; no padding where none is needed."""
    if len(pieces) == 1 and datatype is not DataType.BYTES:
        piece = np.ascontiguousarray(pieces[0])
        return piece.nbytes, pieces[0].shape, (piece,), None
    shape = shape_together(pieces, pad)
    if datatype is DataType.BYTES:
        written = [write_tensor(piece, datatype) for piece in pieces]
        return sum(map(len, written)), shape, written, None
    size = sum([piece.nbytes for piece in pieces])
    if pad is not None and (whole := math.prod(shape) * pieces[0].itemsize) > size:
        return whole, shape, pieces, pad
    return size, shape, [np.ascontiguousarray(piece) for piece in pieces], None


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _page_multiple(size: int) -> int:
    return max(1, -(-size // mmap.PAGESIZE)) * mmap.PAGESIZE
