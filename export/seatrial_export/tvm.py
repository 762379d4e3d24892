"""A program compiled by Apache TVM, as it comes: its kernels are not tuned, and many times slower than those of others.

Its front end answers wrongly for some programs and says nothing: an LSTM's answers were seen 10^15 and more away. Verification
is all that stands between such a package and whoever would serve it.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.export import ExportedProgram

LIBRARY = "model.so"
TARGET = "llvm"
"""For any CPU of this kind: no instructions that only some have."""


def write(program: "ExportedProgram") -> Path:
    """`LIBRARY` in the working directory; its function `main` takes the inputs one after the other, its answer is a tuple."""
    import tvm
    from tvm.relax.frontend.torch import from_exported_program

    module = from_exported_program(
        program.run_decompositions({}), keep_params_as_input=False, unwrap_unit_return_tuple=False
    )
    tvm.compile(tvm.relax.get_pipeline("zero")(module), target=TARGET).export_library(LIBRARY)
    return Path(LIBRARY)
