"""Wait for a fact, never for a time."""

import asyncio
import threading
import time
from collections.abc import Callable

LOOK_EVERY_S = 0.01


def until(condition: Callable[[], object], *, within_s: float = 30.0) -> None:
    """Look at `condition` until it holds; fail when it still does not after `within_s`."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {within_s:g} s"
        threading.Event().wait(LOOK_EVERY_S)


async def soon(condition: Callable[[], object], *, within_s: float = 30.0) -> None:
    """As `until`, letting the event loop run between two looks."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {within_s:g} s"
        await asyncio.sleep(LOOK_EVERY_S)
