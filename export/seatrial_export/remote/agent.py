"""The agent: runs errands for one export at a time, each in a child process of its own. Knows nothing of HTTP.

An export holds the agent by a lease, which ends when it says so, or is silent for too long; then what still runs for it is
killed. A lease, an errand and a file are all that there is: no path and no command come from outside.
"""

import math
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

import msgspec

from seatrial.bundle.manifest import MANIFEST, Manifest
from seatrial.engines import fingerprint, obstacle
from seatrial.errors import (
    BundleCorrupt,
    Busy,
    ConversionFailed,
    DiskFull,
    Forbidden,
    MalformedRequest,
    Misused,
    NotReady,
)
from seatrial.machine import this_machine
from seatrial.settings import Settings
from seatrial_export import child
from seatrial_export.candidate import ENGINES
from seatrial_export.child import child_limits
from seatrial_export.measure import Clock
from seatrial_export.remote.depot import Depot
from seatrial_export.remote.steps import STEPS, Step
from seatrial_export.remote.wire import (
    BEAT_S,
    SAID,
    About,
    Alive,
    Done,
    Errand,
    Event,
    Failed,
    Holder,
    Lease,
    Said,
    check_name,
)
from seatrial_export.tools import tools
from seatrial_export.workplace import undisturbed

LOOK_EVERY_S = 0.2
LOG_BYTES = 2**16

Tell: TypeAlias = Callable[[Event], None]
"""Raises `ConnectionError` where nobody listens any more."""


@dataclass(kw_only=True)
class _Held:
    lease: Lease
    holder: Holder
    until: float
    given_up: threading.Event = field(default_factory=threading.Event)
    at_work: threading.Lock = field(default_factory=threading.Lock)


class Agent:
    """Everything that it writes is below the home's folder `agent`. One process has it at a time."""

    def __init__(self, settings: Settings, *, clock: Clock = time.monotonic) -> None:
        self._settings, self._clock = settings, clock
        place = settings.home / "agent"
        self._errands = place / "errands"
        shutil.rmtree(self._errands, ignore_errors=True)  # what a killed agent left
        limits = settings.export.agent
        self.depot = Depot(
            place=place / "files", most_bytes=int(limits.file_mb * 1e6), keep_bytes=int(limits.keep_mb * 1e6)
        )
        self._lock = threading.Lock()
        self._held: _Held | None = None
        self._closed = False
        self._number = 0

    def about(self) -> About:
        return About(
            machine=this_machine(),
            tools=tools(),
            obstacles={target: why for target, engine in ENGINES.items() if (why := obstacle(engine))},
            hardware={engine.name: fingerprint(engine.name) for engine in ENGINES.values() if obstacle(engine) is None},
        )

    def admit(self, holder: Holder) -> Lease:
        """Raises `Busy` while somebody else has a lease that holds, naming them; `NotReady` once it is closed."""
        with self._lock:
            if self._closed:
                raise NotReady("this agent is being stopped")
            if self._held and (self._held.at_work.locked() or self._holds(self._held)):
                raise Busy(f"this agent works for {self._held.holder.name}; it takes one export at a time")
            lasts_s = self._settings.export.agent.lease_s
            lease = Lease(id=secrets.token_hex(16), lasts_s=lasts_s)
            self._held = _Held(lease=lease, holder=holder, until=self._clock() + lasts_s)
            return lease

    def renew(self, lease: str) -> None:
        """Raises `Forbidden` where it ended."""
        with self._lock:
            held = self._mine(lease)
            held.until = self._clock() + held.lease.lasts_s

    def release(self, lease: str) -> None:
        """End it and what still runs for it. Nothing happens where it ended before."""
        with self._lock:
            if self._held is None or self._held.lease.id != lease:
                return
            self._held.given_up.set()
            self._held = None
        with suppress(FileNotFoundError):
            self.depot.make_room()

    def close(self) -> None:
        """End everything, and take no more."""
        with self._lock:
            self._closed = True
            held, self._held = self._held, None
        if held:
            held.given_up.set()
            with held.at_work:  # its errand has ended
                pass

    def run(self, lease: str, errand: Errand, tell: Tell) -> None:
        """Do `errand`, telling what becomes of it; the last event is `Done` or `Failed`.

        Raises `Forbidden` for another's lease, `Busy` while an errand of this one runs, `MalformedRequest` for one that cannot
        be begun, and `ConnectionError`, with its child killed, where nobody listens any more.
        """
        with self._lock:
            held = self._mine(lease)
            if not held.at_work.acquire(blocking=False):
                raise Busy("an errand of this export is being run; it is one at a time")
            self._number += 1
            folder = self._errands / str(self._number)
        try:
            try:
                step, job = _read(errand)
                with ExitStack() as stack:
                    stack.callback(shutil.rmtree, folder, ignore_errors=True)
                    self._lay(errand, folder)
                    ended = self._ended(self._watched(step, job, folder, held, tell), step, folder)
            finally:
                held.at_work.release()
            tell(ended)  # the next errand may come at once
        except OSError:  # nobody listens
            self.release(lease)
            raise

    def _watched(
        self, step: Step, job: msgspec.Struct, folder: Path, held: _Held, tell: Tell
    ) -> "Future[msgspec.Struct]":
        """Tell what the child says, and that it is alive, until it has ended. Whoever stops listening has it killed."""
        with ThreadPoolExecutor(1) as pool, _giving_up(held.given_up):
            running = pool.submit(self._in_child, step, job, folder, held.given_up)
            said, told_at = _Lines(folder / SAID), -math.inf
            while not wait_for([running], timeout=LOOK_EVERY_S).done:
                for words in said.new():
                    tell(Said(words=words))
                if self._clock() - told_at >= BEAT_S:
                    tell(Alive())
                    told_at = self._clock()
                with suppress(Forbidden):  # a released one is killed in a moment
                    self.renew(held.lease.id)
            for words in said.new():
                tell(Said(words=words))
        return running

    def _in_child(self, step: Step, job: msgspec.Struct, folder: Path, given_up: threading.Event) -> msgspec.Struct:
        limits = replace(child_limits(self._settings), time_s=self._settings.export.agent.errand_s)
        with ExitStack() as stack:
            if step.alone:
                limits = replace(limits, memory_bytes=sys.maxsize)  # it watches each of its engines itself
                stack.enter_context(undisturbed(self._settings.home))
            return child.run(step.module, job, folder=folder, answer=step.answer, limits=limits, given_up=given_up)

    def _ended(self, running: "Future[msgspec.Struct]", step: Step, folder: Path) -> Done | Failed:
        try:
            answer = running.result()
            made = {name: self.depot.take(_made(folder, name)) for name in step.makes(answer)}
        except ConversionFailed as error:
            return Failed(reason=error.reason, log=_end_of(folder / child.LOG))
        except (DiskFull, OSError) as error:
            return Failed(reason=f"could not be run: {error}", log="")
        return Done(answer=msgspec.Raw(msgspec.json.encode(answer)), files=made)

    def _lay(self, errand: Errand, folder: Path) -> None:
        for name, digest in errand.files.items():
            self.depot.lay(digest, folder / check_name(name))
        for name, digest in errand.bundles.items():
            place = folder / check_name(name)
            self.depot.lay(digest, place / MANIFEST)
            try:
                manifest = Manifest.decode((place / MANIFEST).read_bytes(), where=name)
            except BundleCorrupt as error:
                raise MalformedRequest(str(error)) from error
            for inner, entry in manifest.files.items():  # names that are no way out: decoding looks at that
                self.depot.lay(entry.sha256.removeprefix("sha256:"), place / inner)

    def _holds(self, held: _Held) -> bool:
        return self._clock() < held.until

    def _mine(self, lease: str) -> _Held:
        held = self._held
        if held is None or not secrets.compare_digest(held.lease.id.encode(), lease.encode()):
            raise Forbidden("this lease has ended; another export may have the agent")
        return held


def _read(errand: Errand) -> tuple[Step, msgspec.Struct]:
    """Raises `MalformedRequest`."""
    step = STEPS.get(errand.step)
    if step is None:
        raise MalformedRequest(f"there is no step {errand.step[:100]!r}; there are {', '.join(STEPS)}")
    try:
        job = msgspec.json.decode(errand.job, type=step.job)
    except (msgspec.MsgspecError, Misused) as error:
        raise MalformedRequest(f"the job is none of the step '{errand.step}': {error}") from error
    for name in step.reads(job):
        if name not in errand.files and name not in errand.bundles:
            raise MalformedRequest(f"the job names {name[:100]!r}, which the errand does not bring")
    return step, job


@contextmanager
def _giving_up(given_up: threading.Event) -> Iterator[None]:
    """Where the block fails, nobody wants the errand any more, nor another one of this lease."""
    try:
        yield
    except BaseException:
        given_up.set()
        raise


def _made(folder: Path, name: str) -> Path:
    """A file that the child says it made."""
    path = folder / check_name(name)
    if path.is_symlink() or not path.is_file():
        raise ConversionFailed(f"left no file {name}")
    return path


def _end_of(log: Path) -> str:
    with suppress(OSError):
        return log.read_bytes()[-LOG_BYTES:].decode(errors="replace")
    return ""


@dataclass
class _Lines:
    """The whole lines that are added to a file, once each."""

    path: Path
    read: int = 0

    def new(self) -> list[str]:
        try:
            text = self.path.read_bytes()[self.read :]
        except FileNotFoundError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self.read += len(whole)
        return whole.decode(errors="replace").splitlines()
