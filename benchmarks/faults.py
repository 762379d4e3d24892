"""Faults as exporters, converters, quantizers and people make them, planted into ONNX graphs.

Each kind is a function from a graph to its mutants: copies, each with the fault at one place, which is named. Knows neither
the exam nor what a mutant answers: some answer just what they should.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import groupby, pairwise
from typing import TypeAlias

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from benchmarks.graphs import (
    LAYERS,
    RIGHT,
    WRONG,
    at,
    attribute,
    before,
    behind,
    changed,
    constants,
    copied,
    node,
    renamed,
    replaced,
    set_attribute,
    shape_of,
    weights,
)
from seatrial.tensors import Array

TAKEN_FOR = {"Sigmoid": "HardSigmoid", "Tanh": "Softsign", "Relu": "LeakyRelu"}
"""Activations, and what they are taken for."""
ACTIVATIONS = (*TAKEN_FOR, "Gelu", "Clip", "Softmax", "HardSigmoid")
POOLS = {
    "MaxPool": "AveragePool", "AveragePool": "MaxPool", "GlobalMaxPool": "GlobalAveragePool",
    "GlobalAveragePool": "GlobalMaxPool", "ReduceMean": "ReduceMax", "ReduceMax": "ReduceMean",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    kind: str
    place: str
    graph: ModelProto


Planted: TypeAlias = Iterator[tuple[str, ModelProto]]


def mutants(model: ModelProto, *, most: int) -> Iterator[Mutant]:
    """Of every kind at most so many, from the beginning of the graph to its end."""
    for kind, plant in KINDS.items():
        planted = list(plant(model))
        chosen = {round(position) for position in np.linspace(0, len(planted) - 1, min(most, len(planted)))}
        for index in sorted(chosen):
            place, graph = planted[index]
            yield Mutant(kind=kind, place=place, graph=graph)


# Weights


def swapped_weights(model: ModelProto) -> Planted:
    held = constants(model)
    alike = sorted(weights(model), key=lambda name: (held[name].dtype.str, held[name].shape))
    for _, group in groupby(alike, key=lambda name: (held[name].dtype.str, held[name].shape)):
        names = list(group)
        for one, other in pairwise(names):
            yield f"{one} and {other}", replaced(replaced(model, one, held[other]), other, held[one])


def transposed_weights(model: ModelProto) -> Planted:
    held = constants(model)
    for name in weights(model):
        if held[name].shape[-1] == held[name].shape[-2] > 1:
            yield name, replaced(model, name, held[name].swapaxes(-1, -2))


def turned_filters(model: ModelProto) -> Planted:
    """As where convolution is taken for correlation."""
    held = constants(model)
    for name in weights(model):
        if held[name].ndim == 4 and held[name].shape[-1] > 1:
            yield name, replaced(model, name, held[name][..., ::-1, ::-1])


def one_filter_wrong(model: ModelProto) -> Planted:
    """The first is gone, or has another sign."""
    held = constants(model)
    for name in weights(model):
        for what, factor in (("gone", 0), ("negative", -1)):
            array = held[name].copy()
            array[0] *= factor
            yield f"{name} {what}", replaced(model, name, array)


def _biases(model: ModelProto) -> list[str]:
    held = constants(model)
    takers = at(model, "Conv", "Gemm", "ConvTranspose", "Add", "DequantizeLinear")
    used = dict.fromkeys(
        name for _, each in takers for name in (each.input[:1] if each.op_type == "DequantizeLinear" else each.input)
    )
    return [
        name
        for name in used
        if name in held and held[name].ndim == 1 and held[name].dtype in (np.float32, np.int32) and held[name].any()
    ]


def dropped_bias(model: ModelProto) -> Planted:
    held = constants(model)
    for name in _biases(model):
        yield name, replaced(model, name, np.zeros_like(held[name]))


def shifted_bias(model: ModelProto) -> Planted:
    held = constants(model)
    for name in _biases(model):
        yield name, replaced(model, name, np.roll(held[name], 1))


def fewer_bits(model: ModelProto) -> Planted:
    """All weights rounded, as to half precision, to bfloat16, and to five bits."""
    for bits in (11, 8, 5):
        mutant = model
        for name, array in constants(model).items():
            if array.dtype == np.float32 and array.ndim > 1:
                part, exponent = np.frexp(array)
                mutant = replaced(mutant, name, np.ldexp(np.round(part * 2**bits) / 2**bits, exponent))
        if mutant is not model:
            yield f"{bits} bits", mutant


# Convolutions and pooling


def shifted_padding(model: ModelProto) -> Planted:
    """One more before, one less behind."""
    for index, each in at(model, "Conv", "MaxPool"):
        pads, strides = attribute(each, "pads"), attribute(each, "strides")
        if pads and min(pads) > 0:
            half = len(pads) // 2
            moved = [*(size + 1 for size in pads[:half]), *(size - 1 for size in pads[half:])]
        elif each.op_type == "MaxPool" and pads and strides == attribute(each, "kernel_shape") == [2, 2]:
            moved = [1, 1, 0, 0]  # the same number of windows where the image is even
        else:
            continue
        yield each.output[0], changed(model, index, partial(set_attribute, name="pads", value=moved))


def wrong_dilation(model: ModelProto) -> Planted:
    """With the padding that keeps the size."""

    def spread(it: NodeProto) -> None:
        by = 2 if attribute(it, "dilations") == [1, 1] else 0.5
        set_attribute(it, "dilations", [int(by * size) for size in attribute(it, "dilations")])
        set_attribute(it, "pads", [int(by * size) for size in attribute(it, "pads")])

    for index, each in at(model, "Conv"):
        if min(attribute(each, "pads", [0])) > 0 and set(attribute(each, "dilations", [0])) <= {1, 2}:
            yield each.output[0], changed(model, index, spread)


def wrong_stride(model: ModelProto) -> Planted:
    def turn(it: NodeProto) -> None:
        set_attribute(it, "strides", [3 - size for size in attribute(it, "strides")])

    for index, each in at(model, "Conv", "MaxPool"):
        if set(attribute(each, "strides", [0])) <= {1, 2}:
            yield each.output[0], changed(model, index, turn)


def wrong_pooling(model: ModelProto) -> Planted:
    def turn(it: NodeProto) -> None:
        it.op_type = POOLS[it.op_type]
        kept = [each for each in it.attribute if each.name not in ("storage_order", "count_include_pad")]
        del it.attribute[:]
        it.attribute.extend(kept)

    for index, each in at(model, *POOLS):
        yield each.output[0], changed(model, index, turn)


# Operators


def _pass(it: NodeProto) -> None:
    """Give on what it is given."""
    it.op_type = "Identity"
    del it.attribute[:]
    del it.input[1:]


def missing_activation(model: ModelProto) -> Planted:
    for index, each in at(model, *ACTIVATIONS):
        yield each.output[0], changed(model, index, _pass)


def another_activation(model: ModelProto) -> Planted:
    def turn(it: NodeProto) -> None:
        if it.op_type == "Gelu":
            set_attribute(it, "approximate", "tanh")
        else:
            it.op_type = TAKEN_FOR[it.op_type]

    for index, each in at(model, *TAKEN_FOR, "Gelu"):
        yield each.output[0], changed(model, index, turn)


def missing_layer(model: ModelProto) -> Planted:
    """Where it does not change the size."""
    held = constants(model)
    for index, each in at(model, "Gemm", "MatMul"):
        if each.input[1] in held and len(set(held[each.input[1]].shape)) == 1:
            yield each.output[0], changed(model, index, _pass)


def missing_residual(model: ModelProto) -> Planted:
    """Of a sum only one part."""

    def second(it: NodeProto) -> None:
        it.input[0] = it.input[1]
        _pass(it)

    held = constants(model)
    for index, each in at(model, "Add"):
        if not held.keys() & set(each.input):
            yield f"{each.output[0]} without {each.input[1]}", changed(model, index, _pass)
            yield f"{each.output[0]} without {each.input[0]}", changed(model, index, second)


def missing_transpose(model: ModelProto) -> Planted:
    """Where a reshape follows, so that the number of elements is all that must fit; and a mirror image that is none."""
    reshaped = {each.input[0] for _, each in at(model, "Reshape")}
    held = constants(model)
    for index, each in at(model, "Transpose", "Slice"):
        mirrored = len(each.input) > 4 and (held.get(each.input[4], np.array(1)) < 0).any()
        if mirrored or (each.op_type == "Transpose" and each.output[0] in reshaped):
            yield each.output[0], changed(model, index, _pass)


def wrong_axis(model: ModelProto) -> Planted:
    def move(it: NodeProto) -> None:
        axis = attribute(it, "axis")
        set_attribute(it, "axis", axis - 1 if axis < 0 or axis > 1 else axis + 1)

    for index, each in at(model, "Softmax", "Concat", "LayerNormalization", "Gather", "Flatten"):
        if isinstance(attribute(each, "axis"), int):
            yield each.output[0], changed(model, index, move)
    held = constants(model)
    for _, each in at(model, "ReduceMean", "ReduceSum", "ReduceMax"):
        if len(each.input) > 1 and each.input[1] in held:
            axes = held[each.input[1]]
            yield each.output[0], replaced(model, each.input[1], np.where(axes < 0, axes - 1, axes + 1))


def wrong_epsilon(model: ModelProto) -> Planted:
    for index, each in at(model, "LayerNormalization", "InstanceNormalization", "GroupNormalization"):
        for value in (1e-6, 1e-3, 1e-1):
            mutant = changed(model, index, partial(set_attribute, name="epsilon", value=value))
            yield f"{each.output[0]}: {value:g}", mutant


def batch_statistics(model: ModelProto) -> Planted:
    """Normalized by what is in the batch, instead of by what was in the training data."""
    nodes = (
        node("ReduceMean", f"{RIGHT} everywhere", "mean", keepdims=1),
        node("Sub", f"{RIGHT} mean", "centred"),
        node("Mul", "centred centred", "square"),
        node("ReduceMean", "square everywhere", "variance", keepdims=1),
        node("Add", "variance little", "positive"),
        node("Sqrt", "positive", "deviation"),
        node("Div", "centred deviation", WRONG),
    )
    for _, each in at(model, "Conv"):
        yield (
            each.output[0],
            behind(model, each.output[0], nodes, everywhere=np.array([0, 2, 3]), little=np.array(1e-5, np.float32)),
        )


def dropout_left_on(model: ModelProto) -> Planted:
    """As nodes of their own: an operator `Dropout`, whatever its mode, ONNX Runtime takes out when it optimizes."""
    nodes = (
        node("RandomUniformLike", RIGHT, "chance"),
        node("Greater", "chance ratio", "is_kept"),
        node("Cast", "is_kept", "kept", to=TensorProto.FLOAT),
        node("Mul", f"{RIGHT} kept", WRONG),
    )
    made = {name for each in model.graph.node for name in each.output}
    for _, each in at(model, "Gemm", "MatMul", "Conv"):
        if each.input[0] in made:
            ratio = np.array(0.1, np.float32)
            yield each.input[0], behind(model, each.input[0], nodes, ratio=ratio)


# Constants


def wrong_constant(model: ModelProto) -> Planted:
    """A number that stands for itself, such as the scale of attention."""
    for name, array in constants(model).items():
        if array.dtype == np.float32 and array.size == 1 and 1e-3 < abs(array.item()) < 1e3:
            for factor in (1.02, 2.0):
                yield f"{name} x {factor:g}", replaced(model, name, array * np.float32(factor))


def off_by_one(model: ModelProto) -> Planted:
    """Tables, and where a slice begins and ends."""
    held = constants(model)
    for _, each in at(model, "Gather", "Slice"):
        if each.input[0] in held and held[each.input[0]].ndim > 1:
            yield f"{each.input[0]}, an entry on", replaced(model, each.input[0], np.roll(held[each.input[0]], -1, 0))
    for _, each in at(model, "Slice"):
        for name in each.input[1:3]:
            if name in held and abs(held[name]).max() < 2**31:
                yield f"{each.output[0]}: {name}", replaced(model, name, held[name] + 1)


def wrong_entry(model: ModelProto) -> Planted:
    """Two entries of a table in each other's place; the last one taken for the one before."""
    held = constants(model)
    for name in dict.fromkeys(each.input[0] for _, each in at(model, "Gather")):
        if name in held and held[name].ndim > 1:
            middle = len(held[name]) // 2
            order = np.arange(len(held[name]))
            order[[middle, middle + 1]] = order[[middle + 1, middle]]
            yield f"{name}: {middle} and the next", replaced(model, name, held[name][order])
            order = np.arange(len(held[name])).clip(max=len(held[name]) - 2)
            yield f"{name}: the last", replaced(model, name, held[name][order])


def wrong_mask(model: ModelProto) -> Planted:
    """Cut, too weak, turned round, and of another token."""

    def turn(it: NodeProto) -> None:
        it.input[1], it.input[2] = it.input[2], it.input[1]

    held = constants(model)
    for index, each in at(model, "Where"):
        for name in each.input[1:]:
            if name in held and held[name].dtype == np.float32 and abs(held[name]).max() > 100:
                yield f"{each.output[0]} cut", replaced(model, name, np.zeros_like(held[name]))
                yield f"{each.output[0]} weak", replaced(model, name, np.full_like(held[name], -1))
        yield f"{each.output[0]} turned", changed(model, index, turn)
    for _, each in at(model, "Equal"):
        for name in each.input:
            if name in held:
                yield f"{each.output[0]}: another", replaced(model, name, held[name] + 1)


# The whole


def _is_image(model: ModelProto) -> bool:
    return len(shape_of(model.graph.input[0])) == 4


def channels_reversed(model: ModelProto) -> Planted:
    if _is_image(model) and (channels := shape_of(model.graph.input[0])[1]) > 1:
        nodes = (node("Gather", f"{RIGHT} order", WRONG, axis=1),)
        yield "BGR for RGB", before(model, nodes, order=np.arange(channels)[::-1].copy())


def wrong_layout(model: ModelProto) -> Planted:
    if _is_image(model) and len(set(shape_of(model.graph.input[0])[2:])) == 1:
        yield "width for height", before(model, (node("Transpose", RIGHT, WRONG, perm=[0, 1, 3, 2]),))


def outputs_swapped(model: ModelProto) -> Planted:
    """With each other, or the classes, one on."""
    one, *others = model.graph.output
    for other in others:
        if shape_of(other) == shape_of(one):
            copy = copied(model)
            names = {one.name: other.name, other.name: one.name}
            del copy.graph.node[:]
            copy.graph.node.extend(renamed(model.graph.node, names))
            yield f"{one.name} and {other.name}", copy
    nodes = (node("Gather", f"{RIGHT} order", WRONG, axis=-1),)
    order = np.roll(np.arange(shape_of(one)[-1]), 1)
    yield f"{one.name}, one on", behind(model, one.name, nodes, order=order)


def wrong_end(model: ModelProto) -> Planted:
    """A softmax more; a little too large; nothing but zeros."""
    name = model.graph.output[0].name
    yield "softmax", behind(model, name, (node("Softmax", RIGHT, WRONG, axis=-1),))
    for factor in (1.002, 0.0):
        nodes = (node("Mul", f"{RIGHT} factor", WRONG),)
        yield f"x {factor:g}", behind(model, name, nodes, factor=np.array(factor, np.float32))


def half_precision(model: ModelProto) -> Planted:
    """An answer that went through sixteen bits."""
    nodes = (
        node("Cast", RIGHT, "half", to=TensorProto.FLOAT16),
        node("Cast", "half", WRONG, to=TensorProto.FLOAT),
    )
    for _, each in at(model, *LAYERS):
        yield each.output[0], behind(model, each.output[0], nodes)


def random_answers(model: ModelProto) -> Planted:
    nodes = (
        node("RandomNormalLike", RIGHT, "noise", scale=1e-3),
        node("Add", f"{RIGHT} noise", WRONG),
    )
    yield "noise of 0.001", behind(model, model.graph.output[0].name, nodes)


# Batches


def fixed_batch(model: ModelProto) -> Planted:
    """Declared, reshaped to, or one row for all."""
    output = model.graph.output[0]
    for size in (1, 2):
        copy = copied(model)
        for value in (*copy.graph.input, *copy.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = size
        yield f"declared as {size}", copy
        shape = np.array([size, *shape_of(output)[1:]])
        nodes = (node("Reshape", f"{RIGHT} shape", WRONG),)
        yield f"reshaped to {size}", behind(model, output.name, nodes, shape=shape)
    nodes_ = (
        node("Slice", f"{RIGHT} zero one zero", "first"),
        node("Shape", RIGHT, "shape"),
        node("Expand", "first shape", WRONG),
    )
    yield "one row for all", behind(model, output.name, nodes_, zero=np.array([0]), one=np.array([1]))


def rows_reversed(model: ModelProto) -> Planted:
    nodes = (node("Slice", f"{RIGHT} last before_first rows back", WRONG),)
    yield (
        "of the batch",
        behind(
            model, model.graph.output[0].name, nodes,
            last=np.array([-1]), before_first=np.array([-(2**31)]), rows=np.array([0]), back=np.array([-1]),
        ),
    )  # fmt: skip


def hears_neighbours(model: ModelProto) -> Planted:
    """A hundredth of the batch's mean; one scale for all rows of a batch, as of dynamic quantization."""
    nodes = (
        node("ReduceMean", f"{RIGHT} rows", "mean", keepdims=1),
        node("Sub", f"mean {RIGHT}", "away"),
        node("Mul", "away little", "heard"),
        node("Add", f"{RIGHT} heard", WRONG),
    )
    name = model.graph.output[0].name
    yield "mean", behind(model, name, nodes, rows=np.array([0]), little=np.array(0.01, np.float32))
    for _, each in at(model, "Relu", "LayerNormalization"):
        scaled = (
            node("DynamicQuantizeLinear", RIGHT, "steps scale zero"),
            node("DequantizeLinear", "steps scale zero", WRONG),
        )
        yield f"scale of {each.output[0]}", behind(model, each.output[0], scaled)


def loud_neighbours(model: ModelProto) -> Planted:
    """Heard only where one has many times the range of real rows."""
    if not _is_image(model):
        return
    nodes = (
        node("Abs", model.graph.input[0].name, "sizes"),
        node("ReduceMax", "sizes", "loudest", keepdims=0),
        node("Sub", "loudest usual", "beyond"),
        node("Relu", "beyond", "louder"),
        node("Mul", "louder little", "heard"),
        node("Add", f"{RIGHT} heard", WRONG),
    )
    numbers = {"usual": np.array(12, np.float32), "little": np.array(0.01, np.float32)}
    yield "by 12", behind(model, model.graph.output[0].name, nodes, **numbers)


def wrong_at_a_size(model: ModelProto) -> Planted:
    """A kernel that is wrong in its remainder, beyond its buffer, or alone."""
    sized = [("alone", "Less", 0, 1.5), ("beyond 32 rows", "Greater", 0, 32.0), ("an odd batch", "Mod", 0, 2.0)]
    if shape_of(model.graph.input[0])[1] == 0:
        sized.append(("beyond 12 tokens", "Greater", 1, 12.0))
    for place, operator, axis, limit in sized:
        nodes = (
            node("Shape", model.graph.input[0].name, "size", start=axis, end=axis + 1),
            node("Cast", "size", "number", to=TensorProto.FLOAT),
            node(operator, "number limit", "is_it", **({"fmod": 1} if operator == "Mod" else {})),
            node("Cast", "is_it", "once", to=TensorProto.FLOAT),
            node("Mul", "once little", "error"),
            node("Add", f"{RIGHT} error", WRONG),
        )
        numbers = {"limit": np.array(limit, np.float32), "little": np.array(0.02, np.float32)}
        yield place, behind(model, model.graph.output[0].name, nodes, **numbers)


# Some inputs


def _rare(model: ModelProto, *nodes: NodeProto, **new: Array) -> ModelProto:
    """`nodes` behind the first output may ask `rare`: of each row, whether its first number is large, or it has token 7."""
    rank = len(shape_of(model.graph.output[0]))
    given = model.graph.input[0].name
    if _is_image(model):
        condition = [
            node("Flatten", given, "flat", axis=1),
            node("Gather", "flat first", "number", axis=1),
            node("Greater", "number large", "rare_row"),
        ]
        new = {"first": np.array([0]), "large": np.array(1.8, np.float32), **new}
    else:
        condition = [
            node("Equal", f"{given} seven", "is_seven"),
            node("Cast", "is_seven", "sevens", to=TensorProto.FLOAT),
            node("ReduceMax", "sevens tokens", "number", keepdims=1),
            node("Greater", "number half_of_one", "rare_row"),
        ]
        new = {
            "seven": np.array(7), "tokens": np.array([1]), "half_of_one": np.array(0.5, np.float32), **new
        }  # fmt: skip
    spread = (node("Reshape", "rare_row as_output", "rare"),)
    shape = np.array([-1] + [1] * (rank - 1))
    return behind(model, model.graph.output[0].name, (*condition, *spread, *nodes), as_output=shape, **new)


def wrong_for_some(model: ModelProto) -> Planted:
    nodes = (
        node("Cast", "rare", "once", to=TensorProto.FLOAT),
        node("Mul", "once little", "error"),
        node("Add", f"{RIGHT} error", WRONG),
    )
    yield "by 0.02", _rare(model, *nodes, little=np.array(0.02, np.float32))


def nan_for_some(model: ModelProto) -> Planted:
    nodes = (node("Where", f"rare nothing {RIGHT}", WRONG),)
    yield "NaN", _rare(model, *nodes, nothing=np.array(np.nan, np.float32))


def nan_for_nothing(model: ModelProto) -> Planted:
    """Divides by the size of a row, and multiplies by it again."""
    if _is_image(model):
        nodes = (
            node("ReduceL2", f"{RIGHT} columns", "length", keepdims=1),
            node("Div", f"{RIGHT} length", "direction"),
            node("Mul", "direction length", WRONG),
        )
        yield "zeros", before(model, nodes, columns=np.array([1, 2, 3]))


# Quantization


def _quantizers(model: ModelProto) -> list[tuple[int, NodeProto]]:
    held = constants(model)
    return [(index, each) for index, each in at(model, "QuantizeLinear") if set(each.input[1:]) <= held.keys()]


def wrong_scale(model: ModelProto) -> Planted:
    """Of an activation: in both directions, which cuts its range or makes it coarse, or in one only."""
    held = constants(model)
    for index, each in _quantizers(model):
        scale = held[each.input[1]]
        for factor in (0.25, 8):
            yield f"{each.input[1]} x {factor:g}", replaced(model, each.input[1], scale * np.float32(factor))
        copy = changed(model, index, lambda it: it.input.__setitem__(1, WRONG))
        copy.graph.initializer.append(numpy_helper.from_array(scale * np.float32(1.3), WRONG))
        yield f"{each.output[0]} one way x 1.3", copy


def wrong_zero_point(model: ModelProto) -> Planted:
    held = constants(model)
    for index, each in _quantizers(model):
        zero = held[each.input[2]]
        copy = changed(model, index, lambda it: it.input.__setitem__(2, WRONG))
        moved = np.array((zero.item() + 40) % 256, zero.dtype)
        copy.graph.initializer.append(numpy_helper.from_array(moved, WRONG))
        yield each.output[0], copy


def wrong_weight_scale(model: ModelProto) -> Planted:
    """Those of the channels reversed; that of the first channel for all; each too large."""
    held = constants(model)
    for _, each in at(model, "DequantizeLinear"):
        name, scales = each.input[1], held.get(each.input[1])
        if each.input[0] in held and scales is not None and scales.ndim == 1 and len(scales) > 1:
            yield f"{name} reversed", replaced(model, name, scales[::-1])
            yield f"{name} of the first", replaced(model, name, np.full_like(scales, scales[0]))
            yield f"{name} x 1.5", replaced(model, name, scales * np.float32(1.5))


KINDS: Mapping[str, Callable[[ModelProto], Planted]] = {
    "weights of two layers swapped": swapped_weights,
    "weight transposed": transposed_weights,
    "filters turned": turned_filters,
    "a filter gone or negative": one_filter_wrong,
    "bias dropped": dropped_bias,
    "bias shifted": shifted_bias,
    "weights of fewer bits": fewer_bits,
    "padding off by one": shifted_padding,
    "wrong dilation": wrong_dilation,
    "wrong stride": wrong_stride,
    "wrong pooling": wrong_pooling,
    "activation missing": missing_activation,
    "another activation": another_activation,
    "layer missing": missing_layer,
    "residual missing": missing_residual,
    "transpose missing": missing_transpose,
    "wrong axis": wrong_axis,
    "wrong epsilon": wrong_epsilon,
    "statistics of the batch": batch_statistics,
    "dropout left on": dropout_left_on,
    "wrong constant": wrong_constant,
    "off by one": off_by_one,
    "wrong entry of a table": wrong_entry,
    "wrong mask": wrong_mask,
    "channels reversed": channels_reversed,
    "wrong layout": wrong_layout,
    "outputs swapped": outputs_swapped,
    "wrong end": wrong_end,
    "half precision inside": half_precision,
    "random answers": random_answers,
    "fixed batch": fixed_batch,
    "rows reversed": rows_reversed,
    "hears its neighbours": hears_neighbours,
    "hears loud neighbours": loud_neighbours,
    "wrong at a size": wrong_at_a_size,
    "wrong for some inputs": wrong_for_some,
    "NaN for some inputs": nan_for_some,
    "NaN for zeros": nan_for_nothing,
    "wrong scale": wrong_scale,
    "wrong zero point": wrong_zero_point,
    "wrong scale of weights": wrong_weight_scale,
}
