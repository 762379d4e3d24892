"""OpenVINO on the CPU, from ONNX or from its own format.

Left to itself it pins its threads to cores, so that two processes end up on the same one, and computes in BF16 where the CPU
can: both are said otherwise here. An option of the manifest is a property of its CPU plugin, and wins, except over the
threads.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import openvino as ov

from seatrial.bundle import MAIN, Bundle
from seatrial.errors import BundleCorrupt, EngineFailed
from seatrial.tensors import Array
from seatrial_serving.engines.signature import check_datatypes

DEVICE = "CPU"
PROPERTIES: Mapping[str, str | int | bool] = {
    "PERFORMANCE_HINT": "LATENCY",
    "NUM_STREAMS": 1,
    "ENABLE_CPU_PINNING": False,
    "INFERENCE_PRECISION_HINT": "f32",
}


class OpenVino:
    on_cpu = True

    def __init__(self, bundle: Bundle, threads: int) -> None:
        """Raises `BundleCorrupt`, and `EngineUnavailable` for a signature with tensors that OpenVINO does not take."""
        manifest = bundle.manifest
        self.signature = manifest.signature
        self.graphs = {MAIN: self.signature}
        check_datatypes(self.signature, "OpenVINO")
        properties = {**PROPERTIES, **manifest.engine.options, "INFERENCE_NUM_THREADS": threads}
        core = ov.Core()
        self._requests = {
            name: _open(core, str(bundle.file(file)), properties) for name, file in manifest.graphs.items()
        }
        self._outputs = [spec.name for spec in self.signature.outputs]

    def predict(self, inputs: Mapping[str, Array], *, graph: str = "main") -> dict[str, Array]:
        request = self._requests[graph]
        given = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        try:
            request.infer(given, share_inputs=True, share_outputs=True)
            return {name: request.get_tensor(name).data.copy() for name in self._outputs}
        except RuntimeError as error:
            raise EngineFailed(f"OpenVINO refused the batch: {error}") from error

    def close(self) -> None:
        self._requests.clear()


def open_bundle(bundle: Bundle, threads: int, spinning: bool) -> OpenVino:  # noqa: ARG001 - its threads never spin
    return OpenVino(bundle, threads)


def _open(core: ov.Core, path: str, properties: dict[str, Any]) -> ov.InferRequest:
    try:
        return core.compile_model(core.read_model(path), DEVICE, properties).create_infer_request()
    except RuntimeError as error:
        raise BundleCorrupt(f"OpenVINO {ov.__version__} cannot load {path}: {error}") from error
