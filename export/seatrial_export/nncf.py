"""The child that has OpenVINO's own framework quantize an ONNX file: `python -P -m seatrial_export.nncf job.json`.

NNCF, the Neural Network Compression Framework, decides which tensors of OpenVINO's graph become INT8, corrects what rounding
the weights shifts, and smooths Transformers. What comes of it is a file in OpenVINO's own format, and a second one with
its weights.
"""

import sys
from pathlib import Path
from typing import Literal

import msgspec

from seatrial_export import child, quantize

PACKAGE = "nncf"
MODEL, WEIGHTS = "model.xml", "model.bin"


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """`calibration` and `rows` as in `quantize.Job`; with 7 bits all weights take half of their range."""

    model: str
    weight_bits: Literal[7, 8]
    calibration: str
    rows: int
    transformer: bool


class Quantized(msgspec.Struct, frozen=True, kw_only=True):
    """The files are `MODEL` and `WEIGHTS` in the child's folder."""


def compress(job: Job) -> Quantized:
    _keep_to_ourselves()
    import nncf
    import openvino as ov
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix

    core = ov.Core()
    rows = quantize.read_calls(Path(job.calibration), rows=job.rows)
    made = nncf.quantize(
        core.read_model(job.model),
        nncf.Dataset(rows),
        subset_size=len(rows),
        preset=nncf.QuantizationPreset.MIXED,
        model_type=nncf.ModelType.TRANSFORMER if job.transformer else None,
        advanced_parameters=AdvancedQuantizationParameters(
            overflow_fix=OverflowFix.ENABLE if job.weight_bits == 7 else OverflowFix.DISABLE
        ),
    )
    ov.save_model(made, MODEL, compress_to_fp16=False)
    core.compile_model(MODEL, "CPU")(rows[0])  # what crashes the runtime does so here
    return Quantized()


def _keep_to_ourselves() -> None:
    """Without this package NNCF cannot tell its makers what it is used for, which it would do unasked."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # how Python says that there is no such module


if __name__ == "__main__":
    child.work(Job, compress)
