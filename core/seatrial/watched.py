"""What is in files that change while a server runs: read again, without a restart."""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from seatrial.errors import SeatrialError

LOOK_EVERY_S = 1.0

T = TypeVar("T")
log = logging.getLogger(__name__)


class Watched(Generic[T]):
    """What `read` makes of `paths`, as they were within the last second.

    A change that cannot be read is logged and changes nothing: half a deployment must not lock everybody out.
    """

    def __init__(
        self, paths: Sequence[Path], read: Callable[[], T], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Raises what `read` raises."""
        self._paths, self._read, self._clock = paths, read, clock
        self._seen = self._look()
        self._looked = clock()
        self._value = read()

    def current(self) -> T:
        now = self._clock()
        if now - self._looked >= LOOK_EVERY_S:
            self._looked = now
            if (found := self._look()) != self._seen:
                self._seen = found
                self._renew()
        return self._value

    def _renew(self) -> None:
        try:
            self._value = self._read()
        except SeatrialError as error:
            log.error("%s; what was known before still holds", error)
        else:
            log.info("read again: %s", ", ".join(map(str, self._paths)))

    def _look(self) -> list[tuple[int, int, int] | None]:
        """Something else after every change, also where a file is replaced by a rename."""
        return [_stamp(path) for path in self._paths]


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
