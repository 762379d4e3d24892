"""What every candidate is asked, and what the source model answered: sizes, edges, and rows in company.

Built once for a model version, from real rows where there are any. Knows nothing of candidates or engines.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from seatrial.errors import InvalidSource
from seatrial.tensors import Array, DynamicAxis, Padding, Signature
from seatrial_export.samples import Inputs, Outputs, Predict, answers, calls, count, joined, repeat, take

BATCH_SIZES = (1, 2, 3, 7)
"""And the largest. 7 is neither a power of two nor near one."""
ROWS_AT_ONCE = 64
"""In one call, where all rows are asked and the size does not matter."""
COMPANY = 5
"""Rows that take each other's places."""
LOUD = 10
"""How many times the range of the others a noisy neighbour has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One call. `small` marks those of a row or two that are worth recording: edges, and unusual sizes."""

    name: str
    inputs: Inputs
    source: Outputs
    small: bool = False

    @property
    def alone(self) -> bool:
        return count(self.inputs) == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Party:
    """One batch. `seats` says for each position which row of the company sits there; None is a noisy neighbour."""

    name: str
    inputs: Inputs
    seats: tuple[int | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Company:
    """Rows, each `alone` in a call, and the parties at which they must answer the same."""

    alone: tuple[Inputs, ...]
    parties: tuple[Party, ...]

    def compare(self, predict: Predict) -> Iterator[tuple[str, Outputs, Outputs]]:
        """For every row at every party: the party's name, what the row answers alone, and what in company."""
        alone = [predict(inputs) for inputs in self.alone]
        for party in self.parties:
            together = predict(party.inputs)
            for position, row in enumerate(party.seats):
                if row is not None:
                    yield party.name, alone[row], _as_large(take(together, slice(position, position + 1)), alone[row])


def _as_large(answer: Outputs, alone: Outputs) -> Outputs:
    """Cut back to the size of `alone`: what a server gives a caller whose row was padded."""
    return {name: answer[name][tuple(map(slice, array.shape))] for name, array in alone.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Exam:
    """`rows` are what agreement is taken over, `source` the source's answers to them."""

    signature: Signature
    cases: tuple[Case, ...]
    companies: tuple[Company, ...]
    rows: Inputs
    source: Outputs

    @property
    def scale(self) -> dict[str, float]:
        """How large each output gets: rounding is judged in proportion to it, but never below 1."""
        return {name: max(1.0, _magnitude(array)) for name, array in self.source.items()}


def set_exam(signature: Signature, rows: Inputs, predict: Predict) -> Exam:
    """Ask the source model everything.

    Raises `InvalidSource` where the source itself answers NaN, or differently to the same row in other company.
    """
    source = answers(predict, signature, rows, size=ROWS_AT_ONCE)
    for name, array in source.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InvalidSource(f"the source model's output '{name}' holds NaN or infinity for ordinary inputs")
    exam = Exam(
        signature=signature,
        cases=tuple(_answered(signature, rows, predict)),
        companies=tuple(_companies(signature, rows)),
        rows=rows,
        source=source,
    )
    for company in exam.companies:
        _check_source_keeps_to_itself(company, predict, exam.scale)
    return exam


def _answered(signature: Signature, rows: Inputs, predict: Predict) -> Iterator[Case]:
    for name, inputs in _batches(signature, rows):
        yield Case(name=name, inputs=inputs, source=predict(inputs))
    for name, inputs in _sizes(signature, rows):
        yield Case(name=name, inputs=inputs, source=predict(inputs), small=True)
    for name, inputs in _edges(signature, rows):
        source = predict(inputs)
        if all(array.dtype.kind != "f" or np.isfinite(array).all() for array in source.values()):
            yield Case(name=name, inputs=inputs, source=source, small=True)


def _batches(signature: Signature, rows: Inputs) -> Iterator[tuple[str, Inputs]]:
    if (axis := signature.batch) is None:
        yield "its fixed size", next(calls(signature, rows, size=1))
    else:
        for size in _batch_sizes(axis):
            yield f"batch {size}", repeat(rows, size)


def _batch_sizes(axis: DynamicAxis) -> list[int]:
    return _within(axis, (*BATCH_SIZES, axis.max))


def _sizes(signature: Signature, rows: Inputs) -> Iterator[tuple[str, Inputs]]:
    """Every other dynamic axis at several sizes."""
    few = repeat(rows, min(2, signature.batch.max)) if signature.batch else next(calls(signature, rows, size=1))
    for axis in signature.dynamic_axes:
        if axis != signature.batch:
            for size in _within(axis, (axis.min, axis.min + 1, (axis.min + axis.max) // 2, axis.max)):
                yield f"{axis.name} {size}", resized(few, axis, size)


def _within(axis: DynamicAxis, sizes: tuple[int, ...]) -> list[int]:
    return sorted({size for size in sizes if axis.min <= size <= axis.max})


def resized(inputs: Inputs, axis: DynamicAxis, size: int) -> Inputs:
    """`inputs` with `size` entries along `axis`: cut, or from the beginning again."""
    return {
        name: np.take(array, np.arange(size) % array.shape[axis.at[name]], axis.at[name]) if name in axis.at else array
        for name, array in inputs.items()
    }


def _edges(signature: Signature, rows: Inputs) -> Iterator[tuple[str, Inputs]]:
    """One row (or one fixed call) of zeros, of the lowest and of the highest value ever seen, and of both in turn."""
    one = repeat(rows, 1) if signature.batch else next(calls(signature, rows, size=1))
    if any(array.dtype.kind not in "fiu" for array in rows.values()):
        return
    lowest = {name: np.full_like(array, rows[name].min()) for name, array in one.items()}
    highest = {name: np.full_like(array, rows[name].max()) for name, array in one.items()}
    yield "zeros", {name: np.zeros_like(array) for name, array in one.items()}
    yield "lowest", lowest
    yield "highest", highest
    yield (
        "in turn",
        {
            name: np.where(np.arange(array.size).reshape(array.shape) % 2, lowest[name], highest[name])
            for name, array in one.items()
        },
    )


def _companies(signature: Signature, rows: Inputs) -> Iterator[Company]:
    """Each row alone, in batches of every size, at every position of one, beside noisy neighbours, and padded."""
    if signature.batch is None or signature.batch.max < 2:
        return
    size = min(COMPANY, signature.batch.max)
    together = repeat(rows, size)
    noisy = {name: _noisy(array) for name, array in together.items()}
    yield Company(
        alone=tuple(take(together, slice(row, row + 1)) for row in range(size)),
        parties=(
            *_in_batches(rows, size, _batch_sizes(signature.batch)),
            *_rotations(together, size),
            *_beside(together, noisy, size),
        ),
    )
    if signature.sequence is not None and signature.padding is not None:
        yield _padded(together, signature.sequence, signature.padding)


def _in_batches(rows: Inputs, size: int, batch_sizes: Sequence[int]) -> Iterator[Party]:
    """The company at the head of every batch of the grid: a kernel may be wrong at one size alone."""
    for number in batch_sizes:
        seats = tuple(position if position < size else None for position in range(number))
        yield Party(name=f"in a batch of {number}", inputs=repeat(rows, number), seats=seats)


def _rotations(together: Inputs, size: int) -> Iterator[Party]:
    for shift in range(size):
        seats = [(position + shift) % size for position in range(size)]
        yield Party(name="among other rows", inputs=take(together, np.array(seats)), seats=tuple(seats))


def _beside(together: Inputs, noisy: Inputs, size: int) -> Iterator[Party]:
    for row in range(size):
        quiet = np.arange(size) == row
        inputs = {
            name: np.concatenate([noisy[name][:row], array[quiet], noisy[name][row + 1 :]])
            for name, array in together.items()
        }
        seats = tuple(row if position == row else None for position in range(size))
        yield Party(name=f"beside rows of {LOUD} times the range", inputs=inputs, seats=seats)


def _noisy(array: Array) -> Array:
    """Ten times as loud; of integers, which name things and have no loudness, all the highest."""
    return array * array.dtype.type(LOUD) if array.dtype.kind == "f" else np.full_like(array, array.max())


def _padded(together: Inputs, axis: DynamicAxis, padding: Padding) -> Company:
    """Each row without its padding, and all of them padded, to the longest of them and to the most that there may be.

    Where all are equally long they are cut to several lengths.
    """
    rows = [take(together, slice(row, row + 1)) for row in range(count(together))]
    lengths = [_length(row, axis, padding) for row in rows]
    if len(set(lengths)) == 1:
        lengths = [length * number // len(rows) for number, length in enumerate(lengths, start=1)]
    lengths = [max(axis.min, length) for length in lengths]
    alone = [_lengthened(row, axis, padding, n, n) for row, n in zip(rows, lengths, strict=True)]
    return Company(
        alone=tuple(alone),
        parties=tuple(
            Party(
                name=f"padded to {width}",
                inputs=joined(
                    [_lengthened(row, axis, padding, n, width) for row, n in zip(alone, lengths, strict=True)]
                ),
                seats=tuple(range(len(rows))),
            )
            for width in sorted({max(lengths), axis.max})
        ),
    )


def _length(row: Inputs, axis: DynamicAxis, padding: Padding) -> int:
    """How long the row is without the padding at its end: as long as any of its inputs."""
    ends = [0]
    for name, value in padding.values.items():
        real = np.moveaxis(row[name] != value, axis.at[name], 0).reshape(row[name].shape[axis.at[name]], -1)
        ends.append(int(np.flatnonzero(real.any(axis=1))[-1:].sum()) + 1)
    return max(ends)


def _lengthened(row: Inputs, axis: DynamicAxis, padding: Padding, length: int, width: int) -> Inputs:
    """The first `length` places of the row, from the beginning again where it is shorter, padded to `width`."""
    cut = resized(row, axis, length)
    return {
        name: np.pad(array, _behind(array.ndim, axis.at[name], width - length), constant_values=padding.values[name])
        if name in padding.values
        else array
        for name, array in cut.items()
    }


def _behind(rank: int, axis: int, number: int) -> list[tuple[int, int]]:
    return [(0, number if index == axis else 0) for index in range(rank)]


def _check_source_keeps_to_itself(company: Company, predict: Predict, scale: dict[str, float]) -> None:
    for party, alone, together in company.compare(predict):
        for name, limit in scale.items():
            apart = float(np.max(np.abs(together[name] - alone[name]), initial=0.0))
            if not apart <= 1e-3 * limit:
                raise InvalidSource(
                    f"the source model itself answers a row differently {party} ({apart:.3g} apart in '{name}'), so "
                    "requests cannot share a batch; export the program with a fixed batch of 1"
                )


def _magnitude(array: Array) -> float:
    return float(np.max(np.abs(array), initial=0)) if array.dtype.kind == "f" else 1.0
