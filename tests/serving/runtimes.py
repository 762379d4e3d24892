"""The other runtimes, started as their users start them."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from seatrial.settings import Settings
from tests.conditions import until
from tests.tools import absent

ENVIRONMENT = Path(os.environ.get("SEATRIAL_TRITON__ENVIRONMENT") or Settings().triton_environment)
"""Where `seatrial triton install` puts Triton, read before any test hides the settings of this shell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreign:
    process: subprocess.Popen[bytes]
    http: str
    grpc: str
    models: tuple[str, ...]


def triton_environment() -> Path:
    """Skips, or fails in CI, where Triton is not installed."""
    if not (ENVIRONMENT / "backends" / "python").exists():
        absent(f"there is no Triton in {ENVIRONMENT} (seatrial triton install puts it there)")
    return ENVIRONMENT


@contextmanager
def serving_with(runtime: str, *what: object, place: Path) -> Iterator[Foreign]:
    """`seatrial triton serve` or `seatrial bento serve` until the block ends; then nothing is left of it."""
    place.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    ports = ["--http-port", "0"]
    if runtime == "triton":
        environment["SEATRIAL_TRITON__ENVIRONMENT"] = str(triton_environment())
        ports += ["--grpc-port", "0", "--metrics-port", "0"]
    command = [sys.executable, "-m", "seatrial", runtime, "serve", *map(str, what), *ports, "--json"]
    with (place / "out").open("wb") as out, (place / "err").open("wb") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env=environment)
    try:

        def said() -> bool:
            assert process.poll() is None, f"it ended:\n{(place / 'err').read_text()[-5000:]}"
            return b'"ready"' in (place / "out").read_bytes()

        until(said, within_s=120)
        ready = json.loads((place / "out").read_text())
        yield Foreign(process=process, http=ready["http"], grpc=ready.get("grpc", ""), models=tuple(ready["models"]))
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0, (place / "err").read_text()[-3000:]
        _, alive = psutil.wait_procs(children, timeout=10)
        assert [child for child in alive if child.status() != psutil.STATUS_ZOMBIE] == []
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
