"""What our own commands show a server that asks who they are, and whom they believe to be that server."""

import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from seatrial.errors import InvalidSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """`key` is an API key or a token, empty for none. `ca` holds those who sign servers' certificates, PEM; by default the
    world's."""

    key: str = field(default="", repr=False)
    ca: Path | None = None

    def __post_init__(self) -> None:
        """Raises `InvalidSettings`, which does not say the key."""
        if not re.fullmatch(r"[!-~]*", self.key):
            raise InvalidSettings("api_key is not one word of ASCII characters, so it is no key and no token")

    @property
    def headers(self) -> dict[str, str]:
        """For REST; gRPC takes the same as metadata."""
        return {"authorization": f"Bearer {self.key}"} if self.key else {}

    def trusting(self) -> ssl.SSLContext:
        """Raises `InvalidSettings`."""
        try:
            return ssl.create_default_context(cafile=self.ca)
        except OSError as error:
            raise InvalidSettings(f"server_ca is {self.ca}, which holds no certificates in PEM: {error}") from error
