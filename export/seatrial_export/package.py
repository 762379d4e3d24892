"""The child that makes of a program what an engine of torch's family serves: `python -P -m seatrial_export.package job.json`.

Either the program itself, without its example inputs, which torch would unpickle; or what AOTInductor compiles of it, which
takes g++ and holds machine code for CPUs like this one; or its operators as TorchScript; or what ExecuTorch compiles of it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from seatrial.tensors import Signature
from seatrial_export import child, executorch, torchscript
from seatrial_export.executorch import Largest

if TYPE_CHECKING:
    from torch.export import ExportedProgram

MODEL = "model.pt2"
AS_MANY_THREADS_AS_SAID = {"cpp.dynamic_threads": True}
"""Otherwise the number of threads of the machine that compiles is written into the code."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """`engine` is the one that will read the file. `largest` gives for each input, in the program's order, the largest size of
    each axis that varies."""

    program: str
    engine: str
    largest: tuple[dict[int, int], ...]


def largest(signature: Signature) -> tuple[dict[int, int], ...]:
    """For a job on a program with this signature."""
    return tuple(
        {axis.at[spec.name]: axis.max for axis in signature.dynamic_axes if spec.name in axis.at}
        for spec in signature.inputs
    )


class Packaged(msgspec.Struct, frozen=True, kw_only=True):
    """The file, in the child's folder."""

    model: str


def package(job: Job) -> Packaged:
    import torch

    return Packaged(model=str(WRITERS[job.engine](torch.export.load(job.program), job.largest)))


def write_program(program: "ExportedProgram", largest: Largest) -> Path:  # noqa: ARG001 - it takes any size
    import torch

    program.example_inputs = None
    torch.export.save(program, MODEL)
    return Path(MODEL)


def write_machine_code(program: "ExportedProgram", largest: Largest) -> Path:  # noqa: ARG001
    from torch._inductor import aoti_compile_and_package

    aoti_compile_and_package(
        program, package_path=str(Path(MODEL).absolute()), inductor_configs=AS_MANY_THREADS_AS_SAID
    )
    return Path(MODEL)


def write_script(program: "ExportedProgram", largest: Largest) -> Path:  # noqa: ARG001
    return torchscript.write(program)


WRITERS: Mapping[str, Callable[["ExportedProgram", Largest], Path]] = {
    "torch-export": write_program,
    "aotinductor": write_machine_code,
    "torchscript": write_script,
    "executorch": executorch.write,
}
"""By the engine that reads what they write. Each writes into the working directory."""

if __name__ == "__main__":
    child.work(Job, package)
