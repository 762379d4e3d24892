"""The limit of any server: the engine called in a loop by processes that do nothing else.

`python -m benchmarks.raw FILE.onnx ROWS THREADS` is one such process: it loads, says so, begins when it is told for how long,
and prints how long each call took.
"""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from benchmarks.models import ones
from benchmarks.rounds import Trial
from seatrial_serving.bench import OK, Result
from seatrial_serving.engines.onnxruntime import read_signature

CASE = "raw"
WARM_UP = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw:
    """So many processes, each with a session of its own of so many threads, and batches of so many rows."""

    callers: int
    threads: int
    rows: int

    def __str__(self) -> str:
        sessions = f"{self.callers} session{'s' if self.callers > 1 else ''} of {self.threads}"
        return f"raw, {sessions} thread{'s' if self.threads > 1 else ''}, batch {self.rows}"

    def trial(self, onnx: Path, *, seconds: float) -> Trial:
        return Trial(of=str(self), case=CASE, take=lambda: self.run(onnx, seconds=seconds))

    def run(self, onnx: Path, *, seconds: float) -> Result:
        """`per_second` counts rows; a request is a call."""
        command = [sys.executable, "-m", "benchmarks.raw", str(onnx), str(self.rows), str(self.threads)]
        processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(self.callers)
        ]
        for process in processes:
            assert process.stdout is not None, "asked for a pipe and got none: this is a bug"
            process.stdout.readline()
        for process in processes:  # all are told before one is waited for: they run at the same time
            assert process.stdin is not None, "asked for a pipe and got none: this is a bug"
            process.stdin.write(f"{seconds}\n")
            process.stdin.flush()
        took_s = [json.loads(process.communicate()[0]) for process in processes]
        calls_ms = 1000 * np.concatenate(took_s)
        p50, p90, p99 = (float(np.percentile(calls_ms, q)) for q in (50, 90, 99))
        return Result(
            requests=len(calls_ms),
            seconds=seconds,
            outcomes={OK: len(calls_ms)},
            per_second=sum(self.rows * len(each) / sum(each) for each in took_s),
            p50_ms=p50,
            p90_ms=p90,
            p99_ms=p99,
            max_ms=float(calls_ms.max()),
        )


def loop(onnx: Path, *, rows: int, threads: int) -> None:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    inputs = ones(read_signature(onnx), rows=rows)
    for _ in range(WARM_UP):
        session.run(None, inputs)
    print("ready", flush=True)
    seconds = float(sys.stdin.readline())
    took_s: list[float] = []
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        session.run(None, inputs)
        took_s.append(time.perf_counter() - began)
    print(json.dumps(took_s))


if __name__ == "__main__":
    loop(Path(sys.argv[1]), rows=int(sys.argv[2]), threads=int(sys.argv[3]))
