"""Small models of six architectures with seeded weights, exported as `seatrial export` does it, and rows to ask them.

Nothing is trained. So that their answers depend on what they are asked, the classes of their rows are well apart, statistics
for normalization are taken from rows, and the last layer is fitted to the classes by least squares.
"""

from collections.abc import Callable, Mapping
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor, nn
from torch.nn import functional

from seatrial.machine import this_machine
from seatrial.tensors import BATCH, Array, DataType, DynamicAxis, Signature, TensorSpec
from seatrial_export import convert
from seatrial_export.quantize import weight_bits
from seatrial_models import build
from seatrial_models.architecture import image_classifier, text_classifier
from seatrial_models.program import dynamic_axes, to_program

FITTED_ROWS, CALIBRATED_ROWS = 1024, 256
NOISE = 0.3
"""Beside images of deviation 1, one for each class."""

Draw: TypeAlias = Callable[[np.random.Generator, Array], dict[str, Array]]
"""Rows of the classes that are given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A network before anything is fitted, and what it is asked."""

    module: nn.Module
    signature: Signature
    classes: int
    draw: Draw

    def rows(self, generator: np.random.Generator, number: int) -> dict[str, Array]:
        return self.draw(generator, generator.integers(self.classes, size=number))


@dataclass(frozen=True, slots=True, kw_only=True)
class Specimen:
    """An exported model. `graph` is its ONNX file; `quantized` the same in static INT8."""

    name: str
    task: Task
    program: Path
    graph: Path
    quantized: Path

    @property
    def signature(self) -> Signature:
        return self.task.signature


def make(name: str, folder: Path, *, seed: int) -> Specimen:
    """`seed` also decides the sizes."""
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    task = TASKS[name](seed)
    rows = task.rows(np.random.default_rng([seed, 1]), CALIBRATED_ROWS)
    with torch.no_grad():
        _settle(task, seed)
    example = {name: torch.from_numpy(array[:3]) for name, array in rows.items()}
    program = folder / "program.pt2"
    torch.export.save(to_program(task.module.eval(), example, task.signature), program)
    job = convert.Job(
        program=str(program.absolute()),
        inputs=tuple(spec.name for spec in task.signature.inputs),
        outputs=tuple(spec.name for spec in task.signature.outputs),
        axes=dynamic_axes(task.signature),
        smallest={axis.name: axis.min for axis in task.signature.dynamic_axes},
    )
    with chdir(folder):
        convert.convert(job)
    graph = folder / convert.MODEL
    return Specimen(
        name=name, task=task, program=program, graph=graph, quantized=_quantized(graph, rows, folder / "int8.onnx")
    )


def exported(specimen: Specimen, *, opset: int) -> ModelProto:
    """The graph of another version of ONNX."""
    made = torch.onnx.export(
        torch.export.load(specimen.program),
        dynamo=True,
        input_names=[spec.name for spec in specimen.signature.inputs],
        output_names=[spec.name for spec in specimen.signature.outputs],
        opset_version=opset,
        verbose=False,
    )
    assert made is not None, "the dynamo exporter returns a program: this is a bug"
    model: ModelProto = made.model_proto
    return model


def _settle(task: Task, seed: int) -> None:
    """Take statistics from rows, and fit the last layer, where there is one."""
    generator = np.random.default_rng([seed, 2])
    labels = generator.integers(task.classes, size=FITTED_ROWS)
    rows = {name: torch.from_numpy(array) for name, array in task.draw(generator, labels).items()}
    norms = [module for module in task.module.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the mean of all that comes
    if norms:
        task.module.train()(**rows)
    task.module.eval()
    if isinstance(last := getattr(task.module, "output", None), nn.Linear):
        features: list[Tensor] = []
        hook = last.register_forward_pre_hook(lambda _, given: features.append(given[0]))
        task.module(**rows)
        hook.remove()
        _fit(last, torch.cat(features)[: len(labels)].double(), torch.from_numpy(labels))


def _fit(last: nn.Linear, features: Tensor, labels: Tensor) -> None:
    """Ridge regression, to 4 for the row's own class and 0 for others."""
    wanted = 4.0 * functional.one_hot(labels, last.out_features).double()
    if last.bias is not None:
        features = torch.cat([features, torch.ones(len(features), 1).double()], dim=1)
    square = features.T @ features
    ridge = 1e-3 * square.diagonal().mean() * torch.eye(len(square)).double()
    found = torch.linalg.solve(square + ridge, features.T @ wanted).float()
    last.weight.copy_(found[: last.in_features].T)
    if last.bias is not None:
        last.bias.copy_(found[-1])


def _quantized(graph: Path, rows: Mapping[str, Array], to: Path) -> Path:
    """Static INT8 as export makes it: U8 activations, S8 weights per channel, ranges from rows."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = graph.with_name("prepared.onnx")
    quant_pre_process(graph, prepared, skip_symbolic_shape=True)
    quantization.quantize_static(
        prepared,
        to,
        _Rows(rows),
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        calibrate_method=quantization.CalibrationMethod.MinMax,
        per_channel=True,
        reduce_range=weight_bits(this_machine()) == 7,
    )
    return to


class _Rows:
    """All rows in one call, then None, as the quantizer wants to be given them."""

    def __init__(self, rows: Mapping[str, Array]) -> None:
        self._calls = iter([dict(rows)])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._calls, None)


# The tasks


def _images(shape: tuple[int, int, int], classes: int, seed: int) -> Draw:
    means = np.random.default_rng([seed, 3]).normal(size=(classes, *shape))

    def draw(generator: np.random.Generator, labels: Array) -> dict[str, Array]:
        noise = NOISE * generator.normal(size=(len(labels), *shape))
        return {"pixels": (means[labels] + noise).astype(np.float32)}

    return draw


def _texts(own_words: int, max_tokens: int) -> Draw:
    """Each class has words of its own, from 1; texts of all lengths, padded with 0."""

    def draw(generator: np.random.Generator, labels: Array) -> dict[str, Array]:
        words = 1 + own_words * labels[:, None] + generator.integers(own_words, size=(len(labels), max_tokens))
        lengths = generator.integers(1, max_tokens + 1, size=(len(labels), 1))
        return {"token_ids": np.where(np.arange(max_tokens) < lengths, words, 0)}

    return draw


def _classifier(name: str, shape: tuple[int, int, int], seed: int, **config: Any) -> Task:
    classes = 10 - seed
    return Task(
        module=build(name, {"pixels": shape, "classes": classes, **config}),
        signature=image_classifier(shape, classes),
        classes=classes,
        draw=_images(shape, classes, seed),
    )


def _perceptron(seed: int) -> Task:
    return _classifier("mlp", (1, 8, 8 + seed), seed, hidden=(48 + 8 * seed,) * 2)


def _lenet5(seed: int) -> Task:
    return _classifier("lenet5", (1, 12 + 4 * seed, 12), seed)


def _resnet18(seed: int) -> Task:
    return _classifier("resnet18", (3, 8, 8 + 8 * seed), seed, stem="small", width=6 + 2 * seed)


def _resnet9(seed: int) -> Task:
    return _classifier("resnet9", (3, 8 + 8 * seed, 8), seed, width=6 + seed, mirrored=True)


def _transformer(seed: int) -> Task:
    classes, own_words, max_tokens = 6, 8 + seed, 16 + 4 * seed
    module: Any = build(
        "text-transformer",
        {
            "vocabulary": 1 + classes * own_words,
            "max_tokens": max_tokens,
            "classes": classes,
            "width": 32,
            "feed_forward": 64,
            "pooling": "cls" if seed == 1 else "mean",
        },
    )
    with torch.no_grad():  # else attention is nearly the same everywhere, and positions count for little
        module.tokens.weight.mul_(20)
        module.positions.mul_(20)
        for layer in module.layers:
            layer.attention.query.weight.mul_(3)
    return Task(
        module=module,
        signature=text_classifier(max_tokens, classes),
        classes=classes,
        draw=_texts(own_words, max_tokens),
    )


class Segmenter(nn.Module):
    """Halved, looked at in wide steps, and enlarged again beside the image itself; answers what each position shows, and
    whether an edge is there."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, width, kernel_size=3, stride=2, padding=1)
        self.norm = nn.GroupNorm(2, width)
        self.wide = nn.Conv2d(width, width, kernel_size=3, padding=2, dilation=2)
        self.up = nn.ConvTranspose2d(2 * width, 4, kernel_size=2, stride=2)
        self.things = nn.Conv2d(7, 2, kernel_size=1)
        self.edges = nn.Conv2d(7, 2, kernel_size=3, padding=1)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        x = functional.silu(self.norm(self.down(pixels)))
        x = torch.cat([x, functional.relu(self.wide(x))], dim=1)
        x = torch.cat([torch.tanh(self.up(x)), pixels.clamp(-3, 3)], dim=1)
        return torch.sigmoid(self.things(x)), self.edges(x)


def _segmenter(seed: int) -> Task:
    shape = (3, 12 + 4 * seed, 12)
    maps = (-1, 2, *shape[1:])
    return Task(
        module=Segmenter(8 + 2 * seed),
        signature=Signature(
            inputs=(TensorSpec(name="pixels", datatype=DataType.FP32, shape=(-1, *shape)),),
            outputs=tuple(TensorSpec(name=name, datatype=DataType.FP32, shape=maps) for name in ("things", "edges")),
            dynamic_axes=(DynamicAxis(name=BATCH, at={"pixels": 0, "things": 0, "edges": 0}, max=64),),
        ),
        classes=4,
        draw=_images(shape, 4, seed),
    )


TASKS: Mapping[str, Callable[[int], Task]] = {
    "mlp": _perceptron,
    "lenet5": _lenet5,
    "resnet18": _resnet18,
    "resnet9": _resnet9,
    "text-transformer": _transformer,
    "segmenter": _segmenter,
}
"""The zoo, and one that has what the zoo lacks: two outputs, transposed and dilated convolutions, group normalization."""
