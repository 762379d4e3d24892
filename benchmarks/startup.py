"""From `seatrial serve` to ready, and the memory it holds, beside a bare `import onnxruntime`."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from statistics import median

from benchmarks.bench import PORTS, Bench
from benchmarks.intervals import Interval, Promise, promises, ratio
from benchmarks.started import started
from benchmarks.tables import table

MB = 10**6
IMPORTS = {
    "python -c 'import onnxruntime'": "import onnxruntime",
    "python -c pass": "pass",
}
RESIDENT = "import psutil; print(psutil.Process().memory_info().rss)"
OURS, TRITON, HELP = "seatrial serve", "seatrial triton serve", "seatrial --help"
ONE_GATEWAY, TWO_GATEWAYS = "seatrial serve --gateways 1", "seatrial serve --gateways 2"


@dataclass(slots=True)
class _Found:
    seconds: list[float] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    own: list[int] = field(default_factory=list)


def measure(bench: Bench) -> str:
    """Medians over interleaved rounds."""
    bundle = str(bench.models.digits.path)
    servers = {
        OURS: ("seatrial", "serve", bundle),
        "seatrial serve --engines 1": ("seatrial", "serve", bundle, "--engines", "1"),
        ONE_GATEWAY: ("seatrial", "serve", bundle, "--gateways", "1"),
        TWO_GATEWAYS: ("seatrial", "serve", bundle, "--gateways", "2"),
        TRITON: ("seatrial", "triton", "serve", bundle),
    }
    found = {name: _Found() for name in (*servers, *IMPORTS, HELP)}
    task = bench.progress.add_task("startup", total=bench.rounds * len(found))
    for _ in range(bench.rounds):
        for name, command in servers.items():
            with started(*command, *PORTS) as running:
                found[name].seconds.append(running.ready_s)
                running.settle()
                found[name].resident.append(running.resident_bytes)
                found[name].own.append(running.own_bytes)
            bench.progress.advance(task)
        for name, code in IMPORTS.items():
            found[name].seconds.append(_seconds("-c", code))
            said = subprocess.run([sys.executable, "-c", f"{code}; {RESIDENT}"], capture_output=True, check=True).stdout
            found[name].resident.append(int(said))
            bench.progress.advance(task)
        found[HELP].seconds.append(_seconds("-m", "seatrial", "--help"))
        bench.progress.advance(task)
    rows = [[name, f"{median(f.seconds):.2f}", _mb(f.resident), _mb(f.own)] for name, f in found.items()]
    return f"{promises(_promises(found))}\n\n" + table(["", "s", "RSS MB", "PSS MB"], rows)


def _promises(found: dict[str, _Found]) -> list[Promise]:
    seconds, own = found[OURS].seconds, [own / MB for own in found[ONE_GATEWAY].own]
    further = [two / MB - one for two, one in zip(found[TWO_GATEWAYS].own, own, strict=True)]
    return [
        Promise("start to ready <= 1.5 s", Interval.of(seconds), at_most=1.5),
        Promise("start to ready <= Triton's", ratio(seconds, found[TRITON].seconds), at_most=1),
        Promise("PSS with one gateway <= 220 MB", Interval.of(own), at_most=220),
        Promise("PSS of a further gateway <= 70 MB", Interval.of(further), at_most=70),
    ]


def _seconds(*arguments: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=os.environ)
    return time.perf_counter() - began


def _mb(found: list[int]) -> str:
    return f"{median(found) / MB:,.0f}" if found else ""
