"""The child that makes of a program what an engine of torch's family serves: `python -P -m seatrial_export.package job.json`.

Either the program itself, without its example inputs, which torch would unpickle; or what AOTInductor compiles of it, which
takes g++ and holds machine code for CPUs like this one; or its operators as TorchScript; or what ExecuTorch, coremltools, TVM or
litert-torch make of it, with TensorFlow or without.
"""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from seatrial.tensors import Signature
from seatrial_export import child, coreml, executorch, litert, tensorflow, torchscript, tvm
from seatrial_export.retrace import largest, retraced, row_after_row

if TYPE_CHECKING:
    from torch.export import ExportedProgram

MODEL = "model.pt2"
AS_MANY_THREADS_AS_SAID = {"cpp.dynamic_threads": True}
"""Otherwise the number of threads of the machine that compiles is written into the code."""
CONVERTERS = dict.fromkeys(("litert", "tensorflow"), ("litert_torch", "litert-torch"))
"""By the engine that reads what they write, where that does not bring them: the Python package, and the extra that does."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """`engine` is the one that will read the file, or the folder, which some write for the `signature`."""

    program: str
    engine: str
    signature: Signature


class Packaged(msgspec.Struct, frozen=True, kw_only=True):
    """The file, in the child's folder; where it lies in a folder of its own, all of that belongs to it."""

    model: str


def obstacle(engine: str) -> str | None:
    """Why nothing can be written here for `engine`, though it may run, in one clause; None if it can."""
    name, extra = CONVERTERS.get(engine, ("", ""))
    if name and find_spec(name) is None:
        return f"the Python package '{name}' is not installed; pip install 'seatrial[{extra}]' brings it"
    return None


def package(job: Job) -> Packaged:
    import torch

    return Packaged(model=str(WRITERS[job.engine](torch.export.load(job.program), job.signature)))


def write_program(program: "ExportedProgram") -> Path:
    import torch

    program.example_inputs = None
    torch.export.save(program, MODEL)
    return Path(MODEL)


def write_machine_code(program: "ExportedProgram", signature: Signature) -> Path:
    """For inputs that lie in memory as those of the trace did: the code takes others for such, and answers wrongly."""
    from torch._inductor import aoti_compile_and_package

    aoti_compile_and_package(
        program if row_after_row(program) else retraced(program, largest(signature)),
        package_path=str(Path(MODEL).absolute()),
        inductor_configs=AS_MANY_THREADS_AS_SAID,
    )
    return Path(MODEL)


WRITERS: Mapping[str, Callable[["ExportedProgram", Signature], Path]] = {
    "torch-export": lambda program, _: write_program(program),
    "aotinductor": write_machine_code,
    "torchscript": lambda program, _: torchscript.write(program),
    "executorch": executorch.write,
    "coreml": coreml.write,
    "tvm": lambda program, _: tvm.write(program),
    "litert": litert.write,
    "tensorflow": tensorflow.write,
}
"""By the engine that reads what they write. Each writes into the working directory."""

if __name__ == "__main__":
    child.work(Job, package)
