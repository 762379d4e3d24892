"""Disks without room, and files that keep their readers waiting."""

import fcntl
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

F_SETSIG = 10
"""fcntl(2)"""


@contextmanager
def small_disk(place: Path, *, kib: int) -> Iterator[Path]:
    """A file system of its own at `place`, of so many KiB. Skips where this process may not mount one."""
    place.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(place)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"mounting a file system takes rights that this process has not: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@contextmanager
def kept_shut(file: Path) -> Iterator[None]:
    """Whoever opens `file` waits until the block ends, or for 45 s: it has a lease, fcntl(2)."""
    with file.open("rb") as leased:
        fcntl.fcntl(leased, F_SETSIG, signal.SIGURG)  # which nobody heeds; the usual one would end us
        fcntl.fcntl(leased, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        yield
