"""The child that turns a program into an ONNX file: `python -P -m seatrial_export.convert job.json`."""

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from seatrial_export import child

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 20
"""New enough for every operator that the exporter wants, old enough for the quantizer."""
MODEL = "model.onnx"


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """`axes` gives for each tensor the names of its dynamic axes by their index, `smallest` the size of each to try."""

    program: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    axes: dict[str, dict[int, str]]
    smallest: dict[str, int]


class Converted(msgspec.Struct, frozen=True, kw_only=True):
    """The file is `MODEL` in the child's folder."""

    operators: tuple[str, ...]


def convert(job: Job) -> Converted:
    import onnx

    from seatrial_export.onnx_file import name_axes, operators, save

    program = Path(job.program)
    model = onnx.load(program) if program.suffix == ".onnx" else _export(program, job)
    name_axes(model, job.axes)
    save(model, Path(MODEL), smallest=job.smallest)
    return Converted(operators=operators(model))


def _export(program: Path, job: Job) -> "ModelProto":
    import torch

    from seatrial_export.onnx_file import name_tensors

    exported = torch.onnx.export(
        torch.export.load(program),
        dynamo=True,
        opset_version=OPSET,
        verbose=False,
    )
    assert exported is not None, "the dynamo exporter returns a program: this is a bug"
    model: ModelProto = exported.model_proto
    name_tensors(model, inputs=job.inputs, outputs=job.outputs)  # the exporter would not look whether a name is taken
    return model


if __name__ == "__main__":
    child.work(Job, convert)
