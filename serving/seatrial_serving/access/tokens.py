"""JSON Web Tokens: believed if the issuer that the settings name signed them for us, and they hold now.

Only signatures with a public key are believed, and which ones the settings say, never the token. Source: RFC 7519 (JWT),
RFC 7517 (keys), RFC 8725 (what goes wrong).
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec

from seatrial.errors import InvalidSettings, MissingExtra, NotReady, Unauthenticated
from seatrial.settings import Tokens as TokenSettings
from seatrial.watched import Watched

if TYPE_CHECKING:
    import httpx

LONGEST = 16 * 1024
MOST_KNOWN = 4096
"""Tokens that were verified and need not be again."""
LARGEST_KEYS = 2**20
KINDS = ("RSA", "EC", "OKP")
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 1.0, 60.0
FETCH_S = 5.0

log = logging.getLogger(__name__)


class Bearer(NamedTuple):
    """Whom a token speaks of: `values` are those of the claim that rights go by."""

    subject: str
    values: tuple[str, ...]
    expires: float


class Key(NamedTuple):
    public: Any
    algorithm: str | None
    """The only one that it is for, if it says so."""


Keys = Mapping[str, Key]
"""By id; the id of a key that has none is empty."""


class KeySource(Protocol):
    def current(self) -> Keys:
        """The same object until they change. Raises `NotReady` where they have not come yet."""

    def missed(self) -> None:
        """A token named a key that is not there."""


class Tokens:
    def __init__(self, settings: TokenSettings, keys: KeySource, *, clock: Callable[[], float] = time.time) -> None:
        """`clock` tells the time of day, as tokens do."""
        self._settings, self._keys, self._clock = settings, keys, clock
        self._known: dict[bytes, Bearer] = {}
        self._known_by: Keys = {}

    def verify(self, token: bytes) -> Bearer:
        """Raises `Unauthenticated`, or `NotReady` while there are no keys."""
        keys = self._keys.current()
        if keys is not self._known_by:
            self._known, self._known_by = {}, keys
        bearer = self._known.get(token)
        if bearer is None:
            bearer = self._read(token, keys)
            if len(self._known) >= MOST_KNOWN:
                del self._known[next(iter(self._known))]
            self._known[token] = bearer
        elif self._clock() > bearer.expires + self._settings.leeway_s:
            raise Unauthenticated("the token has expired")
        return bearer

    def _read(self, token: bytes, keys: Keys) -> Bearer:
        import jwt

        if len(token) > LONGEST:
            raise Unauthenticated(f"a token of {len(token)} bytes; {LONGEST} is the most")
        settings = self._settings
        try:
            key = self._key(jwt.get_unverified_header(token), keys)
            claims = jwt.decode(
                token,
                key.public,
                algorithms=[key.algorithm] if key.algorithm else list(settings.algorithms),
                audience=settings.audience,
                issuer=settings.issuer,
                leeway=settings.leeway_s,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
            raise Unauthenticated(f"the token does not hold: {error}") from error
        given = claims.get(settings.claim, ())
        values = given if isinstance(given, list) else [given]
        return Bearer(claims["sub"], tuple(value for value in values if isinstance(value, str)), float(claims["exp"]))

    def _key(self, header: Mapping[str, Any], keys: Keys) -> Key:
        if "crit" in header:
            raise Unauthenticated("the token demands what is not understood here (crit)")
        number = header.get("kid", "")
        key = next(iter(keys.values())) if not number and len(keys) == 1 else keys.get(number)
        if key is None:
            self._keys.missed()
            raise Unauthenticated("the token is signed with a key that its issuer is not known to have")
        if key.algorithm and key.algorithm not in self._settings.algorithms:
            raise Unauthenticated(f"the token's key is for {key.algorithm}, which is not believed here")
        return key


class FiledKeys(Watched[Keys]):
    def missed(self) -> None:
        """The file is looked at anyway."""


class PublishedKeys:
    """Fetched from an address every so often, and sooner where a token names one that is not there."""

    def __init__(self, address: str, *, refresh_s: float) -> None:
        self._address, self._refresh_s = address, refresh_s
        self._keys: Keys | None = None
        self._wanted = asyncio.Event()

    def current(self) -> Keys:
        if self._keys is None:
            raise NotReady(f"the keys of the tokens' issuer have not come from {self._address} yet")
        return self._keys

    def missed(self) -> None:
        self._wanted.set()

    async def keep(self) -> None:
        """Fetch them for ever. What was known holds while they cannot be fetched."""
        import httpx

        backoff_s = FIRST_BACKOFF_S
        async with httpx.AsyncClient(timeout=FETCH_S) as client:
            while True:
                try:
                    fetched = parse(await self._fetch(client), where=self._address)
                except (httpx.HTTPError, TimeoutError, InvalidSettings) as error:
                    log.warning("the keys of the tokens' issuer did not come: %s; again in %g s", error, backoff_s)
                    await asyncio.sleep(backoff_s)
                    backoff_s = min(2 * backoff_s, LONGEST_BACKOFF_S)
                    continue
                backoff_s = FIRST_BACKOFF_S
                if self._keys is None or fetched.keys() != self._keys.keys():
                    log.info("the tokens' issuer has the keys %s", sorted(fetched))
                self._keys = fetched
                await asyncio.sleep(FIRST_BACKOFF_S)  # whatever tokens name, the issuer is not asked more often
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wanted.wait(), self._refresh_s)
                self._wanted.clear()

    async def _fetch(self, client: "httpx.AsyncClient") -> bytes:
        body = b""
        async with asyncio.timeout(2 * FETCH_S), client.stream("GET", self._address) as answer:
            answer.raise_for_status()
            async for part in answer.aiter_bytes():
                body += part
                if len(body) > LARGEST_KEYS:
                    raise InvalidSettings(f"{self._address} sends more than {LARGEST_KEYS} bytes")
        return body


def parse(document: bytes, *, where: str) -> Keys:
    """The public keys of a JWKS that can sign; what else is in it is left out. Raises `InvalidSettings`."""
    import jwt

    try:
        listed = msgspec.json.decode(document)["keys"]
        usable = [each for each in listed if each.get("kty") in KINDS and each.get("use", "sig") == "sig"]
    except (msgspec.MsgspecError, LookupError, TypeError, AttributeError) as error:
        raise InvalidSettings(f"{where} (serving.access.tokens.keys) is no set of keys: {error}") from error
    keys = {}
    for each in usable:
        with contextlib.suppress(jwt.PyJWTError, ValueError, TypeError):
            if "d" not in each:  # which would be the private half
                keys[str(each.get("kid", ""))] = Key(jwt.PyJWK(each).key, each.get("alg"))
    if not keys:
        raise InvalidSettings(f"{where} (serving.access.tokens.keys) has no public key for signatures")
    return keys


@contextlib.asynccontextmanager
async def believing(settings: TokenSettings) -> AsyncIterator[Tokens | None]:
    """What verifies tokens while the block runs; None where none are taken. Raises `InvalidSettings` or `MissingExtra`."""
    if settings.keys is None:
        yield None
        return
    try:
        import jwt.algorithms
    except ModuleNotFoundError as missing:
        raise MissingExtra("PyJWT", extra="oidc") from missing
    if not jwt.algorithms.has_crypto:
        raise MissingExtra("cryptography", extra="oidc")
    if settings.keys.startswith("/"):
        path = Path(settings.keys)
        yield Tokens(settings, FiledKeys([path], partial(_parse_file, path)))
        return
    published = PublishedKeys(settings.keys, refresh_s=settings.refresh_s)
    keeping = asyncio.create_task(published.keep())
    try:
        yield Tokens(settings, published)
    finally:
        keeping.cancel()


def _parse_file(path: Path) -> Keys:
    try:
        return parse(path.read_bytes(), where=str(path))
    except OSError as error:
        raise InvalidSettings(f"{path} (serving.access.tokens.keys) cannot be read: {error}") from error
