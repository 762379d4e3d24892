"""What every candidate is asked, and what the source model answered: sizes, edges, and rows in company.

Built once for a model version, from real rows where there are any. Knows nothing of candidates or engines.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from seatrial.errors import InvalidSource
from seatrial.tensors import Array, DynamicAxis, Padding, Signature
from seatrial_export.samples import Inputs, Outputs, Predict, answers, calls, count, fixed_size, joined, repeat, take

BATCH_SIZES = (1, 2, 3, 7)
"""And the largest. 7 is neither a power of two nor near one."""
ROWS_AT_ONCE = 64
"""In one call, where all rows are asked and the size does not matter."""
COMPANY = 5
"""Rows that take each other's places."""
LOUD = 10
"""How many times the range of the others a noisy neighbour has."""
NOISE_ROWS = 8
"""Of numbers that have nothing to do with each other, in one call."""
VALUE_CALLS = 16
"""Most calls in which the values of an input of integers are asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One call, and what the source model answers. `small` marks those of a row or two that are worth recording: edges,
    and unusual sizes.

    Over the `ordinary` ones it is taken how far a lossy candidate lies from the source; the others hold what no real row
    is like. `axis` is the dynamic axis that the case tries at `size`.
    """

    name: str
    inputs: Inputs
    source: Outputs = field(default_factory=dict)
    small: bool = False
    ordinary: bool = True
    axis: str = ""
    size: int = 0

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
    """`rows` are what agreement is taken over, `source` the source's answers to them. `tables` ask every integer, of candidates
    that must be equal. Of a model that `embeds` the answers are directions, in which no element is the winner."""

    signature: Signature
    cases: tuple[Case, ...]
    tables: tuple[Case, ...]
    companies: tuple[Company, ...]
    rows: Inputs
    source: Outputs
    embeds: bool = False

    @property
    def scale(self) -> dict[str, float]:
        """How large each output gets: rounding is judged in proportion to it, but never below 1."""
        return {name: max(1.0, _magnitude(array)) for name, array in self.source.items()}


def set_exam(signature: Signature, rows: Inputs, predict: Predict, *, embeds: bool = False) -> Exam:
    """Ask the source model everything.

    Raises `InvalidSource` where the source itself answers NaN, or differently to the same row in other company.
    """
    source = answers(predict, signature, rows, size=ROWS_AT_ONCE)
    for name, array in source.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InvalidSource(f"the source model's output '{name}' holds NaN or infinity for ordinary inputs")
    exam = Exam(
        signature=signature,
        cases=(*_answered(_sizes(signature, rows), predict), *_answered(_values(signature, rows), predict)),
        tables=tuple(_answered(_every_value(signature, rows), predict)),
        companies=tuple(_companies(signature, rows)),
        rows=rows,
        source=source,
        embeds=embeds,
    )
    for company in exam.companies:
        _check_source_keeps_to_itself(company, predict, exam.scale)
    return exam


def _answered(cases: Iterable[Case], predict: Predict) -> Iterator[Case]:
    """Those for which the source has numbers."""
    for case in cases:
        try:
            source = predict(case.inputs)
        except InvalidSource:
            if case.axis:
                raise  # a size that its signature allows
            continue  # values that it does not take
        if all(array.dtype.kind != "f" or np.isfinite(array).all() for array in source.values()):
            yield replace(case, source=source)


def _batch_sizes(axis: DynamicAxis) -> list[int]:
    return _within(axis, (*BATCH_SIZES, axis.max))


def _few(signature: Signature, rows: Inputs, number: int) -> Inputs:
    """At most so many rows, or a call of the fixed size."""
    if signature.batch is None:
        return next(calls(signature, rows, size=1))
    return repeat(rows, min(number, signature.batch.max))


def _sizes(signature: Signature, rows: Inputs) -> Iterator[Case]:
    """Batches, and every other dynamic axis at several sizes and at that of the rows."""
    if signature.batch is None:
        yield Case(name="its fixed size", inputs=_few(signature, rows, 1))
    else:
        for size in _batch_sizes(signature.batch):
            yield Case(name=f"batch {size}", inputs=repeat(rows, size), axis=signature.batch.name, size=size)
    few = _few(signature, rows, 2)
    for axis in signature.dynamic_axes:
        if axis != signature.batch:
            own = {few[name].shape[index] for name, index in axis.at.items() if name in few}
            for size in _within(axis, (axis.min, axis.min + 1, (axis.min + axis.max) // 2, axis.max, *own)):
                inputs = resized(few, axis, size)
                yield Case(name=f"{axis.name} {size}", inputs=inputs, small=True, axis=axis.name, size=size)


def _within(axis: DynamicAxis, sizes: tuple[int, ...]) -> list[int]:
    return sorted({size for size in sizes if axis.min <= size <= axis.max})


def resized(inputs: Inputs, axis: DynamicAxis, size: int) -> Inputs:
    """`inputs` with `size` entries along `axis`: cut, or from the beginning again."""
    return {
        name: np.take(array, np.arange(size) % array.shape[axis.at[name]], axis.at[name]) if name in axis.at else array
        for name, array in inputs.items()
    }


def _values(signature: Signature, rows: Inputs) -> Iterator[Case]:
    """Numbers that real rows seldom or never hold, in the sizes that they have."""
    if any(array.dtype.kind not in "bfiu" for array in rows.values()):
        return  # text
    yield from _edges(signature, rows)
    yield Case(name="noise", inputs=_noise(_few(signature, rows, NOISE_ROWS), rows), ordinary=False)
    if any(array.dtype.kind == "f" for array in rows.values()):
        loud = {name: _noisy(array) for name, array in _few(signature, rows, 2).items()}
        yield Case(name=f"{LOUD} times the range", inputs=loud, ordinary=False)
    if signature.sequence is not None and signature.padding is not None:
        yield from _much_padding(_few(signature, rows, COMPANY), signature.sequence, signature.padding)


def _edges(signature: Signature, rows: Inputs) -> Iterator[Case]:
    """One row (or one fixed call) of zeros, of the lowest and of the highest value ever seen, of both in turn, and of numbers
    too small for the full precision of their type."""
    one = _few(signature, rows, 1)
    lowest = {name: np.full_like(array, rows[name].min()) for name, array in one.items()}
    highest = {name: np.full_like(array, rows[name].max()) for name, array in one.items()}
    in_turn = {
        name: np.where(np.arange(array.size).reshape(array.shape) % 2, lowest[name], highest[name])
        for name, array in one.items()
    }
    yield Case(name="zeros", inputs={name: np.zeros_like(array) for name, array in one.items()}, small=True)
    yield Case(name="lowest", inputs=lowest, small=True)
    yield Case(name="highest", inputs=highest, small=True)
    yield Case(name="in turn", inputs=in_turn, small=True)
    if any(array.dtype.kind == "f" for array in one.values()):
        yield Case(name="denormals", inputs={name: _denormal(array) for name, array in one.items()})


def _denormal(array: Array) -> Array:
    if array.dtype.kind != "f":
        return array
    return np.full_like(array, np.finfo(array.dtype).smallest_normal / 2)


def _noise(few: Inputs, rows: Inputs) -> Inputs:
    """Any numbers between the lowest and the highest ever seen: they tell apart what is alike in real rows, such as the colours
    of a grey image."""
    generator = np.random.default_rng(0)

    def noise(name: str, array: Array) -> Array:
        low, high = rows[name].min(), rows[name].max()
        if array.dtype.kind != "f":
            return generator.integers(low, high, array.shape, array.dtype, endpoint=True)
        part = generator.random(array.shape)
        return np.asarray(low * (1 - part) + high * part, array.dtype)

    return {name: noise(name, array) for name, array in few.items()}


def _every_value(signature: Signature, rows: Inputs) -> Iterator[Case]:
    """Integers name things, most often the rows of a table: each between the lowest and the highest seen, or as many of them,
    evenly spread, as there is room for. The other integers are at their highest, which for a mask is to heed all."""
    highest = {
        name: np.full_like(array, array.max()) if array.dtype.kind in "iu" else array for name, array in rows.items()
    }
    unit = 1 if signature.batch else fixed_size(signature)
    for name, array in rows.items():
        width = array[0].size
        if array.dtype.kind not in "iu" or not width:
            continue
        low, high = int(array.min()), int(array.max())
        number = min(high - low + 1, VALUE_CALLS * ROWS_AT_ONCE * width)
        values = [low + (high - low) * step // max(1, number - 1) for step in range(number)]
        length = -(-number // (width * unit)) * unit
        asked = np.resize(np.array(values, array.dtype), (length, *array.shape[1:]))
        for call in calls(signature, {**repeat(highest, length), name: asked}, size=ROWS_AT_ONCE):
            yield Case(name=f"every value of '{name}'", inputs=call)


def _much_padding(few: Inputs, axis: DynamicAxis, padding: Padding) -> Iterator[Case]:
    """Rows of several lengths padded to the most that there may be, and a row of nothing but padding."""
    *_, longest = _padded(few, axis, padding).parties
    yield Case(name=longest.name, inputs=longest.inputs)
    nothing = {
        name: np.full_like(array, padding.values[name]) if name in padding.values else array
        for name, array in resized(take(few, slice(1)), axis, axis.max).items()
    }
    yield Case(name="padding alone", inputs=nothing, ordinary=False)


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
