"""Files that are whole or not there: written aside, synced, then renamed into place."""

import ctypes
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from seatrial.errors import DiskFull

_HERE, _EXCHANGE = -100, 2
"""Linux's AT_FDCWD and RENAME_EXCHANGE, which Python has not got."""


@contextmanager
def telling_of_full_disk(target: Path) -> Iterator[None]:
    """Turn "no space left" into a `DiskFull` that names `target` and says what to do; of several, the outermost is named."""
    try:
        yield
    except (OSError, DiskFull) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFull(
            f"no space left while writing {target}; nothing was kept of it. "
            "Free some space and run the same command again"
        ) from error


@contextmanager
def directory_aside(parent: Path) -> Iterator[Path]:
    """Yield a new directory in `parent` for `put_in_place`; whatever is still in it when the block ends is removed.

    A killed process leaves a `.new-*` directory, which `sweep` removes.
    """
    with telling_of_full_disk(parent):
        parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".new-", dir=parent))
        try:
            yield aside
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def put_in_place(aside: Path, target: Path, *, whole: Callable[[Path], bool] = lambda _: True) -> None:
    """Sync `aside` and rename it to `target`. One that is there already stays if it is `whole`; else the two change places."""
    _sync_tree(aside)
    aside.chmod(0o755)
    try:
        aside.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if not whole(target):
            _exchange(aside, target)
    _sync(target.parent)


def write_whole(target: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace the file `target` by `data`, so that a reader sees the old or the new content, never a part."""
    with telling_of_full_disk(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(prefix=".new-", dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(aside).chmod(mode)
            Path(aside).replace(target)
            _sync(target.parent)
        except BaseException:
            Path(aside).unlink(missing_ok=True)
            raise


def remove_tree(directory: Path) -> None:
    """Whoever looks at `directory` finds it whole, or not at all. Nothing happens where there is none."""
    with suppress(FileNotFoundError):
        aside = Path(tempfile.mkdtemp(prefix=".new-", dir=directory.parent))
        try:
            directory.rename(aside)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def kept_in(place: Path) -> list[Path]:
    """What was put in place there, whole."""
    return [path for path in place.glob("*") if not path.name.startswith(".new-")]


def tree_bytes(directory: Path) -> int:
    """What its files have; those that somebody removes meanwhile may be left out."""
    total = 0
    for path in directory.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def sweep(directory: Path, *, older_than_s: float, now: float) -> list[Path]:
    """Remove what a killed writer left in `directory`; `now` is wall-clock time, as the file system keeps it."""
    left = [path for path in directory.glob(".new-*") if now - path.stat().st_mtime > older_than_s]
    for path in left:
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    return left


def _exchange(one: Path, other: Path) -> None:
    """In one step, where the system can; else there is for an instant no `other`."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        failed = -1
    else:
        failed = rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE)
    if failed:
        aside = Path(tempfile.mkdtemp(prefix=".new-", dir=one.parent))
        other.rename(aside)
        one.rename(other)
        aside.rename(one)


def _sync_tree(directory: Path) -> None:
    for root, _, names in os.walk(directory):
        for name in names:
            _sync(Path(root, name))
        _sync(Path(root))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
