"""One JSON line for each request, written by a thread of its own.

The log is bounded and can lose records, which it counts; it never makes a request wait, whatever becomes of its reader.
It never holds a payload. Of the requests that end well it may keep a part only; those that fail it keeps all.
"""

import os
import threading
from collections import deque
from typing import Any

import orjson

MAX_RECORDS = 50_000
MAX_LINES_PER_WRITE = 2_000
FLUSH_S = 0.1


class RequestLog:
    """Call `takes` and `write` from one thread; `close` writes what is left, for at most a second."""

    def __init__(self, descriptor: int, *, share: float = 1.0, max_records: int = MAX_RECORDS) -> None:
        """`descriptor` stays the caller's."""
        self._descriptor, self._share, self._max_records = descriptor, share, max_records
        self._due = 0.0
        self._records: deque[dict[str, Any]] = deque()
        self._closing = threading.Event()
        self._reader_gone = False
        self.dropped = 0
        self.written = 0
        self._thread = threading.Thread(target=self._write_all, name="seatrial-request-log", daemon=True)
        self._thread.start()

    def takes(self, *, failed: bool) -> bool:
        """Whether to write the record of a request that ended now: every failed one, an even share of the others."""
        if failed:
            return True
        self._due += self._share
        if self._due < 1:
            return False
        self._due -= 1
        return True

    def write(self, record: dict[str, Any]) -> None:
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
        lines = memoryview(
            b"".join(orjson.dumps(self._records.popleft(), option=orjson.OPT_APPEND_NEWLINE) for _ in range(waiting))
        )
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
