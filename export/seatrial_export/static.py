"""A float graph that can be made static INT8, in all of its layers or in some. Runs inside children.

A layer is a convolution or a product with a matrix of weights. In a graph of convolutions everything between them
becomes INT8 too. In one of matrix products only their inputs do: what a Transformer adds up from layer to layer, and
what it puts through softmax and normalisation, is float, since its largest numbers are hundreds of times the others.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType, TensorData, TensorsData
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from seatrial_export.calibrate import Call, Range, ranges
from seatrial_export.candidate import Calibration
from seatrial_export.onnx_graph import Graph, copied
from seatrial_export.quantize import MATRIX_PRODUCTS, QUANTIZABLE

EVERYTHING = frozenset(QLinearOpsRegistry) | frozenset(QDQRegistry)
"""The operators that the quantizer knows how to surround."""
BOUNDS = frozenset({"QuantizeLinear", "DequantizeLinear"})
S8_MOST, E4M3_MOST = 127, 448


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """`ranges` are of everything in `model` that may become INT8; its inner tensors have types."""

    model: ModelProto
    ranges: Mapping[str, Range]
    weight_bits: int

    @property
    def layers(self) -> tuple[NodeProto, ...]:
        return layers(Graph(self.model))

    def quantized(self, chosen: Collection[str]) -> ModelProto:
        """Another graph, whose layers of these names are INT8."""
        model = copied(self.model)
        graph = Graph(model)
        given = dict(self.ranges)
        if by_products(graph):
            given |= _keep_to_themselves(graph, chosen, given)
            rest = [node.name for node in graph.nodes if node.name not in chosen]
            operators, without_output = QUANTIZABLE, MATRIX_PRODUCTS
        else:
            rest = _left_in_float(graph, chosen)
            operators, without_output = EVERYTHING, frozenset()
        options = {"OpTypesToExcludeOutputQuantization": sorted(without_output)}
        return self._surrounded(model, given, operators, rest, activations=QuantType.QUInt8, options=options)

    def symmetric(self, chosen: Collection[str]) -> ModelProto:
        """As TensorRT takes it: what the layers of these names read is S8 around zero, weights too, and nothing else is."""
        model = copied(self.model)
        graph = Graph(model)
        given = dict(self.ranges)
        given |= _keep_to_themselves(graph, chosen, given)
        rest = [node.name for node in graph.nodes if node.name not in chosen]
        options = {
            "OpTypesToExcludeOutputQuantization": sorted(QUANTIZABLE),
            "ActivationSymmetric": True,
            "AddQDQPairToWeight": True,
            "QuantizeBias": False,
        }
        return self._surrounded(model, given, QUANTIZABLE, rest, activations=QuantType.QInt8, options=options)

    def _surrounded(
        self,
        model: ModelProto,
        given: Mapping[str, Range],
        operators: Collection[str],
        rest: list[str],
        *,
        activations: QuantType,
        options: Mapping[str, object],
    ) -> ModelProto:
        quantizer = QDQQuantizer(
            model,
            per_channel=True,
            reduce_range=self.weight_bits == 7,
            weight_qType=QuantType.QInt8,
            activation_qType=activations,
            tensors_range=_told(given),
            nodes_to_quantize=[],
            nodes_to_exclude=rest,
            op_types_to_quantize=sorted(operators),
            extra_options=dict(options),
        )
        quantizer.quantize_model()
        made: ModelProto = quantizer.model.model
        return made


def calibrated(
    model: ModelProto, calls: Sequence[Call], *, method: Calibration, weight_bits: int, cut_ppm: int | None = None
) -> Calibrated:
    graph = Graph(model)
    nodes = layers(graph) if by_products(graph) else graph.nodes
    tensors = {name for node in nodes for name in (*node.input, *node.output) if graph.is_float(name)}
    found = ranges(model, sorted(tensors), calls, method, cut_ppm=cut_ppm)
    return Calibrated(model=model, ranges=found, weight_bits=weight_bits)


def in_fp8(model: ModelProto) -> None:
    """Make what is symmetric S8 in `model` E4M3, in place: the type is that of the zero points, and 448 is what 127 was."""
    zeros = {node.input[2]: node.input[1] for node in model.graph.node if node.op_type in BOUNDS}
    constants = {each.name: each for each in model.graph.initializer}
    for scale in {*zeros.values()}:
        values = numpy_helper.to_array(constants[scale])
        constants[scale].CopyFrom(numpy_helper.from_array(values * np.float32(S8_MOST / E4M3_MOST), scale))
    for zero in zeros:
        dims = constants[zero].dims
        made = helper.make_tensor(zero, TensorProto.FLOAT8E4M3FN, dims, bytes(math.prod(dims)), raw=True)
        constants[zero].CopyFrom(made)


def layers(graph: Graph) -> tuple[NodeProto, ...]:
    """In the order of the graph."""
    return tuple(node for node in graph.nodes if node.op_type in QUANTIZABLE and graph.weights(node, 1) is not None)


def by_products(graph: Graph) -> bool:
    """Whether it is a Transformer or the like: it has no convolutions, or it normalises layers, or it attends."""
    operators = {node.op_type for node in graph.nodes}
    attends = any(node.op_type == "MatMul" and all(map(graph.is_float, node.input)) for node in graph.nodes)
    return "Conv" not in operators or "LayerNormalization" in operators or attends


def _keep_to_themselves(graph: Graph, chosen: Collection[str], given: Mapping[str, Range]) -> dict[str, Range]:
    """Let the layers alone read what will be INT8 of a tensor: the quantizer would give it to all of its readers.

    The ranges of the new tensors.
    """
    found = {}
    for tensor in given:
        readers = [node for node in graph.readers(tensor) if node.name in chosen]
        if readers and (len(readers) < len(graph.readers(tensor)) or tensor in graph.outputs):
            found[graph.branch_off(tensor, readers, "Identity")] = given[tensor]
    return found


def _left_in_float(graph: Graph, chosen: Collection[str]) -> list[str]:
    """The layers that were not chosen, and what lies behind each as far as the next layers."""
    reached = [node for node in layers(graph) if node.name not in chosen]
    names = {node.name for node in reached}
    while reached:
        for tensor in reached.pop().output:
            for node in graph.readers(tensor):
                if node.op_type not in QUANTIZABLE and node.name not in names:
                    names.add(node.name)
                    reached.append(node)
    return sorted(names)


def _told(given: Mapping[str, Range]) -> TensorsData:
    ends = {
        name: TensorData(lowest=np.array(each.low, np.float32), highest=np.array(each.high, np.float32))
        for name, each in given.items()
    }
    return TensorsData(CalibrationMethod.MinMax, ends)
