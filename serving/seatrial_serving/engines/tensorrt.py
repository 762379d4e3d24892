"""NVIDIA TensorRT: a plan that was built for one kind of GPU and one version of the library, and runs nowhere else.

The bundle names both (`hardware`), and they were compared before anything is loaded. One optimization profile covers the
sizes that were verified. Buffers are ours, one for each tensor, as large as the largest batch that came.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorrt as trt

from seatrial.bundle import MAIN, Bundle
from seatrial.errors import BundleCorrupt, EngineFailed, EngineUnavailable
from seatrial.tensors import Array, DataType, Signature, TensorSpec
from seatrial_serving.engines.device_memory import Buffer, Stream
from seatrial_serving.engines.signature import check_datatypes


class TensorRt:
    on_cpu = False

    def __init__(self, graphs: Mapping[str, Path], *, signature: Signature) -> None:
        """Raises `BundleCorrupt`, `EngineUnavailable`."""
        self.signature = signature
        self.graphs = {MAIN: signature}
        check_datatypes(signature, "TensorRT", not_taken=(DataType.BYTES,))
        try:
            self._stream = Stream()
        except RuntimeError as error:
            raise EngineUnavailable(f"wants TensorRT: {error}") from error
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self._plans = {name: self._load(path) for name, path in graphs.items()}
        self._contexts = {name: plan.create_execution_context() for name, plan in self._plans.items()}
        self._buffers = {spec.name: Buffer(self._stream.driver) for spec in (*signature.inputs, *signature.outputs)}

    def predict(self, inputs: Mapping[str, Array], *, graph: str = "main") -> dict[str, Array]:
        context = self._contexts[graph]
        given = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        try:
            self._stream.enter()
            for name, array in given.items():
                self._give(context, name, array)
            outputs = {spec.name: self._make_room(context, spec) for spec in self.signature.outputs}
            if not context.execute_async_v3(self._stream.handle.value):
                raise RuntimeError("its log says why")
            for name, array in outputs.items():
                self._stream.copy_out(self._buffers[name], array)
            self._stream.wait()
        except (RuntimeError, ValueError) as error:
            raise EngineFailed(f"TensorRT refused the batch: {error}") from error
        return outputs

    def close(self) -> None:
        """In this order: a context belongs to its plan, and both to the device."""
        self._stream.enter()
        self._contexts.clear()
        self._plans.clear()
        for buffer in self._buffers.values():
            buffer.close()
        self._stream.close()

    def _load(self, path: Path) -> Any:
        plan = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if plan is None:
            raise BundleCorrupt(f"TensorRT {trt.__version__} cannot load {path}; its log says why")
        return plan

    def _give(self, context: Any, name: str, array: Array) -> None:
        if not context.set_input_shape(name, array.shape):
            raise ValueError(f"the shape {list(array.shape)} of '{name}' is outside its optimization profile")
        buffer = self._buffers[name]
        buffer.reserve(array.nbytes)
        context.set_tensor_address(name, buffer.address.value)
        self._stream.copy_in(array, buffer)

    def _make_room(self, context: Any, spec: TensorSpec) -> Array:
        """Where the output goes: its buffer on the device, and the array that the caller gets."""
        shape = tuple(context.get_tensor_shape(spec.name))
        if min(shape, default=0) < 0:
            raise ValueError(f"the shape {list(shape)} of '{spec.name}' hangs on the content of the inputs")
        array = np.empty(shape, spec.datatype.numpy)
        buffer = self._buffers[spec.name]
        buffer.reserve(array.nbytes)
        context.set_tensor_address(spec.name, buffer.address.value)
        return array


def open_bundle(bundle: Bundle, threads: int, spinning: bool) -> TensorRt:  # noqa: ARG001 - its threads are the GPU's
    return TensorRt(
        {name: bundle.file(file) for name, file in bundle.manifest.graphs.items()}, signature=bundle.manifest.signature
    )
