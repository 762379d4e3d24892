"""Agents to be asked: one in this process, whose clock a test moves, and one in a process of its own, as it is run."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from seatrial.credentials import Credentials
from seatrial.settings import Settings
from seatrial_export.remote.agent import Agent
from seatrial_export.remote.client import Connection
from seatrial_export.remote.door import Door
from seatrial_export.remote.wire import CODE, code
from tests.conditions import until

TOKEN = "of-a-test-and-of-nothing-else"
SHOWN = {"authorization": f"Bearer {TOKEN}", CODE: code()}


@dataclass
class Near:
    """In this process."""

    door: Door
    home: Path
    now: float = 0.0

    def clock(self) -> float:
        return self.now

    @property
    def url(self) -> str:
        return self.door.url

    @property
    def files(self) -> list[str]:
        """All that it has, whole or not."""
        return sorted(path.name for path in (self.home / "agent").rglob("*") if path.is_file())

    def ask(
        self, method: str, path: str, *, content: bytes | None = None, headers: dict[str, str] | None = None
    ) -> httpx.Response:
        given = SHOWN if headers is None else headers
        return httpx.request(method, f"{self.url}/v1/{path}", content=content, headers=given, timeout=30)

    def connect(self, holder: str = "a test") -> Connection:
        return Connection(self.url, Credentials(key=TOKEN), holder=holder)


@contextmanager
def near(home: Path, **settings: object) -> Iterator[Near]:
    """With these settings of `export.agent`; it listens until the block ends."""
    ours = Settings(home=home, export={"agent": {"port": 0, "token": TOKEN, **settings}})
    found = Near(door=None, home=home)  # type: ignore[arg-type]  # it has the clock that the door's agent takes
    agent = Agent(ours, clock=found.clock)
    with Door(agent, ours) as door:
        found.door = door
        answering = threading.Thread(target=door.serve_forever, kwargs={"poll_interval": 0.01})
        answering.start()
        try:
            yield found
        finally:
            agent.close()
            door.shutdown()
            answering.join()


@dataclass
class Far:
    """In a process of its own."""

    process: subprocess.Popen[bytes]
    url: str
    home: Path
    variables: dict[str, str] = field(default_factory=dict)

    def children(self) -> list[int]:
        return [child.pid for child in psutil.Process(self.process.pid).children()]


@contextmanager
def far(place: Path) -> Iterator[Far]:
    """`seatrial agent`, until the block ends; then it ends in peace, unless the test has killed it."""
    place.mkdir()
    variables = {"SEATRIAL_HOME": str(place), "SEATRIAL_EXPORT__AGENT__TOKEN": TOKEN}
    with (place / "out").open("wb") as out, (place / "err").open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "seatrial", "agent", "--port", "0", "--json"],
            stdout=out, stderr=err, env=os.environ | variables, start_new_session=True,
        )  # fmt: skip
    try:

        def ready() -> bool:
            assert process.poll() is None, (place / "err").read_text()
            return (place / "out").read_text().rstrip().endswith("}")

        until(ready, within_s=60)
        yield Far(process=process, url=json.loads((place / "out").read_text())["url"], home=place)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0, (place / "err").read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
