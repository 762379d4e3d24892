"""The files that data sets are made of: found in the data folder, fetched where absent, never used unchecked.

A file is known by its digest alone. One with another content is refused, whoever put it there: figures that were measured
on other rows could not be compared with anybody's.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import httpx

from seatrial.errors import DataMissing
from seatrial.files import write_whole

TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFile:
    """`sha256` in hexadecimal. `home` is the address it is published at; without one, `origin` says how to come by it."""

    name: str
    sha256: str
    origin: str
    home: str | None = None


def read(file: DataFile, folder: Path) -> bytes:
    """The content of `file`, which is fetched into `folder` if it is not there. Raises `DataMissing`."""
    path = folder / file.name
    if not path.exists():
        return _fetch(file, path)
    content = path.read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != file.sha256:
        raise DataMissing(
            f"{path} is not the file that recipes were measured on: it has {len(content):,} bytes and SHA-256 {found}, "
            f"expected {file.sha256}. Remove it, then {_how_to_come_by(file, path)}"
        )
    return content


def _fetch(file: DataFile, path: Path) -> bytes:
    if file.home is None:
        raise DataMissing(f"there is no {path}: {_how_to_come_by(file, path)}")
    try:
        answer = httpx.get(file.home, follow_redirects=True, timeout=TIMEOUT_S).raise_for_status()
    except httpx.HTTPError as error:
        raise DataMissing(
            f"there is no {path}, and it cannot be fetched from {file.home} ({error}): {_how_to_come_by(file, path)}"
        ) from error
    if (found := hashlib.sha256(answer.content).hexdigest()) != file.sha256:
        raise DataMissing(
            f"there is no {path}, and what {file.home} gives now has SHA-256 {found}, expected {file.sha256}: "
            f"{_how_to_come_by(file, path)}"
        )
    write_whole(path, answer.content)
    return answer.content


def _how_to_come_by(file: DataFile, path: Path) -> str:
    return f"put {file.origin} (SHA-256 {file.sha256}) at {path}, or let SEATRIAL_DATA name the folder that holds {file.name}"
