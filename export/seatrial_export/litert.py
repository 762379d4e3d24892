"""A program as LiteRT runs it, which was TensorFlow Lite: one file, in it the program at each of a few sizes.

litert-torch converts fixed sizes alone. LiteRT's runtime would resize inputs afterwards, but what was computed from the old
sizes stays in the file: of our architectures the ResNets alone survived that. So each size is a signature of the file.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from seatrial.tensors import Signature
from seatrial_export.fixed_sizes import by_name, name_of, sizes_of, zeros_of
from seatrial_export.pooling import pool_whole_images

if TYPE_CHECKING:
    from torch.export import ExportedProgram

MODEL = "model.tflite"


def write(program: "ExportedProgram", signature: Signature) -> Path:
    """`MODEL` in the working directory; its tensors have the names and types of the signature, 64-bit ones too."""
    import litert_torch

    pool_whole_images(program)
    module = by_name(program, signature)
    first, *others = sizes_of(signature)
    converter = litert_torch.signature(name_of(first), module, sample_kwargs=zeros_of(signature, first))
    for sizes in others:
        converter.signature(name_of(sizes), module, sample_kwargs=zeros_of(signature, sizes))
    converter.convert(enable_x64=True).export(MODEL)
    return Path(MODEL)
