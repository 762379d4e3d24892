"""Run one step in a process of its own, so that a crash, a hang or a hunger for memory costs that step alone.

A step is a module with a job type and an answer type, both msgspec structs: `run` writes the job into a folder, starts
`python -P -m MODULE job.json` there, watches time and memory, and reads the answer. The same command can be typed again
by hand. Knows nothing of models. What a child may do is limited against accidents, not against attackers.
"""

import ctypes
import math
import os
import resource
import shlex
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from seatrial.errors import ConversionFailed, SeatrialError
from seatrial.machine import cores, memory_bytes

if TYPE_CHECKING:
    from seatrial.settings import Settings

AT_ONCE = 2
"""Children that run at the same time, where neither waits for the other."""

JOB, ANSWER, LOG = "job.json", "answer.json", "log.txt"

KEPT_VARIABLES = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "TMPDIR", "TZ", "VIRTUAL_ENV")
"""All that a child inherits of the environment. No credential is among them, whatever its name."""

Job = TypeVar("Job", bound=msgspec.Struct)
Answer = TypeVar("Answer", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a child may take. `memory_bytes` is resident memory: a limit on address space breaks torch.

    `until` is when, on the monotonic clock, all children end together.
    """

    time_s: float
    memory_bytes: int
    threads: int
    until: float = math.inf

    def left_s(self, now: float) -> float:
        """What a child that starts now may take."""
        return max(0.0, min(self.time_s, self.until - now))


def child_limits(settings: "Settings") -> Limits:
    """What the settings say, and the cores shared by the children that run at once."""
    return Limits(
        time_s=settings.export.conversion_s,
        memory_bytes=settings.export.memory_bytes or memory_bytes() * 3 // 4,
        threads=max(1, cores() // AT_ONCE),
    )


class Bounded(msgspec.Struct, frozen=True, kw_only=True):
    """A job that is ended after `for_s`, counted from the start of the child, with what was done until then. None is no bound."""

    for_s: float | None = None

    def until(self, now: float) -> float:
        return math.inf if self.for_s is None else now + self.for_s


class Bound(msgspec.Struct, frozen=True, kw_only=True):
    """Its answer. One that is not `whole` is what there was when the time was over."""

    whole: bool = True


class _Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a child leaves behind: its encoded answer, or in one line why there is none."""

    answer: msgspec.Raw = msgspec.Raw(b"null")
    failure: str = ""


class _Ended(Exception):
    """The child ended without an answer; the message is the reason, for the report."""


# The parent's half


def run(
    module: str,
    job: msgspec.Struct,
    *,
    folder: Path,
    answer: type[Answer],
    limits: Limits,
    given_up: threading.Event | None = None,
) -> Answer:
    """Do `job` in a child whose working directory is `folder`, new or empty, where its log and files stay.

    Raises `ConversionFailed`, which says how the child ended, where its log is, and how to run it again. Once `given_up`
    is set, nobody waits for the answer any more, and the child is killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / JOB).write_bytes(msgspec.json.format(msgspec.json.encode(job), indent=2))
    command = [sys.executable, "-P", "-m", module, JOB]
    variables = environment(os.environ, threads=limits.threads, home=folder)
    with (folder / LOG).open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=variables, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            _watch(process, limits, given_up or threading.Event())
            return _read_answer(folder, process.returncode, answer)
        except _Ended as end:
            assignments = [f"{name}={value}" for name, value in variables.items()]
            again = shlex.join(["env", "-C", str(folder), "-i", *assignments, *command])
            raise ConversionFailed(str(end), log=str(folder / LOG), command=again) from None
        finally:
            kill_session(process)


def answer_in(folder: Path, answer: type[Answer]) -> Answer:
    """What a child left there that has done its job. Raises `ConversionFailed` where that is none."""
    try:
        return _read_answer(folder, 0, answer)
    except _Ended as end:
        raise ConversionFailed(str(end)) from None


def environment(given: Mapping[str, str], *, threads: int, home: Path) -> dict[str, str]:
    """What a child sees of the environment `given`: a fixed list, and the number of threads for every library."""
    kept = {name: given[name] for name in KEPT_VARIABLES if name in given}
    return kept | {
        "HOME": str(home),
        "OMP_NUM_THREADS": str(threads),
        "PYTHONHASHSEED": "0",
        "PYTHONFAULTHANDLER": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def _watch(process: subprocess.Popen[bytes], limits: Limits, given_up: threading.Event) -> None:
    """Wait until it ends by itself, or raise what limit it passed."""
    deadline = time.monotonic() + limits.time_s
    while True:
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.1)
            return
        if given_up.is_set():
            raise _Ended("was killed, because the export ended without it")
        if time.monotonic() > deadline:
            raise _Ended(f"did not finish within {limits.time_s:g} s and was killed")
        if time.monotonic() > limits.until:
            raise _Ended("was killed, because the time for the whole export did not allow more")
        if (taken := resident_bytes(process.pid)) > limits.memory_bytes:
            raise _Ended(
                f"took {taken / 2**20:.0f} MiB of memory, more than the {limits.memory_bytes / 2**20:.0f} allowed, "
                "and was killed"
            )


def resident_bytes(pid: int) -> int:
    """Resident memory of a process and its descendants; 0 for those that have gone meanwhile."""
    try:
        own = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
        children = [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return own + sum(map(resident_bytes, children))


def kill_session(process: subprocess.Popen[bytes]) -> None:
    """Nothing that the child started survives it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def ending(code: int) -> str:
    """In words, of a process that gave no answer; `code` as `subprocess` gives it."""
    return f"crashed with {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code} and no answer"


def _read_answer(folder: Path, code: int, answer: type[Answer]) -> Answer:
    if code < 0:
        raise _Ended(ending(code))
    try:
        outcome = msgspec.json.decode((folder / ANSWER).read_bytes(), type=_Outcome)
        if outcome.failure:
            raise _Ended(outcome.failure)
        return msgspec.json.decode(outcome.answer, type=answer)
    except FileNotFoundError:
        raise _Ended(ending(code)) from None
    except msgspec.MsgspecError as error:
        raise _Ended(f"gave an answer that cannot be read: {error}") from error


# The child's half


def work(job: type[Job], step: Callable[[Job], msgspec.Struct]) -> None:
    """The whole `main` of a child: read the job, do the step, write what came of it."""
    die_with_parent()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        answer = step(msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=job))
        outcome = _Outcome(answer=msgspec.Raw(msgspec.json.encode(answer)))
    except SeatrialError as error:
        outcome = _Outcome(failure=str(error))
    except Exception as error:  # noqa: BLE001 - a child ends here; its parent tells
        traceback.print_exc()
        outcome = _Outcome(failure=f"{type(error).__name__}: {_first_line(error)}")
    Path(ANSWER).write_bytes(msgspec.json.encode(outcome))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies, so that a killed export leaves none behind."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
