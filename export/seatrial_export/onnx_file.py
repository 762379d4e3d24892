"""ONNX files as we keep them: nothing in them that a path, a clock or a stack trace decides, and proved to load.

Runs inside children; imports neither torch nor MLflow.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import AttributeProto, GraphProto, ModelProto

from seatrial.errors import ConversionFailed
from seatrial.tensors import Array
from seatrial_serving.engines.onnxruntime import DATATYPES

Axes = Mapping[str, Mapping[int, str]]
"""For each tensor, the names of its dynamic axes by their index."""


def clean(model: ModelProto) -> None:
    """Take out what varies from run to run, and the shapes of inner tensors, which later steps would find stale."""
    _clear(model)
    parts: list[Any] = [*_graphs(model.graph), *model.functions]
    for part in parts:
        _clear(part)
        del part.value_info[:]
        for node in part.node:
            _clear(node)
    for graph in _graphs(model.graph):
        for value in (*graph.initializer, *graph.input, *graph.output):
            _clear(value)


def _clear(part: Any) -> None:
    part.ClearField("doc_string")
    del part.metadata_props[:]


def name_tensors(model: ModelProto, *, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Give inputs and outputs these names, in their order; inner tensors that had one of them get another."""
    ours = {*inputs, *outputs}
    outer = {
        value.name: name
        for values, names in ((model.graph.input, inputs), (model.graph.output, outputs))
        for value, name in zip(values, names, strict=True)
    }
    graphs = list(_graphs(model.graph))
    used = ours | {name for graph in graphs for node in graph.node for name in (*node.input, *node.output)}
    inner = {name: next(new for i in count(1) if (new := f"{name}_{i}") not in used) for name in ours - outer.keys()}
    renamed = inner | outer
    for graph in graphs:
        for node in graph.node:
            for names in (node.input, node.output):
                names[:] = [renamed.get(name, name) for name in names]
        values: list[Any] = [*graph.input, *graph.output, *graph.initializer, *graph.value_info]
        for value in values:
            value.name = renamed.get(value.name, value.name)


def name_axes(model: ModelProto, axes: Axes) -> None:
    """Give the dynamic axes of inputs and outputs our names. Raises `ConversionFailed` where one became fixed."""
    renamed: dict[str, str] = {}  # one symbol may stand at several places
    for value in (*model.graph.input, *model.graph.output):
        for index, name in axes.get(value.name, {}).items():
            size = value.type.tensor_type.shape.dim[index]
            if size.HasField("dim_value"):
                raise ConversionFailed(
                    f"axis '{name}' of '{value.name}' became fixed at {size.dim_value} in the ONNX graph"
                )
            if size.dim_param:
                renamed[size.dim_param] = name
            size.dim_param = name
    for value in (*model.graph.input, *model.graph.output):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param in renamed:
                size.dim_param = renamed[size.dim_param]


def save(model: ModelProto, path: Path, *, smallest: Mapping[str, int]) -> None:
    """Clean, write, and run once: what cannot be loaded, or crashes the runtime, fails here, in the child.

    `smallest` is the size to run with of each dynamic axis, by its name.
    """
    clean(model)
    onnx.save(model, path)
    _try_out(path, smallest)


def _try_out(path: Path, smallest: Mapping[str, int]) -> None:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    session.run(None, {value.name: _zeros(value, smallest) for value in session.get_inputs()})


def operators(model: ModelProto) -> tuple[str, ...]:
    return tuple(sorted({node.op_type for graph in _graphs(model.graph) for node in graph.node}))


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and those inside its nodes: branches and loop bodies."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _graphs(attribute.g)
            for inner in attribute.graphs:
                yield from _graphs(inner)


def _zeros(value: ort.NodeArg, smallest: Mapping[str, int]) -> Array:
    shape = [size if isinstance(size, int) else smallest.get(size, 1) for size in value.shape]
    return np.zeros(shape, DATATYPES[value.type].numpy)
