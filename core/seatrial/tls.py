"""TLS for a listening port, with certificates that can be replaced while it listens, and the names in a client's own."""

import asyncio
import ssl
from typing import Literal

from seatrial.errors import InvalidSettings
from seatrial.settings import Tls
from seatrial.watched import Watched

Speaks = Literal["h2", "http/1.1"]


class Renewing(ssl.SSLContext):
    """Each handshake uses the files as they are; connections that are open keep what they began with."""

    contexts: Watched[ssl.SSLContext]

    def __new__(cls) -> "Renewing":
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        return self.contexts.current().wrap_bio(incoming, outgoing, server_side, server_hostname, session)


def listening(settings: Tls, *, speaks: Speaks) -> Renewing | None:
    """What a port listens with; None where TLS is off. Raises `InvalidSettings`."""
    if settings.certificate is None or settings.key is None:
        return None
    paths = [path for path in (settings.certificate, settings.key, settings.client_ca) if path is not None]
    context = Renewing()
    context.contexts = Watched(paths, lambda: _read(settings, speaks))
    return context


def _read(settings: Tls, speaks: Speaks) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols([speaks])
    assert settings.certificate is not None, "TLS without a certificate: this is a bug"
    try:
        context.load_cert_chain(settings.certificate, settings.key, password=_no_password)
        if settings.client_ca is not None:
            context.load_verify_locations(settings.client_ca)
            required = settings.client_certificate == "required"
            context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
    except (OSError, ssl.SSLError) as error:  # the library does not say which file it was
        files = ", ".join(str(path) for path in (settings.certificate, settings.key, settings.client_ca) if path)
        raise InvalidSettings(f"TLS cannot be had from {files} (serving.tls): {error}") from error
    return context


def _no_password() -> str:
    """Otherwise the library asks whoever sits at the terminal."""
    raise InvalidSettings("the private key has a password (serving.tls.key); store it without one")


KINDS = ("URI", "DNS", "email")


def subjects(transport: asyncio.BaseTransport) -> tuple[str, ...]:
    """The names in the certificate that the client proved to have: its alternative names, then its common name."""
    certificate = transport.get_extra_info("peercert") or {}
    names = [name for wanted in KINDS for kind, name in certificate.get("subjectAltName", ()) if kind == wanted]
    names += [name for part in certificate.get("subject", ()) for kind, name in part if kind == "commonName"]
    return tuple(names)
