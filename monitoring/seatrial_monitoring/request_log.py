"""One JSON line for each request, written by a thread of its own.

The log is bounded and can lose records, which it counts; it never makes a request wait, whatever becomes of its reader.
While nothing can be written, as on a full disk, records wait, and the line that was begun is finished when there is room.
It never holds a payload. Of the requests that end well it may keep a part only; those that fail it keeps all.
"""

import errno
import fcntl
import logging
import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

MAX_RECORDS = 50_000
MAX_LINES_PER_WRITE = 500
"""They are encoded in one call, which holds the interpreter: 500 for a fifth of a millisecond."""
FLUSH_S = 0.1
GONE = (errno.EPIPE, errno.EBADF)
"""There is nobody to write for any more. Whatever else goes wrong may pass."""

log = logging.getLogger(__name__)
_encode_lines = msgspec.json.Encoder().encode_lines


class Record(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, tag_field="event", tag="request"):
    """One request, as it is logged. `id` is the client's, `error` the type of what went wrong."""

    protocol: str
    id: str
    model: str
    version: str
    variant: str
    outcome: str
    rows: int
    total_ms: float
    queue_ms: float
    cached: bool = False
    caller: str = ""
    error: str = ""


class RequestLog:
    """Call `takes` and `write` from one thread; `close` writes what is left, for at most a second."""

    def __init__(
        self, descriptor: int, *, share: float = 1.0, max_records: int = MAX_RECORDS, lock: int | None = None
    ) -> None:
        """`descriptor` stays the caller's. Where other processes write to the same one, `lock` is a file that each of them
        has opened: a pipe may mix the lines of two that write at once."""
        self._descriptor, self._share, self._max_records, self._lock = descriptor, share, max_records, lock
        self._due = 0.0
        self._records: deque[Record] = deque()
        self._lines = memoryview(b"")
        """Taken out of the records, and not written yet."""
        self._in_hand = 0
        """How many records `_lines` began as."""
        self._closing = threading.Event()
        self._reader_gone = self._held_up = False
        self.dropped = 0
        self.written = 0
        self._thread = threading.Thread(target=self._write_all, name="seatrial-request-log", daemon=True)
        self._thread.start()

    def takes(self, *, failed: bool) -> bool:
        """Whether to write the record of a request that ended now: every failed one, an even share of the others."""
        if failed or self._share >= 1:
            return True
        self._due += self._share
        if self._due < 1:
            return False
        self._due -= 1
        return True

    def write(self, record: Record) -> None:
        """Keep `record` for writing; where too many wait, the oldest is dropped."""
        if self._reader_gone:
            self.dropped += 1
            return
        if len(self._records) >= self._max_records:
            self._records.popleft()
            self.dropped += 1
        self._records.append(record)

    def close(self) -> None:
        self._closing.set()
        self._thread.join(timeout=1)

    def _write_all(self) -> None:
        closing = False
        while not closing and not self._reader_gone:
            closing = self._closing.wait(FLUSH_S)
            while (self._lines or self._records) and self._write_some():
                pass
        unwritten = bytes(self._lines).count(b"\n")
        self.written += self._in_hand - unwritten
        self.dropped += unwritten + len(self._records)
        self._records.clear()

    def _write_some(self) -> bool:
        """Write what waits, up to a limit; False where that cannot be done now, or never again."""
        if not self._lines:
            self._in_hand = min(len(self._records), MAX_LINES_PER_WRITE)
            self._lines = memoryview(_encode_lines([self._records.popleft() for _ in range(self._in_hand)]))
        try:
            with _holding(self._lock):
                while self._lines:
                    self._lines = self._lines[os.write(self._descriptor, self._lines) :]
        except OSError as error:
            self._reader_gone = error.errno in GONE
            if not self._held_up:
                log.error("the request log cannot be written: %s; the server goes on, and tries again", error)
            self._held_up = True
            return False
        self.written += self._in_hand
        self._in_hand, self._held_up = 0, False
        return True


@contextmanager
def _holding(lock: int | None) -> Iterator[None]:
    """While no other process does. A process that ends lets go."""
    if lock is None:
        yield
        return
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(lock, fcntl.LOCK_UN)
