"""What an export and an agent say to each other, over HTTP/1.1: JSON, and files by their SHA-256.

GET    /v1/about            -> About
POST   /v1/leases           Holder -> Lease; 409 while somebody else has one
PUT    /v1/leases/ID        it is still wanted
DELETE /v1/leases/ID
HEAD   /v1/files/SHA256
PUT    /v1/files/SHA256     its bytes, and how many in Content-Length
GET    /v1/files/SHA256
POST   /v1/errands/LEASE    Errand -> a line for each Said and Alive, at last Done or Failed

Each request shows a bearer token, and in `CODE` which code it comes from: the two ends run the same or nothing. No path crosses
the wire: files are named by their content, in an errand by one plain word. Knows nothing of sockets.
"""

import ipaddress
import re
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias, TypeVar

import msgspec
import numpy as np

from seatrial import __version__
from seatrial.bundle.manifest import Hardware
from seatrial.errors import MalformedRequest
from seatrial.machine import Machine
from seatrial_export.samples import read_arrays, write_arrays
from seatrial_export.shelf import our_code

CODE = "seatrial-code"
BEAT_S = 5.0
"""An errand says at least so often that it is alive."""
SAID = "said.txt"
"""In an errand's folder: what its child says meanwhile, a line each."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_VALUE = "value"

T = TypeVar("T")


class About(msgspec.Struct, frozen=True, kw_only=True):
    """`obstacles` says for each target that cannot run there why; `hardware` what machine code would be bound to, by engine."""

    machine: Machine
    tools: dict[str, str]
    obstacles: dict[str, str]
    hardware: dict[str, Hardware]


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """Who wants the agent, in words for whoever else wants it."""

    name: str


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """The agent is its holder's alone as long as it is used, or renewed, within every `lasts_s`."""

    id: str
    lasts_s: float


class Errand(msgspec.Struct, frozen=True, kw_only=True):
    """A step, for a child of the agent. `files` and `bundles` lie in its folder, by the names that its job uses; of a bundle the
    digest is that of its manifest, which names the others."""

    step: str
    job: msgspec.Raw
    files: dict[str, str] = {}
    bundles: dict[str, str] = {}


class Said(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    words: str


class Alive(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    pass


class Done(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """`files` are those that the step made, by name."""

    answer: msgspec.Raw
    files: dict[str, str]


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """How its child ended; `log` is the end of what it wrote."""

    reason: str
    log: str


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    message: str


Event: TypeAlias = Said | Alive | Done | Failed


def code() -> str:
    """Of this end."""
    return f"{__version__}+{our_code()[:16]}"


def is_this_machine(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    return host == "localhost"


def check_digest(digest: str) -> str:
    """Raises `MalformedRequest`."""
    if not _DIGEST.fullmatch(digest):
        raise MalformedRequest(
            f"{digest[:100]!r} is no SHA-256 of a file: 64 lower-case hexadecimal digits are expected"
        )
    return digest


def check_name(name: str) -> str:
    """Raises `MalformedRequest` for what is not one plain word, and so may be a path."""
    if not _NAME.fullmatch(name):
        raise MalformedRequest(f"{name[:100]!r} is no name of a file in an errand: letters, digits, '.', '_' and '-'")
    return name


def pack(value: object, path: Path) -> None:
    """Write anything that is made of structs, dataclasses, numbers, words and arrays."""
    arrays: dict[str, np.ndarray] = {}

    def keep(found: object) -> object:
        if isinstance(found, np.generic):
            return found.item()
        if not isinstance(found, np.ndarray):
            raise NotImplementedError(f"{type(found)} cannot be packed: this is a bug")
        arrays[name := f"{len(arrays)}"] = found
        return name

    words = msgspec.json.encode(value, enc_hook=keep)
    write_arrays(path, {**arrays, _VALUE: np.frombuffer(words, np.uint8)})


def unpack(path: Path, kind: type[T]) -> T:
    """Raises `MalformedRequest` where `path` holds no such value; nothing in it is run or unpickled."""
    arrays = read_arrays(path)

    def take(_: type, name: object) -> object:
        return arrays[str(name)]

    try:
        return msgspec.json.decode(arrays[_VALUE].tobytes(), type=kind, dec_hook=take)
    except (KeyError, msgspec.MsgspecError) as error:
        raise MalformedRequest(f"{path.name} holds no {kind.__name__}: {error}") from error
