"""What the watcher child tells the server that started it: one JSON line each."""

from typing import TypeAlias

import msgspec

from seatrial.errors import Broken


class Resolved(msgspec.Struct, frozen=True, kw_only=True, tag="resolved"):
    """`ref` now means this version, and its bundle lies at `path`.

    `remembered` says that the registry was not asked: it is what an earlier watcher was told.
    """

    ref: str
    name: str
    version: str
    digest: str
    path: str
    remembered: bool = False


class Unresolved(msgspec.Struct, frozen=True, kw_only=True, tag="unresolved"):
    """`ref` has no bundle that could be served, with the reason. What is served already stays."""

    ref: str
    reason: str


class Answered(msgspec.Struct, frozen=True, tag="answered"):
    """The registry answered just now."""


Event: TypeAlias = Resolved | Unresolved | Answered


def encode(event: Event) -> bytes:
    return msgspec.json.encode(event) + b"\n"


def decode(line: bytes) -> Event:
    try:
        event: Event = msgspec.json.decode(line, type=Event)
    except msgspec.MsgspecError as error:
        raise Broken(f"the registry watcher said {line[:200]!r}: {error}") from error
    return event
