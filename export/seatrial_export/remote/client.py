"""The export's end of the wire: a lease that is kept, files that are sent once, errands that are waited for."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import httpx
import msgspec

from seatrial.bundle import Bundle
from seatrial.bundle.manifest import MANIFEST
from seatrial.bundle.store import file_sha256
from seatrial.credentials import Credentials
from seatrial.errors import AgentLost, AgentRefused, ConversionFailed, InvalidSettings
from seatrial_export.remote.wire import (
    BEAT_S,
    CODE,
    About,
    Alive,
    Done,
    Errand,
    Failed,
    Holder,
    Lease,
    Refusal,
    Said,
    code,
    is_this_machine,
)

CONNECT_S, SILENT_S = 10.0, 6 * BEAT_S
AT_ONCE = 2**20

Answer = TypeVar("Answer", bound=msgspec.Struct)


class Connection:
    """One export's hold of one agent. Everything raises `AgentLost` once the agent was lost, always with the first reason."""

    def __init__(self, url: str, credentials: Credentials, *, holder: str) -> None:
        """Raises `AgentRefused` where the agent does not take us, with its reason, and `AgentLost` where it does not answer."""
        check_address(url)
        self.url = url.rstrip("/")
        self._why_lost = ""
        self._digests: dict[Path, str] = {}
        self._sent: set[str] = set()
        self._turn = threading.Lock()  # an agent takes one errand at a time, and candidates are built two at a time
        self._http = httpx.Client(
            base_url=f"{self.url}/v1/",
            headers={**credentials.headers, CODE: code()},
            verify=credentials.trusting() if self.url.startswith("https:") else False,
            timeout=httpx.Timeout(SILENT_S, connect=CONNECT_S),
            trust_env=False,
        )
        try:
            self.about = msgspec.json.decode(self._ask("GET", "about").content, type=About)
            body = msgspec.json.encode(Holder(name=holder))
            self._lease = msgspec.json.decode(self._ask("POST", "leases", content=body).content, type=Lease)
        except msgspec.MsgspecError as error:
            raise AgentRefused(f"{self.url} is no agent of Seatrial's: {error}") from error
        self._ending = threading.Event()
        self._keeping = threading.Thread(target=self._keep, name="seatrial-lease", daemon=True)
        self._keeping.start()

    def close(self) -> None:
        """Let go of the agent, which ends whatever still runs for us."""
        self._ending.set()
        self._keeping.join()
        if not self._why_lost:
            with suppress(AgentLost, AgentRefused):
                self._ask("DELETE", f"leases/{self._lease.id}")
        self._http.close()

    def send(self, path: Path) -> str:
        """Have the agent have the file, which does not change any more; its digest."""
        if path not in self._digests:
            self._digests[path] = file_sha256(path).removeprefix("sha256:")
        digest = self._digests[path]
        if digest not in self._sent:
            if self._ask("HEAD", f"files/{digest}", also=(404,)).status_code == 404:
                with path.open("rb") as file:
                    size = {"content-length": str(path.stat().st_size)}
                    parts = iter(lambda: file.read(AT_ONCE), b"")
                    self._ask("PUT", f"files/{digest}", content=parts, headers=size)
            self._sent.add(digest)
        return digest

    def send_bundle(self, bundle: Bundle) -> str:
        for name in bundle.manifest.files:
            self.send(bundle.file(name))
        return self.send(bundle.file(MANIFEST))

    def fetch(self, digest: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._watching("sending a file back"), self._http.stream("GET", f"files/{digest}") as answer:
            self._check(answer)
            with target.open("wb") as file:
                for part in answer.iter_bytes():
                    file.write(part)
        if file_sha256(target) != f"sha256:{digest}":
            raise self._lost("sent a file back that is not the one that it made")

    def run(
        self,
        step: str,
        job: msgspec.Struct,
        *,
        answer: type[Answer],
        log: Path,
        files: Mapping[str, Path] | None = None,
        bundles: Mapping[str, Bundle] | None = None,
        tell: Callable[[str], None] = lambda _: None,
    ) -> tuple[Answer, Mapping[str, str]]:
        """Have it done there, in turn; the answer, and the digests of the files that were made, for `fetch`.

        Raises `ConversionFailed` where its child gave none, with the end of what that wrote in `log`.
        """
        with self._turn:
            return self._run(step, job, answer=answer, log=log, files=files or {}, bundles=bundles or {}, tell=tell)

    def _run(
        self,
        step: str,
        job: msgspec.Struct,
        *,
        answer: type[Answer],
        log: Path,
        files: Mapping[str, Path],
        bundles: Mapping[str, Bundle],
        tell: Callable[[str], None],
    ) -> tuple[Answer, Mapping[str, str]]:
        errand = Errand(
            step=step,
            job=msgspec.Raw(msgspec.json.encode(job)),
            files={name: self.send(path) for name, path in files.items()},
            bundles={name: self.send_bundle(each) for name, each in bundles.items()},
        )
        for event in self._events(errand):
            if isinstance(event, Said):
                tell(event.words)
            elif isinstance(event, Failed):
                log.parent.mkdir(parents=True, exist_ok=True)
                log.write_text(event.log)
                raise ConversionFailed(f"{event.reason} (on {self.url})", log=str(log))
            elif isinstance(event, Done):
                return msgspec.json.decode(event.answer, type=answer), event.files
        raise self._lost(f"broke off in the middle of the step '{step}'")

    def _events(self, errand: Errand) -> Iterator[Said | Alive | Done | Failed]:
        body = msgspec.json.encode(errand)
        there = self._http.stream("POST", f"errands/{self._lease.id}", content=body)
        with self._watching(f"at the step '{errand.step}'"), there as answer:
            self._check(answer)
            for line in answer.iter_lines():
                yield msgspec.json.decode(line, type=Said | Alive | Done | Failed)

    def _keep(self) -> None:
        while not self._ending.wait(self._lease.lasts_s / 4):
            try:
                self._ask("PUT", f"leases/{self._lease.id}")
            except (AgentLost, AgentRefused) as why:
                self._why_lost = self._why_lost or str(why)
                return

    def _ask(self, method: str, path: str, *, also: tuple[int, ...] = (), **request: object) -> httpx.Response:
        if self._why_lost:
            raise AgentLost(self._why_lost)
        with self._watching(f"at {method} {path.partition('/')[0]}"):
            answer = self._http.request(method, path, **request)  # type: ignore[arg-type]  # httpx's own are many
            if answer.status_code not in also:
                self._check(answer)
            return answer

    def _check(self, answer: httpx.Response) -> None:
        """Raises `AgentRefused`."""
        if answer.is_success:
            return
        body = answer.read()
        try:
            message = msgspec.json.decode(body, type=Refusal).message
        except msgspec.MsgspecError:
            message = f"it answers {answer.status_code}; an agent of Seatrial's does not"
        raise AgentRefused(f"{self.url}: {message}")

    @contextmanager
    def _watching(self, where: str) -> Iterator[None]:
        if self._why_lost:
            raise AgentLost(self._why_lost)
        try:
            yield
        except (httpx.TransportError, msgspec.MsgspecError) as error:
            raise self._lost(f"was lost {where}: {str(error) or type(error).__name__}") from error

    def _lost(self, why: str) -> AgentLost:
        self._why_lost = self._why_lost or f"the agent at {self.url} {why}"
        return AgentLost(self._why_lost)


def check_address(url: str) -> None:
    """Raises `InvalidSettings`."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
        raise InvalidSettings(f"{url} is no address of an agent; write https://HOST:PORT")
    if parts.scheme == "http" and not is_this_machine(parts.hostname):
        raise InvalidSettings(f"{url} would carry the token over the network in the clear; use https, or a tunnel")
