"""Adaptive pooling in the words of compilers that know plain pooling alone."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node


def pool_whole_images(program: "ExportedProgram") -> None:
    """Say adaptive pooling of maxima whose windows are all alike as plain pooling."""
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
