"""The child that makes of a program what torch serves: `python -P -m seatrial_export.package job.json`.

Either the program itself, without its example inputs, which torch would unpickle; or what AOTInductor compiles of it, which
takes g++ and holds machine code for CPUs like this one.
"""

from pathlib import Path

import msgspec

from seatrial_export import child

MODEL = "model.pt2"
AS_MANY_THREADS_AS_SAID = {"cpp.dynamic_threads": True}
"""Otherwise the number of threads of the machine that compiles is written into the code."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    program: str
    compiled: bool


class Packaged(msgspec.Struct, frozen=True, kw_only=True):
    """The file is `MODEL` in the child's folder."""


def package(job: Job) -> Packaged:
    import torch

    program = torch.export.load(job.program)
    if job.compiled:
        from torch._inductor import aoti_compile_and_package

        aoti_compile_and_package(
            program, package_path=str(Path(MODEL).absolute()), inductor_configs=AS_MANY_THREADS_AS_SAID
        )
    else:
        program.example_inputs = None
        torch.export.save(program, MODEL)
    return Packaged()


if __name__ == "__main__":
    child.work(Job, package)
