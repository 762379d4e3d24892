"""ONNX Runtime on the CPU.

Threads are always explicit: left to itself, it takes the cores of the host, whatever the cgroup allows.
Strings are handed over as `str`: from `bytes` it would silently make their repr.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as state

from seatrial.bundle import MAIN
from seatrial.errors import BundleCorrupt, EngineFailed, EngineUnavailable, WrongInput
from seatrial.tensors import BATCH, Array, DataType, DynamicAxis, Signature, TensorSpec

REFUSALS = (
    *(state.EPFail, state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf),
    *(state.NoSuchFile, state.NotImplemented, state.RuntimeException),
)
DATATYPES = {
    "tensor(bool)": DataType.BOOL,
    "tensor(uint8)": DataType.UINT8,
    "tensor(uint16)": DataType.UINT16,
    "tensor(uint32)": DataType.UINT32,
    "tensor(uint64)": DataType.UINT64,
    "tensor(int8)": DataType.INT8,
    "tensor(int16)": DataType.INT16,
    "tensor(int32)": DataType.INT32,
    "tensor(int64)": DataType.INT64,
    "tensor(float16)": DataType.FP16,
    "tensor(float)": DataType.FP32,
    "tensor(double)": DataType.FP64,
    "tensor(string)": DataType.BYTES,
}
UNVERIFIED_MAX = 256
"""How large a dynamic axis of a bare ONNX file may become: nobody verified any size."""

Options = Mapping[str, str | int | float | bool]


class OnnxRuntime:
    def __init__(
        self,
        graphs: Mapping[str, Path],
        *,
        signature: Signature,
        options: Options,
        threads: int,
        spinning: bool = False,
    ) -> None:
        self.signature = signature
        self.graphs = {MAIN: signature}
        self._sessions = {
            name: _open(path, options=options, threads=threads, spinning=spinning) for name, path in graphs.items()
        }
        self._outputs = [spec.name for spec in signature.outputs]
        self._text = frozenset(spec.name for spec in signature.inputs if spec.datatype is DataType.BYTES)

    def predict(self, inputs: Mapping[str, Array], *, graph: str = "main") -> dict[str, Array]:
        given = {name: _as_text(array, name) for name, array in inputs.items()} if self._text else inputs
        try:
            outputs = self._sessions[graph].run(self._outputs, given)
        except REFUSALS as error:
            raise EngineFailed(f"ONNX Runtime refused the batch: {error}") from error
        return dict(zip(self._outputs, outputs, strict=True))

    def close(self) -> None:
        self._sessions.clear()


def read_signature(path: Path) -> Signature:
    """The signature that a bare ONNX file declares. Its open first axes are taken for the batch, unnamed others for
    axes of their own."""
    session = _open(path, options={}, threads=1)
    inputs, outputs = session.get_inputs(), session.get_outputs()
    axes: dict[str, dict[str, int]] = {}
    for value in (*inputs, *outputs):
        for index, size in enumerate(value.shape):
            if not isinstance(size, int):
                name = BATCH if index == 0 else size or f"{value.name}.{index}"
                axes.setdefault(name, {})[value.name] = index
    return Signature(
        inputs=tuple(map(_spec, inputs)),
        outputs=tuple(map(_spec, outputs)),
        dynamic_axes=tuple(DynamicAxis(name=name, at=at, max=UNVERIFIED_MAX) for name, at in axes.items()),
    )


def read_tensors(path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """What goes into the graph of `path` and comes out, with every open axis on its own."""
    session = _open(path, options={}, threads=1)
    return tuple(map(_spec, session.get_inputs())), tuple(map(_spec, session.get_outputs()))


def _spec(value: ort.NodeArg) -> TensorSpec:
    if value.type not in DATATYPES:
        raise EngineUnavailable(f"tensor '{value.name}' is {value.type}, which has no place in the protocol")
    shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
    return TensorSpec(name=value.name, datatype=DATATYPES[value.type], shape=shape)


def _open(path: Path, *, options: Options, threads: int, spinning: bool = False) -> ort.InferenceSession:
    session_options = ort.SessionOptions()
    session_options.intra_op_num_threads = threads
    session_options.inter_op_num_threads = 1
    session_options.log_severity_level = 3
    session_options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    session_options.add_session_config_entry("session.force_spinning_stop", "1")  # at the end of each run
    for name, value in options.items():
        session_options.add_session_config_entry(name, str(value))
    try:
        return ort.InferenceSession(path, session_options, providers=["CPUExecutionProvider"])
    except REFUSALS as error:
        raise BundleCorrupt(f"ONNX Runtime {ort.__version__} cannot load {path}: {error}") from error


def _as_text(array: Array, name: str) -> Array:
    if array.dtype != object:
        return array
    texts = np.empty(array.shape, dtype=object)
    try:
        texts.ravel()[:] = [item.decode() for item in array.ravel()]
    except UnicodeDecodeError as error:
        raise WrongInput(f"input '{name}' goes into a text tensor and must be UTF-8: {error}") from error
    return texts
