"""INT8 against FP32 on ResNet-18: what `seatrial export` measures on the trained CIFAR-10 model, as a table.

Speed comes from the export's own interleaved rounds, through the engine that serves; accuracy from the held-out rows.
"""

import json
import subprocess
import sys
from typing import Any

from benchmarks.bench import Bench
from benchmarks.tables import table


def measure(bench: Bench) -> str:
    """The home must hold the model: `seatrial train cifar10-resnet18`."""
    task = bench.progress.add_task("int8", total=1)
    command = [sys.executable, "-m", "seatrial", "export", bench.resnet, "--json"]
    done = subprocess.run(command, capture_output=True, check=False)
    if not done.stdout:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr.decode()[-3000:]}")
    report = json.loads(done.stdout)
    bench.progress.advance(task)
    base = next(c for c in report["rows"] if c["compression"] == [] and c["precision"] == "fp32")
    rows = [_row(candidate, base) for candidate in report["rows"]]
    columns = ["variant", "batch 1, ms", "a row at the best batch, ms", "times as fast", "MB", "accuracy", "verdict"]
    return f"{report['model']}\n\n" + table(columns, rows)


def _row(candidate: dict[str, Any], base: dict[str, Any]) -> list[str]:
    alone, quality = candidate["alone"], candidate["quality"]
    return [
        candidate["name"],
        f"{alone['p50_ms']:.2f} ({alone['low_ms']:.2f} to {alone['high_ms']:.2f})" if alone else "",
        f"{candidate['row_ms']:.3f}" if candidate["row_ms"] else "",
        f"{base['row_ms'] / candidate['row_ms']:.2f}" if candidate["row_ms"] else "",
        f"{candidate['size_bytes'] / 1e6:.2f}" if candidate["size_bytes"] else "",
        f"{quality['value']:.2%} of {quality['rows']:,}" if quality else "",
        f"{candidate['verdict']}: {candidate['reason']}",
    ]
