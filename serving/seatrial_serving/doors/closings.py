"""Connections that a server closes on its clients: why, how many, and a line in the log now and then.

Each connection takes a descriptor, and so does what keeps a server alive: a new engine takes several. Connections get
those below a reserve. Where they could take the last one, an engine that died could not be replaced, and uvloop would
close the listening socket without a word.
"""

import asyncio
import logging
import resource
import time
from collections.abc import Callable

from seatrial_monitoring.series import Closing

EVERY_S = 1.0
RESERVE = 256
MOST = 2**20
"""Descriptors that a process asks for: there are programs that walk through as many as they may have."""
WORDS = {
    Closing.MALFORMED: "what it sent is not the protocol of this port",
    Closing.HEADERS: "its headers are larger than serving.limits.header_bytes",
    Closing.SLOW: "its request was not whole after serving.limits.receive_s",
    Closing.NO_ROOM: "the process may open no more files: raise its limit (ulimit -n, LimitNOFILE)",
}

log = logging.getLogger(__name__)


def raise_descriptor_limit() -> None:
    """Let this process and its children have as many descriptors as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class Closings:
    """Of one door. Counts into `counts`, and says each reason once a second at most."""

    def __init__(
        self,
        door: str,
        counts: dict[Closing, int],
        *,
        clock: Callable[[], float] = time.monotonic,
        say: Callable[[str], None] = log.warning,
    ) -> None:
        self._door, self._counts, self._clock, self._say = door, counts, clock, say
        self._said = dict.fromkeys(Closing, -EVERY_S)
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        limit = MOST if limit == resource.RLIM_INFINITY else limit
        self._first_reserved = limit - min(RESERVE, limit // 2)

    def has_no_room(self, transport: asyncio.BaseTransport) -> bool:
        """Whether only the reserve is left: the system gives the lowest descriptor that is free."""
        descriptor: int = transport.get_extra_info("socket").fileno()
        return descriptor >= self._first_reserved

    def note(self, reason: Closing) -> None:
        self._counts[reason] += 1
        now = self._clock()
        if now - self._said[reason] >= EVERY_S:
            self._said[reason] = now
            self._say(f"a {self._door} connection was closed: {WORDS[reason]} ({self._counts[reason]} so far)")
