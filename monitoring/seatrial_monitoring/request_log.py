"""One JSON line for each request, written by a thread of its own.

The log is bounded and can lose records, which it counts; it never makes a request wait, whatever becomes of its reader.
It never holds a payload. Of the requests that end well it may keep a part only; those that fail it keeps all.
"""

import os
import threading
from collections import deque

import msgspec

MAX_RECORDS = 50_000
MAX_LINES_PER_WRITE = 500
"""They are encoded in one call, which holds the interpreter: 500 for a fifth of a millisecond."""
FLUSH_S = 0.1

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

    def __init__(self, descriptor: int, *, share: float = 1.0, max_records: int = MAX_RECORDS) -> None:
        """`descriptor` stays the caller's."""
        self._descriptor, self._share, self._max_records = descriptor, share, max_records
        self._due = 0.0
        self._records: deque[Record] = deque()
        self._closing = threading.Event()
        self._reader_gone = False
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
        while not (self._closing.wait(FLUSH_S) and not self._records):
            while self._records:
                if not self._write_some():
                    return

    def _write_some(self) -> bool:
        """Write what waits, up to a limit; False where the reader has gone for good."""
        waiting = min(len(self._records), MAX_LINES_PER_WRITE)
        lines = memoryview(_encode_lines([self._records.popleft() for _ in range(waiting)]))
        try:
            while lines:
                lines = lines[os.write(self._descriptor, lines) :]
        except OSError:
            self._reader_gone = True
            self.dropped += waiting + len(self._records)
            self._records.clear()
            return False
        self.written += waiting
        return True
