"""The gRPC end of a server, as our own commands are told of it: HOST:PORT, or https://HOST:PORT where it speaks TLS."""

from urllib.parse import urlsplit

import grpc

from seatrial.credentials import Credentials
from seatrial.errors import InvalidSettings


def grpc_end(url: str, credentials: Credentials) -> tuple[str, grpc.ChannelCredentials | None]:
    """The address, and with what to open a channel there; None where it is a plain one. Raises `InvalidSettings`."""
    scheme, _, _ = url.rpartition("://")
    if scheme != "https":
        return (urlsplit(url).netloc if scheme else url), None
    try:
        authorities = credentials.ca.read_bytes() if credentials.ca else None
    except OSError as error:
        raise InvalidSettings(f"server_ca cannot be read: {error}") from error
    return urlsplit(url).netloc, grpc.ssl_channel_credentials(authorities)
