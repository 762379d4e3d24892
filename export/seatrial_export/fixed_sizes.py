"""A program at a few fixed sizes, for converters that want every size to be a number.

litert-torch is one (0.10.0: most operators it has JAX say, which asserts that). So the program is converted once for each
of these sizes, all with the same weights, and the engine puts a batch together from what there is.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from seatrial.errors import ConversionFailed
from seatrial.tensors import BATCH, DynamicAxis, Signature

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram
    from torch.nn import Module

ROWS = (1, 8, 32)
"""What a batch of any size is put together from, as far as there is room for them."""
HALVINGS = 3
"""Where a row may be padded there are this many shorter lengths, each half of the one before."""
MOST = 24
"""Signatures in a file: each is a conversion of its own, which takes seconds."""

FixedSizes = Mapping[str, int]
"""Of every dynamic axis, by its name."""


def sizes_of(signature: Signature) -> list[FixedSizes]:
    """At which sizes the program is converted, the smallest first.

    Raises `ConversionFailed` where what may be asked would take too many.
    """
    ladders = {axis.name: _lengths(axis, signature) for axis in signature.dynamic_axes if axis != signature.batch}
    lengths = math.prod(map(len, ladders.values()))
    if lengths > MOST:
        raise ConversionFailed(
            f"litert-torch converts fixed sizes alone, a file has {MOST} at most, and {' x '.join(ladders)} "
            f"{'has' if len(ladders) == 1 else 'have'} {lengths}"
        )
    if signature.batch:
        rows = [n for n in ROWS[: MOST // lengths] if n == 1 or n <= signature.batch.max]
        ladders = {BATCH: rows, **ladders}
    return [dict(zip(ladders, sizes, strict=True)) for sizes in product(*ladders.values())]


def _lengths(axis: DynamicAxis, signature: Signature) -> Sequence[int]:
    if axis == signature.sequence:
        return sorted({max(axis.min, math.ceil(axis.max / 2**times)) for times in range(HALVINGS + 1)})
    return range(axis.min, axis.max + 1)


def name_of(sizes: FixedSizes) -> str:
    """Without commas: with one in any name litert-torch loses all of them (0.10.0)."""
    return "x".join(map(str, sizes.values())) or "main"


def zeros_of(signature: Signature, sizes: FixedSizes) -> "dict[str, Tensor]":
    """Inputs to trace with, by their names."""
    import torch

    found = {}
    for spec in signature.inputs:
        shape = list(spec.shape)
        for axis in signature.dynamic_axes:
            if spec.name in axis.at:
                shape[axis.at[spec.name]] = sizes[axis.name]
        found[spec.name] = torch.from_numpy(np.zeros(shape, spec.datatype.numpy))
    return found


def by_name(program: "ExportedProgram", signature: Signature) -> "Module":
    """The program as a module that takes and answers tensors by the names of the signature, which become the file's."""
    import torch
    from torch.utils import _pytree as pytree

    structure = program.call_spec.in_spec
    assert structure is not None, "a program without the structure of its inputs: this is a bug"

    class ByName(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.program = program.module(check_guards=False)

        def forward(self, **given: torch.Tensor) -> dict[str, torch.Tensor]:
            args, kwargs = pytree.tree_unflatten([given[spec.name] for spec in signature.inputs], structure)
            answers = pytree.tree_leaves(self.program(*args, **kwargs))
            return {spec.name: answer for spec, answer in zip(signature.outputs, answers, strict=True)}

    return ByName()
