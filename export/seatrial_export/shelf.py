"""What earlier exports made and proved, kept below the home for the next one that would do the same.

A child's folder, or a proof, is kept under the digest of all that decides what is in it: its job with the content of every file
that it names, our own code, the versions of the tools, the machine. No timing of a variant is ever kept. What has not been
wanted for longest goes when there is no room.
"""

import functools
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from seatrial.bundle.manifest import Hardware
from seatrial.bundle.store import file_sha256
from seatrial.errors import ConversionFailed, DiskFull
from seatrial.files import directory_aside, kept_in, put_in_place, remove_tree, tree_bytes
from seatrial.machine import this_machine
from seatrial.settings import Settings
from seatrial_export import child
from seatrial_export.child import Bound, Limits
from seatrial_export.tools import tools
from seatrial_training.data import Dataset

OUR_CODE = ("seatrial", "seatrial_models", "seatrial_training", "seatrial_serving.engines", "seatrial_export")

REMEMBERED, NOTES, KERNEL_TIMINGS = "value.json", "notes.jsonl", "timings.cache"

Answer = TypeVar("Answer", bound=msgspec.Struct)
Remembered = TypeVar("Remembered")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shelf:
    """At most `most_bytes` in `place`. `known` are the digests of places that a job names and that nobody reads as a whole."""

    place: Path
    most_bytes: int
    known: Mapping[str, str]

    @staticmethod
    def of(settings: Settings, dataset: Dataset | None) -> "Shelf":
        data = dataset.digest if dataset else ""
        places = settings.home.absolute(), settings.data_folder.absolute()
        return Shelf(
            place=settings.conversions,
            most_bytes=int(settings.export.keep_mb * 1e6),
            known={str(place): data for place in places},
        )

    def run(
        self,
        module: str,
        job: msgspec.Struct,
        *,
        folder: Path,
        answer: type[Answer],
        limits: Limits,
        given_up: threading.Event,
    ) -> Answer:
        """As `child.run`, where it has not been done before. Afterwards the same files lie in `folder`.

        An answer that was cut short is not kept: how long a child may take decides nothing about what is.
        """
        if not self.most_bytes:
            return child.run(module, job, folder=folder, answer=answer, limits=limits, given_up=given_up)
        kept = self.place / self.key(module, job=self._decisive(job, folder), given=_tree(folder))
        with suppress(OSError, ConversionFailed):  # it is not there, or somebody is removing it, or it is broken
            shutil.copytree(kept, folder, dirs_exist_ok=True)
            os.utime(kept)
            return child.answer_in(folder, answer)
        remove_tree(kept)
        found = child.run(module, job, folder=folder, answer=answer, limits=limits, given_up=given_up)
        if not isinstance(found, Bound) or found.whole:
            self._keep(folder, kept)
        return found

    def notes(self, module: str, about: msgspec.Struct) -> Path:
        """A file for a child to write down what it finds, as it finds it: it is there still where both of us are killed."""
        place = self.place / self.key(f"notes of {module}", about=self._content(msgspec.to_builtins(about), self.place))
        place.mkdir(parents=True, exist_ok=True)
        os.utime(place)
        return place / NOTES

    def kernel_timings(self, hardware: Hardware) -> Path:
        """A file, empty at first, for how long the kernels of a library took on a GPU: no code of ours decides about that."""
        decides = json.dumps(["kernel timings", msgspec.to_builtins(hardware)], sort_keys=True)
        place = self.place / hashlib.sha256(decides.encode()).hexdigest()
        place.mkdir(parents=True, exist_ok=True)
        os.utime(place)
        path = place / KERNEL_TIMINGS
        path.touch()
        return path

    def key(self, what: str, **decides: object) -> str:
        """The digest of `decides` and of all that decides besides."""
        besides = {
            "code": our_code(),
            "tools": tools(),
            "python": platform.python_version(),
            "machine": msgspec.to_builtins(this_machine()),
        }
        return hashlib.sha256(json.dumps([what, decides, besides], sort_keys=True).encode()).hexdigest()

    def recall(self, key: str, kind: type[Remembered]) -> Remembered | None:
        """None where it is not known, or is not whole."""
        kept = self.place / key
        with suppress(OSError, msgspec.MsgspecError):
            found = msgspec.json.decode((kept / REMEMBERED).read_bytes(), type=kind)
            os.utime(kept)
            return found
        remove_tree(kept)
        return None

    def remember(self, key: str, value: object) -> None:
        if self.most_bytes:
            with suppress(OSError, DiskFull), directory_aside(self.place) as aside:
                (aside / REMEMBERED).write_bytes(msgspec.json.encode(value))
                put_in_place(aside, self.place / key)

    def _decisive(self, job: msgspec.Struct, folder: Path) -> object:
        content = self._content(msgspec.to_builtins(job), folder)
        assert isinstance(content, dict), "a job is a struct: this is a bug"
        return {name: value for name, value in content.items() if name != "for_s"}

    def _content(self, value: object, folder: Path) -> object:
        """`value`, with what lies at a path in the path's stead; of one in `folder` that is not there yet, its name."""
        if isinstance(value, dict):
            return {key: self._content(each, folder) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self._content(each, folder) for each in value]
        if not (isinstance(value, str) and value.startswith("/")):
            return value
        if value in self.known:
            return self.known[value]
        path = Path(value)
        for known in (folder, self.place):  # what is on the shelf is named by what decided about it
            if path.is_relative_to(known):
                return path.relative_to(known).as_posix()
        return _tree(path) if path.is_dir() else file_sha256(path) if path.is_file() else value

    def _keep(self, folder: Path, kept: Path) -> None:
        """A disk that is full keeps nothing, and is told by whoever needs the room."""
        if tree_bytes(folder) > self.most_bytes:
            return
        with suppress(OSError, DiskFull), directory_aside(self.place) as aside:
            shutil.copytree(folder, aside, dirs_exist_ok=True)
            put_in_place(aside, kept)
            self._make_room()

    def _make_room(self) -> None:
        newest_first = sorted(kept_in(self.place), key=lambda path: path.stat().st_mtime, reverse=True)
        room = self.most_bytes
        for path in newest_first:
            room -= tree_bytes(path)
            if room < 0:
                remove_tree(path)


def _tree(folder: Path) -> dict[str, str]:
    """The digests of all files in `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}


@functools.cache
def our_code() -> str:
    """Of all that may take part in a conversion: another version of it may make something else."""
    found = hashlib.sha256()
    for package in OUR_CODE:
        spec = importlib.util.find_spec(package)
        assert spec is not None, f"{package} is imported and cannot be found: this is a bug"
        for folder in spec.submodule_search_locations or ():
            for name, digest in _tree_of_code(Path(folder)):
                found.update(f"{package}/{name} {digest}\n".encode())
    return found.hexdigest()


def _tree_of_code(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.rglob("*.py")):
        yield path.relative_to(folder).as_posix(), file_sha256(path)
