"""What `seatrial export` makes of the trained models, and whether it is as much faster as was promised.

Speed comes from the export's own interleaved rounds, through the engine that serves; accuracy from the held-out rows.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.bench import Bench
from benchmarks.rounds import Lost
from benchmarks.tables import table

FP32 = "onnx-cpu-fp32"
ON_CIFAR = tuple(
    f"{target}-int8-{form}" for target in ("onnx-cpu", "openvino-cpu") for form in ("static", "pruned-30-static")
)
ON_MINILM = (
    "onnx-cpu-int8-dynamic",
    *(f"{target}-static" for target in ("onnx-cpu-int8", "onnx-cpu-int8-smoothed", "openvino-cpu-int8")),
)
AS_LONG_AS_TRAINING = {"SEATRIAL_EXPORT__FINE_TUNE_PART": "1", "SEATRIAL_EXPORT__FINE_TUNE_S": "7200"}
"""What is left of a pruned model is taught for all of the recipe's epochs."""
NOT_ADMITTED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """An export of `model` with so much accuracy to lose, whose winner was promised to be so many times as fast as FP32. Only the
    `candidates` are built, if any are named; `variables` are added to the environment."""

    model: str
    accuracy_drop: float
    times: float
    candidates: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def words(self) -> str:
        return f"{self.model}, at most {100 * self.accuracy_drop:g} points lost: >= {self.times:g} times FP32's rows a second"


CASES = (
    *(
        Case(
            model="cifar10-resnet/1",
            accuracy_drop=drop,
            times=times,
            candidates=ON_CIFAR,
            variables=AS_LONG_AS_TRAINING,
        )
        for drop, times in ((0.003, 3), (0.01, 5))
    ),
    Case(model="clinc150-minilm/1", accuracy_drop=0.005, times=2.2, candidates=ON_MINILM),
)


def measure(bench: Bench) -> str:
    """The home must hold the models: `seatrial train cifar10-resnet`, `seatrial train clinc150-minilm`."""
    task = bench.progress.add_task("exports", total=len(CASES))
    must, tables = [], []
    for case in CASES:
        report = export(case)
        must.append(_promise(case, report))
        tables.append(f"{case.words}:\n\n{_candidates(report)}")
        bench.progress.advance(task)
    return "\n\n".join([table(["must hold", "found", ""], must), *tables])


def export(case: Case) -> dict[str, Any]:
    """Its report. Raises `Lost` where there is none."""
    command = [sys.executable, "-m", "seatrial", "export", case.model, "--json", *case.options]
    command += [*(["--only"] if case.candidates else []), *(f"--candidate={name}" for name in case.candidates)]
    command += ["--budget", f"accuracy_drop={case.accuracy_drop}"]
    done = subprocess.run(command, capture_output=True, check=False, env=os.environ | case.variables)
    if done.returncode not in (0, NOT_ADMITTED):
        raise Lost(f"{' '.join(command)} failed:\n{done.stderr.decode()[-3000:]}")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def _promise(case: Case, report: dict[str, Any]) -> list[str]:
    rows = {row["name"]: row for row in report["rows"]}
    of_targets = [row for row in report["rows"] if row["verdict"] == "chosen"]
    if not of_targets:
        return [case.words, "nothing was within the budget", "does not hold"]
    chosen = min(of_targets, key=lambda row: row["row_ms"])
    times, quality = rows[FP32]["row_ms"] / chosen["row_ms"], chosen["quality"]
    lost = 100 * (quality["source_value"] - quality["value"])
    found = (
        f"{chosen['name']}: {times:.2f} times, {lost:.2f} points lost (surely under {100 * quality['drop_upper']:.2f})"
    )
    return [case.words, found, "holds" if times >= case.times else "does not hold"]


def _candidates(report: dict[str, Any]) -> str:
    base = next(row for row in report["rows"] if row["name"] == FP32)
    columns = ["variant", "batch 1, ms", "a row of a batch, ms", "times as fast", "MB", "accuracy", "verdict"]
    return table(columns, [_row(candidate, base) for candidate in report["rows"]])


def _row(candidate: dict[str, Any], base: dict[str, Any]) -> list[str]:
    alone, quality = candidate["alone"], candidate["quality"]
    return [
        candidate["name"],
        f"{alone['p50_ms']:.2f} ({alone['low_ms']:.2f} to {alone['high_ms']:.2f})" if alone else "",
        f"{candidate['row_ms']:.3f}" if candidate["row_ms"] else "",
        f"{base['row_ms'] / candidate['row_ms']:.2f}" if candidate["row_ms"] and base["row_ms"] else "",
        f"{candidate['size_bytes'] / 1e6:.2f}" if candidate["size_bytes"] else "",
        f"{quality['value']:.2%} of {quality['rows']:,}" if quality else "",
        f"{candidate['verdict']}: {candidate['reason']}",
    ]
