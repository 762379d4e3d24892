"""From a module to its `torch.export` program, with every axis that the signature calls dynamic really dynamic."""

from torch import nn
from torch.export import Dim, ExportedProgram, export

from seatrial.errors import ConversionFailed
from seatrial.tensors import Signature
from seatrial_models.architecture import Inputs


def to_program(module: nn.Module, example: Inputs, signature: Signature) -> ExportedProgram:
    """Export `module`, in its present mode, by tracing `example`, whose dynamic axes must be longer than 1.

    Raises `ConversionFailed` where the exporter fixed an axis, which it does in silence at size 1.
    """
    axes = dynamic_axes(signature)
    dynamic_shapes = {name: dict.fromkeys(axes.get(name, {}), Dim.AUTO) for name in example}
    program = export(module, args=(), kwargs=dict(example), dynamic_shapes=dynamic_shapes)
    check_dynamic(program, signature)
    return program


def check_dynamic(program: ExportedProgram, signature: Signature) -> None:
    """Raise `ConversionFailed` if an input of `program` has a fixed size where `signature` has a dynamic axis."""
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for name, axes in dynamic_axes(signature).items():
        if name not in placeholders:
            continue  # an output
        shape = placeholders[name].meta["val"].shape
        for index, axis in axes.items():
            if isinstance(shape[index], int):
                raise ConversionFailed(
                    f"axis '{axis}' of input '{name}' became fixed at {shape[index]} in the exported program; "
                    "export with an example that is longer than 1 along it, and look for code that asks for its size"
                )


def dynamic_axes(signature: Signature) -> dict[str, dict[int, str]]:
    """For each tensor, the names of its dynamic axes by their index."""
    found: dict[str, dict[int, str]] = {}
    for axis in signature.dynamic_axes:
        for tensor, index in axis.at.items():
            found.setdefault(tensor, {})[index] = axis.name
    return found
