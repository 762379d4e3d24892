"""Bundles in the local store that nobody needs any more, and the hold that a server has on those that it serves.

Needed is what an alias of the registry points at, what a reference that was served from this store meant last, what a
running server holds, and what was written or asked for a short while ago: somebody may be about to serve it.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from seatrial.bundle.store import open_bundle
from seatrial.errors import BundleCorrupt


class Hold:
    """While it is not released, and the process lives, nobody removes the directory."""

    def __init__(self, directory: Path) -> None:
        """Raises `BundleCorrupt` where it is being removed at this moment. A file system without locks has no holds."""
        self._descriptor = os.open(directory, os.O_RDONLY)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise BundleCorrupt(f"{directory} is being removed, by `seatrial gc`; it will be fetched again") from None
        except OSError:
            pass

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A bundle in the store. `needed` says by whom; it is empty for one that nobody needs."""

    path: Path
    model: str
    size_bytes: int
    needed: str

    def remove(self) -> bool:
        """False where somebody has taken hold of it meanwhile, or it is gone."""
        with _alone(self.path) as free:
            if free:
                aside = tempfile.mkdtemp(prefix=".new-", dir=self.path.parent)
                self.path.rename(aside)
                shutil.rmtree(aside, ignore_errors=True)
                shutil.rmtree(built_for(self.path), ignore_errors=True)
            return free


def built_for(bundle: Path) -> Path:
    """Where an engine keeps what it built from `bundle` on this machine."""
    return bundle.with_name(f".built-{bundle.name}")


def survey(store: Path, needed: Mapping[str, str], *, unused_for_s: float, now: float) -> Iterator[Stored]:
    """Every bundle in `store`. `needed` says by whom, by digest; `now` is wall-clock time, as the file system keeps it."""
    for path in sorted(store.glob("sha256-*")):
        try:
            age_s = now - path.stat().st_mtime
            by = needed.get(path.name.replace("-", ":", 1), "")
            if not by and age_s < unused_for_s:
                by = f"written or asked for {age_s / 60:.0f} minutes ago"
            if not by:
                with _alone(path) as free:
                    by = "" if free else "a running server"
            yield Stored(path=path, model=_model(path), size_bytes=_size_bytes(path), needed=by)
        except FileNotFoundError:
            continue  # somebody else removes it


@contextmanager
def _alone(directory: Path) -> Iterator[bool]:
    """Whether nobody holds `directory`; then nobody can until the block ends."""
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        free = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            free = False
        yield free
    finally:
        os.close(descriptor)


def _model(path: Path) -> str:
    with suppress(BundleCorrupt):
        model = open_bundle(path).manifest.model
        return f"{model.name}/{model.version}"
    return "unreadable"


def _size_bytes(path: Path) -> int:
    places = (path, built_for(path))
    return sum(file.stat().st_size for place in places for file in place.rglob("*") if file.is_file())
