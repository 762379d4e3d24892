"""Rows of inputs: cut into calls, put through a model, read from a file that somebody brings.

A row is one entry along the first axis of every input. A model without a batch axis takes calls of one fixed size.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TypeAlias

import msgspec
import numpy as np

from seatrial.errors import InvalidSource, WrongInput
from seatrial.tensors import Array, Signature, TensorSpec

PANDAS_INDEX = "__index_level_"
"""How the columns begin in which pandas keeps the row names of a table."""

Inputs: TypeAlias = Mapping[str, Array]
Outputs: TypeAlias = Mapping[str, Array]
Predict: TypeAlias = Callable[[Inputs], Outputs]
PredictAll: TypeAlias = Callable[[Sequence[Inputs]], Sequence[Outputs]]
"""The answers to several calls, in their order."""


def count(inputs: Inputs) -> int:
    return min(len(array) for array in inputs.values())


def take(inputs: Inputs, index: Array | slice) -> Inputs:
    return {name: array[index] for name, array in inputs.items()}


def repeat(inputs: Inputs, rows: int) -> Inputs:
    """As many rows as asked for, from the beginning again where they run out."""
    return take(inputs, np.arange(rows) % count(inputs))


def draw(inputs: Inputs, rows: int, *, seed: int) -> Inputs:
    """At most `rows` rows, chosen at random but always the same, in their order."""
    chosen = np.random.default_rng(seed).permutation(count(inputs))[:rows]
    return take(inputs, np.sort(chosen))


def joined(parts: Sequence[Inputs]) -> dict[str, Array]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def calls(signature: Signature, inputs: Inputs, *, size: int) -> Iterator[Inputs]:
    """Consecutive calls of at most `size` rows, or what the model takes; of its fixed size where it has no batch axis."""
    if signature.batch is None:
        size = fixed_size(signature)
        usable = count(inputs) - count(inputs) % size
    else:
        size = min(size, signature.batch.max)
        usable = count(inputs)
    for start in range(0, usable, size):
        yield take(inputs, slice(start, min(start + size, usable)))


def fixed_size(signature: Signature) -> int:
    """How many rows a model without a batch axis takes at once."""
    sizes = {spec.shape[0] if spec.shape else None for spec in signature.inputs}
    [size] = sizes if len(sizes) == 1 else [None]
    if size is None or size < 1:
        raise InvalidSource(
            f"the inputs {[f'{spec.name}{list(spec.shape)}' for spec in signature.inputs]} share no first axis; "
            "export the program so that every input and output has the batch first"
        )
    return size


def answers(predict: Predict, signature: Signature, inputs: Inputs, *, size: int) -> dict[str, Array]:
    """The outputs for all rows of `inputs`, asked in calls of `size`."""
    return joined([dict(predict(call)) for call in calls(signature, inputs, size=size)])


def digest_of(value: object) -> str:
    """Of all arrays, words and numbers in `value`, however they are put together."""
    found = hashlib.sha256()
    for part in _parts(value):
        found.update(part)
    return f"sha256:{found.hexdigest()}"


def _parts(value: object) -> Iterator[bytes]:
    """In an order that is always the same, each led by what it is, so that no two values have the same parts."""
    yield f"{type(value).__qualname__} ".encode()
    if isinstance(value, np.ndarray):
        yield f"{value.dtype} {value.shape} ".encode() + np.ascontiguousarray(value).tobytes()
    elif isinstance(value, Mapping):
        yield f"{len(value)} ".encode()
        for name in sorted(value):
            yield from _parts(name)
            yield from _parts(value[name])
    elif isinstance(value, list | tuple):
        yield f"{len(value)} ".encode()
        for each in value:
            yield from _parts(each)
    elif isinstance(value, msgspec.Struct):
        yield msgspec.json.encode(value, order="sorted")
    elif is_dataclass(value):
        for field in fields(value):
            yield from _parts(getattr(value, field.name))
    else:
        assert value is None or isinstance(value, str | bool | int | float | np.generic), (
            f"no digest of {value!r}: this is a bug"
        )
        yield f"{value!r} ".encode()


def fitted(inputs: Inputs, signature: Signature, *, whose: str) -> dict[str, Array]:
    """`inputs` as `signature` has them. Raises `InvalidSource`, naming `whose` they are, where they do not fit."""
    names = [spec.name for spec in signature.inputs]
    if sorted(inputs) != sorted(names):
        raise InvalidSource(f"{whose} has the inputs {sorted(inputs)}, the model takes {sorted(names)}")
    return {spec.name: _fitted(inputs[spec.name], spec, whose) for spec in signature.inputs}


def _fitted(array: Array, spec: TensorSpec, whose: str) -> Array:
    wanted = spec.datatype.numpy
    if array.dtype != wanted and not np.can_cast(array.dtype, wanted, casting="same_kind"):
        raise InvalidSource(f"{whose}: input '{spec.name}' is {array.dtype}, the model takes {spec.datatype}")
    array = np.ascontiguousarray(array, wanted)
    whole = (-1, *spec.shape[1:])  # any number of rows
    try:
        TensorSpec(name=spec.name, datatype=spec.datatype, shape=whole).check(array, datatype=spec.datatype)
    except WrongInput as error:
        raise InvalidSource(f"{whose}: {error}") from error
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InvalidSource(f"{whose}: input '{spec.name}' holds NaN or infinity")
    return array


def varying(examples: Sequence[Inputs]) -> tuple[tuple[int, ...], ...]:
    """For each input the axes of any size: the first, and those in which the examples differ.

    Raises `InvalidSource` where they are not examples of the same inputs.
    """
    first = examples[0]
    for other in examples[1:]:
        found, wanted = ({name: array.ndim for name, array in each.items()} for each in (other, first))
        if found != wanted:
            raise InvalidSource(
                f"one example has inputs of the ranks {found}, another of {wanted}; give the same inputs"
            )
    sizes = {name: [example[name].shape for example in examples] for name in first}
    return tuple(
        tuple(axis for axis, found in enumerate(zip(*shapes, strict=True)) if axis == 0 or len(set(found)) > 1)
        for shapes in sizes.values()
    )


def read_samples(path: Path, signature: Signature) -> dict[str, Array]:
    """Rows from an `.npz` (one array per input) or a Parquet file (one column per input, or one per feature)."""
    found = read_arrays(path)
    [only, *others] = signature.inputs
    if not others and only.name not in found:  # without a name, or a table with a column per feature
        arrays = list(found.values())
        found = {only.name: arrays[0] if len(arrays) == 1 else np.stack(arrays, axis=1)}
    return fitted(found, signature, whose=str(path))


def read_arrays(path: Path) -> dict[str, Array]:
    """What the file holds, by the names that it uses."""
    readers = {".npz": _read_npz, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise InvalidSource(f"{path} is neither .npz nor .parquet; one array or column per input is expected")
    if not path.is_file():
        raise InvalidSource(f"there is no file {path}")
    try:
        return readers[path.suffix](path)
    except (OSError, ValueError) as error:  # what Parquet's reader raises is a ValueError too
        raise InvalidSource(f"{path} cannot be read as {path.suffix}: {error}") from error


def write_arrays(path: Path, arrays: Inputs) -> None:
    """An `.npz` for `read_arrays`; the folder comes into being."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, allow_pickle=False, **arrays)


def _read_npz(path: Path) -> dict[str, Array]:
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _read_parquet(path: Path) -> dict[str, Array]:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    names = [name for name in table.column_names if not name.startswith(PANDAS_INDEX)]
    return {name: np.array(table.column(name).to_pylist()) for name in names}
