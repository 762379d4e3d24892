"""The file that says who may do what: written by `seatrial keys`, read by servers.

A grant belongs to a key, or to a name that somebody else vouches for: `certificate:NAME` for a client certificate with that
name, `token:VALUE` for a token whose claim holds that value; `*` in place of either is any that is valid.
"""

import fcntl
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from seatrial.errors import InvalidSettings, Misused
from seatrial.files import write_whole
from seatrial_serving.access import keys
from seatrial_serving.access.caller import Act, Right

CERTIFICATE, TOKEN, ANY = "certificate:", "token:", "*"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,99}")
VOUCHED = re.compile(r"(certificate|token):.{1,500}")


class Grant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Times are seconds since 1970. `key` is there where a key proves who asks."""

    id: str
    name: str
    acts: tuple[Act, ...]
    models: tuple[str, ...]
    created: float
    expires: float | None = None
    requests_per_s: float | None = None
    rows_per_s: float | None = None
    key: keys.Hash | None = None

    @property
    def right(self) -> Right:
        return Right(acts=frozenset(self.acts), models=self.models)

    def holds(self, now: float) -> bool:
        return self.expires is None or now < self.expires


class Grants(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: int = 1
    grants: tuple[Grant, ...] = ()


def read(path: Path) -> Grants:
    """Raises `InvalidSettings`."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Grants)
    except FileNotFoundError:
        raise InvalidSettings(f"there is no {path} (serving.access.file); `seatrial keys create` makes it") from None
    except (OSError, msgspec.MsgspecError) as error:
        raise InvalidSettings(f"{path} does not say who may do what: {error}") from error


def add(path: Path, grant: Grant) -> None:
    with _changing(path) as grants:
        if grant.key is None and any(each.name == grant.name for each in grants):
            raise Misused(f"'{grant.name}' has rights already; revoke them first: `seatrial keys list` says their id")
        grants.append(grant)


def remove(path: Path, number: str) -> Grant:
    """Raises `Misused` where there is no grant with that id."""
    with _changing(path) as grants:
        for grant in grants:
            if grant.id == number:
                grants.remove(grant)
                return grant
        raise Misused(f"there is no {number!r} in {path}; there are {[grant.id for grant in grants] or 'none'}")


def grant(
    name: str,
    *,
    acts: Sequence[str],
    models: Sequence[str],
    lasts_s: float | None,
    requests_per_s: float | None,
    rows_per_s: float | None,
) -> tuple[Grant, str]:
    """A new grant, and the key that proves it; empty where somebody else vouches for `name`. Raises `Misused`."""
    vouched = VOUCHED.fullmatch(name)
    if not vouched and not NAME.fullmatch(name):
        raise Misused(f"{name!r} cannot be a caller's name; take letters, digits, '_', '.', '@', '-'")
    number, key, kept = keys.make()
    now = time.time()
    made = Grant(
        id=number,
        name=name,
        acts=tuple(Act(act) for act in acts),
        models=tuple(models),
        created=now,
        expires=None if lasts_s is None else now + lasts_s,
        requests_per_s=requests_per_s,
        rows_per_s=rows_per_s,
        key=None if vouched else kept,
    )
    return made, "" if vouched else key


@contextmanager
def _changing(path: Path) -> Iterator[list[Grant]]:
    """The grants, for changing; written when the block ends well. One process at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        grants = list(read(path).grants) if path.exists() else []
        yield grants
        whole = msgspec.json.encode(Grants(grants=tuple(grants)))
        write_whole(path, msgspec.json.format(whole) + b"\n", mode=0o600)
    finally:
        os.close(folder)
