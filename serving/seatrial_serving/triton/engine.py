"""A model of a Triton repository in an engine process: the shapes that its configuration declares around ONNX Runtime.

What is declared is held against the graph before anything is served, and what is not declared is taken from the graph, both
as Triton's own backend does it. Shapes here: outer is what callers send and get, inner is what the graph has; neither has
the batch axis in it.
Source: Triton's model configuration documentation; its ONNX Runtime backend for what is filled in.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from seatrial.errors import BundleCorrupt, EngineFailed, InvalidSource, MalformedRequest, WrongInput
from seatrial.protocol import Tensor, read_tensor
from seatrial.tensors import BATCH, Array, DataType, DynamicAxis, Signature, State, TensorSpec
from seatrial_serving.engines import Engine
from seatrial_serving.engines.onnxruntime import UNVERIFIED_MAX, OnnxRuntime, read_tensors
from seatrial_serving.engines.proof import run, warm_up
from seatrial_serving.open_inference.open_inference_pb2 import ModelConfig, ModelInput, ModelOutput, ModelWarmup
from seatrial_serving.triton.folder import TritonModel
from seatrial_serving.triton.memory import Memory
from seatrial_serving.triton.model_config import DATATYPES, is_complete

MOST_SAMPLE_BYTES = 2**30
Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """One input or output."""

    name: str
    datatype: DataType
    outer: Shape
    inner: Shape


def open_model(place: Path, *, digest: str, threads: int, spinning: bool) -> Engine:
    """Load and warm up the version in `place`. Raises `InvalidSource` where the configuration does not fit the graph,
    `BundleCorrupt` where a file was changed after `digest` was taken, `EngineFailed` where a sample is refused.
    """
    model = TritonModel.at(place)
    config, file = model.config(), model.model_file()
    memory = Memory.of(config, model)
    engine: Engine = Reshaped(file, *_declare(config, memory, *read_tensors(file)), threads=threads, spinning=spinning)
    if config.HasField("sequence_batching"):
        engine = memory.around(engine, shown={output.name for output in config.output})
    for inputs in _samples(model, config, engine.signature):
        run(engine, inputs)
    if not config.model_warmup:
        with suppress(EngineFailed):  # nobody said that it takes zeros
            warm_up(engine, batch_sizes=(1,))
    if digest and model.digest() != digest:
        raise BundleCorrupt(f"a file of {place} was changed while it was loaded; load it again")
    return engine


class Reshaped:
    """ONNX Runtime, asked in outer shapes."""

    on_cpu = True

    def __init__(
        self,
        path: Path,
        inputs: Sequence[Declared],
        outputs: Sequence[Declared],
        most_rows: int,
        states: Sequence[State],
        *,
        threads: int,
        spinning: bool,
    ) -> None:
        """`most_rows` is 0 where there is no batch axis."""
        self._rank = 1 if most_rows else 0
        self._inputs, self._outputs = (
            {each.name: each for each in some if each.inner != each.outer} for some in (inputs, outputs)
        )
        self.signature = _signature(inputs, outputs, most_rows, states)
        self.graphs = {"main": self.signature}
        self._engine = OnnxRuntime(
            {"main": path}, signature=self.signature, options={}, threads=threads, spinning=spinning
        )

    def predict(self, inputs: Mapping[str, Array], *, graph: str = "main") -> dict[str, Array]:
        if not self._inputs and not self._outputs:
            return self._engine.predict(inputs, graph=graph)
        given = {name: self._fit(array, self._inputs.get(name), inwards=True) for name, array in inputs.items()}
        outputs = self._engine.predict(given, graph=graph)
        return {name: self._fit(array, self._outputs.get(name), inwards=False) for name, array in outputs.items()}

    def close(self) -> None:
        self._engine.close()

    def _fit(self, array: Array, declared: Declared | None, *, inwards: bool) -> Array:
        if declared is None:
            return array
        rows, shape = array.shape[: self._rank], array.shape[self._rank :]
        source, target = (declared.outer, declared.inner) if inwards else (declared.inner, declared.outer)
        try:
            return array.reshape(rows + _filled(source, target, shape))
        except ValueError as error:
            raise EngineFailed(f"'{declared.name}' has shape {shape} and cannot become {target}: {error}") from error


def _filled(source: Shape, target: Shape, shape: Shape) -> Shape:
    """`target` with the sizes of `shape` for what `source` and it leave open, in their order."""
    if len(shape) != len(source):
        raise ValueError(f"expected {len(source)} dimensions")
    sizes = iter([size for size, declared in zip(shape, source, strict=True) if declared < 0])
    return tuple(next(sizes) if size < 0 else size for size in target)


def _signature(
    inputs: Sequence[Declared], outputs: Sequence[Declared], most_rows: int, states: Sequence[State]
) -> Signature:
    """Raises `InvalidSource` for states that do not go round."""
    rows = (-1,) if most_rows else ()

    def specs(some: Sequence[Declared]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name=each.name, datatype=each.datatype, shape=(*rows, *each.outer)) for each in some)

    at = {each.name: 0 for each in (*inputs, *outputs)}
    axes = (DynamicAxis(name=BATCH, at=at, max=most_rows),) if most_rows else ()
    try:
        return Signature(inputs=specs(inputs), outputs=specs(outputs), dynamic_axes=axes, states=tuple(states))
    except ValueError as error:
        raise InvalidSource(f"sequence_batching makes no sense: {error}") from error


# What is declared, held against the graph


def _declare(
    config: ModelConfig, memory: Memory, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> tuple[list[Declared], list[Declared], int, Sequence[State]]:
    """Inputs, outputs, the most rows of a batch, 0 for no batch axis, and the states. Raises `InvalidSource`."""
    most_rows = config.max_batch_size
    if not is_complete(config):
        batches = all(spec.shape and spec.shape[0] < 0 for spec in (*inputs, *outputs))
        if most_rows and not batches:
            raise InvalidSource(f"max_batch_size is {most_rows}, but not every tensor's first axis is open")
        most_rows = most_rows or (UNVERIFIED_MAX if batches else 0)
    rank = 1 if most_rows else 0
    own_in = [_held_against(each, inputs, rank) for each in (*memory.inputs, *memory.controls)]
    own_out = [_held_against(each, outputs, rank) for each in memory.outputs]
    given = [_held_against(each, inputs, rank) for each in config.input] or _filled_in(inputs, rank, own_in)
    given += own_in
    if len({each.name for each in given}) < len(given):
        raise InvalidSource(
            "config.pbtxt declares an input twice, or one for callers that is a state or a control input"
        )
    if missing := {spec.name for spec in inputs} - {each.name for each in given}:
        raise InvalidSource(f"config.pbtxt does not declare the inputs {sorted(missing)} of the graph")
    got = [_held_against(each, outputs, rank) for each in config.output] or _filled_in(outputs, rank, own_out)
    got += [each for each in own_out if each.name not in {output.name for output in got}]
    return given, got, most_rows, memory.states


def _filled_in(specs: Sequence[TensorSpec], rank: int, own: Sequence[Declared]) -> list[Declared]:
    """As Triton fills it in: one number a row is stated as a row of one. Those that are the server's `own` are not callers'."""
    hidden = {each.name for each in own}
    return [
        Declared(name=spec.name, datatype=spec.datatype, outer=spec.shape[rank:] or (1,), inner=spec.shape[rank:])
        for spec in specs
        if spec.name not in hidden
    ]


def _held_against(tensor: ModelInput | ModelOutput, specs: Sequence[TensorSpec], rank: int) -> Declared:
    by_name = {spec.name: spec for spec in specs}
    name = tensor.name
    if name not in by_name:
        raise InvalidSource(f"config.pbtxt declares '{name}', the graph has {sorted(by_name)}")
    spec = by_name[name]
    if DATATYPES.get(tensor.data_type) is not spec.datatype:
        said = DATATYPES.get(tensor.data_type, "nothing")
        raise InvalidSource(f"config.pbtxt says that '{name}' is {said}, in the graph it is {spec.datatype}")
    outer = tuple(tensor.dims)
    inner = tuple(tensor.reshape.shape) if tensor.HasField("reshape") else outer
    if _segments(outer) != _segments(inner):
        raise InvalidSource(f"'{name}' has dims {list(outer)}, which cannot be reshaped to {list(inner)}")
    if not outer or any(size < 1 and size != -1 for size in (*outer, *inner)):
        raise InvalidSource(f"'{name}' has dims {list(outer)}, reshaped {list(inner)}; each is -1 or at least 1")
    graph = spec.shape[rank:]
    batches = not rank or (spec.shape and spec.shape[0] < 0)
    if inner == (1,) and not graph:
        inner = ()
    if (
        not batches
        or len(inner) != len(graph)
        or any(has not in (-1, size) for has, size in zip(graph, inner, strict=True))
    ):
        expected = f"{list(spec.shape)}, the first of them the batch" if rank else list(spec.shape)
        raise InvalidSource(f"'{name}' has dims {list(inner)} in config.pbtxt; in the graph it has {expected}")
    return Declared(name=name, datatype=spec.datatype, outer=outer, inner=inner)


def _segments(shape: Shape) -> list[int]:
    """How many elements lie before, between and after the open axes; a reshape keeps each, as Triton wants it."""
    elements = [1]
    for size in shape:
        if size < 0:
            elements.append(1)
        else:
            elements[-1] *= size
    return elements


# Warm-up


def _samples(model: TritonModel, config: ModelConfig, signature: Signature) -> Iterator[dict[str, Array]]:
    """What `model_warmup` wants to be run. Raises `InvalidSource` for what is no request to this model."""
    for sample in config.model_warmup:
        inputs = [_sample(model, sample, name, batched=signature.batch is not None) for name in sample.inputs]
        try:
            signature.check(inputs)
        except WrongInput as error:
            raise InvalidSource(f"the warm-up sample '{sample.name}' is no request to this model: {error}") from error
        for _ in range(sample.count or 1):
            yield {tensor.name: tensor.array for tensor in inputs}


def _sample(model: TritonModel, sample: ModelWarmup, name: str, *, batched: bool) -> Tensor:
    given = sample.inputs[name]
    datatype = DATATYPES.get(given.data_type)
    shape = (sample.batch_size or 1, *given.dims) if batched else tuple(given.dims)
    if datatype is None or min(shape, default=1) < 0 or math.prod(shape) * datatype.numpy.itemsize > MOST_SAMPLE_BYTES:
        raise InvalidSource(f"the input '{name}' of the warm-up sample '{sample.name}' has no size that can be made")
    match given.WhichOneof("input_data_type"):
        case "input_data_file":
            file = model.sample_file(given.input_data_file)
            try:
                array = read_tensor(file.read_bytes(), datatype, shape, name=name)
            except (OSError, MalformedRequest) as error:
                raise InvalidSource(f"{file} does not hold the input '{name}': {error}") from error
        case "random_data" if datatype is not DataType.BYTES:
            array = np.random.default_rng(0).integers(0, 2, shape).astype(datatype.numpy)
        case _:
            array = np.full(shape, b"", object) if datatype is DataType.BYTES else np.zeros(shape, datatype.numpy)
    return Tensor(name, datatype, array)
