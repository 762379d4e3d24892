"""The child that quantizes an ONNX file: `python -P -m seatrial_export.quantize job.json`.

Static: activations U8 and weights S8 per channel, written as QDQ: see `static.py`; for TensorRT both symmetric, in S8 or
FP8, and the rest in FP16. Dynamic: weights of matrix products
only, per channel; dynamic convolutions are slower than float ones. Weights: those of matrix products, each block of 32
inputs with a range of its own; what they are multiplied with is rounded to INT8 in such blocks too, row by row. Half:
everything between inputs and outputs in FP16.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import msgspec
import numpy as np

from seatrial.errors import ConversionFailed
from seatrial.machine import Machine
from seatrial.tensors import Array
from seatrial_export import child
from seatrial_export.candidate import Calibration

if TYPE_CHECKING:
    from onnx import ModelProto

    from seatrial_export.static import Calibrated

Mode: TypeAlias = Literal["static", "dynamic", "weights", "half"]
Steps: TypeAlias = Literal["u8", "s8", "e4m3"]
"""What an activation becomes. The last two are for TensorRT, which wants zero to be zero and weights as they were."""

MODEL, PREPARED = "model.onnx", "prepared.onnx"
CALIBRATION = "calibration.npz"
CALIBRATION_CALL = 8
"""Rows put through the model at once while it is watched: what all of its layers make of them is in memory."""

MATRIX_PRODUCTS = frozenset({"MatMul", "Gemm"})
QUANTIZABLE = MATRIX_PRODUCTS | {"Conv"}
PRODUCTS_OF_SEQUENCES = frozenset({"MatMul"})
"""What smoothing and blocks of weights are for. `Gemm` is the last layer of a network of convolutions."""

ABLE: Mapping[Mode, frozenset[str]] = {
    "static": QUANTIZABLE,
    "dynamic": MATRIX_PRODUCTS,
    "weights": PRODUCTS_OF_SEQUENCES,
    "half": frozenset(),
}
"""The operators of which each mode needs one; none is for whatever there is."""
BLOCK = 32
INT8_PRODUCTS = 4
"""What ONNX Runtime calls the accuracy level of products that are computed in INT8."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """`calibration` is an .npz with one array for each input; `rows` is how many of them one call takes.

    `smallest` is the size of each dynamic axis to try the result with. `floats` are the layers, by the names of their
    nodes, that stay in float; `cut_ppm` is for the method `percentile`, and `steps` for the mode `static`.
    """

    model: str
    mode: Mode
    weight_bits: Literal[4, 7, 8]
    smallest: dict[str, int]
    calibration: str = ""
    rows: int = CALIBRATION_CALL
    method: Calibration = Calibration.MIN_MAX
    cut_ppm: int | None = None
    smoothed: bool = False
    floats: tuple[str, ...] = ()
    steps: Steps = "u8"


class Quantized(msgspec.Struct, frozen=True, kw_only=True):
    """The file is `MODEL` in the child's folder. `smoothed` is how many activations were."""

    smoothed: int = 0


def weight_bits(machine: Machine) -> Literal[7, 8]:
    """7 where sums of U8 x S8 products saturate at 16 bits: x86 without VNNI or AMX (instruction `vpmaddubsw`)."""
    features = set(machine.features)
    saturates = features & {"avx2", "avx512f"} and not features & {"avx512_vnni", "avx_vnni", "amx_int8"}
    return 7 if saturates else 8


def quantize(job: Job) -> Quantized:
    import onnx

    from seatrial_export.onnx_file import save

    smoothed = 0
    if job.mode == "dynamic":
        model = _dynamic(job)
    elif job.mode == "weights":
        model = _weights(job)
    elif job.mode == "half":
        model = _in_half(onnx.load(job.model))
    else:
        exact, smoothed = calibrate(job)
        chosen = [node.name for node in exact.layers if node.name not in job.floats]
        model = exact.quantized(chosen) if job.steps == "u8" else _for_tensorrt(exact, chosen, job.steps)
    save(model, Path(MODEL), smallest=job.smallest)
    return Quantized(smoothed=smoothed)


def calibrate(job: Job) -> "tuple[Calibrated, int]":
    """The float model, ready to have layers of it quantized, and how many of its activations were smoothed."""
    from seatrial_export.smooth import smooth
    from seatrial_export.static import calibrated

    model, calls = _prepared(job), read_calls(Path(job.calibration), rows=job.rows)
    smoothed = smooth(model, calls, weight_bits=job.weight_bits) if job.smoothed else 0
    found = calibrated(model, calls, method=job.method, weight_bits=job.weight_bits, cut_ppm=job.cut_ppm)
    if not found.layers:
        raise ConversionFailed("none of its layers has constant weights in single precision")
    return found, smoothed


def _prepared(job: Job) -> "ModelProto":
    """What can be computed beforehand is, and inner tensors have types."""
    from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

    _prepare(job)
    model: ModelProto = load_model_with_shape_infer(Path(PREPARED))
    return model


def _prepare(job: Job) -> None:
    from onnxruntime.quantization.shape_inference import quant_pre_process

    # Its symbolic shape inference stops at models that the dynamo exporter wrote.
    quant_pre_process(job.model, PREPARED, skip_symbolic_shape=True)


def _dynamic(job: Job) -> "ModelProto":
    import onnx
    from onnxruntime import quantization

    _prepare(job)
    model = onnx.load(PREPARED)
    _transpose_beforehand(model)
    quantization.quantize_dynamic(
        model,
        "quantized.onnx",
        op_types_to_quantize=sorted(MATRIX_PRODUCTS),
        per_channel=True,
        reduce_range=job.weight_bits == 7,
        weight_type=quantization.QuantType.QInt8,
    )
    return onnx.load("quantized.onnx")


def _transpose_beforehand(model: "ModelProto") -> None:
    """ONNX Runtime's quantizer transposes a `Gemm`'s weights where they lie, and once more for the next one that shares them."""
    from seatrial_export.onnx_graph import Graph

    graph = Graph(model)
    for node in graph.nodes:
        turned = [each for each in node.attribute if each.name == "transB" and each.i]
        weights = graph.weights(node, 1) if node.op_type == "Gemm" and turned else None
        if weights is not None:
            graph.set_weights(node, 1, weights.T)
            node.attribute.remove(turned[0])


def _weights(job: Job) -> "ModelProto":
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(
        _prepared(job), bits=job.weight_bits, block_size=BLOCK, is_symmetric=True, accuracy_level=INT8_PRODUCTS
    )
    quantizer.process()
    model: ModelProto = quantizer.model.model
    return model


def _for_tensorrt(exact: "Calibrated", chosen: list[str], steps: Steps) -> "ModelProto":
    """Whatever is not quantized is in FP16: in a network that keeps its types INT8 among FP32 is slower than FP16 alone."""
    from seatrial_export.static import in_fp8

    model = exact.symmetric(chosen)
    if steps == "e4m3":
        in_fp8(model)
    return _in_half(model)


def _in_half(model: "ModelProto") -> "ModelProto":
    from onnxruntime.transformers.float16 import convert_float_to_float16

    found: ModelProto = convert_float_to_float16(model, keep_io_types=True)
    return found


def read_calls(path: Path, *, rows: int) -> list[dict[str, Array]]:
    """The calibration rows, as the model takes them."""
    with np.load(path) as arrays:
        inputs = {name: arrays[name] for name in arrays.files}
    starts = range(0, min(map(len, inputs.values())), rows)
    return [{name: array[start : start + rows] for name, array in inputs.items()} for start in starts]


if __name__ == "__main__":
    child.work(Job, quantize)
