"""A program as ExecuTorch runs it: products, convolutions and much else compiled for XNNPACK, the rest by its own kernels.

ExecuTorch lays out all memory when it compiles, for the largest sizes that there may be, so the program is traced with those.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from seatrial.tensors import Signature
from seatrial_export.pooling import pool_whole_images
from seatrial_export.retrace import largest, retraced

if TYPE_CHECKING:
    from torch.export import ExportedProgram

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
