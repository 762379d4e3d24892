"""The files that exports sent and steps made, each under its SHA-256. A file is whole or not there."""

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from seatrial.bundle.store import file_sha256
from seatrial.errors import DiskFull, MalformedRequest, TooLarge
from seatrial.files import kept_in, sweep, telling_of_full_disk
from seatrial_export.remote.wire import check_digest

SPARE_BYTES = 2**28
"""Room that is left to everybody else on the disk."""
AT_ONCE = 2**20


class Stream(Protocol):
    def read(self, size: int, /) -> bytes:
        """At most so many bytes, none at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Depot:
    """In `place`: files of at most `most_bytes`, together `keep_bytes` once nobody needs them any more."""

    place: Path
    most_bytes: int
    keep_bytes: int

    def has(self, digest: str) -> bool:
        return self._path(digest).is_file()

    def path(self, digest: str) -> Path:
        """Raises `MalformedRequest` where it is not there."""
        found = self._path(digest)
        if not found.is_file():
            raise MalformedRequest(f"there is no file {digest} here; send it first")
        os.utime(found)
        return found

    def put(self, digest: str, stream: Stream, *, length: int) -> None:
        """Take so many bytes from `stream`. Raises `TooLarge` and `DiskFull` before the first, `MalformedRequest` where fewer
        come or they are not what `digest` says; nothing of them stays."""
        target = self._path(digest)
        self._check_room(length)
        with self._aside() as aside:
            found = hashlib.sha256()
            with aside.open("wb") as file:
                while (missing := length - file.tell()) and (part := stream.read(min(AT_ONCE, missing))):
                    found.update(part)
                    file.write(part)
            if missing:
                raise MalformedRequest(f"{length - missing} of {length} bytes came")
            if found.hexdigest() != digest:
                raise MalformedRequest(
                    f"the bytes have the SHA-256 {found.hexdigest()}, not {digest}: they were changed"
                )
            self._keep(aside, target)

    def take(self, made: Path) -> str:
        """Move a file of ours in; its digest."""
        digest = file_sha256(made).removeprefix("sha256:")
        with telling_of_full_disk(self.place), self._aside() as aside:
            shutil.copyfile(made, aside)
            self._keep(aside, self._path(digest))
        return digest

    def lay(self, digest: str, target: Path) -> None:
        """Have the file at `target` too, which costs no room where the disk can do that."""
        origin = self.path(digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(origin, target)
        except OSError:
            shutil.copyfile(origin, target)

    def make_room(self) -> None:
        """Remove what was not wanted for longest, and what a killed upload left."""
        sweep(self.place, older_than_s=3600, now=time.time())
        room = self.keep_bytes
        for path in sorted(kept_in(self.place), key=lambda each: each.stat().st_mtime, reverse=True):
            room -= path.stat().st_size
            if room < 0:
                path.unlink()

    def _path(self, digest: str) -> Path:
        return self.place / check_digest(digest)

    def _check_room(self, length: int) -> None:
        if length > self.most_bytes:
            raise TooLarge(
                f"a file of {length / 1e6:.4g} MB; at most {self.most_bytes / 1e6:.4g} are taken (export.agent.file_mb)"
            )
        self.place.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.place).free - SPARE_BYTES
        if length > free:
            raise DiskFull(f"a file of {length / 1e6:.4g} MB; {max(0, free) / 1e6:.4g} are free on the agent's disk")

    @contextmanager
    def _aside(self) -> Iterator[Path]:
        self.place.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".new-", dir=self.place)
        os.close(handle)
        try:
            with telling_of_full_disk(self.place):
                yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)

    def _keep(self, aside: Path, target: Path) -> None:
        """For reading alone: a step whose library would write into it fails, and the file stays what its name says."""
        aside.chmod(0o444)
        aside.replace(target)
