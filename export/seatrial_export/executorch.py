"""A program as ExecuTorch runs it: products, convolutions and much else compiled for XNNPACK, the rest by its own kernels.

ExecuTorch lays out all memory when it compiles, for the largest sizes that there may be. So the program is traced once more,
with inputs as large as its signature allows: torch's own choice of kernels writes bounds into what it traces (a convolution of
fewer than 16 rows is taken for one that always has fewer), and none of them can be too low for a trace at the most.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seatrial.errors import ConversionFailed
from seatrial.tensors import Signature

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram
    from torch.fx import Node

MODEL = "model.pte"

Largest = Sequence[Mapping[int, int]]
"""For each input, in the program's order, the largest size of each axis that varies."""


def write(program: "ExportedProgram", signature: Signature) -> Path:
    """`MODEL` in the working directory; its inputs are the program's, one after the other, as are its answers."""
    from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
    from executorch.backends.xnnpack.partition.config.generic_node_configs import UnsqueezeCopyConfig
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    bounded = at_most(program, _largest(signature))
    pool_whole_images(bounded)
    configs = list(ALL_PARTITIONER_CONFIGS)
    if (
        len(bounded.range_constraints) > 1
    ):  # XNNPACK reshapes one dynamic axis, and this rule alone does not look (1.5.1)
        configs.remove(UnsqueezeCopyConfig)
    lowered = to_edge_transform_and_lower(bounded, partitioner=[XnnpackPartitioner(configs=configs)])
    path = Path(MODEL)
    path.write_bytes(lowered.to_executorch().buffer)
    return path


def at_most(program: "ExportedProgram", largest: Largest) -> "ExportedProgram":
    """The program traced again at the largest sizes, which bound all others.

    Raises `ConversionFailed` where an input has an axis that varies and no bound.
    """
    import torch
    from torch.export import Dim, ShapesCollection, export
    from torch.utils import _pytree as pytree

    tensors = _inputs(program)
    if all(isinstance(size, int) for tensor in tensors for size in tensor.shape):
        return program
    bounds: dict[Any, int] = {}
    for tensor, axes in zip(tensors, largest, strict=True):
        bounds |= {tensor.shape[axis].node.expr: size for axis, size in axes.items()}
    examples: list[Tensor] = []
    shapes: Any = ShapesCollection()  # type: ignore[no-untyped-call] # torch's own
    for tensor in tensors:
        example = torch.zeros([_bounded(size, bounds) for size in tensor.shape], dtype=tensor.dtype)
        varying = [axis for axis, size in enumerate(tensor.shape) if not isinstance(size, int)]
        if varying:
            shapes[example] = {axis: Dim.AUTO(max=example.shape[axis]) for axis in varying}
        examples.append(example)
    structure = program.call_spec.in_spec
    assert structure is not None, "a program without the structure of its inputs: this is a bug"
    args, kwargs = pytree.tree_unflatten(examples, structure)
    return export(program.module(check_guards=False), args=args, kwargs=kwargs, dynamic_shapes=shapes)


def _largest(signature: Signature) -> Largest:
    return tuple(
        {axis.at[spec.name]: axis.max for axis in signature.dynamic_axes if spec.name in axis.at}
        for spec in signature.inputs
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
        raise ConversionFailed(f"ExecuTorch lays out memory for the largest inputs, and the size {size} has no bound")
    return int(found)


def pool_whole_images(program: "ExportedProgram") -> None:
    """Say adaptive pooling whose windows are all alike as the pooling that ExecuTorch has; it has no adaptive one of maxima."""
    import torch

    aten = torch.ops.aten
    for node in list(program.graph.nodes):
        if node.target is aten.adaptive_max_pool2d.default and (window := _window(node)):
            node.target, node.args = aten.max_pool2d_with_indices.default, (node.args[0], window, window)
    program.graph.lint()


def _window(node: "Node") -> list[int] | None:
    """How many pixels become one; None where the windows differ or the image's size varies."""
    image, wanted = node.args[0], node.args[1]
    sizes = image.meta["val"].shape[-2:]  # type: ignore[union-attr] # the graph is torch's: its argument is a node
    pairs = list(zip(sizes, wanted, strict=True))  # type: ignore[arg-type] # and two integers
    if any(not isinstance(size, int) or size % into for size, into in pairs):
        return None
    return [size // into for size, into in pairs]
