"""A bundle's signature, held against what runs it: the datatypes that it takes, and what the model file says of itself."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from seatrial.errors import BundleCorrupt, EngineUnavailable
from seatrial.tensors import DataType, Signature, TensorSpec

Told: TypeAlias = tuple[str, Sequence[int]]
"""The datatype of a tensor by numpy's name, and its shape."""
WITHOUT_NUMPY = (DataType.BYTES, DataType.BF16)
"""What numpy has no numbers for."""


def check_datatypes(signature: Signature, runtime: str, *, not_taken: Collection[DataType] = WITHOUT_NUMPY) -> None:
    """Raises `EngineUnavailable` for a tensor that `runtime` does not take."""
    for spec in (*signature.inputs, *signature.outputs):
        if spec.datatype in not_taken:
            raise EngineUnavailable(f"wants {runtime} for '{spec.name}', and {runtime} takes no {spec.datatype} here")


def check_told(path: Path, runtime: str, told: Mapping[str, Told], specs: Sequence[TensorSpec]) -> None:
    """Raises `BundleCorrupt` unless `told`, the tensors that `runtime` found in `path`, are those of `specs`.

    An axis that is open in a spec may have any size: a program is for that one, or for none above it.
    """
    wanted: Mapping[str, Told] = {spec.name: (spec.datatype.numpy.name, spec.shape) for spec in specs}
    if told.keys() != wanted.keys() or not all(_fits(told[name], wanted[name]) for name in wanted):
        raise BundleCorrupt(
            f"{runtime} found the tensors {_said(told)} in {path}, and its signature has {_said(wanted)}"
        )


def _fits(told: Told, wanted: Told) -> bool:
    (datatype, shape), (wanted_datatype, open_shape) = told, wanted
    return (
        datatype == wanted_datatype
        and len(shape) == len(open_shape)
        and all(most in (-1, size) for size, most in zip(shape, open_shape, strict=True))
    )


def _said(tensors: Mapping[str, Told]) -> str:
    return ", ".join(f"'{name}' {datatype}{list(shape)}" for name, (datatype, shape) in tensors.items()) or "nothing"
