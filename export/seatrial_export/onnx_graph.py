"""A graph of an ONNX model that can be asked who makes a tensor and who reads it, and be changed in place.

Runs inside children. A node that has a body (a branch, a loop) counts as reader of what the body reads.
"""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from seatrial.tensors import Array


class Graph:
    """Every node gets a name, if it had none. What is asked is answered as of the last change made through it."""

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self._proto = model.graph
        self.constants = {tensor.name: tensor for tensor in self._proto.initializer}
        self.types = {value.name: value for value in (*self._proto.value_info, *self._proto.input, *self._proto.output)}
        self._made: dict[str, NodeProto] = {}
        self._read: dict[str, list[NodeProto]] = defaultdict(list)
        for number, node in enumerate(self.nodes):
            node.name = node.name or f"{node.op_type}-{number}"
            self._made.update(dict.fromkeys(node.output, node))
            for name in dict.fromkeys(_reads(node)):
                self._read[name].append(node)

    @property
    def nodes(self) -> list[NodeProto]:
        return list(self._proto.node)

    @property
    def outputs(self) -> frozenset[str]:
        return frozenset(value.name for value in self._proto.output)

    def maker(self, tensor: str) -> NodeProto | None:
        """None for an input, or a constant, of the graph."""
        return self._made.get(tensor)

    def readers(self, tensor: str) -> list[NodeProto]:
        return self._read[tensor]

    def is_float(self, tensor: str) -> bool:
        """Whether it is a float tensor that the graph computes, or an input."""
        value = self.types.get(tensor)
        return (
            tensor not in self.constants and value is not None and value.type.tensor_type.elem_type == TensorProto.FLOAT
        )

    def weights(self, node: NodeProto, index: int) -> Array | None:
        """The constant at one of the node's inputs, if it is one and holds floats."""
        tensor = self.constants.get(node.input[index]) if index < len(node.input) else None
        return None if tensor is None or tensor.data_type != TensorProto.FLOAT else numpy_helper.to_array(tensor)

    def set_weights(self, node: NodeProto, index: int, value: Array) -> None:
        """Give this node, and no other that shares it, another constant."""
        before = node.input[index]
        shared = len(self._read[before]) > 1 or list(node.input).count(before) > 1
        name = f"{before}.{node.name}.{index}" if shared else before
        tensor = numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name)
        if shared:
            node.input[index] = name
            self._proto.initializer.append(tensor)
            self.constants[name] = self._proto.initializer[-1]
            self._read[before].remove(node)
            self._read[name].append(node)
        else:
            self.constants[name].CopyFrom(tensor)

    def branch_off(self, tensor: str, readers: list[NodeProto], operator: str, *constants: Array) -> str:
        """Let `readers` alone read `tensor` through a new node; the name of what it makes."""
        made = f"{tensor}.{operator.lower()}"
        node = helper.make_node(operator, [tensor, *(f"{made}.{i}" for i in range(len(constants)))], [made], name=made)
        for name, constant in zip(node.input[1:], constants, strict=True):
            self._proto.initializer.append(numpy_helper.from_array(constant.astype(np.float32), name))
            self.constants[name] = self._proto.initializer[-1]
        for reader in list(readers):
            for index, name in enumerate(reader.input):
                if name == tensor:
                    reader.input[index] = made
            self._read[tensor].remove(reader)
        names = {reader.name for reader in readers}
        first = next(place for place, each in enumerate(self.nodes) if each.name in names)
        self._proto.node.insert(first, node)
        self._made[made] = self._proto.node[first]
        self._read[made] = readers
        self._read[tensor].append(self._proto.node[first])
        if tensor in self.types:
            self._proto.value_info.append(ValueInfoProto())
            self._proto.value_info[-1].CopyFrom(self.types[tensor])
            self._proto.value_info[-1].name = made
            self.types[made] = self._proto.value_info[-1]
        return made


def copied(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


def watched(model: ModelProto, tensors: list[str]) -> bytes:
    """The model, which answers with `tensors` of its inside and nothing else."""
    copy = copied(model)
    del copy.graph.output[:]
    copy.graph.output.extend(ValueInfoProto(name=name) for name in tensors)
    return copy.SerializeToString()


def _reads(node: NodeProto) -> Iterator[str]:
    yield from filter(None, node.input)
    for attribute in node.attribute:
        bodies = [*attribute.graphs, *([attribute.g] if attribute.type == AttributeProto.GRAPH else [])]
        for inner in (each for body in bodies for each in body.node):
            yield from _reads(inner)
