"""ONNX graphs, and copies of them that differ at one place."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from seatrial.tensors import Array

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
RIGHT, WRONG, PLANTED = "right_", "wrong_", "planted_"
"""What nodes that are put into a graph are given, and what they give on; and how the names of all else in them begin."""


def copied(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


def constants(model: ModelProto) -> dict[str, Array]:
    return {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}


def replaced(model: ModelProto, name: str, array: Array) -> ModelProto:
    """A copy in which the constant `name` is `array`."""
    copy = copied(model)
    [held] = [each for each in copy.graph.initializer if each.name == name]
    held.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), name))
    return copy


def at(model: ModelProto, *operators: str) -> list[tuple[int, NodeProto]]:
    return [(index, node) for index, node in enumerate(model.graph.node) if node.op_type in operators]


def changed(model: ModelProto, index: int, change: Callable[[NodeProto], None]) -> ModelProto:
    copy = copied(model)
    change(copy.graph.node[index])
    return copy


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    return next((helper.get_attribute_value(each) for each in node.attribute if each.name == name), default)


def set_attribute(node: NodeProto, name: str, value: Any) -> None:
    kept = [each for each in node.attribute if each.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def behind(model: ModelProto, tensor: str, nodes: Sequence[NodeProto], **new: Array) -> ModelProto:
    """A copy in which `nodes` make of `tensor`, which they call RIGHT, what everybody else takes for it, WRONG."""
    copy = copied(model)
    del copy.graph.node[:]
    for each in model.graph.node:
        added = copy.graph.node.add()
        added.CopyFrom(each)
        if tensor in each.output:
            added.output[list(each.output).index(tensor)] = RIGHT
            _plant(copy, nodes, new, {WRONG: tensor})
    return copy


def before(model: ModelProto, nodes: Sequence[NodeProto], **new: Array) -> ModelProto:
    """The same with the first input."""
    copy = copied(model)
    given = model.graph.input[0].name
    del copy.graph.node[:]
    _plant(copy, nodes, new, {RIGHT: given})
    copy.graph.node.extend(renamed(model.graph.node, {given: WRONG}))
    return copy


def _plant(copy: ModelProto, nodes: Sequence[NodeProto], new: Mapping[str, Array], names: Mapping[str, str]) -> None:
    inner = {name for each in nodes for name in each.output} - {WRONG} | new.keys()
    copy.graph.node.extend(renamed(nodes, {**{name: PLANTED + name for name in inner}, **names}))
    copy.graph.initializer.extend(numpy_helper.from_array(array, PLANTED + name) for name, array in new.items())


def renamed(nodes: Iterable[NodeProto], names: Mapping[str, str]) -> Iterator[NodeProto]:
    for node in nodes:
        copy = NodeProto()
        copy.CopyFrom(node)
        for tensors in (copy.input, copy.output):
            tensors[:] = [names.get(tensor, tensor) for tensor in tensors]
        yield copy


def node(operator: str, inputs: str, outputs: str, **attributes: Any) -> NodeProto:
    return helper.make_node(operator, inputs.split(), outputs.split(), **attributes)


def weights(model: ModelProto) -> list[str]:
    """The names of the layers' weights, in the order of their use, quantized or not."""
    held = constants(model)
    used = [name for _, each in at(model, *LAYERS, "DequantizeLinear") for name in each.input[:2] if name in held]
    return [name for name in dict.fromkeys(used) if held[name].ndim > 1]


def shape_of(value: Any) -> list[int]:
    """0 for what varies."""
    return [size.dim_value for size in value.type.tensor_type.shape.dim]
