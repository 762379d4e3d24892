"""From `seatrial serve` to ready, and the memory it holds, beside a bare `import onnxruntime`."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from rich.progress import Progress

from benchmarks.started import started
from benchmarks.tables import table

MIB = 2**20
IMPORTS = {
    "python -c 'import onnxruntime'": "import onnxruntime",
    "python -c pass": "pass",
}
RESIDENT = "import psutil; print(psutil.Process().memory_info().rss)"


@dataclass(slots=True)
class _Found:
    seconds: list[float] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    own: list[int] = field(default_factory=list)


def measure(bundle: Path, *, rounds: int, progress: Progress) -> str:
    """The section of `benchmarks/README.md`: medians over interleaved rounds."""
    servers = {
        "seatrial serve, two engine processes": ("seatrial", "serve", str(bundle)),
        "seatrial serve --engines 1": ("seatrial", "serve", str(bundle), "--engines", "1"),
        "seatrial triton serve": ("seatrial", "triton", "serve", str(bundle)),
    }
    found = {name: _Found() for name in (*servers, *IMPORTS, "seatrial --help")}
    task = progress.add_task("startup", total=rounds * len(found))
    for _ in range(rounds):
        for name, command in servers.items():
            with started(*command, "--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--json") as running:
                found[name].seconds.append(running.ready_s)
                found[name].resident.append(running.resident_bytes)
                found[name].own.append(running.own_bytes)
            progress.advance(task)
        for name, code in IMPORTS.items():
            found[name].seconds.append(_seconds("-c", code))
            said = subprocess.run([sys.executable, "-c", f"{code}; {RESIDENT}"], capture_output=True, check=True).stdout
            found[name].resident.append(int(said))
            progress.advance(task)
        found["seatrial --help"].seconds.append(_seconds("-m", "seatrial", "--help"))
        progress.advance(task)
    rows = [[name, f"{median(f.seconds):.2f}", _mib(f.resident), _mib(f.own)] for name, f in found.items()]
    return table(["", "s", "RSS MiB", "PSS MiB"], rows)


def _seconds(*arguments: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=os.environ)
    return time.perf_counter() - began


def _mib(found: list[int]) -> str:
    return f"{median(found) / MIB:,.0f}" if found else ""
