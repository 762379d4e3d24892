"""The child process that asks the registry so that a server need not: `python -m seatrial.registry.watch NAME@ALIAS …`

Resolves each reference, fetches its bundle into the store, and prints one JSON line per change, plus one per poll so
that its reader knows the age of the last answer. Ends when its reader has gone. Before the registry has answered for
the first time, what it answered last (in an earlier life) is told, marked `remembered`.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from seatrial.bundle.store import directory_name
from seatrial.errors import BundleCorrupt, DiskFull, MissingExtra, NotInRegistry, RegistryUnreachable, SeatrialError
from seatrial.files import write_whole
from seatrial.registry import BUNDLE_TAG, ModelRef, ModelVersion, Registry, open_registry
from seatrial.registry.bundles import fetch_fitting
from seatrial.registry.events import Answered, Event, Resolved, Unresolved, encode
from seatrial.settings import Settings, load_settings

AT_LEISURE = 10
"""Niceness after the first poll: from then on, nobody waits for it, and others are to be answered meanwhile."""


class Memory:
    """What references last resolved to, one file each beside the bundles, for a start without a registry."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def of(cls, settings: Settings) -> "Memory":
        return cls(settings.bundles / "resolved")

    def recall(self, ref: ModelRef) -> Resolved | None:
        try:
            resolved = msgspec.json.decode(self._file(ref).read_bytes(), type=Resolved)
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError as error:
            raise BundleCorrupt(
                f"{self._file(ref)} cannot be read ({error}); delete it, it is only a memory"
            ) from error
        return msgspec.structs.replace(resolved, remembered=True)

    def all(self) -> Iterator[Resolved]:
        """As far as they can be read."""
        for file in sorted(self._folder.glob("*.json")):
            with suppress(OSError, msgspec.MsgspecError):
                yield msgspec.json.decode(file.read_bytes(), type=Resolved)

    def keep(self, ref: ModelRef, resolved: Resolved) -> None:
        write_whole(self._file(ref), msgspec.json.encode(resolved))

    def _file(self, ref: ModelRef) -> Path:
        return self._folder / f"{str(ref).replace('/', '_')}.json"


class Watcher:
    """Asks once per `poll` and tells what changed since the poll before. Owns the registry that it opens."""

    def __init__(self, refs: Sequence[ModelRef], settings: Settings) -> None:
        self._refs, self._settings = refs, settings
        self._registry: Registry | None = None
        self._memory = Memory.of(settings)
        self._told: dict[ModelRef, Event] = {}
        self._seen: dict[ModelRef, tuple[str | None, ...]] = {}

    def poll(self) -> list[Event]:
        events: list[Event] = []
        answered = True
        for ref in self._refs:
            try:
                event: Event = self._resolve(ref)
            except (RegistryUnreachable, MissingExtra) as error:
                answered = False
                event = self._without_registry(ref, str(error))
            except (NotInRegistry, BundleCorrupt, DiskFull) as error:
                event = Unresolved(ref=str(ref), reason=str(error))
            if event != self._told.get(ref):
                self._told[ref] = event
                events.append(event)
        return [*events, Answered()] if answered else events

    def close(self) -> None:
        if self._registry is not None:
            self._registry.close()

    def _resolve(self, ref: ModelRef) -> Resolved:
        if self._registry is None:
            self._registry = open_registry(self._settings)
        version = self._registry.resolve(ref)
        told, exported = self._told.get(ref), self._exported(version)
        if isinstance(told, Resolved) and not told.remembered and self._seen.get(ref) == exported:
            here = Path(told.path).is_dir()  # unless somebody removed it
            return told if here else self._fetch(ref, version)
        resolved = self._fetch(ref, version)
        self._seen[ref] = exported
        return resolved

    def _exported(self, version: ModelVersion) -> tuple[str | None, ...]:
        """All that decides which bundle is served."""
        return tuple(version.tags.get(BUNDLE_TAG + target) for target in self._settings.registry.targets)

    def _fetch(self, ref: ModelRef, version: ModelVersion) -> Resolved:
        assert self._registry is not None, "resolved without a registry: this is a bug"
        bundle = fetch_fitting(
            self._registry, version, targets=self._settings.registry.targets, store=self._settings.bundles
        )
        resolved = Resolved(
            ref=str(ref), name=version.name, version=version.version, digest=bundle.digest, path=str(bundle.path)
        )
        self._memory.keep(ref, resolved)
        return resolved

    def _without_registry(self, ref: ModelRef, reason: str) -> Event:
        """The last known version goes on; a first start uses what an earlier one was told, if its bundle is here."""
        if (told := self._told.get(ref)) is not None and isinstance(told, Resolved):
            return told
        remembered = self._memory.recall(ref)
        if remembered and (self._settings.bundles / directory_name(remembered.digest)).is_dir():
            return remembered
        return Unresolved(ref=str(ref), reason=reason)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m seatrial.registry.watch", description=__doc__)
    parser.add_argument("ref", nargs="+", type=ModelRef.parse, help="NAME@ALIAS or NAME/VERSION")
    refs: list[ModelRef] = parser.parse_args(arguments).ref
    settings = load_settings()
    watcher = Watcher(refs, settings)
    try:
        while True:
            started = time.monotonic()
            for event in watcher.poll():
                sys.stdout.buffer.write(encode(event))
            sys.stdout.buffer.flush()
            if not os.getpriority(os.PRIO_PROCESS, 0):
                os.nice(AT_LEISURE)
            time.sleep(max(0.0, settings.registry.poll_s - (time.monotonic() - started)))
    except (BrokenPipeError, KeyboardInterrupt):
        sys.stderr.close()
    except SeatrialError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
