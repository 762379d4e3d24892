"""Start a server as its users do, and end it.

Each of them prints one JSON line when it is ready, with the addresses that it took.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """`ready_s` is the time from starting the command to its ready line."""

    addresses: Mapping[str, str]
    ready_s: float
    processes: tuple[psutil.Process, ...]

    @property
    def resident_bytes(self) -> int:
        """What all processes hold together; a page that several map counts once for each."""
        return sum(process.memory_info().rss for process in self.processes)

    @property
    def own_bytes(self) -> int:
        """What all processes hold together, a shared page counted once."""
        return sum(process.memory_full_info().pss for process in self.processes)


@contextmanager
def started(*command: str) -> Iterator[Running]:
    """`python -m COMMAND`, until the block ends."""
    with tempfile.TemporaryFile() as errors:
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", *command], stdout=subprocess.PIPE, stderr=errors, env=os.environ
        )
        try:
            assert process.stdout is not None, "asked for a pipe and got none: this is a bug"
            line = process.stdout.readline()
            ready_s = time.perf_counter() - began
            if not line:
                errors.seek(0)
                raise SystemExit(f"{' '.join(command)} did not start:\n{errors.read().decode()[-3000:]}")
            parent = psutil.Process(process.pid)
            yield Running(
                addresses=json.loads(line), ready_s=ready_s, processes=(parent, *parent.children(recursive=True))
            )
        finally:
            if process.poll() is not None:
                errors.seek(0)
                print(f"{' '.join(command)} ended by itself with {process.returncode}:", file=sys.stderr)
                print(errors.read().decode()[-3000:], file=sys.stderr)
            process.send_signal(signal.SIGINT)
            process.communicate()
