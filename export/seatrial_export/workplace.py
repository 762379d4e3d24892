"""The folder in which one model version is exported: one export at a time, emptied when the next begins.

Exports of different versions may run side by side, but they take turns at measuring.
"""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from seatrial.errors import Misused
from seatrial.files import telling_of_full_disk
from seatrial.registry import ModelVersion


@contextmanager
def workplace(home: Path, version: ModelVersion) -> Iterator[Path]:
    """An empty folder below `home`, ours until the block ends. What is in it stays, for commands to be run again.

    Raises `Misused` while another process exports the same version; the lock of one that was killed is free.
    """
    place = home.absolute() / "export" / f"{version.name}-{version.version}"
    place.parent.mkdir(parents=True, exist_ok=True)
    with telling_of_full_disk(place), place.with_name(f"{place.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Misused(f"{version} is being exported by another process in {place}; wait until it ends") from error
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        yield place


@contextmanager
def undisturbed(home: Path) -> Iterator[None]:
    """Hold, for measuring, the lock that all exports from `home` share; waits while another one measures."""
    lock_file = home.absolute() / "export" / "measuring.lock"
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    with lock_file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
