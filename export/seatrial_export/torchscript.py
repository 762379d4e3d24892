"""A program as TorchScript: for programs that embed libtorch, and no Python.

Tracing would write down every size that the example had, as numbers. So each operator of the program is written as a line
of TorchScript instead, its sizes still computed from the inputs, and compiled; what TorchScript has no words for is refused
by its compiler. torch 2.13 calls all of TorchScript deprecated.
"""

import io
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from seatrial.errors import ConversionFailed

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule

MODEL = "model.pt"
DEBUG = ".debug_pkl"
"""Where each line came from: paths of this machine, which would change the digest."""


def write(program: "ExportedProgram") -> Path:
    """`MODEL` in the working directory; its inputs are the program's, one after the other, its answer is a tuple."""
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\..*` is deprecated", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message="The TorchScript type system doesn't support instance-level")
        script = torch.jit.freeze(torch.jit.script(in_its_words(program)).eval())
        saved = io.BytesIO()
        torch.jit.save(script, saved)
    with zipfile.ZipFile(saved) as found, zipfile.ZipFile(MODEL, "w") as kept:
        for entry in found.infolist():
            if not entry.filename.endswith(DEBUG):
                kept.writestr(zipfile.ZipInfo(entry.filename), found.read(entry))
    return Path(MODEL)


def in_its_words(program: "ExportedProgram") -> "GraphModule":
    """A module that takes the inputs one after the other, each operator by the name that TorchScript knows.

    Raises `ConversionFailed` for what is no operator: branches and loops.
    """
    from torch import fx
    from torch._ops import HigherOrderOperator, OpOverload

    module = program.module(check_guards=False)
    for node in list(module.graph.nodes):
        if isinstance(node.target, OpOverload):
            if str(node.target).startswith("aten._assert"):
                module.graph.erase_node(node)
            else:
                node.target = node.target.overloadpacket
        elif isinstance(node.target, HigherOrderOperator):
            raise ConversionFailed(f"the program has '{node.target}', which TorchScript has no words for")
    module.graph.set_codegen(fx.graph.CodeGen())
    return fx.GraphModule(module, module.graph)
