"""A program as ExecuTorch runs it: products, convolutions and much else compiled for XNNPACK, the rest by its own kernels.

ExecuTorch lays out all memory when it compiles, for the largest sizes that there may be, so the program is traced with those.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from seatrial.tensors import Signature
from seatrial_export.retrace import largest, retraced

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

MODEL = "model.pte"


def write(program: "ExportedProgram", signature: Signature) -> Path:
    """`MODEL` in the working directory; its inputs are the program's, one after the other, as are its answers."""
    from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
    from executorch.backends.xnnpack.partition.config.generic_node_configs import UnsqueezeCopyConfig
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    bounded = retraced(program, largest(signature))
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
