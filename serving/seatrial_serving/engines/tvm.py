"""Apache TVM: a library of machine code, run by TVM's virtual machine.

TVM counts its threads for the whole process, and the code that export has it make uses one.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tvm

from seatrial.bundle import MAIN, Bundle
from seatrial.errors import BundleCorrupt, EngineFailed
from seatrial.tensors import Array
from seatrial_serving.engines.signature import check_datatypes

REFUSALS = (AssertionError, IndexError, RuntimeError, TypeError, ValueError)


class Tvm:
    on_cpu = True

    def __init__(self, bundle: Bundle) -> None:
        """Raises `BundleCorrupt`, and `EngineUnavailable` for a signature with tensors that numpy and TVM do not share."""
        self.signature = bundle.manifest.signature
        self.graphs = {MAIN: self.signature}
        check_datatypes(self.signature, "TVM")
        self._machine: Any = _load(bundle.file(bundle.manifest.graphs[MAIN]))

    def predict(self, inputs: Mapping[str, Array], *, graph: str = "main") -> dict[str, Array]:
        given = [tvm.runtime.tensor(np.ascontiguousarray(inputs[spec.name])) for spec in self.signature.inputs]
        try:
            answer = self._machine[graph](*given)
        except REFUSALS as error:
            raise EngineFailed(f"TVM refused the batch: {error}") from error
        return {
            spec.name: np.array(tensor.numpy()) for spec, tensor in zip(self.signature.outputs, answer, strict=True)
        }

    def close(self) -> None:
        self._machine = None


def open_bundle(bundle: Bundle, threads: int, spinning: bool) -> Tvm:  # noqa: ARG001 - its code has one thread
    return Tvm(bundle)


def _load(library: Path) -> Any:
    try:
        return tvm.relax.VirtualMachine(tvm.runtime.load_module(str(library)), tvm.cpu())
    except (OSError, *REFUSALS) as error:
        raise BundleCorrupt(f"TVM cannot load {library}: {error}") from error
