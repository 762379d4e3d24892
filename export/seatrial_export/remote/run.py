"""An agent's process: it listens until somebody ends it, and leaves nothing running."""

import fcntl
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from seatrial.errors import Misused
from seatrial.settings import Settings
from seatrial_export.remote.agent import Agent
from seatrial_export.remote.door import Door


def serve(settings: Settings, *, ready: Callable[[str], None]) -> None:
    """Until SIGINT or SIGTERM. Raises `Misused` where another agent has the same home, and what `Door` raises."""
    with _alone(settings.home), _told_to_end() as ending:
        agent = Agent(settings)
        with Door(agent, settings) as door:
            answering = threading.Thread(target=door.serve_forever, name="seatrial-agent")
            answering.start()
            try:
                ready(door.url)
                ending.wait()
            finally:
                agent.close()
                door.shutdown()
                answering.join()


@contextmanager
def _told_to_end() -> Iterator[threading.Event]:
    """An event that a signal sets, for as long as the block runs."""
    ending = threading.Event()
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(each, lambda *_: ending.set()) for each in signals]
    try:
        yield ending
    finally:
        for each, handler in zip(signals, before, strict=True):
            signal.signal(each, handler)


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Two agents would empty each other's folder, and measure in each other's way."""
    place = home / "agent"
    place.mkdir(parents=True, exist_ok=True)
    with place.joinpath("lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Misused(f"another agent has the home {home}; there can be one") from error
        yield
