"""The agent's HTTP end: who may come in, what is read of whom and how much, and which refusal has which status.

The standard library's server: export may not know the web frameworks that serving uses, and this is for a few machines that
know each other. One request a connection; nothing is believed of a request whose token is wrong.
"""

import hmac
import json
import logging
import re
import socket
import ssl
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

import msgspec

from seatrial.errors import (
    BadRequest,
    Busy,
    DiskFull,
    Forbidden,
    InvalidSettings,
    MalformedRequest,
    NotReady,
    PortInUse,
    SeatrialError,
    TooLarge,
    Unauthenticated,
)
from seatrial.settings import Settings
from seatrial.tls import Renewing, listening
from seatrial_export.remote.agent import Agent
from seatrial_export.remote.wire import CODE, Errand, Event, Holder, Refusal, code, is_this_machine

MOST_CONNECTIONS = 16
SILENT_S = 30
"""Nobody may say nothing for longer, in the middle of a request, nor take nothing of an answer."""
MOST_JSON = 2**24
LINGER_S, LINGER_BYTES = 2, 2**26
"""What is still read of a request that was refused, so that its sender gets to read why."""
LEAST_TOKEN = 24


class NotFound(BadRequest):
    pass


class OtherCode(BadRequest):
    """The two ends would not measure the same."""


STATUS: Mapping[type[SeatrialError], int] = {
    Unauthenticated: 401,
    Forbidden: 403,
    Busy: 409,
    TooLarge: 413,
    NotReady: 503,
    DiskFull: 507,
    NotFound: 404,
    OtherCode: 412,
    BadRequest: 400,
}
"""The first that fits."""

Body = TypeVar("Body", bound=msgspec.Struct)
log = logging.getLogger(__name__)


class Door(ThreadingHTTPServer):
    """Listens from its beginning; `serve_forever` answers. Raises `InvalidSettings` and `PortInUse`."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, agent: Agent, settings: Settings) -> None:
        ours = settings.export.agent
        self.agent, self.token, self.code = agent, token(settings), code()
        self.tls: Renewing | None = listening(settings.serving.tls, speaks="http/1.1")
        if self.tls is None and not is_this_machine(ours.host):
            raise InvalidSettings(
                f"the token would cross the network in the clear: to listen on {ours.host}, set serving.tls.certificate and "
                "serving.tls.key, or listen on 127.0.0.1 behind a tunnel or a proxy that speaks TLS"
            )
        self.address_family = socket.AF_INET6 if ":" in ours.host else socket.AF_INET
        self._room = threading.BoundedSemaphore(MOST_CONNECTIONS)
        try:
            super().__init__((ours.host, ours.port), _Visit)
        except OSError as error:
            raise PortInUse(f"{ours.host}:{ours.port}: {error.strerror}; set export.agent.port") from error

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        name = f"[{host!s}]" if self.address_family == socket.AF_INET6 else str(host)
        return f"{'https' if self.tls else 'http'}://{name}:{port}"

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """The handshake is here, so that who dallies over it keeps nobody else waiting."""
        request.settimeout(SILENT_S)
        request.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENT_S * 1000)
        if self.tls is None:
            super().finish_request(request, client_address)
            return
        with self.tls.contexts.current().wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the signature is its base's
        log.info("a visit from %s was broken off", client_address[0])
        log.debug("%s", traceback.format_exc())


def token(settings: Settings) -> str:
    """What must be shown. Raises `InvalidSettings` where there is none that is worth it."""
    ours = settings.export.agent
    found = ours.token.get_secret_value() if ours.token else ""
    if not found and ours.token_file:
        try:
            found = ours.token_file.read_text().strip()
        except OSError as error:
            raise InvalidSettings(f"export.agent.token_file cannot be read: {error}") from error
    if len(found) < LEAST_TOKEN or not re.fullmatch(r"[!-~]*", found):
        raise InvalidSettings(
            "an agent runs what it is sent, so it needs a token: one word of at least "
            f"{LEAST_TOKEN} ASCII characters, in SEATRIAL_EXPORT__AGENT__TOKEN or in the file export.agent.token_file; "
            "`openssl rand -hex 32` makes one"
        )
    return found


class _Visit(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "seatrial", ""
    timeout = SILENT_S
    server: Door

    def do_GET(self) -> None:
        self._answer({"about": self._about, "files": self._give_file})

    def do_HEAD(self) -> None:
        self._answer({"files": self._has_file})

    def do_PUT(self) -> None:
        self._answer({"files": self._take_file, "leases": self._renew})

    def do_POST(self) -> None:
        self._answer({"leases": self._admit, "errands": self._run})

    def do_DELETE(self) -> None:
        self._answer({"leases": self._release})

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is its base's
        log.debug(format, *args)

    def _answer(self, routes: Mapping[str, Callable[[str], None]]) -> None:
        self.close_connection, self._begun, self._unread = True, False, True
        try:
            self._check()
            _, _, path = self.path.partition("/v1/")
            room, _, what = path.partition("/")
            if room not in routes:
                raise NotFound(f"there is no {self.command} {self.path[:200]} here")
            routes[room](what)
        except SeatrialError as error:
            if self._begun:
                raise
            self._refuse(error)

    def _check(self) -> None:
        shown = self.headers.get_all("Authorization") or []
        wanted = f"Bearer {self.server.token}"
        if len(shown) != 1 or not hmac.compare_digest(shown[0].encode("latin-1"), wanted.encode()):
            raise Unauthenticated("the token is wrong, or there is none: this agent's must be in SEATRIAL_API_KEY")
        if (theirs := self.headers.get(CODE)) != self.server.code:
            raise OtherCode(
                f"this agent runs Seatrial {self.server.code}, the export {theirs}: figures would not be of the same code. "
                "Install the same version at both ends"
            )
        if self.headers.get("Transfer-Encoding"):
            raise MalformedRequest("say by Content-Length how long the body is; no other transfer encoding is taken")

    def _about(self, _: str) -> None:
        self._say(200, self.server.agent.about())

    def _admit(self, _: str) -> None:
        lease = self.server.agent.admit(self._body(Holder))
        self._say(201, lease)

    def _renew(self, lease: str) -> None:
        self.server.agent.renew(lease)
        self._say(204)

    def _release(self, lease: str) -> None:
        self.server.agent.release(lease)
        self._say(204)

    def _has_file(self, digest: str) -> None:
        self._say(204 if self.server.agent.depot.has(digest) else 404)

    def _take_file(self, digest: str) -> None:
        self.server.agent.depot.put(digest, self.rfile, length=self._length())
        self._unread = False
        self._say(204)

    def _give_file(self, digest: str) -> None:
        with self.server.agent.depot.path(digest).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            self._begin(200, "application/octet-stream", length=size)
            while part := file.read(2**20):
                self.wfile.write(part)

    def _run(self, lease: str) -> None:
        """Its answer ends with the connection, and is whole if its last line says so."""

        def tell(event: Event) -> None:
            if not self._begun:
                self._begin(200, "application/x-ndjson")
            self.wfile.write(msgspec.json.encode(event) + b"\n")

        self.server.agent.run(lease, self._body(Errand), tell)

    def _length(self) -> int:
        said = self.headers.get_all("Content-Length") or []
        if len(said) != 1 or not re.fullmatch(r"[0-9]{1,18}", said[0]):
            raise MalformedRequest("a body needs one Content-Length")
        return int(said[0])

    def _body(self, kind: type[Body]) -> Body:
        if (length := self._length()) > MOST_JSON:
            raise TooLarge(f"a message of {length} bytes; at most {MOST_JSON} are read")
        body = self.rfile.read(length)
        self._unread = False
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.MsgspecError as error:
            raise MalformedRequest(f"the body is no {kind.__name__}: {error}") from error

    def _say(self, status: int, answer: msgspec.Struct | None = None) -> None:
        body = b"" if answer is None else msgspec.json.encode(answer)
        self._begin(status, "application/json", length=len(body) if answer is not None else None)
        self.wfile.write(body)

    def _begin(self, status: int, kind: str, *, length: int | None = None) -> None:
        self._begun = True
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Connection", "close")
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def _refuse(self, error: SeatrialError) -> None:
        status = next((status for kind, status in STATUS.items() if isinstance(error, kind)), 500)
        log.warning("%s: %s", json.dumps(f"{self.command} {self.path[:200]}"), error)
        self._say(status, Refusal(message=str(error)))
        if self._unread:
            self._linger()

    def _linger(self) -> None:
        """Closing on unread bytes would take our answer back from whoever has not read it yet."""
        self.wfile.flush()
        self.connection.settimeout(LINGER_S)
        left = LINGER_BYTES
        with suppress(OSError, ssl.SSLError):
            if not isinstance(self.connection, ssl.SSLSocket):
                self.connection.shutdown(socket.SHUT_WR)
            while left > 0 and (part := self.connection.recv(2**16)):
                left -= len(part)
