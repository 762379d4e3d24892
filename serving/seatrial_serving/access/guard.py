"""The guard: says who asks, or that nobody knows, and whether they may."""

import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from seatrial.errors import Forbidden, SeatrialError, Unauthenticated
from seatrial.settings import Access, Quota
from seatrial.watched import Watched
from seatrial_monitoring.series import Denial
from seatrial_serving.access import grants, keys
from seatrial_serving.access.caller import Act, Caller
from seatrial_serving.access.grants import ANY, CERTIFICATE, TOKEN, Grant
from seatrial_serving.access.quotas import Allowance
from seatrial_serving.access.tokens import Tokens, believing

SCHEME = b"bearer "
MOST_ALLOWANCES = 10_000
"""A caller whose allowance was forgotten starts with a full one."""

Headers = Iterable[tuple[bytes, bytes]]


def credential(headers: Headers) -> bytes:
    """The key or token that a request shows; empty for none, and where it shows several that differ."""
    shown = {value for name, value in headers if name == b"x-api-key"}
    for name, value in headers:
        if name == b"authorization" and value[: len(SCHEME)].lower() == SCHEME:
            shown.add(value[len(SCHEME) :].strip())
    return shown.pop() if len(shown) == 1 else b""


class Guard:
    """`denied` counts those that were turned away for who they are."""

    def __init__(
        self,
        settings: Access,
        tokens: Tokens | None = None,
        *,
        gateways: int = 1,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """One of so many `gateways`, each of which gives its share of a quota. `clock` tells the time of day, by which
        rights expire. Raises `InvalidSettings`."""
        assert settings.file is not None, "a guard without a file: this is a bug"
        self._quota, self._tokens, self._gateways, self._clock = settings.quota, tokens, gateways, clock
        self._book = Watched([settings.file], partial(Book, settings.file))
        self._allowances: dict[tuple[str, Quota], Allowance] = {}
        self.denied = dict.fromkeys(Denial, 0)

    def identify(self, shown: bytes, subjects: Sequence[str] = ()) -> Caller:
        """Who shows this key or token or, where that is empty, has a certificate with one of these names.

        Raises `Unauthenticated`; `NotReady` while an issuer's keys have not come.
        """
        if shown.startswith(keys.PREFIX):
            return self._by_key(shown)
        if not shown:
            return self._vouched([CERTIFICATE + subject for subject in subjects], CERTIFICATE)
        if self._tokens is None:
            raise Unauthenticated("this is no key of this server's")
        bearer = self._tokens.verify(shown)
        return self._vouched([TOKEN + value for value in bearer.values], TOKEN, name=TOKEN + bearer.subject)

    def turned_away(self, error: SeatrialError) -> None:
        """Count who could not be identified."""
        if isinstance(error, Unauthenticated):
            self.denied[Denial.UNAUTHENTICATED] += 1

    def check(self, caller: Caller, act: Act, model: str) -> None:
        """Raises `Forbidden`, and counts it."""
        if not caller.may(act, model):
            self.denied[Denial.FORBIDDEN] += 1
            raise Forbidden(f"'{caller.name}' may not {act} with the model {model!r} here")

    def _by_key(self, key: bytes) -> Caller:
        grant = self._book.current().by_key.get(keys.id_of(key))
        kept = grant.key if grant is not None and grant.key is not None else keys.NO_KEY
        if not kept.matches(key) or grant is None:
            raise Unauthenticated("this is no key of this server's; perhaps it was revoked")
        if not grant.holds(self._clock()):
            raise Unauthenticated(f"the key {grant.id} has expired")
        return self._caller(grant.name, [grant])

    def _vouched(self, names: Sequence[str], kind: str, *, name: str = "") -> Caller:
        """A caller whom somebody else vouches for under these names: with the rights of all of them."""
        book, now = self._book.current().by_name, self._clock()
        found = [each for known in names if (each := book.get(known)) is not None and each.holds(now)]
        if not found and names and (anybody := book.get(kind + ANY)) is not None and anybody.holds(now):
            found, name = [anybody], name or names[0]
        if not found:
            raise Unauthenticated(
                f"nobody here knows {', '.join(names)}"
                if names
                else "say who asks: `Authorization: Bearer KEY`, or `x-api-key: KEY`"
            )
        return self._caller(name or found[0].name, found)

    def _caller(self, name: str, found: Sequence[Grant]) -> Caller:
        return Caller(name=name, rights=tuple(each.right for each in found), allowance=self._allowance(name, found[0]))

    def _allowance(self, name: str, grant: Grant) -> Allowance:
        quota = self._quota
        if grant.requests_per_s or grant.rows_per_s:
            given = {"requests_per_s": grant.requests_per_s, "rows_per_s": grant.rows_per_s}
            quota = quota.model_copy(update={key: value for key, value in given.items() if value})
        known = self._allowances.get((name, quota))
        if known is None:
            if len(self._allowances) >= MOST_ALLOWANCES:
                del self._allowances[next(iter(self._allowances))]
            known = self._allowances[name, quota] = Allowance(quota, gateways=self._gateways)
        return known


@asynccontextmanager
async def guarding(settings: Access, *, gateways: int = 1) -> AsyncIterator[Guard | None]:
    """A guard while the block runs; None where nobody is asked. Raises `InvalidSettings` or `MissingExtra`."""
    if settings.file is None:
        yield None
        return
    async with believing(settings.tokens) as tokens:
        yield Guard(settings, tokens, gateways=gateways)


class Book:
    """The grants of a file, by what proves them."""

    def __init__(self, path: Path) -> None:
        """Raises `InvalidSettings`."""
        listed = grants.read(path).grants
        self.by_key = {each.id: each for each in listed if each.key is not None}
        self.by_name = {each.name: each for each in listed if each.key is None}
