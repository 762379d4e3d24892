"""A `torch.export` program traced once more: with inputs as large as its signature allows, one row after the other in memory.

What compiles for fixed memory takes bounds from it, and what compiles for a fixed layout the layout in which engines give
their rows. torch's own choice of kernels writes bounds into what it traces (a convolution of fewer than 16 rows is taken for
one that always has fewer), and none of them can be too low for a trace at the most.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from seatrial.errors import ConversionFailed
from seatrial.tensors import Signature

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram

Largest: TypeAlias = Sequence[Mapping[int, int]]
"""For each input, in the program's order, the largest size of each axis that varies."""


def retraced(program: "ExportedProgram", largest: Largest) -> "ExportedProgram":
    """Raises `ConversionFailed` where an input has an axis that varies and no bound."""
    import torch
    from torch.export import Dim, ShapesCollection, export
    from torch.utils import _pytree as pytree

    tensors = _inputs(program)
    bounds: dict[Any, int] = {}
    for tensor, axes in zip(tensors, largest, strict=True):
        varying = {axis: size for axis, size in axes.items() if not isinstance(tensor.shape[axis], int)}
        bounds |= {tensor.shape[axis].node.expr: size for axis, size in varying.items()}
    examples: list[Tensor] = []
    shapes: Any = ShapesCollection()  # type: ignore[no-untyped-call] # torch's own
    for tensor in tensors:
        example = torch.zeros([_bounded(size, bounds) for size in tensor.shape], dtype=tensor.dtype)
        if dynamic := [axis for axis, size in enumerate(tensor.shape) if not isinstance(size, int)]:
            shapes[example] = {axis: Dim.AUTO(max=example.shape[axis]) for axis in dynamic}
        examples.append(example)
    structure = program.call_spec.in_spec
    assert structure is not None, "a program without the structure of its inputs: this is a bug"
    args, kwargs = pytree.tree_unflatten(examples, structure)
    return export(program.module(check_guards=False), args=args, kwargs=kwargs, dynamic_shapes=shapes)


def largest(signature: Signature) -> Largest:
    return tuple(
        {axis.at[spec.name]: axis.max for axis in signature.dynamic_axes if spec.name in axis.at}
        for spec in signature.inputs
    )


def row_after_row(program: "ExportedProgram") -> bool:
    """Whether it was traced with inputs that lie in memory as C has its arrays.

    NOTE: torch says so of a stride that no number is ever found with, and does not mean it: of pictures with one channel whose
    channels lie side by side it goes on as for channels last (torch 2.13).
    """
    import torch

    return all(
        tensor.stride() == torch.empty_like(tensor, memory_format=torch.contiguous_format).stride()
        for tensor in _inputs(program)
    )


def _inputs(program: "ExportedProgram") -> list[Any]:
    """Without content; a size that varies is an expression of symbols."""
    nodes = {node.name: node for node in program.graph.nodes}
    return [nodes[str(name)].meta["val"] for name in program.graph_signature.user_inputs]


def _bounded(size: Any, bounds: Mapping[Any, int]) -> int:
    """`size` where each symbol in it is at its bound."""
    if isinstance(size, int):
        return size
    found = size.node.expr.subs(bounds)
    if not found.is_integer or found.free_symbols:
        raise ConversionFailed(f"memory is laid out for the largest inputs, and the size {size} has no bound")
    return int(found)
