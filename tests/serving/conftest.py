import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from seatrial_serving.fork_server import ADOPT_ORPHANS
from seatrial_serving.workers import Load


@pytest.fixture(autouse=True)
def _no_orphans_here() -> Iterator[None]:
    """A process with a fork server adopts orphans for good: a test after it would take those of its own killed servers for
    children."""
    yield
    ctypes.CDLL(None).prctl(ADOPT_ORPHANS, 0, 0, 0, 0)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """Async tests run on the event loop that the server runs on."""
    return "asyncio", {"use_uvloop": True}


def load(path: Path, digest: str = "", *, start_s: float = 60.0) -> Load:
    return Load(path=path, digest=digest, threads=1, warm_up=(1,), start_s=start_s)
