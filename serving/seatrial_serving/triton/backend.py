"""What Triton's Python backend runs for a bundle: our own engine, as `seatrial serve` would open it.

Copied into the model repository as `model.py`, and imported there only: `triton_python_backend_utils` exists in Triton's own
process alone. Triton forms the batches of requests; they are put together along the first axis here.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton

from seatrial.bundle import open_bundle
from seatrial.errors import SeatrialError
from seatrial.tensors import DataType
from seatrial_serving.engines import open_engine
from seatrial_serving.engines.proof import replay, warm_up


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        """Open, verify, warm up, replay: whatever is wrong raises, and Triton does not call the model ready."""
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        place = Path(args["model_repository"]) / args["model_version"] / "bundle"
        bundle = open_bundle(place, expected=parameters["seatrial.digest"])
        bundle.verify()
        self.engine = open_engine(bundle, threads=int(parameters["intra_op_thread_count"]))
        warm_up(self.engine, batch_sizes=(1,))
        replay(self.engine, bundle)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        try:
            return self._together(requests)
        except SeatrialError as error:
            if len(requests) == 1:
                return [triton.InferenceResponse(error=triton.TritonError(str(error)))]
            return [response for request in requests for response in self.execute([request])]

    def _together(self, requests: Sequence[Any]) -> list[Any]:
        """One call of the engine for all requests; each gets its own rows."""
        signature = self.engine.signature
        rows = [self._input(request, signature.inputs[0].name).shape[0] for request in requests]
        inputs = {
            spec.name: np.concatenate([self._input(request, spec.name) for request in requests])
            if signature.batch
            else self._input(requests[0], spec.name)
            for spec in signature.inputs
        }
        outputs = self.engine.predict(inputs)
        responses = []
        end = 0
        for count in rows:
            start, end = end, end + count
            own = {name: array[start:end] if signature.batch else array for name, array in outputs.items()}
            tensors = [
                triton.Tensor(spec.name, _as_triton(own[spec.name], spec.datatype)) for spec in signature.outputs
            ]
            responses.append(triton.InferenceResponse(output_tensors=tensors))
        return responses

    @staticmethod
    def _input(request: Any, name: str) -> Any:
        return triton.get_input_tensor_by_name(request, name).as_numpy()

    def finalize(self) -> None:
        self.engine.close()


def _as_triton(array: Any, datatype: DataType) -> Any:
    """An array that Triton can take: text as bytes objects, everything else contiguous."""
    if datatype is DataType.BYTES:
        return np.array([str(item).encode() for item in array.ravel()], dtype=object).reshape(array.shape)
    return np.ascontiguousarray(array)
