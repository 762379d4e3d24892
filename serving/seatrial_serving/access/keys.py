"""API keys: made once, shown once, and kept as a hash.

A key is `seatrial_ID_SECRET`. The prefix lets scanners find one that leaked, the id says which it is, so that it can be
revoked by whoever found it. The secret is 256 random bits, so one round of SHA-256 is enough: what slow hashes are for,
guessing what a person may have chosen, has nothing to guess here. The salt keeps equal keys from looking equal.
"""

import hashlib
import hmac
import secrets

import msgspec

PREFIX = b"seatrial_"
SECRET_BYTES = 32


class Hash(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    salt: str
    sha256: str

    def matches(self, key: bytes) -> bool:
        """Takes as long for a key that is nearly right as for any other."""
        return hmac.compare_digest(_hashed(key, self.salt), self.sha256)


NO_KEY = Hash(salt="", sha256="0" * 64)
"""What a key with an unknown id is compared with, so that it takes no less time."""


def make() -> tuple[str, str, Hash]:
    """An id, a new key with that id, and what is kept of it."""
    number, salt = secrets.token_hex(6), secrets.token_hex(16)
    key = f"{PREFIX.decode()}{number}_{secrets.token_urlsafe(SECRET_BYTES)}"
    return number, key, Hash(salt=salt, sha256=_hashed(key.encode(), salt))


def id_of(key: bytes) -> str:
    """The id that `key` says it has."""
    return key[len(PREFIX) :].partition(b"_")[0].decode("latin-1")


def _hashed(key: bytes, salt: str) -> str:
    return hashlib.sha256(salt.encode() + key).hexdigest()
