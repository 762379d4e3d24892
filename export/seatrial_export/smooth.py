"""Move what is hard to quantize from the activations of matrix products into their weights. Runs inside children.

The method: Xiao et al., "SmoothQuant: accurate and efficient post-training quantization for large language models"
(2022). Some channels of a Transformer's activations are a hundred times the others, and one range for all leaves the
others without steps. Each channel is divided by a scale, and the weights that read it are multiplied by the same: the
answer stays what it was, within rounding, and both become easy to quantize. How much is moved, `alpha`, is chosen for
each product by the error that INT8 then makes of the calibration rows.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from seatrial_export.calibrate import Call, Range, as_levels, observed
from seatrial_export.onnx_graph import Graph, watched
from seatrial_export.quantize import MATRIX_PRODUCTS
from seatrial_export.static import layers

ALPHAS = (0.5, 0.35, 0.65, 0.8)
"""From the paper's own outwards: of equals the first is taken."""
SAMPLE = 256
"""Rows of an activation by which alphas are compared."""
WORTH = 0.7
"""The part of the error that must be left at most: a scale may cost a `Mul`."""
FOLDED_INTO = {"LayerNormalization": (1, 2), "MatMul": (1,), "Gemm": (1, 2)}
"""Where an operator keeps what its output is a multiple of."""

Floats: TypeAlias = NDArray[np.float32]

# T rows of the sample · K channels of the activation · N outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class _Channels:
    """What an activation was: each channel's ends over all calibration rows, and a sample of them."""

    low: Floats  # K
    high: Floats  # K
    sample: Floats  # T x K

    @property
    def largest(self) -> Floats:
        return np.maximum(np.abs(self.low), np.abs(self.high))

    def range(self, scale_K: Floats) -> Range:
        """Of the whole activation, once its channels were divided by `scale_K`."""
        return Range(min(0.0, float((self.low / scale_K).min())), max(0.0, float((self.high / scale_K).max())))


def smooth(model: ModelProto, calls: Sequence[Call], *, weight_bits: int) -> int:
    """Smooth what gains by it, in place; how many activations that were.

    A scale is folded into what makes the activation where nobody else reads that, else it is a `Mul` of its own.
    """
    graph = Graph(model)
    products = _products(graph)
    smoothed = 0
    for tensor, channels in _channels(model, list(products), calls).items():
        readers = products[tensor]
        scale_K = _best_scale(channels, [_weights(graph, node) for node in readers], weight_bits=weight_bits)
        if scale_K is None:
            continue
        for node in readers:
            _set_weights(graph, node, _weights(graph, node) * scale_K[:, None])
        factor_K = np.asarray(1 / scale_K, np.float32)
        alone = len(readers) == len(graph.readers(tensor)) and tensor not in graph.outputs
        if not (alone and fold(graph, tensor, factor_K)):
            graph.branch_off(tensor, readers, "Mul", factor_K)
        smoothed += 1
    return smoothed


def _products(graph: Graph) -> dict[str, list[NodeProto]]:
    """The products with weights, by the activation that they read."""
    found = defaultdict(list)
    for node in layers(graph):
        weights = graph.weights(node, 1)
        if node.op_type in MATRIX_PRODUCTS and weights is not None and weights.ndim == 2 and not _flag(node, "transA"):
            found[node.input[0]].append(node)
    return {tensor: nodes for tensor, nodes in found.items() if graph.is_float(tensor)}


def _channels(model: ModelProto, tensors: list[str], calls: Sequence[Call]) -> dict[str, _Channels]:
    inside = [name for name in tensors if name not in calls[0]]
    parts: dict[str, list[_Channels]] = {name: [] for name in tensors}
    each = max(1, SAMPLE // len(calls))
    for call, made in zip(calls, observed(watched(model, inside), inside, calls), strict=True):
        for name in tensors:
            rows_TK = np.asarray(made[name] if name in made else call[name], np.float32)
            rows_TK = rows_TK.reshape(-1, rows_TK.shape[-1])
            spread = np.linspace(0, len(rows_TK) - 1, min(each, len(rows_TK))).astype(int)
            parts[name].append(_Channels(low=rows_TK.min(0), high=rows_TK.max(0), sample=rows_TK[spread]))
    return {
        name: _Channels(
            low=np.min([part.low for part in found], axis=0),
            high=np.max([part.high for part in found], axis=0),
            sample=np.concatenate([part.sample for part in found]),
        )
        for name, found in parts.items()
    }


def _best_scale(channels: _Channels, weights: list[Floats], *, weight_bits: int) -> Floats | None:
    """None where no scale is clearly better than leaving all as it is."""
    weights_KN = np.concatenate(weights, axis=1)
    exact_TN = channels.sample @ weights_KN

    def error(scale_K: Floats) -> float:
        activation_TK = as_levels(channels.sample / scale_K, channels.range(scale_K))
        found_TN = activation_TK @ _as_weights(weights_KN * scale_K[:, None], weight_bits)
        return float(np.square(found_TN - exact_TN, dtype=np.float64).sum())

    scales = [np.ones_like(channels.low), *(_scale(channels.largest, weights_KN, alpha) for alpha in ALPHAS)]
    errors = [error(scale_K) for scale_K in scales]
    best = min(range(len(scales)), key=errors.__getitem__)
    return scales[best] if errors[best] < WORTH * errors[0] else None


def _scale(activation_K: Floats, weights_KN: Floats, alpha: float) -> Floats:
    """The paper's equation 4; a channel that is always zero, or that nobody weighs, stays as it is."""
    weight_K = np.abs(weights_KN).max(axis=1)
    used_K = (activation_K > 0) & (weight_K > 0)
    activation_K, weight_K = np.where(used_K, activation_K, 1), np.where(used_K, weight_K, 1)
    return np.asarray(activation_K**alpha / weight_K ** (1 - alpha), np.float32)


def _as_weights(weights_KN: Floats, bits: int) -> Floats:
    """What signed INT8 of each output channel makes of weights."""
    most = 2 ** (bits - 1) - 1
    step_N = np.maximum(np.abs(weights_KN).max(axis=0), np.finfo(np.float32).tiny) / most
    return np.asarray(np.round(weights_KN / step_N) * step_N, np.float32)


def fold(graph: Graph, tensor: str, factor_K: Floats) -> bool:
    """Have what makes `tensor` make it times `factor_K`, which is above zero; False, and nothing changed, if it cannot.

    Through a `Relu`, which lets such a factor pass, to a normalisation, a product with weights, or a bias.
    """
    node = graph.maker(tensor)
    if node is None:
        return False
    if node.op_type == "Relu":
        return _has_one_reader(graph, node.input[0]) and fold(graph, node.input[0], factor_K)
    if node.op_type == "Add":
        biases = [index for index in (0, 1) if _fits(graph, node, index, factor_K)]
        if len(biases) != 1 or not _has_one_reader(graph, other := node.input[1 - biases[0]]):
            return False
        return fold(graph, other, factor_K) and _multiply(graph, node, biases, factor_K)
    places = [index for index in FOLDED_INTO.get(node.op_type, ()) if index < len(node.input)]
    if not places or not all(_fits(graph, node, index, factor_K) for index in places):
        return False
    return _multiply(graph, node, places, factor_K)


def _fits(graph: Graph, node: NodeProto, index: int, factor_K: Floats) -> bool:
    """Whether there are constants, with a value for each channel, that could be multiplied."""
    values = graph.weights(node, index)
    if values is None or values.ndim == 0 or (node.op_type == "LayerNormalization" and values.ndim != 1):
        return False
    channels: int = values.shape[0 if _is_transposed(node, index) else -1]
    return channels == len(factor_K)


def _multiply(graph: Graph, node: NodeProto, places: Sequence[int], factor_K: Floats) -> bool:
    for index in places:
        factor = factor_K[:, None] if _is_transposed(node, index) else factor_K
        graph.set_weights(node, index, _constant(graph, node, index) * factor)
    return True


def _weights(graph: Graph, node: NodeProto) -> Floats:
    """Of a product, with a row for each channel that it reads."""
    values = _constant(graph, node, 1)
    return values.T if _is_transposed(node, 1) else values


def _set_weights(graph: Graph, node: NodeProto, weights_KN: Floats) -> None:
    graph.set_weights(node, 1, weights_KN.T if _is_transposed(node, 1) else weights_KN)


def _constant(graph: Graph, node: NodeProto, index: int) -> Floats:
    values = graph.weights(node, index)
    assert values is not None, "a product was taken for one with weights: this is a bug"
    return np.asarray(values, np.float32)


def _is_transposed(node: NodeProto, index: int) -> bool:
    return index == 1 and _flag(node, "transB")


def _flag(node: NodeProto, name: str) -> bool:
    return any(attribute.name == name and attribute.i for attribute in node.attribute)


def _has_one_reader(graph: Graph, tensor: str) -> bool:
    return len(graph.readers(tensor)) == 1 and tensor not in graph.outputs
