"""What torch runs: a `torch.export` program as it is, the machine code that AOTInductor made of one, or TorchScript.

With `executorch` the only module of serving that imports torch; loaded by name, where a bundle wants one of them. torch counts
its threads for the whole process, so each engine says its own number before each call: one process may hold an engine with its
share of the cores and another with all of them, and asks one at a time.
"""

import warnings
from collections.abc import Callable, Container, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch.utils import _pytree as pytree

from seatrial.bundle import MAIN, Bundle
from seatrial.errors import BundleCorrupt, EngineFailed
from seatrial.tensors import Array, DataType, Signature
from seatrial_serving.engines.pt2 import check_package, check_program, check_script
from seatrial_serving.engines.signature import check_datatypes

REFUSALS = (AssertionError, IndexError, RuntimeError, TypeError, ValueError)

Ask: TypeAlias = Callable[[list[torch.Tensor]], list[torch.Tensor]]
"""Tensors in the order of the signature, both ways; the list that was given may come back empty."""


class TorchEngine:
    on_cpu = True

    def __init__(self, graphs: Mapping[str, Ask], *, signature: Signature, threads: int) -> None:
        self.signature = signature
        self.graphs = {MAIN: signature}
        self._ask, self._threads = dict(graphs), threads

    def predict(self, inputs: Mapping[str, Array], *, graph: str = "main") -> dict[str, Array]:
        given = [tensor_of(inputs[spec.name], spec.datatype) for spec in self.signature.inputs]
        lent = {tensor.untyped_storage().data_ptr() for tensor in given}
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                answer = self._ask[graph](given)
        except REFUSALS as error:
            raise EngineFailed(f"torch refused the batch: {error}") from error
        return {spec.name: array_of(tensor, lent) for spec, tensor in zip(self.signature.outputs, answer, strict=True)}

    def close(self) -> None:
        self._ask.clear()


def open_program(bundle: Bundle, threads: int, spinning: bool) -> TorchEngine:  # noqa: ARG001 - OpenMP decides how to wait
    return _open(bundle, _program, threads=threads)


def open_package(bundle: Bundle, threads: int, spinning: bool) -> TorchEngine:  # noqa: ARG001
    return _open(bundle, _package, threads=threads)


def open_script(bundle: Bundle, threads: int, spinning: bool) -> TorchEngine:  # noqa: ARG001
    return _open(bundle, _script, threads=threads)


def _open(bundle: Bundle, load: Callable[[Path], Ask], *, threads: int) -> TorchEngine:
    signature = bundle.manifest.signature
    check_datatypes(signature, "torch", not_taken=(DataType.BYTES,))
    graphs = {}
    for name, file in bundle.manifest.graphs.items():
        path = bundle.file(file)
        try:
            graphs[name] = load(path)
        except REFUSALS as error:
            raise BundleCorrupt(f"torch {torch.__version__} cannot load {path}: {error}") from error
    return TorchEngine(graphs, signature=signature, threads=threads)


def _program(path: Path) -> Ask:
    check_program(path)
    program = torch.export.load(path)
    structure = program.call_spec.in_spec
    assert structure is not None, "a program without the structure of its inputs: this is a bug"
    return partial(_ask_program, program.module(), structure)


def _ask_program(module: Any, structure: pytree.TreeSpec, given: list[torch.Tensor]) -> list[torch.Tensor]:
    args, kwargs = pytree.tree_unflatten(given, structure)
    answer: list[torch.Tensor] = pytree.tree_leaves(module(*args, **kwargs))
    return answer


def _package(path: Path) -> Ask:
    """Its shared library is unpacked below the temporary folder, and stays loaded until the process ends (torch 2.13)."""
    from torch._inductor import aoti_load_package

    check_package(path)
    ask: Ask = aoti_load_package(str(path)).loader.boxed_run
    return ask


def _script(path: Path) -> Ask:
    check_script(path)
    with warnings.catch_warnings():  # all of TorchScript is: docs/engines.md says what that means
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.load` is deprecated", category=DeprecationWarning)
        script = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call] # torch's own
    return partial(_ask_script, script)


def _ask_script(module: Any, given: list[torch.Tensor]) -> list[torch.Tensor]:
    try:
        return list(module(*given))
    except RuntimeError as error:  # the last line says what is wrong, those before where
        raise RuntimeError(str(error).strip().splitlines()[-1]) from error


def tensor_of(array: Array, datatype: DataType) -> torch.Tensor:
    """Without a copy where the array may be written to, as torch demands, and its items lie in a row."""
    plain = array if array.flags.writeable and array.flags.c_contiguous else array.copy()
    tensor = torch.from_numpy(plain)
    return tensor.view(torch.bfloat16) if datatype is DataType.BF16 else tensor


def array_of(tensor: torch.Tensor, lent: Container[int] = ()) -> Array:
    """The caller's to keep, hence a copy where the model handed an input, whose storage was `lent`, through."""
    plain = tensor.contiguous()
    if plain.untyped_storage().data_ptr() in lent:
        plain = plain.clone()
    array: Array = (plain.view(torch.uint16) if plain.dtype is torch.bfloat16 else plain).numpy()
    return array
