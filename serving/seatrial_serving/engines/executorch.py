"""ExecuTorch on the CPU, its graphs compiled for XNNPACK.

A process has one pool of threads for all its programs, and each of them keeps hold of it: making it anew under a program
breaks the heap. So it is made when the first engine opens, for the number of threads that this one was given, and made again only
after all of them are closed; whoever opens beside another shares its pool.

Of its package only the runtime is imported. The public `executorch.runtime` is thin, and imports the compiler with it: seconds,
and some hundred MiB.
"""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch

from seatrial.bundle import MAIN, Bundle
from seatrial.errors import BundleCorrupt, EngineFailed, EngineUnavailable
from seatrial.tensors import Array, Signature, TensorSpec
from seatrial_serving.engines.signature import check_datatypes, check_told
from seatrial_serving.engines.torch import array_of, tensor_of

try:
    from executorch.extension.pybindings import _C as runtime  # noqa: N811 - no constant
except ImportError as error:  # built against another torch, most often
    raise EngineUnavailable(
        f"wants ExecuTorch, which cannot be imported beside torch {torch.__version__}: {error}"
    ) from error

FORWARD = "forward"
"""What its compiler calls the only method of a program."""
SCALARS: Mapping[int, str] = {
    **dict(enumerate(("uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"))),
    11: "bool",
    27: "uint16",
    28: "uint32",
    29: "uint64",
}
"""Its `ScalarType` in numpy's words; the package has the table in the compiler alone."""


class ExecuTorch:
    on_cpu = False
    """It does compute on these cores, but another engine in this process could have no more threads than this one."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        """Raises `BundleCorrupt`, and `EngineUnavailable` for a signature with tensors that ExecuTorch does not take."""
        self.signature = bundle.manifest.signature
        self.graphs = {MAIN: self.signature}
        check_datatypes(self.signature, "ExecuTorch")
        with _opening:
            if not _opened:
                runtime._unsafe_reset_threadpool(threads)  # noqa: SLF001 - so is all of it called
            self._programs = {
                name: _Program(bundle.file(file), self.signature) for name, file in bundle.manifest.graphs.items()
            }
            _opened.add(self)

    def predict(self, inputs: Mapping[str, Array], *, graph: str = "main") -> dict[str, Array]:
        program = self._programs[graph]
        given = [tensor_of(inputs[spec.name], spec.datatype) for spec in self.signature.inputs]
        for spec, tensor, room in zip(self.signature.inputs, given, program.room, strict=True):
            if tensor.ndim != len(room) or any(size > most for size, most in zip(tensor.shape, room, strict=True)):
                raise EngineFailed(
                    f"ExecuTorch refused the batch: '{spec.name}' is {list(tensor.shape)}, "
                    f"and the program was compiled for at most {list(room)}"
                )
        try:
            answer: list[torch.Tensor] = program.method(given)
        except RuntimeError as error:
            raise EngineFailed(f"ExecuTorch refused the batch: {error}") from error
        return {spec.name: array_of(tensor) for spec, tensor in zip(self.signature.outputs, answer, strict=True)}

    def close(self) -> None:
        with _opening:
            self._programs.clear()
            _opened.discard(self)


_opening = threading.Lock()
_opened: "WeakSet[ExecuTorch]" = WeakSet()


class _Program:
    """`room` is the largest that each input may be."""

    def __init__(self, path: Path, signature: Signature) -> None:
        try:
            self._program = runtime._load_program(str(path))  # noqa: SLF001
            meta = self._program.method_meta(FORWARD)
            inputs = _told(signature.inputs, [meta.input_tensor_meta(i) for i in range(meta.num_inputs())])
            check_told(path, "ExecuTorch", inputs, signature.inputs)
            outputs = _told(signature.outputs, [meta.output_tensor_meta(i) for i in range(meta.num_outputs())])
            check_told(path, "ExecuTorch", outputs, signature.outputs)
            self.method: Any = self._program.load_method(FORWARD)  # from here on it has hold of the pool
        except RuntimeError as error:
            raise BundleCorrupt(f"ExecuTorch cannot load {path}: {error}") from error
        self.room = [shape for _, shape in inputs.values()]


def _told(specs: Sequence[TensorSpec], found: Sequence[Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """By the names of `specs`, for a program has no names, only an order."""
    names = (*(spec.name for spec in specs), *map(str, range(len(specs), len(found))))
    return {
        name: (SCALARS.get(each.dtype(), f"type {each.dtype()}"), each.sizes())
        for name, each in zip(names, found, strict=False)
    }


def open_bundle(bundle: Bundle, threads: int, spinning: bool) -> ExecuTorch:  # noqa: ARG001 - its pool decides how to wait
    return ExecuTorch(bundle, threads)
