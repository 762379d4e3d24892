"""LiteRT, which was TensorFlow Lite, on the CPU.

A file has the program at a few fixed sizes, each as a signature of its own. A batch is asked in pieces of those sizes, the
largest that fit first; a row shorter than what there is gets padding where the model's signature says of what, and its answers
are cut back. Any other size is refused here: the runtime itself would resize, and keep what the converter computed from the old
sizes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from seatrial.bundle import MAIN, Bundle
from seatrial.errors import BundleCorrupt, EngineFailed, EngineUnavailable, WrongInput
from seatrial.tensors import Array, DataType, Signature, TensorSpec

NOT_TAKEN = (DataType.BYTES, DataType.BF16)
REFUSALS = (RuntimeError, TypeError, ValueError)
BEYOND = "index out of bounds"
"""What the runtime says of an index beyond its table."""
MOST_SAID = 2**16
"""Characters of old errors that a file may drag along before it is opened anew."""

Shape: TypeAlias = tuple[int, ...]
Sizes: TypeAlias = tuple[Shape, ...]
Ask: TypeAlias = Callable[..., dict[str, Array]]
"""One of the runtime's programs; it takes its inputs by their names."""


class LiteRt:
    on_cpu = True

    def __init__(self, bundle: Bundle, threads: int) -> None:
        """Raises `BundleCorrupt`, and `EngineUnavailable` for a signature with tensors that LiteRT does not take."""
        self.signature = bundle.manifest.signature
        self.graphs = {MAIN: self.signature}
        for spec in (*self.signature.inputs, *self.signature.outputs):
            if spec.datatype in NOT_TAKEN:
                raise EngineUnavailable(f"wants LiteRT for '{spec.name}', which takes no {spec.datatype}")
        self._open = partial(_File, bundle.file(bundle.manifest.graphs[MAIN]), self.signature, threads)
        self._file, self._said = self._open(), ""

    def predict(self, inputs: Mapping[str, Array], *, graph: str = "main") -> dict[str, Array]:  # noqa: ARG002 - it has one
        given = {spec.name: inputs[spec.name] for spec in self.signature.inputs}
        asked = {name: array.shape for name, array in given.items()}
        if any(len(asked[spec.name]) != len(spec.shape) for spec in self.signature.inputs):
            raise EngineFailed(f"LiteRT refused the batch: the shapes {asked} have other axes than the signature")
        try:
            answers = [ask(**piece) for ask, piece in self._file.pieces(self._lengthened(given))]
        except (TypeError, ValueError) as error:
            raise EngineFailed(f"LiteRT refused the batch: {error}") from error
        except RuntimeError as error:
            why = self._news(str(error))
            raise (WrongInput if BEYOND in why else EngineFailed)(f"LiteRT refused the batch: {why}") from None
        return {spec.name: self._joined(spec.name, answers, asked) for spec in self.signature.outputs}

    def close(self) -> None:
        self._file.close()

    def _news(self, said: str) -> str:
        """What was said last: an error of the runtime says everything that it ever said before, of others' batches (2.3.0)."""
        news, self._said = said.removeprefix(self._said), said
        if len(said) > MOST_SAID:
            self._file, self._said = self._open(), ""
        return news

    def _lengthened(self, given: Mapping[str, Array]) -> Mapping[str, Array]:
        """With rows as long as the next length that the file has."""
        axis, padding = self.signature.sequence, self.signature.padding
        if axis is None or padding is None:
            return given
        longer = dict(given)
        for name, value in padding.values.items():
            array, index = given[name], axis.at[name]
            more = max(0, self._file.next_length(array.shape[index]) - array.shape[index])
            behind = [(0, more if each == index else 0) for each in range(array.ndim)]
            longer[name] = np.pad(array, behind, constant_values=value) if more else array
        return longer

    def _joined(self, name: str, answers: Sequence[Mapping[str, Array]], asked: Mapping[str, Shape]) -> Array:
        found = [answer[name] for answer in answers]
        joined = np.concatenate(found) if len(found) > 1 else found[0]
        axis = self.signature.sequence
        if axis is None or name not in axis.at:
            return joined
        length = next(asked[each][index] for each, index in axis.at.items() if each in asked)
        cut = [slice(length if each == axis.at[name] else None) for each in range(joined.ndim)]
        return np.ascontiguousarray(joined[tuple(cut)])


class _File:
    """The programs of a file: by the shapes of their inputs, without the batch axis where there is one, and by their rows."""

    def __init__(self, path: Path, signature: Signature, threads: int) -> None:
        self._batched = signature.batch is not None
        self._programs: dict[Sizes, dict[int, Ask]] = {}
        lengths = set()
        try:
            interpreter = Interpreter(str(path), num_threads=threads)
            for key in interpreter.get_signature_list():
                ask = interpreter.get_signature_runner(key)
                told = ask.get_input_details()
                _check(path, told, signature.inputs)
                _check(path, ask.get_output_details(), signature.outputs)
                shapes = {spec.name: tuple(told[spec.name]["shape"].tolist()) for spec in signature.inputs}
                self._programs.setdefault(self._sizes(shapes), {})[self._rows(shapes)] = ask
                if signature.sequence:
                    lengths |= {shapes[name][at] for name, at in signature.sequence.at.items() if name in shapes}
        except REFUSALS as error:
            raise BundleCorrupt(f"LiteRT cannot load {path}: {error}") from error
        if not self._programs:
            raise BundleCorrupt(f"LiteRT found no program with a name in {path}")
        self._lengths = sorted(lengths)

    def next_length(self, length: int) -> int:
        """The shortest that rows of `length` fit in; as it is where there is none."""
        return next((each for each in self._lengths if each >= length), length)

    def pieces(self, given: Mapping[str, Array]) -> Iterator[tuple[Ask, Mapping[str, Array]]]:
        """Raises `ValueError` where the file has no programs that all rows fit in."""
        shapes = {name: array.shape for name, array in given.items()}
        programs, rows = self._programs.get(self._sizes(shapes), {}), self._rows(shapes)
        if not programs:
            raise ValueError(f"the file has no program for the shapes {shapes}")
        if not self._batched:
            yield programs[rows], given
            return
        asked = 0
        for size in sorted(programs, reverse=True):
            while rows - asked >= size:
                yield programs[size], {name: array[asked : asked + size] for name, array in given.items()}
                asked += size
        if asked < rows:
            raise ValueError(f"the file has programs for {sorted(programs)} rows, which do not add up to {rows}")

    def close(self) -> None:
        self._programs.clear()

    def _sizes(self, shapes: Mapping[str, Shape]) -> Sizes:
        return tuple(shape[1:] if self._batched else shape for shape in shapes.values())

    def _rows(self, shapes: Mapping[str, Shape]) -> int:
        return next(iter(shapes.values()))[0] if self._batched else 0


def open_bundle(bundle: Bundle, threads: int, spinning: bool) -> LiteRt:  # noqa: ARG001 - XNNPACK decides how to wait
    return LiteRt(bundle, threads)


def _check(path: Path, told: Mapping[str, Any], specs: Sequence[TensorSpec]) -> None:
    found = {name: each["dtype"] for name, each in told.items()}
    wanted = {spec.name: spec.datatype.numpy.type for spec in specs}
    if found != wanted:
        raise BundleCorrupt(f"LiteRT found the tensors {found} in {path}, and its signature has {wanted}")
