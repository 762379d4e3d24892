"""The child that quantizes an ONNX file to INT8: `python -P -m seatrial_export.quantize job.json`.

Static: activations U8 and weights S8 per channel, ranges by MinMax over calibration rows, written as QDQ. Dynamic:
weights of matrix products only, per channel; dynamic convolutions are slower than float ones.
"""

from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from seatrial.machine import Machine
from seatrial.tensors import Array
from seatrial_export import child

MODEL = "model.onnx"
CALIBRATION = "calibration.npz"
CALIBRATION_CALL = 32
"""Rows put through the model at once while ranges are taken; with MinMax it changes nothing but memory."""

MATRIX_PRODUCTS = frozenset({"MatMul", "Gemm"})
QUANTIZABLE = MATRIX_PRODUCTS | {"Conv"}


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """`calibration` is an .npz with one array for each input; `rows` is how many of them one call takes.

    `smallest` is the size of each dynamic axis to try the result with.
    """

    model: str
    mode: Literal["static", "dynamic"]
    weight_bits: Literal[7, 8]
    smallest: dict[str, int]
    calibration: str = ""
    rows: int = CALIBRATION_CALL


class Quantized(msgspec.Struct, frozen=True, kw_only=True):
    """The file is `MODEL` in the child's folder."""


def weight_bits(machine: Machine) -> Literal[7, 8]:
    """7 where sums of U8 x S8 products saturate at 16 bits: x86 without VNNI or AMX (instruction `vpmaddubsw`)."""
    features = set(machine.features)
    saturates = features & {"avx2", "avx512f"} and not features & {"avx512_vnni", "avx_vnni", "amx_int8"}
    return 7 if saturates else 8


def quantize(job: Job) -> Quantized:
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from seatrial_export.onnx_file import save

    # Its symbolic shape inference stops at models that the dynamo exporter wrote.
    quant_pre_process(job.model, "prepared.onnx", skip_symbolic_shape=True)
    how = {
        "per_channel": True,
        "reduce_range": job.weight_bits == 7,
        "weight_type": quantization.QuantType.QInt8,
    }
    if job.mode == "dynamic":
        quantization.quantize_dynamic(
            "prepared.onnx", "quantized.onnx", op_types_to_quantize=sorted(MATRIX_PRODUCTS), **how
        )
    else:
        quantization.quantize_static(
            "prepared.onnx",
            "quantized.onnx",
            _Rows(Path(job.calibration), rows=job.rows),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
            **how,
        )
    save(onnx.load("quantized.onnx"), Path(MODEL), smallest=job.smallest)
    return Quantized()


class _Rows:
    """The calibration rows, as the quantizer wants to be given them: a call at a time, then None."""

    def __init__(self, path: Path, *, rows: int) -> None:
        with np.load(path) as arrays:
            inputs = {name: arrays[name] for name in arrays.files}
        starts = range(0, min(map(len, inputs.values())), rows)
        self._calls = iter([{name: array[start : start + rows] for name, array in inputs.items()} for start in starts])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._calls, None)


if __name__ == "__main__":
    child.work(Job, quantize)
