"""The limit of any server: the engine called in a loop by processes that do nothing else.

`python -m benchmarks.raw BUNDLE BATCH SECONDS` is one such process; it prints how many rows it computed.
"""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort

from seatrial.bundle import open_bundle


def rows_per_second(bundle: Path, *, callers: int, batch: int, seconds: float) -> float:
    """Of so many processes of one thread each, each with batches of so many rows."""
    command = [sys.executable, "-m", "benchmarks.raw", str(bundle), str(batch), str(seconds)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(callers)]
    return sum(int(process.communicate()[0]) for process in processes) / seconds


def loop(bundle: Path, *, batch: int, seconds: float) -> int:
    opened = open_bundle(bundle)
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    [graph] = opened.manifest.graphs.values()
    session = ort.InferenceSession(opened.file(graph), options, providers=["CPUExecutionProvider"])
    inputs = {
        spec.name: np.zeros([batch, *spec.shape[1:]], spec.datatype.numpy) for spec in opened.manifest.signature.inputs
    }
    for _ in range(20):
        session.run(None, inputs)
    calls, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        session.run(None, inputs)
        calls += 1
    return calls * batch


if __name__ == "__main__":
    print(loop(Path(sys.argv[1]), batch=int(sys.argv[2]), seconds=float(sys.argv[3])))
