"""The child that finds out what INT8 costs each layer: `python -P -m seatrial_export.sensitivity job.json`.

One layer after the other is made INT8, alone, and the model's answers to calibration rows are compared with those of
the float model: the method of Wu et al., "Integer quantization for deep learning inference: principles and empirical
evaluation" (2020), section 6. A layer costs one conversion and one run over the rows.
"""

import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from seatrial.tensors import Array
from seatrial_export import child, quantize

if TYPE_CHECKING:
    from onnx import ModelProto

ROWS = 64
"""Calibration rows that every layer is asked."""


NOTES = "notes.jsonl"


class Job(child.Bounded, frozen=True, kw_only=True):
    """`quantization` is how the whole model is made INT8. After `for_s` no further layer is begun.

    `notes` is a file with the layers that an earlier child was done with, a line for each; those of this one are added.
    """

    quantization: quantize.Job
    notes: str = NOTES


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """`noise` is the power of the error in the model's answers, as a part of their own, where this layer alone is INT8.

    None where there was no time to find out. `kept` is whether it stayed in float.
    """

    name: str
    operator: str
    noise: float | None
    kept: bool = False


class Measured(child.Bound, frozen=True, kw_only=True):
    """The worst first; those of which nothing is known at the end."""

    layers: tuple[Layer, ...]


def measure(job: Job) -> Measured:
    until = job.until(time.monotonic())
    model, _ = quantize.calibrate(job.quantization)
    calls = quantize.read_calls(Path(job.quantization.calibration), rows=job.quantization.rows)
    calls = calls[: max(1, ROWS // job.quantization.rows)]
    exact = _answers(model.model, calls)
    notes = Path(job.notes)
    known = read_notes(notes)
    found = []
    with notes.open("ab") as written:
        for node in model.layers:
            layer = known.get(node.name) or Layer(name=node.name, operator=node.op_type, noise=None)
            if layer.noise is None and time.monotonic() < until:
                found_out = noise(_answers(model.quantized([node.name]), calls), exact)
                layer = msgspec.structs.replace(layer, noise=found_out)
                written.write(b"\n" + msgspec.json.encode(layer))  # the last line may be half a one
                written.flush()
            found.append(layer)
    return Measured(
        layers=tuple(sorted(found, key=lambda layer: 1.0 if layer.noise is None else -layer.noise)),
        whole=all(layer.noise is not None for layer in found),
    )


def read_notes(path: Path) -> dict[str, Layer]:
    """By name. A line that is not whole, because who wrote it was killed, counts for nothing."""
    found = {}
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with suppress(msgspec.MsgspecError):
            layer = msgspec.json.decode(line, type=Layer)
            found[layer.name] = layer
    return found


def _answers(model: "ModelProto", calls: list[dict[str, Array]]) -> list[Array]:
    """Of each output the answers to all calls."""
    from seatrial_export.calibrate import observed

    outputs = [value.name for value in model.graph.output]
    found = list(observed(model.SerializeToString(), outputs, calls))
    return [np.concatenate([call[name].ravel() for call in found]) for name in outputs]


def noise(found: list[Array], exact: list[Array]) -> float:
    """Of several outputs the worst. Those that are not floats say nothing."""
    return max(
        (
            float(np.square(one - other, dtype=np.float64).sum() / max(np.square(other, dtype=np.float64).sum(), 1e-30))
            for one, other in zip(found, exact, strict=True)
            if other.dtype.kind == "f"
        ),
        default=0.0,
    )


if __name__ == "__main__":
    child.work(Job, measure)
