"""Programs for a few fixed sizes, which answer batches of any size together.

A batch is asked in pieces, the largest that fit first; a row shorter than what there is gets padding where the model's
signature says of what, and its answers are cut back. Knows nothing of what runs a program.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from seatrial.tensors import Array, Signature

Shape: TypeAlias = tuple[int, ...]
Sizes: TypeAlias = tuple[Shape, ...]
Ask: TypeAlias = Callable[..., Mapping[str, Array]]
"""One of the programs; it takes its inputs by their names."""


class FixedSizes:
    """The programs by the shapes of their inputs, without the batch axis where there is one, and by their rows."""

    def __init__(self, signature: Signature) -> None:
        self._signature = signature
        self._programs: dict[Sizes, dict[int, Ask]] = {}
        self._lengths: list[int] = []

    def add(self, shapes: Mapping[str, Shape], ask: Ask) -> None:
        """`shapes` are those of its inputs."""
        given = {spec.name: shapes[spec.name] for spec in self._signature.inputs}
        self._programs.setdefault(self._sizes(given), {})[self._rows(given)] = ask
        if axis := self._signature.sequence:
            self._lengths = sorted(
                {*self._lengths, *(given[name][at] for name, at in axis.at.items() if name in given)}
            )

    def __len__(self) -> int:
        return sum(map(len, self._programs.values()))

    def answer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Raises `ValueError` for sizes that there are no programs for."""
        given = {spec.name: inputs[spec.name] for spec in self._signature.inputs}
        asked = {name: array.shape for name, array in given.items()}
        if any(len(asked[spec.name]) != len(spec.shape) for spec in self._signature.inputs):
            raise ValueError(f"the shapes {asked} have other axes than the signature")
        answers = [ask(**piece) for ask, piece in self._pieces(self._lengthened(given))]
        return {spec.name: self._joined(spec.name, answers, asked) for spec in self._signature.outputs}

    def close(self) -> None:
        self._programs.clear()

    def _lengthened(self, given: Mapping[str, Array]) -> Mapping[str, Array]:
        """With rows as long as the shortest length that they fit in; as they are where there is none."""
        axis, padding = self._signature.sequence, self._signature.padding
        if axis is None or padding is None:
            return given
        longer = dict(given)
        for name, value in padding.values.items():
            array, index = given[name], axis.at[name]
            length = array.shape[index]
            more = next((each for each in self._lengths if each >= length), length) - length
            behind = [(0, more if each == index else 0) for each in range(array.ndim)]
            longer[name] = np.pad(array, behind, constant_values=value) if more else array
        return longer

    def _pieces(self, given: Mapping[str, Array]) -> Iterator[tuple[Ask, Mapping[str, Array]]]:
        shapes = {name: array.shape for name, array in given.items()}
        programs, rows = self._programs.get(self._sizes(shapes), {}), self._rows(shapes)
        if not programs:
            raise ValueError(f"the file has no program for the shapes {shapes}")
        if not self._signature.batch:
            yield programs[rows], given
            return
        asked = 0
        for size in sorted(programs, reverse=True):
            while rows - asked >= size:
                yield programs[size], {name: array[asked : asked + size] for name, array in given.items()}
                asked += size
        if asked < rows:
            raise ValueError(f"the file has programs for {sorted(programs)} rows, which do not add up to {rows}")

    def _joined(self, name: str, answers: Sequence[Mapping[str, Array]], asked: Mapping[str, Shape]) -> Array:
        found = [answer[name] for answer in answers]
        joined = np.concatenate(found) if len(found) > 1 else found[0]
        axis = self._signature.sequence
        if axis is None or name not in axis.at:
            return joined
        length = next(asked[each][index] for each, index in axis.at.items() if each in asked)
        cut = [slice(length if each == axis.at[name] else None) for each in range(joined.ndim)]
        return np.ascontiguousarray(joined[tuple(cut)])

    def _sizes(self, shapes: Mapping[str, Shape]) -> Sizes:
        return tuple(shape[1:] if self._signature.batch else shape for shape in shapes.values())

    def _rows(self, shapes: Mapping[str, Shape]) -> int:
        return next(iter(shapes.values()))[0] if self._signature.batch else 0
