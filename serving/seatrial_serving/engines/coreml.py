"""Core ML, which is there on macOS alone. It was written to coremltools' documentation and never run: see `docs/engines.md`.

Core ML knows integers of 32 bits and no others; what comes and goes is turned into the signature's types. It computes on the
CPU, where single precision is what it says.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np

from seatrial.bundle import MAIN, Bundle
from seatrial.errors import BundleCorrupt, EngineFailed
from seatrial.tensors import Array, DataType, TensorSpec
from seatrial_serving.engines.signature import check_datatypes

NOT_TAKEN = frozenset(DataType) - {DataType.FP32, DataType.INT32, DataType.INT64}


class CoreMl:
    on_cpu = True

    def __init__(self, bundle: Bundle) -> None:
        """Raises `BundleCorrupt`, and `EngineUnavailable` for a signature with tensors that Core ML does not take."""
        self.signature = bundle.manifest.signature
        self.graphs = {MAIN: self.signature}
        check_datatypes(self.signature, "Core ML", not_taken=NOT_TAKEN)
        self._model: Any = _load(bundle.file(bundle.manifest.graphs[MAIN]).parent)

    def predict(self, inputs: Mapping[str, Array], *, graph: str = "main") -> dict[str, Array]:  # noqa: ARG002 - it has one
        given = {spec.name: _as_known(inputs[spec.name]) for spec in self.signature.inputs}
        try:
            found = self._model.predict(given)
        except (RuntimeError, TypeError, ValueError) as error:
            raise EngineFailed(f"Core ML refused the batch: {error}") from error
        return {spec.name: _as_promised(found[spec.name], spec) for spec in self.signature.outputs}

    def close(self) -> None:
        self._model = None


def open_bundle(bundle: Bundle, threads: int, spinning: bool) -> CoreMl:  # noqa: ARG001 - Core ML counts its threads itself
    return CoreMl(bundle)


def _load(package: Path) -> Any:
    try:
        return ct.models.MLModel(str(package), compute_units=ct.ComputeUnit.CPU_ONLY)
    except (OSError, RuntimeError, ValueError) as error:
        raise BundleCorrupt(f"Core ML cannot load {package}: {error}") from error


def _as_known(array: Array) -> Array:
    """Raises `EngineFailed` for an integer that would become another one."""
    if array.dtype != np.int64:
        return array
    known = array.astype(np.int32)
    if not np.array_equal(known, array):
        raise EngineFailed("Core ML refused the batch: it has integers of more than 32 bits")
    return known


def _as_promised(array: Array, spec: TensorSpec) -> Array:
    return np.array(array, dtype=spec.datatype.numpy)
