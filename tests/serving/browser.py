"""A page in a real browser, Chromium: as its script has made it, or told what to do over the pipe of the DevTools protocol.

What needs it is skipped where there is none.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import IO, Any

import pytest

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu")


class Page:
    def __init__(self, orders: IO[bytes], answers: IO[bytes], url: str) -> None:
        self._orders, self._answers, self._numbers = orders, answers, count(1)
        self._session: dict[str, str] = {}
        target = self._order("Target.createTarget", url=url)["targetId"]
        self._session = {"sessionId": self._order("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}

    def run(self, script: str) -> Any:
        """What `script`, an expression, or the promise that it is, comes to."""
        found = self._order("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def _order(self, method: str, **parameters: object) -> Any:
        number = next(self._numbers)
        order = {"id": number, "method": method, "params": parameters, **self._session}
        self._orders.write(json.dumps(order).encode() + b"\0")
        while (said := self._next()).get("id") != number:
            pass  # events
        assert "error" not in said, said
        return said["result"]

    def _next(self) -> Any:
        text = b""
        while (byte := self._answers.read(1)) != b"\0":
            assert byte, "the browser has ended"
            text += byte
        return json.loads(text)


def shown(url: str, place: Path) -> str:
    """The document, once its script has nothing more to do."""
    command = [*chromium(place), "--virtual-time-budget=5000", "--dump-dom", url]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


@contextmanager
def page(url: str, place: Path) -> Iterator[Page]:
    browser = [*chromium(place), "--remote-debugging-pipe"]
    (theirs_in, orders), (answers, theirs_out) = os.pipe(), os.pipe()
    command = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
    process = subprocess.Popen(
        ["bash", "-c", command, *browser],
        pass_fds=[theirs_in, theirs_out], stderr=subprocess.DEVNULL,
    )  # fmt: skip
    for descriptor in (theirs_in, theirs_out):
        os.close(descriptor)
    with open(orders, "wb", buffering=0) as writing, open(answers, "rb") as reading:  # noqa: PTH123 - descriptors
        try:
            yield Page(writing, reading, url)
        finally:
            process.terminate()
            process.wait(30)


def chromium(place: Path) -> list[str]:
    """The command, for a profile in `place`."""
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("chromium is not installed")
    return [found, *FLAGS, f"--user-data-dir={place}"]
